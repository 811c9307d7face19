/* blas: matrix products through cuBLASLt and cuBLAS (blas_cuda.c), or by plain loops on the host
 * (host/blas_host.c).
 *
 * Invariance: one algorithm for each shape of weight, whatever the number of rows, and never one that splits
 * the inner dimension. It is chosen without timing, by the library's heuristics for BLAS_PLAN_ROWS rows, so
 * that every process on the same GPU with the same library chooses alike; the choice is kept for the process
 * (by compute capability), so that all workers and all GPUs of a kind agree. */
#ifndef TIMBRE_KERNELS_CUDA_BLAS_H
#define TIMBRE_KERNELS_CUDA_BLAS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/cuda/launch.h"

enum {
    BLAS_PLAN_ROWS = 1024, /* TIMBRE_CUDA_PLAN_ROWS changes it, for measuring */
    BLAS_PLANS_MAX = 128,
    BLAS_WORKSPACE_BYTES = 32 << 20,
};

struct blas; /* handles, workspace and the plans of one stream; one owner at a time */

/* y [rows, out] = epilogue(x w^T [+ y or c]): row r of x at x + r * x_stride elements, row o of w at w +
 * o * w_stride. All of one type, sums in fp32 (no TF32). */
enum blas_epilogue {
    BLAS_NONE,
    BLAS_BIAS,     /* + bias [out], of the type of y */
    BLAS_GELU,     /* tanh form, as the library has it */
    BLAS_BIAS_GELU /* likewise, after the bias */
};
struct blas_shape {
    int in, out;
    int64_t x_stride, w_stride;
    bool accumulate; /* c [rows, out] is added before the epilogue's activation; c may be y */
    enum blas_epilogue epilogue;
};

/* On the current GPU. Errors: UNAVAILABLE (a library fails: which, how), RESOURCE_EXHAUSTED. */
int blas_new(struct blas **b, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st);
void blas_del(struct blas *b); /* NULL is fine */
/* Bytes of device memory for `workspace`, which blas_new's caller gives before the first run. */
void blas_set_workspace(struct blas *b, void *workspace, size_t bytes);

/* The plan for a shape, made at the first call (not while a stream captures): *plan for blas_run, or -1 when
 * the library has no algorithm for it and cuda_linear_plain must do. Errors: UNAVAILABLE (too many shapes, or
 * the library fails). */
int blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st);

/* 0 or an error of gpu.h (a failure of the library is GPU_LAUNCH_FAILURE; its name goes to the log). rows may
 * be 0. bias and c NULL where the shape has none. */
int blas_run(struct blas *b, int plan, void *y, const void *x, const void *w, const void *bias, const void *c,
             int64_t rows);

/* Whether a shape whose rows of x overlap (x_stride < in) may be planned: the library's contract says no; a
 * product that was compared with its two halves at start says whether this one computes it. */
bool blas_takes_overlap(const struct blas *b);

/* Attention of one clip, head by head as one batch. qkv [n, 3 * heads * head_dim], scores [heads, n, stride]
 * of the type: scores = q k^T. And y [n, heads * head_dim] = scores v. The algorithm depends on n alone. */
int blas_scores(struct blas *b, void *scores, int64_t stride, const void *qkv, int n, int heads,
                int head_dim);
int blas_values(struct blas *b, void *y, const void *scores, int64_t stride, const void *qkv, int n,
                int heads, int head_dim);

#endif
