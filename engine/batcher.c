/* Lanes, what waits in them, and the workers that come to take. */
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "engine/batcher_internal.h"

/* A second batch is taken so long before the first is over: about what copying a full one takes, which then
 * costs the device nothing. */
enum { OVERLAP_US = 1000 };

int batcher_new(struct batcher **out, int depth, int delay_us, struct status *st) {
    const size_t n = (size_t)depth;
    struct batcher *b = *out = calloc(1, sizeof *b + n * sizeof *b->entries);
    if (!b)
        return status_set_no_memory(st, sizeof *b + n * sizeof *b->entries, "the batcher");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&b->lock, NULL);
    for (int i = 0; i < BATCHER_WORKERS_MAX; i++)
        pthread_cond_init(&b->workers[i].wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    b->delay_ns = (int64_t)delay_us * 1000;
    b->earliest_ns = INT64_MAX;
    b->free = BATCHER_NONE;
    for (int32_t i = (int32_t)depth - 1; i >= 0; i--) {
        b->entries[i].next = b->free;
        b->free = i;
    }
    b->heap = calloc(n, sizeof *b->heap);
    if (!b->heap) {
        batcher_del(b);
        *out = NULL;
        return status_set_no_memory(st, n * sizeof *b->heap, "the batcher");
    }
    return 0;
}

void batcher_del(struct batcher *b) {
    if (!b)
        return;
    for (int i = 0; i < BATCHER_WORKERS_MAX; i++)
        pthread_cond_destroy(&b->workers[i].wake);
    pthread_mutex_destroy(&b->lock);
    free(b->heap);
    free(b);
}

void batcher_add_lane(struct batcher *b, struct batcher_lane *l, int64_t samples_max,
                      struct batcher_workers workers) {
    l->workers = workers;
    l->samples_max = samples_max;
    for (int c = 0; c < ENGINE_CLASSES; c++)
        l->classes[c] = (struct batcher_list){BATCHER_NONE, BATCHER_NONE};
    pthread_mutex_lock(&b->lock);
    l->next = b->lanes;
    b->lanes = l;
    if (workers.narrow > b->mode.narrow_max)
        b->mode.narrow_max = workers.narrow;
    pthread_mutex_unlock(&b->lock);
}

