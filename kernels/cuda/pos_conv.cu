/* pos_conv: the positional convolution on tensor cores, an implicit matrix product.
 *
 * A block computes one group's channels for TILES tiles of tokens. The input rows of a tile, kernel - 1 more
 * than it has tokens, lie in shared memory for as long as the block lives: at tap k, token t's row of the
 * left matrix is input row t + k, so that a tap later the same rows are read one further down. The weights
 * come through a ring of STAGES taps. The order of a sum is tap by tap, and within a tap by input channel, at
 * every place. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/pos_conv.h"

namespace {

enum { TOKENS = CUDA_TILE_LARGE, WARPS = 4, THREADS = 32 * WARPS };

struct operands {
    bf16 *y;
    const bf16 *x, *w;
    const float *bias, *scale, *shift;
    enum cuda_activation act;
    int kernel, channels;
};

/* C channels a group. A row of C channels is an odd number of 16 byte units and so the 8 rows that ldmatrix
 * reads at once lie in different banks, wherever the first one is. */
template <int C> struct shape {
    enum { PITCH = C + 8, UNITS = C / 8, STEPS = C / 16, PAIRS = C / 16 };
    /* A warp stages 16 rows of its results, fp32, where the input rows were. */
    enum { STAGE_PITCH = C + 8, STAGE_FLOATS = 16 * STAGE_PITCH };
    static_assert(WARPS * STAGE_FLOATS * sizeof(float) <= TOKENS * PITCH * sizeof(bf16), "results have room");
};

template <int C, int TILES, int STAGES> size_t count_shared_bytes(int kernel) {
    const size_t rows = static_cast<size_t>(TILES) * (TOKENS + static_cast<size_t>(kernel) - 1) + STAGES * C;
    return rows * shape<C>::PITCH * sizeof(bf16);
}

} // namespace

/* Input row i of the tile is token first - kernel / 2 + i of the clip, after the affine; zeros outside the
 * clip. */
template <int C>
__device__ static inline void load_rows(bf16 *rows, const operands &o, const pos_conv_tile &tile,
                                        int channel) {
    typedef shape<C> s;
    const int count = (TOKENS + o.kernel - 1) * s::UNITS, start = tile.first - o.kernel / 2;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int row = i / s::UNITS, c = i % s::UNITS * 8, t = start + row;
        const bool valid = t >= 0 && t < tile.tokens;
        const bf16 *from = valid ? o.x + (tile.row + t) * o.channels + channel + c : o.x;
        bf16 *to = rows + row * s::PITCH + c;
        if (o.scale == NULL) {
            cp_async_16(to, from, valid);
            continue;
        }
        float8 v = {{0, 0, 0, 0, 0, 0, 0, 0}};
        if (valid) {
            v = load8(from);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v.v[j] = fmaf(v.v[j], o.scale[channel + c + j], o.shift[channel + c + j]);
            }
        }
        store8(to, v);
    }
}

/* One tap's weights, [C in, C out]. */
template <int C> __device__ static inline void load_weights(bf16 *to, const bf16 *from) {
    typedef shape<C> s;
    for (int i = threadIdx.x; i < C * s::UNITS; i += THREADS) {
        const int in = i / s::UNITS, out = i % s::UNITS * 8;
        cp_async_16(to + in * s::PITCH + out, from + in * C + out, true);
    }
}

/* The operands of 16 input channels: of M times 16 tokens, and of all output channels. */
template <int C, int M> struct fragments { uint32_t a[M][4], b[shape<C>::PAIRS][4]; };

template <int C, int M>
__device__ static inline void load_fragments(fragments<C, M> &f, const bf16 *rows, const bf16 *weights,
                                             int step) {
    typedef shape<C> s;
    const int lane = threadIdx.x % 32, row = lane % 16, column = lane / 16 * 8;
#pragma unroll
    for (int m = 0; m < M; m++) {
        ldmatrix_x4(f.a[m], rows + (m * 16 + row) * s::PITCH + step * 16 + column);
    }
#pragma unroll
    for (int p = 0; p < s::PAIRS; p++) {
        ldmatrix_x4_trans(f.b[p], weights + (step * 16 + row) * s::PITCH + p * 16 + column);
    }
}

