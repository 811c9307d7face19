#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

void arena_init_counting(struct arena *a) {
    memset(a, 0, sizeof *a);
    a->bytes = SIZE_MAX;
}

int arena_init(struct arena *a, size_t bytes, const char *what, struct status *st) {
    memset(a, 0, sizeof *a);
    size_t padded;
    if (!check_add_size(bytes, 2 * ARENA_ALIGN_BYTES - 1, &padded))
        return status_set_no_memory(st, bytes, what);
    padded -= padded % ARENA_ALIGN_BYTES;
    a->base = aligned_alloc(ARENA_ALIGN_BYTES, padded);
    if (!a->base)
        return status_set_no_memory(st, bytes, what);
    a->bytes = bytes;
    return 0;
}

void arena_free(struct arena *a) {
    free(a->base);
    memset(a, 0, sizeof *a);
}

void *arena_alloc(struct arena *a, size_t count, size_t size) {
    size_t bytes, end;
    if (!check_mul_size(count, size, &bytes) || !check_add_size(bytes, ARENA_ALIGN_BYTES - 1, &bytes) ||
        !check_add_size(a->used, bytes -= bytes % ARENA_ALIGN_BYTES, &end) || end > a->bytes) {
        a->failed = true;
        return NULL;
    }
    void *p = a->base ? a->base + a->used : NULL;
    a->used = end;
    return p;
}
