#include "engine/batcher.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"

enum { BATCHER_NONE = -1 };

/* A measured pace is believed for so long after the last batch: then one is tried again, so that one slow
 * batch cannot make everything look hopeless for ever. */
enum { PACE_BELIEVED_MS = 1000 };

/* A second batch is taken so long before the first is over: about what copying a full one takes, which then
 * costs the device nothing. */
enum { OVERLAP_US = 1000 };

/* A batch with live windows takes no company that would make it longer than this at the measured pace: the
 * first of them would wait for the last. */
enum { LIVE_BATCH_MS = 30 };

/* When several devices are free, none takes more than its share of what waits; but parts of less than this
 * fraction of a full batch take no less time. */
enum { SHARES_MAX = 8 };

/* What choosing needs of a request, apart from it, so that walking over thousands stays in cache. */
struct entry {
    struct engine_request *request;
    int64_t ready_ns, deadline_ns; /* INT64_MAX: none */
    int64_t arrival;
    int64_t samples;        /* slots of items not handed out */
    int32_t next, previous; /* in its lane and class, or among the free */
};

struct candidate {
    int64_t rank, deadline_ns, arrival;
    int32_t entry;
};

struct worker {
    pthread_cond_t wake;
    bool waits, called;        /* in batcher_take; was woken there and has not looked yet */
    int64_t until_ns;          /* it looks then by itself; INT64_MAX: never */
    struct batcher_lane *runs; /* of its batch; NULL: none */
    int64_t samples, taken_ns; /* of that */
};

struct device {
    int running;        /* batches */
    int64_t counted_ns; /* its time is counted up to here; while nothing runs, it is not */
};

struct batcher {
    pthread_mutex_t lock; /* guards all below */
    struct worker workers[BATCHER_WORKERS_MAX];
    int workers_count; /* those that have ever come */
    /* Those that workers share, and behind them those that have one worker each. */
    struct device devices[2 * BATCHER_DEVICES_MAX];
    int64_t delay_ns;
    int64_t earliest_ns; /* no deadline of what waits is earlier */
    int64_t arrivals;
    int64_t virtual_ns; /* used_ns of the lane that was served last, when it was */
    atomic_bool suspect;
    bool closed;
    int count;
    int32_t free;
    struct batcher_lane *lanes;
    struct engine_request *dead;
    struct candidate *heap; /* [depth] */
    struct entry entries[]; /* [depth] */
};

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
    struct entry *e = &b->entries[index];
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
}

