/* A call's state machine: every event of one RPC, and the answers of its handlers. */
#include "server/call.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "base/clock.h"
#include "server/call_internal.h"

/* ---- life ---- */

static void drop_unsent(struct call *c) {
    for (int i = 0; i < c->sends_count; i++)
        grpc_byte_buffer_destroy(c->sends[(c->sends_first + i) % CALL_STREAM_SENDS_MAX]);
    c->sends_count = 0;
}

static void unref(struct call *c) {
    if (--c->references)
        return;
    struct server *s = c->server;
    if (c->listed) {
        access_record(c);
        *(c->previous ? &c->previous->next : &s->calls) = c->next;
        if (c->next)
            c->next->previous = c->previous;
        s->calls_count--;
    }
    if (c->method && c->method->on_free)
        c->method->on_free(c);
    if (c->incoming)
        grpc_byte_buffer_destroy(c->incoming);
    if (c->outgoing)
        grpc_byte_buffer_destroy(c->outgoing);
    drop_unsent(c);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    if (c->grpc)
        grpc_call_unref(c->grpc);
    free(c);
}

/* Gives gRPC a batch; its one event comes to `t`. */
static void start(struct call *c, grpc_op *ops, size_t count, struct tag *t) {
    c->references++;
    __tsan_release(t);
    grpc_call_error e = grpc_call_start_batch(c->grpc, ops, count, t, NULL);
    assert(e == GRPC_CALL_OK); /* only a wrong use of gRPC gives anything else */
    (void)e;
}

static void start_receive(struct call *c) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->incoming;
    c->reading = true;
    start(c, &op, 1, &c->on_receive);
}

static void start_close(struct call *c) {
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &c->close_cancelled;
    start(c, &op, 1, &c->on_close);
}

/* ---- sending ---- */

static grpc_op initial_metadata(struct call *c) {
    c->initial_sent = true;
    return (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
}

static void start_finish(struct call *c, grpc_byte_buffer *message) {
    grpc_op ops[3] = {0};
    size_t count = 0;
    c->state = CALL_FINISHING;
    c->send_begin_ns = clock_now_ns();
    if (!c->initial_sent)
        ops[count++] = initial_metadata(c);
    if (message) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = c->outgoing = message;
    }
    ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[count].data.send_status_from_server.status = c->code;
    ops[count].data.send_status_from_server.status_details = &c->details_text;
    ops[count].data.send_status_from_server.trailing_metadata = c->trailer;
    ops[count++].data.send_status_from_server.trailing_metadata_count = c->trailer_count;
    start(c, ops, count, &c->on_finish);
    grpc_slice_unref(c->details_text);
    for (size_t i = 0; i < c->trailer_count; i++)
        grpc_slice_unref(c->trailer[i].value);
}

static void start_send(struct call *c, grpc_op *op) {
    c->sending = true;
    c->send_begin_ns = clock_now_ns();
    start(c, op, 1, &c->on_send);
}

/* Sends what waits, or the status when nothing does. */
static void pump(struct call *c) {
    if (c->sending || c->state == CALL_FINISHING)
        return;
    if (c->sends_count == 0) {
        if (c->answered)
            start_finish(c, NULL);
        return;
    }
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = c->outgoing = c->sends[c->sends_first];
    c->sends_first = (c->sends_first + 1) % CALL_STREAM_SENDS_MAX;
    c->sends_count--;
    start_send(c, &op);
}

static void sent(struct call *c, bool ok, struct tag *t) {
    (void)ok, (void)t;
    c->sending = false;
    if (c->outgoing)
        grpc_byte_buffer_destroy(c->outgoing);
    c->outgoing = NULL;
    pump(c);
    if (c->method->on_sent && !c->answered)
        c->method->on_sent(c);
    unref(c);
}

static void finished(struct call *c, bool ok, struct tag *t) {
    (void)ok, (void)t;
    c->state = CALL_DEAD;
    unref(c);
}

static grpc_byte_buffer *pack(const ProtobufCMessage *m) {
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(m));
    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

void call_reply(struct call *c, const ProtobufCMessage *response) {
    if (c->answered)
        return;
    c->answered = true;
    c->code = GRPC_STATUS_OK;
    c->details_text = grpc_empty_slice();
    start_finish(c, pack(response));
}

void call_end(struct call *c) {
    if (c->answered)
        return;
    c->answered = true;
    c->code = GRPC_STATUS_OK;
    c->details_text = grpc_empty_slice();
    pump(c);
}