void batcher_remove_lane(struct batcher *b, struct batcher_lane *l) {
    pthread_mutex_lock(&b->lock);
    for (struct batcher_lane **at = &b->lanes; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    pthread_mutex_unlock(&b->lock);
}

/* ---- entries ---- */

static void link_entry(struct batcher *b, struct batcher_lane *l, int32_t index) {
    struct batcher_entry *e = &b->entries[index];
    struct batcher_list *list = &l->classes[e->request->options.order];
    e->next = BATCHER_NONE;
    e->previous = list->last;
    if (list->last == BATCHER_NONE)
        list->first = index;
    else
        b->entries[list->last].next = index;
    list->last = index;
    l->samples += e->samples;
    l->count++;
    b->count++;
    batcher_count_waiting(b, l, e->request->items_count, e->ready_ns);
}

void batcher_unlink(struct batcher *b, int32_t index) {
    struct batcher_entry *e = &b->entries[index];
    struct batcher_lane *l = e->request->lane;
    struct batcher_list *list = &l->classes[e->request->options.order];
    if (e->previous == BATCHER_NONE)
        list->first = e->next;
    else
        b->entries[e->previous].next = e->next;
    if (e->next == BATCHER_NONE)
        list->last = e->previous;
    else
        b->entries[e->next].previous = e->previous;
    l->samples -= e->samples;
    l->count--;
    b->count--;
    e->next = b->free;
    b->free = index;
}

void batcher_bury(struct batcher *b, int32_t index, int64_t now_ns) {
    struct engine_request *r = b->entries[index].request;
    batcher_count_waiting(b, r->lane, r->next_item - r->items_count, now_ns);
    batcher_unlink(b, index);
    r->next = b->dead;
    b->dead = r;
}

/* Takes out all that are dead. */
static void sweep(struct batcher *b, int64_t now_ns) {
    b->earliest_ns = INT64_MAX;
    for (struct batcher_lane *l = b->lanes; l; l = l->next)
        for (int c = 0; c < ENGINE_CLASSES; c++)
            for (int32_t i = l->classes[c].first, next; i != BATCHER_NONE; i = next) {
                const struct batcher_entry *e = &b->entries[i];
                next = e->next;
                if (request_is_dead(e->request, now_ns))
                    batcher_bury(b, i, now_ns);
                else if (e->deadline_ns < b->earliest_ns)
                    b->earliest_ns = e->deadline_ns;
            }
}

/* ---- choosing a lane ---- */

static int64_t lane_rank(const struct batcher_lane *l, int64_t now_ns) {
    int best = 0;
    while (l->classes[best].first == BATCHER_NONE)
        best++;
    return request_rank(best, l->waits_since_ns, now_ns);
}

bool batcher_may_take(const struct batcher_lane *l, int worker) {
    return worker >= l->workers.first && worker < l->workers.first + l->workers.count;
}

struct batcher_lane *batcher_choose_lane(const struct batcher *b, int worker, int64_t now_ns) {
    struct batcher_lane *best = NULL;
    int64_t best_is = 0;
    for (struct batcher_lane *l = b->lanes; l; l = l->next) {
        if (l->count == 0 || (worker == BATCHER_NONE ? l->workers.share : !batcher_may_take(l, worker)))
            continue;
        const int64_t rank = lane_rank(l, now_ns);
        if (!best || rank < best_is || (rank == best_is && l->used_ns < best->used_ns)) {
            best = l;
            best_is = rank;
        }
    }
    return best;
}

/* ---- when a worker takes ---- */

static int64_t find_oldest_ns(const struct batcher *b, const struct batcher_lane *l) {
    int64_t oldest_ns = INT64_MAX;
    for (int c = 0; c < ENGINE_CLASSES; c++)
        if (l->classes[c].first != BATCHER_NONE && b->entries[l->classes[c].first].ready_ns < oldest_ns)
            oldest_ns = b->entries[l->classes[c].first].ready_ns;
    return oldest_ns;
}

static bool is_full(const struct batcher_lane *l) {
    return l->samples >= l->samples_max || l->count >= ENGINE_BATCH_CLIPS_MAX;
}

/* Whether a batch of this lane would better wait for requests that are on their way. Nothing of it waits
 * longer than the delay for that, and nothing of another lane waits at all. */
static bool should_wait(const struct batcher *b, const struct batcher_lane *l, int64_t now_ns) {
    return !b->closed && b->count == l->count && atomic_load(&l->arriving) > 0 && !is_full(l) &&
           now_ns < find_oldest_ns(b, l) + b->delay_ns;
}

/* When a free worker takes its next batch, as things stand, and of which lane (NULL: nothing waits for it).
 * INT64_MAX: not before something changes, as a change of everything that counts here calls call_worker. */
static int64_t find_due_ns(struct batcher *b, int worker, struct batcher_lane **lane, int64_t now_ns) {
    struct batcher_lane *l = *lane = batcher_choose_lane(b, worker, now_ns);
    if (!l || !batcher_may_begin(b, l, worker))
        return INT64_MAX;
    if (batcher_find_kind(l, worker) == BATCHER_NARROW)
        return now_ns; /* company would not make it faster */
    int64_t due_ns = should_wait(b, l, now_ns) ? find_oldest_ns(b, l) + b->delay_ns : now_ns;
    const struct batcher_device *d = batcher_find_device(b, l, worker);
    if (d->running && !is_full(l) && !b->closed) {
        const int64_t free_ns = batcher_predict_free_ns(b, d, now_ns);
        const int64_t early_ns = free_ns ? free_ns - (int64_t)OVERLAP_US * 1000 : INT64_MAX;
        due_ns = early_ns > due_ns ? early_ns : due_ns;
    }
    return due_ns;
}

/* Decides what kind of worker is to begin on the processor, then wakes the worker that is to take next,
 * unless it comes in time by itself. One at a time: once it has taken, it calls the next for what is left. */
static void call_worker(struct batcher *b, int64_t now_ns) {
    batcher_choose_mode(b, now_ns);
    struct batcher_worker *best = NULL;
    int64_t best_ns = INT64_MAX;
    int best_running = 0;
    for (int i = 0; i < b->workers_count && b->count; i++) {
        struct batcher_lane *l;
        if (!b->workers[i].waits)
            continue;
        const int64_t due_ns = find_due_ns(b, i, &l, now_ns);
        const int running = l ? batcher_find_device(b, l, i)->running : 0;
        if (due_ns < best_ns || (best && due_ns == best_ns && running < best_running)) {
            best = &b->workers[i];
            best_ns = due_ns;
            best_running = running;
        }
    }
    if (best && !best->called && best_ns < best->until_ns) {
        best->called = true;
        pthread_cond_signal(&best->wake);
    }
}

/* Until it is called, or that time. */
static void wait_for_call(struct batcher *b, struct batcher_worker *w, int64_t until_ns) {
    const struct timespec t = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    w->until_ns = until_ns;
    w->waits = true;
    if (until_ns == INT64_MAX)
        pthread_cond_wait(&w->wake, &b->lock);
    else
        pthread_cond_timedwait(&w->wake, &b->lock, &t);
    w->waits = w->called = false;
}

void batcher_put(struct batcher *b, struct engine_request *r, bool *gone) {
    struct batcher_lane *l = r->lane;
    pthread_mutex_lock(&b->lock);
    const int32_t index = b->free;
    struct batcher_entry *e = &b->entries[index];
    b->free = e->next;
    r->next_item = 0;
    r->ready_ns = clock_now_ns();
    r->arriving = false;
    atomic_fetch_sub(&l->arriving, 1);
    *e = (struct batcher_entry){.request = r,
                                .ready_ns = r->ready_ns,
                                .deadline_ns = r->options.deadline_ns ? r->options.deadline_ns : INT64_MAX,
                                .arrival = b->arrivals++};
    for (int i = 0; i < r->items_count; i++)
        e->samples += r->items[i].slot;
    if (l->count == 0) {
        l->waits_since_ns = r->ready_ns;
        if (l->used_ns < b->virtual_ns)
            l->used_ns = b->virtual_ns;
    }
    link_entry(b, l, index);
    if (e->deadline_ns < b->earliest_ns)
        b->earliest_ns = e->deadline_ns;
    *gone = atomic_load(&r->cancelled) || atomic_load(&l->lost);
    call_worker(b, r->ready_ns);
    pthread_mutex_unlock(&b->lock);
}

void batcher_expect_less(struct batcher *b, struct batcher_lane *l) {
    pthread_mutex_lock(&b->lock);
    if (atomic_fetch_sub(&l->arriving, 1) == 1)
        call_worker(b, clock_now_ns());
    pthread_mutex_unlock(&b->lock);
}

bool batcher_take(struct batcher *b, int worker, int count_max, struct batcher_batch *batch) {
    int64_t now_ns;
    *batch = (struct batcher_batch){0};
    pthread_mutex_lock(&b->lock);
    if (worker >= b->workers_count)
        b->workers_count = worker + 1;
    for (;;) {
        now_ns = clock_now_ns();
        if (atomic_exchange(&b->suspect, false) || now_ns > b->earliest_ns)
            sweep(b, now_ns);
        struct batcher_lane *l;
        const int64_t due_ns = find_due_ns(b, worker, &l, now_ns);
        if (l && due_ns <= now_ns)
            batcher_fill(b, l, worker, count_max, batch, now_ns);
        if (batch->count || b->dead || (!l && b->closed))
            break;
        if (due_ns > now_ns) {
            wait_for_call(b, &b->workers[worker], due_ns);
        } else { /* what it would have taken is left to a wide worker */
            call_worker(b, now_ns);
            wait_for_call(b, &b->workers[worker], INT64_MAX);
        }
    }
    batch->dead = b->dead;
    b->dead = NULL;
    call_worker(b, now_ns); /* what is left */
    pthread_mutex_unlock(&b->lock);
    return batch->count || batch->dead;
}

int64_t batcher_ran(struct batcher *b, int worker, int64_t samples, int64_t *begin_ns) {
    pthread_mutex_lock(&b->lock);
    const int64_t now_ns = clock_now_ns();
    const int64_t busy_ns = batcher_end(b, worker, samples, begin_ns, now_ns);
    call_worker(b, now_ns); /* the device is free, or nearer to it than was thought */
    pthread_mutex_unlock(&b->lock);
    return busy_ns;
}

void batcher_suspect(struct batcher *b) {
    atomic_store(&b->suspect, true);
}

struct engine_request *batcher_sweep(struct batcher *b, int64_t now_ns, int64_t *earliest_ns) {
    pthread_mutex_lock(&b->lock);
    sweep(b, now_ns);
    struct engine_request *dead = b->dead;
    b->dead = NULL;
    call_worker(b, now_ns);
    if (b->earliest_ns < *earliest_ns)
        *earliest_ns = b->earliest_ns;
    pthread_mutex_unlock(&b->lock);
    return dead;
}

void batcher_close(struct batcher *b) {
    pthread_mutex_lock(&b->lock);
    b->closed = true;
    for (int i = 0; i < b->workers_count; i++)
        pthread_cond_signal(&b->workers[i].wake);
    pthread_mutex_unlock(&b->lock);
}
