/* blas_overlap: whether cuBLASLt computes products whose rows of x overlap. Its contract says no, its kernels
 * for the most part do; so it is asked to, and what it computes is compared with sums made on the host. */
#ifndef TIMBRE_KERNELS_CUDA_BLAS_OVERLAP_H
#define TIMBRE_KERNELS_CUDA_BLAS_OVERLAP_H

#include <stdbool.h>

#include "base/status.h"
#include "kernels/cuda/blas.h"

/* Tried once in a process for the GPUs of a kind and a type, so that all workers agree; takes some memory of
 * the GPU and a tenth of a second. *taken: the library takes such shapes and is right. Errors: UNAVAILABLE,
 * RESOURCE_EXHAUSTED, when that could not be found out. */
int blas_try_overlap(struct blas *b, enum cuda_type type, int sm, struct gpu_stream *stream, bool *taken,
                     struct status *st);

#endif
