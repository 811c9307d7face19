/* gpu: the few things of the CUDA runtime that the host code needs, so that the same code also runs where
 * there is no GPU. gpu_cuda.c is these functions over the CUDA runtime; host/gpu_host.cpp is the same on the
 * host, where device memory is memory, a copy is a memcpy, and a graph is a list of calls.
 *
 * Every function that can fail returns 0 or an error, a cudaError_t. A stream, an event and a graph belong to
 * the GPU that was current when they were made (gpu_use). */
#ifndef TIMBRE_KERNELS_CUDA_GPU_H
#define TIMBRE_KERNELS_CUDA_GPU_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { /* those that the host code tells apart; the numbers are cudaError_t's */
       GPU_OK = 0,
       GPU_INVALID_VALUE = 1,
       GPU_OUT_OF_MEMORY = 2,
       GPU_INVALID_CONFIGURATION = 9,
       GPU_NO_DEVICE = 100,
       GPU_ILLEGAL_ADDRESS = 700,
       GPU_LAUNCH_FAILURE = 719,
       GPU_CAPTURE_INVALIDATED = 901,
};

struct gpu_stream; /* a cudaStream_t */
struct gpu_event;  /* a cudaEvent_t */
struct gpu_graph;  /* a cudaGraphExec_t */

struct gpu_info {
    char name[256]; /* "NVIDIA H200" */
    int sm;         /* compute capability, such as 90 */
    int multiprocessors;
    size_t memory_bytes, memory_free_bytes;
    size_t shared_bytes_max; /* of a block, when asked for */
};

/* "cudaErrorIllegalAddress: an illegal memory access was encountered". Static. */
const char *gpu_error_text(int error);
/* Whether nothing on this GPU will work any more in this process. */
bool gpu_error_is_lost(int error);

int gpu_count(int *count);
int gpu_get_info(int index, struct gpu_info *info);
int gpu_use(int index); /* for the calling thread, until it says otherwise; cheap */

int gpu_memory_new(void **p, size_t bytes); /* aligned to 256 bytes */
void gpu_memory_del(void *p);               /* NULL is fine */
int gpu_pinned_new(void **p, size_t bytes);
void gpu_pinned_del(void *p);

int gpu_stream_new(struct gpu_stream **s);
void gpu_stream_del(struct gpu_stream *s);
int gpu_stream_wait(struct gpu_stream *s); /* until all of it is done; with the first error of it */
int gpu_stream_wait_event(struct gpu_stream *s, struct gpu_event *e); /* what follows in s waits for e */
int gpu_event_new(struct gpu_event **e);
void gpu_event_del(struct gpu_event *e);
int gpu_event_record(struct gpu_event *e, struct gpu_stream *s);

/* In order with the stream's kernels; copies to and from pinned memory return at once. */
int gpu_copy_in(void *to_device, const void *from_host, size_t bytes, struct gpu_stream *s);
int gpu_copy_out(void *to_host, const void *from_device, size_t bytes, struct gpu_stream *s);
int gpu_copy_within(void *to_device, const void *from_device, size_t bytes, struct gpu_stream *s);
int gpu_zero(void *p, size_t bytes, struct gpu_stream *s);

/* Between begin and end nothing runs: what is put into the stream is kept in the graph (end gives it even
 * when nothing was). Errors of what was put there come out of end. */
int gpu_capture_begin(struct gpu_stream *s);
int gpu_capture_end(struct gpu_stream *s, struct gpu_graph **g);
int gpu_graph_launch(struct gpu_graph *g, struct gpu_stream *s);
void gpu_graph_del(struct gpu_graph *g);

int gpu_last_error(void); /* of the kernel launches of this thread since the last call */

#ifdef __cplusplus
}
#endif
#endif
