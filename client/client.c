/* The client: its options, its thread, its end. */
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/internal.h"
#include "client/reply.h"
#include "client/stream.h"

enum { DEADLINE_MS_DEFAULT = 60000, ATTEMPTS_MAX_DEFAULT = 4, BACKOFF_INITIAL_MS_DEFAULT = 100 };
enum { BACKOFF_MAX_MS_DEFAULT = 5000, ATTEMPTS_LIMIT = 1000, BACKOFF_MS_LIMIT = 3600 * 1000 };

static const char *const paths[CLIENT_METHODS] = {
    [CLIENT_PREDICT] = "/timbre.v1.Timbre/Predict",
    [CLIENT_LIST_MODELS] = "/timbre.v1.Timbre/ListModels",
    [CLIENT_GET_MODEL] = "/timbre.v1.Timbre/GetModel",
    [CLIENT_CHECK_HEALTH] = "/grpc.health.v1.Health/Check",
    [CLIENT_STREAMING_PREDICT] = "/timbre.v1.Timbre/StreamingPredict",
};

const char *timbre_client_version(void) {
    return TIMBRE_VERSION;
}

static int check_range(const char *name, int64_t value, int64_t lo, int64_t hi,
                       struct timbre_status *status) {
    if (value >= lo && value <= hi)
        return 0;
    return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "%s: %lld is not in %lld..%lld", name,
                      (long long)value, (long long)lo, (long long)hi);
}

static int check_options(const struct timbre_client_options *o, struct timbre_status *status) {
    if (!o->target || !*o->target)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "target: no address, such as localhost:9000");
    if (o->token && o->token_file)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT,
                          "token and token_file: one of them, not both");
    if (check_range("deadline_ms", o->deadline_ms, TIMBRE_NO_DEADLINE, INT_MAX, status) ||
        check_range("attempts_max", o->attempts_max, 0, ATTEMPTS_LIMIT, status) ||
        check_range("backoff_initial_ms", o->backoff_initial_ms, 0, BACKOFF_MS_LIMIT, status) ||
        check_range("backoff_max_ms", o->backoff_max_ms, 0, BACKOFF_MS_LIMIT, status) ||
        check_range("reply_bytes_max", o->reply_bytes_max, 0, INT_MAX, status) ||
        check_range("keepalive_ms", o->keepalive_ms, 0, INT_MAX, status))
        return -1;
    return 0;
}

static void take_options(struct timbre_client *c, const struct timbre_client_options *o) {
    c->deadline_ms = o->deadline_ms ? o->deadline_ms : DEADLINE_MS_DEFAULT;
    c->retry = (struct retry_policy){
        .attempts_max = o->attempts_max ? o->attempts_max : ATTEMPTS_MAX_DEFAULT,
        .backoff_initial_ms = o->backoff_initial_ms ? o->backoff_initial_ms : BACKOFF_INITIAL_MS_DEFAULT,
        .backoff_max_ms = o->backoff_max_ms ? o->backoff_max_ms : BACKOFF_MAX_MS_DEFAULT,
    };
    /* Only for spreading retries in time. Never 0. */
    c->random = (uint64_t)clock_now_ns() ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)c;
    c->random |= 1;
}

/* ---- its thread ---- */

/* Runs the timers whose time has come; returns when the next one's does. */
static gpr_timespec run_timers(struct timers *timers) {
    for (struct timer *t; (t = timers_first(timers));) {
        if (t->at_ns > clock_now_ns())
            return call_to_timespec(t->at_ns);
        timers_remove(timers, t);
        const struct client_timer *timer = (const struct client_timer *)t;
        timer->run(timer->owner);
    }
    return gpr_inf_future(GPR_CLOCK_MONOTONIC);
}

static void *run_client(void *arg) {
    struct timbre_client *c = arg;
    for (;;) {
        const gpr_timespec next = run_timers(&c->timers);
        const grpc_event event = grpc_completion_queue_next(c->cq, next, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE) {
            const struct client_tag *tag = event.tag;
            CLIENT_ACQUIRE(event.tag);
            tag->run(tag->owner, event.success);
        }
    }
}

/* Signals are for the threads of the program. */
static int start_thread(struct timbre_client *c, struct timbre_status *status) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&c->thread, NULL, run_client, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error ? reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "no thread for the client: %s",
                              strerror(error))
                 : 0;
}

/* ---- its beginning and end ---- */

/* Frees everything but the thread. */
static void free_client(struct timbre_client *c) {
    if (c->channel)
        grpc_channel_destroy(c->channel);
    if (c->cq)
        grpc_completion_queue_destroy(c->cq);
    grpc_slice_unref(c->authorization);
    timers_free(&c->timers);
    pthread_cond_destroy(&c->idle);
    pthread_mutex_destroy(&c->mutex);
    free(c);
    grpc_shutdown_blocking(); /* for the last user of gRPC: its threads have ended when this returns */
}

int timbre_client_new(struct timbre_client **client, const struct timbre_client_options *o,
                      struct timbre_status *status) {
    *client = NULL;
    if (status)
        *status = (struct timbre_status){.retry_after_ms = -1};
    if (check_options(o, status))
        return -1;
    struct timbre_client *c = calloc(1, sizeof *c);
    if (!c)
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "out of memory for a client");
    grpc_init();
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->idle, NULL);
    c->authorization = grpc_empty_slice();
    take_options(c, o);
    if (channel_make_authorization(&c->authorization, o->token, o->token_file, status) ||
        channel_new(&c->channel, o, status))
        goto failed;
    for (int i = 0; i < CLIENT_METHODS; i++)
        c->methods[i] = grpc_channel_register_call(c->channel, paths[i], NULL, NULL);
    c->cq = grpc_completion_queue_create_for_next(NULL);
    if (start_thread(c, status)) {
        grpc_completion_queue_shutdown(c->cq);
        grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        goto failed;
    }
    *client = c;
    return 0;
failed:
    free_client(c);
    return -1;
}

void timbre_client_del(struct timbre_client *c) {
    if (!c)
        return;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    for (struct timbre_call *call = c->calls; call; call = call->next)
        timbre_call_cancel(call);
    for (struct timbre_stream *stream = c->streams; stream; stream = stream->next)
        timbre_stream_cancel(stream);
    while (c->calls || c->streams)
        pthread_cond_wait(&c->idle, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    grpc_completion_queue_shutdown(c->cq);
    pthread_join(c->thread, NULL);
    free_client(c);
}

int timbre_client_set_token(struct timbre_client *c, const char *token, struct timbre_status *status) {
    grpc_slice fresh, old;
    if (status)
        *status = (struct timbre_status){.retry_after_ms = -1};
    if (channel_make_authorization(&fresh, token, NULL, status))
        return -1;
    pthread_mutex_lock(&c->mutex);
    old = c->authorization;
    c->authorization = fresh;
    pthread_mutex_unlock(&c->mutex);
    grpc_slice_unref(old);
    return 0;
}
