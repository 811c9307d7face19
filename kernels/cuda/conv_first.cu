/* The first convolution, of samples, and the statistics of its group norm. */
#include "kernels/cuda/cuda.cuh"

/* ---- group_stats ----
 *
 * The convolution is linear, so the mean and the variance of its output follow from those of its input
 * windows x_r [kernel]: sums of x_i and of x_i x_j, i <= j, over the rows of each chunk, then of each clip,
 * then evaluated for each channel. A product of two floats is exact in double. */

enum {
    SUM_WARPS = 16,    /* of a block: each takes every 16th row */
    SUMS_PER_LANE = 3, /* 65 sums of a kernel of 10 are one block's */
    SUMS_PER_BLOCK = 32 * SUMS_PER_LANE,
    STAGE_DOUBLES = 4096, /* samples in shared memory, about */
    CLIP_WARPS = 8,
    PAIRS_TILE = 512,
    STATS_THREADS = 64, /* channels of a block */
};

static int count_sums(int kernel) {
    return kernel * (kernel + 3) / 2;
}

/* The q-th pair i <= j < kernel, row after row. */
__device__ static inline int2 find_pair(int q, int kernel) {
    int i = 0;
    while (q >= kernel - i) {
        q -= kernel - i;
        i++;
    }
    return make_int2(i, i + q);
}

/* partial [chunks, sums]: kernel sums of x_i, then those of pairs. `stage_rows` rows at a time are staged. */
__global__ static void __launch_bounds__(SUM_WARPS * 32)
    sum_chunk_moments(double *partial, const float *x, struct cuda_tables t, int kernel, int stride, int sums,
                      int stage_rows) {
    DYN_SHARED(double, stage);
    __shared__ double parts[SUM_WARPS][SUMS_PER_BLOCK];
    if ((int)blockIdx.x >= t.counts->chunks_rows)
        return;
    const struct cuda_tile chunk = t.chunks_rows[blockIdx.x];
    const int rows = min(CUDA_CHUNK_ROWS, t.rows_first[chunk.clip] - chunk.first);
    const float *from = x + t.offset[chunk.clip] + (int64_t)chunk.first * stride;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int2 pair[SUMS_PER_LANE];
    double sum[SUMS_PER_LANE] = {};
#pragma unroll
    for (int k = 0; k < SUMS_PER_LANE; k++) {
        const int s = blockIdx.y * SUMS_PER_BLOCK + k * 32 + lane;
        pair[k] = s < kernel ? make_int2(s, -1) : find_pair(min(s, sums - 1) - kernel, kernel);
    }
    for (int first = 0; first < rows; first += stage_rows) {
        const int n = min(stage_rows, rows - first), samples = (n - 1) * stride + kernel;
        for (int i = threadIdx.x; i < samples; i += SUM_WARPS * 32)
            stage[i] = from[(int64_t)first * stride + i];
        __syncthreads();
        for (int r = warp; r < n; r += SUM_WARPS) {
            const double *row = stage + r * stride;
#pragma unroll
            for (int k = 0; k < SUMS_PER_LANE; k++)
                sum[k] = fma(row[pair[k].x], pair[k].y < 0 ? 1.0 : row[pair[k].y], sum[k]);
        }
        /* The next rows go where these are. */
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < SUMS_PER_LANE; k++)
        parts[warp][k * 32 + lane] = sum[k];
    __syncthreads();
    const int s = blockIdx.y * SUMS_PER_BLOCK + threadIdx.x;
    if (threadIdx.x >= SUMS_PER_BLOCK || s >= sums)
        return;
    double total = 0;
    for (int i = 0; i < SUM_WARPS; i++)
        total += parts[i][threadIdx.x];
    partial[(int64_t)blockIdx.x * sums + s] = total;
}

/* moments [clips, sums]: means over the rows of a clip. The block of a clip's first chunk adds all of the
 * clip's, which lie behind each other: a warp takes every CLIP_WARPS-th. */
__global__ static void __launch_bounds__(CLIP_WARPS * 32)
    sum_clip_moments(double *moments, const double *partial, struct cuda_tables t, int sums) {
    __shared__ double parts[CLIP_WARPS][32];
    if ((int)blockIdx.x >= t.counts->chunks_rows)
        return;
    const struct cuda_tile chunk = t.chunks_rows[blockIdx.x];
    if (chunk.first > 0)
        return;
    const int rows = t.rows_first[chunk.clip], chunks = (rows + CUDA_CHUNK_ROWS - 1) / CUDA_CHUNK_ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, s = blockIdx.y * 32 + lane;
    const double *p = partial + (int64_t)blockIdx.x * sums + s;
    double sum = 0;
    if (s < sums)
#pragma unroll 4
        for (int i = warp; i < chunks; i += CLIP_WARPS)
            sum += p[(int64_t)i * sums];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || s >= sums)
        return;
    for (int i = 1; i < CLIP_WARPS; i++)
        sum += parts[i][lane];
    moments[(int64_t)chunk.clip * sums + s] = sum / rows;
}

