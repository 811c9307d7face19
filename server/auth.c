/* auth: the table of hashes is read whole and then only read; a reload puts another in its place. */
#include "server/auth.h"

#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "server/watch.h"

struct entry {
    unsigned char hash[SHA256_DIGEST_LENGTH];
    char name[AUTH_NAME_BYTES];
    int line;
};

struct table {
    int count;
    struct entry entries[]; /* [count] by hash */
};

struct auth {
    struct watch watch; /* of the thread that polls */
    char path[4096];
    char told[STATUS_MESSAGE_BYTES_MAX]; /* what is wrong with the file, as it was logged; "" when all is well
                                          */
    pthread_rwlock_t lock;               /* of the pointer and what it points to */
    struct table *table;
};

/* ---- reading the file ---- */

static int hex_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_hash(unsigned char *hash, const char *text) {
    if (strlen(text) != (size_t)2 * SHA256_DIGEST_LENGTH)
        return false;
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        hash[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

/* A name goes to logs as it is. */
static bool is_name(const char *text) {
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return false;
    return n > 0 && n < AUTH_NAME_BYTES;
}

/* One line without its end; it is changed. 0: nothing in it, 1: an entry, -1: wrong. The message never
 * repeats the line, which may be a token. */
static int parse_line(struct entry *e, char *line, const char *path, int number, struct status *st) {
    char *rest = NULL;
    const char *name = strtok_r(line, " \t\r", &rest);
    if (!name || name[0] == '#')
        return 0;
    const char *hash = strtok_r(NULL, " \t\r", &rest);
    const char *more = strtok_r(NULL, " \t\r", &rest);
    if (!hash || !parse_hash(e->hash, hash) || (more && more[0] != '#'))
        return status_set(
            st, STATUS_INVALID_ARGUMENT,
            "%s:%d: not a name and the SHA-256 of a token as 64 hexadecimal digits; `printf %%s "
            "TOKEN | sha256sum` tells them, the token itself must not stand here",
            path, number);
    if (!is_name(name))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s:%d: the name is not of 1 to %d printable ASCII characters", path, number,
                          AUTH_NAME_BYTES - 1);
    strcpy(e->name, name);
    e->line = number;
    return 1;
}

static int compare_entries(const void *a, const void *b) {
    return memcmp(((const struct entry *)a)->hash, ((const struct entry *)b)->hash, SHA256_DIGEST_LENGTH);
}

/* Two names for one token would make the log lie about one of them. */
static int check_doubles(struct table *t, const char *path, struct status *st) {
    qsort(t->entries, (size_t)t->count, sizeof *t->entries, compare_entries);
    for (int i = 1; i < t->count; i++) {
        int a = t->entries[i - 1].line, b = t->entries[i].line;
        if (compare_entries(&t->entries[i - 1], &t->entries[i]) == 0)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s:%d: the same hash as in line %d", path,
                              a > b ? a : b, a > b ? b : a);
    }
    return 0;
}

static int parse_lines(struct table *t, char *text, size_t bytes, const char *path, struct status *st) {
    if (strlen(text) != bytes)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: holds zero bytes, so it is no file of tokens",
                          path);
    int number = 0;
    for (char *line = text, *next; line; line = next) {
        struct entry e;
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        int found = parse_line(&e, line, path, ++number, st);
        if (found < 0)
            return -1;
        if (found && t->count == AUTH_TOKENS_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s:%d: more than %d tokens", path, number,
                              AUTH_TOKENS_MAX);
        if (found)
            t->entries[t->count++] = e;
    }
    if (t->count == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: no token in it, so nobody could call", path);
    return check_doubles(t, path, st);
}

/* Reads the file; *t stays NULL when it holds what it held before. */
static int read_table(struct auth *a, struct table **t, struct status *st) {
    char *text;
    size_t bytes;
    bool fresh;
    *t = NULL;
    if (watch_read(&a->watch, &text, &bytes, &fresh, st))
        return -1;
    int result = 0;
    if (fresh) {
        *t = calloc(1, sizeof **t + AUTH_TOKENS_MAX * sizeof *(*t)->entries);
        result = *t ? parse_lines(*t, text, bytes, a->path, st)
                    : status_set_no_memory(st, AUTH_TOKENS_MAX * sizeof *(*t)->entries, "tokens");
    }
    watch_free_secret(text, bytes);
    if (result) {
        free(*t);
        *t = NULL;
    }
    return result;
}

