#include "kernels/cuda/host/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/host/record.h"

enum { ALIGN_BYTES = 256, PAGE_BYTES = 4096 };
enum kind { DEVICE, PINNED };

struct block {
    struct block *next;
    enum kind kind;
    int gpu;
    unsigned char *p;
    size_t bytes;
    unsigned char *map; /* strict mode: the pages at whose end it lies; else NULL */
    size_t map_bytes;
};

/* All under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static size_t used_bytes[GPU_HOST_GPUS_MAX];
static int inside; /* how often gpu_host_enter without gpu_host_leave */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool strict;

static void read_environment(void) {
    const char *text = getenv("TIMBRE_SHIM_STRICT");
    strict = text != NULL && atoi(text) != 0;
}

static bool is_strict(void) {
    pthread_once(&once, read_environment);
    return strict;
}

size_t gpu_host_free_bytes(int gpu) {
    pthread_mutex_lock(&lock);
    const size_t bytes = GPU_HOST_MEMORY_BYTES - used_bytes[gpu];
    pthread_mutex_unlock(&lock);
    return bytes;
}

/* --- blocks --------------------------------------------------------------------------------------------- */

static void protect(const struct block *b, int protection) {
    if (b->map != NULL && mprotect(b->map, b->map_bytes, protection) != 0) {
        perror("shim: mprotect");
        abort();
    }
}

static void protect_all(int protection) {
    for (const struct block *b = blocks; b != NULL; b = b->next) {
        protect(b, protection);
    }
}

void gpu_host_enter(void) {
    if (is_strict()) {
        pthread_mutex_lock(&lock);
        if (inside++ == 0) {
            protect_all(PROT_READ | PROT_WRITE);
        }
        pthread_mutex_unlock(&lock);
    }
}

void gpu_host_leave(void) {
    if (is_strict()) {
        pthread_mutex_lock(&lock);
        if (--inside == 0) {
            protect_all(PROT_NONE);
        }
        pthread_mutex_unlock(&lock);
    }
}

