/* pos_conv: what the two kernels of the positional convolution share. */
#ifndef TIMBRE_KERNELS_CUDA_POS_CONV_H
#define TIMBRE_KERNELS_CUDA_POS_CONV_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As cuda_pos_conv, without tensor cores: fp32 and bf16, any kernel, groups and channels. Sums are those of
 * CUDA_F32 at both types. */
void cuda_pos_conv_plain(const struct cuda_launch *l, void *y, const void *x, const void *w,
                         const float *bias, const float *input_scale, const float *input_shift,
                         enum cuda_activation act, int kernel, int groups, int channels);

#ifdef __cplusplus
}
#endif

#ifdef __CUDACC__
#define POS_CONV_DEVICE __device__ static inline
#else
#define POS_CONV_DEVICE static inline
#endif

/* A tile of CUDA_TILE_LARGE tokens: tokens first .. end of a clip of `tokens` tokens, whose token 0 is row
 * `row` of x. An empty one (end = first) behind the last tile of the batch. */
struct pos_conv_tile {
    int64_t row;
    int tokens, first, end;
};

POS_CONV_DEVICE struct pos_conv_tile pos_conv_find_tile(const struct cuda_tables *t, int index) {
    struct pos_conv_tile tile = {0, 0, 0, 0};
    if (index < t->counts->tiles_large) {
        const struct cuda_tile at = t->tiles_large[index];
        const int32_t *cu = t->cu_tokens + at.clip;
        tile.row = cu[0];
        tile.tokens = cu[1] - cu[0];
        tile.first = at.first;
        tile.end = at.first + CUDA_TILE_LARGE < tile.tokens ? at.first + CUDA_TILE_LARGE : tile.tokens;
    }
    return tile;
}

/* Taps first .. end: those at which some of a run of tokens reads a row of the clip; all others read zeros
 * and add nothing. */
struct pos_conv_taps {
    int first, end;
};

/* Of tokens first .. end of a clip of `tokens` tokens; none when there are no tokens. */
POS_CONV_DEVICE struct pos_conv_taps pos_conv_find_taps(int first, int end, int tokens, int kernel) {
    struct pos_conv_taps taps = {0, 0};
    if (first < end) {
        const int last = kernel / 2 - (end - 1), beyond = kernel / 2 + tokens - first;
        taps.first = last > 0 ? last : 0;
        taps.end = beyond < kernel ? beyond : kernel;
    }
    return taps;
}

#endif
