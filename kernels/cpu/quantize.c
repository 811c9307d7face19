#include "kernels/cpu/quantize.h"

#if CPU_HAS_INT8

enum {
    ROWS = 16, /* of one tile */
    EACH = 32, /* numbers that are taken together */
};

/* A sum above this one has its nearest integer in the low bits: 1.5 * 2^23. */
#define ROUND 12582912.0f

/* Bytes from the least to the greatest number, a little less than 255, and what is added before the byte of
 * zero is rounded: with both, no rounding takes a byte below 0 or above 255. */
#define STEPS 254.99f
#define SLACK 0.002f

/* A row of smaller numbers is zeros: what they are multiplied by would not be finite. */
#define RANGE_MIN 1e-30f

/* EACH numbers as fp32: of bf16 those with even and those with odd places, else the first and second half. */
struct numbers {
    vf a, b;
};

#if CPU_HAS_BF16
ALWAYS_INLINE struct numbers widen(__m512i x) {
    return (struct numbers){(vf)_mm512_slli_epi32(x, 16), (vf)((vi)x & (vi)_mm512_set1_epi32(-65536))};
}

ALWAYS_INLINE struct numbers load(const element *p) {
    return widen(_mm512_loadu_si512(p));
}

ALWAYS_INLINE struct numbers load_first(const element *p, int n) {
    return widen(_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), p));
}

/* The low bytes of EACH sums. */
ALWAYS_INLINE __m256i take_bytes(struct numbers y) {
    const vi low = (vi){0} + 0xff;
    return _mm512_cvtepi32_epi16((__m512i)(((vi)y.a & low) | ((vi)y.b << 8 & ~low)));
}
#else
ALWAYS_INLINE struct numbers load(const element *p) {
    return (struct numbers){v_load(p), v_load(p + LANES)};
}

ALWAYS_INLINE struct numbers load_first(const element *p, int n) {
    if (n < LANES)
        return (struct numbers){v_load_first(p, n), v_zero()};
    return (struct numbers){v_load(p), v_load_first(p + LANES, n - LANES)};
}

ALWAYS_INLINE __m256i take_bytes(struct numbers y) {
    return _mm256_set_m128i(_mm512_cvtepi32_epi8((__m512i)y.b), _mm512_cvtepi32_epi8((__m512i)y.a));
}
#endif

/* Numbers i .. of a, or of a - b; `n` of them, zeros behind. */
ALWAYS_INLINE struct numbers take(const element *a, const element *b, int64_t i, int64_t n) {
    const struct numbers x = n >= EACH ? load(a + i) : load_first(a + i, (int)n);
    if (!b)
        return x;
    const struct numbers y = n >= EACH ? load(b + i) : load_first(b + i, (int)n);
    return (struct numbers){x.a - y.a, x.b - y.b};
}

/* Of numbers as integers the signed maximum is the greatest one, where one is positive, and the unsigned
 * maximum the least one, where one is negative. That takes half the time of comparing numbers, and what is no
 * number comes out on top. */
struct range {
    __m512i high, low;
};

ALWAYS_INLINE struct range widen_range(struct range r, struct numbers x) {
    r.high = _mm512_max_epi32(_mm512_max_epi32(r.high, (__m512i)x.a), (__m512i)x.b);
    r.low = _mm512_max_epu32(_mm512_max_epu32(r.low, (__m512i)x.a), (__m512i)x.b);
    return r;
}

ALWAYS_INLINE __m128i fold(__m512i x) {
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i v = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_max_epi32(v, _mm_unpackhi_epi64(v, v));
}

/* The greatest number and the least one without its sign; 0 where there is none on that side. */
ALWAYS_INLINE void find_range(const element *a, const element *b, int64_t n, float *highest, float *lowest) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    struct range r = {_mm512_setzero_si512(), sign};
    int64_t i = 0;
