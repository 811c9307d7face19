/* One call: its attempts, its waits between them, its end. */
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer_reader.h>

#include "base/clock.h"
#include "client/internal.h"
#include "client/reply.h"

static void unref(struct timbre_call *c) {
    if (atomic_fetch_sub(&c->references, 1) > 1)
        return;
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

/* ---- an attempt ---- */

static void free_answer(struct timbre_call *c) {
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_byte_buffer_destroy(c->reply);
    grpc_slice_unref(c->details);
}

static void init_answer(struct timbre_call *c) {
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    c->reply = NULL;
    c->code = GRPC_STATUS_UNKNOWN;
    c->details = grpc_empty_slice();
}

gpr_timespec call_to_timespec(int64_t ns) {
    if (ns == INT64_MAX)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return (gpr_timespec){
        .tv_sec = ns / 1000000000, .tv_nsec = (int32_t)(ns % 1000000000), .clock_type = GPR_CLOCK_MONOTONIC};
}

/* With the call's lock. The whole exchange is one batch, and so one event. */
static grpc_call_error begin_attempt(struct timbre_call *c) {
    struct timbre_client *client = c->client;
    if (c->attempt)
        grpc_call_unref(c->attempt);
    c->attempt = grpc_channel_create_registered_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                                     client->cq, client->methods[c->method],
                                                     call_to_timespec(c->deadline_ns), NULL);
    c->state = CLIENT_CALL_RUNNING;
    c->status.attempts++;
    init_answer(c);
    /* Sending takes the slices, so every attempt gets references of its own. */
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(c->payload, c->payload_count);
    grpc_op ops[6];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].data.send_initial_metadata.count = c->metadata_count;
    ops[0].data.send_initial_metadata.metadata = c->metadata;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = message;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &c->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &c->reply;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &c->trailing;
    ops[5].data.recv_status_on_client.status = &c->code;
    ops[5].data.recv_status_on_client.status_details = &c->details;
    CLIENT_RELEASE(&c->finished);
    grpc_call_error error = grpc_call_start_batch(c->attempt, ops, 6, &c->finished, NULL);
    grpc_byte_buffer_destroy(message);
    return error;
}

/* ---- its end ---- */

/* Not in the list any more: the client may be freed as soon as the lock is given back. */
static void leave_client(struct timbre_call *c) {
    struct timbre_client *client = c->client;
    pthread_mutex_lock(&client->mutex);
    if (c->previous)
        c->previous->next = c->next;
    else
        client->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    if (!client->calls && !client->streams)
        pthread_cond_broadcast(&client->idle);
    pthread_mutex_unlock(&client->mutex);
}

static void give_back(struct timbre_call *c) {
    for (size_t i = 0; i < c->payload_count; i++)
        grpc_slice_unref(c->payload[i]);
    for (size_t i = 0; i < c->metadata_count; i++)
        grpc_slice_unref(c->metadata[i].value);
    if (c->attempt)
        grpc_call_unref(c->attempt);
    c->attempt = NULL;
}

grpc_slice call_join_message(grpc_byte_buffer *message) {
    const grpc_slice_buffer *slices = &message->data.raw.slice_buffer;
    if (slices->count == 1)
        return grpc_slice_ref(slices->slices[0]);
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer_reader_init(&reader, message);
    const grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    return all;
}

