/* The operations of kernels.h: which kernel or library computes each. */
#include "kernels/cuda/internal.h"

_Static_assert((int)CUDA_TANH == (int)KERNELS_TANH && (int)CUDA_GELU == (int)KERNELS_GELU &&
                   (int)CUDA_SILU == (int)KERNELS_SILU,
               "cuda_activation has the numbers of kernels_activation");
_Static_assert((int)CUDA_POOL_MAX == (int)KERNELS_POOL_MAX && (int)CUDA_POOL_SUM == (int)KERNELS_POOL_SUM,
               "cuda_pooling has the numbers of kernels_pool");

enum operation {
    OP_INPUT_NORM = 1,
    OP_GROUP_STATS,
    OP_CONV,
    OP_COMPACT,
    OP_LAYER_NORM,
    OP_LINEAR,
    OP_POS_CONV,
    OP_ATTENTION,
    OP_ACCUMULATE,
    OP_POOL,
    OP_HEAD_LINEAR,
};

static enum cuda_activation as_cuda(enum kernels_activation act) {
    return (enum cuda_activation)act;
}

static size_t element_bytes(const struct kernels_device *d) {
    return d->type == CUDA_BF16 ? 2 : sizeof(float);
}

/* `count` elements of the activations' type after p. */
static const void *after(const struct kernels_device *d, const void *p, int64_t count) {
    return (const char *)p + (size_t)count * element_bytes(d);
}

/* A product's last step in cuBLASLt: GELU is its tanh form, which is off by at most 4.7e-4, a tenth of what
 * rounding the result to bf16 is. fp32 has the exact form, in a kernel of our own. */
static bool is_fused(const struct kernels_device *d, enum kernels_activation act) {
    return d->type == CUDA_BF16 && (act == KERNELS_GELU || act == KERNELS_GELU_TANH);
}

static enum blas_epilogue choose_epilogue(bool bias, bool gelu) {
    if (gelu)
        return bias ? BLAS_BIAS_GELU : BLAS_GELU;
    return bias ? BLAS_BIAS : BLAS_NONE;
}

/* The plan of a shape; -1 also after an error. */
static int find_plan(struct kernels_device *d, const struct blas_shape *s) {
    int plan = -1;
    struct status st;
    if (blas_plan(d->blas, s, &plan, &st)) {
        cuda_fail(d, st.code, "%s", st.message);
        return -1;
    }
    return plan;
}

void cuda_op_input_norm(struct kernels_device *d, float *y, const float *x, const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_INPUT_NORM, .y = y, .x = x}))
        return;
    cuda_input_norm(&d->launch, y, x, d->norm_partial, d->norm_stats);
    cuda_note(d, gpu_last_error());
}