struct group_stats_args {
    float *stats;
    const float *w, *bias;
    const double *moments;
    const struct cuda_counts *counts;
    int kernel, sums, out;
    float eps;
};

/* A thread a channel. Pairs come through shared memory as covariances, twice where i < j. */
__global__ static void __launch_bounds__(STATS_THREADS) evaluate_moments(struct group_stats_args a) {
    __shared__ double covariance[PAIRS_TILE];
    if ((int)blockIdx.x >= a.counts->clips)
        return;
    const int channel = blockIdx.y * STATS_THREADS + threadIdx.x, pairs = a.sums - a.kernel;
    const float *w = a.w + min(channel, a.out - 1);
    const double *means = a.moments + (int64_t)blockIdx.x * a.sums;
    double mean = a.bias[min(channel, a.out - 1)], variance = 0, inner = 0;
    for (int i = 0; i < a.kernel; i++)
        mean = fma((double)w[(int64_t)i * a.out], means[i], mean);
    int i = 0, j = 0;
    for (int first = 0; first < pairs; first += PAIRS_TILE) {
        const int n = min(PAIRS_TILE, pairs - first);
        for (int q = threadIdx.x; q < n; q += STATS_THREADS) {
            const int2 pair = find_pair(first + q, a.kernel);
            const double c = means[a.kernel + first + q] - means[pair.x] * means[pair.y];
            covariance[q] = pair.x < pair.y ? 2 * c : c;
        }
        __syncthreads();
        for (int q = 0; q < n;) {
            const int end = min(n, q + a.kernel - j);
#pragma unroll 4
            for (; q < end; q++, j++)
                inner = fma(covariance[q], (double)w[(int64_t)j * a.out], inner);
            if (j == a.kernel) {
                variance = fma(inner, (double)w[(int64_t)i * a.out], variance);
                inner = 0;
                j = ++i;
            }
        }
        /* The next tile goes where this one is. */
        __syncthreads();
    }
    if (channel >= a.out)
        return;
    float *to = a.stats + ((int64_t)blockIdx.x * a.out + channel) * 2;
    to[0] = (float)mean;
    to[1] = (float)(1.0 / sqrt(fmax(variance, 0.0) + a.eps));
}

void cuda_group_stats(const struct cuda_launch *l, float *stats, const float *x, const float *w,
                      const float *bias, double *partial, double *moments, int kernel, int stride, int out,
                      float eps) {
    const int sums = count_sums(kernel);
    int stage_rows = (STAGE_DOUBLES - kernel) / stride + 1;
    stage_rows = stage_rows < 1 ? 1 : stage_rows > CUDA_CHUNK_ROWS ? CUDA_CHUNK_ROWS : stage_rows;
    const size_t stage_bytes = ((size_t)(stage_rows - 1) * (size_t)stride + (size_t)kernel) * sizeof(double);
    const struct group_stats_args a = {stats, w, bias, moments, l->tables.counts, kernel, sums, out, eps};
    const unsigned chunks = (unsigned)l->grid.chunks_rows;
    LAUNCH(sum_chunk_moments, dim3(chunks, (unsigned)((sums + SUMS_PER_BLOCK - 1) / SUMS_PER_BLOCK)),
           SUM_WARPS * 32, stage_bytes, l->stream, partial, x, l->tables, kernel, stride, sums, stage_rows);
    LAUNCH(sum_clip_moments, dim3(chunks, (unsigned)((sums + 31) / 32)), CLIP_WARPS * 32, 0, l->stream,
           moments, partial, l->tables, sums);
    LAUNCH(evaluate_moments,
           dim3((unsigned)l->grid.clips, (unsigned)((out + STATS_THREADS - 1) / STATS_THREADS)),
           STATS_THREADS, 0, l->stream, a);
}

/* ---- conv_first ----
 *
 * A block takes a piece of rows, its samples in shared memory, and each thread some channels of all of them.
 * The norm is folded into weights and bias: they are the clip's then. */

enum {
    PIECE_ROWS = 64,
    GROUP_ROWS = 4,     /* that a thread computes at a time */
    GROUP_CHANNELS = 4, /* likewise; one access of store4 */
    CONV_THREADS = 128,
    STAGE_FLOATS = 8192, /* samples in shared memory, about */
};

struct conv_first_args {
    void *y;
    const float *x, *w, *bias, *stats, *norm_weight, *norm_bias;
    int kernel, stride, out, piece_rows;
    int64_t first, count;
};

