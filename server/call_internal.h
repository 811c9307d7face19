/* call_internal: what struct call is made of, for call*.c and loop.c alone. */
#ifndef TIMBRE_SERVER_CALL_INTERNAL_H
#define TIMBRE_SERVER_CALL_INTERNAL_H

#include <stdatomic.h>

#include "server/call.h"
#include "server/internal.h"

/* What gRPC hands back with an event. `ok` is false when the operation did not happen. */
struct tag {
    void (*fn)(struct call *c, bool ok, struct tag *t);
    struct call *call;
};

/* A request of this call that the engine has, or will get. */
struct call_request {
    struct tag tag;                 /* the event that says it came back */
    struct engine_request *request; /* NULL: free */
    void *user;
};

struct call {
    struct server *server;
    const struct method *method; /* NULL until it is known */
    enum call_state state;
    bool listed;    /* in server->calls */
    bool cancelled; /* the caller left, or its deadline passed */
    bool answered;  /* call_reply, call_fail or call_end was called */
    bool initial_sent, sending, reading;
    bool aborted;    /* call_abort was called */
    bool no_message; /* unary, and the caller was done without one */
    int references;  /* batches, requests, holds; the completion-queue thread's own */
    int woken;       /* call_wake's value */

    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *incoming;
    int close_cancelled; /* written by gRPC */
    struct tag on_new, on_close, on_receive, on_send, on_finish, on_woken;

    struct call_request requests[CALL_REQUESTS_MAX];
    grpc_byte_buffer *sends[CALL_STREAM_SENDS_MAX]; /* ring of what waits to be sent */
    int sends_first, sends_count;
    grpc_byte_buffer *outgoing; /* being sent */
    int64_t send_begin_ns;      /* since when; or the status */

    /* The answer, when it has to wait for what is being sent. */
    grpc_status_code code;
    grpc_slice details_text;
    grpc_metadata trailer[2];
    size_t trailer_count;

    int64_t begin_ns, deadline_ns;
    size_t received_bytes;
    char request_id[CALL_REQUEST_ID_BYTES], model[64], token_name[AUTH_NAME_BYTES], peer[80];
    struct call *next, *previous;
    max_align_t handler_state[];
};

/* One more caller is awaited. */
void call_arm(struct server *s);
/* Cancels an upload that takes longer than upload-timeout-ms; the method's on_tick. */
void call_tick(struct call *c, int64_t now_ns);

/* admit.c: whether a call that has just arrived may go on; the reason otherwise. */
bool admit_call(struct call *c, struct status *st, struct failure *f);

/* failure.c: packs google.rpc.Status for the trailer. */
grpc_slice failure_pack(const struct status *st, const struct failure *f);

/* access.c: the log line and the counters of a finished call. */
void access_record(struct call *c);

/* Tells the thread sanitizer that a tag goes to, or came from, another thread: gRPC itself is not
 * instrumented. */
#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#else
static inline void __tsan_acquire(void *address) {
    (void)address;
}
static inline void __tsan_release(void *address) {
    (void)address;
}
#endif

#endif
