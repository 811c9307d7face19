/* stream_answer: StreamingPredictResponse messages from the engine's events. */
#ifndef TIMBRE_SERVER_STREAM_ANSWER_H
#define TIMBRE_SERVER_STREAM_ANSWER_H

#include "engine/stream.h"
#include "proto/timbre/v1/timbre.pb-c.h"
#include "server/stream_config.h"

/* What the events of one stream have in common. */
struct stream_answer_options {
    const struct model *model;
    const char *model_name, *model_version, *request_id;
    const struct stream_channel *channels; /* a name and a role for each */
    Timbre__V1__StreamEnd end;             /* of the last summary; others say that it goes on */
};

/* A message from an event that is ENGINE_STREAM_RESULT or ENGINE_STREAM_SUMMARY. It points into the event,
 * the options and one block, which stream_answer_free frees. NULL: out of memory. */
struct stream_answer;
struct stream_answer *stream_answer_new(const struct engine_stream_event *e,
                                        const struct stream_answer_options *o);
const Timbre__V1__StreamingPredictResponse *stream_answer_get(const struct stream_answer *a);
void stream_answer_free(struct stream_answer *a); /* NULL is fine */

#endif
