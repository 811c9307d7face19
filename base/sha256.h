/* sha256: SHA-256 (FIPS 180-4) of memory and files, through OpenSSL's libcrypto. */
#ifndef TIMBRE_BASE_SHA256_H
#define TIMBRE_BASE_SHA256_H

#include <stddef.h>

#include "base/status.h"

enum { SHA256_HEX_BYTES = 65 }; /* 64 digits and the zero */

/* `hex` takes SHA256_HEX_BYTES. Errors: RESOURCE_EXHAUSTED, and for the file those of opening and reading it.
 * The file is read in pieces and not mapped, so that it does not count as resident memory. */
int sha256_memory(char *hex, const void *data, size_t bytes, struct status *st);
int sha256_file(char *hex, const char *path, struct status *st);

#endif
