/* grpc.health.v1: Check and Watch, by the full name of a service; "" is the whole server. */
#include <stdlib.h>
#include <string.h>

#include "proto/grpc/health/v1/health.pb-c.h"
#include "server/internal.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;
#define UNKNOWN_SERVICE GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
#define SERVING         GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING

/* One Watch: the state of its call. Listed from its first message to its end. */
struct watcher {
    struct call *call;
    struct watcher *next, **link; /* link points to what points here; NULL: not listed */
    const struct service *service;
    serving_status told;
};

struct health {
    struct server *server;
    struct watcher *watches;
    bool ended; /* health_end_watches was called */
};

static const struct service {
    const char *name;
    bool needs_model; /* is of no use without one */
    bool is_reflection;
} services[] = {
    {"", true, false},
    {"timbre.v1.Timbre", true, false},
    {"inference.GRPCInferenceService", true, false},
    {"grpc.health.v1.Health", false, false},
    {"grpc.reflection.v1.ServerReflection", false, true},
    {"grpc.reflection.v1alpha.ServerReflection", false, true},
};

/* NULL: this server has no such service. */
static const struct service *find(const struct server *s, const char *name) {
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (strcmp(services[i].name, name) == 0 && (!services[i].is_reflection || s->options->reflection))
            return &services[i];
    return NULL;
}

static serving_status get_status(const struct server *s, const struct service *service) {
    if (!service)
        return UNKNOWN_SERVICE;
    if (atomic_load(&s->phase) != SERVER_SERVING || (service->needs_model && !server_is_ready(s)))
        return NOT_SERVING;
    return SERVING;
}

static Grpc__Health__V1__HealthCheckRequest *read_request(struct call *c, struct wire_message *in) {
    struct status st;
    ProtobufCMessage *m = wire_unpack(in, &grpc__health__v1__health_check_request__descriptor, &st);
    wire_message_free(in);
    if (!m)
        call_fail(c, &st, NULL);
    return (Grpc__Health__V1__HealthCheckRequest *)m;
}

static void check(struct call *c, struct wire_message *in) {
    Grpc__Health__V1__HealthCheckRequest *request = read_request(c, in);
    if (!request)
        return;
    const struct server *s = call_get_server(c);
    const struct service *service = find(s, request->service);
    if (service) {
        Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        response.status = get_status(s, service);
        call_reply(c, &response.base);
    } else {
        struct status st;
        status_set(&st, STATUS_NOT_FOUND, "service: no such service here");
        call_fail(c, &st, &(struct failure){.reason = "SERVICE_NOT_FOUND", .field = "service"});
    }
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
}

/* ---- Watch ---- */

static void unlist(struct watcher *w) {
    if (!w->link)
        return;
    *w->link = w->next;
    if (w->next)
        w->next->link = w->link;
    w->link = NULL;
}

static void tell(struct watcher *w, serving_status status) {
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = w->told = status;
    call_send(w->call, &response.base);
}

static void watch(struct call *c, struct wire_message *in) {
    Grpc__Health__V1__HealthCheckRequest *request = read_request(c, in);
    if (!request)
        return;
    struct server *s = call_get_server(c);
    struct health *h = s->health;
    struct watcher *w = call_get_state(c);
    w->call = c;
    w->service = find(s, request->service);
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
    tell(w, get_status(s, w->service));
    if (h->ended) {
        call_end(c);
        return;
    }
    w->next = h->watches;
    if (w->next)
        w->next->link = &w->next;
    w->link = &h->watches;
    h->watches = w;
    /* The caller's one message was read. Reading on would only tell of its half-close. */
}

static void half_close(struct call *c) {
    struct status st;
    status_set(&st, STATUS_INVALID_ARGUMENT, "Watch needs one request message, and none came");
    call_fail(c, &st, NULL);
}

static void cancel(struct call *c) {
    unlist(call_get_state(c));
}

/* Newest state wins: a watch that still has something to send gets no more until it is gone. */
static void update(struct watcher *w, const struct server *s) {
    serving_status now = get_status(s, w->service);
    if (now != w->told && call_count_unsent(w->call) == 0)
        tell(w, now);
}

void health_update(struct health *h) {
    for (struct watcher *w = h->watches; w; w = w->next)
        update(w, h->server);
}

void health_end_watches(struct health *h) {
    h->ended = true;
    for (struct watcher *w = h->watches, *next; w; w = next) {
        next = w->next;
        unlist(w);
        serving_status now = get_status(h->server, w->service);
        if (now != w->told)
            tell(w, now); /* even behind another one: it is the last */
        call_end(w->call);
    }
}

int health_new(struct health **out, struct server *s, struct status *st) {
    struct health *h = calloc(1, sizeof *h);
    if (!h)
        return status_set_no_memory(st, sizeof *h, "health");
    h->server = s;
    *out = h;
    return 0;
}

void health_del(struct health *h) {
    free(h);
}

const struct method health_methods[] = {
    {.path = "/grpc.health.v1.Health/Check", .is_health = true, .on_message = check},
    {.path = "/grpc.health.v1.Health/Watch",
     .streams = true,
     .is_health = true,
     .state_bytes = sizeof(struct watcher),
     .on_message = watch,
     .on_half_close = half_close,
     .on_cancel = cancel,
     .on_free = cancel},
    {.path = NULL},
};
