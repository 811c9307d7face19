/* memory: device memory on the host, and whose it is to touch.
 *
 * With TIMBRE_SHIM_STRICT=1 the host cannot read or write device memory but by the functions of gpu.h: it
 * faults, as it would with a GPU. And what kernels and copies are given must be device memory where it has to
 * be, for kernels also pinned memory: else a message and abort. Pointers inside of structs are not looked at.
 */
#ifndef TIMBRE_KERNELS_CUDA_HOST_MEMORY_H
#define TIMBRE_KERNELS_CUDA_HOST_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum { GPU_HOST_GPUS_MAX = 16 };
static const size_t GPU_HOST_MEMORY_BYTES = static_cast<size_t>(8) << 30;

/* gpu_host.cpp: the GPU of this thread, -1 when there is none; 0, or the error of what may not be called
 * while this thread captures. */
int gpu_host_current(void);
int gpu_host_refuse_in_capture(void);

size_t gpu_host_free_bytes(int gpu);

void gpu_host_check_device(const char *what, const void *p, size_t bytes);
void gpu_host_check_host(const char *what, const void *p);
void gpu_host_check_argument(const char *kernel, const void *p); /* NULL is fine */

#endif
