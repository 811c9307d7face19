/* conv_pairs: convolutions of three taps and stride two, with a sixth less work.
 *
 * Two neighbouring rows y0 = w0 x0 + w1 x1 + w2 x2 and y1 = w0 x2 + w1 x3 + w2 x4 share x2. With the middle
 * product m = (w0 + w2) x2 they are y0 = w0 (x0 - x2) + w1 x1 + m and y1 = w1 x3 + w2 (x4 - x2) + m: five
 * products of matrices instead of six. (Winograd 1980, minimal filtering F(2, 2), on the even inputs; Lavin
 * and Gray 2016.) Pairs count from a clip's first row, so a row's bits do not depend on where a batch or a
 * segment begins or ends. */
#ifndef TIMBRE_KERNELS_CPU_CONV_PAIRS_H
#define TIMBRE_KERNELS_CPU_CONV_PAIRS_H

#include "kernels/cpu/gemm.h"

/* A weight is packed as if it had four taps: w0 + w2, w0, w1, w2. In int8 each sum of two products has one
 * scale for a row of both inputs, so its column sums are those of w0 + w2, of w0 and w1, and of w1 and w2. */
enum { CONV_PAIRS_TAPS = 4 };

#define conv_pairs_run CPU_NAME(conv_pairs_run)

/* Whether a weight is packed for it. */
static inline bool conv_pairs_fit(const struct kernels_weight_spec *s) {
    return s->kind == KERNELS_CONV && s->in > 1 && s->kernel == 3 && s->stride == 2 &&
           s->norm != KERNELS_NORM_GROUP;
}

/* Rows [row, end) of the product g, all of one clip; `second`: the first of them is the second of its pair.
 * g->a is x, g->a_stride its rows' bytes; g->k is that of the packed weight; `in` channels of x. sums: room
 * for 2 * CPU_PAIRS rows of a panel. scratch: cpu_pairs_bytes(in). */
void conv_pairs_run(const struct gemm *g, int64_t in, int64_t row, int64_t end, bool second, float *sums,
                    void *scratch);

#endif
