/* The door: whether a call that has just arrived may go on, before anything of its message is read. */
#include <stdatomic.h>
#include <string.h>

#include "server/call_internal.h"

static bool admit_token(struct call *c, struct status *st, struct failure *f) {
    struct server *s = c->server;
    if (!s->auth || (c->method->is_health && s->options->open_health))
        return true;
    size_t bytes = 0;
    const char *header = call_get_metadata(c, "authorization", &bytes);
    if (auth_check(s->auth, header, bytes, c->token_name, st) == 0)
        return true;
    f->reason = "UNAUTHENTICATED";
    return false;
}

bool admit_call(struct call *c, struct status *st, struct failure *f) {
    struct server *s = c->server;
    const enum server_phase phase = atomic_load(&s->phase);
    if (!admit_token(c, st, f))
        return false;
    if (phase >= SERVER_DRAINING && !c->method->is_health) {
        status_set(st, STATUS_UNAVAILABLE, "the server is draining: try another");
        f->reason = "DRAINING";
        return false;
    }
    if (s->calls_count > s->options->calls_max) {
        status_set(st, STATUS_RESOURCE_EXHAUSTED, "max-calls: %d calls are open, the limit",
                   s->options->calls_max);
        *f = (struct failure){.reason = "TOO_MANY_CALLS", .limit = "max-calls", .retry_after_ms = 1000};
        return false;
    }
    if (c->method->is_upload && atomic_load(&s->device_lost)) {
        *st = s->lost_why;
        f->reason = "DEVICE_FAILED";
        return false;
    }
    if (c->method->is_upload && engine_check_room(s->engine, st)) {
        *f = failure_of_engine(s, st);
        return false;
    }
    return true;
}

/* The engine's messages begin with the limit's name. */
struct failure failure_of_engine(struct server *s, const struct status *st) {
    static const char *const limits[] = {"queue-depth", "max-queued-seconds"};
    if (st->code == STATUS_UNAVAILABLE)
        return (struct failure){.reason = "DEVICE_FAILED"};
    if (st->code == STATUS_RESOURCE_EXHAUSTED)
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
            if (strncmp(st->message, limits[i], strlen(limits[i])) == 0)
                return (struct failure){.reason = "QUEUE_FULL",
                                        .limit = limits[i],
                                        .retry_after_ms = engine_retry_after_ms(s->engine)};
    return (struct failure){0};
}

struct failure failure_of_finish(struct server *s, const struct engine_model *m, const struct status *st) {
    if (st->code == STATUS_RESOURCE_EXHAUSTED || engine_model_is_lost(m))
        return failure_of_engine(s, st);
    return (struct failure){.reason = "STOPPING"};
}
