/* The completion-queue thread: hands every event to its call, and looks at the time in between. It never
 * blocks. */
#include <grpc/support/time.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/call_internal.h"

/* The one event that belongs to no call. */
static struct tag shut_down_tag;

/* Once shut down, gRPC resets calls that cross its GOAWAY, and their callers read CANCELLED, which nobody
 * tries again. So callers are told UNAVAILABLE (admit.c) until all that was accepted is answered and nobody
 * has come for a while, though not much longer than that. */
enum { QUIET_MS = 250, QUIET_WAIT_MS_MAX = 2000 };

static bool is_working(const struct server *s) {
    for (const struct call *c = s->calls; c; c = c->next)
        if (!c->answered)
            return true;
    return false;
}

/* Handlers free no call: that is left to events. */
static void tell_drain(struct server *s) {
    health_end_watches(s->health);
    for (struct call *c = s->calls; c; c = c->next)
        if (c->method->on_drain && !c->answered)
            c->method->on_drain(c);
}

static void shut_down_when_quiet(struct server *s) {
    const int64_t now_ns = clock_now_ns(), ms = 1000000;
    if (s->last_work_ns == 0)
        tell_drain(s);
    if (s->last_work_ns == 0 || is_working(s))
        s->last_work_ns = now_ns;
    const bool quiet =
        now_ns - s->last_work_ns >= QUIET_MS * ms && now_ns - s->last_arrival_ns >= QUIET_MS * ms;
    if (!quiet && now_ns - s->last_work_ns < QUIET_WAIT_MS_MAX * ms && !atomic_load(&s->cancel_all))
        return;
    s->shut_down = true;
    grpc_server_shutdown_and_notify(s->grpc, s->cq, &shut_down_tag);
}

/* After the last call, connections whose other end does not answer any more are all that keeps gRPC. */
enum { HELD_UP_MS = 1000 };

static bool is_held_up(struct server *s) {
    if (!s->shut_down || s->calls_count > 0 || s->shut_down_done) {
        s->last_call_ns = clock_now_ns();
        return false;
    }
    return clock_now_ns() - s->last_call_ns > HELD_UP_MS * INT64_C(1000000);
}

/* What the phase asks for, each once. */
static void follow_phase(struct server *s) {
    const enum server_phase phase = atomic_load(&s->phase);
    if (phase != s->phase_seen) {
        s->phase_seen = phase;
        health_update(s->health);
    }
    if (phase >= SERVER_DRAINING && !s->shut_down)
        shut_down_when_quiet(s);
    const bool cancel = atomic_load(&s->cancel_all) || is_held_up(s);
    if (cancel && s->shut_down && !s->cancelled_all) {
        s->cancelled_all = true;
        grpc_server_cancel_all_calls(s->grpc);
    }
}

/* What runs, by the first model that is ready. */
static void tell_build(struct server *s) {
    for (int i = 0; i < repository_count(s->repository); i++) {
        const struct repository_entry *e = repository_at(s->repository, i);
        if (e->state != REPOSITORY_READY)
            continue;
        const struct model_info *info = model_get_info(engine_model_get(e->model));
        telemetry_set_build(s->telemetry, TIMBRE_VERSION, info->device, info->precision);
        return;
    }
}

/* Tells everyone who wants to know which models there are. */
static void tell_models(struct server *s) {
    atomic_store(&s->has_model, server_has_model(s));
    tell_build(s);
    for (int i = 0; i < repository_count(s->repository); i++) {
        const struct repository_entry *e = repository_at(s->repository, i);
        telemetry_set_model(s->telemetry, e->name, e->version, (int)e->state);
    }
    health_update(s->health);
}

void loop_update_models(struct server *s) {
    if (repository_update(s->repository))
        tell_models(s);
}

/* A GPU was lost. This is looked at before every event, so that health has changed before any caller hears of
 * it from an answer. */
static void follow_device(struct server *s) {
    if (!atomic_load(&s->device_lost) || s->lost_seen)
        return;
    if (s->options->on_gpu_fault == SERVER_GPU_FAULT_EXIT) {
        s->lost_seen = true; /* main ends the program */
        health_update(s->health);
        return;
    }
    log_write(LOG_WARN, "server", "%s; the models are loaded anew, on the CPU (on-gpu-fault)",
              s->lost_why.message);
    repository_move_to_cpu(s->repository);
    tell_models(s);
    atomic_store(&s->device_lost, false); /* none is ready from here on until it is loaded */
}

static void tick(struct server *s) {
    const int64_t now_ns = clock_now_ns();
    follow_phase(s);
    follow_device(s);
    loop_update_models(s);
    health_update(s->health); /* watchers that had not read the last state yet */
    telemetry_set_ready(s->telemetry, server_is_ready(s));
    for (struct call *c = s->calls, *next; c; c = next) {
        next = c->next;
        call_tick(c, now_ns);
    }
    while (!s->shut_down && s->armed_count < SERVER_ARMED_CALLS) {
        int before = s->armed_count;
        call_arm(s);
        if (s->armed_count == before)
            break; /* no memory now */
    }
    atomic_store(&s->running, s->calls_count);
}

static gpr_timespec next_tick(void) {
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(SERVER_TICK_MS, GPR_TIMESPAN));
}

void *loop_main(void *arg) {
    struct server *s = arg;
    gpr_timespec tick_at = next_tick();
    tell_models(s);
    while (!s->shut_down_done || s->calls_count || s->armed_count) {
        grpc_event ev = grpc_completion_queue_next(s->cq, tick_at, NULL);
        if (ev.type == GRPC_OP_COMPLETE) {
            struct tag *t = ev.tag;
            __tsan_acquire(t);
            follow_device(s);
            if (t == &shut_down_tag)
                s->shut_down_done = true;
            else
                t->fn(t->call, ev.success, t);
        }
        if (ev.type == GRPC_QUEUE_TIMEOUT || gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), tick_at) >= 0) {
            tick(s);
            tick_at = next_tick();
        }
    }
    atomic_store(&s->running, 0);
    atomic_store(&s->phase, SERVER_STOPPED);
    return NULL;
}
