/* internal: struct server and its parts, for server/ alone. */
#ifndef TIMBRE_SERVER_INTERNAL_H
#define TIMBRE_SERVER_INTERNAL_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/metrics.h"
#include "server/auth.h"
#include "server/call.h"
#include "server/http.h"
#include "server/options.h"
#include "server/repository.h"
#include "server/telemetry.h"
#include "server/tls.h"

enum { SERVER_TICK_MS = 50, SERVER_ARMED_CALLS = 64 };

/* What everyone may ask of the server's life. Moves forward only. */
enum server_phase {
    SERVER_STARTING,
    SERVER_SERVING,
    SERVER_LAME_DUCK, /* still serving, health says NOT_SERVING */
    SERVER_DRAINING,  /* new calls are UNAVAILABLE, running ones finish */
    SERVER_STOPPED,
};

struct server {
    const struct server_options *options;
    struct metrics *metrics;
    struct telemetry *telemetry;
    struct engine *engine;
    struct repository *repository;
    struct auth *auth;
    struct tls *tls;
    struct http *http;
    grpc_completion_queue *cq;
    grpc_server *grpc;
    char grpc_address[HTTP_ADDRESS_BYTES], http_address[HTTP_ADDRESS_BYTES];
    uint64_t instance; /* random; begins the request ids made here */
    pthread_t loop;
    bool loop_started;
    _Atomic enum server_phase phase;
    atomic_bool has_model;   /* one is ready, as the loop last looked */
    atomic_bool device_lost; /* a GPU, and not yet made up for; health says NOT_SERVING */
    struct status lost_why;  /* while device_lost */
    atomic_bool cancel_all;  /* drain-timeout-ms is over: what still runs is cancelled */
    atomic_int running;      /* calls that are open, as the loop last counted them */

    /* The completion-queue thread's own. */
    struct call *calls; /* all that are not CALL_WAITING, a list */
    int calls_count;    /* of those */
    int armed_count;    /* CALL_WAITING */
    int64_t last_arrival_ns, last_call_ns, last_work_ns;
    bool shut_down; /* grpc_server_shutdown_and_notify was called */
    bool shut_down_done, cancelled_all;
    enum server_phase phase_seen;
    bool lost_seen;
    struct health *health;
};

/* listen.c: makes the gRPC server, binds its address (into grpc_address) and starts it. Errors: UNAVAILABLE
 * (cannot listen there), those of tls_new. */
int listen_start(struct server *s, struct status *st);

/* loop.c: the completion-queue thread, until the server is drained. arg is the server. */
void *loop_main(void *arg);
/* Takes over what the repository has finished, and tells health, readiness and metrics. */
void loop_update_models(struct server *s);

/* What a caller is told whom the engine's queue had no room for, or whose batch failed with its device; all
 * zero when `st` says something else. */
struct failure failure_of_engine(struct server *s, const struct status *st);
/* Likewise when engine_finish refused a request for `m`. */
struct failure failure_of_finish(struct server *s, const struct engine_model *m, const struct status *st);

/* The methods of every service, ended by one whose path is NULL. methods.c joins them. */
extern const struct method timbre_methods[], inference_methods[], health_methods[], reflection_methods[];
const struct method *methods_find(const char *path, size_t bytes); /* NULL: none */
int methods_count(void);
int methods_index(const struct method *m); /* 0..methods_count()-1 */
const struct method *methods_at(int index);

/* health.c: the watchers. `serving` of a service is the phase, and for "" and the inference services that a
 * model is ready. */
int health_new(struct health **h, struct server *s, struct status *st);
void health_del(struct health *h);
void health_update(struct health *h);      /* after the phase or the models changed: tells the watchers */
void health_end_watches(struct health *h); /* at drain: ends every Watch */

/* Both on the completion-queue thread: whether a model is ready; whether the server also is serving, not yet
 * a lame duck, and has its devices. */
bool server_has_model(const struct server *s);
bool server_is_ready(const struct server *s);

#endif
