/* The devices: what runs on them, how long that takes, and what kind of worker begins on the processor. */
#include <math.h>

#include "engine/batcher_internal.h"

/* A measured pace is believed for so long after the last batch: then one is tried again, so that one slow
 * batch cannot make everything look hopeless for ever. */
enum { PACE_BELIEVED_MS = 1000 };

/* When several devices are free, none takes more than its share of what waits; but parts of less than this
 * fraction of a full batch take no less time. */
enum { SHARES_MAX = 8 };

/* The number of items that wait or run is smoothed over this time. Narrow workers begin when it comes near
 * their number, and a wide one again when one of them would soon be idle. */
#define LOAD_NS    5e8
#define LOAD_BUSY  0.8
#define LOAD_QUIET 0.6

/* What waits is so many times as many items as there are narrow workers: enough for all of them at once. */
enum { WAITING_BUSY = 2 };

enum batcher_kind batcher_find_kind(const struct batcher_lane *l, int worker) {
    return worker >= l->workers.first + l->workers.count - l->workers.narrow ? BATCHER_NARROW : BATCHER_WIDE;
}

struct batcher_device *batcher_find_device(struct batcher *b, const struct batcher_lane *l, int worker) {
    return &b->devices[(l->workers.share ? 0 : BATCHER_DEVICES_MAX) +
                       (l->workers.narrow ? 0 : worker % l->workers.devices)];
}

/* ---- time ---- */

/* Nanoseconds of a sample; 0 when nobody can tell. */
static double find_sample_ns(const struct batcher_lane *l, enum batcher_kind kind, int64_t now_ns) {
    const struct batcher_pace *p = &l->pace[kind];
    if (p->ran_ns == 0 || now_ns - p->ran_ns > (int64_t)PACE_BELIEVED_MS * 1000000 || !(p->pace.work > 0))
        return 0;
    return p->pace.busy_ns / p->pace.work;
}

int64_t batcher_predict_end_ns(const struct batcher_lane *l, enum batcher_kind kind, int64_t samples,
                               int64_t begin_ns, int64_t now_ns) {
    double ns = find_sample_ns(l, kind, now_ns);
    if (ns == 0 && l->workers.narrow > 0 && l->workers.narrow < l->workers.count)
        ns = kind == BATCHER_NARROW ? find_sample_ns(l, BATCHER_WIDE, now_ns) * l->workers.narrow
                                    : find_sample_ns(l, BATCHER_NARROW, now_ns) / l->workers.narrow;
    return ns > 0 ? begin_ns + (int64_t)((double)samples * ns) : 0;
}

int64_t batcher_predict_free_ns(struct batcher *b, const struct batcher_device *d, int64_t now_ns) {
    int64_t end_ns = d->counted_ns, last_ns = d->narrow ? now_ns : 0;
    for (int i = 0; i < b->workers_count && end_ns; i++) {
        const struct batcher_worker *w = &b->workers[i];
        if (!w->runs || batcher_find_device(b, w->runs, i) != d)
            continue;
        /* Narrow ones run beside each other, others one after another. */
        end_ns = batcher_predict_end_ns(w->runs, batcher_find_kind(w->runs, i), w->samples,
                                        d->narrow ? w->taken_ns : end_ns, now_ns);
        last_ns = end_ns > last_ns ? end_ns : last_ns;
    }
    return d->narrow && end_ns ? last_ns : end_ns;
}

/* ---- how much ---- */

/* How many narrow workers of a lane there are. */
static int64_t count_shares(struct batcher *b, const struct batcher_lane *l, int worker) {
    if (batcher_find_kind(l, worker) == BATCHER_NARROW)
        return l->workers.narrow; /* all of them: who is not free will soon be */
    const struct batcher_device *own = batcher_find_device(b, l, worker);
    int64_t free = 1;
    for (int d = 0; d < l->workers.devices; d++) {
        const struct batcher_device *other = batcher_find_device(b, l, d);
        bool waits = false;
        for (int i = d; i < b->workers_count; i += l->workers.devices)
            waits = waits || (b->workers[i].waits && batcher_may_take(l, i));
        free += waits && other != own && other->running == 0;
    }
    return free;
}

int64_t batcher_find_budget(struct batcher *b, const struct batcher_lane *l, int worker) {
    const bool narrow = batcher_find_kind(l, worker) == BATCHER_NARROW;
    const int64_t most = narrow ? l->workers.narrow_samples : l->samples_max;
    const int64_t shares = count_shares(b, l, worker);
    int64_t share = shares == 1 ? most : (l->samples + shares - 1) / shares;
    if (share < most / SHARES_MAX)
        share = most / SHARES_MAX;
    return share < most ? share : most;
}

/* ---- what runs ---- */