/* The client's thread. Calls done and drops the client's reference. */
static void complete(struct timbre_call *c) {
    pthread_mutex_lock(&c->mutex);
    c->state = CLIENT_CALL_DONE;
    give_back(c);
    pthread_mutex_unlock(&c->mutex);
    if (c->status.code == TIMBRE_CODE_OK && c->reply) {
        const grpc_slice all = call_join_message(c->reply);
        c->done(c, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
    } else {
        if (c->status.code == TIMBRE_CODE_OK)
            reply_fail(&c->status, TIMBRE_CODE_INTERNAL, "the server answered OK without a reply");
        c->done(c, NULL, 0);
    }
    free_answer(c);
    leave_client(c);
    unref(c);
}

void call_read_status(struct timbre_status *st, struct retry_answer *a, grpc_status_code code,
                      grpc_slice message, const grpc_metadata_array *trailing) {
    *a = (struct retry_answer){.code = (int)code};
    st->code = (int)code;
    st->retry_after_ms = -1;
    st->reason[0] = st->message[0] = 0;
    if (code == GRPC_STATUS_OK)
        return;
    size_t bytes = GRPC_SLICE_LENGTH(message);
    bytes = bytes < sizeof st->message ? bytes : sizeof st->message - 1;
    memcpy(st->message, GRPC_SLICE_START_PTR(message), bytes);
    st->message[bytes] = 0;
    const grpc_metadata *details = NULL;
    for (size_t i = 0; i < trailing->count; i++) {
        const grpc_metadata *m = &trailing->metadata[i];
        if (grpc_slice_str_cmp(m->key, "grpc-retry-pushback-ms") == 0) {
            a->has_pushback = true;
            a->pushback_ms = retry_parse_pushback((const char *)GRPC_SLICE_START_PTR(m->value),
                                                  GRPC_SLICE_LENGTH(m->value));
        } else if (grpc_slice_str_cmp(m->key, "grpc-status-details-bin") == 0) {
            details = m;
        }
    }
    if (a->has_pushback && a->pushback_ms >= 0 && a->pushback_ms <= INT32_MAX)
        st->retry_after_ms = (int)a->pushback_ms;
    if (details)
        reply_parse_details(GRPC_SLICE_START_PTR(details->value), GRPC_SLICE_LENGTH(details->value), st);
}

static uint64_t next_random(struct timbre_client *client) { /* xorshift */
    uint64_t r = client->random;
    r ^= r << 13;
    r ^= r >> 7;
    r ^= r << 17;
    return client->random = r;
}

int64_t call_choose_wait_ms(struct timbre_client *client, int attempts, const struct retry_answer *answer,
                            int64_t deadline_ns) {
    const int64_t left_ms = deadline_ns == INT64_MAX ? INT64_MAX : (deadline_ns - clock_now_ns()) / 1000000;
    return retry_wait_ms(&client->retry, attempts, answer, left_ms, next_random(client));
}

/* The attempt's event. */
static void on_finished(void *owner, bool ok) {
    struct timbre_call *c = owner;
    struct timbre_client *client = c->client;
    struct retry_answer answer;
    (void)ok;
    call_read_status(&c->status, &answer, c->code, c->details, &c->trailing);
    if (answer.code != GRPC_STATUS_OK) {
        const int64_t wait_ms = call_choose_wait_ms(client, c->status.attempts, &answer, c->deadline_ns);
        bool waits = false;
        pthread_mutex_lock(&c->mutex);
        if (wait_ms >= 0 && !c->cancelled) {
            c->timer.timer.at_ns = clock_now_ns() + wait_ms * 1000000;
            waits = timers_add(&client->timers, &c->timer.timer) == 0;
        }
        if (waits) {
            c->state = CLIENT_CALL_WAITING;
            free_answer(c);
        }
        pthread_mutex_unlock(&c->mutex);
        if (waits)
            return;
    }
    complete(c);
}

static void end_early(struct timbre_call *c, int code, const char *why) {
    init_answer(c);
    c->status.reason[0] = 0;
    c->status.retry_after_ms = -1;
    reply_fail(&c->status, code, "%s", why);
    complete(c);
}

/* The next attempt of a call whose time has come. */
static void resume(void *owner) {
    struct timbre_call *c = owner;
    grpc_call_error error = GRPC_CALL_OK;
    pthread_mutex_lock(&c->mutex);
    const bool cancelled = c->cancelled;
    if (!cancelled)
        error = begin_attempt(c);
    pthread_mutex_unlock(&c->mutex);
    if (cancelled)
        end_early(c, TIMBRE_CODE_CANCELLED, "cancelled before it was sent again");
    else if (error != GRPC_CALL_OK)
        end_early(c, TIMBRE_CODE_INTERNAL, grpc_call_error_to_string(error));
}

/* Somebody cancelled it while it waited. */
static void on_woken(void *owner, bool ok) {
    struct timbre_call *c = owner;
    (void)ok;
    if (c->timer.timer.place) {
        timers_remove(&c->client->timers, &c->timer.timer);
        resume(c); /* may drop the client's reference */
    }
    unref(c); /* NOLINT(clang-analyzer-unix.Malloc): the wake's own, which it does not count */
}

/* ---- its beginning ---- */

static void add_metadata(struct timbre_call *c, const char *key, grpc_slice value) {
    grpc_metadata *m = &c->metadata[c->metadata_count++];
    m->key = grpc_slice_from_static_string(key);
    m->value = value;
}

/* Into the client's list. */
static int enter_client(struct timbre_call *c, struct timbre_status *status) {
    struct timbre_client *client = c->client;
    pthread_mutex_lock(&client->mutex);
    const bool closing = client->closing;
    if (!closing) {
        if (GRPC_SLICE_LENGTH(client->authorization))
            add_metadata(c, "authorization", grpc_slice_ref(client->authorization));
        c->next = client->calls;
        if (c->next)
            c->next->previous = c;
        client->calls = c;
    }
    pthread_mutex_unlock(&client->mutex);
    return closing ? reply_fail(status, TIMBRE_CODE_CANCELLED, "the client is being deleted") : 0;
}

int call_check_traceparent(const char *traceparent, struct timbre_status *status) {
    for (const char *s = traceparent; s && *s; s++)
        if (*s < ' ' || *s > '~')
            return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "traceparent: not printable ASCII");
    return 0;
}

