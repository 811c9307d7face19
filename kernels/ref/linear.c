/* Linear layers, as kernels.h defines them. */
#include "kernels/ref/internal.h"

void ref_linear(struct kernels_device *d, void *to, const void *from, const struct kernels_weight *w,
                enum kernels_activation act, const void *residual, int64_t rows) {
    const struct ref_packed *p = w->packed;
    (void)d;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)from + r * w->in;
        for (int o = 0; o < w->out; o++) {
            double sum = p->bias[o];
            for (int i = 0; i < w->in; i++)
                sum += (double)p->weight[(int64_t)o * w->in + i] * x[i];
            float y = ref_activate(act, (float)sum);
            ((float *)to)[r * w->out + o] = residual ? y + ((const float *)residual)[r * w->out + o] : y;
        }
    }
}

void ref_head_linear(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                     enum kernels_activation act, int64_t rows) {
    ref_linear(d, y, x, w, act, NULL, rows);
}