static void unlink_entry(struct batcher *b, int32_t index) {
    struct entry *e = &b->entries[index];
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

static void bury(struct batcher *b, int32_t index) {
    struct engine_request *r = b->entries[index].request;
    unlink_entry(b, index);
    r->next = b->dead;
    b->dead = r;
}

/* Takes out all that are dead. */
static void sweep(struct batcher *b, int64_t now_ns) {
    b->earliest_ns = INT64_MAX;
    for (struct batcher_lane *l = b->lanes; l; l = l->next)
        for (int c = 0; c < ENGINE_CLASSES; c++)
            for (int32_t i = l->classes[c].first, next; i != BATCHER_NONE; i = next) {
                const struct entry *e = &b->entries[i];
                next = e->next;
                if (request_is_dead(e->request, now_ns))
                    bury(b, i);
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

static bool may_take(const struct batcher_lane *l, int worker) {
    return worker >= l->workers.first && worker < l->workers.first + l->workers.count;
}

static struct batcher_lane *choose_lane(const struct batcher *b, int worker, int64_t now_ns) {
    struct batcher_lane *best = NULL;
    int64_t best_is = 0;
    for (struct batcher_lane *l = b->lanes; l; l = l->next) {
        if (l->count == 0 || !may_take(l, worker))
            continue;
        const int64_t rank = lane_rank(l, now_ns);
        if (!best || rank < best_is || (rank == best_is && l->used_ns < best->used_ns)) {
            best = l;
            best_is = rank;
        }
    }
    return best;
}

/* When a forward of so many samples that begins then would be over at the lane's pace; 0 when nobody can
 * tell. */
static int64_t predict_end_ns(const struct batcher_lane *l, int64_t samples, int64_t begin_ns,
                              int64_t now_ns) {
    if (l->ran_ns == 0 || now_ns - l->ran_ns > (int64_t)PACE_BELIEVED_MS * 1000000 || !(l->pace.work > 0))
        return 0;
    return begin_ns + (int64_t)((double)samples * l->pace.busy_ns / l->pace.work);
}

/* ---- devices ---- */

static struct device *find_device(struct batcher *b, const struct batcher_lane *l, int worker) {
    return &b->devices[(l->workers.share ? 0 : BATCHER_DEVICES_MAX) + worker % l->workers.devices];
}

/* When a device will have run what it runs now; 0 when nobody can tell. */
static int64_t predict_free_ns(struct batcher *b, const struct device *d, int64_t now_ns) {
    int64_t end_ns = d->counted_ns;
    for (int i = 0; i < b->workers_count && end_ns; i++) {
        const struct worker *w = &b->workers[i];
        if (w->runs && find_device(b, w->runs, i) == d)
            end_ns = predict_end_ns(w->runs, w->samples, end_ns, now_ns);
    }
    return end_ns;
}

static void begin_batch(struct batcher *b, int worker, const struct batcher_batch *batch, int64_t now_ns) {
    struct worker *w = &b->workers[worker];
    struct device *d = find_device(b, batch->lane, worker);
    w->runs = batch->lane;
    w->samples = 0;
    w->taken_ns = now_ns;
    for (int i = 0; i < batch->count; i++)
        w->samples += batch->items[i]->slot;
    if (d->running++ == 0)
        d->counted_ns = now_ns;
}

/* What a worker takes of a lane at most: all devices that are free are to have something to do. */
static int64_t find_budget(struct batcher *b, const struct batcher_lane *l, int worker) {
    const struct device *own = find_device(b, l, worker);
    int64_t free = 1;
    for (int d = 0; d < l->workers.devices; d++) {
        const struct device *other = find_device(b, l, d);
        bool waits = false;
        for (int i = d; i < b->workers_count; i += l->workers.devices)
            waits = waits || (b->workers[i].waits && may_take(l, i));
        free += waits && other != own && other->running == 0;
    }
    int64_t share = free == 1 ? l->samples_max : (l->samples + free - 1) / free;
    if (share < l->samples_max / SHARES_MAX)
        share = l->samples_max / SHARES_MAX;
    return share < l->samples_max ? share : l->samples_max;
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
    struct batcher_lane *l = *lane = choose_lane(b, worker, now_ns);
    if (!l)
        return INT64_MAX;
    int64_t due_ns = should_wait(b, l, now_ns) ? find_oldest_ns(b, l) + b->delay_ns : now_ns;
    const struct device *d = find_device(b, l, worker);
    if (d->running && !is_full(l) && !b->closed) {
        const int64_t free_ns = predict_free_ns(b, d, now_ns);
        const int64_t early_ns = free_ns ? free_ns - (int64_t)OVERLAP_US * 1000 : INT64_MAX;
        due_ns = early_ns > due_ns ? early_ns : due_ns;
    }
    return due_ns;
}

/* Wakes the worker that is to take next, unless it comes in time by itself. One at a time: once it has taken,
 * it calls the next for what is left. */
static void call_worker(struct batcher *b, int64_t now_ns) {
    struct worker *best = NULL;
    int64_t best_ns = INT64_MAX;
    int best_running = 0;
    for (int i = 0; i < b->workers_count && b->count; i++) {
        struct batcher_lane *l;
        if (!b->workers[i].waits)
            continue;
        const int64_t due_ns = find_due_ns(b, i, &l, now_ns);
        const int running = l ? find_device(b, l, i)->running : 0;
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
static void wait_for_call(struct batcher *b, struct worker *w, int64_t until_ns) {
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
    struct entry *e = &b->entries[index];
    b->free = e->next;
    r->next_item = 0;
    r->ready_ns = clock_now_ns();
    r->arriving = false;
    atomic_fetch_sub(&l->arriving, 1);
    *e = (struct entry){.request = r,
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

/* ---- choosing what goes next ---- */

static bool goes_before(const struct candidate *x, const struct candidate *y) {
    if (x->rank != y->rank)
        return x->rank < y->rank;
    if (x->deadline_ns != y->deadline_ns)
        return x->deadline_ns < y->deadline_ns;
    return x->arrival < y->arrival;
}

static void sift_down(struct candidate *heap, int n, int at) {
    const struct candidate moved = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && goes_before(&heap[child + 1], &heap[child]))
            child++;
        if (!goes_before(&heap[child], &moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static int make_heap(struct batcher *b, const struct batcher_lane *l, int64_t now_ns) {
    int n = 0;
    for (int c = 0; c < ENGINE_CLASSES; c++)
        for (int32_t i = l->classes[c].first; i != BATCHER_NONE; i = b->entries[i].next) {
            const struct entry *e = &b->entries[i];
            b->heap[n++] = (struct candidate){.rank = request_rank(c, e->ready_ns, now_ns),
                                              .deadline_ns = e->deadline_ns,
                                              .arrival = e->arrival,
                                              .entry = i};
        }
    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(b->heap, n, i);
    return n;
}

/* More time than is left to the request, or 0. Small batches are slow for their size, so that more work than
 * has been in a batch lately counts as one of those: what is dropped would surely have been late. */
static int64_t find_hopeless_ns(const struct batcher_lane *l, const struct entry *e, int64_t now_ns) {
    const double usual = l->pace.batches > 0 ? l->pace.work / l->pace.batches : 0;
    const int64_t samples = (double)e->samples < usual ? e->samples : (int64_t)usual;
    const int64_t end_ns = predict_end_ns(l, samples, now_ns, now_ns);
    return end_ns > e->deadline_ns ? end_ns - now_ns : 0;
}

/* A batch while it is filled. */
struct filling {
    struct batcher_batch *batch;
    int count_max;
    int64_t budget, taken; /* samples of slots */
    int64_t latest_ns;     /* the first deadline of the batch, which company must not endanger */
    int64_t begin_ns, now_ns;
};

static bool has_room(const struct filling *f, const struct batcher_lane *l, int64_t slot, int64_t latest_ns) {
    return f->batch->count == 0 || (slot <= f->budget - f->taken &&
                                    predict_end_ns(l, f->taken + slot, f->begin_ns, f->now_ns) <= latest_ns);
}

/* Hands out items of the candidate as far as they fit; false when the batch is full. */
static bool take_items(struct batcher *b, const struct candidate *c, struct filling *f) {
    struct entry *e = &b->entries[c->entry];
    struct engine_request *r = e->request;
    struct batcher_lane *l = r->lane;
    struct batcher_batch *batch = f->batch;
    while (r->next_item < r->items_count) {
        struct engine_item *item = &r->items[r->next_item];
        int64_t latest_ns = c->deadline_ns < f->latest_ns ? c->deadline_ns : f->latest_ns;
        if (r->options.order == ENGINE_LIVE && f->begin_ns + (int64_t)LIVE_BATCH_MS * 1000000 < latest_ns)
            latest_ns = f->begin_ns + (int64_t)LIVE_BATCH_MS * 1000000;
        if (batch->count == f->count_max || !has_room(f, l, item->slot, latest_ns))
            return false;
        f->taken += item->slot;
        f->latest_ns = latest_ns;
        batch->items[batch->count++] = item;
        const bool last = ++r->next_item == r->items_count;
        const int64_t share_us =
            last ? r->door_us : (int64_t)((double)r->door_us * (double)item->slot / (double)e->samples);
        r->door_us -= share_us;
        batch->door_us += share_us;
        e->samples -= item->slot;
        l->samples -= item->slot;
    }
    batch->requests += r->inside;
    r->inside = false;
    unlink_entry(b, c->entry);
    return true;
}

static void fill(struct batcher *b, struct batcher_lane *l, int worker, int count_max,
                 struct batcher_batch *batch, int64_t now_ns) {
    const struct device *d = find_device(b, l, worker);
    const int64_t free_ns = d->running ? predict_free_ns(b, d, now_ns) : 0;
    struct filling f = {.batch = batch,
                        .count_max = count_max,
                        .budget = find_budget(b, l, worker),
                        .latest_ns = INT64_MAX,
                        .begin_ns = free_ns > now_ns ? free_ns : now_ns,
                        .now_ns = now_ns};
    int n = make_heap(b, l, now_ns);
    batch->lane = l;
    while (n > 0 && batch->count < count_max) {
        const struct candidate c = b->heap[0];
        const int64_t needs_ns = find_hopeless_ns(l, &b->entries[c.entry], now_ns);
        if (needs_ns) {
            b->entries[c.entry].request->needs_ns = needs_ns;
            bury(b, c.entry);
        } else if (!take_items(b, &c, &f)) {
            break;
        }
        b->heap[0] = b->heap[--n];
        if (n > 0)
            sift_down(b->heap, n, 0);
    }
    if (batch->count) {
        l->waits_since_ns = now_ns;
        b->virtual_ns = l->used_ns > b->virtual_ns ? l->used_ns : b->virtual_ns;
        begin_batch(b, worker, batch, now_ns);
    }
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
            fill(b, l, worker, count_max, batch, now_ns);
        if (batch->count || b->dead || (!l && b->closed))
            break;
        wait_for_call(b, &b->workers[worker], due_ns);
    }
    batch->dead = b->dead;
    b->dead = NULL;
    call_worker(b, now_ns); /* what is left */
    pthread_mutex_unlock(&b->lock);
    return batch->count || batch->dead;
}

int64_t batcher_ran(struct batcher *b, int worker, int64_t samples, int64_t *begin_ns) {
    struct worker *w = &b->workers[worker];
    pthread_mutex_lock(&b->lock);
    const int64_t now_ns = clock_now_ns();
    struct batcher_lane *l = w->runs;
    struct device *d = find_device(b, l, worker);
    const int64_t busy_ns = now_ns - d->counted_ns;
    *begin_ns = d->counted_ns > w->taken_ns ? d->counted_ns : w->taken_ns;
    d->counted_ns = now_ns;
    d->running--;
    w->runs = NULL;
    l->used_ns += busy_ns;
    if (samples > 0) {
        l->ran_ns = now_ns;
        door_pace_add(&l->pace, (double)samples, (double)busy_ns);
    }
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
