#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int open_file(const char *path, int *fd, struct stat *info, struct status *st) {
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return status_set(st,
                          errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_INVALID_ARGUMENT,
                          "%s: %s", path, strerror(errno));
    if (fstat(*fd, info) != 0 || S_ISDIR(info->st_mode)) {
        close(*fd);
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: a folder, not a file", path);
    }
    return 0;
}

int file_map_init(struct file_map *m, const char *path, struct status *st) {
    *m = (struct file_map){0};
    int fd;
    struct stat info = {0};
    if (open_file(path, &fd, &info, st))
        return -1;
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a regular file", path);
    }
    if (info.st_size > 0) {
        void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            int error = errno;
            close(fd);
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%s: cannot be mapped: %s", path,
                              strerror(error));
        }
        m->data = p;
        m->bytes = (uint64_t)info.st_size;
    }
    close(fd);
    return 0;
}

void file_map_free(struct file_map *m) {
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->bytes);
    *m = (struct file_map){0};
}

void file_map_release(const struct file_map *m, uint64_t offset, uint64_t bytes) {
    const uint64_t page = 4096;
    if (!m->data || offset > m->bytes || bytes > m->bytes - offset)
        return;
    uint64_t first = (offset + page - 1) / page * page, last = (offset + bytes) / page * page;
    if (last > first)
        (void)madvise((void *)(uintptr_t)(m->data + first), last - first, MADV_DONTNEED);
}

int file_read(char **data, size_t *bytes, const char *path, size_t bytes_max, const char *limit_name,
              struct status *st) {
    *data = NULL;
    *bytes = 0;
    int fd;
    struct stat info = {0};
    if (open_file(path, &fd, &info, st))
        return -1;
    size_t capacity =
        S_ISREG(info.st_mode) && (uint64_t)info.st_size < bytes_max ? (size_t)info.st_size + 2 : 65536;
    size_t used = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        if (used + 1 >= capacity) {
            char *bigger = capacity < SIZE_MAX / 4 ? realloc(buffer, capacity * 2) : NULL;
            if (!bigger)
                break;
            buffer = bigger;
            capacity *= 2;
        }
        ssize_t n = read(fd, buffer + used, capacity - used - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s", path, strerror(errno));
            goto fail;
        }
        used += (size_t)n;
        if (used > bytes_max) {
            status_set(st, STATUS_RESOURCE_EXHAUSTED, "%s: more than %s (%zu bytes)", path, limit_name,
                       bytes_max);
            goto fail;
        }
        if (n == 0) {
            buffer[used] = 0;
            close(fd);
            *data = buffer;
            *bytes = used;
            return 0;
        }
    }
    status_set_no_memory(st, capacity, path);
fail:
    free(buffer);
    close(fd);
    return -1;
}

int file_kind(const char *path) {
    struct stat info = {0};
    if (stat(path, &info) != 0)
        return 0;
    return S_ISREG(info.st_mode) ? 1 : S_ISDIR(info.st_mode) ? 2 : 0;
}

static int64_t to_ns(const struct timespec *t) {
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

int file_get_stamp(struct file_stamp *s, const char *path, struct status *st) {
    struct stat info = {0};
    if (stat(path, &info) != 0)
        return status_set(st,
                          errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_INVALID_ARGUMENT,
                          "%s: %s", path, strerror(errno));
    *s = (struct file_stamp){.bytes = (uint64_t)info.st_size,
                             .device = info.st_dev,
                             .inode = info.st_ino,
                             .mtime_ns = to_ns(&info.st_mtim),
                             .ctime_ns = to_ns(&info.st_ctim)};
    return 0;
}

bool file_stamp_equals(const struct file_stamp *a, const struct file_stamp *b) {
    return a->bytes == b->bytes && a->device == b->device && a->inode == b->inode &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

int64_t file_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return to_ns(&now);
}

bool file_read_at(int fd, void *data, size_t bytes, uint64_t offset) {
    char *to = data;
    while (bytes > 0) {
        ssize_t n = pread(fd, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = 0;
        if (n <= 0)
            return false;
        to += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

bool file_write_at(int fd, const void *data, size_t bytes, uint64_t offset) {
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = pwrite(fd, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = ENOSPC;
        if (n <= 0)
            return false;
        from += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}
