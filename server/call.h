/* call: one RPC, from its arrival to its last event, and what a method's handlers may do with it.
 *
 * Everything here happens on the completion-queue thread, which never blocks, but for call_wake. A call is a
 * small state machine (enum call_state); every batch of operations given to gRPC and every baton that went to
 * another thread holds a reference, and the last one frees. Whatever happens to the caller, a handler answers
 * a call exactly once (call_reply, call_fail or call_end); if the caller has left, the answer goes nowhere.
 */
#ifndef TIMBRE_SERVER_CALL_H
#define TIMBRE_SERVER_CALL_H

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

#include "base/status.h"
#include "engine/engine.h"
#include "server/wire.h"

struct call;
struct server;

enum {
    CALL_REQUEST_ID_BYTES = 129,
    CALL_STREAM_SENDS_MAX = 64, /* messages that wait to be sent on one stream */
    CALL_REQUESTS_MAX = 16,     /* requests of one call that the engine has */
};

enum call_state {
    CALL_WAITING,   /* for a caller: requested from gRPC */
    CALL_READING,   /* a message is awaited */
    CALL_WORKING,   /* the method has what it needs and owes an answer */
    CALL_FINISHING, /* the status is on its way */
    CALL_DEAD,      /* all events are in; memory is freed with the last reference */
};

/* A method of a service. All handlers run on the completion-queue thread and return quickly. */
struct method {
    const char *path;   /* "/timbre.v1.Timbre/Predict" */
    bool streams;       /* any number of messages each way; else exactly one */
    bool is_health;     /* needs no token with --open-health, and is answered while draining */
    bool is_upload;     /* carries audio: refused before it is read when the engine has no room */
    size_t state_bytes; /* of call_get_state, zeroed at the beginning of a call */
    /* A message has come. The handler owns `in` (wire_message_free, or it gives its pieces to the engine). A
     * unary method is called once. A streaming one is called again only after call_read_next. */
    void (*on_message)(struct call *c, struct wire_message *in);
    void (*on_half_close)(struct call *c); /* streaming: no more messages will come */
    /* A request given to the engine with call_finish_request has come back, with the `user` of
     * call_open_request; the handler owns it (engine_close). Also after the caller has left, and after the
     * call was answered. */
    void (*on_answer)(struct call *c, struct engine_request *r, void *user);
    void (*on_sent)(
        struct call *c); /* streaming: a message of call_send is out; there is room for one more */
    void (*on_wake)(struct call *c, int value); /* after call_wake */
    void (*on_drain)(struct call *c); /* no new calls are taken from here on; once, unless it was answered */
    void (*on_tick)(struct call *c, int64_t now_ns); /* every SERVER_TICK_MS, also after it was answered */
    void (*on_cancel)(struct call *c); /* once: the caller has left or its deadline passed, before the call
                                          was answered; its requests were cancelled. A streaming call is then
                                          ended for the handler */
    void (*on_free)(struct call *c);   /* the last thing: free what the state holds */
};

/* ---- what a handler may ask ---- */

void *call_get_state(struct call *c);
struct server *call_get_server(struct call *c);
const struct method *call_get_method(const struct call *c);
bool call_is_cancelled(const struct call *c);
int64_t call_get_deadline_ns(const struct call *c); /* on clock_now_ns; 0: none */
int64_t call_get_begin_ns(const struct call *c);    /* when it arrived */
/* A metadata value of the caller (first of that key, lower case), or NULL; not zero-terminated, *bytes long.
 */
const char *call_get_metadata(const struct call *c, const char *key, size_t *bytes);
/* The caller's x-request-id, or what call_set_request_id was given, or one made here. Never empty. */
const char *call_get_request_id(struct call *c);
/* False when it is longer than CALL_REQUEST_ID_BYTES - 1 or not printable ASCII. "" changes nothing. */
bool call_set_request_id(struct call *c, const char *id);
void call_set_model(struct call *c, const char *name); /* for the log; copied, cut at 63 bytes */

/* ---- the engine ---- */

/* engine_open with wake set, and the deadline no later than the call's: the answer comes to on_answer, with
 * `user`. Errors: those of engine_open; RESOURCE_EXHAUSTED (CALL_REQUESTS_MAX of this call are open). */
int call_open_request(struct call *c, struct engine_request **r, struct engine_request_options *o, void *user,
                      struct status *st);
/* Exactly one of these follows: engine_finish (its errors; then the handler still owns the request, and calls
 * the other) or engine_close of a request that will not be finished. */
int call_finish_request(struct call *c, struct engine_request *r, struct status *st);
void call_drop_request(struct call *c, struct engine_request *r);

/* For work done elsewhere: call_hold on the completion-queue thread before the work begins, then exactly one
 * call_wake from any thread, then on_wake(c, value) on the completion-queue thread. One at a time for a call.
 */
void call_hold(struct call *c);
void call_wake(struct call *c, int value);
void call_unhold(
    struct call *c); /* instead of call_wake, on the completion-queue thread: no work was begun */

/* ---- answering ---- */

/* Unary: the response and OK. The message is packed before this returns. */
void call_reply(struct call *c, const ProtobufCMessage *response);
/* Any: an error, with google.rpc.Status in the trailer (failure.h); `f` may be NULL for none of its extras.
 */
struct failure;
void call_fail(struct call *c, const struct status *st, const struct failure *f);
/* Streaming: one message, sent in order; at most CALL_STREAM_SENDS_MAX wait to be sent, then false: the
 * caller does not read, end the call. What was queued goes out before the status of call_end and call_fail.
 * All answers after the one that ended the call are ignored. */
bool call_send(struct call *c, const ProtobufCMessage *m);
int call_count_unsent(const struct call *c);
void call_read_next(struct call *c);
bool call_is_reading(const struct call *c); /* a message is awaited */
void call_end(struct call *c);              /* OK */
/* For how long the message or the status that is being sent has not gone out; 0: nothing is being sent. More
 * than a moment: the caller does not read. */
int64_t call_get_stalled_ns(const struct call *c, int64_t now_ns);
/* call_fail at once, also when the call was answered but is not over: nothing that waits goes out before the
 * status. For a caller who does not read; he may see code and message without the details of `f`. */
void call_abort(struct call *c, const struct status *st, const struct failure *f);

/* What a trailer tells beside the code (google.rpc details). */
struct failure {
    const char *reason; /* ErrorInfo.reason, UPPER_SNAKE_CASE; NULL: the code's name */
    const char *field;  /* BadRequest field, or NULL */
    const char *limit;  /* QuotaFailure subject: an option's name, or NULL */
    int retry_after_ms; /* > 0: RetryInfo and grpc-retry-pushback-ms */
};

#endif
