/* file: whole files, mapped or read, with limits. */
#ifndef TIMBRE_BASE_FILE_H
#define TIMBRE_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A file mapped read-only. It must not be cut short by others while mapped (a model folder is not written
 * to). */
struct file_map {
    const unsigned char *data; /* NULL when the file is empty */
    uint64_t bytes;
};

/* Errors: NOT_FOUND (no such file), INVALID_ARGUMENT (not a regular file), RESOURCE_EXHAUSTED. The path is
 * named. */
int file_map_init(struct file_map *m, const char *path, struct status *st);
void file_map_free(struct file_map *m);

/* Tells the kernel that these pages are not needed for now, so that they leave the resident set. */
void file_map_release(const struct file_map *m, uint64_t offset, uint64_t bytes);

/* The whole file on the heap with a zero behind it; free(*data). Regular files and pipes.
 * Errors as above, and RESOURCE_EXHAUSTED naming `limit_name` when it holds more than `bytes_max`. */
int file_read(char **data, size_t *bytes, const char *path, size_t bytes_max, const char *limit_name,
              struct status *st);

/* 1: a regular file, 2: a folder, 0: neither. */
int file_kind(const char *path);

#endif