int call_start(struct timbre_client *client, const struct call_options *o, struct timbre_call **handle,
               struct timbre_status *status) {
    const int deadline_ms = o->deadline_ms ? o->deadline_ms : client->deadline_ms;
    struct timbre_call *c = calloc(1, sizeof *c);
    if (!c) {
        for (size_t i = 0; i < o->payload_count; i++)
            grpc_slice_unref(o->payload[i]);
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "out of memory for a call");
    }
    c->client = client;
    c->finished = (struct client_tag){on_finished, c};
    c->woken = (struct client_tag){on_woken, c};
    c->timer = (struct client_timer){.run = resume, .owner = c};
    c->method = o->method;
    c->deadline_ns =
        deadline_ms == TIMBRE_NO_DEADLINE ? INT64_MAX : clock_now_ns() + (int64_t)deadline_ms * 1000000;
    memcpy(c->payload, o->payload, sizeof c->payload);
    c->payload_count = o->payload_count;
    c->done = o->done;
    c->done_arg = o->done_arg;
    c->callback = o->callback;
    if (o->traceparent && *o->traceparent)
        add_metadata(c, "traceparent", grpc_slice_from_copied_string(o->traceparent));
    pthread_mutex_init(&c->mutex, NULL);
    /* One for the way to its end, one for this function, one for the handle. */
    atomic_init(&c->references, handle ? 3 : 2);
    if (handle)
        *handle = c; /* the callback may run before this function returns */
    int result = enter_client(c, status);
    if (result == 0) {
        pthread_mutex_lock(&c->mutex);
        const bool cancelled = c->cancelled; /* by another thread, already */
        const grpc_call_error error = cancelled ? GRPC_CALL_ERROR : begin_attempt(c);
        pthread_mutex_unlock(&c->mutex);
        if (error != GRPC_CALL_OK) { /* a bug, or metadata that gRPC does not take */
            result = cancelled
                         ? reply_fail(status, TIMBRE_CODE_CANCELLED, "cancelled before it was sent")
                         : reply_fail(status, TIMBRE_CODE_INTERNAL, "%s", grpc_call_error_to_string(error));
            if (!cancelled)
                free_answer(c);
            leave_client(c);
        }
    }
    if (result) {
        give_back(c);
        atomic_store(&c->references, 1);
        if (handle)
            *handle = NULL;
    }
    unref(c);
    return result;
}

void timbre_call_cancel(struct timbre_call *c) {
    pthread_mutex_lock(&c->mutex);
    if (!c->cancelled && c->state != CLIENT_CALL_DONE) {
        c->cancelled = true;
        if (!c->attempt) {
            /* It is about to begin, and will not. */
        } else if (c->state == CLIENT_CALL_RUNNING) {
            grpc_call_cancel(c->attempt, NULL);
        } else {
            /* An empty batch comes back at once: the thread that keeps the timer wakes. */
            atomic_fetch_add(&c->references, 1);
            CLIENT_RELEASE(&c->woken);
            if (grpc_call_start_batch(c->attempt, NULL, 0, &c->woken, NULL) != GRPC_CALL_OK)
                atomic_fetch_sub(&c->references, 1); /* then its timer ends it */
        }
    }
    pthread_mutex_unlock(&c->mutex);
}

void timbre_call_release(struct timbre_call *c) {
    if (c)
        unref(c);
}
