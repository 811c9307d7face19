/* Self-attention within each clip, as kernels.h defines it: three passes over the keys, nothing stored. */
#include <math.h>

#include "kernels/ref/internal.h"

static double dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

void ref_attention(struct kernels_device *d, void *to, const void *from, int heads, int head_dim, float scale,
                   const struct batch *b) {
    const int64_t hidden = (int64_t)heads * head_dim;
    (void)d;
    for (int c = 0; c < b->clips; c++) {
        int64_t first = b->cu_tokens[c], n = b->cu_tokens[c + 1] - first;
        for (int h = 0; h < heads; h++) {
            const float *q = (const float *)from + first * 3 * hidden + h * head_dim, *k = q + hidden,
                        *v = k + hidden;
            for (int64_t i = 0; i < n; i++) {
                const float *qi = q + i * 3 * hidden;
                float *y = (float *)to + (first + i) * hidden + h * head_dim;
                double max = -INFINITY, total = 0;
                for (int64_t j = 0; j < n; j++)
                    max = fmax(max, scale * dot(qi, k + j * 3 * hidden, head_dim));
                for (int64_t j = 0; j < n; j++)
                    total += exp(scale * dot(qi, k + j * 3 * hidden, head_dim) - max);
                for (int e = 0; e < head_dim; e++)
                    y[e] = 0.0f;
                for (int64_t j = 0; j < n; j++) {
                    double p = exp(scale * dot(qi, k + j * 3 * hidden, head_dim) - max) / total;
                    for (int e = 0; e < head_dim; e++)
                        y[e] += (float)(p * v[j * 3 * hidden + e]);
                }
            }
        }
    }
}
