/* A stream: its beginning, what callers ask of it, what the server says, its attempts, its end. */
#include "client/stream.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "client/reply.h"
#include "client/stream_reply.h"

static void unref(struct timbre_stream *s) {
    if (atomic_fetch_sub(&s->references, 1) > 1)
        return;
    stream_free_options(s);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* With the lock: the client's thread looks at the stream soon. */
static void wake(struct timbre_stream *s) {
    if (s->waking || !s->waker)
        return;
    s->waking = true;
    atomic_fetch_add(&s->references, 1);
    CLIENT_RELEASE(&s->woken);
    grpc_call_start_batch(s->waker, NULL, 0, &s->woken,
                          NULL); /* of a batch without operations: never fails */
}

/* ---- its end ---- */

/* The last summary, when it was kept back because the stream might have gone on. */
static void show_held_summary(struct timbre_stream *s) {
    struct stream_reply r;
    if (!s->summary_held || !s->on_summary)
        return;
    if (stream_reply_parse(&r, GRPC_SLICE_START_PTR(s->summary), GRPC_SLICE_LENGTH(s->summary), NULL) == 0)
        s->on_summary(&r.summary, s->user);
    stream_reply_free(&r);
}

static void leave_client(struct timbre_stream *s) {
    struct timbre_client *client = s->client;
    pthread_mutex_lock(&client->mutex);
    if (s->previous)
        s->previous->next = s->next;
    else
        client->streams = s->next;
    if (s->next)
        s->next->previous = s->previous;
    if (!client->calls && !client->streams)
        pthread_cond_broadcast(&client->idle);
    pthread_mutex_unlock(&client->mutex);
}

/* The client's thread. */
static void end_stream(struct timbre_stream *s) {
    s->state = STREAM_ENDED;
    show_held_summary(s);
    s->on_end(&s->status, s->user);
    pthread_mutex_lock(&s->mutex);
    s->ended = true;
    stream_buffer_free(&s->buffer);
    grpc_call_unref(s->waker);
    s->waker = NULL;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    leave_client(s); /* the client may be gone from here on */
    unref(s);
}

static void end_cancelled(struct timbre_stream *s) {
    const int attempts = s->status.attempts;
    s->status = (struct timbre_status){.attempts = attempts, .retry_after_ms = -1};
    reply_fail(&s->status, TIMBRE_CODE_CANCELLED, "the stream was cancelled");
    end_stream(s);
}

static bool is_cancelled(struct timbre_stream *s) {
    pthread_mutex_lock(&s->mutex);
    const bool cancelled = s->cancelled;
    pthread_mutex_unlock(&s->mutex);
    return cancelled;
}

/* ---- from attempt to attempt ---- */

/* Whether it goes on; then the timer is set. */
static bool plan_resume(struct timbre_stream *s, const struct retry_answer *answer) {
    if (!s->resumes || s->status.code == TIMBRE_CODE_OK)
        return false;
    const int64_t wait_ms = call_choose_wait_ms(s->client, s->attempts, answer, s->deadline_ns);
    if (wait_ms < 0)
        return false;
    s->timer.timer.at_ns = clock_now_ns() + wait_ms * 1000000;
    if (timers_add(&s->client->timers, &s->timer.timer))
        return false;
    s->state = STREAM_WAITING;
    s->goes_on = true;
    s->sent_end = stream_find_position(s, s->offset_ms);
    pthread_mutex_lock(&s->mutex);
    s->idle = false;
    s->asked = s->asked || s->ask_open; /* again, where it was asked */
    stream_times_drop(&s->times, s->buffer.end);
    pthread_mutex_unlock(&s->mutex);
    s->ask_open = false;
    if (s->on_resume)
        s->on_resume(&s->status, s->offset_ms, (int)wait_ms, s->user);
    return true;
}

void stream_attempt_over(struct timbre_stream *s, const struct retry_answer *answer) {
    struct timbre_status *st = &s->status;
    if (s->answered) { /* what became of the connection after that does not matter */
        *st = (struct timbre_status){.attempts = st->attempts, .retry_after_ms = -1};
    } else if (st->code == TIMBRE_CODE_OK) {
        reply_fail(st, TIMBRE_CODE_INTERNAL, "the server ended the stream without a summary of all of it");
    } else if (is_cancelled(s)) {
        end_cancelled(s);
        return;
    }
    if (!plan_resume(s, answer))
        end_stream(s);
}

static void on_timer(void *owner) {
    struct timbre_stream *s = owner;
    if (s->state == STREAM_RUNNING)
        stream_check_stall(s);
    else
        stream_begin_attempt(s);
}

static void on_woken(void *owner, bool ok) {
    struct timbre_stream *s = owner;
    (void)ok;
    pthread_mutex_lock(&s->mutex);
    s->waking = false;
    const bool cancelled = s->cancelled;
    pthread_mutex_unlock(&s->mutex);
    switch (s->state) {
    case STREAM_STARTING:
        if (cancelled)
            end_cancelled(s);
        else
            stream_begin_attempt(s);
        break;
    case STREAM_RUNNING:
        if (cancelled)
            stream_cancel_attempt(s);
        else
            stream_send_more(s);
        break;
    case STREAM_WAITING:
        if (!cancelled)
            break;
        timers_remove(&s->client->timers, &s->timer.timer);
        end_cancelled(s);
        break;
    default:
        break;
    }
    unref(s); /* NOLINT(clang-analyzer-unix.Malloc): the wake's own, which it does not count */
}

/* ---- what the server says ---- */

static int fail(struct timbre_status *status, const char *what) {
    return reply_fail(status, TIMBRE_CODE_INTERNAL, "the server sent %s", what);
}

/* What is before the offset is not needed any more. */
static int take_offset(struct timbre_stream *s, int64_t offset_ms, struct timbre_status *status) {
    const int64_t position = stream_find_position(s, offset_ms);
    if (position > s->sent_end)
        return fail(status, "a resume_offset_ms of audio that it has not got");
    if (offset_ms <= s->offset_ms)
        return 0;
    s->offset_ms = offset_ms;
    pthread_mutex_lock(&s->mutex);
    stream_buffer_drop(&s->buffer, position);
    stream_times_drop(&s->times, position);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

static double measure_lag_ms(struct timbre_stream *s, double end_s) {
    /* A little less than a frame: end_s is rounded. */
    const int64_t frames = (int64_t)ceil(end_s * s->sample_rate_hz - 1e-3);
    pthread_mutex_lock(&s->mutex);
    const int64_t given_ns = stream_times_find(&s->times, frames * s->frame_bytes);
    pthread_mutex_unlock(&s->mutex);
    return given_ns < 0 ? NAN : clock_elapsed_ms(given_ns);
}

static int take_smoothed(struct stream_channel *c, const struct timbre_stream_result *r,
                         struct timbre_status *status) {
    if (r->smoothed_count == 0)
        return 0;
    float *smoothed = realloc(c->smoothed, r->smoothed_count * sizeof *smoothed);
    if (!smoothed)
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "out of memory for a stream's scores");
    for (size_t i = 0; i < r->smoothed_count; i++)
        smoothed[i] = r->smoothed[i].score;
    c->smoothed = smoothed;
    c->smoothed_count = r->smoothed_count;
    return 0;
}

static int take_result(struct timbre_stream *s, struct timbre_stream_result *r,
                       struct timbre_status *status) {
    if (r->channel >= s->channels_count)
        return fail(status, "a result of a channel that the stream has not got");
    struct stream_channel *c = &s->channels[r->channel];
    r->lag_ms = measure_lag_ms(s, r->end_s);
    const bool had = s->goes_on && r->end_s <= c->had_end_s;
    if (take_offset(s, r->resume_offset_ms, status) || (!had && r->final && take_smoothed(c, r, status)))
        return -1;
    if (had)
        return 0;
    if (r->final)
        c->had_end_s = r->end_s;
    s->attempts = 1; /* this one, which was worth it */
    if (s->on_result)
        s->on_result(r, s->user);
    return 0;
}

static int take_summary(struct timbre_stream *s, const struct timbre_stream_summary *summary,
                        grpc_slice message, struct timbre_status *status) {
    for (size_t i = 0; i < summary->channels_count; i++)
        if (summary->channels[i].channel >= s->channels_count)
            return fail(status, "a summary of a channel that the stream has not got");
    if (summary->final && summary->end == TIMBRE_STREAM_CLIENT && !s->attempt.half_closed)
        return fail(status, "a last summary before it had all audio");
    if (take_offset(s, summary->resume_offset_ms, status))
        return -1;
    grpc_slice_unref(s->summary);
    s->summary = grpc_slice_ref(message);
    s->ask_open = false;
    s->answered = summary->final && summary->end == TIMBRE_STREAM_CLIENT;
    s->summary_held = summary->final && !s->answered;
    if (!s->summary_held && s->on_summary)
        s->on_summary(summary, s->user);
    return 0;
}

int stream_take_message(struct timbre_stream *s, grpc_slice message, struct timbre_status *status) {
    struct stream_reply r;
    int result = s->answered ? fail(status, "more after the last summary") : 0;
    if (result)
        return result;
    result = stream_reply_parse(&r, GRPC_SLICE_START_PTR(message), GRPC_SLICE_LENGTH(message), status);
    if (result == 0)
        result =
            r.is_summary ? take_summary(s, &r.summary, message, status) : take_result(s, &r.result, status);
    stream_reply_free(&r);
    return result;
}

/* ---- its beginning ---- */

static int enter_client(struct timbre_stream *s, struct timbre_status *status) {
    struct timbre_client *client = s->client;
    pthread_mutex_lock(&client->mutex);
    const bool closing = client->closing;
    if (!closing) {
        s->next = client->streams;
        if (s->next)
            s->next->previous = s;
        client->streams = s;
    }
    pthread_mutex_unlock(&client->mutex);
    return closing ? reply_fail(status, TIMBRE_CODE_CANCELLED, "the client is being deleted") : 0;
}

static void init_cond(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void clear(struct timbre_status *status) {
    if (status)
        *status = (struct timbre_status){.retry_after_ms = -1};
}

int timbre_stream_open(struct timbre_client *client, const struct timbre_stream_options *o,
                       struct timbre_stream **stream, struct timbre_status *status) {
    *stream = NULL;
    clear(status);
    if (stream_check_options(o, status))
        return -1;
    struct timbre_stream *s = calloc(1, sizeof *s);
    if (!s)
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "out of memory for a stream");
    s->client = client;
    s->sent = (struct client_tag){stream_on_sent, s};
    s->received = (struct client_tag){stream_on_received, s};
    s->closed = (struct client_tag){stream_on_closed, s};
    s->woken = (struct client_tag){on_woken, s};
    s->timer = (struct client_timer){.run = on_timer, .owner = s};
    s->status.retry_after_ms = -1;
    pthread_mutex_init(&s->mutex, NULL);
    init_cond(&s->changed);
    atomic_init(&s->references, 1);
    if (stream_take_options(s, o, status)) {
        unref(s);
        return -1;
    }
    s->waker = grpc_channel_create_registered_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->cq,
                                                   client->methods[CLIENT_STREAMING_PREDICT],
                                                   gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    atomic_store(&s->references, 2); /* the way to its end, the handle */
    *stream = s;                     /* callbacks may run before this function returns */
    if (enter_client(s, status)) {
        grpc_call_unref(s->waker);
        atomic_store(&s->references, 1);
        unref(s);
        *stream = NULL;
        return -1;
    }
    pthread_mutex_lock(&s->mutex);
    wake(s);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

/* ---- what callers ask of it ---- */

/* With the lock. FAILED_PRECONDITION: it takes nothing any more. */
static int check_open(const struct timbre_stream *s, struct timbre_status *status) {
    const char *why = s->ended       ? "it has ended"
                      : s->cancelled ? "it was cancelled"
                      : s->finished  ? "it was finished"
                                     : NULL;
    return why ? reply_fail(status, TIMBRE_CODE_FAILED_PRECONDITION, "the stream takes no more: %s", why) : 0;
}

static struct timespec to_time(int64_t ns) {
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/* With the lock. */
static int wait_for_room(struct timbre_stream *s, size_t bytes, int wait_ms, struct timbre_status *status) {
    const struct timespec until = to_time(clock_now_ns() + (int64_t)(wait_ms > 0 ? wait_ms : 0) * 1000000);
    bool late = wait_ms == 0;
    for (;;) {
        if (check_open(s, status))
            return -1;
        if (bytes <= stream_buffer_count_free(&s->buffer))
            return 0;
        if (bytes > s->buffer.bytes_max)
            return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED,
                              "%zu bytes at once are more than buffer_bytes_max %zu", bytes,
                              s->buffer.bytes_max);
        if (late)
            return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED,
                              "no room for %zu bytes: %lld are kept, buffer_bytes_max is %zu", bytes,
                              (long long)(s->buffer.end - s->buffer.begin), s->buffer.bytes_max);
        if (pthread_equal(pthread_self(), s->client->thread))
            return reply_fail(status, TIMBRE_CODE_FAILED_PRECONDITION, "a callback must not wait");
        if (wait_ms < 0)
            pthread_cond_wait(&s->changed, &s->mutex);
        else
            late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    }
}

int timbre_stream_send(struct timbre_stream *s, const void *audio, size_t bytes, int wait_ms,
                       struct timbre_status *status) {
    clear(status);
    if (!audio && bytes)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "audio: none, but bytes is %zu", bytes);
    pthread_mutex_lock(&s->mutex);
    int result = wait_for_room(s, bytes, wait_ms, status);
    if (result == 0 && bytes) {
        if (stream_buffer_add(&s->buffer, audio, bytes)) {
            result = reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED,
                                "out of memory for %zu bytes of audio", bytes);
        } else {
            stream_times_add(&s->times, s->buffer.end, clock_now_ns());
            if (s->idle)
                wake(s);
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return result;
}

int timbre_stream_ask_summary(struct timbre_stream *s, struct timbre_status *status) {
    clear(status);
    pthread_mutex_lock(&s->mutex);
    const int result = check_open(s, status);
    if (result == 0 && !s->asked) {
        s->asked = true;
        s->asked_at = s->buffer.end;
        if (s->idle)
            wake(s);
    }
    pthread_mutex_unlock(&s->mutex);
    return result;
}

int timbre_stream_finish(struct timbre_stream *s, struct timbre_status *status) {
    clear(status);
    pthread_mutex_lock(&s->mutex);
    const int result = s->finished && !s->ended ? 0 : check_open(s, status);
    if (result == 0) {
        s->finished = true;
        pthread_cond_broadcast(&s->changed);
        if (s->idle)
            wake(s);
    }
    pthread_mutex_unlock(&s->mutex);
    return result;
}

void timbre_stream_cancel(struct timbre_stream *s) {
    pthread_mutex_lock(&s->mutex);
    if (!s->ended && !s->cancelled) {
        s->cancelled = true;
        pthread_cond_broadcast(&s->changed);
        wake(s);
    }
    pthread_mutex_unlock(&s->mutex);
}

void timbre_stream_del(struct timbre_stream *s) {
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    while (!s->ended)
        pthread_cond_wait(&s->changed, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
    unref(s);
}
