/* elements: reading and writing activations on the host, for the twins of the libraries. */
#ifndef TIMBRE_KERNELS_CUDA_HOST_ELEMENTS_H
#define TIMBRE_KERNELS_CUDA_HOST_ELEMENTS_H

#include <stdint.h>
#include <string.h>

#include "kernels/cuda/launch.h"

static inline float element_get(enum cuda_type type, const void *p, int64_t i) {
    if (type == CUDA_F32)
        return ((const float *)p)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounded to the nearest, ties to even. */
static inline void element_put(enum cuda_type type, void *p, int64_t i, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (type == CUDA_F32)
        ((float *)p)[i] = x;
    else if (x != x)
        ((uint16_t *)p)[i] = 0x7FFF;
    else
        ((uint16_t *)p)[i] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
