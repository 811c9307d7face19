/* The positional convolution, as kernels.h defines it. */
#include "kernels/ref/internal.h"

/* Output channel o at token t of a clip of n tokens whose first is row x. */
static double convolve(const struct kernels_weight *w, const float *x, int64_t n, int64_t t, int o) {
    const struct ref_packed *p = w->packed;
    int in = w->in / w->groups, first = o / (w->out / w->groups) * in; /* the group's input channels */
    double sum = p->bias[o];
    for (int k = 0; k < w->kernel; k++) {
        int64_t row = t + k - w->kernel / 2;
        if (row < 0 || row >= n)
            continue;
        for (int i = 0; i < in; i++) {
            int c = first + i;
            float v = x[row * w->in + c] * p->input_scale[c] + p->input_shift[c];
            sum += (double)p->weight[((int64_t)o * in + i) * w->kernel + k] * v;
        }
    }
    return sum;
}

void ref_pos_conv(struct kernels_device *d, void *to, const void *from, const struct kernels_weight *w,
                  enum kernels_activation act, const struct batch *b) {
    (void)d;
    for (int c = 0; c < b->clips; c++) {
        int64_t first = b->cu_tokens[c], n = b->cu_tokens[c + 1] - first;
        const float *x = (const float *)from + first * w->in;
        float *y = (float *)to + first * w->out;
        for (int64_t t = 0; t < n; t++)
            for (int o = 0; o < w->out; o++)
                y[t * w->out + o] = x[t * w->in + o] + ref_activate(act, (float)convolve(w, x, n, t, o));
    }
}
