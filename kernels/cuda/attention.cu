/* attention: softmax(scale q k^T) v of every clip and head on tensor cores, as FlashAttention-2 does it (Dao
 * 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", algorithm 1).
 *
 * A block has the CUDA_TILE_SMALL queries of one tile and one head, a warp 16 M of them. Keys and values come
 * in blocks of 64 that count from the clip's start, the next one while this one is worked on. The softmax is
 * in base
 * 2. A query's numbers are those of its clip alone, and the same whatever M is: every multiplication that an
 * addition follows is written as fmaf, so that no compiler may fuse the one and not the other. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.cuh"

namespace {

enum { QUERIES = CUDA_TILE_SMALL, KEYS = 64 };

struct operands {
    bf16 *y;
    const bf16 *qkv;
    int64_t hidden;  /* heads * head_dim; rows of qkv are 3 of it apart */
    float scale;     /* of the base 2 softmax, > 0 */
    uint32_t negate; /* the sign bits of two queries' elements when the softmax's scale is negative, else 0 */
};

/* That a multiprocessor's registers should hold, without spilling any. */
constexpr int count_blocks(int head_dim) {
    if (head_dim <= 32) {
        return 4;
    }
    return head_dim <= 96 ? 3 : 2;
}

/* D: head_dim. A warp has 16 M queries. */
template <int D, int M> struct shape {
    enum {
        UNITS = D / 8, /* 16 bytes each */
        STEPS = D / 16,
        THREADS = QUERIES / (16 * M) * 32,
        BLOCKS = count_blocks(D),
        TILE = KEYS * D,
        SHARED_BYTES = (QUERIES * D + 4 * TILE) * sizeof(bf16), /* queries; twice keys and values */
    };
    static_assert(D % 16 == 0 && QUERIES == KEYS, "tiles have rows of whole units, and one size");
};

/* What a warp knows of its queries. Of 16 queries, lane l has rows l / 4 and l / 4 + 8 (mma.cuh). */
template <int D, int M> struct queries {
    uint32_t q[M][D / 16][4];
    float sums[M][D / 8][4]; /* of weight times value */
    float max[M][2];         /* of the scores so far, not scaled */
    float total[M][2];       /* of the weights so far, this lane's part */
};

} // namespace

/* 2^x, 0 for x < -126. exp2f would spend four instructions for the numbers below. */
__device__ static inline float exp2_flushed(float x) {
#ifdef TIMBRE_CUDA_ON_HOST
    return x < -126.0f ? 0.0f : exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* Where a tile [., D] has the 8 elements of `unit` of `row`. ldmatrix reads a unit of 8 rows at once: they
 * lie in the 8 different groups of banks because a row's units are permuted, within the largest power of two
 * that divides their number, by as many bits of the row as two rows of one group differ in. */
template <int D> __device__ static inline int find_place(int row, int unit) {
    enum { UNITS = D / 8, POWER = UNITS & -UNITS, GROUP = POWER < 8 ? POWER : 8 };
    return row * D + (unit ^ (row / (8 / GROUP) % GROUP)) * 8;
}

/* The rows first .. first + 64 of a clip with `tokens`, zeros behind them: of one matrix, or of N that lie
 * `hidden` apart, into tiles that lie two tiles apart. */
template <int D, int M, int N>
__device__ static inline void load_tiles(bf16 *tile, const bf16 *clip, int64_t hidden, int first,
                                         int tokens) {
    typedef shape<D, M> s;
#pragma unroll 4
    for (int i = threadIdx.x; i < KEYS * s::UNITS; i += s::THREADS) {
        const int row = i / s::UNITS, unit = i % s::UNITS;
        const bool valid = first + row < tokens;
        const bf16 *from = valid ? clip + (first + row) * 3 * hidden + unit * 8 : clip;
        bf16 *to = tile + find_place<D>(row, unit);
#pragma unroll
        for (int n = 0; n < N; n++) {
            cp_async_16(to + n * 2 * s::TILE, from + n * hidden, valid);
        }
    }
}

/* `tile`: the rows of this warp. */
template <int D, int M>
__device__ static inline void begin_queries(queries<D, M> &own, const bf16 *tile, uint32_t negate) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int k = 0; k < shape<D, M>::STEPS; k++) {
            ldmatrix_x4(own.q[m][k], tile + find_place<D>(m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                own.q[m][k][i] ^= negate;
            }
        }
#pragma unroll
        for (int n = 0; n < shape<D, M>::UNITS; n++) {
            own.sums[m][n][0] = own.sums[m][n][1] = own.sums[m][n][2] = own.sums[m][n][3] = 0.0f;
        }
        own.max[m][0] = own.max[m][1] = -INFINITY;
        own.total[m][0] = own.total[m][1] = 0.0f;
    }
}

