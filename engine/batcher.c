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

struct batcher {
    pthread_mutex_t lock;         /* guards all below */
    pthread_cond_t work;          /* the worker waits here */
    bool idle;                    /* it waits for anything */
    struct batcher_lane *company; /* it waits for more in this lane */
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
    pthread_cond_init(&b->work, &monotonic);
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
    pthread_cond_destroy(&b->work);
    pthread_mutex_destroy(&b->lock);
    free(b->heap);
    free(b);
}

void batcher_add_lane(struct batcher *b, struct batcher_lane *l, int64_t samples_max) {
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

/* ---- waiting for company ---- */

static int64_t find_oldest_ns(const struct batcher *b, const struct batcher_lane *l) {
    int64_t oldest_ns = INT64_MAX;
    for (int c = 0; c < ENGINE_CLASSES; c++)
        if (l->classes[c].first != BATCHER_NONE && b->entries[l->classes[c].first].ready_ns < oldest_ns)
            oldest_ns = b->entries[l->classes[c].first].ready_ns;
    return oldest_ns;
}

/* Whether a batch of this lane would better wait for requests that are on their way. Nothing of it waits
 * longer than the delay for that, and nothing of another lane waits at all. */
static bool should_wait(const struct batcher *b, const struct batcher_lane *l, int64_t now_ns) {
    return !b->closed && b->count == l->count && atomic_load(&l->arriving) > 0 &&
           l->samples < l->samples_max && l->count < ENGINE_BATCH_CLIPS_MAX &&
           now_ns < find_oldest_ns(b, l) + b->delay_ns;
}

static void wake_worker(struct batcher *b) {
    b->idle = false;
    b->company = NULL;
    pthread_cond_signal(&b->work);
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
    *gone = atomic_load(&r->cancelled);
    if (b->idle || (b->company && (b->company != l || !should_wait(b, l, r->ready_ns))))
        wake_worker(b);
    pthread_mutex_unlock(&b->lock);
}

void batcher_expect_less(struct batcher *b, struct batcher_lane *l) {
    pthread_mutex_lock(&b->lock);
    if (atomic_fetch_sub(&l->arriving, 1) == 1 && b->company == l)
        wake_worker(b);
    pthread_mutex_unlock(&b->lock);
}

/* ---- choosing ---- */

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

static int64_t lane_rank(const struct batcher_lane *l, int64_t now_ns) {
    int best = 0;
    while (l->classes[best].first == BATCHER_NONE)
        best++;
    return request_rank(best, l->waits_since_ns, now_ns);
}

static struct batcher_lane *choose_lane(const struct batcher *b, int64_t now_ns) {
    struct batcher_lane *best = NULL;
    int64_t best_is = 0;
    for (struct batcher_lane *l = b->lanes; l; l = l->next) {
        if (l->count == 0)
            continue;
        const int64_t rank = lane_rank(l, now_ns);
        if (!best || rank < best_is || (rank == best_is && l->used_ns < best->used_ns)) {
            best = l;
            best_is = rank;
        }
    }
    return best;
}

/* When a forward of so many samples would be over at the lane's pace; 0 when nobody can tell. */
static int64_t predict_end_ns(const struct batcher_lane *l, int64_t samples, int64_t now_ns) {
    if (l->ran_ns == 0 || now_ns - l->ran_ns > (int64_t)PACE_BELIEVED_MS * 1000000 || !(l->pace.work > 0))
        return 0;
    return now_ns + (int64_t)((double)samples * l->pace.busy_ns / l->pace.work);
}

/* More time than is left to the request, or 0. Small batches are slow for their size, so that more work than
 * has been in a batch lately counts as one of those: what is dropped would surely have been late. */
static int64_t find_hopeless_ns(const struct batcher_lane *l, const struct entry *e, int64_t now_ns) {
    const double usual = l->pace.batches > 0 ? l->pace.work / l->pace.batches : 0;
    const int64_t samples = (double)e->samples < usual ? e->samples : (int64_t)usual;
    const int64_t end_ns = predict_end_ns(l, samples, now_ns);
    return end_ns > e->deadline_ns ? end_ns - now_ns : 0;
}

/* Hands out items of the candidate as far as they fit; false when the batch is full. *taken: samples of slots
 * so far. *latest_ns: the first deadline of the batch, which company must not endanger. */
static bool take_items(struct batcher *b, const struct candidate *c, int count_max,
                       struct batcher_batch *batch, int64_t *taken, int64_t *latest_ns, int64_t now_ns) {
    struct entry *e = &b->entries[c->entry];
    struct engine_request *r = e->request;
    struct batcher_lane *l = r->lane;
    while (r->next_item < r->items_count) {
        struct engine_item *item = &r->items[r->next_item];
        const int64_t latest = c->deadline_ns < *latest_ns ? c->deadline_ns : *latest_ns;
        if (batch->count == count_max ||
            (batch->count && (item->slot > l->samples_max - *taken ||
                              predict_end_ns(l, *taken + item->slot, now_ns) > latest)))
            return false;
        *taken += item->slot;
        *latest_ns = latest;
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

static void fill(struct batcher *b, struct batcher_lane *l, int count_max, struct batcher_batch *batch,
                 int64_t now_ns) {
    int64_t taken = 0, latest_ns = INT64_MAX;
    int n = make_heap(b, l, now_ns);
    batch->lane = l;
    while (n > 0 && batch->count < count_max) {
        const struct candidate c = b->heap[0];
        const int64_t needs_ns = find_hopeless_ns(l, &b->entries[c.entry], now_ns);
        if (needs_ns) {
            b->entries[c.entry].request->needs_ns = needs_ns;
            bury(b, c.entry);
        } else if (!take_items(b, &c, count_max, batch, &taken, &latest_ns, now_ns)) {
            break;
        }
        b->heap[0] = b->heap[--n];
        if (n > 0)
            sift_down(b->heap, n, 0);
    }
    if (batch->count) {
        l->waits_since_ns = now_ns;
        b->virtual_ns = l->used_ns > b->virtual_ns ? l->used_ns : b->virtual_ns;
    }
}

bool batcher_take(struct batcher *b, int count_max, struct batcher_batch *batch) {
    *batch = (struct batcher_batch){0};
    pthread_mutex_lock(&b->lock);
    for (;;) {
        const int64_t now_ns = clock_now_ns();
        if (atomic_exchange(&b->suspect, false) || now_ns > b->earliest_ns)
            sweep(b, now_ns);
        struct batcher_lane *l = choose_lane(b, now_ns);
        const bool waits = l && should_wait(b, l, now_ns);
        if (l && !waits)
            fill(b, l, count_max, batch, now_ns);
        if (batch->count || b->dead || (!l && b->closed))
            break;
        if (waits) {
            const int64_t until = find_oldest_ns(b, l) + b->delay_ns;
            const struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
            b->company = l;
            pthread_cond_timedwait(&b->work, &b->lock, &t);
            b->company = NULL;
        } else {
            b->idle = true;
            pthread_cond_wait(&b->work, &b->lock);
            b->idle = false;
        }
    }
    batch->dead = b->dead;
    b->dead = NULL;
    pthread_mutex_unlock(&b->lock);
    return batch->count || batch->dead;
}

void batcher_ran(struct batcher *b, struct batcher_lane *l, int64_t samples, int64_t busy_ns) {
    pthread_mutex_lock(&b->lock);
    l->used_ns += busy_ns;
    l->ran_ns = clock_now_ns();
    door_pace_add(&l->pace, (double)samples, (double)busy_ns);
    pthread_mutex_unlock(&b->lock);
}

void batcher_suspect(struct batcher *b) {
    atomic_store(&b->suspect, true);
}

struct engine_request *batcher_sweep(struct batcher *b, int64_t now_ns, int64_t *earliest_ns) {
    pthread_mutex_lock(&b->lock);
    sweep(b, now_ns);
    struct engine_request *dead = b->dead;
    b->dead = NULL;
    if (b->earliest_ns < *earliest_ns)
        *earliest_ns = b->earliest_ns;
    pthread_mutex_unlock(&b->lock);
    return dead;
}

void batcher_close(struct batcher *b) {
    pthread_mutex_lock(&b->lock);
    b->closed = true;
    pthread_cond_broadcast(&b->work);
    pthread_mutex_unlock(&b->lock);
}
