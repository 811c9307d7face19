#include "client/pool.h"

#include <stdalign.h>
#include <stdlib.h>

#include "base/check.h"

/* With the address sanitizer every piece is a block of its own, so that it sees where one ends. */
#if defined(__SANITIZE_ADDRESS__)
#define BLOCK_BYTES 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BLOCK_BYTES 1
#endif
#endif
#ifndef BLOCK_BYTES
#define BLOCK_BYTES 4096
#endif

enum { ALIGN_BYTES = alignof(max_align_t) };

struct pool_block {
    struct pool_block *next;
    size_t bytes;
    alignas(max_align_t) unsigned char data[];
};

void pool_init(struct pool *p, size_t bytes) {
    size_t most;
    if (!check_mul_size(bytes, POOL_BYTES_EACH, &most) || !check_add_size(most, POOL_BYTES_MIN, &most))
        most = SIZE_MAX;
    *p = (struct pool){.bytes_max = most};
}

void pool_free(struct pool *p) {
    while (p->blocks) {
        struct pool_block *next = p->blocks->next;
        free(p->blocks);
        p->blocks = next;
    }
    *p = (struct pool){0};
}

void *pool_alloc(struct pool *p, size_t count, size_t size) {
    size_t bytes;
    if (!check_mul_size(count, size, &bytes) || !check_add_size(bytes, ALIGN_BYTES - 1, &bytes))
        return NULL;
    bytes -= bytes % ALIGN_BYTES;
    if (!p->blocks || bytes > p->blocks->bytes - p->used) {
        size_t block_bytes = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        if (block_bytes > p->bytes_max - p->total || block_bytes > SIZE_MAX - sizeof(struct pool_block))
            return NULL;
        struct pool_block *block = malloc(sizeof *block + block_bytes);
        if (!block)
            return NULL;
        *block = (struct pool_block){.next = p->blocks, .bytes = block_bytes};
        p->blocks = block;
        p->used = 0;
        p->total += block_bytes;
    }
    void *result = p->blocks->data + p->used;
    p->used += bytes;
    return result;
}

static void *allocate(void *pool, size_t bytes) {
    return pool_alloc(pool, 1, bytes);
}

static void leave(void *pool, void *pointer) {
    (void)pool, (void)pointer;
}

ProtobufCAllocator pool_allocator(struct pool *p) {
    return (ProtobufCAllocator){.alloc = allocate, .free = leave, .allocator_data = p};
}
