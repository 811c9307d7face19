/* tile: the micro-kernels of gemm, which keep all sums of a small block of the product in registers. */
#ifndef TIMBRE_KERNELS_CPU_TILE_H
#define TIMBRE_KERNELS_CPU_TILE_H

#include "kernels/cpu/gemm.h"

#define tile_run        CPU_NAME(tile_run)
#define tile_height_max CPU_NAME(tile_height_max)

/* c [height, vectors * LANES] = (add ? c : 0) + a * b; see struct gemm_piece for what has the same name. */
struct tile_job {
    const char *a;
    int64_t a_stride;
    const float *b;
    int64_t words;
    bool half; /* bf16: of the last word only the first term is a's */
    float *c;
    int64_t c_stride;
    bool add;
    const float *ahead; /* two lines of it are asked for every four words, and it goes on by ahead_step */
    int64_t ahead_step;
    const float *row_scale, *row_min;
    int64_t row_step;
    const float *column_sums;
};

/* Rows of one tile of so many vectors (index: vectors - 1). */
extern const int tile_height_max[GEMM_VECTORS];

void tile_run(enum cpu_kind kind, int vectors, int height, const struct tile_job *t);

#endif