void cuda_op_group_stats(struct kernels_device *d, float *stats, const float *x,
                         const struct kernels_weight *w, const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(
            d, &(struct cuda_call){.operation = OP_GROUP_STATS, .y = stats, .x = x, .w = w->packed}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    cuda_group_stats(&d->launch, stats, x, p.matrix, p.bias, d->moments_partial, d->moments, w->kernel,
                     w->stride, w->out, w->eps);
    cuda_note(d, gpu_last_error());
}

static void convolve_first(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                           const struct cuda_weight *p, enum kernels_activation act, const float *stats,
                           struct kernels_rows rows) {
    cuda_conv_first(&d->launch, y, x, p->matrix, p->bias, stats, p->norm_weight, p->norm_bias, as_cuda(act),
                    w->kernel, w->stride, w->out, rows.first, rows.count);
}

/* Through cuDNN; false when it does not offer this convolution. */
static bool convolve_dnn(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                         const struct cuda_weight *p, enum kernels_activation act, int64_t rows) {
    const struct dnn_shape s = {w->in, w->out, w->kernel, w->stride, w->has_bias, as_cuda(act)};
    struct status st;
    bool act_done = false;
    int plan = -1;
    if (!d->dnn || w->stride > CUDA_DNN_STRIDE_MAX || w->kernel > CUDA_DNN_KERNEL_MAX)
        return false;
    if (dnn_plan(d->dnn, &s, &plan, &act_done, &st)) {
        cuda_fail(d, st.code, "%s", st.message);
        return true;
    }
    if (plan < 0)
        return false;
    cuda_note(d, dnn_run(d->dnn, plan, y, x, p->matrix, w->has_bias ? p->bias_typed : NULL, rows));
    if (!act_done)
        cuda_bias_act(&d->launch, y, y, w->has_bias ? p->bias : NULL, as_cuda(act), NULL, rows, w->out);
    return true;
}

/* As products: row r of the tape's matrix begins at x + r * stride * in, and as many taps as the stride has
 * fit before the next row begins; the others follow, added to what is there. A library that takes overlapping
 * rows does it in one. */
static void convolve_gemm(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                          const struct cuda_weight *p, enum kernels_activation act, int64_t rows) {
    const int taps_max = blas_takes_overlap(d->blas) ? w->kernel : w->stride;
    const bool gelu = is_fused(d, act);
    int plans[2] = {-1, -1}; /* of the first product and of the last */
    for (int tap = 0; tap < w->kernel; tap += taps_max) {
        const bool last = tap + taps_max >= w->kernel;
        const int taps = last ? w->kernel - tap : taps_max;
        const struct blas_shape s = {.in = taps * w->in,
                                     .out = w->out,
                                     .x_stride = (int64_t)w->stride * w->in,
                                     .w_stride = (int64_t)w->kernel * w->in,
                                     .accumulate = tap > 0,
                                     .epilogue = last ? choose_epilogue(w->has_bias, gelu) : BLAS_NONE};
        plans[last] = find_plan(d, &s);
        if (plans[last] < 0)
            break;
        cuda_note(d, blas_run(d->blas, plans[last], y, after(d, x, (int64_t)tap * w->in),
                              after(d, p->matrix, (int64_t)tap * w->in),
                              last && w->has_bias ? p->bias_typed : NULL, tap > 0 ? y : NULL, rows));
    }
    if (d->failure.code != STATUS_OK)
        return;
    if (plans[1] < 0)
        cuda_linear_plain(&d->launch, y, x, (int64_t)w->stride * w->in, p->matrix, (int64_t)w->kernel * w->in,
                          w->has_bias ? p->bias : NULL, as_cuda(act), NULL, rows, w->kernel * w->in, w->out);
    else if (act != KERNELS_IDENTITY && !gelu)
        cuda_bias_act(&d->launch, y, y, NULL, as_cuda(act), NULL, rows, w->out);
}

void cuda_op_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                  enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                  const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_CONV,
                                                  .y = y,
                                                  .x = x,
                                                  .w = w->packed,
                                                  .more = stats,
                                                  .first = rows.first,
                                                  .count = rows.count,
                                                  .channels = level,
                                                  .act = act}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    const bool normed = w->norm == KERNELS_NORM_LAYER; /* then the activation comes after the norm */
    const enum kernels_activation before = normed ? KERNELS_IDENTITY : act;
    if (w->in == 1)
        convolve_first(d, y, x, w, &p, before, stats, rows);
    else if (!convolve_dnn(d, y, x, w, &p, before, rows.count))
        convolve_gemm(d, y, x, w, &p, before, rows.count);
    if (normed)
        cuda_layer_norm(&d->launch, y, y, p.norm_weight, p.norm_bias, w->eps, as_cuda(act), rows.count,
                        w->out);
    cuda_note(d, gpu_last_error());
}

void cuda_op_compact(struct kernels_device *d, void *y, const void *x, int channels, struct kernels_rows rows,
                     const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_COMPACT,
                                                  .y = y,
                                                  .x = x,
                                                  .first = rows.first,
                                                  .count = rows.count,
                                                  .channels = channels}))
        return;
    cuda_compact(&d->launch, y, x, channels, rows.first, rows.count);
    cuda_note(d, gpu_last_error());
}

