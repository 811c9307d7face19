#include "fake_server.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include "base/clock.h"
#include "client/internal.h" /* what it tells the thread sanitizer */

struct exchange;

struct tag {
    void (*run)(struct exchange *x, bool ok);
    struct exchange *x;
};

/* One call. All of it is the server's thread's. */
struct exchange {
    struct fake_server *server;
    struct exchange *next; /* of those that wait for their time */
    struct tag arrived, read, closed, answered;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *message;
    int cancelled;
    int events; /* that will still come */
    const struct fake_answer *answer;
    int64_t due_ns;
    bool waits;
};

struct fake_server {
    const struct fake_answer *answers;
    int answers_count;
    grpc_server *grpc;
    grpc_completion_queue *cq;
    char address[64];
    pthread_t thread;
    struct exchange *waiting;
    atomic_int calls, cancelled, open;
    atomic_bool shut_down; /* no call will come any more */
    pthread_mutex_t mutex; /* for request */
    struct fake_request request;
    struct fake_request shown; /* the test's copy */
};

static void sleep_a_little(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void free_exchange(struct exchange *x) {
    grpc_call_details_destroy(&x->details);
    grpc_metadata_array_destroy(&x->metadata);
    grpc_byte_buffer_destroy(x->message);
    if (x->call) {
        grpc_call_unref(x->call);
        atomic_fetch_sub(&x->server->open, 1);
    }
    free(x);
}

static void start(struct exchange *x, grpc_op *ops, size_t count, struct tag *tag) {
    x->events++;
    CLIENT_RELEASE(tag);
    grpc_call_error error = grpc_call_start_batch(x->call, ops, count, tag, NULL);
    assert(error == GRPC_CALL_OK);
    (void)error;
}

static void copy_text(char *to, size_t room, grpc_slice from) {
    size_t n = GRPC_SLICE_LENGTH(from) < room - 1 ? GRPC_SLICE_LENGTH(from) : room - 1;
    memcpy(to, GRPC_SLICE_START_PTR(from), n);
    to[n] = 0;
}

static void keep_request(struct exchange *x) {
    struct fake_request *r = &x->server->request;
    pthread_mutex_lock(&x->server->mutex);
    copy_text(r->path, sizeof r->path, x->details.method);
    r->authorization[0] = r->traceparent[0] = r->user_agent[0] = 0;
    for (size_t i = 0; i < x->metadata.count; i++) {
        const grpc_metadata *m = &x->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, "authorization") == 0)
            copy_text(r->authorization, sizeof r->authorization, m->value);
        if (grpc_slice_str_cmp(m->key, "traceparent") == 0)
            copy_text(r->traceparent, sizeof r->traceparent, m->value);
        if (grpc_slice_str_cmp(m->key, "user-agent") == 0)
            copy_text(r->user_agent, sizeof r->user_agent, m->value);
    }
    free(r->message);
    r->message = NULL;
    r->bytes = 0;
    if (x->message) {
        grpc_byte_buffer_reader reader;
        grpc_byte_buffer_reader_init(&reader, x->message);
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        r->bytes = GRPC_SLICE_LENGTH(all);
        r->message = malloc(r->bytes ? r->bytes : 1);
        memcpy(r->message, GRPC_SLICE_START_PTR(all), r->bytes);
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    pthread_mutex_unlock(&x->server->mutex);
}

static void send_answer(struct exchange *x) {
    const struct fake_answer *a = x->answer;
    grpc_op ops[3];
    grpc_metadata trailers[2];
    size_t n = 0, trailers_count = 0;
    memset(ops, 0, sizeof ops);
    memset(trailers, 0, sizeof trailers);
    grpc_slice message = grpc_slice_from_copied_string(a->message ? a->message : "");
    grpc_byte_buffer *reply = NULL;
    ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (a->code == 0 && !a->no_reply) {
        grpc_slice bytes = grpc_slice_from_copied_buffer(a->reply, a->reply_bytes);
        reply = grpc_raw_byte_buffer_create(&bytes, 1);
        grpc_slice_unref(bytes);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = reply;
    }
    if (a->pushback) {
        trailers[trailers_count].key = grpc_slice_from_static_string("grpc-retry-pushback-ms");
        trailers[trailers_count++].value = grpc_slice_from_copied_string(a->pushback);
    }
    if (a->details) {
        trailers[trailers_count].key = grpc_slice_from_static_string("grpc-status-details-bin");
        trailers[trailers_count++].value = grpc_slice_from_copied_buffer(a->details, a->details_bytes);
    }
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = (grpc_status_code)a->code;
    ops[n].data.send_status_from_server.status_details = &message;
    ops[n].data.send_status_from_server.trailing_metadata_count = trailers_count;
    ops[n++].data.send_status_from_server.trailing_metadata = trailers;
    start(x, ops, n, &x->answered);
    grpc_byte_buffer_destroy(reply);
    grpc_slice_unref(message);
    for (size_t i = 0; i < trailers_count; i++)
        grpc_slice_unref(trailers[i].value);
}

static void on_answered(struct exchange *x, bool ok) {
    (void)x, (void)ok;
}

static void wait_no_more(struct exchange *x) {
    for (struct exchange **p = &x->server->waiting; *p; p = &(*p)->next)
        if (*p == x) {
            *p = x->next;
            x->waits = false;
            return;
        }
}

