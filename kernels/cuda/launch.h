/* launch: the kernels, each behind one C function that puts it into a stream. C++ stops here.
 *
 * What an operation computes stands in kernels/kernels.h. Every launcher returns at once; its error is that
 * of gpu_last_error. Pointers are to device memory unless it says "host". No kernel's sum depends on the
 * place of a row, on other clips, or on the size of the grid: partial sums are of chunks that count from the
 * start of the clip, and are added in their order; there are no atomics on numbers.
 *
 * Activations are of l->type; samples, statistics, norms' weights, logits are fp32. Sums are fp32 or better.
 * Rows: 32 bits count samples, tokens and rows; products with channels are 64 bits. Base pointers are aligned
 * to 16 bytes; rows are not unless channels make it so, and every launcher must work (if slower) for any
 * number of channels. */
#ifndef TIMBRE_KERNELS_CUDA_LAUNCH_H
#define TIMBRE_KERNELS_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

enum cuda_type { CUDA_F32, CUDA_BF16 };

/* As kernels_activation, whose numbers they are. */
enum cuda_activation {
    CUDA_IDENTITY,
    CUDA_GELU,
    CUDA_GELU_TANH,
    CUDA_RELU,
    CUDA_SILU,
    CUDA_TANH,
};

enum {
    CUDA_CHUNK_SAMPLES = 8192, /* input_norm: samples whose partial sums are one block's */
    CUDA_CHUNK_ROWS = 512,     /* group_stats and conv_first: rows of level 1 */
    CUDA_TILE_SMALL = 64,      /* attention: queries of a block */
    CUDA_TILE_LARGE = 128,     /* positional convolution: tokens of a block */
};

/* A piece of a clip: it begins `first` units (samples, rows, tokens) after the clip's start. Its end is the
 * next one's begin or the clip's end. */
struct cuda_tile {
    int32_t clip, first;
};

/* How much of everything there is in a batch. */
struct cuda_counts {
    int32_t clips, rows, tokens; /* rows: of the last level, tape */
    int32_t samples;             /* of the tape */
    int32_t chunks_samples, chunks_rows, tiles_small, tiles_large;
};

/* Which rows belong to which clip, in device memory: written by one copy before the kernels of a batch run,
 * so that a graph, whose arguments are fixed, can serve batches of many shapes. */
struct cuda_tables {
    const struct cuda_counts *counts; /* [1] of this batch */
    const int32_t *offset;            /* [clips] the clip's first sample on the tape */
    const int32_t *samples;           /* [clips] */
    const int32_t *rows_first;        /* [clips] valid rows of level 1 */
    const int32_t *cu_tokens;         /* [clips + 1] */
    const int32_t *token_row;         /* [tokens] the row of the last level on the tape that a token is */
    /* Pieces of each clip behind each other, clip after clip. */
    const struct cuda_tile *chunks_samples, *chunks_rows, *tiles_small, *tiles_large;
};

/* What every launcher needs. `grid` (host) says for how much of everything blocks are launched: at least
 * tables.counts, of which it is told only on the device. A block of a chunk, tile, clip or token beyond that
 * returns at once. */
struct cuda_launch {
    struct gpu_stream *stream;
    enum cuda_type type;
    struct cuda_tables tables;
    struct cuda_counts grid;
    int sm, multiprocessors;
};

/* y, x [samples] fp32, may be the same; zeros between clips and up to grid.samples. partial: scratch
 * [grid.chunks_samples, 2] and stats: scratch [grid.clips, 2], doubles. */
void cuda_input_norm(const struct cuda_launch *l, float *y, const float *x, double *partial, double *stats);

/* stats [clips, out, 2]: mean and 1 / sqrt(var + eps) of the first convolution's output, from the moments of
 * the clip's samples: with x_r = the `kernel` samples of row r, mean = w . E[x] + bias and
 * var = w^T (E[x x^T] - E[x] E[x]^T) w, all in double, so that the convolution is not computed for it.
 * w [kernel, out] fp32, bias [out] (never NULL). partial: scratch [grid.chunks_rows, kernel (kernel + 3) / 2]
 * doubles: the sums of one chunk. moments: scratch [grid.clips, kernel (kernel + 3) / 2] doubles. */
void cuda_group_stats(const struct cuda_launch *l, float *stats, const float *x, const float *w,
                      const float *bias, double *partial, double *moments, int kernel, int stride, int out,
                      float eps);