void cuda_op_layer_norm(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                        int64_t rows) {
    if (!cuda_graphs_enter(d, &(struct cuda_call){
                                  .operation = OP_LAYER_NORM, .y = y, .x = x, .w = w->packed, .count = rows}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    cuda_layer_norm(&d->launch, y, x, p.matrix, p.bias, w->eps, CUDA_IDENTITY, rows, w->out);
    cuda_note(d, gpu_last_error());
}

void cuda_op_linear(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                    enum kernels_activation act, const void *residual, int64_t rows) {
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_LINEAR,
                                                  .y = y,
                                                  .x = x,
                                                  .w = w->packed,
                                                  .more = residual,
                                                  .count = rows,
                                                  .act = act}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    const bool gelu = is_fused(d, act) && !residual;
    const struct blas_shape s = {.in = w->in,
                                 .out = w->out,
                                 .x_stride = w->in,
                                 .w_stride = w->in,
                                 .accumulate = residual != NULL,
                                 .epilogue = choose_epilogue(w->has_bias, gelu)};
    /* The library adds the residual before the activation, kernels.h after it: no model has both. */
    const int plan = residual && act != KERNELS_IDENTITY ? -1 : find_plan(d, &s);
    if (d->failure.code != STATUS_OK)
        return;
    if (plan < 0) {
        cuda_linear_plain(&d->launch, y, x, w->in, p.matrix, w->in, w->has_bias ? p.bias : NULL, as_cuda(act),
                          residual, rows, w->in, w->out);
    } else {
        cuda_note(d,
                  blas_run(d->blas, plan, y, x, p.matrix, w->has_bias ? p.bias_typed : NULL, residual, rows));
        if (act != KERNELS_IDENTITY && !gelu)
            cuda_bias_act(&d->launch, y, y, NULL, as_cuda(act), NULL, rows, w->out);
    }
    cuda_note(d, gpu_last_error());
}

void cuda_op_pos_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                      enum kernels_activation act, const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(
            d, &(struct cuda_call){.operation = OP_POS_CONV, .y = y, .x = x, .w = w->packed, .act = act}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    cuda_pos_conv(&d->launch, y, x, p.matrix, p.bias, p.input_scale, p.input_shift, as_cuda(act), w->kernel,
                  w->groups, w->out);
    cuda_note(d, gpu_last_error());
}

/* Whether a clip of n tokens goes through cuBLAS: that must depend on nothing else. */
static bool is_for_blas(const struct kernels_device *d, int64_t n, int heads) {
    return d->scores && heads <= d->limits.heads && n <= CUDA_SCORES_KEYS_MAX;
}

/* One clip: all heads' scores, their softmax, and the values. */
static void attend_blas(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                        float scale, int n) {
    const int64_t stride = (n + 7) / 8 * 8;
    cuda_note(d, blas_scores(d->blas, d->scores, stride, qkv, n, heads, head_dim));
    cuda_softmax(&d->launch, d->scores, (int64_t)heads * n, n, stride, scale);
    cuda_note(d, blas_values(d->blas, y, d->scores, stride, qkv, n, heads, head_dim));
}

void cuda_op_attention(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                       float scale, const struct batch *b) {
    const int64_t hidden = (int64_t)heads * head_dim;
    int others = 0; /* clips for the fused kernel, which takes all in one launch */
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_ATTENTION,
                                                  .y = y,
                                                  .x = qkv,
                                                  .first = heads,
                                                  .count = head_dim,
                                                  .number = scale}))
        return;
    for (int c = 0; c < b->clips; c++)
        others += !is_for_blas(d, b->cu_tokens[c + 1] - b->cu_tokens[c], heads);
    if (others && head_dim > CUDA_HEAD_DIM_MAX)
        cuda_fail(d, STATUS_UNAVAILABLE, "attention heads of %d: the limit is %d", head_dim,
                  CUDA_HEAD_DIM_MAX);
    else if (others)
        cuda_attention(&d->launch, y, qkv, heads, head_dim, scale);
    for (int c = 0; c < b->clips && others < b->clips; c++) {
        const int64_t first = b->cu_tokens[c], n = b->cu_tokens[c + 1] - first;
        if (is_for_blas(d, n, heads))
            attend_blas(d, (char *)y + (size_t)(first * hidden) * element_bytes(d),
                        after(d, qkv, first * 3 * hidden), heads, head_dim, scale, (int)n);
    }
    cuda_note(d, gpu_last_error());
}

void cuda_op_accumulate(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                        int64_t rows, int channels) {
    if (!cuda_graphs_enter(d, &(struct cuda_call){.operation = OP_ACCUMULATE,
                                                  .y = y,
                                                  .x = x,
                                                  .first = first,
                                                  .count = rows,
                                                  .channels = channels,
                                                  .number = weight}))
        return;
    cuda_accumulate(&d->launch, y, x, weight, first, rows * channels);
    cuda_note(d, gpu_last_error());
}

void cuda_op_pool(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                  const struct batch *b) {
    (void)b;
    if (!cuda_graphs_enter(
            d, &(struct cuda_call){.operation = OP_POOL, .y = y, .x = x, .first = kind, .count = channels}))
        return;
    cuda_pool(&d->launch, y, x, (enum cuda_pooling)kind, channels);
    cuda_note(d, gpu_last_error());
}

void cuda_op_head_linear(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                         enum kernels_activation act, int64_t rows) {
    if (!cuda_graphs_enter(
            d, &(struct cuda_call){.operation = OP_HEAD_LINEAR, .y = y, .x = x, .w = w->packed, .act = act}))
        return;
    const struct cuda_weight p = cuda_weight_of(d, w);
    if (!d->in_batch)
        cuda_plan_clips(d, rows);
    cuda_head_linear(&d->launch, y, x, p.matrix, p.bias, as_cuda(act), w->in, w->out);
    cuda_note(d, gpu_last_error());
}
