#include "kernels/cpu/quantize.h"

#if CPU_HAS_INT8

#include <math.h>

enum { ROWS = 16 }; /* of one tile */

ALWAYS_INLINE float find_lowest(vf v) {
    return -v_highest(v_zero() - v);
}

void quantize_row(uint8_t *to, float *scale, float *min, const element *x, int64_t n) {
    const int rest = (int)(n % LANES);
    vf low[2] = {v_set(INFINITY), v_set(INFINITY)}, high[2] = {v_set(-INFINITY), v_set(-INFINITY)};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        UNROLL
        for (int j = 0; j < 2; j++) {
            const vf v = element_load(x + i + j * LANES);
            low[j] = v_min(low[j], v);
            high[j] = v_max(high[j], v);
        }
    }
    for (; i < n; i += LANES) {
        const vf v = i + LANES <= n
                         ? element_load(x + i)
                         : v_select(v_first(rest), element_load_first(x + i, rest), v_set(element_get(x[0])));
        low[0] = v_min(low[0], v);
        high[0] = v_max(high[0], v);
    }
    const float lowest = find_lowest(v_min(low[0], low[1])),
                range = v_highest(v_max(high[0], high[1])) - lowest;
    const vf factor = v_set(range > 0 ? 255.0f / range : 0.0f), least = v_set(lowest);
    *min = lowest;
    *scale = range > 0 ? range / 255.0f : 0.0f;
    for (i = 0; i + LANES <= n; i += LANES) {
        const __m512i q = _mm512_cvtps_epi32((__m512)((element_load(x + i) - least) * factor));
        _mm_storeu_si128((__m128i *)(void *)(to + i), _mm512_cvtusepi32_epi8(q));
    }
    if (rest) {
        const __m512i q = _mm512_cvtps_epi32((__m512)((element_load_first(x + i, rest) - least) * factor));
        _mm_mask_storeu_epi8(to + i, (__mmask16)((1u << rest) - 1), _mm512_cvtusepi32_epi8(q));
    }
    for (i = n; i < quantize_count_bytes(n); i++)
        to[i] = 0;
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