void batcher_begin(struct batcher *b, int worker, const struct batcher_batch *batch, int64_t now_ns) {
    struct batcher_worker *w = &b->workers[worker];
    struct batcher_lane *l = batch->lane;
    struct batcher_device *d = batcher_find_device(b, l, worker);
    l->waits_since_ns = now_ns;
    b->virtual_ns = l->used_ns > b->virtual_ns ? l->used_ns : b->virtual_ns;
    w->runs = l;
    w->samples = 0;
    w->taken_ns = now_ns;
    w->items = batch->count;
    for (int i = 0; i < batch->count; i++)
        w->samples += batch->items[i]->slot;
    if (d->running++ == 0)
        d->counted_ns = now_ns;
    d->narrow += batcher_find_kind(l, worker) == BATCHER_NARROW;
    batcher_count_waiting(b, l, -batch->count, now_ns);
    if (l->workers.narrow)
        b->mode.running += batch->count;
}

int64_t batcher_end(struct batcher *b, int worker, int64_t samples, int64_t *begin_ns, int64_t now_ns) {
    struct batcher_worker *w = &b->workers[worker];
    struct batcher_lane *l = w->runs;
    struct batcher_device *d = batcher_find_device(b, l, worker);
    const enum batcher_kind kind = batcher_find_kind(l, worker);
    const int64_t busy_ns = now_ns - d->counted_ns, own_ns = now_ns - w->taken_ns;
    *begin_ns = d->counted_ns > w->taken_ns && kind == BATCHER_WIDE ? d->counted_ns : w->taken_ns;
    batcher_count_waiting(b, l, 0, now_ns);
    if (l->workers.narrow)
        b->mode.running -= w->items;
    d->counted_ns = now_ns;
    d->running--;
    d->narrow -= kind == BATCHER_NARROW;
    w->runs = NULL;
    /* Narrow workers have a part of the device each. */
    l->used_ns += kind == BATCHER_NARROW ? own_ns / l->workers.narrow : busy_ns;
    if (samples > 0) {
        l->pace[kind].ran_ns = now_ns;
        door_pace_add(&l->pace[kind].pace, (double)samples,
                      (double)(kind == BATCHER_NARROW ? own_ns : busy_ns));
    }
    return busy_ns;
}

/* ---- the processor: wide or narrow ---- */

void batcher_count_waiting(struct batcher *b, struct batcher_lane *l, int items, int64_t now_ns) {
    struct batcher_mode *m = &b->mode;
    l->items += items;
    if (!l->workers.narrow)
        return;
    /* What is more than enough for all counts no more than that, so that it is soon forgotten. */
    const int most = WAITING_BUSY * m->narrow_max, all = m->waiting + m->running;
    const double kept = exp(-(double)(now_ns - m->load_ns) / LOAD_NS);
    m->load = m->load * kept + (1 - kept) * (all < most ? all : most);
    m->load_ns = now_ns;
    m->waiting += items;
}

/* Whether a narrow worker would be done with the next item before a wide one with all that waits, which must
 * let those finish that run. */
static bool is_narrow_sooner(struct batcher *b, const struct batcher_lane *l, int64_t now_ns) {
    const struct batcher_device *d = batcher_find_device(b, l, l->workers.first);
    const int64_t free_ns = batcher_predict_free_ns(b, d, now_ns);
    const int64_t narrow_ns =
        batcher_predict_end_ns(l, BATCHER_NARROW, l->samples / l->items, now_ns, now_ns);
    const int64_t wide_ns = batcher_predict_end_ns(l, BATCHER_WIDE, l->samples, free_ns, now_ns);
    return free_ns == 0 || narrow_ns <= wide_ns;
}

void batcher_choose_mode(struct batcher *b, int64_t now_ns) {
    struct batcher_mode *m = &b->mode;
    struct batcher_lane *l = batcher_choose_lane(b, BATCHER_NONE, now_ns);
    if (!l)
        return;
    const int n = l->workers.narrow;
    batcher_count_waiting(b, l, 0, now_ns);
    if (n == 0 || n == l->workers.count) {
        m->kind = n ? BATCHER_NARROW : BATCHER_WIDE;
        return;
    }
    m->busy = m->load >= (m->busy ? LOAD_QUIET : LOAD_BUSY) * n;
    if (m->hurried)
        m->kind = BATCHER_WIDE;
    else if (m->busy || m->waiting >= WAITING_BUSY * n)
        m->kind = BATCHER_NARROW;
    else
        m->kind = batcher_find_device(b, l, l->workers.first)->narrow && is_narrow_sooner(b, l, now_ns)
                      ? BATCHER_NARROW
                      : BATCHER_WIDE;
}

bool batcher_may_begin(struct batcher *b, const struct batcher_lane *l, int worker) {
    const struct batcher_device *d = batcher_find_device(b, l, worker);
    if (l->workers.share)
        return true;
    if (batcher_find_kind(l, worker) == BATCHER_NARROW)
        return b->mode.kind == BATCHER_NARROW && d->narrow == d->running;
    return b->mode.kind == BATCHER_WIDE && d->narrow == 0;
}

void batcher_hurry(struct batcher *b) {
    b->mode.hurried = true;
}