/* Exactly so many bytes, so that AddressSanitizer sees what is beyond them. */
static bool get_bytes(struct block *b) {
    if (b->kind == DEVICE && is_strict()) {
        b->map_bytes = (b->bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        void *map = mmap(NULL, b->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            return false;
        }
        (void)madvise(map, b->map_bytes, MADV_HUGEPAGE); /* fewer pages to protect */
        b->map = static_cast<unsigned char *>(map);
        b->p = b->map + (b->map_bytes - b->bytes) / ALIGN_BYTES * ALIGN_BYTES;
        return true;
    }
    void *p = NULL;
    if (posix_memalign(&p, ALIGN_BYTES, b->bytes) != 0) {
        return false;
    }
    b->p = static_cast<unsigned char *>(p);
    return true;
}

static void give_bytes(struct block *b) {
    if (b->map != NULL) {
        munmap(b->map, b->map_bytes);
    } else {
        free(b->p);
    }
    free(b);
}

/* Counts the bytes of a new block as used, if there are so many. Pinned memory has no count, only a limit. */
static bool reserve(const struct block *b) {
    if (b->kind != DEVICE) {
        return b->bytes <= GPU_HOST_MEMORY_BYTES;
    }
    pthread_mutex_lock(&lock);
    const bool fits = b->bytes <= GPU_HOST_MEMORY_BYTES - used_bytes[b->gpu];
    used_bytes[b->gpu] += fits ? b->bytes : 0;
    pthread_mutex_unlock(&lock);
    return fits;
}

static void release(const struct block *b) {
    pthread_mutex_lock(&lock);
    used_bytes[b->gpu] -= b->kind == DEVICE ? b->bytes : 0;
    pthread_mutex_unlock(&lock);
}

/* Filled with NaNs. */
static int block_new(void **p, size_t bytes, enum kind kind) {
    *p = NULL;
    const int gpu = gpu_host_current(), refused = gpu_host_refuse_in_capture();
    if (gpu < 0 || refused != GPU_OK) {
        return gpu < 0 ? static_cast<int>(GPU_NO_DEVICE) : refused;
    }
    if (bytes == 0) {
        return GPU_OK;
    }
    struct block *b = static_cast<struct block *>(calloc(1, sizeof(*b)));
    if (b == NULL) {
        return GPU_OUT_OF_MEMORY;
    }
    b->kind = kind;
    b->gpu = gpu;
    b->bytes = bytes;
    if (!reserve(b)) {
        free(b);
        return GPU_OUT_OF_MEMORY;
    }
    if (!get_bytes(b)) {
        release(b);
        free(b);
        return GPU_OUT_OF_MEMORY;
    }
    memset(b->p, 0xff, bytes);
    *p = b->p;
    pthread_mutex_lock(&lock);
    if (inside == 0) {
        protect(b, PROT_NONE);
    }
    b->next = blocks;
    blocks = b;
    pthread_mutex_unlock(&lock);
    return GPU_OK;
}

static void block_del(void *p, enum kind kind) {
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    struct block **at = &blocks;
    while (*at != NULL && ((*at)->p != p || (*at)->kind != kind)) {
        at = &(*at)->next;
    }
    struct block *b = *at;
    if (b == NULL) {
        fprintf(stderr, "shim: %p is freed, which is no %s memory\n", p,
                kind == DEVICE ? "device" : "pinned");
        abort();
    }
    *at = b->next;
    pthread_mutex_unlock(&lock);
    release(b);
    give_bytes(b);
    (void)gpu_host_refuse_in_capture();
}

int gpu_memory_new(void **p, size_t bytes) {
    return block_new(p, bytes, DEVICE);
}

void gpu_memory_del(void *p) {
    block_del(p, DEVICE);
}

int gpu_pinned_new(void **p, size_t bytes) {
    return block_new(p, bytes, PINNED);
}

void gpu_pinned_del(void *p) {
    block_del(p, PINNED);
}

/* --- checks of strict mode ------------------------------------------------------------------------------ */

/* The block p points into, or else to the end of; NULL when none. */
static const struct block *find(const void *p) {
    const unsigned char *at = static_cast<const unsigned char *>(p);
    const struct block *ends = NULL;
    for (const struct block *b = blocks; b != NULL; b = b->next) {
        if (at >= b->p && at < b->p + b->bytes) {
            return b;
        }
        ends = at == b->p + b->bytes ? b : ends;
    }
    return ends;
}

[[noreturn]] static void fail(const char *what, const void *p, const char *why) {
    fprintf(stderr, "shim: %s, %p, %s\n", what, p, why);
    abort();
}

void gpu_host_check_device(const char *what, const void *p, size_t bytes) {
    if (!is_strict()) {
        return;
    }
    pthread_mutex_lock(&lock);
    const struct block *b = find(p);
    if (b == NULL || b->kind != DEVICE) {
        fail(what, p, "is no device memory");
    }
    if (bytes > b->bytes - static_cast<size_t>(static_cast<const unsigned char *>(p) - b->p)) {
        fail(what, p, "goes beyond the end of its device memory");
    }
    pthread_mutex_unlock(&lock);
}

void gpu_host_check_host(const char *what, const void *p) {
    if (!is_strict()) {
        return;
    }
    pthread_mutex_lock(&lock);
    const struct block *b = find(p);
    if (b != NULL && b->kind == DEVICE) {
        fail(what, p, "is device memory");
    }
    pthread_mutex_unlock(&lock);
}

void gpu_host_check_argument(const char *kernel, const void *p) {
    if (p == NULL || !is_strict()) {
        return;
    }
    pthread_mutex_lock(&lock);
    if (find(p) == NULL) {
        fprintf(stderr, "shim: LAUNCH(%s):\n", kernel);
        fail("a pointer among the arguments", p, "is neither device memory nor pinned");
    }
    pthread_mutex_unlock(&lock);
}
