#include "engine/waiting.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "engine/batcher.h"

struct fifo {
    struct engine_request *first, **end; /* end: where the next is linked */
};

struct waiting {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t not_empty;
    struct fifo classes[ENGINE_CLASSES];
    int count, requests_max;
    int64_t audio_us, audio_us_max;
    bool closed;
};

int waiting_new(struct waiting **out, int requests_max, int64_t audio_us_max, struct status *st) {
    struct waiting *w = *out = calloc(1, sizeof *w);
    if (!w)
        return status_set_no_memory(st, sizeof *w, "the engine");
    w->requests_max = requests_max;
    w->audio_us_max = audio_us_max;
    for (int c = 0; c < ENGINE_CLASSES; c++)
        w->classes[c].end = &w->classes[c].first;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->not_empty, NULL);
    return 0;
}

void waiting_del(struct waiting *w) {
    if (!w)
        return;
    pthread_cond_destroy(&w->not_empty);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

enum waiting_result waiting_put(struct waiting *w, struct engine_request *r, bool *gone) {
    enum waiting_result result = WAITING_OK;
    struct fifo *f = &w->classes[r->options.order];
    pthread_mutex_lock(&w->lock);
    if (w->closed) {
        result = WAITING_CLOSED;
    } else if (w->count && !r->patient &&
               (w->count >= w->requests_max || r->door_us > w->audio_us_max - w->audio_us)) {
        result = WAITING_FULL;
    } else {
        r->waits_since_ns = clock_now_ns();
        r->next = NULL;
        *f->end = r;
        f->end = &r->next;
        w->count++;
        w->audio_us += r->door_us;
        *gone = atomic_load(&r->cancelled) || atomic_load(&r->lane->lost);
        pthread_cond_signal(&w->not_empty);
    }
    pthread_mutex_unlock(&w->lock);
    return result;
}

/* The class whose first request goes next; each class's first is its oldest. */
static struct fifo *choose(struct waiting *w) {
    const int64_t now_ns = clock_now_ns();
    struct fifo *best = NULL;
    int64_t best_rank = 0;
    for (int c = 0; c < ENGINE_CLASSES; c++) {
        const struct engine_request *r = w->classes[c].first;
        if (r && (!best || request_rank(c, r->waits_since_ns, now_ns) < best_rank)) {
            best = &w->classes[c];
            best_rank = request_rank(c, r->waits_since_ns, now_ns);
        }
    }
    return best;
}

static struct engine_request *unlink_at(struct waiting *w, struct fifo *f, struct engine_request **at) {
    struct engine_request *r = *at;
    *at = r->next;
    if (f->end == &r->next)
        f->end = at;
    w->count--;
    w->audio_us -= r->door_us;
    return r;
}

struct engine_request *waiting_take(struct waiting *w) {
    struct engine_request *r = NULL;
    pthread_mutex_lock(&w->lock);
    while (w->count == 0 && !w->closed)
        pthread_cond_wait(&w->not_empty, &w->lock);
    if (w->count) {
        struct fifo *f = choose(w);
        r = unlink_at(w, f, &f->first);
    }
    pthread_mutex_unlock(&w->lock);
    return r;
}

struct engine_request *waiting_sweep(struct waiting *w, int64_t now_ns, int64_t *earliest_ns) {
    struct engine_request *dead = NULL;
    pthread_mutex_lock(&w->lock);
    for (int c = 0; c < ENGINE_CLASSES; c++) {
        struct fifo *f = &w->classes[c];
        for (struct engine_request **at = &f->first; *at;) {
            struct engine_request *r = *at;
            const int64_t deadline_ns = r->options.deadline_ns;
            if (request_is_dead(r, now_ns)) {
                unlink_at(w, f, at);
                r->next = dead;
                dead = r;
                continue;
            }
            if (deadline_ns && deadline_ns < *earliest_ns)
                *earliest_ns = deadline_ns;
            at = &r->next;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return dead;
}

void waiting_close(struct waiting *w) {
    pthread_mutex_lock(&w->lock);
    w->closed = true;
    pthread_cond_broadcast(&w->not_empty);
    pthread_mutex_unlock(&w->lock);
}
