/* Reading a tensor as fp32. These loops see every byte of a checkpoint once, so they are written to be vectorised:
 * no branch, no early exit, and a test for NaN and infinity that only ORs integers. */
#include <string.h>

#include "models/checkpoint.h"

enum { BLOCK = 4096 }; /* elements; copied and tested while they are in the first cache */

/* Adding one to the exponent carries into the sign bit exactly when the exponent is all ones, that is for NaN and the
 * infinities. Two floats at a time: the lower one cannot carry into the upper one. */
static const uint64_t exponents = 0x7f8000007f800000, ones = 0x0080000000800000, signs = 0x8000000080000000;

static uint64_t load_u64(const unsigned char *p) {
    uint64_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

static bool is_finite_f32(const unsigned char *p, int64_t n) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8, p += 32) {
        a |= (load_u64(p) & exponents) + ones;
        b |= (load_u64(p + 8) & exponents) + ones;
        c |= (load_u64(p + 16) & exponents) + ones;
        d |= (load_u64(p + 24) & exponents) + ones;
    }
    for (; i < n; i++, p += 4) {
        uint32_t u;
        memcpy(&u, p, sizeof u);
        a |= (u & exponents) + ones;
    }
    return !((a | b | c | d) & signs);
}

/* IEEE 754 binary16 to binary32. A subnormal m * 2^-24 is put together as 2^-14 + m * 2^-24, which is exact, and
 * 2^-14 taken off again: no subnormal arithmetic on the way, whatever the processor's flush modes. */
static bool widen_f16(float *restrict to, const unsigned char *restrict from, int64_t n) {
    const float smallest = 0x1p-14f;
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, sizeof h);
        uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, exponent = h & 0x7c00u;
        uint32_t special = exponent == 0x7c00u ? UINT32_MAX : 0, subnormal = exponent == 0 ? UINT32_MAX : 0;
        uint32_t normal_bits = magnitude + (112u << 23) + (special & (112u << 23));
        uint32_t low_bits = magnitude + (113u << 23);
        float low;
        memcpy(&low, &low_bits, sizeof low);
        low -= smallest;
        memcpy(&low_bits, &low, sizeof low);
        uint32_t bits = (low_bits & subnormal) | (normal_bits & ~subnormal) | (uint32_t)(h & 0x8000) << 16;
        memcpy(to + i, &bits, sizeof bits);
        bad |= special;
    }
    return !bad;
}

/* A bfloat16 is the upper half of a binary32. */
static bool widen_bf16(float *restrict to, const unsigned char *restrict from, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, sizeof h);
        uint32_t bits = (uint32_t)h << 16;
        memcpy(to + i, &bits, sizeof bits);
        bad |= (bits & 0x7f800000u) + 0x00800000u;
    }
    return !(bad >> 31);
}

bool tensor_read_f32(const struct tensor *t, float *to) {
    bool finite = true;
    const unsigned char *p = t->data;
    for (int64_t i = 0; i < t->elements; i += BLOCK) {
        int64_t n = t->elements - i < BLOCK ? t->elements - i : BLOCK;
        if (t->dtype == TENSOR_F32) {
            memcpy(to + i, p + 4 * i, (size_t)n * 4);
            finite &= is_finite_f32((const unsigned char *)(to + i), n);
        } else if (t->dtype == TENSOR_F16) {
            finite &= widen_f16(to + i, p + 2 * i, n);
        } else if (t->dtype == TENSOR_BF16) {
            finite &= widen_bf16(to + i, p + 2 * i, n);
        }
    }
    return finite;
}

bool tensor_is_finite_f32(const struct tensor *t) {
    return t->dtype == TENSOR_F32 && is_finite_f32(t->data, t->elements);
}
