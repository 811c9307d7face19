/* tile: the micro-kernels of gemm, which keep all sums of a small block of the product in registers. */
#ifndef TIMBRE_KERNELS_CPU_TILE_H
#define TIMBRE_KERNELS_CPU_TILE_H

#include "kernels/cpu/gemm.h"

/* c [height, vectors * LANES] = from + a * b; see struct gemm_piece for what has the same name. */
struct tile_job {
    const char *a;
    int64_t a_stride;
    const float *b;
    int64_t words;
    bool half; /* bf16: of the last word only the first term is a's */
    float *c;
    int64_t c_stride;
    const float *from;
    const float *ahead; /* two lines of it are asked for every four words, and it goes on by ahead_step */
    int64_t ahead_step;
    const float *row_scale, *row_min;
    int64_t row_step;
    const float *column_sums;
};

typedef void tile_fn(const struct tile_job *t);

/* As many rows as keep at most 24 sums of 32 registers, or 12 of 16, besides the panel's vectors; fewer for
 * thin panels, which are rare. */
#if CPU_LANES == 16
enum { TILE_HEIGHTS = 8 };
static const int tile_height_max[GEMM_VECTORS] = {8, 8, 8, 6};
#else
enum { TILE_HEIGHTS = 8 };
static const int tile_height_max[GEMM_VECTORS] = {8, 6};
#endif

/* The micro-kernels of one kind, by vectors - 1 and height - 1. Each instruction set has those of the kind
 * that it is there for, and shares the others. */
typedef tile_fn *const tile_table[GEMM_VECTORS][TILE_HEIGHTS];
extern tile_table CPU_NAME(tiles);
#if CPU_LANES == 16
extern tile_table cpu_avx512_tiles, cpu_avx512vnni_tiles, cpu_avx512bf16_tiles;
#endif

static inline void tile_run(enum cpu_kind kind, int vectors, int height, const struct tile_job *t) {
#if CPU_LANES == 16
    if (kind == CPU_FP32)
        cpu_avx512_tiles[vectors - 1][height - 1](t);
    else if (kind == CPU_BF16)
        cpu_avx512bf16_tiles[vectors - 1][height - 1](t);
    else
        cpu_avx512vnni_tiles[vectors - 1][height - 1](t);
#else
    (void)kind;
    CPU_NAME(tiles)[vectors - 1][height - 1](t);
#endif
}

#endif
