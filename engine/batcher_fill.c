/* Choosing what of a lane goes next. */
#include "engine/batcher_internal.h"

/* A batch with live windows takes no company that would make it longer than this at the measured pace: the
 * first of them would wait for the last. */
enum { LIVE_BATCH_MS = 30 };

static bool goes_before(const struct batcher_candidate *x, const struct batcher_candidate *y) {
    if (x->rank != y->rank)
        return x->rank < y->rank;
    if (x->deadline_ns != y->deadline_ns)
        return x->deadline_ns < y->deadline_ns;
    return x->arrival < y->arrival;
}

static void sift_down(struct batcher_candidate *heap, int n, int at) {
    const struct batcher_candidate moved = heap[at];
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
            const struct batcher_entry *e = &b->entries[i];
            b->heap[n++] = (struct batcher_candidate){.rank = request_rank(c, e->ready_ns, now_ns),
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
static int64_t find_hopeless_ns(const struct batcher_lane *l, enum batcher_kind kind,
                                const struct batcher_entry *e, int64_t now_ns) {
    const struct door_pace *pace = &l->pace[kind].pace;
    const double usual = pace->batches > 0 ? pace->work / pace->batches : 0;
    const int64_t samples = (double)e->samples < usual ? e->samples : (int64_t)usual;
    const int64_t end_ns = batcher_predict_end_ns(l, kind, samples, now_ns, now_ns);
    return end_ns > e->deadline_ns ? end_ns - now_ns : 0;
}

/* Whether a request that a narrow worker cannot do in time never could have been, and a wide one still can:
 * who asks for an answer that soon is not to suffer from how many ask. */
static bool needs_wide(struct batcher *b, const struct batcher_lane *l, int worker,
                       const struct batcher_entry *e, int64_t needs_ns, int64_t now_ns) {
    if (batcher_find_kind(l, worker) != BATCHER_NARROW || l->workers.narrow == l->workers.count ||
        e->deadline_ns - e->ready_ns >= needs_ns)
        return false;
    const int64_t free_ns = batcher_predict_free_ns(b, batcher_find_device(b, l, worker), now_ns);
    return find_hopeless_ns(l, BATCHER_WIDE, e, free_ns > now_ns ? free_ns : now_ns) == 0;
}

/* A batch while it is filled. */
struct filling {
    struct batcher_batch *batch;
    int count_max;
    int64_t budget, taken; /* samples of slots */
    int64_t latest_ns;     /* the first deadline of the batch, which company must not endanger */
    int64_t begin_ns, now_ns;
    enum batcher_kind kind; /* of the worker */
};

static bool has_room(const struct filling *f, const struct batcher_lane *l, int64_t slot, int64_t latest_ns) {
    return f->batch->count == 0 ||
           (slot <= f->budget - f->taken &&
            batcher_predict_end_ns(l, f->kind, f->taken + slot, f->begin_ns, f->now_ns) <= latest_ns);
}

/* Hands out items of the candidate as far as they fit; false when the batch is full. */
static bool take_items(struct batcher *b, const struct batcher_candidate *c, struct filling *f) {
    struct batcher_entry *e = &b->entries[c->entry];
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
    batcher_unlink(b, c->entry);
    return true;
}

void batcher_fill(struct batcher *b, struct batcher_lane *l, int worker, int count_max,
                  struct batcher_batch *batch, int64_t now_ns) {
    const struct batcher_device *d = batcher_find_device(b, l, worker);
    const int64_t free_ns = d->running && l->workers.share ? batcher_predict_free_ns(b, d, now_ns) : 0;
    struct filling f = {.batch = batch,
                        .count_max = count_max,
                        .budget = batcher_find_budget(b, l, worker),
                        .latest_ns = INT64_MAX,
                        .begin_ns = free_ns > now_ns ? free_ns : now_ns,
                        .now_ns = now_ns,
                        .kind = batcher_find_kind(l, worker)};
    int n = make_heap(b, l, now_ns);
    batch->lane = l;
    if (f.kind == BATCHER_WIDE)
        b->mode.hurried = false;
    while (n > 0 && batch->count < count_max) {
        const struct batcher_candidate c = b->heap[0];
        const int64_t needs_ns = find_hopeless_ns(l, f.kind, &b->entries[c.entry], now_ns);
        if (needs_ns && needs_wide(b, l, worker, &b->entries[c.entry], needs_ns, now_ns)) {
            batcher_hurry(b);
            break;
        } else if (needs_ns) {
            b->entries[c.entry].request->needs_ns = needs_ns;
            batcher_bury(b, c.entry, now_ns);
        } else if (!take_items(b, &c, &f)) {
            break;
        }
        b->heap[0] = b->heap[--n];
        if (n > 0)
            sift_down(b->heap, n, 0);
    }
    if (batch->count)
        batcher_begin(b, worker, batch, now_ns);
}
