/* Pooling over each clip's tokens, and the classifier's linear layers. */
#include "kernels/cuda/cuda.cuh"

enum {
    POOL_WARPS = 16,   /* of a block: one a piece, at a time */
    PIECE_TOKENS = 32, /* of a piece, counted from the clip's start */
    HEAD_WARPS = 4,
};

struct pool_args {
    float *y;
    const void *x;
    const struct cuda_counts *counts;
    const int32_t *cu_tokens;
    int channels;
};

/* A block a clip and 32 channels, a lane a channel. The pieces' sums are added in the pieces' order. */
template <typename T, enum cuda_pooling KIND>
__global__ static void __launch_bounds__(POOL_WARPS * 32) pool_tokens(struct pool_args a) {
    __shared__ float parts[POOL_WARPS][32];
    if ((int)blockIdx.x >= a.counts->clips)
        return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = blockIdx.y * 32 + lane;
    const int64_t start = a.cu_tokens[blockIdx.x], tokens = a.cu_tokens[blockIdx.x + 1] - start;
    const float none = KIND == CUDA_POOL_MAX ? -INFINITY : 0.0f;
    const T *x = (const T *)a.x + min(channel, a.channels - 1);
    double sum = 0;
    float most = none;
    for (int64_t first = 0; first < tokens; first += POOL_WARPS * PIECE_TOKENS) {
        const int64_t begin = first + warp * PIECE_TOKENS, end = min(begin + PIECE_TOKENS, tokens);
        float part = none;
#pragma unroll 16
        for (int64_t i = begin; i < end; i++) {
            const float v = to_float(x[(start + i) * a.channels]);
            part = KIND == CUDA_POOL_MAX ? fmaxf(part, v) : part + v;
        }
        parts[warp][lane] = part;
        __syncthreads();
        for (int i = 0; warp == 0 && i < POOL_WARPS; i++) {
            sum += parts[i][lane];
            most = fmaxf(most, parts[i][lane]);
        }
        /* The next pieces go where these are. */
        __syncthreads();
    }
    if (warp > 0 || channel >= a.channels)
        return;
    if (KIND == CUDA_POOL_MEAN)
        sum /= (double)tokens;
    a.y[(int64_t)blockIdx.x * a.channels + channel] = KIND == CUDA_POOL_MAX ? most : (float)sum;
}

template <typename T>
static void choose_pool(const struct cuda_launch *l, enum cuda_pooling kind, const struct pool_args *a) {
    const dim3 grid((unsigned)l->grid.clips, (unsigned)((a->channels + 31) / 32));
    const int threads = POOL_WARPS * 32;
    if (kind == CUDA_POOL_MEAN)
        LAUNCH((pool_tokens<T, CUDA_POOL_MEAN>), grid, threads, 0, l->stream, *a);
    else if (kind == CUDA_POOL_SUM)
        LAUNCH((pool_tokens<T, CUDA_POOL_SUM>), grid, threads, 0, l->stream, *a);
    else
        LAUNCH((pool_tokens<T, CUDA_POOL_MAX>), grid, threads, 0, l->stream, *a);
}

void cuda_pool(const struct cuda_launch *l, float *y, const void *x, enum cuda_pooling kind, int channels) {
    const struct pool_args a = {y, x, l->tables.counts, l->tables.cu_tokens, channels};
    if (l->type == CUDA_BF16)
        choose_pool<bf16>(l, kind, &a);
    else
        choose_pool<float>(l, kind, &a);
}

/* ---- head_linear ---- */

struct head_linear_args {
    float *y;
    const float *x, *w, *bias;
    const struct cuda_counts *counts;
    int in, out;
    enum cuda_activation act;
};

/* A warp an output of a clip; the order of its sum follows from `in` alone. */
__global__ static void __launch_bounds__(HEAD_WARPS * 32) head_outputs(struct head_linear_args a) {
    const int lane = threadIdx.x % 32;
    const int o = blockIdx.y * HEAD_WARPS + threadIdx.x / 32;
    if ((int)blockIdx.x >= a.counts->clips || o >= a.out)
        return;
    const float *x = a.x + (int64_t)blockIdx.x * a.in, *w = a.w + (int64_t)o * a.in;
    float sum = 0;
#pragma unroll 8
    for (int i = lane; i < a.in; i += 32)
        sum = fmaf(x[i], w[i], sum);
    sum = warp_sum(sum) + a.bias[o];
    if (lane == 0)
        a.y[(int64_t)blockIdx.x * a.out + o] = activate(a.act, sum);
}

void cuda_head_linear(const struct cuda_launch *l, float *y, const float *x, const float *w,
                      const float *bias, enum cuda_activation act, int in, int out) {
    const struct head_linear_args a = {y, x, w, bias, l->tables.counts, in, out, act};
    LAUNCH(head_outputs, dim3((unsigned)l->grid.clips, (unsigned)((out + HEAD_WARPS - 1) / HEAD_WARPS)),
           HEAD_WARPS * 32, 0, l->stream, a);
}
