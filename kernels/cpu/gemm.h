/* gemm: y = act(a * b + bias) + residual, on which everything heavy rests.
 *
 * a [rows, k] is read in place; its rows may overlap (a_stride < k), which is how a convolution over
 * channels-last rows becomes a matrix product. b [k, n] is packed: panels of GEMM_PANEL columns (the last one
 * as many whole vectors as it needs, padded with zeros), each panel [k, width]; panel p
 * starts at p * GEMM_PANEL * k.
 *
 * Rounding: k is cut into equal blocks of at most GEMM_BLOCK terms. A block is summed from zero in order of
 * k, and the blocks' sums are added in order. That depends on k alone, so a row's result does not depend on
 * which tile it is in. */
#ifndef TIMBRE_KERNELS_CPU_GEMM_H
#define TIMBRE_KERNELS_CPU_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/internal.h"
#include "kernels/cpu/simd.h"

#if CPU_LANES == 16
enum { GEMM_VECTORS = 4 }; /* of one panel */
#else
enum { GEMM_VECTORS = 2 };
#endif

enum {
    GEMM_PANEL = GEMM_VECTORS * LANES,
    GEMM_BLOCK = 384, /* terms of one block: 96 KiB of a panel, in the second cache */
};

/* Names of this instruction set. */
#define gemm_sums   CPU_NAME(gemm_sums)
#define gemm_finish CPU_NAME(gemm_finish)
#define gemm_block  CPU_NAME(gemm_block)
#define gemm_run    CPU_NAME(gemm_run)

struct gemm {
    const float *a;
    int64_t a_stride;
    const float *b;
    int64_t k, n;
    float *y;
    int64_t y_stride;
    const float *scale;    /* [n] multiplies the sum before bias is added; NULL: 1 */
    const float *bias;     /* [n], readable to the next multiple of LANES */
    const float *residual; /* rows of y_stride, or NULL; may be y */
    enum kernels_activation act;
};

/* Floats of a packed [k, n]. */
static inline int64_t gemm_packed_floats(int64_t k, int64_t n) {
    return k * cpu_divide_up(n, LANES) * LANES;
}

/* Columns of panel p with their padding. */
static inline int64_t gemm_width(int64_t n, int64_t panel) {
    int64_t left = cpu_divide_up(n, LANES) * LANES - panel * GEMM_PANEL;
    return left < GEMM_PANEL ? left : GEMM_PANEL;
}

/* c [rows, width] with rows of c_stride = (add ? c : 0) + a [rows, k] * b [k, width]; k <= GEMM_BLOCK, width
 * a multiple of LANES and at most GEMM_PANEL. Meanwhile brings `ahead_floats` at `ahead` nearer. */
void gemm_sums(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t k,
               int64_t rows, int64_t width, bool add, const float *ahead, int64_t ahead_floats);

/* Writes rows [row, row + rows) and columns [column, column + width) of the product, from their sums c. */
void gemm_finish(const struct gemm *g, const float *c, int64_t c_stride, int64_t row, int64_t rows,
                 int64_t column, int64_t width);

/* Rows [row, row + rows) and panels [panel, panel + panels) of the product, on the calling thread. `sums` has
 * room for rows * panels * GEMM_PANEL. `next` is what of b this thread will probably need next, or NULL. */
void gemm_block(const struct gemm *g, int64_t row, int64_t rows, int64_t panel, int64_t panels, float *sums,
                const float *next);

/* All of `rows` rows, on the device's team. */
void gemm_run(struct kernels_device *d, const struct gemm *g, int64_t rows);

#endif
