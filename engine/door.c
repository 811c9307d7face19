#include "engine/door.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "engine/engine.h"

#define PACE_MEMORY_NS 2e9 /* busy time after which a measurement has faded to a third */

struct door {
    pthread_mutex_t lock; /* guards all below; held for a few instructions */
    pthread_cond_t room;
    int waiters;
    int requests, requests_max;
    int64_t audio_us, audio_us_max; /* of all inside */
    int64_t ready_us;               /* of those that are decoded */
    int running;                    /* forwards */
    int64_t running_us;             /* their audio */
    int64_t counted_ns;             /* the time in which any runs is counted up to here */
    struct door_pace pace;          /* in microseconds of audio */
    bool closed;
    struct metrics_series *show_requests, *show_audio_s;
};

int door_new(struct door **out, int requests_max, double audio_s_max, struct status *st) {
    struct door *d = *out = calloc(1, sizeof *d);
    if (!d)
        return status_set_no_memory(st, sizeof *d, "the engine");
    d->requests_max = requests_max;
    d->audio_us_max = (int64_t)(audio_s_max * 1e6);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->room, NULL);
    return 0;
}

void door_del(struct door *d) {
    if (!d)
        return;
    pthread_cond_destroy(&d->room);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

void door_show(struct door *d, struct metrics_series *requests, struct metrics_series *audio_s) {
    d->show_requests = requests;
    d->show_audio_s = audio_s;
}

static void change(struct door *d, int requests, int64_t audio_us) {
    d->requests += requests;
    d->audio_us += audio_us;
    metrics_set(d->show_requests, d->requests);
    metrics_set(d->show_audio_s, (double)d->audio_us * 1e-6);
}

static bool has_room(const struct door *d, int64_t audio_us) {
    if (d->requests == 0)
        return true;
    return d->requests < d->requests_max && d->audio_us < d->audio_us_max &&
           audio_us <= d->audio_us_max - d->audio_us;
}

/* Says what is full; returns -1. */
static int refuse(const struct door *d, int64_t audio_us, struct status *st) {
    const double waiting_s = (double)d->audio_us * 1e-6, limit_s = (double)d->audio_us_max * 1e-6;
    if (d->closed)
        return status_set(st, STATUS_UNAVAILABLE, "the engine is stopping");
    if (d->requests >= d->requests_max)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "queue-depth: %d requests are waiting", d->requests);
    if (d->audio_us >= d->audio_us_max)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "max-queued-seconds: %.1f s of audio are waiting, the limit is %g", waiting_s,
                          limit_s);
    return status_set(
        st, STATUS_RESOURCE_EXHAUSTED,
        "max-queued-seconds: %.1f s of audio are waiting and this would add %.1f s, the limit is %g",
        waiting_s, (double)audio_us * 1e-6, limit_s);
}

int door_enter(struct door *d, int64_t audio_us, bool wait, struct status *st) {
    int result = 0;
    pthread_mutex_lock(&d->lock);
    while (wait && !d->closed && !has_room(d, audio_us)) {
        d->waiters++;
        pthread_cond_wait(&d->room, &d->lock);
        d->waiters--;
    }
    if (d->closed || !has_room(d, audio_us)) {
        result = refuse(d, audio_us, st);
    } else {
        change(d, 1, audio_us);
    }
    pthread_mutex_unlock(&d->lock);
    return result;
}

int door_check(struct door *d, struct status *st) {
    pthread_mutex_lock(&d->lock);
    int result = d->closed || !has_room(d, 0) ? refuse(d, 0, st) : 0;
    pthread_mutex_unlock(&d->lock);
    return result;
}

void door_force(struct door *d, int64_t audio_us) {
    pthread_mutex_lock(&d->lock);
    change(d, 1, audio_us);
    d->ready_us += audio_us;
    pthread_mutex_unlock(&d->lock);
}

/* What was decoded and waits holds memory, so what grew must fit beside it. What did not grow was let in with
 * its length. */
static bool may_grow(const struct door *d, int64_t was_us, int64_t audio_us) {
    return audio_us <= was_us || d->ready_us == 0 || audio_us <= d->audio_us_max - d->ready_us;
}

int door_correct(struct door *d, int64_t was_us, int64_t audio_us, bool wait, struct status *st) {
    int result = 0;
    pthread_mutex_lock(&d->lock);
    /* Not even closing ends this: what is ready goes on to be run. */
    while (wait && !may_grow(d, was_us, audio_us)) {
        d->waiters++;
        pthread_cond_wait(&d->room, &d->lock);
        d->waiters--;
    }
    if (may_grow(d, was_us, audio_us)) {
        change(d, 0, audio_us - was_us);
        d->ready_us += audio_us;
    } else {
        result = status_set(
            st, STATUS_RESOURCE_EXHAUSTED,
            "max-queued-seconds: %.1f s of audio are waiting, and this turned out to be %.1f s long; "
            "the limit is %g",
            (double)d->ready_us * 1e-6, (double)audio_us * 1e-6, (double)d->audio_us_max * 1e-6);
    }
    pthread_mutex_unlock(&d->lock);
    return result;
}

void door_leave(struct door *d, int requests, int64_t audio_us, bool ready) {
    pthread_mutex_lock(&d->lock);
    change(d, -requests, -audio_us);
    if (ready)
        d->ready_us -= audio_us;
    if (d->waiters)
        pthread_cond_broadcast(&d->room);
    pthread_mutex_unlock(&d->lock);
}

void door_begin_batch(struct door *d, int64_t audio_us) {
    pthread_mutex_lock(&d->lock);
    d->running_us += audio_us;
    if (d->running++ == 0)
        d->counted_ns = clock_now_ns();
    pthread_mutex_unlock(&d->lock);
}

void door_end_batch(struct door *d, int64_t audio_us, bool counts) {
    pthread_mutex_lock(&d->lock);
    const int64_t now_ns = clock_now_ns();
    d->running_us -= audio_us;
    d->running--;
    if (counts)
        door_pace_add(&d->pace, (double)audio_us, (double)(now_ns - d->counted_ns));
    d->counted_ns = now_ns;
    pthread_mutex_unlock(&d->lock);
}

void door_measure(struct door *d, struct engine_load *load) {
    pthread_mutex_lock(&d->lock);
    *load = (struct engine_load){
        .requests = d->requests,
        .queued_s = (double)d->audio_us * 1e-6,
        .rate = d->pace.busy_ns > 0 ? d->pace.work * 1e3 / d->pace.busy_ns : 0,
        .running_s = (double)d->running_us * 1e-6,
        .requests_max = d->requests_max,
        .queued_s_max = (double)d->audio_us_max * 1e-6,
    };
    pthread_mutex_unlock(&d->lock);
}

void door_close(struct door *d) {
    pthread_mutex_lock(&d->lock);
    d->closed = true;
    pthread_cond_broadcast(&d->room);
    pthread_mutex_unlock(&d->lock);
}

void door_pace_add(struct door_pace *p, double work, double busy_ns) {
    const double kept = exp(-busy_ns / PACE_MEMORY_NS);
    p->work = p->work * kept + work;
    p->busy_ns = p->busy_ns * kept + busy_ns;
    p->batches = p->batches * kept + 1;
}
