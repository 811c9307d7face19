#include "models/packed_cache.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/team.h"
#include "base/xxh64.h"

enum {
    PATH_BYTES_MAX = 4096,
    KEY_BYTES = 192,
    NAME_SHOWN_BYTES = 64, /* of the model folder, in the file's name */
    HUGE_PAGE_BYTES = 2 << 20,
    SMALL_ALIGN_BYTES = 64 << 10,                             /* the largest page of all machines */
    TILE_BLOCKS = HUGE_PAGE_BYTES / PACKED_CACHE_BLOCK_BYTES, /* two threads do not meet in one huge page */
    READ_THREADS_MAX = 8,                                     /* more do not make memory faster */
    WRITE_NICE = 10,                                          /* the model serves already */
    OPEN_ATTEMPTS_MAX = 8,
};

/* What the file begins with, in the machine's own byte order. Behind it come the sources, a checksum for each
 * block, and one over everything before itself; then, from weights_at on, the weights. */
struct head {
    char magic[8];
    uint32_t format, sources;
    uint64_t weights_at, bytes, layout;
    char key[KEY_BYTES];
};

struct head_source {
    char name[CHECKPOINT_NAME_BYTES_MAX];
    struct file_stamp stamp;
    char sha256[SHA256_HEX_BYTES + 7];
};

_Static_assert(sizeof(struct head) % 8 == 0 && sizeof(struct head_source) % 8 == 0, "checksums are aligned");

struct packed_cache {
    struct packed_cache_options o;
    char path[PATH_BYTES_MAX], temporary[PATH_BYTES_MAX + 8];
    char key[KEY_BYTES];
    int64_t blocks;
    unsigned char *head;           /* of the file that is read, or of the one to be written */
    size_t head_bytes, weights_at; /* the former up to the last checksum */
    int fd;                        /* what is read; -1 */
    bool is_stale;                 /* its stamps are old */
    unsigned char *map;            /* the weights in it, */
    size_t map_bytes;              /* in so much address space; NULL: they did not come from there */
    const unsigned char *memory;   /* what is written */
    pthread_t thread;
    bool is_writing;
    atomic_int_least64_t give_up_ns; /* clock_now_ns from which the writing thread goes on no more */
};

static struct head_source *head_sources(unsigned char *head) {
    return (struct head_source *)(void *)(head + sizeof(struct head));
}

static uint64_t *head_blocks(unsigned char *head, int sources) {
    return (uint64_t *)(void *)(head_sources(head) + sources);
}

/* ---- names ---- */

/* The folder's last name as far as it is plain, and a part of its path's SHA-256. */
static int make_prefix(char *prefix, size_t bytes, const char *dir) {
    char hex[SHA256_HEX_BYTES], name[NAME_SHOWN_BYTES];
    const char *last = strrchr(dir, '/');
    snprintf(name, sizeof name, "%.*s", NAME_SHOWN_BYTES - 1, last ? last + 1 : dir);
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
            *c = '_';
    if (sha256_memory(hex, dir, strlen(dir), NULL))
        return -1;
    snprintf(prefix, bytes, "%s-%.16s-", name, hex);
    return 0;
}

static bool make_path(struct packed_cache *c, const char *model_dir, const char *place) {
    char prefix[NAME_SHOWN_BYTES + 32] = "", *dir = realpath(model_dir, NULL);
    const bool beside = strcmp(place, PACKED_CACHE_BESIDE) == 0;
    bool made = dir && (beside || make_prefix(prefix, sizeof prefix, dir) == 0);
    if (made) {
        int n = snprintf(c->path, sizeof c->path, "%s/%spacked-%s-%s.timbre", beside ? dir : place, prefix,
                         c->o.device, c->o.precision);
        made = n > 0 && n < (int)sizeof c->path;
        snprintf(c->temporary, sizeof c->temporary, "%s.new", c->path);
    }
    free(dir);
    return made;
}

struct packed_cache *packed_cache_new(const char *model_dir, const struct packed_cache_options *o) {
    struct packed_cache *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->o = *o;
    c->fd = -1;
    c->blocks = (int64_t)(o->bytes / PACKED_CACHE_BLOCK_BYTES + (o->bytes % PACKED_CACHE_BLOCK_BYTES != 0));
    atomic_init(&c->give_up_ns, INT64_MAX);
    snprintf(c->key, sizeof c->key, "timbre %s, kernels %d, layout %d, %s, %s", TIMBRE_VERSION, KERNELS_ABI,
             o->layout_version, o->device, o->precision);
    if (!make_path(c, model_dir, o->place)) {
        log_write(LOG_WARN, "models", "no packed cache for %s in %s: no usable path", model_dir, o->place);
        free(c);
        return NULL;
    }
    if (strcmp(o->place, PACKED_CACHE_BESIDE) != 0)
        (void)mkdir(o->place, 0700); /* if that fails, writing will, and say so */
    return c;
}