/* scores[m][n] = q k^T: 16 queries, 8 keys. */
template <int D, int M>
__device__ static inline void multiply_keys(float (&scores)[M][KEYS / 8][4], const queries<D, M> &own,
                                            const bf16 *keys) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, unit = lane / 8 % 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < shape<D, M>::STEPS; k++) {
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, keys + find_place<D>(n * 16 + row, 2 * k + unit));
            const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16_16816(scores[m][2 * n], own.q[m][k], even);
                mma_bf16_16816(scores[m][2 * n + 1], own.q[m][k], odd);
            }
        }
    }
}

/* Only the first `count` keys of the block are the clip's. */
template <int M> __device__ static inline void mask_scores(float (&scores)[M][KEYS / 8][4], int count) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (n * 8 + column + i % 2 >= count) {
                    scores[m][n][i] = -INFINITY;
                }
            }
        }
    }
}

/* Of the 4 lanes that share a row, in all of them. */
__device__ static inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ static inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Turns 16 queries' scores into weights, 2^(scale (score - max)), and what was summed so far to the new
 * maximum. */
template <int UNITS>
__device__ static inline void weigh(float (&scores)[KEYS / 8][4], float (&sums)[UNITS][4], float (&max)[2],
                                    float (&total)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = max[r], sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        }
        top = quad_max(top);
        const float offset = -top * scale, correction = exp2_flushed(fmaf(max[r], scale, offset));
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                scores[n][i] = exp2_flushed(fmaf(scores[n][i], scale, offset));
                sum += scores[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < UNITS; n++) {
            sums[n][2 * r] *= correction;
            sums[n][2 * r + 1] *= correction;
        }
        max[r] = top;
        total[r] = fmaf(total[r], correction, sum);
    }
}

/* sums += weights v. The weights of 16 keys, as mma leaves scores in the lanes, are what it takes as its left
 * matrix. */
template <int D, int M>
__device__ static inline void multiply_values(queries<D, M> &own, const float (&weights)[M][KEYS / 8][4],
                                              const bf16 *values) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float(&left)[4] = weights[m][2 * k], (&right)[4] = weights[m][2 * k + 1];
            a[m][0] = pack_bf16(left[0], left[1]);
            a[m][1] = pack_bf16(left[2], left[3]);
            a[m][2] = pack_bf16(right[0], right[1]);
            a[m][3] = pack_bf16(right[2], right[3]);
        }
#pragma unroll
        for (int n = 0; n < shape<D, M>::STEPS; n++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + find_place<D>(k * 16 + lane % 16, 2 * n + lane / 16));
            const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16_16816(own.sums[m][2 * n], a[m], even);
                mma_bf16_16816(own.sums[m][2 * n + 1], a[m], odd);
            }
        }
    }
}

/* y [., D] = sums / total, `count` rows, by way of the warp's own rows of the tile of queries, which nobody
 * reads any more, so that rows are written 16 bytes at a time. */
template <int D, int M>
__device__ static inline void write_rows(bf16 *y, int64_t hidden, int count, bf16 *tile,
                                         const queries<D, M> &own) {
    typedef shape<D, M> s;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float rescale = 1.0f / quad_sum(own.total[m][r]);
#pragma unroll
            for (int n = 0; n < s::UNITS; n++) {
                bf16 *at = tile + find_place<D>(m * 16 + r * 8 + g, n) + 2 * t;
                *reinterpret_cast<uint32_t *>(at) =
                    pack_bf16(own.sums[m][n][2 * r] * rescale, own.sums[m][n][2 * r + 1] * rescale);
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < M * 16 * s::UNITS; i += 32) {
        const int row = i / s::UNITS, unit = i % s::UNITS;
        if (row < count) {
            *reinterpret_cast<uint4 *>(y + row * hidden + unit * 8) =
                *reinterpret_cast<const uint4 *>(tile + find_place<D>(row, unit));
        }
    }
}

