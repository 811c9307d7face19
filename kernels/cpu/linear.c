/* Linear layers. */
#include <assert.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/quantize.h"

static struct gemm make_gemm(const struct kernels_weight *w, void *y, const void *x,
                             enum kernels_activation act) {
    const struct cpu_packed *p = w->packed;
    return (struct gemm){.kind = p->kind,
                         .a = x,
                         .a_stride = gemm_words(p->kind, p->k) * (int64_t)sizeof(word),
                         .b = p->matrix,
                         .k = p->k,
                         .n = p->n,
                         .y = y,
                         .y_stride = w->out,
                         .scale = p->column_scale,
                         .bias = p->bias,
                         .act = act};
}

void CPU_NAME(linear)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                      enum kernels_activation act, const void *residual, int64_t rows) {
    const struct cpu_packed *p = w->packed;
    struct gemm g = make_gemm(w, y, x, act);
    assert(p->ops == d->ops);
    g.residual = residual;
#if CPU_HAS_INT8
    if (p->kind == CPU_INT8) {
        quantize_rows(d, x, rows, w->in);
        g.a = d->quantized;
        g.segments = g.row_step = 1;
        g.row_scale = d->row_scale;
        g.row_min = d->row_min;
        g.column_sums = p->column_sums;
    }
#endif
    if (p->kind == CPU_BF16)
        g.a_stride = w->in * (int64_t)sizeof(element);
    gemm_run(d, &g, rows);
}

void CPU_NAME(head_linear)(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                           enum kernels_activation act, int64_t rows) {
    struct gemm g = make_gemm(w, y, x, act);
    g.y_fp32 = true;
    gemm_run(d, &g, rows);
}
