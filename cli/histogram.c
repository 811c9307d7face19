#include "cli/histogram.h"

#include <math.h>

static int place_of(int64_t value) {
    const uint64_t v = (uint64_t)value;
    if (v < HISTOGRAM_PARTS)
        return (int)v;
    const int shift = 56 - __builtin_clzll(v); /* leaves v >> shift in PARTS..2 PARTS - 1 */
    return (shift + 1) * HISTOGRAM_PARTS + (int)(v >> shift) - HISTOGRAM_PARTS;
}

/* The highest value of a place. */
static int64_t highest_of(int place) {
    if (place < HISTOGRAM_PARTS)
        return place;
    const int shift = place / HISTOGRAM_PARTS - 1;
    const uint64_t part = (uint64_t)(place % HISTOGRAM_PARTS + HISTOGRAM_PARTS);
    return (int64_t)(((part + 1) << shift) - 1);
}

void histogram_add(struct histogram *h, int64_t value) {
    value = value < 0 ? 0 : value;
    h->counts[place_of(value)]++;
    h->min = h->count == 0 || value < h->min ? value : h->min;
    h->max = value > h->max ? value : h->max;
    h->count++;
    h->sum += (double)value;
}

void histogram_merge(struct histogram *to, const struct histogram *from) {
    if (from->count == 0)
        return;
    for (int i = 0; i < HISTOGRAM_PLACES; i++)
        to->counts[i] += from->counts[i];
    to->min = to->count == 0 || from->min < to->min ? from->min : to->min;
    to->max = from->max > to->max ? from->max : to->max;
    to->count += from->count;
    to->sum += from->sum;
}

int64_t histogram_quantile(const struct histogram *h, double share) {
    const double rank = ceil(share * (double)h->count);
    uint64_t seen = 0;
    for (int i = 0; i < HISTOGRAM_PLACES; i++) {
        seen += h->counts[i];
        if (seen && (double)seen >= rank) {
            const int64_t value = highest_of(i);
            return value < h->min ? h->min : value > h->max ? h->max : value;
        }
    }
    return h->max;
}