template <int D, int M>
__global__ static void __launch_bounds__(shape<D, M>::THREADS, shape<D, M>::BLOCKS)
    attend(struct cuda_tables tables, operands o) {
    typedef shape<D, M> s;
    if (blockIdx.x >= static_cast<unsigned>(tables.counts->tiles_small)) {
        return;
    }
    DYN_SHARED(bf16, shared);
    bf16 *keys = shared + QUERIES * D, *values = keys + 2 * s::TILE; /* two tiles each */

    const attention_tile tile = attention_find_tile(&tables, blockIdx.x);
    const bf16 *q = o.qkv + tile.row * 3 * o.hidden + blockIdx.y * D, *k = q + o.hidden;
    load_tiles<D, M, 1>(shared, q, o.hidden, tile.first, tile.tokens);
    load_tiles<D, M, 2>(keys, k, o.hidden, 0, tile.tokens);
    cp_async_commit();

    /* A warp behind the clip's end works on nothing, but loads its part and comes to the barriers. */
    const int row = threadIdx.x / 32 * M * 16, count = tile.tokens - tile.first - row;
    queries<D, M> own;
    cp_async_wait<0>();
    __syncthreads();
    if (count > 0) {
        begin_queries<D, M>(own, shared + row * D, o.negate);
    }
    for (int first = 0; first < tile.tokens; first += KEYS) {
        const int now = first / KEYS % 2;
        if (first + KEYS < tile.tokens) {
            load_tiles<D, M, 2>(keys + (1 - now) * s::TILE, k, o.hidden, first + KEYS, tile.tokens);
            cp_async_commit();
        }
        if (count > 0) {
            float scores[M][KEYS / 8][4];
            multiply_keys<D, M>(scores, own, keys + now * s::TILE);
            if (first + KEYS > tile.tokens) {
                mask_scores<M>(scores, tile.tokens - first);
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                weigh<s::UNITS>(scores[m], own.sums[m], own.max[m], own.total[m], o.scale);
            }
            multiply_values<D, M>(own, scores, values + now * s::TILE);
        }
        /* The next tiles are there for all, and these are no longer read. */
        cp_async_wait<0>();
        __syncthreads();
    }
    if (count > 0) {
        bf16 *y = o.y + (tile.row + tile.first + row) * o.hidden + blockIdx.y * D;
        write_rows<D, M>(y, o.hidden, count, shared + row * D, own);
    }
}

template <int D, int M> static void launch(const struct cuda_launch *l, const operands &o, int heads) {
    /* Neighbours are tiles of one clip and head: its keys and values then come out of the cache. */
    const dim3 grid(l->grid.tiles_small, heads);
    LAUNCH((attend<D, M>), grid, (shape<D, M>::THREADS), (shape<D, M>::SHARED_BYTES), l->stream, l->tables,
           o);
}

/* Two warps of 32 queries read keys and values from shared memory half as often as four of 16, which are done
 * sooner where there are too few blocks to fill the GPU. */
template <int D> static void launch_head_dim(const struct cuda_launch *l, const operands &o, int heads) {
    const int64_t blocks = static_cast<int64_t>(l->grid.tiles_small) * heads;
    if constexpr (D <= 64) { /* beyond, 32 queries of a warp do not fit into registers */
        if (blocks > shape<D, 1>::BLOCKS * static_cast<int64_t>(l->multiprocessors)) {
            launch<D, 2>(l, o, heads);
            return;
        }
    }
    launch<D, 1>(l, o, heads);
}

static bool launch_tensor_cores(const struct cuda_launch *l, const operands &o, int heads, int head_dim) {
    switch (head_dim) {
    case 16:
        launch_head_dim<16>(l, o, heads);
        return true;
    case 32:
        launch_head_dim<32>(l, o, heads);
        return true;
    case 48:
        launch_head_dim<48>(l, o, heads);
        return true;
    case 64:
        launch_head_dim<64>(l, o, heads);
        return true;
    case 80:
        launch_head_dim<80>(l, o, heads);
        return true;
    case 96:
        launch_head_dim<96>(l, o, heads);
        return true;
    case 112:
        launch_head_dim<112>(l, o, heads);
        return true;
    case 128:
        launch_head_dim<128>(l, o, heads);
        return true;
    default:
        return false;
    }
}

void cuda_attention(const struct cuda_launch *l, void *y, const void *qkv, int heads, int head_dim,
                    float scale) {
    if (l->type == CUDA_BF16) {
        /* A scale of 0 stays so small that it makes all weights equal, and masked scores still infinite. */
        const operands o = {static_cast<bf16 *>(y), static_cast<const bf16 *>(qkv),
                            static_cast<int64_t>(heads) * head_dim,
                            fmaxf(fabsf(scale) * 1.44269504088896341f, 1e-30f), scale < 0 ? 0x80008000u : 0u};
        if (launch_tensor_cores(l, o, heads, head_dim)) {
            return;
        }
    }
    cuda_attention_plain(l, y, qkv, heads, head_dim, scale);
}
