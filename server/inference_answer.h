/* inference_answer: a ModelInferResponse from the engine's result. */
#ifndef TIMBRE_SERVER_INFERENCE_ANSWER_H
#define TIMBRE_SERVER_INFERENCE_ANSWER_H

#include "server/inference_request.h"

struct inference_answer_options {
    const char *model_name, *model_version, *id;
    const struct inference_output *outputs; /* [outputs_count] */
    int outputs_count;
    bool raw, batched; /* as in the request */
    bool is_final;     /* tell so: triton_final_response */
};

/* A response that points into the arguments and into memory that inference_answer_free frees; the options are
 * copied, but not what they point to. `result` must not be an error. NULL: out of memory. */
struct inference_answer;
struct inference_answer *inference_answer_new(const struct engine_result *result, const struct model *m,
                                              const struct inference_answer_options *o);
Inference__ModelInferResponse *inference_answer_get(struct inference_answer *a);
void inference_answer_free(struct inference_answer *a); /* NULL is fine */

#endif