/* ---- the head ---- */

/* The head that a file for these sources would have, but for checksums. */
static unsigned char *make_head(struct packed_cache *c, const struct sources *s) {
    size_t bytes = sizeof(struct head) + (size_t)s->count * sizeof(struct head_source) + sizeof(uint64_t);
    size_t table;
    /* Where huge pages of the file can be huge pages of the process, if the system has such. */
    const size_t align = c->o.bytes >= 2 * (size_t)HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : SMALL_ALIGN_BYTES;
    if (!check_mul_size((size_t)c->blocks, sizeof(uint64_t), &table) ||
        !check_add_size(bytes, table, &c->head_bytes) ||
        !check_add_size(c->head_bytes, align - 1, &c->weights_at) ||
        !check_add_size(c->weights_at, c->o.bytes, &bytes))
        return NULL;
    c->weights_at -= c->weights_at % align;
    unsigned char *head = calloc(1, c->head_bytes);
    if (!head)
        return NULL;
    struct head *h = (struct head *)(void *)head;
    memcpy(h->magic, "TIMBREPK", sizeof h->magic);
    h->format = PACKED_CACHE_FORMAT;
    h->sources = (uint32_t)s->count;
    h->weights_at = c->weights_at;
    h->bytes = c->o.bytes;
    h->layout = c->o.layout;
    memcpy(h->key, c->key, sizeof h->key);
    struct head_source *to = head_sources(head);
    for (int i = 0; i < s->count; i++) {
        snprintf(to[i].name, sizeof to[i].name, "%.*s", (int)sizeof to[i].name - 1, s->files[i].name);
        to[i].stamp = s->files[i].stamp;
        if (s->files[i].is_known)
            memcpy(to[i].sha256, s->files[i].sha256, SHA256_HEX_BYTES);
    }
    return head;
}

/* Over everything before its own place. */
static uint64_t head_checksum(const struct packed_cache *c, unsigned char *head, int sources,
                              uint64_t **place) {
    *place = head_blocks(head, sources) + c->blocks;
    return xxh64(head, (size_t)((unsigned char *)*place - head), 0);
}

static bool is_hex(const char *text) {
    return strspn(text, "0123456789abcdef") == SHA256_HEX_BYTES - 1 && text[SHA256_HEX_BYTES - 1] == 0;
}

/* Reads c->head and compares it with what it should be. NULL, or what is wrong. */
static const char *read_head(struct packed_cache *c, unsigned char *expected, const struct sources *s) {
    const struct head *e = (const struct head *)(const void *)expected;
    struct head h;
    struct stat info;
    uint64_t *checksum;
    if (!file_read_at(c->fd, &h, sizeof h, 0) || fstat(c->fd, &info))
        return "it is cut short";
    if (memcmp(h.magic, e->magic, sizeof h.magic) != 0)
        return "it holds no packed weights";
    if (h.format != e->format || memcmp(h.key, e->key, sizeof h.key) != 0)
        return "it is another version's";
    if (memcmp(&h, e, sizeof h) != 0)
        return "it is for another model";
    if (info.st_size < 0 || (uint64_t)info.st_size != e->weights_at + e->bytes ||
        !file_read_at(c->fd, c->head, c->head_bytes, 0))
        return "it is cut short, or too long";
    if (head_checksum(c, c->head, s->count, &checksum) != *checksum)
        return "it is damaged";
    const struct head_source *is = head_sources(c->head), *should = head_sources(expected);
    for (int i = 0; i < s->count; i++) {
        if (memcmp(is[i].name, should[i].name, sizeof is[i].name) != 0 || !is_hex(is[i].sha256))
            return "it was made from other files";
        if (is[i].stamp.bytes != should[i].stamp.bytes)
            return "the model has changed";
    }
    return NULL;
}

/* ---- looking for the file ---- */

