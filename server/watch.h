/* watch: small files that are read again when they change: tokens, certificates. By looking, about once a
 * second: that also works for files which are replaced, and for symbolic links that are turned elsewhere. */
#ifndef TIMBRE_SERVER_WATCH_H
#define TIMBRE_SERVER_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/sha256.h"
#include "base/status.h"

enum { WATCH_BYTES_MAX = 1 << 20 };

/* Of one owner at a time. Set `path`, which must stay, and leave the rest zero. */
struct watch {
    const char *path;
    uint64_t device, inode;
    int64_t bytes, modified_ns, changed_ns;
    bool settled; /* it was some time ago that the file was written, so the next write will show in its times
                   */
    char digest[SHA256_HEX_BYTES]; /* of what was read last */
};

/* Whether the file may hold something else than what watch_read read last: true too often rather than too
 * seldom. A file that is not there any more has changed once. */
bool watch_changed(const struct watch *w);

/* Reads the file; watch_free_secret(*data, *bytes). `fresh`: it holds something else than at the last
 * successful call. Errors: those of file_read; what is over WATCH_BYTES_MAX. */
int watch_read(struct watch *w, char **data, size_t *bytes, bool *fresh, struct status *st);

/* Wipes and frees; NULL is fine. */
void watch_free_secret(char *data, size_t bytes);

#endif
