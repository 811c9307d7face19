#include "kernels/batch.h"

#include <string.h>

int64_t batch_count_rows(const struct batch_shape *s, int level, int64_t n) {
    for (int l = 0; l < level; l++)
        n = n < s->kernel[l] ? 0 : (n - s->kernel[l]) / s->stride[l] + 1;
    return n;
}

int64_t batch_min_samples(const struct batch_shape *s) {
    int64_t n = 1;
    for (int l = s->levels - 1; l >= 0; l--)
        n = (n - 1) * s->stride[l] + s->kernel[l];
    return n;
}

static int64_t strides_product(const struct batch_shape *s) {
    int64_t p = 1;
    for (int l = 0; l < s->levels; l++)
        p *= s->stride[l];
    return p;
}

int64_t batch_slot_samples(const struct batch_shape *s, int64_t n) {
    int64_t least = batch_min_samples(s), p = strides_product(s);
    return ((n < least ? least : n) + p - 1) / p * p;
}

void batch_init(struct batch *b, const struct batch_shape *s, int clips_max, struct arena *a) {
    memset(b, 0, sizeof *b);
    b->levels = s->levels;
    b->offset = arena_alloc(a, (size_t)clips_max, sizeof *b->offset);
    b->rows = arena_alloc(a, (size_t)clips_max * (size_t)(s->levels + 1), sizeof *b->rows);
    b->cu_tokens = arena_alloc(a, (size_t)clips_max + 1, sizeof *b->cu_tokens);
}

void batch_plan(struct batch *b, const struct batch_shape *s, int clips, const int64_t *samples) {
    int64_t end = 0;
    b->clips = clips;
    b->cu_tokens[0] = 0;
    for (int i = 0; i < clips; i++) {
        b->offset[i] = end;
        end += batch_slot_samples(s, samples[i]);
        for (int l = 0; l <= s->levels; l++)
            b->rows[(int64_t)l * clips + i] = batch_count_rows(s, l, samples[i]);
        b->cu_tokens[i + 1] = b->cu_tokens[i] + batch_rows(b, s->levels, i);
    }
    b->step[0] = 1;
    for (int l = 0; l <= s->levels; l++) {
        b->tape_rows[l] = batch_count_rows(s, l, end);
        if (l > 0)
            b->step[l] = b->step[l - 1] * s->stride[l - 1];
    }
}

int batch_find_clip(const struct batch *b, int level, int64_t row) {
    int64_t sample = row * b->step[level];
    int lo = 0, hi = b->clips; /* offset[lo] <= sample < offset[hi] */
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (b->offset[mid] <= sample)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}
