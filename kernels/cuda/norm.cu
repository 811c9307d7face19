/* Normalisation of each clip's samples, and layer normalisation. */
#include "kernels/cuda/cuda.cuh"

/* ---- input_norm ----
 *
 * Each chunk's sum, and its sum of squared differences from its own mean. A clip's are put together by the
 * formula of Chan, Golub and LeVeque 1979, for all chunks at once. Doubles: a clip is up to millions
 * of samples, and there are few of them beside everything else. */

enum {
    CHUNK_THREADS = 256,
    SAMPLES_PER_THREAD = CUDA_CHUNK_SAMPLES / CHUNK_THREADS,
    WRITES_PER_THREAD = 4,
};

/* All threads get the sum over the block; `warps` is of the block's shared memory. */
template <typename T> __device__ static inline T block_sum(T x, T *warps) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++)
        sum += warps[i];
    /* So that the next call may write there. */
    __syncthreads();
    return sum;
}

__global__ static void __launch_bounds__(CHUNK_THREADS)
    sum_chunks(double *partial, const float *x, struct cuda_tables t) {
    __shared__ double warps[CHUNK_THREADS / 32];
    if ((int)blockIdx.x >= t.counts->chunks_samples)
        return;
    const struct cuda_tile chunk = t.chunks_samples[blockIdx.x];
    const int n = min(CUDA_CHUNK_SAMPLES, t.samples[chunk.clip] - chunk.first);
    const float *from = x + t.offset[chunk.clip] + chunk.first;
    float v[SAMPLES_PER_THREAD];
    double sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < SAMPLES_PER_THREAD; i++) {
        const int at = i * CHUNK_THREADS + (int)threadIdx.x;
        v[i] = at < n ? from[at] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < SAMPLES_PER_THREAD; i++)
        sum += v[i];
    sum = block_sum(sum, warps);
    const double mean = sum / n;
#pragma unroll
    for (int i = 0; i < SAMPLES_PER_THREAD; i++) {
        const double difference = i * CHUNK_THREADS + (int)threadIdx.x < n ? v[i] - mean : 0.0;
        squares = fma(difference, difference, squares);
    }
    squares = block_sum(squares, warps);
    if (threadIdx.x == 0) {
        partial[2 * (int64_t)blockIdx.x] = sum;
        partial[2 * (int64_t)blockIdx.x + 1] = squares;
    }
}

/* stats [clips, 2]: mean and 1 / sqrt(var + 1e-7). One warp, that of a clip's first chunk, adds all of the
 * clip's, which lie behind each other. */
__global__ static void sum_clips(double *stats, const double *partial, struct cuda_tables t) {
    if ((int)blockIdx.x >= t.counts->chunks_samples)
        return;
    const struct cuda_tile chunk = t.chunks_samples[blockIdx.x];
    if (chunk.first > 0)
        return;
    const int samples = t.samples[chunk.clip], lane = (int)threadIdx.x;
    const int chunks = (samples + CUDA_CHUNK_SAMPLES - 1) / CUDA_CHUNK_SAMPLES;
    const double *p = partial + 2 * (int64_t)blockIdx.x;
    double sum = 0, squares = 0;
    for (int i = lane; i < chunks; i += 32)
        sum += p[2 * i];
    const double mean = warp_sum(sum) / samples;
    for (int i = lane; i < chunks; i += 32) {
        const int n = min(CUDA_CHUNK_SAMPLES, samples - i * CUDA_CHUNK_SAMPLES);
        const double difference = p[2 * i] / n - mean;
        squares += fma(n * difference, difference, p[2 * i + 1]);
    }
    const double variance = warp_sum(squares) / samples;
    if (lane == 0) {
        stats[2 * chunk.clip] = mean;
        stats[2 * chunk.clip + 1] = 1.0 / sqrt(variance + 1e-7);
    }
}

