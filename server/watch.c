#include "server/watch.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"

/* Times of files are as coarse as the kernel's tick, on some file systems a second or two: a file written
 * twice within that looks the same. */
#define SETTLED_NS ((int64_t)3000000000)

static int64_t to_ns(const struct timespec *t) {
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

/* What identifies the file now; zeros when there is none. */
static void look(struct watch *now, const char *path) {
    struct stat info;
    struct timespec clock;
    *now = (struct watch){.path = path, .settled = true};
    if (stat(path, &info) != 0)
        return;
    now->device = info.st_dev;
    now->inode = info.st_ino;
    now->bytes = info.st_size;
    now->modified_ns = to_ns(&info.st_mtim);
    now->changed_ns = to_ns(&info.st_ctim);
    clock_gettime(CLOCK_REALTIME, &clock);
    now->settled = to_ns(&clock) - now->changed_ns > SETTLED_NS;
}

bool watch_changed(const struct watch *w) {
    struct watch now;
    look(&now, w->path);
    return !w->settled || now.device != w->device || now.inode != w->inode || now.bytes != w->bytes ||
           now.modified_ns != w->modified_ns || now.changed_ns != w->changed_ns;
}

int watch_read(struct watch *w, char **data, size_t *bytes, bool *fresh, struct status *st) {
    struct watch now; /* from before reading: a write in between is then seen the next time */
    look(&now, w->path);
    memcpy(now.digest, w->digest, sizeof now.digest);
    *w = now;
    if (file_read(data, bytes, w->path, WATCH_BYTES_MAX, "the limit of such a file", st))
        return -1;
    char digest[SHA256_HEX_BYTES];
    if (sha256_memory(digest, *data, *bytes, st)) {
        watch_free_secret(*data, *bytes);
        *data = NULL;
        return -1;
    }
    *fresh = strcmp(digest, w->digest) != 0;
    memcpy(w->digest, digest, sizeof digest);
    return 0;
}

void watch_free_secret(char *data, size_t bytes) {
    if (data)
        OPENSSL_cleanse(data, bytes);
    free(data);
}