static void on_closed(struct exchange *x, bool ok) {
    (void)ok;
    if (x->cancelled)
        atomic_fetch_add(&x->server->cancelled, 1);
    if (x->waits) { /* somebody left: end it */
        wait_no_more(x);
        send_answer(x);
    }
}

static void on_read(struct exchange *x, bool ok) {
    (void)ok;
    keep_request(x);
    const int delay_ms = x->answer->delay_ms;
    if (delay_ms == 0 || x->cancelled) {
        send_answer(x);
        return;
    }
    x->due_ns = delay_ms < 0 ? INT64_MAX : clock_now_ns() + (int64_t)delay_ms * 1000000;
    x->waits = true;
    x->next = x->server->waiting;
    x->server->waiting = x;
}

static void await_call(struct fake_server *s);

static void on_arrived(struct exchange *x, bool ok) {
    struct fake_server *s = x->server;
    grpc_op op;
    if (!ok)
        return; /* the server stops */
    await_call(s);
    int n = atomic_fetch_add(&s->calls, 1);
    atomic_fetch_add(&s->open, 1);
    x->answer = &s->answers[n < s->answers_count ? n : s->answers_count - 1];
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &x->cancelled;
    start(x, &op, 1, &x->closed);
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &x->message;
    start(x, &op, 1, &x->read);
}

static void await_call(struct fake_server *s) {
    struct exchange *x = calloc(1, sizeof *x);
    x->server = s;
    x->arrived = (struct tag){on_arrived, x};
    x->read = (struct tag){on_read, x};
    x->closed = (struct tag){on_closed, x};
    x->answered = (struct tag){on_answered, x};
    x->events = 1;
    grpc_call_details_init(&x->details);
    grpc_metadata_array_init(&x->metadata);
    CLIENT_RELEASE(&x->arrived);
    grpc_server_request_call(s->grpc, &x->call, &x->details, &x->metadata, s->cq, s->cq, &x->arrived);
}

static void answer_due(struct fake_server *s) {
    int64_t now_ns = clock_now_ns();
    for (struct exchange *x = s->waiting, *next; x; x = next) {
        next = x->next;
        if (x->due_ns <= now_ns) {
            wait_no_more(x);
            send_answer(x);
        }
    }
}

static void *run_server(void *arg) {
    struct fake_server *s = arg;
    for (;;) {
        gpr_timespec soon = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(2, GPR_TIMESPAN));
        grpc_event event = grpc_completion_queue_next(s->cq, soon, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE && !event.tag) {
            atomic_store(&s->shut_down, true);
        } else if (event.type == GRPC_OP_COMPLETE) {
            CLIENT_ACQUIRE(event.tag);
            struct tag *tag = event.tag;
            struct exchange *x = tag->x;
            tag->run(x, event.success);
            if (--x->events == 0 && !x->waits)
                free_exchange(x);
        }
        answer_due(s);
    }
}

struct fake_server *fake_server_new(const struct fake_answer *answers, int count, const char *address) {
    struct fake_server *s = calloc(1, sizeof *s);
    s->answers = answers;
    s->answers_count = count;
    pthread_mutex_init(&s->mutex, NULL);
    grpc_init();
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ALLOW_REUSEPORT, .value.integer = 0};
    s->grpc = grpc_server_create(&(grpc_channel_args){.num_args = 1, .args = &arg}, NULL);
    s->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->grpc, s->cq, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(s->grpc, address ? address : "127.0.0.1:0", credentials);
    grpc_server_credentials_release(credentials);
    assert(port > 0);
    snprintf(s->address, sizeof s->address, "127.0.0.1:%d", port);
    grpc_server_start(s->grpc);
    await_call(s);
    pthread_create(&s->thread, NULL, run_server, s);
    return s;
}

void fake_server_del(struct fake_server *s) {
    grpc_server_shutdown_and_notify(s->grpc, s->cq, NULL);
    grpc_server_cancel_all_calls(s->grpc);
    while (!atomic_load(&s->shut_down) || atomic_load(&s->open))
        sleep_a_little();
    grpc_completion_queue_shutdown(s->cq);
    pthread_join(s->thread, NULL);
    grpc_server_destroy(s->grpc);
    grpc_completion_queue_destroy(s->cq);
    pthread_mutex_destroy(&s->mutex);
    free(s->request.message);
    free(s->shown.message);
    free(s);
    grpc_shutdown();
}

const char *fake_server_address(const struct fake_server *s) {
    return s->address;
}

int fake_server_count_calls(struct fake_server *s) {
    return atomic_load(&s->calls);
}

int fake_server_count_cancelled(struct fake_server *s) {
    return atomic_load(&s->cancelled);
}

const struct fake_request *fake_server_get_request(struct fake_server *s) {
    while (atomic_load(&s->open))
        sleep_a_little();
    free(s->shown.message);
    pthread_mutex_lock(&s->mutex);
    s->shown = s->request;
    s->shown.message = malloc(s->request.bytes ? s->request.bytes : 1);
    if (s->request.bytes)
        memcpy(s->shown.message, s->request.message, s->request.bytes);
    pthread_mutex_unlock(&s->mutex);
    return &s->shown;
}
