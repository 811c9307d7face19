/* packed_cache: a model's packed weights in a file, so that the next start reads them instead of packing.
 *
 * One file for a model folder, a device and a precision. It is taken for what it says only when it was made
 * by this version of the program for these kernels and just these weights, every byte of it has the checksum
 * that was written down, and the model's own files are those it was made from: their stamps are unchanged, or
 * else their SHA-256 is. Nothing of it decides a size or an offset. Whatever does not fit is left alone,
 * told in the log, and replaced; nothing that goes wrong with it keeps a model from being loaded.
 *
 * The order of calls: new, open, read or else (when the weights are packed) write, del. */
#ifndef TIMBRE_MODELS_PACKED_CACHE_H
#define TIMBRE_MODELS_PACKED_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "models/sources.h"

/* `place` of packed_cache_new for a file in the model's folder. */
#define PACKED_CACHE_BESIDE "beside"

enum {
    PACKED_CACHE_FORMAT = 1,
    PACKED_CACHE_BLOCK_BYTES = 256 << 10, /* that one checksum is over; fits into the second cache */
    /* A file of the model that was changed so shortly before it was read could change once more without its
     * stamp telling: clocks of file systems are coarse, those of servers differ. */
    PACKED_CACHE_SETTLE_S = 2,
    PACKED_CACHE_FINISH_S_MAX = 10, /* packed_cache_del waits so long for a file that is being written */
};

struct packed_cache;

struct packed_cache_options {
    const char *place;  /* a folder, which is made if need be; or PACKED_CACHE_BESIDE */
    bool verify;        /* look at the SHA-256 of the model's files even when their stamps are unchanged */
    int threads;        /* that read; 0: one a processor */
    const char *device; /* whose packing it is: kernels' device_name, */
    const char *precision;
    int layout_version;
    uint64_t layout;  /* and what tells its weights from others; see loader.h */
    size_t bytes;     /* of packed weights */
    int64_t begun_ns; /* file_clock_ns before the model's files were opened */
};

/* NULL, and a line in the log, when there can be none. */
struct packed_cache *packed_cache_new(const char *model_dir, const struct packed_cache_options *o);

/* Looks for the file. True: it may be read. Sets the SHA-256 of those sources that are known from it; when
 * the stamps leave it open, all are computed here. */
bool packed_cache_open(struct packed_cache *c, struct sources *s);

/* The weights, every byte compared with its checksum: the file's pages, and pages of one's own where one
 * writes to them. They stay until packed_cache_del. NULL: the file was not what it seemed, and no SHA-256 is
 * known any more. */
void *packed_cache_read(struct packed_cache *c, struct sources *s);

/* Zeros `memory` for weights that are going to be written, so that gaps between them tell nothing. */
void packed_cache_clear(struct packed_cache *c, void *memory);

/* Begins to write the file on a thread of its own, unless the one there was read. All sources are known;
 * `memory` stays unchanged until packed_cache_del. */
void packed_cache_write(struct packed_cache *c, const struct sources *s, const void *memory);

/* Waits until the file is written, or gives it up; what was read is gone. NULL is fine. */
void packed_cache_del(struct packed_cache *c);

#endif
