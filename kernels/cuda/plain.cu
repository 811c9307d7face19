/* A matrix product of any shape, for what the libraries do not take. */
#include "kernels/cuda/cuda.cuh"

enum { TILE = 16, THREADS = TILE * TILE };

struct linear_plain_args {
    void *y;
    const void *x, *w;
    const float *bias;
    const void *residual;
    int64_t x_stride, w_stride, rows;
    int in, out;
    enum cuda_activation act;
};

/* A block 16 rows and 16 outputs. Each tile's sum is its own, so that rounding grows less with `in`. */
template <typename T>
__global__ static void __launch_bounds__(THREADS) linear_tiles(struct linear_plain_args a) {
    __shared__ float x[TILE][TILE + 1], w[TILE][TILE + 1];
    const int i = threadIdx.x % TILE, j = threadIdx.x / TILE;
    const int64_t first_row = (int64_t)blockIdx.x * TILE, row = first_row + j;
    const int first_out = blockIdx.y * TILE, out = first_out + i;
    float sum = 0;
    for (int first = 0; first < a.in; first += TILE) {
        const bool is_in = first + i < a.in;
        x[j][i] = is_in && row < a.rows ? to_float(((const T *)a.x)[row * a.x_stride + first + i]) : 0.0f;
        w[j][i] = is_in && first_out + j < a.out
                      ? to_float(((const T *)a.w)[(first_out + j) * a.w_stride + first + i])
                      : 0.0f;
        __syncthreads();
        float part = 0;
#pragma unroll
        for (int k = 0; k < TILE; k++)
            part = fmaf(x[j][k], w[i][k], part);
        sum += part;
        /* The next tiles go where these are. */
        __syncthreads();
    }
    if (row >= a.rows || out >= a.out)
        return;
    const int64_t at = row * a.out + out;
    float value = activate(a.act, a.bias ? sum + a.bias[out] : sum);
    if (a.residual)
        value += to_float(((const T *)a.residual)[at]);
    ((T *)a.y)[at] = from_float<T>(value);
}

void cuda_linear_plain(const struct cuda_launch *l, void *y, const void *x, int64_t x_stride, const void *w,
                       int64_t w_stride, const float *bias, enum cuda_activation act, const void *residual,
                       int64_t rows, int in, int out) {
    const struct linear_plain_args a = {y, x, w, bias, residual, x_stride, w_stride, rows, in, out, act};
    const dim3 grid((unsigned)((rows + TILE - 1) / TILE), (unsigned)((out + TILE - 1) / TILE));
    if (l->type == CUDA_BF16)
        LAUNCH((linear_tiles<bf16>), grid, THREADS, 0, l->stream, a);
    else
        LAUNCH((linear_tiles<float>), grid, THREADS, 0, l->stream, a);
}