/* The last clip that begins at or before a sample; 0 when there is none. */
__device__ static inline int find_clip(const struct cuda_tables &t, int64_t sample) {
    int lo = 0, hi = t.counts->clips;
    while (hi - lo > 1) {
        const int mid = (lo + hi) / 2;
        if (t.offset[mid] <= sample)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

__global__ static void __launch_bounds__(CHUNK_THREADS)
    norm_samples(float *y, const float *x, const double *stats, struct cuda_tables t, int64_t samples) {
    const int64_t first = (int64_t)blockIdx.x * (CHUNK_THREADS * WRITES_PER_THREAD);
    const int clips = t.counts->clips;
    int clip = find_clip(t, first);
#pragma unroll
    for (int i = 0; i < WRITES_PER_THREAD; i++) {
        const int64_t at = first + i * CHUNK_THREADS + threadIdx.x;
        if (at >= samples)
            return;
        while (clip + 1 < clips && t.offset[clip + 1] <= at)
            clip++;
        float value = 0.0f;
        if (clips > 0 && at < (int64_t)t.offset[clip] + t.samples[clip])
            value = (float)((x[at] - stats[2 * clip]) * stats[2 * clip + 1]);
        y[at] = value;
    }
}

void cuda_input_norm(const struct cuda_launch *l, float *y, const float *x, double *partial, double *stats) {
    const int per_block = CHUNK_THREADS * WRITES_PER_THREAD;
    LAUNCH(sum_chunks, l->grid.chunks_samples, CHUNK_THREADS, 0, l->stream, partial, x, l->tables);
    LAUNCH(sum_clips, l->grid.chunks_samples, 32, 0, l->stream, stats, partial, l->tables);
    LAUNCH(norm_samples, (int)(((int64_t)l->grid.samples + per_block - 1) / per_block), CHUNK_THREADS, 0,
           l->stream, y, x, stats, l->tables, l->grid.samples);
}

/* ---- layer_norm ---- */

enum {
    NORM_WARPS = 4,     /* of a block whose warps take rows of their own */
    NORM_THREADS = 256, /* of a block that takes a row as a whole, at most */
    VALUES_OF_TWO = 32, /* values a lane can hold of each of two rows; of one row twice as many */
};

struct layer_norm_args {
    void *y;
    const void *x;
    const float *weight, *bias;
    float eps, inverse; /* 1 / channels */
    int64_t rows;
    int channels;
};

/* N elements in one access of 16 bytes. */
template <typename T, int N> __device__ static inline void load(float (&v)[N], const T *p) {
    if constexpr (N == 8) {
        const float8 a = load8(p);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = a.v[i];
    } else {
        const float4 a = load4(p);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    }
}
template <typename T, int N> __device__ static inline void store(T *p, const float (&v)[N]) {
    if constexpr (N == 8)
        store8(p, float8{{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}});
    else
        store4(p, make_float4(v[0], v[1], v[2], v[3]));
}

/* Takes the mean from each of a warp's rows; scale: 1 / sqrt(var + eps). The rows' sums are
 * independent, so that one's shuffles go on while another's wait. */
template <int N, int VECTORS, int ROWS, bool FULL>
__device__ static inline void center_rows(float (&v)[ROWS][VECTORS][N], float (&scale)[ROWS],
                                          const struct layer_norm_args &a) {
    const int lane = threadIdx.x % 32;
    float sum[ROWS] = {}, squares[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[r] += v[r][k][i];
#pragma unroll
    for (int r = 0; r < ROWS;
         r++) /* fmaf and 0, for a mere product could be drawn into the differences below */
        sum[r] = fmaf(warp_sum(sum[r]), a.inverse, 0.0f);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const bool is_there = FULL || (k * 32 + lane) * N < a.channels;
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (is_there)
                    v[r][k][i] -= sum[r];
                squares[r] = fmaf(v[r][k][i], v[r][k][i], squares[r]);
            }
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        scale[r] = rsqrtf(fmaf(warp_sum(squares[r]), a.inverse, a.eps));
}

/* A warp takes ROWS rows and keeps them in registers, VECTORS accesses a lane and row, channels a multiple of
 * N; FULL: of 32 * N * VECTORS, then no access hangs on a condition and all are made at once. Several rows:
 * more bytes are under way, and weight and bias are read once for them. A row beyond the end is the last one
 * again, and is not written. */
template <typename T, int N, int VECTORS, int ROWS, bool FULL, enum cuda_activation ACT>
__global__ static void __launch_bounds__(NORM_WARPS * 32) norm_rows_in_warps(struct layer_norm_args a) {
    const int64_t first = ((int64_t)blockIdx.x * NORM_WARPS + threadIdx.x / 32) * ROWS;
    const int lane = threadIdx.x % 32, channels = a.channels;
    float v[ROWS][VECTORS][N] = {}, scale[ROWS];
    if (first >= a.rows)
        return;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int at = (k * 32 + lane) * N;
            if (FULL || at < channels)
                load<T, N>(v[r][k], (const T *)a.x + min(first + r, a.rows - 1) * channels + at);
        }
    /* Or the compiler puts off some of the loads, to save registers. */
    __syncwarp();
    center_rows<N, VECTORS, ROWS, FULL>(v, scale, a);
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = (k * 32 + lane) * N;
        float weight[N] = {}, bias[N] = {};
#pragma unroll
        for (int i = 0; i < N && (FULL || at < channels); i += 4) {
            const float4 w = load4(a.weight + at + i), b = load4(a.bias + at + i);
            weight[i] = w.x, weight[i + 1] = w.y, weight[i + 2] = w.z, weight[i + 3] = w.w;
            bias[i] = b.x, bias[i + 1] = b.y, bias[i + 2] = b.z, bias[i + 3] = b.w;
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < N; i++)
                v[r][k][i] = activate<ACT>(fmaf(v[r][k][i] * scale[r], weight[i], bias[i]));
            if ((FULL || at < channels) && first + r < a.rows)
                store<T, N>((T *)a.y + (first + r) * channels + at, v[r][k]);
        }
    }
}

