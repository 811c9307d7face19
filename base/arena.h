/* arena: one allocation for everything that lives equally long.
 *
 * Sizes come from a table, so an arena is used in two passes over the same code: the first over a counting
 * arena (`arena_init_counting`), whose pointers are NULL; then `arena_init` with the bytes counted. Not
 * thread-safe. */
#ifndef TIMBRE_BASE_ARENA_H
#define TIMBRE_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum { ARENA_ALIGN_BYTES = 64 }; /* a cache line, and the width of the widest vector */

struct arena {
    unsigned char *base; /* NULL while counting */
    size_t bytes;        /* size of the block; SIZE_MAX while counting */
    size_t used;
    bool failed; /* an arena_alloc did not fit, or the count overflowed */
};

void arena_init_counting(struct arena *a);

/* Takes one block of `bytes`, aligned to ARENA_ALIGN_BYTES, not zeroed. `what` names it in the message.
 * Error: RESOURCE_EXHAUSTED. */
int arena_init(struct arena *a, size_t bytes, const char *what, struct status *st);

void arena_free(struct arena *a); /* also of an arena that is all zero */

/* `count * size` bytes aligned to ARENA_ALIGN_BYTES, valid until arena_free. NULL while counting, and NULL
 * with `failed` set when it does not fit: callers check `failed` once, after the last call. */
void *arena_alloc(struct arena *a, size_t count, size_t size);

#endif