void call_fail(struct call *c, const struct status *st, const struct failure *f) {
    static const struct failure none;
    char pushback[16];
    if (c->answered)
        return;
    c->answered = true;
    c->code = (grpc_status_code)st->code;
    c->details_text = grpc_slice_from_copied_string(st->message);
    if (st->code != STATUS_OK) {
        if (!f)
            f = &none;
        telemetry_count_refused(c->server->telemetry, f->reason);
        c->trailer[c->trailer_count++] = (grpc_metadata){
            .key = grpc_slice_from_static_string("grpc-status-details-bin"), .value = failure_pack(st, f)};
        if (f->retry_after_ms > 0) {
            snprintf(pushback, sizeof pushback, "%d", f->retry_after_ms);
            c->trailer[c->trailer_count++] =
                (grpc_metadata){.key = grpc_slice_from_static_string("grpc-retry-pushback-ms"),
                                .value = grpc_slice_from_copied_string(pushback)};
        }
    }
    pump(c);
}

bool call_send(struct call *c, const ProtobufCMessage *m) {
    if (c->answered)
        return true;
    if (c->sends_count == CALL_STREAM_SENDS_MAX)
        return false;
    c->sends[(c->sends_first + c->sends_count++) % CALL_STREAM_SENDS_MAX] = pack(m);
    pump(c);
    return true;
}

int call_count_unsent(const struct call *c) {
    return c->sends_count + c->sending;
}

int64_t call_get_stalled_ns(const struct call *c, int64_t now_ns) {
    return c->sending || c->state == CALL_FINISHING ? now_ns - c->send_begin_ns : 0;
}

/* What is with gRPC waits for the caller's window, which the status of a cancellation does not. */
void call_abort(struct call *c, const struct status *st, const struct failure *f) {
    const bool blocked = c->sending || c->state == CALL_FINISHING;
    if (c->aborted || c->state == CALL_DEAD)
        return;
    c->aborted = true;
    drop_unsent(c);
    call_fail(c, st, f);
    c->code = (grpc_status_code)st->code;
    if (blocked)
        grpc_call_cancel_with_status(c->grpc, c->code, st->message, NULL);
}

/* ---- receiving ---- */

/* gRPC tells it by the message that does not come, or by the end, whichever is first. */
static void fail_cancelled(struct call *c) {
    struct status st;
    if (c->answered)
        return;
    if (c->method->on_cancel)
        c->method->on_cancel(c);
    status_set(&st, STATUS_CANCELLED, "the caller has left");
    call_fail(c, &st, NULL);
}

static void received(struct call *c, bool ok, struct tag *t) {
    struct wire_message in = {.buffer = c->incoming};
    (void)ok, (void)t;
    c->incoming = NULL;
    c->reading = false;
    if (in.buffer) {
        in.bytes = grpc_byte_buffer_length(in.buffer);
        c->received_bytes += in.bytes;
    }
    if (c->answered) {
        wire_message_free(&in);
    } else if (in.buffer) {
        c->state = CALL_WORKING;
        c->method->on_message(c, &in);
    } else if (c->cancelled || grpc_call_failed_before_recv_message(c->grpc)) {
        fail_cancelled(c);
    } else if (c->method->streams) {
        c->state = CALL_WORKING;
        c->method->on_half_close(c);
    } else {
        struct status st;
        c->no_message = true;
        status_set(&st, STATUS_INVALID_ARGUMENT, "%s needs a request message, and none came",
                   c->method->path);
        call_fail(c, &st, NULL);
    }
    unref(c);
}

void call_read_next(struct call *c) {
    if (c->answered || c->reading)
        return;
    c->state = CALL_READING;
    start_receive(c);
}

static void closed(struct call *c, bool ok, struct tag *t) {
    (void)ok, (void)t;
    if (c->close_cancelled) {
        c->cancelled = true;
        for (int i = 0; i < CALL_REQUESTS_MAX; i++)
            if (c->requests[i].request)
                engine_cancel(c->requests[i].request);
        if (c->method && c->method->streams)
            fail_cancelled(c);
        else if (c->method && c->method->on_cancel && !c->answered)
            c->method->on_cancel(c);
    }
    unref(c);
}

static void check_upload(struct call *c, int64_t now_ns) {
    const int limit_ms = c->server->options->upload_timeout_ms;
    if (c->state == CALL_READING && !c->method->streams &&
        now_ns - c->begin_ns > (int64_t)limit_ms * 1000000) {
        struct status st;
        status_set(&st, STATUS_DEADLINE_EXCEEDED, "upload-timeout-ms: the request was not here after %d ms",
                   limit_ms);
        call_fail(c, &st, &(struct failure){.reason = "UPLOAD_TIMEOUT", .limit = "upload-timeout-ms"});
    }
}

