/* inference: the parts of inference.GRPCInferenceService (docs/inference.md). */
#ifndef TIMBRE_SERVER_INFERENCE_H
#define TIMBRE_SERVER_INFERENCE_H

#include "server/internal.h"

enum { INFERENCE_STREAM_REQUESTS_MAX = CALL_REQUESTS_MAX }; /* of one stream that are worked on at a time */

enum {
    INFERENCE_UNSENT_MAX = 16
}; /* answers that wait for a caller to read; then nothing more is taken from him */

/* One ModelInfer, or one message of a ModelStreamInfer: inference_item.c. */
struct inference_item;

/* Reads `in` (which the caller frees) and gives its audio to the engine; the answer comes to on_answer with
 * the item as `user`. NULL: out of memory. On any other error the item is done at once, with a status. */
struct inference_item *inference_item_new(struct call *c, struct wire_message *in, bool is_stream);
void inference_item_free(struct inference_item *i); /* closes its request; NULL is fine */
/* Takes over a request that came back, and counts it. */
void inference_item_finish(struct inference_item *i, struct call *c, struct engine_request *r);

bool inference_item_is_done(const struct inference_item *i);
const char *inference_item_get_id(const struct inference_item *i);
/* Of one that is done: NULL when there is an answer; else why not, and what the trailer tells. */
const struct status *inference_item_get_error(const struct inference_item *i, struct failure *f);
/* The answer of one that is done without an error; free it before the item. NULL: out of memory. */
struct inference_answer *inference_item_make_answer(const struct inference_item *i);

/* The handlers: inference.c, inference_models.c, inference_repository.c. */
void inference_get_server_live(struct call *c, struct wire_message *in);
void inference_get_server_ready(struct call *c, struct wire_message *in);
void inference_get_server_metadata(struct call *c, struct wire_message *in);
void inference_get_model_ready(struct call *c, struct wire_message *in);
void inference_get_model_metadata(struct call *c, struct wire_message *in);
void inference_get_model_config(struct call *c, struct wire_message *in);
void inference_get_model_statistics(struct call *c, struct wire_message *in);
void inference_get_index(struct call *c, struct wire_message *in);
void inference_load(struct call *c, struct wire_message *in);
void inference_unload(struct call *c, struct wire_message *in);
void inference_end_load(struct call *c, int value); /* on_wake of both */
enum { INFERENCE_LOAD_STATE_BYTES = sizeof(struct status) };

/* Unpacks `in` and frees it. NULL: the call was failed. */
ProtobufCMessage *inference_unpack(struct call *c, struct wire_message *in,
                                   const ProtobufCMessageDescriptor *descriptor);
/* NULL: the call was failed. */
struct repository_entry *inference_find(struct call *c, const char *name, const char *version);

#endif
