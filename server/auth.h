/* auth: bearer tokens. The file holds one `NAME SHA256HEX` a line (# begins a comment), the hash of the
 * token: tokens themselves stand nowhere. */
#ifndef TIMBRE_SERVER_AUTH_H
#define TIMBRE_SERVER_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct auth;
enum { AUTH_TOKENS_MAX = 4096, AUTH_TOKEN_BYTES_MAX = 4096, AUTH_NAME_BYTES = 64 };

/* Reads the file. Errors name file and line. */
int auth_new(struct auth **a, const char *path, struct status *st);
void auth_del(struct auth *a); /* NULL is fine */

/* Whether `header` [bytes], the value of `authorization`, is "Bearer TOKEN" (the scheme in any case) with a
 * token of the file; all entries are compared, in a time that does not depend on which one matches. On
 * success the entry's name is copied to `name` (for logs). Errors, UNAUTHENTICATED: no header (NULL), another
 * scheme, a token nobody knows; the token is never repeated. Thread-safe. */
int auth_check(struct auth *a, const char *header, size_t bytes, char name[AUTH_NAME_BYTES],
               struct status *st);

/* Reads the file again if it changed (size, time or inode). A file that is wrong is logged once and the old
 * tokens stay. Called about once a second by one thread. */
void auth_poll(struct auth *a);

#endif