void call_tick(struct call *c, int64_t now_ns) {
    check_upload(c, now_ns);
    if (c->method->on_tick)
        c->method->on_tick(c, now_ns);
}

bool call_is_reading(const struct call *c) {
    return c->reading;
}

/* ---- the engine ---- */

static void answered(struct call *c, bool ok, struct tag *t) {
    struct call_request *slot = (struct call_request *)t; /* its first member */
    struct engine_request *r = slot->request;
    (void)ok;
    slot->request = NULL;
    c->method->on_answer(c, r, slot->user);
    unref(c);
}

/* On a thread of the engine. The slot holds a reference, so the call lives until the event was handled. */
static void wake(void *arg) {
    struct call_request *slot = arg;
    grpc_call *grpc = slot->tag.call->grpc;
    __tsan_release(&slot->tag); /* the last look at the slot */
    grpc_call_start_batch(grpc, NULL, 0, &slot->tag, NULL);
}

int call_open_request(struct call *c, struct engine_request **r, struct engine_request_options *o, void *user,
                      struct status *st) {
    struct call_request *slot = NULL;
    for (int i = 0; i < CALL_REQUESTS_MAX && !slot; i++)
        if (!c->requests[i].request)
            slot = &c->requests[i];
    if (!slot)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%d requests of one call are open, the limit",
                          CALL_REQUESTS_MAX);
    o->wake = wake;
    o->wake_arg = slot;
    o->user = slot;
    if (c->deadline_ns && (o->deadline_ns == 0 || c->deadline_ns < o->deadline_ns))
        o->deadline_ns = c->deadline_ns;
    *slot = (struct call_request){.tag = {.fn = answered, .call = c}, .user = user};
    if (engine_open(&slot->request, o, st))
        return -1;
    *r = slot->request;
    return 0;
}

int call_finish_request(struct call *c, struct engine_request *r, struct status *st) {
    c->references++;
    if (engine_finish(r, false, st)) {
        c->references--;
        return -1;
    }
    if (c->cancelled)
        engine_cancel(r);
    return 0;
}

void call_drop_request(struct call *c, struct engine_request *r) {
    struct call_request *slot = engine_get_user(r);
    (void)c;
    slot->request = NULL;
    engine_close(r);
}

static void woken(struct call *c, bool ok, struct tag *t) {
    (void)ok, (void)t;
    c->method->on_wake(c, c->woken);
    unref(c);
}

void call_hold(struct call *c) {
    c->references++;
}

void call_unhold(struct call *c) {
    c->references--; /* never the last: the call was not answered */
}

void call_wake(struct call *c, int value) {
    grpc_call *grpc = c->grpc;
    c->woken = value;
    __tsan_release(&c->on_woken);
    grpc_call_start_batch(grpc, NULL, 0, &c->on_woken, NULL);
}

/* ---- arrival ---- */

static int64_t convert_deadline(gpr_timespec t) {
    if (gpr_time_cmp(t, gpr_inf_future(t.clock_type)) == 0)
        return 0;
    gpr_timespec left =
        gpr_time_sub(gpr_convert_clock_type(t, GPR_CLOCK_MONOTONIC), gpr_now(GPR_CLOCK_MONOTONIC));
    if (left.tv_sec > 1000000000)
        return 0;
    return clock_now_ns() + left.tv_sec * 1000000000 + left.tv_nsec;
}

static void list(struct call *c) {
    struct server *s = c->server;
    c->listed = true;
    c->next = s->calls;
    if (c->next)
        c->next->previous = c;
    s->calls = c;
    s->calls_count++;
}

/* Taken now: of a caller who has left gRPC cannot tell it any more. */
static void note_peer(struct call *c) {
    char *peer = grpc_call_get_peer(c->grpc);
    snprintf(c->peer, sizeof c->peer, "%s", peer);
    gpr_free(peer);
}

/* An answer to a method nobody has; the handlers are never called. */
static const struct method unknown = {.path = "unknown"};
enum { PATH_BYTES_SHOWN = 200 };

static void fail_unknown_method(struct call *c) {
    char path[PATH_BYTES_SHOWN + 1];
    const size_t length = GRPC_SLICE_LENGTH(c->details.method);
    const size_t shown = length < PATH_BYTES_SHOWN ? length : PATH_BYTES_SHOWN;
    struct status st;
    for (size_t i = 0; i < shown; i++) {
        const char byte = (char)GRPC_SLICE_START_PTR(c->details.method)[i];
        path[i] = byte < ' ' || byte > '~' ? '?' : byte;
    }
    path[shown] = 0;
    status_set(&st, STATUS_UNIMPLEMENTED, "no method %s here", path);
    call_fail(c, &st, NULL);
}

