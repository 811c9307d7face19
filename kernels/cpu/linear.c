/* Linear layers. */
#include <assert.h>

#include "kernels/cpu/gemm.h"

void CPU_NAME(linear)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                      enum kernels_activation act, const void *residual, int64_t rows) {
    const struct cpu_packed *p = w->packed;
    assert(p->ops == d->ops);
    const struct gemm g = {.a = x,
                           .a_stride = w->in,
                           .b = p->matrix,
                           .k = p->k,
                           .n = p->n,
                           .y = y,
                           .y_stride = w->out,
                           .bias = p->bias,
                           .residual = residual,
                           .act = act};
    gemm_run(d, &g, rows);
}

void CPU_NAME(head_linear)(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                           enum kernels_activation act, int64_t rows) {
    CPU_NAME(linear)(d, y, x, w, act, NULL, rows);
}
