/* check: arithmetic on sizes that came from outside. Each returns true when the result fits, and only then
 * sets *r. */
#ifndef TIMBRE_BASE_CHECK_H
#define TIMBRE_BASE_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool check_add_u64(uint64_t a, uint64_t b, uint64_t *r) {
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *r = sum;
    return true;
}

static inline bool check_mul_u64(uint64_t a, uint64_t b, uint64_t *r) {
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *r = product;
    return true;
}

static inline bool check_add_size(size_t a, size_t b, size_t *r) {
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *r = sum;
    return true;
}

static inline bool check_mul_size(size_t a, size_t b, size_t *r) {
    size_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *r = product;
    return true;
}

/* True when [offset, offset + bytes) lies within [0, total). Holds for bytes = 0 at offset = total. */
static inline bool check_range_u64(uint64_t offset, uint64_t bytes, uint64_t total) {
    return offset <= total && bytes <= total - offset;
}

#endif
