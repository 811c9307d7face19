/* build: makes model folders and containers for the tests of models/, good ones and damaged ones. */
#ifndef TIMBRE_TESTS_BUILD_H
#define TIMBRE_TESTS_BUILD_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "models/builder.h"
#include "models/checkpoint.h"

/* A growing block of bytes. Starts as all zero; bytes_free. */
struct bytes {
    unsigned char *data;
    size_t count, capacity;
};

void bytes_put(struct bytes *b, const void *p, size_t n);
void bytes_put_text(struct bytes *b, const char *s);
void bytes_put_number(struct bytes *b, uint64_t value, int bytes); /* little-endian */
void bytes_free(struct bytes *b);

/* A folder of its own under /tmp. */
struct folder {
    char path[64];
};

void folder_init(struct folder *f);
void folder_free(struct folder *f); /* with all files in it */
void folder_write(const struct folder *f, const char *name, const void *data, size_t bytes);
void folder_write_text(const struct folder *f, const char *name, const char *text);
void folder_remove(const struct folder *f, const char *name);
void folder_touch(const struct folder *f, const char *name, time_t s); /* gives it other times */
/* The one file in it that is not hidden; "" for none. Both answers are valid until the next call. */
const char *folder_find_name(const struct folder *f);
const char *folder_find_path(const struct folder *f); /* of the same */

/* A safetensors file of this header and data. */
void build_safetensors(struct bytes *b, const char *header, const void *data, size_t bytes);

/* One tensor for build_tensors; values count up from `first` in steps of 1/8, which all three dtypes hold
 * exactly. */
struct build_tensor {
    const char *name, *dtype; /* F32, F16, BF16; others are zeros of 8 bytes an element */
    int rank;
    int64_t shape[4];
    float first;
};
void build_tensors(struct bytes *b, const struct build_tensor *t, int count);

/* A zip archive of stored entries, as torch writes it: sizes behind the data, no zip64. */
struct zip {
    struct bytes file, directory;
    int entries;
    int method; /* of the entries to come */
};
void zip_add(struct zip *z, const char *name, const void *data, size_t bytes);
void zip_end(struct zip *z); /* the archive is then z->file */
void zip_free(struct zip *z);

/* The pickle of {"<name>": tensor} with one fp32 storage "0" of `elements`. */
void build_pickle(struct bytes *b, const char *name, int elements, int offset, int rows, int columns,
                  int row_stride);

/* Reads a container from a block of its own, so that a sanitizer sees every byte read too far. On success the
 * caller frees with memory_free. */
struct memory {
    struct checkpoint checkpoint;
    struct checkpoint_file file;
};
typedef int (*build_reader)(struct checkpoint_builder *b, const struct file_map *m, const char *file,
                            struct status *st);
int memory_open(struct memory *m, build_reader reader, const void *data, size_t bytes, struct status *st);
void memory_free(struct memory *m);

#endif
