/* input_norm, layer_norm, and the activations, as kernels.h defines them. */
#include <math.h>
#include <string.h>

#include "kernels/ref/internal.h"

float ref_activate(enum kernels_activation act, float value) {
    double x = value;
    switch (act) {
    case KERNELS_IDENTITY:
        return value;
    case KERNELS_GELU:
        return (float)(0.5 * x * (1.0 + erf(x * 0.70710678118654752440)));
    case KERNELS_GELU_TANH:
        return (float)(0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))));
    case KERNELS_RELU:
        return value < 0.0f ? 0.0f : value;
    case KERNELS_SILU:
        return (float)(x / (1.0 + exp(-x)));
    case KERNELS_TANH:
        return (float)tanh(x);
    }
    return NAN;
}

void ref_input_norm(struct kernels_device *d, float *y, const float *x, const struct batch *b) {
    (void)d;
    for (int c = 0; c < b->clips; c++) {
        int64_t n = batch_rows(b, 0, c), start = b->offset[c];
        int64_t end = c + 1 < b->clips ? b->offset[c + 1] : b->tape_rows[0];
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < n; i++)
            sum += x[start + i];
        double mean = sum / (double)n;
        for (int64_t i = 0; i < n; i++)
            squares += (x[start + i] - mean) * (x[start + i] - mean);
        double scale = 1.0 / sqrt(squares / (double)n + 1e-7);
        for (int64_t i = 0; i < n; i++)
            y[start + i] = (float)((x[start + i] - mean) * scale);
        for (int64_t i = start + n; i < end; i++)
            y[i] = 0.0f;
    }
}

void ref_layer_norm(struct kernels_device *d, void *to, const void *from, const struct kernels_weight *w,
                    int64_t rows) {
    const struct ref_packed *p = w->packed;
    (void)d;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)from + r * w->out;
        float *y = (float *)to + r * w->out;
        double sum = 0, squares = 0;
        for (int i = 0; i < w->out; i++)
            sum += x[i];
        double mean = sum / w->out;
        for (int i = 0; i < w->out; i++)
            squares += (x[i] - mean) * (x[i] - mean);
        double scale = 1.0 / sqrt(squares / w->out + w->eps);
        for (int i = 0; i < w->out; i++)
            y[i] = (float)((x[i] - mean) * scale * p->weight[i] + p->bias[i]);
    }
}
