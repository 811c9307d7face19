/* file: whole files, mapped or read, with limits. */
#ifndef TIMBRE_BASE_FILE_H
#define TIMBRE_BASE_FILE_H

#include <stdbool.h>
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

/* Where a file's content lies and when it was put there: whoever writes to the file, or puts another in its
 * place, changes one of these. Links are followed. Nanoseconds since 1970. */
struct file_stamp {
    uint64_t bytes, device, inode;
    int64_t mtime_ns, ctime_ns;
};
/* Error: NOT_FOUND or INVALID_ARGUMENT. The path is named. */
int file_get_stamp(struct file_stamp *s, const char *path, struct status *st);
bool file_stamp_equals(const struct file_stamp *a, const struct file_stamp *b);
/* Now, by the clock of stamps. */
int64_t file_clock_ns(void);

/* Reads or writes exactly `bytes` at `offset`; more than one thread may, on one file. false: errno tells why,
 * 0 that the file ends there. */
bool file_read_at(int fd, void *data, size_t bytes, uint64_t offset);
bool file_write_at(int fd, const void *data, size_t bytes, uint64_t offset);

#endif
