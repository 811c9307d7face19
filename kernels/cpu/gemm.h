/* gemm: y = act(a * b + bias) + residual, on which everything heavy rests.
 *
 * a [rows, k] is read in place; its rows may overlap (a_stride less than a row), which is how a convolution
 * over channels-last rows becomes a matrix product. b [k, n] is packed. Terms are taken by words of 32 bits:
 * one fp32 number, two of bf16, or four of int8; a word of b holds the terms of one column. Panels of
 * GEMM_PANEL columns (the last one as many whole vectors as it needs, padded with zeros), each panel [words,
 * width]; panel p starts at word p * GEMM_PANEL * words.
 *
 * int8: a's rows are bytes 0..255 that stand for scale * byte + min (quantize.h), b's are -127..127 times a
 * scale for each column. A row may be made of several segments of equal length with a scale and min of their
 * own, as the rows that a convolution takes together are. With C the sum over bytes and S the sum of b over
 * the segment, the product is scale * C + min * S; both are exact.
 *
 * Rounding: each segment is cut into equal blocks of at most GEMM_BLOCK words. A block is summed from zero in
 * order, and the blocks' sums are added in order. That depends on k alone, so a row's result does not depend
 * on which tile it is in. */
#ifndef TIMBRE_KERNELS_CPU_GEMM_H
#define TIMBRE_KERNELS_CPU_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/element.h"
#include "kernels/cpu/internal.h"
#include "kernels/cpu/simd.h"

#if CPU_LANES == 16
enum { GEMM_VECTORS = 4 }; /* of one panel */
#else
enum { GEMM_VECTORS = 2 };
#endif

enum {
    GEMM_PANEL = GEMM_VECTORS * LANES,
    GEMM_BLOCK = 384, /* words of one block: 96 KiB of a panel, in the second cache */
};

/* Names of this instruction set. */
#define gemm_sums      CPU_NAME(gemm_sums)
#define gemm_sums_last CPU_NAME(gemm_sums_last)
#define gemm_finish    CPU_NAME(gemm_finish)
#define gemm_block     CPU_NAME(gemm_block)
#define gemm_run       CPU_NAME(gemm_run)

/* What a matrix product of two activations is. */
#define ELEMENT_KIND (CPU_HAS_BF16 ? CPU_BF16 : CPU_FP32)

/* Four bytes of a matrix, whatever they hold. */
typedef float word __attribute__((may_alias, aligned(1)));

struct gemm {
    enum cpu_kind kind;
    const void *a;
    int64_t a_stride; /* bytes */
    const float *b;
    int64_t k, n; /* k: terms. int8: a multiple of 4 * segments */
    void *y;      /* elements; fp32 with `y_fp32` */
    bool y_fp32;
    int64_t y_stride;
    const float *scale;      /* [n] multiplies the sum before bias is added; NULL: 1 */
    const float *bias;       /* [n]; both readable to the next multiple of LANES */
    const element *residual; /* rows of y_stride, or NULL; may be y */
    enum kernels_activation act;

    /* int8: segment s of row r has row_scale[r * row_step + s] and row_min of the same. */
    int64_t segments, row_step;
    const float *row_scale, *row_min;
    const float *column_sums; /* [segments, n to the next multiple of LANES] */
};

/* A piece of the product, for gemm_sums. */
struct gemm_piece {
    enum cpu_kind kind;
    const void *a;
    int64_t a_stride;   /* bytes */
    const float *b;     /* [words, width] */
    int64_t k, width;   /* terms, at most GEMM_BLOCK words; a multiple of LANES, at most GEMM_PANEL */
    const float *from;  /* what it is added to, rows as those of c; may be c; NULL: zeros */
    const float *ahead; /* what of b to bring nearer meanwhile, and how much; not looked at when 0 */
    int64_t ahead_words;
    const float *row_scale, *row_min; /* int8: of the first row; the next row's are row_step further */
    int64_t row_step;
    const float *column_sums; /* int8: [width], when the piece is the first of its segment; else NULL */
};

/* Terms in a word. */
static inline int64_t gemm_terms(enum cpu_kind kind) {
    return kind == CPU_FP32 ? 1 : kind == CPU_BF16 ? 2 : 4;
}

/* Words of k terms. */
static inline int64_t gemm_words(enum cpu_kind kind, int64_t k) {
    return cpu_divide_up(k, gemm_terms(kind));
}

/* Words of a packed [k, n]. */
static inline int64_t gemm_packed_words(enum cpu_kind kind, int64_t k, int64_t n) {
    return gemm_words(kind, k) * cpu_divide_up(n, LANES) * LANES;
}

/* Columns of panel p with their padding. */
static inline int64_t gemm_width(int64_t n, int64_t panel) {
    int64_t left = cpu_divide_up(n, LANES) * LANES - panel * GEMM_PANEL;
    return left < GEMM_PANEL ? left : GEMM_PANEL;
}

/* c [rows, width] with rows of c_stride = from + the piece. */
void gemm_sums(float *c, int64_t c_stride, const struct gemm_piece *p, int64_t rows);

/* The same for the last terms of rows [row, row + rows) and columns [column, column + width) of the product,
 * which are finished tile by tile: many writes in one go would wait for memory. */
void gemm_sums_last(const struct gemm *g, float *c, int64_t c_stride, const struct gemm_piece *p, int64_t row,
                    int64_t rows, int64_t column);

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