/* sums[m][n] += one tap. The fragments of the next 16 channels are loaded while these are multiplied. */
template <int C, int M>
__device__ static inline void multiply(float (&sums)[M][C / 8][4], const bf16 *rows, const bf16 *weights) {
    typedef shape<C> s;
    fragments<C, M> f[2];
    load_fragments<C, M>(f[0], rows, weights, 0);
#pragma unroll
    for (int step = 0; step < s::STEPS; step++) {
        if (step + 1 < s::STEPS) {
            load_fragments<C, M>(f[(step + 1) % 2], rows, weights, step + 1);
        }
        const fragments<C, M> &now = f[step % 2];
#pragma unroll
        for (int p = 0; p < s::PAIRS; p++) {
            const uint32_t even[2] = {now.b[p][0], now.b[p][1]}, odd[2] = {now.b[p][2], now.b[p][3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16_16816(sums[m][2 * p], now.a[m], even);
                mma_bf16_16816(sums[m][2 * p + 1], now.a[m], odd);
            }
        }
    }
}

/* y = x + act(sums + bias) for the 16 tokens from `first`, by way of the warp's own `stage`, so that the rows
 * of x and y are read and written 16 bytes at a time. */
template <int C>
__device__ static inline void write_rows(const operands &o, const pos_conv_tile &tile, int first, int channel,
                                         float *stage, const float (&sums)[C / 8][4]) {
    typedef shape<C> s;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < C / 8; n++) {
        float *at = stage + g * s::STAGE_PITCH + n * 8 + 2 * t;
        *reinterpret_cast<float2 *>(at) = make_float2(sums[n][0], sums[n][1]);
        *reinterpret_cast<float2 *>(at + 8 * s::STAGE_PITCH) = make_float2(sums[n][2], sums[n][3]);
    }
    __syncwarp();
    for (int i = lane; i < 16 * s::UNITS; i += 32) {
        const int row = i / s::UNITS, c = i % s::UNITS * 8;
        if (first + row < tile.end) {
            const int64_t at = (tile.row + first + row) * o.channels + channel + c;
            float8 v = load8(o.x + at);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float sum = stage[row * s::STAGE_PITCH + c + j] + o.bias[channel + c + j];
                v.v[j] += activate(o.act, sum);
            }
            store8(o.y + at, v);
        }
    }
    __syncwarp();
}

/* A warp has M times 16 tokens of one tile and all channels of the group. Its taps are fewer than the block's
 * where its tokens stand at an end of the clip, none where they are behind it. */
template <int C, int M, int TILES, int STAGES>
__global__ static void __launch_bounds__(THREADS) convolve(struct cuda_tables tables, operands o) {
    typedef shape<C> s;
    static_assert(TILES * TOKENS == WARPS * M * 16 && STAGES >= 2, "the warps share out the tokens");
    const int index = blockIdx.x * TILES, group = blockIdx.y, channel = group * C;
    if (index >= tables.counts->tiles_large) {
        return;
    }
    DYN_SHARED(bf16, shared);
    const int tile_rows = TOKENS + o.kernel - 1;
    bf16 *ring = shared + TILES * tile_rows * s::PITCH;

    struct pos_conv_taps all = {o.kernel, 0};
    for (int i = 0; i < TILES; i++) {
        const pos_conv_tile t = pos_conv_find_tile(&tables, index + i);
        const pos_conv_taps taps = pos_conv_find_taps(t.first, t.end, t.tokens, o.kernel);
        if (taps.first < taps.end) {
            load_rows<C>(shared + i * tile_rows * s::PITCH, o, t, channel);
            all.first = min(all.first, taps.first);
            all.end = max(all.end, taps.end);
        }
    }
    const int warp = threadIdx.x / 32, own = warp * M * 16 / TOKENS, token = warp * M * 16 % TOKENS;
    const pos_conv_tile tile = pos_conv_find_tile(&tables, index + own);
    const int first = tile.first + token;
    const pos_conv_taps taps =
        pos_conv_find_taps(first, min(first + M * 16, tile.end), tile.tokens, o.kernel);
    const bf16 *rows = shared + (own * tile_rows + token) * s::PITCH;
    const bf16 *weights = o.w + static_cast<int64_t>(group) * o.kernel * C * C;

    float sums[M][C / 8][4] = {};
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (all.first + i < all.end) {
            load_weights<C>(ring + i * C * s::PITCH, weights + static_cast<int64_t>(all.first + i) * C * C);
        }
        cp_async_commit();
    }
    for (int k = all.first; k < all.end; k++) {
        const int i = k - all.first, ahead = k + STAGES - 1;
        /* This tap is there for all, and the one before it is no longer read: its place is free. */
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (ahead < all.end) {
            load_weights<C>(ring + (i + STAGES - 1) % STAGES * C * s::PITCH,
                            weights + static_cast<int64_t>(ahead) * C * C);
        }
        cp_async_commit();
        if (k >= taps.first && k < taps.end) {
            multiply<C, M>(sums, rows + k * s::PITCH, ring + i % STAGES * C * s::PITCH);
        }
    }
    __syncthreads(); /* the input rows are no longer read */
    float *stage = reinterpret_cast<float *>(shared) + warp * s::STAGE_FLOATS;
