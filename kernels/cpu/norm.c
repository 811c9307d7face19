/* input_norm and layer_norm. */
#include <assert.h>
#include <math.h>

#include "kernels/cpu/norm.h"
#include "kernels/cpu/vmath.h"

enum { CHAINS = 32 }; /* sums in double that run side by side: element i goes to sum i % CHAINS */

static double add_chains(double *sum) {
    for (int half = CHAINS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

/* Sum over x - mean, or over its square. */
ALWAYS_INLINE double sum_samples(const float *x, int64_t n, double mean, bool square) {
    double sum[CHAINS] = {0};
    int64_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS) {
        for (int j = 0; j < CHAINS; j++) {
            double v = x[i + j] - mean;
            sum[j] += square ? v * v : v;
        }
    }
    for (int j = 0; i < n; i++, j++) {
        double v = x[i] - mean;
        sum[j] += square ? v * v : v;
    }
    return add_chains(sum);
}

struct input_job {
    float *y;
    const float *x;
    const struct batch *batch;
};

static void norm_clip(void *arg, int64_t clip, int thread) {
    const struct input_job *j = arg;
    const struct batch *b = j->batch;
    const int64_t n = batch_rows(b, 0, (int)clip);
    const int64_t end = (clip + 1 < b->clips ? b->offset[clip + 1] : b->tape_rows[0]) - b->offset[clip];
    const float *x = j->x + b->offset[clip];
    float *y = j->y + b->offset[clip];
    (void)thread;
    double mean = sum_samples(x, n, 0.0, false) / (double)n;
    double scale = 1.0 / sqrt(sum_samples(x, n, mean, true) / (double)n + 1e-7);
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)((x[i] - mean) * scale);
    for (int64_t i = n; i < end; i++)
        y[i] = 0.0f;
}

void CPU_NAME(input_norm)(struct kernels_device *d, float *y, const float *x, const struct batch *b) {
    struct input_job j = {.y = y, .x = x, .batch = b};
    cpu_for(d, b->clips, CPU_ELEMENT_FLOP * b->tape_rows[0], norm_clip, &j);
}

/* Sum over x - mean, or over its square, on four vectors side by side. */
ALWAYS_INLINE float sum_row(const element *x, int n, float mean, bool square) {
    vf sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const vf m = v_set(mean);
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            vf v = element_load(x + i + j * LANES) - m;
            sum[j] = square ? v_fma(v, v, sum[j]) : sum[j] + v;
        }
    }
    for (; i + LANES <= n; i += LANES) {
        vf v = element_load(x + i) - m;
        sum[0] = square ? v_fma(v, v, sum[0]) : sum[0] + v;
    }
    float rest = 0.0f;
    for (; i < n; i++) {
        const float v = element_get(x[i]) - mean;
        rest += square ? v * v : v;
    }
    return v_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

ALWAYS_INLINE void norm_row(enum kernels_activation act, element *y, const element *x,
                            const struct cpu_packed *p, int n, float eps) {
    const float mean = sum_row(x, n, 0.0f, false) / (float)n;
    const float scale = 1.0f / sqrtf(sum_row(x, n, mean, true) / (float)n + eps);
    for (int i = 0; i < n; i += LANES) {
        const bool whole = i + LANES <= n;
        vf v = whole ? element_load(x + i) : element_load_first(x + i, n - i);
        v = (v - v_set(mean)) * v_set(scale);
        v = vmath_activate_element(act, v_fma(v, v_load(p->norm_weight + i), v_load(p->norm_bias + i)));
        if (whole)
            element_store(y + i, v);
        else
            element_store_first(y + i, v, n - i);
    }
}

void layer_norm_row(element *y, const element *x, const struct cpu_packed *p, int n, float eps,
                    enum kernels_activation act) {
    if (act == KERNELS_GELU)
        norm_row(KERNELS_GELU, y, x, p, n, eps);
    else
        norm_row(act, y, x, p, n, eps);
}

enum { NORM_ROWS = 32 }; /* of one tile */

struct layer_job {
    element *y;
    const element *x;
    const struct kernels_weight *w;
    int64_t rows;
};

static void norm_rows(void *arg, int64_t index, int thread) {
    const struct layer_job *j = arg;
    const int n = j->w->out;
    (void)thread;
    for (int64_t r = index * NORM_ROWS; r < cpu_min(j->rows, (index + 1) * NORM_ROWS); r++)
        norm_row(KERNELS_IDENTITY, j->y + r * n, j->x + r * n, j->w->packed, n, j->w->eps);
}

void CPU_NAME(layer_norm)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                          int64_t rows) {
    struct layer_job j = {.y = y, .x = x, .w = w, .rows = rows};
    assert(((const struct cpu_packed *)w->packed)->ops == d->ops);
    cpu_for(d, cpu_divide_up(rows, NORM_ROWS), CPU_ELEMENT_FLOP * rows * w->out, norm_rows, &j);
}