/* Only what nobody else could have written is looked into. */
static const char *open_file(struct packed_cache *c) {
    struct stat info;
    c->fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (c->fd < 0)
        return strerror(errno);
    if (fstat(c->fd, &info) || !S_ISREG(info.st_mode))
        return "it is no file";
    if (info.st_uid != geteuid() && info.st_uid != 0)
        return "it belongs to another user";
    if (info.st_mode & (S_IWGRP | S_IWOTH))
        return "others may write to it";
    return NULL;
}

static void close_file(struct packed_cache *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* Takes from the head what is known of the sources; asks the sources themselves where stamps differ. */
static const char *check_sources(struct packed_cache *c, struct sources *s) {
    const struct head_source *was = head_sources(c->head);
    bool all_known = true;
    for (int i = 0; i < s->count; i++) {
        struct source *f = &s->files[i];
        const bool same = file_stamp_equals(&f->stamp, &was[i].stamp);
        c->is_stale = c->is_stale || !same;
        f->is_known = same && !c->o.verify;
        if (f->is_known)
            memcpy(f->sha256, was[i].sha256, SHA256_HEX_BYTES);
        all_known = all_known && f->is_known;
    }
    if (all_known)
        return NULL;
    sources_hash_begin(s);
    if (sources_hash_end(s, NULL))
        return "the model cannot be read";
    for (int i = 0; i < s->count; i++)
        if (memcmp(s->files[i].sha256, was[i].sha256, SHA256_HEX_BYTES) != 0)
            return "the model has changed";
    return NULL;
}

bool packed_cache_open(struct packed_cache *c, struct sources *s) {
    struct status st;
    if (sources_stamp(s, &st)) {
        log_write(LOG_WARN, "models", "packed cache: %s", st.message);
        return false;
    }
    if (access(c->path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR))
        return false;
    unsigned char *expected = make_head(c, s);
    c->head = expected ? calloc(1, c->head_bytes) : NULL;
    const char *wrong = c->head ? open_file(c) : "out of memory";
    if (!wrong)
        wrong = read_head(c, expected, s);
    if (!wrong)
        wrong = check_sources(c, s);
    free(expected);
    if (!wrong)
        return true;
    log_write(LOG_WARN, "models", "packed cache %s is not used: %s", c->path, wrong);
    close_file(c);
    return false;
}

/* ---- all threads over all blocks ---- */

struct pass {
    struct packed_cache *c;
    unsigned char *memory;
    const uint64_t *checksums;
    atomic_bool failed;
};

static size_t block_bytes(const struct packed_cache *c, int64_t block) {
    const size_t left = c->o.bytes - (size_t)block * PACKED_CACHE_BLOCK_BYTES;
    return left < PACKED_CACHE_BLOCK_BYTES ? left : PACKED_CACHE_BLOCK_BYTES;
}

static void run_tiles(struct packed_cache *c, void (*fn)(void *arg, int64_t tile, int thread), void *arg) {
    const int64_t tiles = (c->blocks + TILE_BLOCKS - 1) / TILE_BLOCKS;
    int threads = c->o.threads ? c->o.threads : team_count_processors();
    struct team *team = NULL;
    threads = threads > READ_THREADS_MAX ? READ_THREADS_MAX : threads;
    if (tiles > 1)
        (void)team_new(&team, threads, false, 0, NULL);
    if (team)
        team_for(team, tiles, fn, arg);
    else
        for (int64_t i = 0; i < tiles; i++)
            fn(arg, i, 0);
    team_del(team);
}

static void check_tile(void *arg, int64_t tile, int thread) {
    struct pass *p = arg;
    const size_t first = (size_t)tile * HUGE_PAGE_BYTES, left = p->c->o.bytes - first;
    (void)thread;
    /* What cannot be read is an error here and would be a signal below. Kernels before 5.14 lack it. */
    if (madvise(p->memory + first, left < HUGE_PAGE_BYTES ? left : HUGE_PAGE_BYTES, MADV_POPULATE_READ) &&
        errno != EINVAL)
        atomic_store(&p->failed, true);
    for (int64_t b = tile * TILE_BLOCKS; b < (tile + 1) * TILE_BLOCKS && b < p->c->blocks; b++) {
        if (atomic_load_explicit(&p->failed, memory_order_relaxed))
            return;
        const unsigned char *block = p->memory + (size_t)b * PACKED_CACHE_BLOCK_BYTES;
        if (xxh64(block, block_bytes(p->c, b), 0) != p->checksums[b])
            atomic_store(&p->failed, true);
    }
}

static void unmap(struct packed_cache *c) {
    if (c->map)
        munmap(c->map, c->map_bytes);
    c->map = NULL;
}

/* Maps the weights where a huge page may begin. NULL: it cannot be. */
static unsigned char *map_weights(struct packed_cache *c) {
    if (!check_add_size(c->o.bytes, HUGE_PAGE_BYTES, &c->map_bytes))
        return NULL;
    c->map = mmap(NULL, c->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->map == MAP_FAILED) {
        c->map = NULL;
        return NULL;
    }
    unsigned char *p = c->map + (HUGE_PAGE_BYTES - (uintptr_t)c->map % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (mmap(p, c->o.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, c->fd, (off_t)c->weights_at) ==
        MAP_FAILED) {
        unmap(c);
        return NULL;
    }
    (void)madvise(p, c->o.bytes, MADV_HUGEPAGE);
    return p;
}

void *packed_cache_read(struct packed_cache *c, struct sources *s) {
    const int64_t begin_ns = clock_now_ns();
    struct pass p = {.c = c, .memory = map_weights(c), .checksums = head_blocks(c->head, s->count)};
    if (p.memory)
        run_tiles(c, check_tile, &p);
    if (p.memory && !atomic_load(&p.failed)) {
        log_write(LOG_INFO, "models", "%.1f MB of packed weights from %s in %.0f ms",
                  (double)c->o.bytes * 1e-6, c->path, clock_elapsed_ms(begin_ns));
        return p.memory;
    }
    log_write(LOG_WARN, "models", "packed cache %s is not used: it %s", c->path,
              p.memory ? "is damaged" : "cannot be mapped");
    unmap(c);
    close_file(c);
    for (int i = 0; i < s->count; i++)
        s->files[i].is_known = false;
    return NULL;
}

static void clear_tile(void *arg, int64_t tile, int thread) {
    struct pass *p = arg;
    (void)thread;
    for (int64_t b = tile * TILE_BLOCKS; b < (tile + 1) * TILE_BLOCKS && b < p->c->blocks; b++)
        memset(p->memory + (size_t)b * PACKED_CACHE_BLOCK_BYTES, 0, block_bytes(p->c, b));
}

void packed_cache_clear(struct packed_cache *c, void *memory) {
    run_tiles(c, clear_tile, &(struct pass){.c = c, .memory = memory});
}

/* ---- writing ---- */

/* The file under its temporary name, empty and locked, so that of several processes one writes. -1: errno. */
static int open_temporary(const struct packed_cache *c) {
    for (int i = 0; i < OPEN_ATTEMPTS_MAX; i++) {
        struct stat mine, there;
        int fd = open(c->temporary, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (fd < 0)
            return -1;
        errno = 0;
        if (fstat(fd, &mine) || !S_ISREG(mine.st_mode) || mine.st_uid != geteuid() ||
            flock(fd, LOCK_EX | LOCK_NB)) {
            const int error = errno ? errno : EPERM;
            close(fd);
            errno = error;
            return -1;
        }
        /* Whoever had the lock may have given the file its real name meanwhile. */
        if (lstat(c->temporary, &there) == 0 && there.st_ino == mine.st_ino && there.st_dev == mine.st_dev &&
            fchmod(fd, 0600) == 0 && ftruncate(fd, 0) == 0)
            return fd;
        close(fd);
    }
    errno = EAGAIN;
    return -1;
}

/* Everything into the open file, the head last. False: errno. */
static bool write_all(struct packed_cache *c, int fd) {
    struct head *h = (struct head *)(void *)c->head;
    uint64_t *blocks = head_blocks(c->head, (int)h->sources), *checksum;
    /* A disk without room says so before anything is written. */
    if (fallocate(fd, 0, 0, (off_t)(c->weights_at + c->o.bytes)) && errno != EOPNOTSUPP && errno != ENOSYS)
        return false;
    for (int64_t tile = 0; tile * TILE_BLOCKS < c->blocks; tile++) {
        const size_t at = (size_t)tile * HUGE_PAGE_BYTES, left = c->o.bytes - at;
        if (clock_now_ns() > atomic_load(&c->give_up_ns)) {
            errno = ECANCELED;
            return false;
        }
        for (int64_t b = tile * TILE_BLOCKS; b < (tile + 1) * TILE_BLOCKS && b < c->blocks; b++)
            blocks[b] = xxh64(c->memory + (size_t)b * PACKED_CACHE_BLOCK_BYTES, block_bytes(c, b), 0);
        /* In pieces that may become huge pages of the file. */
        if (!file_write_at(fd, c->memory + at, left < HUGE_PAGE_BYTES ? left : HUGE_PAGE_BYTES,
                           c->weights_at + at))
            return false;
    }
    const uint64_t sum = head_checksum(c, c->head, (int)h->sources, &checksum);
    *checksum = sum;
    return file_write_at(fd, c->head, c->head_bytes, 0);
}

static void *write_file(void *arg) {
    struct packed_cache *c = arg;
    const int64_t begin_ns = clock_now_ns();
    sigset_t all;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL); /* SIGXFSZ too: beyond a limit there is an error instead */
    (void)setpriority(PRIO_PROCESS, 0, WRITE_NICE); /* of this thread alone, on Linux */
    const int fd = open_temporary(c);
    if (fd < 0 && errno == EWOULDBLOCK) {
        log_write(LOG_INFO, "models", "packed cache %s: another process writes it", c->path);
        return NULL;
    }
    const bool written = fd >= 0 && write_all(c, fd) && rename(c->temporary, c->path) == 0;
    if (written) {
        log_write(LOG_INFO, "models", "packed cache %s: %.1f MB written in %.0f ms", c->path,
                  (double)c->o.bytes * 1e-6, clock_elapsed_ms(begin_ns));
    } else {
        log_write(LOG_WARN, "models", "packed cache %s cannot be written, so the next start packs again: %s",
                  c->path, strerror(errno));
        if (fd >= 0)
            (void)unlink(c->temporary);
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

/* Opens the file that was read for writing. -1: it cannot be, it is another by now, or it lies in an overlay,
 * which would copy it whole. */
static int open_again(const struct packed_cache *c) {
    struct stat mine, there;
    struct statfs system;
    if (fstatfs(c->fd, &system) || system.f_type == OVERLAYFS_SUPER_MAGIC)
        return -1;
    int fd = open(c->path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0 && fstat(c->fd, &mine) == 0 && fstat(fd, &there) == 0 && mine.st_dev == there.st_dev &&
        mine.st_ino == there.st_ino)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* The file that was read fits, but the model's files were moved or touched since. */
static void write_stamps(struct packed_cache *c, const struct sources *s) {
    struct head_source *to = head_sources(c->head);
    uint64_t *checksum;
    for (int i = 0; i < s->count; i++)
        to[i].stamp = s->files[i].stamp;
    const uint64_t sum = head_checksum(c, c->head, s->count, &checksum);
    *checksum = sum;
    const int fd = open_again(c);
    if (fd < 0 || !file_write_at(fd, c->head, c->head_bytes, 0))
        log_write(LOG_INFO, "models", "packed cache %s keeps its old stamps: it cannot be written", c->path);
    if (fd >= 0)
        close(fd);
}

/* Why the sources' stamps cannot be relied on, or NULL. */
static const char *find_unsettled(const struct packed_cache *c, const struct sources *s) {
    const int64_t settled_ns = c->o.begun_ns - (int64_t)PACKED_CACHE_SETTLE_S * 1000000000;
    for (int i = 0; i < s->count; i++)
        if (s->files[i].stamp.mtime_ns > settled_ns || s->files[i].stamp.ctime_ns > settled_ns)
            return "the model was changed just now";
    return sources_are_unchanged(s) ? NULL : "the model changes";
}

void packed_cache_write(struct packed_cache *c, const struct sources *s, const void *memory) {
    if (c->map && !c->is_stale)
        return;
    const char *unsettled = find_unsettled(c, s);
    if (unsettled) {
        log_write(LOG_INFO, "models", "packed cache %s is not written: %s", c->path, unsettled);
        return;
    }
    if (c->map) {
        write_stamps(c, s);
        return;
    }
    free(c->head);
    c->head = make_head(c, s);
    c->memory = memory;
    c->is_writing = c->head && pthread_create(&c->thread, NULL, write_file, c) == 0;
    if (!c->is_writing)
        log_write(LOG_WARN, "models", "packed cache %s cannot be written: out of memory", c->path);
}

void packed_cache_del(struct packed_cache *c) {
    if (!c)
        return;
    if (c->is_writing) {
        atomic_store(&c->give_up_ns, clock_now_ns() + (int64_t)PACKED_CACHE_FINISH_S_MAX * 1000000000);
        pthread_join(c->thread, NULL);
    }
    unmap(c);
    close_file(c);
    free(c->head);
    free(c);
}
