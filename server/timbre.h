/* timbre: what the methods of timbre.v1.Timbre share. */
#ifndef TIMBRE_SERVER_TIMBRE_H
#define TIMBRE_SERVER_TIMBRE_H

#include "proto/timbre/v1/timbre.pb-c.h"
#include "server/internal.h"

/* What a method takes of the formats there are. */
struct timbre_format_limits {
    bool raw_only; /* no file */
    int rate_hz_min, rate_hz_max, channels_max;
};

/* Checks a format and puts the defaults in; `from` NULL: a file. Error: INVALID_ARGUMENT; *field: which field
 * of the request it is. */
int timbre_read_format(const Timbre__V1__AudioFormat *from, const struct timbre_format_limits *limits,
                       struct audio_format *to, const char **field, struct status *st);

/* False: the call was failed. */
bool timbre_find_model(struct call *c, const char *name, const char *version,
                       struct repository_entry **entry);

/* The handlers of StreamingPredict: stream.c. The call's state is a pointer to a stream, NULL until the first
 * message. */
struct stream;
void server_stream_message(struct call *c, struct wire_message *in);
void server_stream_half_close(struct call *c);
void server_stream_sent(struct call *c);
void server_stream_wake(struct call *c, int value);
void server_stream_drain(struct call *c);
void server_stream_tick(struct call *c, int64_t now_ns);
void server_stream_cancel(struct call *c);
void server_stream_free(struct call *c);

#endif
