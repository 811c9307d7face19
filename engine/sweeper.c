#include "engine/sweeper.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "engine/internal.h"

enum { SWEEP_PAUSE_US = 1000 }; /* between two sweeps, so that a thousand cancels are not a thousand sweeps */

struct sweeper {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_bool asked;
    bool stop;
    atomic_int_least64_t wakes_at_ns; /* no deadline of what waits is earlier */
};

int sweeper_new(struct sweeper **out, struct status *st) {
    struct sweeper *s = *out = calloc(1, sizeof *s);
    if (!s)
        return status_set_no_memory(st, sizeof *s, "the engine");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    atomic_store(&s->wakes_at_ns, INT64_MAX);
    return 0;
}

void sweeper_del(struct sweeper *s) {
    if (!s)
        return;
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void sweeper_ask(struct sweeper *s) {
    if (atomic_exchange(&s->asked, true))
        return;
    pthread_mutex_lock(&s->lock);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* Lowers the time at which it wakes; true when that was later. */
static bool wake_by(struct sweeper *s, int64_t deadline_ns) {
    int_least64_t at_ns = atomic_load(&s->wakes_at_ns);
    while (deadline_ns < at_ns)
        if (atomic_compare_exchange_weak(&s->wakes_at_ns, &at_ns, deadline_ns))
            return true;
    return false;
}

void sweeper_note(struct sweeper *s, int64_t deadline_ns) {
    if (deadline_ns == 0 || !wake_by(s, deadline_ns))
        return;
    pthread_mutex_lock(&s->lock); /* it sets its alarm anew */
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void sweeper_stop(struct sweeper *s) {
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* False: stopped. */
static bool sweeper_wait(struct sweeper *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->stop && !atomic_load(&s->asked)) {
        const int64_t at_ns = atomic_load(&s->wakes_at_ns);
        const struct timespec t = {.tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000};
        if (at_ns == INT64_MAX)
            pthread_cond_wait(&s->wake, &s->lock);
        else if (clock_now_ns() > at_ns)
            break;
        else
            pthread_cond_timedwait(&s->wake, &s->lock, &t);
    }
    const bool stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    return !stop;
}

/* Requests that had no items yet: prepare finds them dead, and says why. */
static void drop_waiting(struct engine_request *dead) {
    struct request_wake wake = {0};
    while (dead) {
        struct engine_request *r = dead;
        dead = r->next;
        (void)request_prepare(r, false);
        request_reply(r, &wake);
    }
    request_wake_flush(&wake);
}

void sweeper_drop_batched(struct engine *e, struct engine_request *dead) {
    struct request_wake wake = {0};
    while (dead) {
        struct engine_request *r = dead;
        struct status st;
        dead = r->next;
        request_explain_drop(r, &st);
        if (request_fail(r, &st))
            counts_drop(&e->counts, st.code);
        request_leave(r);
        if (request_items_done(r, r->items_count - r->next_item))
            request_reply(r, &wake);
    }
    request_wake_flush(&wake);
}

void *engine_sweeper_main(void *arg) {
    struct engine *e = arg;
    struct sweeper *s = e->sweeper;
    const struct timespec pause = {.tv_nsec = SWEEP_PAUSE_US * 1000L};
    while (sweeper_wait(s)) {
        int64_t now_ns = clock_now_ns(), earliest_ns = INT64_MAX;
        /* An alarm in the future stays: it is early at worst, and who comes with later deadlines wakes
         * nobody. */
        if (now_ns > atomic_load(&s->wakes_at_ns))
            atomic_store(&s->wakes_at_ns, INT64_MAX);
        atomic_store(&s->asked, false);
        struct engine_request *prepare = waiting_sweep(e->prepare, now_ns, &earliest_ns);
        struct engine_request *transcode = waiting_sweep(e->transcode, now_ns, &earliest_ns);
        struct engine_request *batched = batcher_sweep(e->batcher, now_ns, &earliest_ns);
        (void)wake_by(s, earliest_ns);
        drop_waiting(prepare);
        drop_waiting(transcode);
        sweeper_drop_batched(e, batched);
        nanosleep(&pause, NULL);
    }
    return NULL;
}
