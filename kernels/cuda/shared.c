/* What the workers on one GPU share: its memory's account, whether it is lost; and errors, which end there.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/internal.h"

struct cuda_allocation {
    struct cuda_allocation *next;
    void *p;
    size_t bytes;
};

static struct cuda_gpu gpus[CUDA_GPUS_MAX];
static pthread_once_t gpus_once = PTHREAD_ONCE_INIT;

static void init_gpus(void) {
    for (int i = 0; i < CUDA_GPUS_MAX; i++) {
        pthread_mutex_init(&gpus[i].turn, NULL);
        pthread_mutex_init(&gpus[i].memory, NULL);
    }
}

struct cuda_gpu *cuda_gpu_find(int index) {
    pthread_once(&gpus_once, init_gpus);
    return &gpus[index];
}

bool cuda_is_fault_due(const char *kind, atomic_int *count) {
    const char *fault = getenv("TIMBRE_CUDA_FAULT");
    const size_t length = strlen(kind);
    const int now = atomic_fetch_add(count, 1) + 1;
    return fault && strncmp(fault, kind, length) == 0 && fault[length] == ':' &&
           atoi(fault + length + 1) == now;
}

/* ---- errors ---- */

void cuda_note(struct kernels_device *d, int error) {
    if (error && !d->error)
        d->error = error;
    if (error && gpu_error_is_lost(error))
        atomic_store(&d->gpu->lost, error);
}

void cuda_fail(struct kernels_device *d, enum status_code code, const char *format, ...) {
    char text[STATUS_MESSAGE_BYTES_MAX];
    va_list arguments;
    if (d->failure.code != STATUS_OK)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    status_set(&d->failure, code, "%s", text);
}

/* ---- memory ---- */

/* Room for `bytes` within the limit, which `a` will take. */
static int account(struct kernels_device *d, struct cuda_allocation *a, const char *what, struct status *st) {
    const size_t limit = d->options.memory_bytes_max;
    int result = 0;
    pthread_mutex_lock(&d->gpu->memory);
    if (limit && (a->bytes > limit || d->gpu->bytes > limit - a->bytes)) {
        result = status_set(st, STATUS_RESOURCE_EXHAUSTED,
                            "gpu-memory-limit: %zu bytes for %s and %zu in use are over the limit of %zu",
                            a->bytes, what, d->gpu->bytes, limit);
    } else {
        a->next = d->gpu->allocations;
        d->gpu->allocations = a;
        d->gpu->bytes += a->bytes;
    }
    pthread_mutex_unlock(&d->gpu->memory);
    return result;
}

/* Takes p out of the list; NULL when it is not there. */
static struct cuda_allocation *forget(struct cuda_gpu *gpu, const void *p) {
    struct cuda_allocation *found = NULL;
    pthread_mutex_lock(&gpu->memory);
    for (struct cuda_allocation **at = &gpu->allocations; *at; at = &(*at)->next)
        if ((*at)->p == p) {
            found = *at;
            *at = found->next;
            gpu->bytes -= found->bytes;
            break;
        }
    pthread_mutex_unlock(&gpu->memory);
    return found;
}

int cuda_memory_new(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st) {
    static atomic_int count;
    struct cuda_allocation *a = malloc(sizeof *a);
    *p = NULL;
    if (!a)
        return status_set_no_memory(st, sizeof *a, what);
    /* The list knows it by its own address until the memory is there. */
    *a = (struct cuda_allocation){.p = a, .bytes = bytes};
    if (account(d, a, what, st)) {
        free(a);
        return -1;
    }
    int error = gpu_use(d->options.device_index);
    if (!error)
        error = cuda_is_fault_due("memory", &count) ? GPU_OUT_OF_MEMORY : gpu_memory_new(p, bytes);
    if (!error && (error = gpu_zero(*p, bytes, d->stream)) == GPU_OK)
        error = gpu_stream_wait(d->stream);
    if (!error) {
        pthread_mutex_lock(&d->gpu->memory);
        a->p = *p;
        pthread_mutex_unlock(&d->gpu->memory);
        return 0;
    }
    free(forget(d->gpu, a));
    gpu_memory_del(*p);
    *p = NULL;
    struct gpu_info now = d->info;
    (void)gpu_get_info(d->options.device_index, &now);
    return status_set(st, error == GPU_OUT_OF_MEMORY ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE,
                      "GPU %d (%s): %zu bytes for %s: %s; %zu of its %zu bytes are free",
                      d->options.device_index, d->info.name, bytes, what, gpu_error_text(error),
                      now.memory_free_bytes, now.memory_bytes);
}

void cuda_memory_del(struct kernels_device *d, void *p) {
    if (!p)
        return;
    (void)gpu_use(d->options.device_index);
    free(forget(d->gpu, p));
    gpu_memory_del(p);
}