static void arrived(struct call *c, bool ok, struct tag *t) {
    struct server *s = c->server;
    struct status st = {0};
    struct failure f = {0};
    (void)t;
    s->armed_count--;
    if (!ok) { /* shutting down */
        unref(c);
        return;
    }
    call_arm(s);
    list(c);
    note_peer(c);
    s->last_arrival_ns = c->begin_ns = clock_now_ns();
    c->deadline_ns = convert_deadline(c->details.deadline);
    c->method = methods_find((const char *)GRPC_SLICE_START_PTR(c->details.method),
                             GRPC_SLICE_LENGTH(c->details.method));
    const bool known = c->method != NULL;
    if (!known)
        c->method = &unknown;
    telemetry_begin_call(s->telemetry, methods_index(c->method));
    start_close(c);
    if (!admit_call(c, &st, &f)) {
        call_fail(c, &st, &f);
    } else if (!known) {
        fail_unknown_method(c);
    } else {
        if (c->method->streams) {
            grpc_op op = initial_metadata(c);
            start_send(c, &op);
        }
        c->state = CALL_READING;
        start_receive(c);
    }
    unref(c);
}

void call_arm(struct server *s) {
    if (s->shut_down)
        return;
    size_t most = 0;
    for (int i = 0; i < methods_count(); i++)
        if (methods_at(i)->state_bytes > most)
            most = methods_at(i)->state_bytes;
    struct call *c = calloc(1, sizeof *c + most);
    if (!c)
        return; /* fewer callers are awaited; the tick tries again */
    c->server = s;
    c->references = 1;
    c->on_new = (struct tag){arrived, c};
    c->on_close = (struct tag){closed, c};
    c->on_receive = (struct tag){received, c};
    c->on_send = (struct tag){sent, c};
    c->on_finish = (struct tag){finished, c};
    c->on_woken = (struct tag){woken, c};
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    __tsan_release(&c->on_new);
    if (grpc_server_request_call(s->grpc, &c->grpc, &c->details, &c->metadata, s->cq, s->cq, &c->on_new) !=
        GRPC_CALL_OK) {
        unref(c);
        return;
    }
    s->armed_count++;
}

/* ---- what a handler may ask ---- */

void *call_get_state(struct call *c) {
    return c->handler_state;
}

struct server *call_get_server(struct call *c) {
    return c->server;
}

const struct method *call_get_method(const struct call *c) {
    return c->method;
}

bool call_is_cancelled(const struct call *c) {
    return c->cancelled;
}

int64_t call_get_deadline_ns(const struct call *c) {
    return c->deadline_ns;
}

int64_t call_get_begin_ns(const struct call *c) {
    return c->begin_ns;
}

const char *call_get_metadata(const struct call *c, const char *key, size_t *bytes) {
    for (size_t i = 0; i < c->metadata.count; i++)
        if (grpc_slice_str_cmp(c->metadata.metadata[i].key, key) == 0) {
            *bytes = GRPC_SLICE_LENGTH(c->metadata.metadata[i].value);
            return (const char *)GRPC_SLICE_START_PTR(c->metadata.metadata[i].value);
        }
    return NULL;
}

static bool is_printable(const char *s, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (s[i] < ' ' || s[i] > '~')
            return false;
    return bytes < CALL_REQUEST_ID_BYTES;
}

bool call_set_request_id(struct call *c, const char *id) {
    size_t bytes = strlen(id);
    if (!is_printable(id, bytes))
        return false;
    if (bytes)
        memcpy(c->request_id, id, bytes + 1);
    return true;
}

const char *call_get_request_id(struct call *c) {
    static uint64_t next;
    size_t bytes = 0;
    if (c->request_id[0])
        return c->request_id;
    const char *id = call_get_metadata(c, "x-request-id", &bytes);
    if (id && bytes && is_printable(id, bytes))
        memcpy(c->request_id, id, bytes); /* zeroed at the beginning */
    else
        snprintf(c->request_id, sizeof c->request_id, "%08llx-%llu", (unsigned long long)c->server->instance,
                 (unsigned long long)++next);
    return c->request_id;
}

void call_set_model(struct call *c, const char *name) {
    snprintf(c->model, sizeof c->model, "%s", name);
}