/* Rows begin .. end of y. */
struct conv_first_piece {
    int clip;
    int64_t begin, end;
};

/* With statistics: blockIdx.x is a chunk of a clip, blockIdx.y a piece of it. Without: blockIdx.x is a piece
 * of all rows. Empty when there is none. */
__device__ static inline struct conv_first_piece find_piece(const struct conv_first_args &a,
                                                            const struct cuda_tables &t) {
    const int64_t first = (int64_t)blockIdx.x * a.piece_rows;
    if (!a.stats)
        return {0, first, min(first + a.piece_rows, a.count)};
    if ((int)blockIdx.x >= t.counts->chunks_rows)
        return {0, 0, 0};
    const struct cuda_tile chunk = t.chunks_rows[blockIdx.x];
    const int begin = chunk.first + (int)blockIdx.y * a.piece_rows;
    const int end = min(min(begin + a.piece_rows, chunk.first + CUDA_CHUNK_ROWS), t.rows_first[chunk.clip]);
    /* The clip's first row is this one of y. */
    const int64_t start = t.offset[chunk.clip] / a.stride - a.first;
    return {chunk.clip, max(start + begin, (int64_t)0), min(start + end, a.count)};
}

/* Puts the samples of a piece into shared memory, and zeros where a group of rows that is not whole reads
 * beyond them. */
__device__ static inline void stage_samples(float *stage, const struct conv_first_args &a,
                                            const struct conv_first_piece &p, int total) {
    const int samples = (int)(p.end - p.begin - 1) * a.stride + a.kernel;
    for (int i = threadIdx.x; i < total; i += blockDim.x)
        stage[i] = i < samples ? a.x[p.begin * a.stride + i] : 0.0f;
    __syncthreads();
}

/* What a channel's weights are multiplied by, and what its sum begins with. */
struct conv_first_fold {
    float scale, shift;
};
__device__ static inline struct conv_first_fold fold_norm(const struct conv_first_args &a, int clip,
                                                          int channel) {
    const float bias = a.bias[channel];
    if (!a.stats)
        return {1.0f, bias};
    const float *s = a.stats + ((int64_t)clip * a.out + channel) * 2;
    const float scale = s[1] * a.norm_weight[channel];
    return {scale, fmaf(bias - s[0], scale, a.norm_bias[channel])};
}

/* KERNEL taps, STRIDE and channels that are a multiple of 4: a thread's weights are in registers, and so are
 * the samples of GROUP_ROWS rows. */