int auth_new(struct auth **out, const char *path, struct status *st) {
    *out = NULL;
    struct auth *a = calloc(1, sizeof *a);
    if (!a)
        return status_set_no_memory(st, sizeof *a, "tokens");
    if (strlen(path) >= sizeof a->path) {
        free(a);
        return status_set(st, STATUS_INVALID_ARGUMENT, "token-file: its path has more than %zu bytes",
                          sizeof a->path - 1);
    }
    strcpy(a->path, path);
    a->watch.path = a->path;
    pthread_rwlock_init(&a->lock, NULL);
    if (read_table(a, &a->table, st)) {
        auth_del(a);
        return -1;
    }
    *out = a;
    return 0;
}

void auth_del(struct auth *a) {
    if (!a)
        return;
    pthread_rwlock_destroy(&a->lock);
    free(a->table);
    free(a);
}

void auth_poll(struct auth *a) {
    struct status st = {0};
    struct table *t = NULL;
    if (!watch_changed(&a->watch))
        return;
    if (read_table(a, &t, &st)) {
        if (strcmp(st.message, a->told) != 0)
            log_write(LOG_WARN, "auth", "%s; the tokens read before stay valid", st.message);
        memcpy(a->told, st.message, sizeof a->told);
        return;
    }
    if (!t)
        return;
    pthread_rwlock_wrlock(&a->lock);
    struct table *old = a->table;
    a->table = t;
    pthread_rwlock_unlock(&a->lock);
    free(old);
    a->told[0] = 0;
    log_write(LOG_INFO, "auth", "%s: %d tokens read", a->path, t->count);
}

/* ---- checking a call ---- */

/* Finds the token in "Bearer TOKEN" (RFC 6750). */
static int find_token(const char *header, size_t bytes, const char **token, size_t *token_bytes,
                      struct status *st) {
    static const char scheme[] = "bearer ";
    const size_t scheme_bytes = sizeof scheme - 1;
    if (!header)
        return status_set(st, STATUS_UNAUTHENTICATED, "no token: send \"authorization: Bearer TOKEN\"");
    if (bytes < scheme_bytes || strncasecmp(header, scheme, scheme_bytes) != 0)
        return status_set(st, STATUS_UNAUTHENTICATED, "authorization: not of the form \"Bearer TOKEN\"");
    size_t at = scheme_bytes;
    while (at < bytes && header[at] == ' ')
        at++;
    *token = header + at;
    *token_bytes = bytes - at;
    if (*token_bytes == 0)
        return status_set(st, STATUS_UNAUTHENTICATED, "authorization: the token is empty");
    if (*token_bytes > AUTH_TOKEN_BYTES_MAX)
        return status_set(st, STATUS_UNAUTHENTICATED, "authorization: the token has more than %d bytes",
                          AUTH_TOKEN_BYTES_MAX);
    for (size_t i = 0; i < *token_bytes; i++)
        if ((*token)[i] <= ' ' || (*token)[i] > '~')
            return status_set(st, STATUS_UNAUTHENTICATED,
                              "authorization: the token holds a byte that is not printable ASCII");
    return 0;
}

/* The index of the entry, or -1. Every entry is compared, and none in a time that depends on its bytes. */
static int find_entry(const struct table *t, const unsigned char *hash) {
    unsigned found = 0;
    for (int i = 0; i < t->count; i++) {
        const unsigned differs = CRYPTO_memcmp(t->entries[i].hash, hash, SHA256_DIGEST_LENGTH) != 0;
        const unsigned mask = differs - 1; /* all ones where it is equal */
        found = (found & ~mask) | ((unsigned)(i + 1) & mask);
    }
    return (int)found - 1;
}

int auth_check(struct auth *a, const char *header, size_t bytes, char name[AUTH_NAME_BYTES],
               struct status *st) {
    const char *token = NULL;
    size_t token_bytes = 0;
    unsigned char hash[SHA256_DIGEST_LENGTH];
    name[0] = 0;
    if (find_token(header, bytes, &token, &token_bytes, st))
        return -1;
    if (!SHA256((const unsigned char *)token, token_bytes, hash))
        return status_set_no_memory(st, token_bytes, "a hash");
    pthread_rwlock_rdlock(&a->lock);
    int i = find_entry(a->table, hash);
    if (i >= 0)
        memcpy(name, a->table->entries[i].name, AUTH_NAME_BYTES);
    pthread_rwlock_unlock(&a->lock);
    OPENSSL_cleanse(hash, sizeof hash);
    return i >= 0 ? 0 : status_set(st, STATUS_UNAUTHENTICATED, "authorization: the token is not known here");
}
