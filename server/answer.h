/* answer: timbre.v1 messages from the engine's results. */
#ifndef TIMBRE_SERVER_ANSWER_H
#define TIMBRE_SERVER_ANSWER_H

#include "engine/engine.h"
#include "proto/timbre/v1/timbre.pb-c.h"

struct answer_options {
    const char *model_name, *model_version, *request_id;
    int top_k; /* 0: all labels in the model's order */
};

/* A PredictResponse that points into `result`, the model's info and the options, and into one block that
 * answer_free frees. NULL: out of memory. `result` must not be an error. */
struct answer;
struct answer *answer_new(const struct engine_result *result, const struct model *m,
                          const struct answer_options *o);
const Timbre__V1__PredictResponse *answer_get(const struct answer *a);
void answer_free(struct answer *a);

/* What all answers are made of; each fills `to`, which then points into the arguments. A receipt's times and
 * batch are the caller's to fill in. */
void answer_fill_score(Timbre__V1__Score *to, const struct model_info *info, int index, float score,
                       float logit);
void answer_fill_receipt(Timbre__V1__Receipt *to, const struct model_info *info, const char *model_name,
                         const char *model_version);
Timbre__V1__AnswerStatus answer_convert_outcome(enum engine_outcome o);

/* Fills `to`, which then points into the arguments; `to->labels` too, so it needs no freeing. */
void answer_describe_model(Timbre__V1__Model *to, const char *name, const char *version,
                           const struct model *m);

#endif
