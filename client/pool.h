/* pool: memory for one reply. Pieces are taken one by one and freed all at once; the total is limited, so
 * that a short message which unpacks to much memory is refused. Not thread-safe. */
#ifndef TIMBRE_CLIENT_POOL_H
#define TIMBRE_CLIENT_POOL_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

struct pool_block;

struct pool {
    struct pool_block *blocks; /* the newest first */
    size_t used, total, bytes_max;
};

/* What `bytes` of a message may become: a score of two bytes on the wire takes some hundred here. */
enum { POOL_BYTES_MIN = 64 << 10, POOL_BYTES_EACH = 32 };

/* For a message of `bytes`: the limit is POOL_BYTES_MIN + POOL_BYTES_EACH * bytes. */
void pool_init(struct pool *p, size_t bytes);
void pool_free(struct pool *p); /* also of a pool that is all zero */

/* `count * size` bytes for any type, not zeroed; NULL: out of memory or over the limit. */
void *pool_alloc(struct pool *p, size_t count, size_t size);

/* For unpacking into the pool; what it unpacks goes with pool_free. Lives as long as *p stays where it is. */
ProtobufCAllocator pool_allocator(struct pool *p);

#endif
