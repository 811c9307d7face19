#include "base/xxh64.h"

#include <string.h>

static const uint64_t P1 = 0x9e3779b185ebca87, P2 = 0xc2b2ae3d27d4eb4f, P3 = 0x165667b19e3779f9,
                      P4 = 0x85ebca77c2b2ae63, P5 = 0x27d4eb2f165667c5;

static uint64_t rotate(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

static uint64_t load(const unsigned char *p, int bytes) {
    uint64_t x = 0;
    memcpy(&x, p, (size_t)bytes); /* where that is not little-endian, it is put right */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    x = __builtin_bswap64(x);
#endif
    return x;
}

static uint64_t mix(uint64_t lane, uint64_t x) {
    return rotate(lane + x * P2, 31) * P1;
}

/* The stripes of 32 bytes, four lanes side by side. */
static uint64_t read_stripes(const unsigned char *p, size_t stripes, uint64_t seed) {
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
    for (; stripes > 0; stripes--, p += 32) {
        a = mix(a, load(p, 8));
        b = mix(b, load(p + 8, 8));
        c = mix(c, load(p + 16, 8));
        d = mix(d, load(p + 24, 8));
    }
    uint64_t x = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    x = (x ^ mix(0, a)) * P1 + P4;
    x = (x ^ mix(0, b)) * P1 + P4;
    x = (x ^ mix(0, c)) * P1 + P4;
    return (x ^ mix(0, d)) * P1 + P4;
}

uint64_t xxh64(const void *data, size_t bytes, uint64_t seed) {
    const unsigned char *p = data, *end = p + bytes;
    uint64_t x = bytes >= 32 ? read_stripes(p, bytes / 32, seed) : seed + P5;
    p += bytes / 32 * 32;
    x += bytes;
    for (; end - p >= 8; p += 8)
        x = rotate(x ^ mix(0, load(p, 8)), 27) * P1 + P4;
    if (end - p >= 4) {
        x = rotate(x ^ load(p, 4) * P1, 23) * P2 + P3;
        p += 4;
    }
    for (; p < end; p++)
        x = rotate(x ^ *p * P5, 11) * P1;
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}
