/* Weighted sum of layers, and pooling. */
#include <math.h>

#include "kernels/cpu/element.h"
#include "kernels/cpu/internal.h"

enum { ACCUMULATE_FLOATS = 1 << 14, POOL_CHANNELS = 64 }; /* of one tile */

struct accumulate_job {
    element *y;
    const element *x;
    float weight;
    bool first;
    int64_t count;
};

static void accumulate(void *arg, int64_t index, int thread) {
    const struct accumulate_job *j = arg;
    int64_t i = index * ACCUMULATE_FLOATS;
    const int64_t end = cpu_min(j->count, i + ACCUMULATE_FLOATS);
    (void)thread;
    for (; i + LANES <= end; i += LANES) {
        vf x = element_load(j->x + i) * v_set(j->weight);
        element_store(j->y + i, j->first ? x : element_load(j->y + i) + x);
    }
    for (; i < end; i++) { /* not fused above either: an element's bits do not depend on where it stands */
        const float x = j->weight * element_get(j->x[i]);
        j->y[i] = element_of(j->first ? x : element_get(j->y[i]) + x);
    }
}

void CPU_NAME(accumulate)(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                          int64_t rows, int channels) {
    struct accumulate_job j = {.y = y, .x = x, .weight = weight, .first = first, .count = rows * channels};
    cpu_for(d, cpu_divide_up(j.count, ACCUMULATE_FLOATS), CPU_ELEMENT_FLOP * j.count, accumulate, &j);
}

struct pool_job {
    float *y;
    const element *x;
    enum kernels_pool kind;
    int channels, strips;
    const struct batch *batch;
};

static void pool(void *arg, int64_t index, int thread) {
    const struct pool_job *j = arg;
    const int clip = (int)(index / j->strips), first = (int)(index % j->strips) * POOL_CHANNELS;
    const int count = (int)cpu_min(POOL_CHANNELS, j->channels - first);
    const int64_t *cu = j->batch->cu_tokens;
    const double tokens = (double)(cu[clip + 1] - cu[clip]);
    double sum[POOL_CHANNELS] = {0};
    float max[POOL_CHANNELS];
    (void)thread;
    for (int i = 0; i < count; i++)
        max[i] = -INFINITY;
    for (int64_t t = cu[clip]; t < cu[clip + 1]; t++) {
        const element *x = j->x + t * j->channels + first;
        if (j->kind == KERNELS_POOL_MAX) {
            for (int i = 0; i < count; i++)
                max[i] = element_get(x[i]) > max[i] ? element_get(x[i]) : max[i];
        } else {
            for (int i = 0; i < count; i++)
                sum[i] += element_get(x[i]);
        }
    }
    float *y = j->y + (int64_t)clip * j->channels + first;
    for (int i = 0; i < count; i++)
        y[i] = j->kind == KERNELS_POOL_MAX ? max[i]
                                           : (float)(j->kind == KERNELS_POOL_MEAN ? sum[i] / tokens : sum[i]);
}

void CPU_NAME(pool)(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                    const struct batch *b) {
    struct pool_job j = {.y = y, .x = x, .kind = kind, .channels = channels, .batch = b};
    j.strips = (int)cpu_divide_up(channels, POOL_CHANNELS);
    cpu_for(d, (int64_t)b->clips * j.strips, CPU_ELEMENT_FLOP * batch_tokens(b) * channels, pool, &j);
}
