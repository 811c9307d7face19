/* What goes element by element: bias and activation, sums of layers, and the way from the tape to the tokens.
 * All of it is bound by memory, so accesses are of 16 bytes where the number of channels allows it. */
#include "kernels/cuda/cuda.cuh"

enum {
    THREADS = 256,
    UNROLL = 2,         /* vectors that a thread has under way */
    BLOCKS_PER_SM = 16, /* at most: enough for the tail to be short */
    COMPACT_WARPS = 4,  /* tokens of a block */
};

/* N elements in one access, or a single one. */
template <typename T, int N> __device__ static inline void load(float (&v)[N], const T *p) {
    if constexpr (N == 8) {
        const float8 a = load8(p);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = a.v[i];
    } else if constexpr (N == 4) {
        const float4 a = load4(p);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    } else {
        v[0] = to_float(*p);
    }
}
template <typename T, int N> __device__ static inline void store(T *p, const float (&v)[N]) {
    if constexpr (N == 8)
        store8(p, float8{{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}});
    else if constexpr (N == 4)
        store4(p, make_float4(v[0], v[1], v[2], v[3]));
    else
        *p = from_float<T>(v[0]);
}

/* Blocks for n vectors: at least so many threads as `least`. */
static int count_blocks(const struct cuda_launch *l, int64_t n, int64_t least) {
    int64_t blocks = (n + THREADS * UNROLL - 1) / (THREADS * UNROLL);
    if (blocks > (int64_t)l->multiprocessors * BLOCKS_PER_SM)
        blocks = (int64_t)l->multiprocessors * BLOCKS_PER_SM;
    if (n > 0 && blocks * THREADS < least)
        blocks = (least + THREADS - 1) / THREADS;
    return (int)blocks;
}

/* ---- bias_act ---- */

struct bias_act_args {
    void *y;
    const void *x;
    const float *bias;
    const void *residual;
    int64_t rows;
    int channels;
};

template <typename T, int N, enum cuda_activation ACT>
__global__ static void __launch_bounds__(THREADS) bias_act_vectors(struct bias_act_args a) {
    /* The distance is a whole number of rows, so that a thread stays in its columns and reads their bias
     * once. */
    const unsigned per_row = (unsigned)a.channels / N, threads = gridDim.x * THREADS;
    const unsigned self = blockIdx.x * THREADS + threadIdx.x;
    const int64_t distance = threads - threads % per_row, vectors = a.rows * per_row;
    const T *x = (const T *)a.x, *residual = (const T *)a.residual;
    if (self >= distance)
        return;
    float bias[N] = {};
    if (a.bias)
#pragma unroll
        for (int i = 0; i < N; i++)
            bias[i] = a.bias[self % per_row * N + i];
    for (int64_t first = self; first < vectors; first += UNROLL * distance) {
        float v[UNROLL][N];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int64_t at = first + u * distance;
            if (at < vectors)
                load<T, N>(v[u], x + at * N);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int64_t at = first + u * distance;
            if (at >= vectors)
                continue;
#pragma unroll
            for (int i = 0; i < N; i++)
                v[u][i] = activate<ACT>(v[u][i] + bias[i]);
            if (residual) {
                float r[N];
                load<T, N>(r, residual + at * N);
#pragma unroll
                for (int i = 0; i < N; i++)
                    v[u][i] += r[i];
            }
            store<T, N>((T *)a.y + at * N, v[u]);
        }
    }
}

template <typename T, int N, enum cuda_activation ACT>
static void launch_bias_act(const struct cuda_launch *l, const struct bias_act_args *a) {
    const int per_row = a->channels / N;
    LAUNCH((bias_act_vectors<T, N, ACT>), count_blocks(l, a->rows * per_row, per_row), THREADS, 0, l->stream,
           *a);
}

template <typename T, int N>
static void choose_bias_act(const struct cuda_launch *l, enum cuda_activation act,
                            const struct bias_act_args *a) {
    switch (act) {
    case CUDA_IDENTITY:
        return launch_bias_act<T, N, CUDA_IDENTITY>(l, a);
    case CUDA_GELU:
        return launch_bias_act<T, N, CUDA_GELU>(l, a);
    case CUDA_GELU_TANH:
        return launch_bias_act<T, N, CUDA_GELU_TANH>(l, a);
    case CUDA_RELU:
        return launch_bias_act<T, N, CUDA_RELU>(l, a);
    case CUDA_SILU:
        return launch_bias_act<T, N, CUDA_SILU>(l, a);
    case CUDA_TANH:
        return launch_bias_act<T, N, CUDA_TANH>(l, a);
    }
}

