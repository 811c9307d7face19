#include "kernels/cpu/quantize.h"

#if CPU_HAS_INT8

#include <math.h>

enum { ROWS = 16 }; /* of one tile */

/* Numbers i .. of a, or of a - b. */
ALWAYS_INLINE vf load(const element *a, const element *b, int64_t i) {
    const vf v = element_load(a + i);
    return b ? v - element_load(b + i) : v;
}

ALWAYS_INLINE vf load_first(const element *a, const element *b, int64_t i, int n) {
    const vf v = element_load_first(a + i, n);
    return b ? v - element_load_first(b + i, n) : v;
}

ALWAYS_INLINE void find_range(const element *a, const element *b, int64_t n, float *lowest, float *highest) {
    const int rest = (int)(n % LANES);
    vf low[2] = {v_set(INFINITY), v_set(INFINITY)}, high[2] = {v_set(-INFINITY), v_set(-INFINITY)};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        UNROLL
        for (int j = 0; j < 2; j++) {
            const vf v = load(a, b, i + j * LANES);
            low[j] = v_min(low[j], v);
            high[j] = v_max(high[j], v);
        }
    }
    for (; i < n; i += LANES) {
        const float any = element_get(a[0]) - (b ? element_get(b[0]) : 0.0f);
        const vf v =
            i + LANES <= n ? load(a, b, i) : v_select(v_first(rest), load_first(a, b, i, rest), v_set(any));
        low[0] = v_min(low[0], v);
        high[0] = v_max(high[0], v);
    }
    *lowest = -v_highest(v_zero() - v_min(low[0], low[1]));
    *highest = v_highest(v_max(high[0], high[1]));
}

#if CPU_HAS_BF16
/* bf16 as integers in the same order, and back. */
ALWAYS_INLINE __m512i order(__m512i x) {
    return _mm512_xor_si512(x, _mm512_srli_epi16(_mm512_srai_epi16(x, 15), 1));
}

ALWAYS_INLINE float of_order(uint32_t x) {
    return element_get((element)(x & 0x8000 ? x ^ 0x7fff : x));
}

ALWAYS_INLINE __m128i fold(__m512i x, bool least) {
    const __m256i a = _mm512_castsi512_si256(x), b = _mm512_extracti64x4_epi64(x, 1);
    const __m256i h = least ? _mm256_min_epi16(a, b) : _mm256_max_epi16(a, b);
    const __m128i c = _mm256_castsi256_si128(h), d = _mm256_extracti128_si256(h, 1);
    return least ? _mm_min_epi16(c, d) : _mm_max_epi16(c, d);
}

/* find_range of a row of bf16, 32 numbers at a time. */
ALWAYS_INLINE void find_range_bf16(const element *x, int64_t n, float *lowest, float *highest) {
    const __m512i any = _mm512_set1_epi16((short)x[0]);
    __m512i low = order(any), high = low;
    for (int64_t i = 0; i < n; i += 32) {
        const __mmask32 mask = n - i < 32 ? (__mmask32)((1u << (n - i)) - 1) : (__mmask32)-1;
        const __m512i v = order(_mm512_mask_loadu_epi16(any, mask, x + i));
        low = _mm512_min_epi16(low, v);
        high = _mm512_max_epi16(high, v);
    }
    /* There is an instruction for the least of eight unsigned numbers. */
    const __m128i l = _mm_xor_si128(fold(low, true), _mm_set1_epi16((short)0x8000));
    const __m128i h = _mm_sub_epi16(_mm_set1_epi16(0x7fff), fold(high, false));
    *lowest = of_order(((uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(l)) & 0xffff) ^ 0x8000);
    *highest = of_order((0x7fff - (uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(h))) & 0xffff);
}
#endif

ALWAYS_INLINE void quantize(uint8_t *to, float *scale, float *min, const element *a, const element *b,
                            int64_t n) {
    float lowest, highest;
#if CPU_HAS_BF16
    if (!b)
        find_range_bf16(a, n, &lowest, &highest);
    else
#endif
        find_range(a, b, n, &lowest, &highest);
    const float range = highest - lowest;
    const vf factor = v_set(range > 0 ? 255.0f / range : 0.0f), least = v_set(lowest);
    const int rest = (int)(n % LANES);
    int64_t i = 0;
    *min = lowest;
    *scale = range > 0 ? range / 255.0f : 0.0f;
    for (; i + LANES <= n; i += LANES) {
        const __m512i q = _mm512_cvtps_epi32((__m512)((load(a, b, i) - least) * factor));
        _mm_storeu_si128((__m128i *)(void *)(to + i), _mm512_cvtusepi32_epi8(q));
    }
    if (rest) {
        const __m512i q = _mm512_cvtps_epi32((__m512)((load_first(a, b, i, rest) - least) * factor));
        _mm_mask_storeu_epi8(to + i, (__mmask16)((1u << rest) - 1), _mm512_cvtusepi32_epi8(q));
    }
    for (i = n; i < quantize_count_bytes(n); i++)
        to[i] = 0;
}

void quantize_row(uint8_t *to, float *scale, float *min, const element *x, int64_t n) {
    quantize(to, scale, min, x, NULL, n);
}

void quantize_difference(uint8_t *to, float *scale, float *min, const element *a, const element *b,
                         int64_t n) {
    quantize(to, scale, min, a, b, n);
}

struct job {
    struct kernels_device *device;
    const element *x;
    int64_t rows, n;
};

static void run(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    struct kernels_device *d = j->device;
    (void)thread;
    for (int64_t r = index * ROWS; r < cpu_min(j->rows, (index + 1) * ROWS); r++)
        quantize_row(d->quantized + r * quantize_count_bytes(j->n), d->row_scale + r, d->row_min + r,
                     j->x + r * j->n, j->n);
}

void quantize_rows(struct kernels_device *d, const element *x, int64_t rows, int64_t n) {
    struct job j = {.device = d, .x = x, .rows = rows, .n = n};
    cpu_for(d, cpu_divide_up(rows, ROWS), CPU_ELEMENT_FLOP * rows * n, run, &j);
}

#else

typedef int quantize_nothing; /* no file may be empty */

#endif
