/* One attempt of a stream: a gRPC call, what is sent on it and what comes of it. All on the client's thread.
 */
#include <string.h>

#include "base/clock.h"
#include "client/reply.h"
#include "client/stream.h"

/* ---- its end ---- */

static void check_over(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    struct retry_answer answer;
    if (!a->has_status || a->sending)
        return;
    const int attempts = s->status.attempts;
    call_read_status(&s->status, &answer, a->code, a->details, &a->trailing);
    if (a->broken) {
        s->status = a->error;
        answer = (struct retry_answer){.code = a->error.code};
    }
    s->status.attempts = attempts;
    grpc_metadata_array_destroy(&a->initial);
    grpc_metadata_array_destroy(&a->trailing);
    grpc_slice_unref(a->details);
    grpc_slice_unref(a->authorization);
    grpc_call_unref(a->call);
    a->call = NULL;
    if (s->timer.timer.place)
        timers_remove(&s->client->timers, &s->timer.timer);
    stream_attempt_over(s, &answer);
}

/* Something happened, or is about to. */
static void note_movement(struct stream_attempt *a) {
    a->moved_ns = clock_now_ns();
    a->suspected = false;
}

static bool start(struct timbre_stream *s, const grpc_op *ops, size_t count, struct client_tag *tag) {
    note_movement(&s->attempt);
    CLIENT_RELEASE(tag);
    return grpc_call_start_batch(s->attempt.call, ops, count, tag, NULL) == GRPC_CALL_OK;
}

static void ask_status(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    op.data.recv_status_on_client.trailing_metadata = &a->trailing;
    op.data.recv_status_on_client.status = &a->code;
    op.data.recv_status_on_client.status_details = &a->details;
    a->asked_status = true;
    a->has_status = !start(s, &op, 1, &s->closed);
}

void stream_on_closed(void *owner, bool ok) {
    struct timbre_stream *s = owner;
    (void)ok;
    s->attempt.has_status = true;
    if (s->attempt.sending)
        grpc_call_cancel(s->attempt.call, NULL); /* nobody reads it any more */
    check_over(s);
}

void stream_break_attempt(struct timbre_stream *s, const struct timbre_status *why) {
    struct stream_attempt *a = &s->attempt;
    if (a->broken)
        return;
    a->broken = true;
    a->error = *why;
    grpc_call_cancel(a->call, NULL);
}

void stream_cancel_attempt(struct timbre_stream *s) {
    grpc_call_cancel(s->attempt.call, NULL);
}

/* ---- receiving ---- */

static void receive(struct timbre_stream *s, bool first) {
    struct stream_attempt *a = &s->attempt;
    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_RECV_MESSAGE;
    ops[0].data.recv_message.recv_message = &a->message;
    ops[1].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &a->initial;
    a->message = NULL;
    a->receiving = start(s, ops, first ? 2 : 1, &s->received);
    if (!a->receiving)
        ask_status(s);
}

void stream_on_received(void *owner, bool ok) {
    struct timbre_stream *s = owner;
    struct stream_attempt *a = &s->attempt;
    grpc_byte_buffer *message = a->message;
    a->receiving = false;
    a->message = NULL;
    note_movement(a);
    if (message && ok && !a->broken) {
        struct timbre_status status = {.retry_after_ms = -1};
        const grpc_slice slice = call_join_message(message);
        if (stream_take_message(s, slice, &status))
            stream_break_attempt(s, &status);
        grpc_slice_unref(slice);
    }
    if (message && ok && !a->broken)
        receive(s, false);
    else
        ask_status(s);
    grpc_byte_buffer_destroy(message);
    check_over(s);
}

/* ---- sending ---- */

static bool send_message(struct timbre_stream *s, grpc_byte_buffer *message) {
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_MESSAGE;
    op.data.send_message.send_message = message;
    const bool started = start(s, &op, 1, &s->sent);
    grpc_byte_buffer_destroy(message);
    return started;
}

static bool half_close(struct timbre_stream *s) {
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    s->attempt.half_closed = true;
    return start(s, &op, 1, &s->sent);
}

/* The next piece of audio that is there, with the lock; NULL: none before `limit`. */
static grpc_byte_buffer *take_audio(struct timbre_stream *s, int64_t limit) {
    int64_t bytes = limit - s->sent_end;
    if (bytes <= 0)
        return NULL;
    if (bytes > STREAM_MESSAGE_BYTES_MAX)
        bytes = STREAM_MESSAGE_BYTES_MAX;
    grpc_byte_buffer *message = stream_make_audio(s, s->sent_end, (size_t)bytes);
    s->sent_end += bytes;
    if (!s->resumes) {
        stream_buffer_drop(&s->buffer, s->sent_end);
        pthread_cond_broadcast(&s->changed);
    }
    return message;
}

