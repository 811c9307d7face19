#include "kernels/cpu/tile.h"

enum { LINE = 64 / sizeof(float) };

/* What this instruction set is there for. */
#define KIND (CPU_HAS_BF16 ? CPU_BF16 : CPU_HAS_INT8 ? CPU_INT8 : CPU_FP32)

/* sum + the product of two words in each lane. */
ALWAYS_INLINE vf multiply_add(enum cpu_kind kind, vf a, vf b, vf sum) {
#if CPU_HAS_BF16
    if (kind == CPU_BF16)
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
#if CPU_HAS_INT8
    if (kind == CPU_INT8) { /* the intrinsic makes gcc 12 spill the sums */
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
#endif
    (void)kind;
    return v_fma(a, b, sum);
}

/* One word of every sum of a tile. */
ALWAYS_INLINE void add_word(enum cpu_kind kind, const int height, const int vectors, vf (*sum)[GEMM_VECTORS],
                            const char *a, int64_t a_stride, const float *b) {
    vf column[GEMM_VECTORS];
    UNROLL
    for (int j = 0; j < vectors; j++)
        column[j] = v_load(b + j * LANES);
    UNROLL
    for (int i = 0; i < height; i++) {
        vf x = v_set(*(const word *)(const void *)(a + i * a_stride));
        UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = multiply_add(kind, x, column[j], sum[i][j]);
    }
}

#if CPU_HAS_BF16
/* The last word when k is odd: what lies behind the row is not a's, and might be no number. */
ALWAYS_INLINE void add_half(const int height, const int vectors, vf (*sum)[GEMM_VECTORS], const char *a,
                            int64_t a_stride, const float *b) {
    UNROLL
    for (int i = 0; i < height; i++) {
        uint16_t low;
        memcpy(&low, a + i * a_stride, sizeof low);
        const vf x = (vf)((vi){0} + (int32_t)low);
        UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = multiply_add(CPU_BF16, x, v_load(b + j * LANES), sum[i][j]);
    }
}
#endif

/* Writes row i's sums. */
ALWAYS_INLINE void store_row(enum cpu_kind kind, const int vectors, const struct tile_job *t, int i,
                             const vf *sum) {
    float *c = t->c + i * t->c_stride;
    UNROLL
    for (int j = 0; j < vectors; j++) {
        vf v = t->from ? v_load(t->from + i * t->c_stride + j * LANES) : v_zero();
#if CPU_HAS_INT8
        if (kind == CPU_INT8) {
            if (t->column_sums)
                v = v_fma(v_set(t->row_min[i * t->row_step]), v_load(t->column_sums + j * LANES), v);
            v = v_fma((vf)_mm512_cvtepi32_ps((__m512i)sum[j]), v_set(t->row_scale[i * t->row_step]), v);
            v_store(c + j * LANES, v);
            continue;
        }
#endif
        (void)kind;
        v_store(c + j * LANES, v + sum[j]);
    }
}

/* The micro-kernel. Kind and both sizes are constants where it is expanded, so that all sums stay in
 * registers. */
ALWAYS_INLINE void tile(enum cpu_kind kind, const int height, const int vectors, const struct tile_job *t) {
    const char *a = t->a;
    const int64_t a_stride = t->a_stride, words = t->words - (kind == CPU_BF16 && t->half);
    const float *b = t->b, *ahead = t->ahead;
    vf sum[TILE_HEIGHTS][GEMM_VECTORS];
    UNROLL
    for (int i = 0; i < height; i++) {
        UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = v_zero();
    }
    int64_t w = 0;
    for (; w + 4 <= words; w += 4) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + LINE, 0, 2);
        ahead += t->ahead_step;
        UNROLL
        for (int u = 0; u < 4; u++)
            add_word(kind, height, vectors, sum, a + 4 * u, a_stride, b + u * vectors * LANES);
        a += 16;
        b += 4 * vectors * LANES;
    }
    for (; w < words; w++, a += 4, b += vectors * LANES)
        add_word(kind, height, vectors, sum, a, a_stride, b);
#if CPU_HAS_BF16
    if (kind == CPU_BF16 && t->half)
        add_half(height, vectors, sum, a, a_stride, b);
#endif
    UNROLL
    for (int i = 0; i < height; i++)
        store_row(kind, vectors, t, i, sum[i]);
}

#define TILE(height, vectors)                                                                                \
    static void tile_##height##x##vectors(const struct tile_job *t) {                                        \
        tile(KIND, height, vectors, t);                                                                      \
    }
#define TILES_6(v) TILE(1, v) TILE(2, v) TILE(3, v) TILE(4, v) TILE(5, v) TILE(6, v)
#define TILES_8(v) TILES_6(v) TILE(7, v) TILE(8, v)
#define NAMES_6(v) tile_1x##v, tile_2x##v, tile_3x##v, tile_4x##v, tile_5x##v, tile_6x##v
#define NAMES_8(v) NAMES_6(v), tile_7x##v, tile_8x##v

TILES_8(1)
#if CPU_LANES == 16
TILES_8(2)
TILES_8(3)
TILES_6(4)
tile_table CPU_NAME(tiles) = {{NAMES_8(1)}, {NAMES_8(2)}, {NAMES_8(3)}, {NAMES_6(4)}};
#else
TILES_6(2)
tile_table CPU_NAME(tiles) = {{NAMES_8(1)}, {NAMES_6(2)}};
#endif
