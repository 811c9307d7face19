/* xxh64: a fast checksum against accidents, not against people who mean it.
 *
 * XXH64 as its specification defines it (Y. Collet, "xxHash fast digest algorithm", version 0.1.1): about 15
 * bytes a nanosecond, in plain C. */
#ifndef TIMBRE_BASE_XXH64_H
#define TIMBRE_BASE_XXH64_H

#include <stddef.h>
#include <stdint.h>

/* The same on every machine. A checksum given as `seed` makes a chain of blocks. */
uint64_t xxh64(const void *data, size_t bytes, uint64_t seed);

#endif
