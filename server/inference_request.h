/* inference_request: what a ModelInferRequest asks for, checked, as a plain struct. Nothing here knows the
 * server or its models. */
#ifndef TIMBRE_SERVER_INFERENCE_REQUEST_H
#define TIMBRE_SERVER_INFERENCE_REQUEST_H

#include "engine/engine.h"
#include "proto/inference/grpc_service.pb-c.h"
#include "server/wire.h"

enum {
    INFERENCE_RAW_FIELD = 7, /* ModelInferRequest.raw_input_contents, for wire_unpack_parts */
    INFERENCE_ID_BYTES = 129,
    INFERENCE_FIELD_BYTES = 64,
};

enum inference_tensor_id {
    INFERENCE_PROBABILITIES,
    INFERENCE_LABELS,
    INFERENCE_STATUS,
    INFERENCE_LOGITS,
    INFERENCE_EMBEDDING,
    INFERENCE_WINDOW_TIMES,
    INFERENCE_WINDOW_PROBABILITIES,
    INFERENCE_WINDOW_STATUS,
    INFERENCE_OUTPUTS,
};
enum { INFERENCE_OUTPUTS_DEFAULT = 3 }; /* the first of them, when none is asked for */

/* A dimension is a number, or one of these. */
enum { INFERENCE_DIM_WINDOWS = -1, INFERENCE_DIM_LABELS = -2, INFERENCE_DIM_HIDDEN = -3 };
struct inference_tensor {
    const char *name, *datatype;
    Inference__DataType data_type;
    int dims_count, dims[2];
};
extern const struct inference_tensor inference_outputs[INFERENCE_OUTPUTS];

struct inference_output {
    enum inference_tensor_id id;
    int best; /* > 0: the `best` highest as text (classification) */
};

/* Points into the message, the parts and itself. */
struct inference_request {
    const char *model_name, *model_version, *id;
    struct audio_format format; /* rate 0: the model's */
    double window_s, hop_s;     /* as in engine_request_options */
    enum engine_class order;
    int64_t timeout_us; /* 0: none */
    bool raw;           /* tensors came as raw bytes, and so are answered */
    bool batched;       /* AUDIO has a leading dimension of 1, and so have the outputs */
    struct inference_output outputs[INFERENCE_OUTPUTS];
    int outputs_count;
    /* The audio: pieces [pieces_count] in the message's own bytes, or (pieces NULL) data [bytes]. */
    struct engine_piece *pieces;
    size_t pieces_count;
    const void *data;
    size_t bytes;
    void *owned;                       /* what `data` or `pieces` may point to */
    char field[INFERENCE_FIELD_BYTES]; /* of an error: the field, such as "inputs.AUDIO.shape" */
};

/* Reads a request whose raw_input_contents were taken out into `raw`. On success inference_request_free
 * follows, and message and parts live as long. Errors: INVALID_ARGUMENT (names tensor or parameter; r->field
 * tells it too), RESOURCE_EXHAUSTED (memory). */
int inference_request_init(struct inference_request *r, const Inference__ModelInferRequest *m,
                           const struct wire_parts *raw, struct status *st);
void inference_request_free(struct inference_request *r);

#endif
