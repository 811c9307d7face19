#include "base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE_BYTES = 1 << 18 };

static void to_hex(char *hex, const unsigned char *digest) {
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

int sha256_memory(char *hex, const void *data, size_t bytes, struct status *st) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    if (!EVP_Digest(data, bytes, digest, NULL, EVP_sha256(), NULL))
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "SHA-256 could not be computed");
    to_hex(hex, digest);
    return 0;
}

int sha256_file(char *hex, const char *path, struct status *st) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    int result = -1, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return status_set(st,
                          errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_INVALID_ARGUMENT,
                          "%s: %s", path, strerror(errno));
    unsigned char *piece = malloc(PIECE_BYTES);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (!piece || !ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)) {
        status_set_no_memory(st, PIECE_BYTES, "SHA-256");
        goto done;
    }
    for (;;) {
        ssize_t n = read(fd, piece, PIECE_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s", path, strerror(errno));
            goto done;
        }
        if (n == 0)
            break;
        EVP_DigestUpdate(ctx, piece, (size_t)n);
    }
    EVP_DigestFinal_ex(ctx, digest, NULL);
    to_hex(hex, digest);
    result = 0;
done:
    EVP_MD_CTX_free(ctx);
    free(piece);
    close(fd);
    return result;
}
