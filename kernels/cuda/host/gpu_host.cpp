/* gpu.h on the host. A stream does at once what is put into it; a capture keeps it in a list. What CUDA
 * refuses while a stream captures is refused here too (CUDA C++ Programming Guide, "Creating a Graph Using
 * Stream Capture"; mode thread local). */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/host/memory.h"
#include "kernels/cuda/host/record.h"

/* More of cudaError_t. */
enum {
    INVALID_DEVICE = 101,
    INVALID_RESOURCE_HANDLE = 400,
    ILLEGAL_STATE = 401,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_MERGE = 902,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

struct call {
    struct call *next;
    void (*run)(void *arg);
    void *arg;
};

/* What is being captured: it begins in one stream, and others join it by waiting for its events. */
struct capture {
    uint64_t id;
    struct gpu_stream *origin, *joined;
    pthread_t thread;
    struct capture *next_of_thread;
    struct gpu_graph *graph;
    int error; /* that its end gives */
};

struct gpu_stream {
    int gpu;
    struct capture *capture;
    struct gpu_stream *next_joined;
    uint64_t puts; /* how much was put into it: an event knows what it covers */
    bool is_unjoined;
};

struct gpu_event {
    int gpu;
    uint64_t capture_id, puts; /* of the last record; 0: not in a capture */
    struct gpu_stream *stream;
};

struct gpu_graph {
    struct call *first, *last;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t captures; /* that there have been; under the lock */

static thread_local int current_gpu;
static thread_local int last_error;
static thread_local struct capture *captures_of_thread;

static int count_gpus(void) {
    const char *text = getenv("TIMBRE_SHIM_GPUS");
    const int n = text == NULL ? 1 : atoi(text);
    return n < 0 ? 0 : n > GPU_HOST_GPUS_MAX ? GPU_HOST_GPUS_MAX : n;
}

int gpu_host_current(void) {
    return current_gpu < count_gpus() ? current_gpu : -1;
}

/* --- errors --------------------------------------------------------------------------------------------- */

const char *gpu_error_text(int error) {
    switch (error) {
    case GPU_OK:
        return "cudaSuccess: no error";
    case GPU_INVALID_VALUE:
        return "cudaErrorInvalidValue: invalid argument";
    case GPU_OUT_OF_MEMORY:
        return "cudaErrorMemoryAllocation: out of memory";
    case GPU_INVALID_CONFIGURATION:
        return "cudaErrorInvalidConfiguration: invalid configuration argument";
    case GPU_NO_DEVICE:
        return "cudaErrorNoDevice: no CUDA-capable device is detected";
    case INVALID_DEVICE:
        return "cudaErrorInvalidDevice: invalid device ordinal";
    case INVALID_RESOURCE_HANDLE:
        return "cudaErrorInvalidResourceHandle: invalid resource handle";
    case ILLEGAL_STATE:
        return "cudaErrorIllegalState: the operation cannot be performed in the present state";
    case GPU_ILLEGAL_ADDRESS:
        return "cudaErrorIllegalAddress: an illegal memory access was encountered";
    case GPU_LAUNCH_FAILURE:
        return "cudaErrorLaunchFailure: unspecified launch failure";
    case CAPTURE_UNSUPPORTED:
        return "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing";
    case GPU_CAPTURE_INVALIDATED:
        return "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture";
    case CAPTURE_MERGE:
        return "cudaErrorStreamCaptureMerge: operation would merge two separate capture sequences";
    case CAPTURE_UNJOINED:
        return "cudaErrorStreamCaptureUnjoined: capturing stream has unjoined work";
    case CAPTURE_ISOLATION:
        return "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream";
    case CAPTURED_EVENT:
        return "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capturing "
               "stream";
    case CAPTURE_WRONG_THREAD:
        return "cudaErrorStreamCaptureWrongThread: attempt to end a thread-local capture from another thread";
    default:
        return "cudaErrorUnknown: unknown error";
    }
}

bool gpu_error_is_lost(int error) {
    return error >= GPU_ILLEGAL_ADDRESS && error <= GPU_LAUNCH_FAILURE;
}

int gpu_last_error(void) {
    const int error = last_error;
    last_error = GPU_OK;
    return error;
}

void gpu_host_set_error(struct gpu_stream *s, int error) {
    last_error = last_error == GPU_OK ? error : last_error;
    if (s != NULL && s->capture != NULL && s->capture->error == GPU_OK) {
        s->capture->error = error;
    }
}

static void invalidate(struct capture *c) {
    c->error = c->error == GPU_OK ? static_cast<int>(GPU_CAPTURE_INVALIDATED) : c->error;
}

/* For what may not be called while this thread captures: its captures are spoilt. */
int gpu_host_refuse_in_capture(void) {
    for (struct capture *c = captures_of_thread; c != NULL; c = c->next_of_thread) {
        invalidate(c);
    }
    return captures_of_thread == NULL ? 0 : static_cast<int>(CAPTURE_UNSUPPORTED);
}

/* The same for what may not be done with a stream that captures. */
static int refuse(struct gpu_stream *s, int error) {
    invalidate(s->capture);
    return error;
}

/* --- GPUs and memory ------------------------------------------------------------------------------------ */

int gpu_count(int *count) {
    *count = count_gpus();
    return *count > 0 ? GPU_OK : GPU_NO_DEVICE;
}

int gpu_get_info(int index, struct gpu_info *info) {
    if (index < 0 || index >= count_gpus()) {
        return INVALID_DEVICE;
    }
    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "host shim");
    info->sm = 90;
    info->multiprocessors = 4;
    info->memory_bytes = GPU_HOST_MEMORY_BYTES;
    info->memory_free_bytes = gpu_host_free_bytes(index);
    info->shared_bytes_max = 227 * 1024;
    return GPU_OK;
}

int gpu_use(int index) {
    if (index < 0 || index >= count_gpus()) {
        return INVALID_DEVICE;
    }
    current_gpu = index;
    return GPU_OK;
}

/* --- calls in streams ----------------------------------------------------------------------------------- */

bool gpu_host_is_current(const struct gpu_stream *s) {
    return s == NULL || s->gpu == current_gpu;
}

bool gpu_host_record(struct gpu_stream *s, void (*run)(void *arg), const void *arg, size_t arg_bytes) {
    if (s == NULL || s->capture == NULL) {
        return false;
    }
    struct call *c = static_cast<struct call *>(calloc(1, sizeof(*c)));
    void *copy = malloc(arg_bytes);
    if (c == NULL || copy == NULL) {
        free(c);
        free(copy);
        s->capture->error = GPU_OUT_OF_MEMORY;
        return true;
    }
    memcpy(copy, arg, arg_bytes);
    c->run = run;
    c->arg = copy;
    struct gpu_graph *g = s->capture->graph;
    if (g->last == NULL) {
        g->first = c;
    } else {
        g->last->next = c;
    }
    g->last = c;
    s->puts++;
    s->is_unjoined = s != s->capture->origin;
    return true;
}

void gpu_host_put(struct gpu_stream *s, void (*run)(void *arg), void *arg, size_t arg_bytes) {
    if (!gpu_host_record(s, run, arg, arg_bytes)) {
        gpu_host_enter();
        run(arg);
        gpu_host_leave();
    }
}

struct copy {
    void *to;
    const void *from; /* NULL: zeros */
    size_t bytes;
};

static void run_copy(void *arg) {
    const struct copy *c = static_cast<const struct copy *>(arg);
    if (c->from == NULL) {
        memset(c->to, 0, c->bytes);
    } else {
        memcpy(c->to, c->from, c->bytes);
    }
}

static int put_copy(void *to, const void *from, size_t bytes, struct gpu_stream *s) {
    struct copy c = {to, from, bytes};
    gpu_host_put(s, run_copy, &c, sizeof(c));
    return GPU_OK;
}

int gpu_copy_in(void *to_device, const void *from_host, size_t bytes, struct gpu_stream *s) {
    if (bytes == 0) {
        return GPU_OK;
    }
    if (to_device == NULL || from_host == NULL) {
        return GPU_INVALID_VALUE;
    }
    gpu_host_check_device("the target of gpu_copy_in", to_device, bytes);
    gpu_host_check_host("the source of gpu_copy_in", from_host);
    return put_copy(to_device, from_host, bytes, s);
}

int gpu_copy_out(void *to_host, const void *from_device, size_t bytes, struct gpu_stream *s) {
    if (bytes == 0) {
        return GPU_OK;
    }
    if (to_host == NULL || from_device == NULL) {
        return GPU_INVALID_VALUE;
    }
    gpu_host_check_host("the target of gpu_copy_out", to_host);
    gpu_host_check_device("the source of gpu_copy_out", from_device, bytes);
    return put_copy(to_host, from_device, bytes, s);
}

int gpu_copy_within(void *to_device, const void *from_device, size_t bytes, struct gpu_stream *s) {
    if (bytes == 0) {
        return GPU_OK;
    }
    if (to_device == NULL || from_device == NULL) {
        return GPU_INVALID_VALUE;
    }
    gpu_host_check_device("the target of gpu_copy_within", to_device, bytes);
    gpu_host_check_device("the source of gpu_copy_within", from_device, bytes);
    return put_copy(to_device, from_device, bytes, s);
}

int gpu_zero(void *p, size_t bytes, struct gpu_stream *s) {
    if (bytes == 0) {
        return GPU_OK;
    }
    if (p == NULL) {
        return GPU_INVALID_VALUE;
    }
    gpu_host_check_device("the target of gpu_zero", p, bytes);
    return put_copy(p, NULL, bytes, s);
}

/* --- streams and events --------------------------------------------------------------------------------- */

int gpu_stream_new(struct gpu_stream **s) {
    *s = NULL;
    if (gpu_host_current() < 0) {
        return GPU_NO_DEVICE;
    }
    *s = static_cast<struct gpu_stream *>(calloc(1, sizeof(**s)));
    if (*s == NULL) {
        return GPU_OUT_OF_MEMORY;
    }
    (*s)->gpu = current_gpu;
    return GPU_OK;
}

void gpu_stream_del(struct gpu_stream *s) {
    free(s);
}

int gpu_stream_wait(struct gpu_stream *s) {
    if (s->capture == NULL) {
        return GPU_OK;
    }
    return refuse(s, CAPTURE_UNSUPPORTED);
}

int gpu_event_new(struct gpu_event **e) {
    *e = static_cast<struct gpu_event *>(calloc(1, sizeof(**e)));
    if (*e == NULL) {
        return GPU_OUT_OF_MEMORY;
    }
    (*e)->gpu = current_gpu;
    return GPU_OK;
}

void gpu_event_del(struct gpu_event *e) {
    free(e);
}

int gpu_event_record(struct gpu_event *e, struct gpu_stream *s) {
    if (e->gpu != s->gpu) {
        return INVALID_RESOURCE_HANDLE;
    }
    e->stream = s;
    e->puts = s->puts;
    e->capture_id = s->capture == NULL ? 0 : s->capture->id;
    return GPU_OK;
}

int gpu_stream_wait_event(struct gpu_stream *s, struct gpu_event *e) {
    struct capture *c = s->capture;
    if (e->capture_id == 0) { /* never recorded, or done already; but a graph may not depend on it */
        if (c == NULL || e->stream == NULL) {
            return GPU_OK;
        }
        return refuse(s, CAPTURE_ISOLATION);
    }
    struct capture *of_event = e->stream->capture;
    if (of_event == NULL || of_event->id != e->capture_id) {
        return CAPTURED_EVENT; /* that capture is over */
    }
    if (c == NULL) {
        s->capture = of_event;
        s->next_joined = of_event->joined;
        of_event->joined = s;
        s->is_unjoined = true;
    } else if (c != of_event) {
        return refuse(s, CAPTURE_MERGE);
    } else if (s == c->origin && e->puts == e->stream->puts) {
        e->stream->is_unjoined = false;
    }
    return GPU_OK;
}

/* --- graphs --------------------------------------------------------------------------------------------- */

int gpu_capture_begin(struct gpu_stream *s) {
    if (s->capture != NULL) {
        return ILLEGAL_STATE;
    }
    struct capture *c = static_cast<struct capture *>(calloc(1, sizeof(*c)));
    struct gpu_graph *g = static_cast<struct gpu_graph *>(calloc(1, sizeof(*g)));
    if (c == NULL || g == NULL) {
        free(c);
        free(g);
        return GPU_OUT_OF_MEMORY;
    }
    pthread_mutex_lock(&lock);
    c->id = ++captures;
    pthread_mutex_unlock(&lock);
    c->origin = s;
    c->thread = pthread_self();
    c->graph = g;
    c->next_of_thread = captures_of_thread;
    captures_of_thread = c;
    s->capture = c;
    return GPU_OK;
}

int gpu_capture_end(struct gpu_stream *s, struct gpu_graph **g) {
    struct capture *c = s->capture;
    *g = NULL;
    if (c == NULL || c->origin != s) {
        return ILLEGAL_STATE;
    }
    if (!pthread_equal(c->thread, pthread_self())) {
        return CAPTURE_WRONG_THREAD;
    }
    int error = c->error;
    while (c->joined != NULL) {
        struct gpu_stream *j = c->joined;
        c->joined = j->next_joined;
        j->capture = NULL;
        error = error == GPU_OK && j->is_unjoined ? static_cast<int>(CAPTURE_UNJOINED) : error;
    }
    s->capture = NULL;
    struct capture **at = &captures_of_thread;
    while (*at != c) {
        at = &(*at)->next_of_thread;
    }
    *at = c->next_of_thread;
    if (error == GPU_OK) {
        *g = c->graph;
    } else {
        gpu_graph_del(c->graph);
    }
    free(c);
    return error;
}

int gpu_graph_launch(struct gpu_graph *g, struct gpu_stream *s) {
    if (s->capture != NULL) {
        return refuse(s, CAPTURE_UNSUPPORTED);
    }
    gpu_host_enter();
    for (struct call *c = g->first; c != NULL; c = c->next) {
        c->run(c->arg);
    }
    gpu_host_leave();
    return GPU_OK;
}

void gpu_graph_del(struct gpu_graph *g) {
    if (g == NULL) {
        return;
    }
    for (struct call *c = g->first, *next; c != NULL; c = next) {
        next = c->next;
        free(c->arg);
        free(c);
    }
    free(g);
}
