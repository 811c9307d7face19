/* attention_plain: softmax(scale q k^T) v of every clip and head without tensor cores, in fp32. Online
 * softmax over blocks of keys that count from the clip's start (Milakov and Gimelshein 2018; Dao 2023).
 *
 * A block has the CUDA_TILE_SMALL queries of one tile and one head, a warp 16 of them. Of a warp's 32 lanes,
 * 4 share out the queries and 8 the keys, and then 8 the elements of the output: a lane has 4 queries by KEYS
 * / 8 keys, and 4 queries by W / 8 elements. Weights go from the ones to the others by shared memory, where a
 * warp's are its own. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.cuh"

namespace {

enum { QUERIES = CUDA_TILE_SMALL, THREADS = 128, OWN = 4 /* queries of a lane */ };

template <typename T> struct operands {
    T *y;
    const T *qkv;
    int64_t hidden; /* heads * head_dim; rows of qkv are 3 of it apart */
    int head_dim;
    float scale;
};

/* A block's, for rows of `width` elements: what 99 KiB of shared memory hold besides the queries. */
constexpr int count_keys(int width) {
    if (width <= 64) {
        return 64;
    }
    return width <= 128 ? 32 : 8;
}

/* W: head_dim rounded up. In shared memory rows are W + 4 apart, and the weights' KEYS + 8, so that what a
 * warp reads or writes at once lies in different banks. */
template <int W> struct shape {
    enum {
        KEYS = count_keys(W),
        BLOCKS = W <= 64 ? 3 : 2, /* that a multiprocessor's registers should hold */
        PITCH = W + 4,
        WEIGHT_PITCH = KEYS + 8,
        SHARED_BYTES = ((QUERIES + 2 * KEYS) * PITCH + QUERIES * WEIGHT_PITCH) * sizeof(float),
    };
    static_assert(W % 32 == 0, "8 lanes share out the elements, 4 at a time");
};

/* What a lane knows of its queries: rows lane % 4 + 4 i of its warp's 16. It has their keys lane / 4 + 8 j,
 * and their elements 4 (lane / 4) + 32 j .. + 4. */
template <int W> struct queries {
    float4 sums[OWN][W / 32]; /* of weight times value */
    float max[OWN];           /* of the scores so far */
    float total[OWN];         /* of the weights so far, this lane's part */
};

} // namespace

/* tile [rows, W] = the rows first .. first + rows of a clip with `tokens`; zeros behind them and behind
 * head_dim. */
template <typename T, int W>
__device__ static inline void load_tile(float *tile, int rows, const T *clip, int64_t stride, int first,
                                        int tokens, int head_dim) {
    const bool whole = head_dim % 4 == 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < rows * (W / 4); i += THREADS) {
        const int row = i / (W / 4), e = i % (W / 4) * 4;
        const T *from = clip + (first + row) * stride + e;
        float4 v = make_float4(0, 0, 0, 0);
        if (first + row < tokens && e < head_dim) {
            if (whole) {
                v = load4<T>(from);
            } else {
                v.x = to_float(from[0]);
                v.y = e + 1 < head_dim ? to_float(from[1]) : 0.0f;
                v.z = e + 2 < head_dim ? to_float(from[2]) : 0.0f;
                v.w = e + 3 < head_dim ? to_float(from[3]) : 0.0f;
            }
        }
        store4<float>(tile + row * shape<W>::PITCH + e, v);
    }
}

/* scores = scale q k^T of the lane's queries and keys; -inf for the keys from `count` on. q: the warp's rows.
 */
template <int W>
__device__ static inline void multiply_keys(float (&scores)[OWN][shape<W>::KEYS / 8], const float *q,
                                            const float *keys, int head_dim, float scale, int count) {
    typedef shape<W> s;
    const int lane = threadIdx.x % 32, row = lane % 4, key = lane / 4;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
#pragma unroll
        for (int j = 0; j < s::KEYS / 8; j++) {
            scores[i][j] = 0.0f;
        }
    }