/* The first convolution (in = 1): y [count, out] of l->type = act(norm(conv(x) + bias)), rows first ..
 * first + count of level 1 of the tape; x[0] is sample first * stride. w [kernel, out], bias [out],
 * norm_weight, norm_bias [out] fp32. stats: as of cuda_group_stats, then only rows of clips are written;
 * NULL: no norm, and all rows are written. (A layer norm follows by cuda_layer_norm.) */
void cuda_conv_first(const struct cuda_launch *l, void *y, const float *x, const float *w, const float *bias,
                     const float *stats, const float *norm_weight, const float *norm_bias,
                     enum cuda_activation act, int kernel, int stride, int out, int64_t first, int64_t count);

/* y [rows, channels] = act(x + bias) + residual; bias [channels] fp32 or NULL, residual or NULL; y may be x
 * or residual. */
void cuda_bias_act(const struct cuda_launch *l, void *y, const void *x, const float *bias,
                   enum cuda_activation act, const void *residual, int64_t rows, int channels);

/* y [rows, channels] = act((x - mean) / sqrt(var + eps) * weight + bias), biased variance by a second pass
 * over the row in registers or shared memory. y may be x. */
void cuda_layer_norm(const struct cuda_launch *l, void *y, const void *x, const float *weight,
                     const float *bias, float eps, enum cuda_activation act, int64_t rows, int channels);

/* y [tokens, channels] gets the rows first .. first + count of the last level, x [count, channels], that are
 * tokens (tables.token_row). */
void cuda_compact(const struct cuda_launch *l, void *y, const void *x, int channels, int64_t first,
                  int64_t count);

/* y [T, out] = x + act(conv(x') + bias); x' = x * input_scale + input_shift (fp32 [channels]; NULL: x). w
 * [groups, kernel, channels / groups (in), channels / groups (out)] of l->type. bias fp32 [channels]. y is
 * not x. Tensor cores when the type is bf16 and channels / groups a multiple of 16 up to 128; else plain, any
 * shape. tiles_large. */
void cuda_pos_conv(const struct cuda_launch *l, void *y, const void *x, const void *w, const float *bias,
                   const float *input_scale, const float *input_shift, enum cuda_activation act, int kernel,
                   int groups, int channels);

/* One kernel for softmax(scale q k^T) v of every clip and head: y [T, heads * head_dim], qkv [T, 3 * heads *
 * head_dim]. Online softmax over blocks of keys that count from the clip's start (Dao 2023,
 * FlashAttention-2). Tensor cores when the type is bf16 and head_dim a multiple of 16 up to 128; else plain,
 * any head_dim up to CUDA_HEAD_DIM_MAX. tiles_small. */
enum { CUDA_HEAD_DIM_MAX = 256 };
void cuda_attention(const struct cuda_launch *l, void *y, const void *qkv, int heads, int head_dim,
                    float scale);

/* For attention by cuBLAS: in place, each of `rows` rows of scores [rows, keys], at a distance of `stride`
 * elements, becomes softmax(scale * row) over its first `keys`. Sums in the order of the row alone. */
void cuda_softmax(const struct cuda_launch *l, void *scores, int64_t rows, int keys, int64_t stride,
                  float scale);

/* y = (first ? 0 : y) + weight * x, n elements. */
void cuda_accumulate(const struct cuda_launch *l, void *y, const void *x, float weight, bool first,
                     int64_t n);

/* As kernels_pool. */
enum cuda_pooling { CUDA_POOL_MEAN, CUDA_POOL_SUM, CUDA_POOL_MAX };
/* y [clips, channels] fp32. Tokens are added in their order within fixed pieces, and the pieces in theirs. */
void cuda_pool(const struct cuda_launch *l, float *y, const void *x, enum cuda_pooling kind, int channels);

/* y [clips, out] fp32 = act(x [clips, in] w^T + bias); w [out, in], bias [out] (never NULL) fp32. */
void cuda_head_linear(const struct cuda_launch *l, float *y, const float *x, const float *w,
                      const float *bias, enum cuda_activation act, int in, int out);

/* For what no library takes (odd sizes in bf16) and no model that people use has: y [rows, out] of l->type =
 * act(x w^T + bias) + residual, row r of x at x + r * x_stride, w [out, .] at a distance of w_stride
 * elements, both of l->type; bias fp32 or NULL, residual [rows, out] or NULL, y may be residual. Works,
 * nothing more. */
void cuda_linear_plain(const struct cuda_launch *l, void *y, const void *x, int64_t x_stride, const void *w,
                       int64_t w_stride, const float *bias, enum cuda_activation act, const void *residual,
                       int64_t rows, int in, int out);

#ifdef __cplusplus
}
#endif
#endif
