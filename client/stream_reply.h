/* stream_reply: from a message of StreamingPredict to the structs of client.h. The bytes may be anything:
 * what is not a message, or breaks what client.h promises, is an error. */
#ifndef TIMBRE_CLIENT_STREAM_REPLY_H
#define TIMBRE_CLIENT_STREAM_REPLY_H

#include "client/client.h"
#include "client/pool.h"
#include "proto/timbre/v1/timbre.pb-c.h"

struct stream_reply {
    struct pool pool; /* of all that the others point to */
    bool is_summary;
    struct timbre_stream_result result;   /* but lag_ms, which is NaN */
    struct timbre_stream_summary summary; /* if is_summary */
    Timbre__V1__StreamSummary *message;   /* the summary as it came; else NULL */
};

/* -1: INTERNAL (what is wrong) or RESOURCE_EXHAUSTED in *status. Offsets are whole seconds and not negative,
 * times finite and not negative, channels 0 to TIMBRE_STREAM_CHANNELS_MAX - 1. stream_reply_free in any case;
 * *r must stay where it is until then. */
int stream_reply_parse(struct stream_reply *r, const void *bytes, size_t count, struct timbre_status *status);
void stream_reply_free(struct stream_reply *r);

#endif
