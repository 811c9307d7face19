/* attention: what the two kernels of fused attention share. */
#ifndef TIMBRE_KERNELS_CUDA_ATTENTION_H
#define TIMBRE_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As cuda_attention, without tensor cores: fp32 and bf16, any head_dim from 1 to CUDA_HEAD_DIM_MAX. Products
 * and sums are fp32 at both types. */
void cuda_attention_plain(const struct cuda_launch *l, void *y, const void *qkv, int heads, int head_dim,
                          float scale);

#ifdef __cplusplus
}
#endif

#ifdef __CUDACC__
#define ATTENTION_DEVICE __device__ static inline
#else
#define ATTENTION_DEVICE static inline
#endif

/* CUDA_TILE_SMALL queries, from token `first` on, of a clip of `tokens` tokens whose token 0 is row `row`. */
struct attention_tile {
    int64_t row;
    int tokens, first;
};

/* index < counts->tiles_small */
ATTENTION_DEVICE struct attention_tile attention_find_tile(const struct cuda_tables *t, unsigned index) {
    const struct cuda_tile at = t->tiles_small[index];
    const int32_t *cu = t->cu_tokens + at.clip;
    struct attention_tile tile = {cu[0], cu[1] - cu[0], at.first};
    return tile;
}

#endif
