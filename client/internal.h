/* internal: struct timbre_client and its calls, for client/ alone.
 *
 * A call is made of attempts, one after the other. Its first one is begun by the caller's thread, everything
 * else happens on the client's thread, which takes events from the completion queue and keeps the timers of
 * calls that wait for their next attempt. Locks: a client's, and one a call; only timbre_client_del holds
 * both, the client's first. gRPC is called into under a call's lock, and calls nobody back. Streams are in
 * stream.h. */
#ifndef TIMBRE_CLIENT_INTERNAL_H
#define TIMBRE_CLIENT_INTERNAL_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "client/client.h"
#include "client/retry.h"
#include "client/timers.h"

enum {
    CLIENT_TOKEN_BYTES_MAX = 8192,
    CLIENT_PEM_BYTES_MAX = 1 << 20,
    CLIENT_CALL_METADATA_MAX = 2, /* authorization, traceparent */
};

enum client_method {
    CLIENT_PREDICT,
    CLIENT_LIST_MODELS,
    CLIENT_GET_MODEL,
    CLIENT_CHECK_HEALTH,
    CLIENT_STREAMING_PREDICT,
    CLIENT_METHODS
};

struct timbre_client {
    grpc_channel *channel;
    grpc_completion_queue *cq;
    void *methods[CLIENT_METHODS]; /* as registered with the channel */
    struct retry_policy retry;
    int deadline_ms;
    pthread_t thread;

    pthread_mutex_t mutex;         /* for what follows */
    pthread_cond_t idle;           /* no calls and streams left */
    struct timbre_call *calls;     /* all whose callback has not returned, a list */
    struct timbre_stream *streams; /* all whose on_end has not returned, a list */
    bool closing;                  /* no new ones */
    grpc_slice authorization;      /* "Bearer TOKEN"; empty: no token */

    /* The client's thread alone. */
    struct timers timers;
    uint64_t random;
};

/* What the completion queue gives back. */
struct client_tag {
    void (*run)(void *owner, bool ok);
    void *owner; /* a call, or a stream */
};

/* What client->timers holds. */
struct client_timer {
    struct timer timer; /* the first, so that its address is this one's */
    void (*run)(void *owner);
    void *owner;
};

enum client_call_state {
    CLIENT_CALL_RUNNING, /* an attempt is under way */
    CLIENT_CALL_WAITING, /* for its timer */
    CLIENT_CALL_DONE,
};

struct timbre_call {
    struct timbre_client *client;        /* gone once it is done */
    struct timbre_call *previous, *next; /* in client->calls */
    atomic_int references;
    struct client_tag finished, woken;
    struct client_timer timer;

    pthread_mutex_t mutex; /* for state, cancelled, attempt */
    enum client_call_state state;
    bool cancelled;
    grpc_call *attempt; /* the running one, or while waiting the last */

    enum client_method method;
    int64_t deadline_ns; /* on clock_now_ns; INT64_MAX: none */
    grpc_slice payload[2];
    size_t payload_count;
    grpc_metadata metadata[CLIENT_CALL_METADATA_MAX];
    size_t metadata_count;

    /* Where an attempt's answer comes to. */
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *reply;
    grpc_status_code code;
    grpc_slice details;

    struct timbre_status status;
    /* Once, when all is over: status.code is OK and `bytes` [count] is the reply, or not, and they are NULL
     * and 0. */
    void (*done)(struct timbre_call *call, const void *bytes, size_t count);
    void *done_arg;
    timbre_predict_callback *callback; /* of timbre_predict_start */
};

/* ---- channel.c ---- */

/* Options to a channel. Errors as timbre_client_new. */
int channel_new(grpc_channel **channel, const struct timbre_client_options *o, struct timbre_status *status);
/* "Bearer TOKEN" from memory or, when `token` is NULL, the first line of `file`; empty when both are NULL. */
int channel_make_authorization(grpc_slice *slice, const char *token, const char *file,
                               struct timbre_status *status);

/* ---- call.c ---- */

struct call_options {
    enum client_method method;
    const char *traceparent;
    int deadline_ms; /* as in a request */
    grpc_slice payload[2];
    size_t payload_count;
    void (*done)(struct timbre_call *call, const void *bytes, size_t count);
    void *done_arg;
    timbre_predict_callback *callback;
};

/* Starts a call; done follows exactly once, on the client's thread, unless this returns -1. The payload's
 * slices are the call's from here on, on an error too. `handle` may be NULL. */
int call_start(struct timbre_client *client, const struct call_options *o, struct timbre_call **handle,
               struct timbre_status *status);

/* What an attempt ended with, as a status (all but `attempts`) and for the decision about another one. */
void call_read_status(struct timbre_status *status, struct retry_answer *answer, grpc_status_code code,
                      grpc_slice details, const grpc_metadata_array *trailing);
/* How long to wait for another attempt, or -1 for none. The client's thread. */
int64_t call_choose_wait_ms(struct timbre_client *client, int attempts, const struct retry_answer *answer,
                            int64_t deadline_ns);
gpr_timespec call_to_timespec(int64_t deadline_ns); /* on clock_now_ns; INT64_MAX: never */
/* A message in one piece, with a reference of its own. */
grpc_slice call_join_message(grpc_byte_buffer *message);
/* INVALID_ARGUMENT: gRPC would not send it. NULL is fine. */
int call_check_traceparent(const char *traceparent, struct timbre_status *status);

/* ---- threads ---- */

/* The thread sanitizer does not see the locks inside gRPC, which is not built with it: these tell it that
 * what was written before an operation was started is seen by whoever takes its event. */
#if defined(__SANITIZE_THREAD__)
#define CLIENT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CLIENT_TSAN 1
#endif
#endif
#ifdef CLIENT_TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define CLIENT_ACQUIRE(tag) __tsan_acquire(tag)
#define CLIENT_RELEASE(tag) __tsan_release(tag)
#else
#define CLIENT_ACQUIRE(tag) ((void)(tag))
#define CLIENT_RELEASE(tag) ((void)(tag))
#endif

#endif