#pragma unroll 2
    for (int e = 0; e < head_dim; e += 4) {
        float4 a[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            a[i] = load4<float>(q + (row + 4 * i) * s::PITCH + e);
        }
#pragma unroll
        for (int j = 0; j < s::KEYS / 8; j++) {
            const float4 b = load4<float>(keys + (key + 8 * j) * s::PITCH + e);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                scores[i][j] = fmaf(a[i].x, b.x, scores[i][j]);
                scores[i][j] = fmaf(a[i].y, b.y, scores[i][j]);
                scores[i][j] = fmaf(a[i].z, b.z, scores[i][j]);
                scores[i][j] = fmaf(a[i].w, b.w, scores[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
#pragma unroll
        for (int j = 0; j < s::KEYS / 8; j++) {
            scores[i][j] = key + 8 * j < count ? scores[i][j] * scale : -INFINITY;
        }
    }
}

/* Over the 8 lanes that share a query. */
__device__ static inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
}
__device__ static inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 4);
    x += __shfl_xor_sync(0xffffffffu, x, 8);
    return x + __shfl_xor_sync(0xffffffffu, x, 16);
}

/* Writes exp(scores - max) to the warp's rows of `weights`, and brings what was summed so far to the new
 * maximum. */
template <int W>
__device__ static inline void weigh(queries<W> &own, float *weights,
                                    const float (&scores)[OWN][shape<W>::KEYS / 8]) {
    typedef shape<W> s;
    const int lane = threadIdx.x % 32, row = lane % 4, key = lane / 4;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float top = own.max[i], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < s::KEYS / 8; j++) {
            top = fmaxf(top, scores[i][j]);
        }
        top = row_max(top);
        const float correction = expf(own.max[i] - top);
#pragma unroll
        for (int j = 0; j < s::KEYS / 8; j++) {
            const float weight = expf(scores[i][j] - top);
            weights[(row + 4 * i) * s::WEIGHT_PITCH + key + 8 * j] = weight;
            sum += weight;
        }
#pragma unroll
        for (int j = 0; j < W / 32; j++) {
            own.sums[i][j].x *= correction;
            own.sums[i][j].y *= correction;
            own.sums[i][j].z *= correction;
            own.sums[i][j].w *= correction;
        }
        own.max[i] = top;
        own.total[i] = fmaf(own.total[i], correction, sum);
    }
}

__device__ static inline float4 fma4(float a, float4 b, float4 c) {
    return make_float4(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w));
}

/* sums += weights v, key by key. */
template <int W>
__device__ static inline void multiply_values(queries<W> &own, const float *weights, const float *values) {
    typedef shape<W> s;
    const int lane = threadIdx.x % 32, row = lane % 4, e = lane / 4 * 4;
#pragma unroll 2
    for (int k = 0; k < s::KEYS; k += 4) {
        float4 a[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            a[i] = load4<float>(weights + (row + 4 * i) * s::WEIGHT_PITCH + k);
        }
#pragma unroll
        for (int j = 0; j < W / 32; j++) {
            const float *b = values + k * s::PITCH + e + 32 * j;
            const float4 b0 = load4<float>(b), b1 = load4<float>(b + s::PITCH),
                         b2 = load4<float>(b + 2 * s::PITCH), b3 = load4<float>(b + 3 * s::PITCH);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                own.sums[i][j] = fma4(a[i].x, b0, own.sums[i][j]);
                own.sums[i][j] = fma4(a[i].y, b1, own.sums[i][j]);
                own.sums[i][j] = fma4(a[i].z, b2, own.sums[i][j]);
                own.sums[i][j] = fma4(a[i].w, b3, own.sums[i][j]);
            }
        }
    }
}

/* y: the warp's first row, of which `count` are the clip's. */
template <typename T, int W>
__device__ static inline void write_rows(T *y, int64_t hidden, int count, int head_dim,
                                         const queries<W> &own) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int row = lane % 4 + 4 * i;
        const float rescale = 1.0f / row_sum(own.total[i]);