void stream_send_more(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    if (a->sending || a->half_closed || a->broken || a->asked_status)
        return;
    pthread_mutex_lock(&s->mutex);
    grpc_byte_buffer *message = take_audio(s, s->asked ? s->asked_at : s->buffer.end);
    if (!message && s->asked) {
        message = stream_make_ask();
        s->asked = false;
        s->ask_open = true;
    }
    const bool closes = !message && s->finished;
    s->idle = !message && !closes;
    pthread_mutex_unlock(&s->mutex);
    if (message)
        a->sending = send_message(s, message);
    else if (closes)
        a->sending = half_close(s);
}

void stream_on_sent(void *owner, bool ok) {
    struct timbre_stream *s = owner;
    s->attempt.sending = false;
    if (ok) {
        note_movement(&s->attempt);
        stream_send_more(s);
    } /* else the call is over, which a receive tells */
    check_over(s);
}

/* ---- its beginning ---- */

static bool send_config(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    size_t count = 0;
    grpc_op ops[2];
    if (GRPC_SLICE_LENGTH(a->authorization)) {
        a->metadata[count].key = grpc_slice_from_static_string("authorization");
        a->metadata[count++].value = a->authorization;
    }
    if (GRPC_SLICE_LENGTH(s->traceparent)) {
        a->metadata[count].key = grpc_slice_from_static_string("traceparent");
        a->metadata[count++].value = s->traceparent;
    }
    grpc_byte_buffer *message = stream_make_config(s);
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].data.send_initial_metadata.count = count;
    ops[0].data.send_initial_metadata.metadata = a->metadata;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = message;
    const bool started = start(s, ops, 2, &s->sent);
    grpc_byte_buffer_destroy(message);
    return started;
}

static void set_stall_timer(struct timbre_stream *s, int64_t at_ns) {
    s->timer.timer.at_ns = at_ns;
    timers_add(&s->client->timers, &s->timer.timer); /* without memory: no such check */
}

void stream_begin_attempt(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    *a = (struct stream_attempt){.code = GRPC_STATUS_UNKNOWN, .details = grpc_empty_slice()};
    pthread_mutex_lock(&s->client->mutex);
    a->authorization = grpc_slice_ref(s->client->authorization); /* that of now, not of the first attempt */
    pthread_mutex_unlock(&s->client->mutex);
    grpc_metadata_array_init(&a->initial);
    grpc_metadata_array_init(&a->trailing);
    a->call = grpc_channel_create_registered_call(s->client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                                  s->client->cq, s->client->methods[CLIENT_STREAMING_PREDICT],
                                                  call_to_timespec(s->deadline_ns), NULL);
    s->state = STREAM_RUNNING;
    s->attempts++;
    s->status.attempts++;
    if (s->stall_ns < INT64_MAX)
        set_stall_timer(s, clock_now_ns() + s->stall_ns);
    a->sending = send_config(s);
    if (a->sending) {
        receive(s, true);
    } else { /* a bug, or metadata that gRPC does not take */
        struct timbre_status status = {.retry_after_ms = -1};
        reply_fail(&status, TIMBRE_CODE_INTERNAL, "gRPC does not take the beginning of a stream");
        stream_break_attempt(s, &status);
        a->has_status = true;
        check_over(s);
    }
}

/* ---- stalls ---- */

void stream_check_stall(struct timbre_stream *s) {
    struct stream_attempt *a = &s->attempt;
    const int64_t now_ns = clock_now_ns();
    const bool owed = a->sending || a->half_closed || s->ask_open;
    const int64_t at_ns = a->moved_ns + s->stall_ns;
    if (a->broken)
        return;
    if (!owed || now_ns < at_ns) {
        set_stall_timer(s, owed ? at_ns : now_ns + s->stall_ns);
    } else if (!a->suspected) { /* events may wait behind this timer */
        a->suspected = true;
        set_stall_timer(s, now_ns + STREAM_SUSPECT_MS * INT64_C(1000000));
    } else {
        struct timbre_status status = {.retry_after_ms = -1};
        reply_fail(&status, TIMBRE_CODE_UNAVAILABLE, "nothing moved for %lld ms (stall_ms)",
                   (long long)(s->stall_ns / 1000000));
        stream_break_attempt(s, &status);
    }
}
