/* gpu.h over the CUDA runtime's C API. */
#include "kernels/cuda/gpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

_Static_assert(GPU_INVALID_VALUE == (int)cudaErrorInvalidValue, "gpu.h");
_Static_assert(GPU_OUT_OF_MEMORY == (int)cudaErrorMemoryAllocation, "gpu.h");
_Static_assert(GPU_INVALID_CONFIGURATION == (int)cudaErrorInvalidConfiguration, "gpu.h");
_Static_assert(GPU_NO_DEVICE == (int)cudaErrorNoDevice, "gpu.h");
_Static_assert(GPU_ILLEGAL_ADDRESS == (int)cudaErrorIllegalAddress, "gpu.h");
_Static_assert(GPU_LAUNCH_FAILURE == (int)cudaErrorLaunchFailure, "gpu.h");
_Static_assert(GPU_CAPTURE_INVALIDATED == (int)cudaErrorStreamCaptureInvalidated, "gpu.h");

/* Whoever gets an error here has it; it must not come up again as that of a later kernel launch. */
static int take(cudaError_t e) {
    if (e != cudaSuccess)
        (void)cudaGetLastError();
    return (int)e;
}

const char *gpu_error_text(int error) {
    /* The texts that were asked for so far; each stays as it is for the life of the process. */
    enum { TEXTS_MAX = 64 };
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        int error;
        char text[256];
    } texts[TEXTS_MAX];
    static int count;

    const char *name = cudaGetErrorName((cudaError_t)error);
    const char *text = name;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < count && texts[i].error != error)
        i++;
    if (i == count && count < TEXTS_MAX) {
        texts[i].error = error;
        (void)snprintf(texts[i].text, sizeof texts[i].text, "%s: %s", name,
                       cudaGetErrorString((cudaError_t)error));
        count++;
    }
    if (i < count)
        text = texts[i].text;
    pthread_mutex_unlock(&lock);
    return text;
}

/* Those after which, as driver_types.h has it, the process must be terminated and relaunched, and those that
 * say that the GPU, its memory or the server between is no longer there. */
bool gpu_error_is_lost(int error) {
    switch (error) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
        return true;
    default:
        return false;
    }
}

int gpu_count(int *count) {
    *count = 0;
    return take(cudaGetDeviceCount(count));
}

/* The free memory of a GPU can only be asked for while it is current. */
static cudaError_t get_memory(int index, size_t *free_bytes, size_t *bytes) {
    int before = 0;
    cudaError_t e = cudaGetDevice(&before);
    if (e == cudaSuccess && before != index)
        e = cudaSetDevice(index);
    if (e == cudaSuccess) {
        e = cudaMemGetInfo(free_bytes, bytes);
        cudaError_t back = before != index ? cudaSetDevice(before) : cudaSuccess;
        e = e != cudaSuccess ? e : back;
    }
    return e;
}

int gpu_get_info(int index, struct gpu_info *info) {
    memset(info, 0, sizeof *info);
    struct cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e != cudaSuccess)
        return take(e);
    (void)snprintf(info->name, sizeof info->name, "%.*s", (int)sizeof p.name, p.name);
    info->sm = p.major * 10 + p.minor;
    info->multiprocessors = p.multiProcessorCount;
    info->shared_bytes_max = p.sharedMemPerBlockOptin;
    return take(get_memory(index, &info->memory_free_bytes, &info->memory_bytes));
}

int gpu_use(int index) {
    return take(cudaSetDevice(index));
}

int gpu_memory_new(void **p, size_t bytes) {
    *p = NULL;
    return take(cudaMalloc(p, bytes > 0 ? bytes : 1));
}

void gpu_memory_del(void *p) {
    if (p != NULL)
        (void)take(cudaFree(p));
}

int gpu_pinned_new(void **p, size_t bytes) {
    *p = NULL;
    /* Portable: pinned for every GPU, not only for the one that is current. */
    return take(cudaHostAlloc(p, bytes > 0 ? bytes : 1, cudaHostAllocPortable));
}

void gpu_pinned_del(void *p) {
    if (p != NULL)
        (void)take(cudaFreeHost(p));
}