#pragma unroll
        for (int j = 0; j < W / 32; j++) {
            const int e = lane / 4 * 4 + 32 * j;
            const float4 v = make_float4(own.sums[i][j].x * rescale, own.sums[i][j].y * rescale,
                                         own.sums[i][j].z * rescale, own.sums[i][j].w * rescale);
            T *to = y + row * hidden + e;
            if (row >= count || e >= head_dim) {
                continue;
            }
            if (head_dim % 4 == 0) {
                store4<T>(to, v);
                continue;
            }
            to[0] = from_float<T>(v.x);
            if (e + 1 < head_dim) {
                to[1] = from_float<T>(v.y);
            }
            if (e + 2 < head_dim) {
                to[2] = from_float<T>(v.z);
            }
            if (e + 3 < head_dim) {
                to[3] = from_float<T>(v.w);
            }
        }
    }
}

template <typename T, int W>
__global__ static void __launch_bounds__(THREADS, shape<W>::BLOCKS)
    attend_plain(struct cuda_tables tables, operands<T> o) {
    typedef shape<W> s;
    if (blockIdx.x >= static_cast<unsigned>(tables.counts->tiles_small)) {
        return;
    }
    DYN_SHARED(float, shared);
    const int row = threadIdx.x / 32 * 16;
    float *keys = shared + QUERIES * s::PITCH, *values = keys + s::KEYS * s::PITCH;
    float *weights = values + s::KEYS * s::PITCH + row * s::WEIGHT_PITCH;

    const attention_tile tile = attention_find_tile(&tables, blockIdx.x);
    const int64_t stride = 3 * o.hidden;
    const int channel = blockIdx.y * o.head_dim;
    const T *q = o.qkv + tile.row * stride + channel, *k = q + o.hidden, *v = k + o.hidden;
    load_tile<T, W>(shared, QUERIES, q, stride, tile.first, tile.tokens, o.head_dim);

    /* A warp behind the clip's end works on nothing, but loads its part and comes to the barriers. */
    const int count = tile.tokens - tile.first - row;
    queries<W> own = {};
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        own.max[i] = -INFINITY;
    }
    for (int first = 0; first < tile.tokens; first += s::KEYS) {
        load_tile<T, W>(keys, s::KEYS, k, stride, first, tile.tokens, o.head_dim);
        load_tile<T, W>(values, s::KEYS, v, stride, first, tile.tokens, o.head_dim);
        __syncthreads();
        if (count > 0) {
            float scores[OWN][s::KEYS / 8];
            multiply_keys<W>(scores, shared + row * s::PITCH, keys, o.head_dim, o.scale, tile.tokens - first);
            weigh<W>(own, weights, scores);
            __syncwarp();
            multiply_values<W>(own, weights, values);
        }
        __syncthreads(); /* these keys, values and weights are no longer read */
    }
    if (count > 0) {
        write_rows<T, W>(o.y + (tile.row + tile.first + row) * o.hidden + channel, o.hidden, count,
                         o.head_dim, own);
    }
}

template <typename T, int W>
static void launch(const struct cuda_launch *l, const operands<T> &o, int heads) {
    /* Neighbours are tiles of one clip and head: its keys and values then come out of the cache. */
    const dim3 grid(l->grid.tiles_small, heads);
    LAUNCH((attend_plain<T, W>), grid, THREADS, (shape<W>::SHARED_BYTES), l->stream, l->tables, o);
}

template <typename T>
static void launch_type(const struct cuda_launch *l, void *y, const void *qkv, int heads, int head_dim,
                        float scale) {
    const operands<T> o = {static_cast<T *>(y), static_cast<const T *>(qkv),
                           static_cast<int64_t>(heads) * head_dim, head_dim, scale};
    if (head_dim <= 32) {
        launch<T, 32>(l, o, heads);
    } else if (head_dim <= 64) {
        launch<T, 64>(l, o, heads);
    } else if (head_dim <= 96) {
        launch<T, 96>(l, o, heads);
    } else if (head_dim <= 128) {
        launch<T, 128>(l, o, heads);
    } else {
        launch<T, CUDA_HEAD_DIM_MAX>(l, o, heads);
    }
}

void cuda_attention_plain(const struct cuda_launch *l, void *y, const void *qkv, int heads, int head_dim,
                          float scale) {
    if (l->type == CUDA_BF16) {
        launch_type<bf16>(l, y, qkv, heads, head_dim, scale);
    } else {
        launch_type<float>(l, y, qkv, heads, head_dim, scale);
    }
}
