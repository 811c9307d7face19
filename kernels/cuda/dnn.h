/* dnn: convolutions over the tape through cuDNN (dnn_cuda.c), or by plain loops on the host
 * (host/dnn_host.c). libcudnn is loaded by dlopen when somebody asks for it: half the size of an
 * installation.
 *
 * A plan is for a fixed number of rows, and making one compiles for about a second. So there are plans for
 * DNN_ROWS_LARGE and DNN_ROWS_SMALL output rows, of the same engine and the same knobs, that an input of any
 * length is cut into; what the last piece computes beyond the end nobody reads, but there must be memory for
 * it (dnn_count_rows). A row's sum is the same in both and at every place, which tests/gpu.sh shows bit for
 * bit. */
#ifndef TIMBRE_KERNELS_CUDA_DNN_H
#define TIMBRE_KERNELS_CUDA_DNN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/cuda/launch.h"

enum { DNN_ROWS_LARGE = 8192, DNN_ROWS_SMALL = 512, DNN_PLANS_MAX = 32 };

struct dnn;

struct dnn_shape {
    int in, out, kernel, stride;
    bool has_bias;
    enum cuda_activation act; /* fused where cuDNN offers it; see dnn_plan */
};

/* On the current GPU. Error: UNAVAILABLE (libcudnn cannot be loaded, or refuses: why). */
int dnn_new(struct dnn **d, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st);
void dnn_del(struct dnn *d); /* NULL is fine */

/* Output rows that dnn_run writes for `rows` wanted: `rows` rounded up to whole pieces. */
int64_t dnn_count_rows(int64_t rows);

/* Makes the plans of a shape, at the first call. *act_done: bias and activation are fused; else the caller
 * applies both. *plan = -1 when cuDNN has no engine for it. Error: UNAVAILABLE. Allocates its workspace. */
int dnn_plan(struct dnn *d, const struct dnn_shape *s, int *plan, bool *act_done, struct status *st);

/* y [dnn_count_rows(rows), out]; x [(that - 1) * stride + kernel, in]; w [out, kernel, in]; bias [out] of the
 * type, or NULL. 0 or an error of gpu.h. */
int dnn_run(struct dnn *d, int plan, void *y, const void *x, const void *w, const void *bias, int64_t rows);

#endif
