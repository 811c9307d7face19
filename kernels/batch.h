/* batch: which rows belong to which clip, while many clips of different lengths run as one.
 *
 * All clips lie behind each other on one tape of samples, every clip at an offset that is a multiple of the
 * product of the convolution strides. The convolution stack then runs over the tape as if it were one long
 * clip: at level l (the output of convolution l, level 0 being the samples) clip i starts at row offset[i] /
 * step[l]. Its valid rows read only its own rows; the few rows behind them, up to the next clip, are
 * undefined and nobody reads them. After the stack the valid rows of all clips are packed into one matrix of
 * tokens, clip i in rows cu_tokens[i]..cu_tokens[i+1].
 *
 * There is no padding: the waste is less than one token's samples a clip. */
#ifndef TIMBRE_KERNELS_BATCH_H
#define TIMBRE_KERNELS_BATCH_H

#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"

enum {
    BATCH_LEVELS_MAX = 16, /* convolution layers of a model */
    BATCH_CLIPS_MAX = 1024,
};

/* Kernel and stride of each convolution, of a model. */
struct batch_shape {
    int levels; /* 1..BATCH_LEVELS_MAX */
    int kernel[BATCH_LEVELS_MAX], stride[BATCH_LEVELS_MAX];
};

struct batch {
    int clips, levels;
    int64_t step[BATCH_LEVELS_MAX + 1];      /* samples between two rows of a level; step[0] = 1 */
    int64_t tape_rows[BATCH_LEVELS_MAX + 1]; /* rows of a level, those between clips included */
    int64_t *offset;                         /* [clips] the clip's first sample on the tape */
    int64_t *rows;                           /* [levels + 1, clips] the clip's valid rows at a level */
    int64_t *cu_tokens; /* [clips + 1] cumulative rows of the last level; cu_tokens[0] = 0 */
};

/* Rows that a convolution stack makes of n samples, at `level`; 0 when n is too few. The formula of each
 * layer: floor((n - kernel) / stride) + 1. */
int64_t batch_count_rows(const struct batch_shape *s, int level, int64_t n);

/* The fewest samples that give one token. */
int64_t batch_min_samples(const struct batch_shape *s);

/* Samples a clip of n samples takes on the tape: n up to the next multiple of the product of the strides, and
 * at least batch_min_samples. */
int64_t batch_slot_samples(const struct batch_shape *s, int64_t n);

/* Takes the tables for up to clips_max clips out of `a` (may be counting). */
void batch_init(struct batch *b, const struct batch_shape *s, int clips_max, struct arena *a);

/* Lays out `clips` clips of samples[i] samples each, in this order. Every clip must give at least one token.
 */
void batch_plan(struct batch *b, const struct batch_shape *s, int clips, const int64_t *samples);

/* The clip whose slot holds row `row` of `level`. */
int batch_find_clip(const struct batch *b, int level, int64_t row);

static inline int64_t batch_rows(const struct batch *b, int level, int clip) {
    return b->rows[(int64_t)level * b->clips + clip];
}

static inline int64_t batch_tokens(const struct batch *b) {
    return b->cu_tokens[b->clips];
}

#endif