/* A block a row, of any length, read once for each pass. A thread writes what it alone reads, so that y may
 * be x. */
template <typename T>
__global__ static void __launch_bounds__(NORM_THREADS)
    norm_rows_in_blocks(struct layer_norm_args a, enum cuda_activation act) {
    __shared__ float warps[NORM_THREADS / 32];
    const T *x = (const T *)a.x + (int64_t)blockIdx.x * a.channels;
    T *y = (T *)a.y + (int64_t)blockIdx.x * a.channels;
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < a.channels; i += (int)blockDim.x)
        sum += to_float(x[i]);
    const float mean = fmaf(block_sum(sum, warps), a.inverse, 0.0f);
    for (int i = threadIdx.x; i < a.channels; i += (int)blockDim.x) {
        const float difference = to_float(x[i]) - mean;
        squares = fmaf(difference, difference, squares);
    }
    const float scale = rsqrtf(fmaf(block_sum(squares, warps), a.inverse, a.eps));
    for (int i = threadIdx.x; i < a.channels; i += (int)blockDim.x)
        y[i] = from_float<T>(activate(act, fmaf((to_float(x[i]) - mean) * scale, a.weight[i], a.bias[i])));
}

/* VALUES: of a lane, for 32 * VALUES channels, or up to so many when not FULL. */
template <typename T, int VALUES, bool FULL, enum cuda_activation ACT>
static void launch_warps(const struct cuda_launch *l, const struct layer_norm_args *a) {
    constexpr int N = 16 / (int)sizeof(T), ROWS = VALUES <= VALUES_OF_TWO ? 2 : 1;
    const int per_block = NORM_WARPS * ROWS, blocks = (int)((a->rows + per_block - 1) / per_block);
    LAUNCH((norm_rows_in_warps<T, N, VALUES / N, ROWS, FULL, ACT>), blocks, NORM_WARPS * 32, 0, l->stream,
           *a);
}

/* The channels that models have, and what else fits. */
template <typename T> static void choose_warps(const struct cuda_launch *l, const struct layer_norm_args *a) {
    switch (a->channels) {
    case 256:
        return launch_warps<T, 8, true, CUDA_IDENTITY>(l, a);
    case 512:
        return launch_warps<T, 16, true, CUDA_IDENTITY>(l, a);
    case 768:
        return launch_warps<T, 24, true, CUDA_IDENTITY>(l, a);
    case 1024:
        return launch_warps<T, 32, true, CUDA_IDENTITY>(l, a);
    case 1280:
        return launch_warps<T, 40, true, CUDA_IDENTITY>(l, a);
    case 1536:
        return launch_warps<T, 48, true, CUDA_IDENTITY>(l, a);
    case 2048:
        return launch_warps<T, 64, true, CUDA_IDENTITY>(l, a);
    default:
        if (a->channels < 512)
            return launch_warps<T, 16, false, CUDA_IDENTITY>(l, a);
        if (a->channels < 1024)
            return launch_warps<T, 32, false, CUDA_IDENTITY>(l, a);
        return launch_warps<T, 64, false, CUDA_IDENTITY>(l, a);
    }
}

/* Norm and GELU in one: convolutions, which have 512 channels. */
template <typename T>
static void choose_norm(const struct cuda_launch *l, enum cuda_activation act,
                        const struct layer_norm_args *a) {
    const bool has_vectors = a->channels % (16 / (int)sizeof(T)) == 0;
    if (act == CUDA_GELU && a->channels == 512)
        launch_warps<T, 16, true, CUDA_GELU>(l, a);
    else if (act == CUDA_IDENTITY && has_vectors && a->channels <= 2048)
        choose_warps<T>(l, a);
    else
        LAUNCH((norm_rows_in_blocks<T>), (int)a->rows, min((a->channels + 31) / 32 * 32, (int)NORM_THREADS),
               0, l->stream, *a, act);
}

void cuda_layer_norm(const struct cuda_launch *l, void *y, const void *x, const float *weight,
                     const float *bias, float eps, enum cuda_activation act, int64_t rows, int channels) {
    const struct layer_norm_args a = {y, x, weight, bias, eps, 1.0f / (float)channels, rows, channels};
    if (l->type == CUDA_BF16)
        choose_norm<bf16>(l, act, &a);
    else
        choose_norm<float>(l, act, &a);
}