#pragma unroll
    for (int m = 0; m < M; m++) {
        if (first + m * 16 < tile.end) {
            write_rows<C>(o, tile, first + m * 16, channel, stage, sums[m]);
        }
    }
}

/* Shared memory that a block may ask for (CUDA C++ Programming Guide, technical specifications by compute
 * capability). */
static size_t shared_bytes_max(int sm) {
    switch (sm) {
    case 80:
    case 87:
        return 163 * 1024;
    case 90:
    case 100:
    case 101:
    case 103:
    case 110:
        return 227 * 1024;
    default: /* 86, 89, 120, 121 */
        return 99 * 1024;
    }
}

template <int C, int M, int TILES, int STAGES>
static bool launch(const struct cuda_launch *l, const operands &o) {
    const size_t bytes = count_shared_bytes<C, TILES, STAGES>(o.kernel);
    if (bytes > shared_bytes_max(l->sm)) {
        return false;
    }
    /* Neighbours are tiles of one group, whose weights then come out of the cache. */
    const dim3 grid((l->grid.tiles_large + TILES - 1) / TILES, o.channels / C);
    LAUNCH((convolve<C, M, TILES, STAGES>), grid, THREADS, bytes, l->stream, l->tables, o);
    return true;
}

/* False when the rows do not fit into shared memory, which does not depend on the batch. Two tiles a block
 * fetch the weights half as often and read them from shared memory half as often, one tile a block is done
 * sooner; the sums are the same. */
template <int C> static bool launch_channels(const struct cuda_launch *l, const operands &o) {
    const int64_t blocks = static_cast<int64_t>(l->grid.tiles_large) * (o.channels / C);
    if constexpr (C <= 64) { /* beyond, the sums of 64 tokens a warp do not fit into registers */
        if (blocks >= 2 * static_cast<int64_t>(l->multiprocessors) && launch<C, 4, 2, 3>(l, o)) {
            return true;
        }
    }
    return launch<C, 2, 1, 4>(l, o);
}

static bool launch_tensor_cores(const struct cuda_launch *l, const operands &o, int channels_per_group) {
    switch (channels_per_group) {
    case 16:
        return launch_channels<16>(l, o);
    case 32:
        return launch_channels<32>(l, o);
    case 48:
        return launch_channels<48>(l, o);
    case 64:
        return launch_channels<64>(l, o);
    case 80:
        return launch_channels<80>(l, o);
    case 96:
        return launch_channels<96>(l, o);
    case 112:
        return launch_channels<112>(l, o);
    case 128:
        return launch_channels<128>(l, o);
    default:
        return false;
    }
}

void cuda_pos_conv(const struct cuda_launch *l, void *y, const void *x, const void *w, const float *bias,
                   const float *input_scale, const float *input_shift, enum cuda_activation act, int kernel,
                   int groups, int channels) {
    if (l->type == CUDA_BF16) {
        const operands o = {static_cast<bf16 *>(y),
                            static_cast<const bf16 *>(x),
                            static_cast<const bf16 *>(w),
                            bias,
                            input_scale,
                            input_shift,
                            act,
                            kernel,
                            channels};
        if (launch_tensor_cores(l, o, channels / groups)) {
            return;
        }
    }
    cuda_pos_conv_plain(l, y, x, w, bias, input_scale, input_shift, act, kernel, groups, channels);
}