int gpu_stream_new(struct gpu_stream **s) {
    *s = NULL;
    /* Non-blocking: it does not wait for what others put into the default stream. */
    return take(cudaStreamCreateWithFlags((cudaStream_t *)(void *)s, cudaStreamNonBlocking));
}

void gpu_stream_del(struct gpu_stream *s) {
    if (s != NULL)
        (void)take(cudaStreamDestroy((cudaStream_t)(void *)s));
}

int gpu_stream_wait(struct gpu_stream *s) {
    return take(cudaStreamSynchronize((cudaStream_t)(void *)s));
}

int gpu_stream_wait_event(struct gpu_stream *s, struct gpu_event *e) {
    return take(cudaStreamWaitEvent((cudaStream_t)(void *)s, (cudaEvent_t)(void *)e, 0));
}

int gpu_event_new(struct gpu_event **e) {
    *e = NULL;
    return take(cudaEventCreateWithFlags((cudaEvent_t *)(void *)e, cudaEventDisableTiming));
}

void gpu_event_del(struct gpu_event *e) {
    if (e != NULL)
        (void)take(cudaEventDestroy((cudaEvent_t)(void *)e));
}

int gpu_event_record(struct gpu_event *e, struct gpu_stream *s) {
    return take(cudaEventRecord((cudaEvent_t)(void *)e, (cudaStream_t)(void *)s));
}

static int copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, struct gpu_stream *s) {
    return bytes == 0 ? GPU_OK : take(cudaMemcpyAsync(to, from, bytes, kind, (cudaStream_t)(void *)s));
}

int gpu_copy_in(void *to_device, const void *from_host, size_t bytes, struct gpu_stream *s) {
    return copy(to_device, from_host, bytes, cudaMemcpyHostToDevice, s);
}

int gpu_copy_out(void *to_host, const void *from_device, size_t bytes, struct gpu_stream *s) {
    return copy(to_host, from_device, bytes, cudaMemcpyDeviceToHost, s);
}

int gpu_copy_within(void *to_device, const void *from_device, size_t bytes, struct gpu_stream *s) {
    return copy(to_device, from_device, bytes, cudaMemcpyDeviceToDevice, s);
}

int gpu_zero(void *p, size_t bytes, struct gpu_stream *s) {
    return bytes == 0 ? GPU_OK : take(cudaMemsetAsync(p, 0, bytes, (cudaStream_t)(void *)s));
}

int gpu_capture_begin(struct gpu_stream *s) {
    /* Thread local: what other threads do meanwhile, such as allocating, is their own affair. */
    return take(cudaStreamBeginCapture((cudaStream_t)(void *)s, cudaStreamCaptureModeThreadLocal));
}

int gpu_capture_end(struct gpu_stream *s, struct gpu_graph **g) {
    *g = NULL;
    cudaStream_t stream = (cudaStream_t)(void *)s;
    /* A launch that was refused need not have invalidated the capture: the graph would lack its kernel. */
    cudaError_t launches = cudaGetLastError();
    cudaGraph_t template = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t e = cudaStreamEndCapture(stream, &template);
    if (launches != cudaSuccess)
        e = launches;
    if (e == cudaSuccess) {
        e = cudaGraphInstantiate(&exec, template, 0);
    }
    if (template != NULL) {
        cudaError_t destroyed = cudaGraphDestroy(template);
        e = e != cudaSuccess ? e : destroyed;
    }
    if (e == cudaSuccess)
        e = cudaGraphUpload(exec, stream); /* or the first launch would pay for it */
    if (e != cudaSuccess) {
        if (exec != NULL)
            (void)cudaGraphExecDestroy(exec);
        return take(e);
    }
    *g = (struct gpu_graph *)(void *)exec;
    return GPU_OK;
}

int gpu_graph_launch(struct gpu_graph *g, struct gpu_stream *s) {
    return take(cudaGraphLaunch((cudaGraphExec_t)(void *)g, (cudaStream_t)(void *)s));
}

void gpu_graph_del(struct gpu_graph *g) {
    if (g != NULL)
        (void)take(cudaGraphExecDestroy((cudaGraphExec_t)(void *)g));
}

int gpu_last_error(void) {
    return (int)cudaGetLastError();
}