void cuda_bias_act(const struct cuda_launch *l, void *y, const void *x, const float *bias,
                   enum cuda_activation act, const void *residual, int64_t rows, int channels) {
    const struct bias_act_args a = {y, x, bias, residual, rows, channels};
    if (l->type == CUDA_BF16 && channels % 8 == 0)
        choose_bias_act<bf16, 8>(l, act, &a);
    else if (l->type == CUDA_BF16)
        choose_bias_act<bf16, 1>(l, act, &a);
    else if (channels % 4 == 0)
        choose_bias_act<float, 4>(l, act, &a);
    else
        choose_bias_act<float, 1>(l, act, &a);
}

/* ---- accumulate ---- */

template <typename T>
__device__ static inline void accumulate_one(T *y, const T *x, float weight, bool first) {
    *y = from_float<T>(fmaf(weight, to_float(*x), first ? 0.0f : to_float(*y)));
}

template <typename T, int N>
__global__ static void __launch_bounds__(THREADS)
    accumulate_vectors(T *__restrict__ y, const T *__restrict__ x, float weight, bool first, int64_t n) {
    const int64_t self = (int64_t)blockIdx.x * THREADS + threadIdx.x, vectors = n / N;
    const int64_t distance = (int64_t)gridDim.x * THREADS;
    for (int64_t at = self; at < vectors; at += distance) {
        float v[N], sum[N] = {};
        load<T, N>(v, x + at * N);
        if (!first)
            load<T, N>(sum, y + at * N);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[i] = fmaf(weight, v[i], sum[i]);
        store<T, N>(y + at * N, sum);
    }
    const int64_t rest = vectors * N + self;
    if (rest < n)
        accumulate_one(y + rest, x + rest, weight, first);
}

void cuda_accumulate(const struct cuda_launch *l, void *y, const void *x, float weight, bool first,
                     int64_t n) {
    if (l->type == CUDA_BF16)
        LAUNCH((accumulate_vectors<bf16, 8>), count_blocks(l, (n + 7) / 8, 8), THREADS, 0, l->stream,
               (bf16 *)y, (const bf16 *)x, weight, first, n);
    else
        LAUNCH((accumulate_vectors<float, 4>), count_blocks(l, (n + 3) / 4, 4), THREADS, 0, l->stream,
               (float *)y, (const float *)x, weight, first, n);
}

/* ---- compact ---- */

struct compact_args {
    const struct cuda_counts *counts;
    const int32_t *token_row;
    int64_t first, count;
    int words; /* of a row */
};

/* A warp a token. The words are copied as they are. */
template <typename W>
__global__ static void __launch_bounds__(COMPACT_WARPS * 32)
    compact_rows(W *__restrict__ y, const W *__restrict__ x, struct compact_args a) {
    const int64_t token = (int64_t)blockIdx.x * COMPACT_WARPS + threadIdx.x / 32;
    if (token >= a.counts->tokens)
        return;
    const int64_t row = a.token_row[token] - a.first;
    if (row < 0 || row >= a.count)
        return;
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < a.words; i += 32)
        y[token * a.words + i] = x[row * a.words + i];
}

template <typename W>
static void launch_compact(const struct cuda_launch *l, void *y, const void *x, struct compact_args a,
                           int64_t bytes) {
    a.words = (int)(bytes / (int64_t)sizeof(W));
    LAUNCH((compact_rows<W>), (l->grid.tokens + COMPACT_WARPS - 1) / COMPACT_WARPS, COMPACT_WARPS * 32, 0,
           l->stream, (W *)y, (const W *)x, a);
}

void cuda_compact(const struct cuda_launch *l, void *y, const void *x, int channels, int64_t first,
                  int64_t count) {
    const struct compact_args a = {l->tables.counts, l->tables.token_row, first, count, 0};
    const int64_t bytes = (int64_t)channels * (l->type == CUDA_BF16 ? 2 : 4);
    if (bytes % 16 == 0)
        launch_compact<uint4>(l, y, x, a, bytes);
    else if (bytes % 4 == 0)
        launch_compact<uint32_t>(l, y, x, a, bytes);
    else
        launch_compact<uint16_t>(l, y, x, a, bytes);
}