template <typename T, enum cuda_activation ACT, int KERNEL, int STRIDE>
__global__ static void __launch_bounds__(CONV_THREADS, 4)
    conv_unrolled(struct conv_first_args a, struct cuda_tables t) {
    constexpr int WINDOW = ((GROUP_ROWS - 1) * STRIDE + KERNEL + 3) / 4 * 4;
    constexpr int TOTAL = (PIECE_ROWS - GROUP_ROWS) * STRIDE + WINDOW;
    __shared__ __align__(16) float stage[TOTAL];
    const struct conv_first_piece p = find_piece(a, t);
    const int channel = (int)(blockIdx.z * blockDim.x + threadIdx.x) * GROUP_CHANNELS;
    if (p.begin >= p.end)
        return;
    stage_samples(stage, a, p, TOTAL);
    if (channel >= a.out)
        return;
    float w[KERNEL][GROUP_CHANNELS], shift[GROUP_CHANNELS];
#pragma unroll
    for (int k = 0; k < KERNEL; k++) {
        const float4 v = load4(a.w + (int64_t)k * a.out + channel);
        w[k][0] = v.x, w[k][1] = v.y, w[k][2] = v.z, w[k][3] = v.w;
    }
#pragma unroll
    for (int c = 0; c < GROUP_CHANNELS; c++) {
        const struct conv_first_fold f = fold_norm(a, p.clip, channel + c);
        shift[c] = f.shift;
#pragma unroll
        for (int k = 0; k < KERNEL; k++)
            w[k][c] *= f.scale;
    }
    const int rows = (int)(p.end - p.begin);
    T *to = (T *)a.y + p.begin * a.out + channel;
#pragma unroll 1
    for (int row = 0; row < rows; row += GROUP_ROWS) {
        float x[WINDOW];
#pragma unroll
        for (int i = 0; i < WINDOW; i += 4) {
            const float4 v = load4(stage + row * STRIDE + i);
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
#pragma unroll
        for (int r = 0; r < GROUP_ROWS; r++) {
            float sum[GROUP_CHANNELS];
#pragma unroll
            for (int c = 0; c < GROUP_CHANNELS; c++) {
                sum[c] = shift[c];
#pragma unroll
                for (int k = 0; k < KERNEL; k++)
                    sum[c] = fmaf(x[r * STRIDE + k], w[k][c], sum[c]);
                sum[c] = activate<ACT>(sum[c]);
            }
            if (row + r < rows)
                store4(to, make_float4(sum[0], sum[1], sum[2], sum[3]));
            to += a.out;
        }
    }
}

/* Any taps, stride and number of channels: a thread a channel. */
template <typename T>
__global__ static void __launch_bounds__(CONV_THREADS)
    conv_any(struct conv_first_args a, struct cuda_tables t, enum cuda_activation act, int total) {
    DYN_SHARED(float, stage);
    const struct conv_first_piece p = find_piece(a, t);
    const int channel = (int)(blockIdx.z * blockDim.x + threadIdx.x);
    if (p.begin >= p.end)
        return;
    stage_samples(stage, a, p, total);
    if (channel >= a.out)
        return;
    const struct conv_first_fold f = fold_norm(a, p.clip, channel);
    const int rows = (int)(p.end - p.begin);
    for (int row = 0; row < rows; row += GROUP_ROWS) {
        float sum[GROUP_ROWS];
#pragma unroll
        for (int r = 0; r < GROUP_ROWS; r++)
            sum[r] = f.shift;
        for (int k = 0; k < a.kernel; k++) {
            const float w = a.w[(int64_t)k * a.out + channel] * f.scale;
#pragma unroll
            for (int r = 0; r < GROUP_ROWS; r++)
                sum[r] = fmaf(stage[(row + r) * a.stride + k], w, sum[r]);
        }
#pragma unroll
        for (int r = 0; r < GROUP_ROWS; r++)
            if (row + r < rows)
                ((T *)a.y)[(p.begin + row + r) * a.out + channel] = from_float<T>(activate(act, sum[r]));
    }
}

/* A block a piece, and z for every so many channels. */
static dim3 count_pieces(const struct cuda_launch *l, const struct conv_first_args *a, int channels) {
    const unsigned z = (unsigned)((a->out + channels - 1) / channels);
    if (a->stats)
        return dim3((unsigned)l->grid.chunks_rows,
                    (unsigned)((CUDA_CHUNK_ROWS + a->piece_rows - 1) / a->piece_rows), z);
    return dim3((unsigned)((a->count + a->piece_rows - 1) / a->piece_rows), 1, z);
}

template <typename T, enum cuda_activation ACT>
static void launch_unrolled(const struct cuda_launch *l, struct conv_first_args a) {
    int threads = (a.out / GROUP_CHANNELS + 31) / 32 * 32;
    threads = threads > CONV_THREADS ? CONV_THREADS : threads;
    a.piece_rows = PIECE_ROWS;
    LAUNCH((conv_unrolled<T, ACT, 10, 5>), count_pieces(l, &a, threads * GROUP_CHANNELS), threads, 0,
           l->stream, a, l->tables);
}

template <typename T>
static void launch_any(const struct cuda_launch *l, struct conv_first_args a, enum cuda_activation act) {
    int threads = (a.out + 31) / 32 * 32;
    threads = threads > CONV_THREADS ? CONV_THREADS : threads;
    a.piece_rows = PIECE_ROWS;
    while (a.piece_rows > GROUP_ROWS && (int64_t)a.piece_rows * a.stride + a.kernel > STAGE_FLOATS)
        a.piece_rows /= 2;
    const int total = (a.piece_rows - 1) * a.stride + a.kernel;
    LAUNCH((conv_any<T>), count_pieces(l, &a, threads), threads, (size_t)total * sizeof(float), l->stream, a,
           l->tables, act, total);
}

template <typename T>
static void choose_conv(const struct cuda_launch *l, const struct conv_first_args *a,
                        enum cuda_activation act) {
    const bool is_usual = a->kernel == 10 && a->stride == 5 && a->out % GROUP_CHANNELS == 0;
    if (is_usual && act == CUDA_IDENTITY)
        launch_unrolled<T, CUDA_IDENTITY>(l, *a);
    else if (is_usual && act == CUDA_GELU)
        launch_unrolled<T, CUDA_GELU>(l, *a);
    else
        launch_any<T>(l, *a, act);
}

void cuda_conv_first(const struct cuda_launch *l, void *y, const float *x, const float *w, const float *bias,
                     const float *stats, const float *norm_weight, const float *norm_bias,
                     enum cuda_activation act, int kernel, int stride, int out, int64_t first,
                     int64_t count) {
    const struct conv_first_args a = {y,      x,      w,   bias, stats, norm_weight, norm_bias,
                                      kernel, stride, out, 0,    first, count};
    if (l->type == CUDA_BF16)
        choose_conv<bf16>(l, &a, act);
    else
        choose_conv<float>(l, &a, act);
}
