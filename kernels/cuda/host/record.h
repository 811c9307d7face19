/* record: what else of the host side belongs to a stream (host/blas_host.c, dnn_host.c, shim.cpp) does while
 * the stream captures. */
#ifndef TIMBRE_KERNELS_CUDA_HOST_RECORD_H
#define TIMBRE_KERNELS_CUDA_HOST_RECORD_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* True when the stream captures: then the call run(arg) was kept, with a copy of arg's bytes (aligned to 16),
 * to be made whenever the graph is launched, and must not be made now. False: make it now. */
bool gpu_host_record(struct gpu_stream *s, void (*run)(void *arg), const void *arg, size_t arg_bytes);

/* Makes the call, or keeps it as above; what it does to device memory is then the GPU's doing (memory.h). */
void gpu_host_put(struct gpu_stream *s, void (*run)(void *arg), void *arg, size_t arg_bytes);

/* Between these device memory may be touched by the host for the GPU (memory.h, strict mode). They nest, and
 * count the threads that are there. */
void gpu_host_enter(void);
void gpu_host_leave(void);

/* For the next gpu_last_error of this thread, and for the end of the capture where the stream (may be NULL)
 * is in one. The first error stays. */
void gpu_host_set_error(struct gpu_stream *s, int error);

/* Whether kernels may be put into the stream by this thread now: its GPU is the current one. */
bool gpu_host_is_current(const struct gpu_stream *s);

#ifdef __cplusplus
}
#endif
#endif
