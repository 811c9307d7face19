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

/* r[i][j] and r[j][i] change places. */
ALWAYS_INLINE void v_transpose(vf *r) {
#if CPU_LANES == 16
    __m512 a[16], b[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) { /* pairs of rows, within 128 bits */
        a[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) { /* fours: b[i + j] has column j of each 128 bits */
        UNROLL
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)a[i + j], (__m512d)a[i + j + 2]);
            b[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)a[i + j], (__m512d)a[i + j + 2]);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) { /* then the blocks of 128 bits */
        const __m512 even0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                     odd0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd),
                     even1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88),
                     odd1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
        r[i] = (vf)_mm512_shuffle_f32x4(even0, even1, 0x88);
        r[i + 4] = (vf)_mm512_shuffle_f32x4(odd0, odd1, 0x88);
        r[i + 8] = (vf)_mm512_shuffle_f32x4(even0, even1, 0xdd);
        r[i + 12] = (vf)_mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
#elif CPU_LANES == 8
    __m256 a[8], b[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
        UNROLL
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = (__m256)_mm256_unpacklo_pd((__m256d)a[i + j], (__m256d)a[i + j + 2]);
            b[i + 2 * j + 1] = (__m256)_mm256_unpackhi_pd((__m256d)a[i + j], (__m256d)a[i + j + 2]);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = (vf)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = (vf)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
#else
    const vf a = r[0], b = r[1], c = r[2], d = r[3];
    r[0] = (vf){a[0], b[0], c[0], d[0]};
    r[1] = (vf){a[1], b[1], c[1], d[1]};
    r[2] = (vf){a[2], b[2], c[2], d[2]};
    r[3] = (vf){a[3], b[3], c[3], d[3]};
#endif
}

#endif
