/* internal: struct timbre_stream, for client/ alone.
 *
 * A stream is made of attempts, each a gRPC call of its own, one after the other. Everything happens on the
 * client's thread; the functions of client.h only leave word under the stream's lock and wake that thread by
 * an empty batch. The lock is never held while a callback runs, nor while the client's is taken. */
#ifndef TIMBRE_CLIENT_STREAM_H
#define TIMBRE_CLIENT_STREAM_H

#include "client/internal.h"
#include "client/stream_buffer.h"
#include "proto/timbre/v1/timbre.pb-c.h"

enum {
    STREAM_MESSAGE_BYTES_MAX = 64 << 10, /* of audio in one message */
    STREAM_METADATA_MAX = 2,             /* authorization, traceparent */
    STREAM_SUSPECT_MS = 50,              /* that no event waits behind the timer is sure after so long */
};

enum stream_state {
    STREAM_STARTING, /* the client's thread has not seen it yet */
    STREAM_RUNNING,  /* an attempt is under way */
    STREAM_WAITING,  /* for the next one's time */
    STREAM_ENDED,
};

/* One gRPC call. A send and a receive are under way at most; the status is asked for when the last message
 * has come, because gRPC throws away messages that wait when it is asked before and is an error. */
struct stream_attempt {
    grpc_call *call;
    grpc_slice authorization;
    grpc_metadata metadata[STREAM_METADATA_MAX];
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message; /* where a receive comes to */
    grpc_status_code code;
    grpc_slice details;
    bool sending, receiving, asked_status, has_status;
    bool half_closed;
    bool broken;                /* by this side, for what `error` says */
    struct timbre_status error; /* UNAVAILABLE: worth another attempt */
    int64_t moved_ns;           /* when anything moved last */
    bool suspected;             /* to stand still */
};

/* A channel's last final result, for those that follow an attempt. */
struct stream_channel {
    double had_end_s;
    float *smoothed; /* [smoothed_count] */
    size_t smoothed_count;
};

struct timbre_stream {
    struct timbre_client *client;          /* gone once it has ended */
    struct timbre_stream *previous, *next; /* in client->streams */
    atomic_int references;                 /* the way to its end, the handle, a wake */
    struct client_tag sent, received, closed, woken;

    /* As opened. */
    void (*on_result)(const struct timbre_stream_result *result, void *user);
    void (*on_summary)(const struct timbre_stream_summary *summary, void *user);
    void (*on_resume)(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user);
    void (*on_end)(const struct timbre_status *status, void *user);
    void *user;
    Timbre__V1__StreamConfig *config; /* but what is had */
    int sample_rate_hz, channels_count;
    int64_t frame_bytes;
    bool resumes;
    int64_t stall_ns;    /* INT64_MAX: never */
    int64_t deadline_ns; /* INT64_MAX: none */
    grpc_slice traceparent;

    pthread_mutex_t mutex; /* for what follows, down to the next comment */
    pthread_cond_t changed;
    grpc_call *waker; /* nothing but empty batches; NULL once it has ended */
    bool waking;
    bool ended;
    bool cancelled, finished;
    bool asked; /* for a summary, when what is before asked_at is sent */
    int64_t asked_at;
    bool idle; /* nothing is to be sent: who adds something wakes the thread */
    struct stream_buffer buffer;
    struct stream_times times;

    /* The client's thread alone. */
    enum stream_state state;
    struct client_timer timer; /* of the next attempt; while one runs, of its stall */
    struct stream_attempt attempt;
    int64_t sent_end;  /* position up to which audio was given to the attempt */
    int64_t offset_ms; /* where the next attempt begins */
    bool goes_on;      /* had_end_s counts: some results may come twice */
    struct stream_channel channels[TIMBRE_STREAM_CHANNELS_MAX];
    grpc_slice summary; /* the last message with one; empty: none */
    bool summary_held;  /* that one was not shown */
    bool ask_open;      /* for a summary, without one since */
    bool answered;      /* the last summary was shown: the rest does not matter */
    int attempts;       /* without a result between them */
    struct timbre_status status;
};

/* ---- stream_config.c ---- */

/* INVALID_ARGUMENT: what cannot be. What a server might refuse, it shall refuse itself. */
int stream_check_options(const struct timbre_stream_options *o, struct timbre_status *status);
/* All of *s that options say. -1: out of memory; stream_free_options in any case. */
int stream_take_options(struct timbre_stream *s, const struct timbre_stream_options *o,
                        struct timbre_status *status);
void stream_free_options(struct timbre_stream *s);
int64_t stream_find_position(const struct timbre_stream *s, int64_t offset_ms); /* in bytes; whole seconds */

/* Messages: the first one, with what was had so far; audio out of the buffer (with the lock); the wish for a
 * summary. */
grpc_byte_buffer *stream_make_config(struct timbre_stream *s);
grpc_byte_buffer *stream_make_audio(struct timbre_stream *s, int64_t position, size_t bytes);
grpc_byte_buffer *stream_make_ask(void);

/* ---- stream_attempt.c, on the client's thread ---- */

/* Begins an attempt. It ends in stream_attempt_over, which may be before this returns. */
void stream_begin_attempt(struct timbre_stream *s);
void stream_cancel_attempt(struct timbre_stream *s);
void stream_send_more(struct timbre_stream *s); /* if there is more and nothing is being sent */
/* Ends the attempt early. */
void stream_break_attempt(struct timbre_stream *s, const struct timbre_status *why);
/* Of an attempt: gives it up when it stands still, else sets the timer to look again. */
void stream_check_stall(struct timbre_stream *s);
/* The events. */
void stream_on_sent(void *owner, bool ok);
void stream_on_received(void *owner, bool ok);
void stream_on_closed(void *owner, bool ok);

/* ---- stream.c, on the client's thread ---- */

/* A message has come. -1 with *status: it breaks what client.h promises. */
int stream_take_message(struct timbre_stream *s, grpc_slice message, struct timbre_status *status);
/* `answer` is what it ended with, `status` what the user is told (and to be changed). */
void stream_attempt_over(struct timbre_stream *s, const struct retry_answer *answer);

#endif
