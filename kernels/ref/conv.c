/* The convolutions of the feature extractor, as kernels.h defines them. */
#include <math.h>
#include <string.h>

#include "kernels/ref/internal.h"

/* One output of a convolution over channels-last rows x [., in]: output channel `o` at input row `row`. */
static double convolve(const struct kernels_weight *w, const float *x, int64_t row, int o) {
    const struct ref_packed *p = w->packed;
    double sum = p->bias[o];
    for (int k = 0; k < w->kernel; k++)
        for (int i = 0; i < w->in; i++)
            sum += (double)p->weight[((int64_t)o * w->in + i) * w->kernel + k] * x[(row + k) * w->in + i];
    return sum;
}

void ref_group_stats(struct kernels_device *d, float *stats, const float *x, const struct kernels_weight *w,
                     const struct batch *b) {
    (void)d;
    for (int c = 0; c < b->clips; c++) {
        for (int o = 0; o < w->out; o++) {
            int64_t n = batch_rows(b, 1, c);
            double sum = 0, squares = 0;
            for (int64_t r = 0; r < n; r++)
                sum += convolve(w, x, b->offset[c] + r * w->stride, o);
            double mean = sum / (double)n;
            for (int64_t r = 0; r < n; r++) {
                double v = convolve(w, x, b->offset[c] + r * w->stride, o) - mean;
                squares += v * v;
            }
            stats[((int64_t)c * w->out + o) * 2] = (float)mean;
            stats[((int64_t)c * w->out + o) * 2 + 1] = (float)(1.0 / sqrt(squares / (double)n + w->eps));
        }
    }
}

/* Layer norm of one row of `w->out` channels, in place. */
static void norm_row(const struct kernels_weight *w, float *y) {
    const struct ref_packed *p = w->packed;
    double sum = 0, squares = 0;
    for (int o = 0; o < w->out; o++)
        sum += y[o];
    double mean = sum / w->out;
    for (int o = 0; o < w->out; o++)
        squares += (y[o] - mean) * (y[o] - mean);
    double scale = 1.0 / sqrt(squares / w->out + w->eps);
    for (int o = 0; o < w->out; o++)
        y[o] = (float)((y[o] - mean) * scale * p->norm_weight[o] + p->norm_bias[o]);
}

void ref_conv(struct kernels_device *d, void *to, const void *from, const struct kernels_weight *w,
              enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
              const struct batch *b) {
    const struct ref_packed *p = w->packed;
    (void)d;
    for (int64_t r = 0; r < rows.count; r++) {
        float *y = (float *)to + r * w->out;
        for (int o = 0; o < w->out; o++)
            y[o] = (float)convolve(w, from, r * w->stride, o);
        if (w->norm == KERNELS_NORM_GROUP) {
            const float *s = stats + (int64_t)batch_find_clip(b, level, rows.first + r) * w->out * 2;
            for (int o = 0; o < w->out; o++)
                y[o] = (y[o] - s[2 * o]) * s[2 * o + 1] * p->norm_weight[o] + p->norm_bias[o];
        } else if (w->norm == KERNELS_NORM_LAYER) {
            norm_row(w, y);
        }
        for (int o = 0; o < w->out; o++)
            y[o] = ref_activate(act, y[o]);
    }
}

void ref_compact(struct kernels_device *d, void *to, const void *from, int channels, struct kernels_rows rows,
                 const struct batch *b) {
    (void)d;
    for (int64_t r = 0; r < rows.count; r++) {
        int c = batch_find_clip(b, b->levels, rows.first + r);
        int64_t t = rows.first + r - b->offset[c] / b->step[b->levels];
        if (t < batch_rows(b, b->levels, c))
            memcpy((float *)to + (b->cu_tokens[c] + t) * channels, (const float *)from + r * channels,
                   (size_t)channels * sizeof(float));
    }
}