#if CPU_HAS_BF16
    if (!b) {
        __m512i high = _mm512_setzero_si512(), low = _mm512_set1_epi16(INT16_MIN);
        for (; i + EACH <= n; i += EACH) {
            const __m512i x = _mm512_loadu_si512(a + i);
            high = _mm512_max_epi16(high, x);
            low = _mm512_max_epu16(low, x);
        }
        const struct numbers h = widen(high), l = widen(low);
        r.high = _mm512_max_epi32((__m512i)h.a, (__m512i)h.b);
        r.low = _mm512_max_epu32((__m512i)l.a, (__m512i)l.b);
    }
#endif
    for (; i < n; i += EACH)
        r = widen_range(r, take(a, b, i, n - i));
    const __m128i high = fold(r.high), low = fold(_mm512_xor_si512(r.low, sign));
    const __m128 both = (__m128)_mm_max_epi32(_mm_unpacklo_epi64(high, low),
                                              _mm_shuffle_epi32(_mm_unpacklo_epi64(high, low), 0xb1));
    *highest = both[0];
    *lowest = both[2];
}

/* The greater of two numbers without sign. */
ALWAYS_INLINE float find_higher(float a, float b) {
    return ((__m128)_mm_max_epi32((__m128i)_mm_set_ss(a), (__m128i)_mm_set_ss(b)))[0];
}

/* What a row is multiplied by and added to before its bytes are the low ones. */
struct line {
    vf factor, zero;
};

ALWAYS_INLINE struct line find_line(float high, float low, float *scale, float *min) {
    const float range = high + low, factor = range > RANGE_MIN ? STEPS / range : 0.0f;
    const float zero = low * factor + SLACK + ROUND; /* of which the low bits are the byte of 0 */
    *scale = range * (1.0f / STEPS);
    *min = (ROUND - zero) * *scale;
    return (struct line){v_set(factor), v_set(zero)};
}

ALWAYS_INLINE void quantize(uint8_t *to, struct line l, const element *a, const element *b, int64_t n) {
    int64_t i = 0;
    for (; i + EACH <= n; i += EACH) {
        const struct numbers x = take(a, b, i, EACH);
        const struct numbers y = {v_fma(x.a, l.factor, l.zero), v_fma(x.b, l.factor, l.zero)};
        _mm256_storeu_si256((__m256i *)(void *)(to + i), take_bytes(y));
    }
    if (i < n) {
        const struct numbers x = take(a, b, i, n - i);
        const struct numbers y = {v_fma(x.a, l.factor, l.zero), v_fma(x.b, l.factor, l.zero)};
        _mm256_mask_storeu_epi8(to + i, (__mmask32)((1u << (n - i)) - 1), take_bytes(y));
    }
    for (i = n; i < quantize_count_bytes(n); i++)
        to[i] = 0;
}

void quantize_row(uint8_t *to, float *scale, float *min, const element *x, int64_t n) {
    float high, low;
    find_range(x, NULL, n, &high, &low);
    quantize(to, find_line(high, low, scale, min), x, NULL, n);
}

void quantize_difference(uint8_t *to, uint8_t *to_other, float *scale, float *min, const element *a,
                         const element *b, const element *other, int64_t n) {
    float high[2], low[2];
    find_range(a, b, n, high, low);
    find_range(other, NULL, n, high + 1, low + 1);
    /* As integers: what is no number stays on top. */
    const float highest = find_higher(high[0], high[1]), lowest = find_higher(low[0], low[1]);
    const struct line l = find_line(highest, lowest, scale, min);
    quantize(to, l, a, b, n);
    quantize(to_other, l, other, NULL, n);
}

void quantize_together(uint8_t *to, float *scale, float *min, const element *x, int64_t stride, int64_t rows,
                       int64_t n) {
    float highest = 0.0f, lowest = 0.0f;
    for (int64_t r = 0; r < rows; r++) {
        float high, low;
        find_range(x + r * stride, NULL, n, &high, &low);
        highest = find_higher(highest, high);
        lowest = find_higher(lowest, low);
    }
    const struct line l = find_line(highest, lowest, scale, min);
    for (int64_t r = 0; r < rows; r++)
        quantize(to + r * stride, l, x + r * stride, NULL, n);
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
