/* simd: one vector of fp32 lanes, the same names on every instruction set.
 *
 * Every file of this folder that computes is compiled once for each instruction set (kernels/CMakeLists.txt)
 * with CPU_ISA set to avx512, avx2 or portable and CPU_LANES to 16, 8 or 4. Vectors are the compiler's own
 * vector type, so the arithmetic operators need no names here. Nothing is contracted by the compiler: v_fma
 * is the only place that fuses, and on the portable set it does not, so that it gives the same bits on every
 * processor. */
#ifndef TIMBRE_KERNELS_CPU_SIMD_H
#define TIMBRE_KERNELS_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if CPU_LANES == 16 || CPU_LANES == 8
#include <immintrin.h>
#endif

enum { LANES = CPU_LANES };

typedef float vf __attribute__((vector_size(4 * CPU_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * CPU_LANES)));
typedef float vf_in_memory __attribute__((vector_size(4 * CPU_LANES), may_alias, aligned(4)));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Unrolls the loop that follows, which has at most 16 rounds, completely. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

ALWAYS_INLINE vf v_load(const float *p) {
    return *(const vf_in_memory *)p;
}

ALWAYS_INLINE void v_store(float *p, vf v) {
    *(vf_in_memory *)p = v;
}

ALWAYS_INLINE vf v_set(float x) {
#if CPU_LANES == 16
    return (vf)_mm512_set1_ps(x);
#elif CPU_LANES == 8
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

ALWAYS_INLINE vf v_zero(void) {
    return (vf){0};
}

/* a * b + c */
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) {
#if CPU_LANES == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif CPU_LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Lanes where m is all ones from a, where it is zero from b. */
ALWAYS_INLINE vf v_select(vi m, vf a, vf b) {
    return (vf)((m & (vi)a) | (~m & (vi)b));
}

ALWAYS_INLINE vf v_max(vf a, vf b) {
#if CPU_LANES == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif CPU_LANES == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return v_select(a > b, a, b);
#endif
}

ALWAYS_INLINE vf v_min(vf a, vf b) {
#if CPU_LANES == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif CPU_LANES == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return v_select(a < b, a, b);
#endif
}

/* All ones in the first n lanes, zero in the others. */
ALWAYS_INLINE vi v_first(int n) {
    vi lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    return lane < (vi){0} + n;
}

/* The first n < LANES elements at p, zeros behind them; reads nothing else. */
ALWAYS_INLINE vf v_load_first(const float *p, int n) {
#if CPU_LANES == 16
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++)
        lane[i] = p[i];
    return v_load(lane);
#endif
}

ALWAYS_INLINE void v_store_first(float *p, vf v, int n) {
#if CPU_LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    float lane[LANES];
    v_store(lane, v);
    for (int i = 0; i < n; i++)
        p[i] = lane[i];
#endif
}

/* Over all lanes, in a fixed order: halves onto each other. */
ALWAYS_INLINE float v_sum(vf v) {
#if CPU_LANES == 16
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif CPU_LANES == 8
    __m256 h = (__m256)v;
#endif
#if CPU_LANES == 4
    return (v[0] + v[2]) + (v[1] + v[3]);
#else
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#endif
}

ALWAYS_INLINE float v_highest(vf v) {
#if CPU_LANES == 16
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif CPU_LANES == 8
    __m256 h = (__m256)v;
#endif
#if CPU_LANES == 4
    float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
#else
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
#endif
}

/* p[0], p[stride], p[2 stride], ... */
ALWAYS_INLINE vf v_load_strided(const float *p, int stride) {
    vi at;
    for (int i = 0; i < LANES; i++)
        at[i] = i * stride;
#if CPU_LANES == 16
    return (vf)_mm512_i32gather_ps((__m512i)at, p, 4);
#elif CPU_LANES == 8
    return (vf)_mm256_i32gather_ps(p, (__m256i)at, 4);
#else
    return (vf){p[at[0]], p[at[1]], p[at[2]], p[at[3]]};
#endif
}

#endif
