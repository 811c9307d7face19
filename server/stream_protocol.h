/* stream_protocol: which message of StreamingPredict may come when, and what is in it. No call, no engine, no
 * clock. */
#ifndef TIMBRE_SERVER_STREAM_PROTOCOL_H
#define TIMBRE_SERVER_STREAM_PROTOCOL_H

#include "proto/timbre/v1/timbre.pb-c.h"
#include "server/call.h"

enum stream_message_kind { STREAM_CONFIG, STREAM_AUDIO, STREAM_SUMMARY_REQUEST };

/* One message. */
struct stream_message {
    enum stream_message_kind kind;
    const Timbre__V1__StreamConfig *config; /* of STREAM_CONFIG */
    const struct wire_field *audio;         /* of STREAM_AUDIO; points into the message's slices */

    /* What owns them. */
    Timbre__V1__StreamingPredictRequest *request;
    struct wire_parts parts;
};
void stream_message_free(struct stream_message *m);

/* What has come of one stream. Set message_bytes_max, and leave the rest zero. */
struct stream_protocol {
    int64_t message_bytes_max; /* max-stream-message-bytes */
    int64_t messages, audio_bytes;
    bool configured;
};

/* Reads the next message, which must live as long as `m`; stream_message_free follows when it is right.
 * Errors, with the message's number and how much audio came before it, and what the trailer tells in `f`:
 * INVALID_ARGUMENT (not such a message; config not first, or again; nothing or several things in it),
 * RESOURCE_EXHAUSTED (max-stream-message-bytes; memory). */
int stream_protocol_read(struct stream_protocol *p, const struct wire_message *in, struct stream_message *m,
                         struct failure *f, struct status *st);
/* The caller has sent all. Error: INVALID_ARGUMENT (config never came). */
int stream_protocol_finish(const struct stream_protocol *p, struct failure *f, struct status *st);

#endif
