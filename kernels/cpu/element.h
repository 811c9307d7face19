/* element: what activations are made of in memory. fp32, or with CPU_HAS_BF16 bf16, widened when it is read
 * and rounded to the nearest (ties to even) when it is written; between the two everything is fp32. */
#ifndef TIMBRE_KERNELS_CPU_ELEMENT_H
#define TIMBRE_KERNELS_CPU_ELEMENT_H

#include "kernels/cpu/simd.h"

#if CPU_HAS_BF16

typedef uint16_t element;

ALWAYS_INLINE vf element_load(const element *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return (vf)_mm512_slli_epi32(wide, 16);
}

ALWAYS_INLINE void element_store(element *p, vf v) {
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

/* The first n < LANES, as v_load_first and v_store_first. */
ALWAYS_INLINE vf element_load_first(const element *p, int n) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
    return (vf)_mm512_slli_epi32(wide, 16);
}

ALWAYS_INLINE void element_store_first(element *p, vf v, int n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

ALWAYS_INLINE float element_get(element x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

ALWAYS_INLINE element element_of(float x) {
    element one;
    element_store_first(&one, v_set(x), 1);
    return one;
}

#else

typedef float element;

ALWAYS_INLINE vf element_load(const element *p) {
    return v_load(p);
}

ALWAYS_INLINE void element_store(element *p, vf v) {
    v_store(p, v);
}

ALWAYS_INLINE vf element_load_first(const element *p, int n) {
    return v_load_first(p, n);
}

ALWAYS_INLINE void element_store_first(element *p, vf v, int n) {
    v_store_first(p, v, n);
}

ALWAYS_INLINE float element_get(element x) {
    return x;
}

ALWAYS_INLINE element element_of(float x) {
    return x;
}

#endif

#endif
