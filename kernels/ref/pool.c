/* Weighted sum of layers and pooling, as kernels.h defines them. */
#include <math.h>

#include "kernels/ref/internal.h"

void ref_accumulate(struct kernels_device *d, void *to, const void *from, float weight, bool first,
                    int64_t rows, int channels) {
    float *y = to;
    const float *x = from;
    (void)d;
    for (int64_t i = 0; i < rows * channels; i++)
        y[i] = (first ? 0.0f : y[i]) + weight * x[i];
}

void ref_pool(struct kernels_device *d, float *y, const void *from, enum kernels_pool kind, int channels,
              const struct batch *b) {
    const float *x = from;
    (void)d;
    for (int c = 0; c < b->clips; c++) {
        int64_t first = b->cu_tokens[c], n = b->cu_tokens[c + 1] - first;
        for (int i = 0; i < channels; i++) {
            double sum = 0;
            float max = -INFINITY;
            for (int64_t t = first; t < first + n; t++) {
                sum += x[t * channels + i];
                max = fmaxf(max, x[t * channels + i]);
            }
            y[(int64_t)c * channels + i] =
                kind == KERNELS_POOL_MAX ? max : (float)(kind == KERNELS_POOL_MEAN ? sum / (double)n : sum);
        }
    }
}
