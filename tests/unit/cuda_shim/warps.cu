#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

__device__ static inline float butterfly(float x) {
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

__device__ static inline float block_sum(float x) {
    __shared__ float sums[32];
    const float sum = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    float total = 0.0f;
    for (unsigned i = 0; i < blockDim.x / 32; i++) {
        total += sums[i];
    }
    return total;
}

__global__ static void reduce(float *y, const float *x, enum warps_kind kind) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    switch (kind) {
    case WARPS_SUM:
        y[i] = warp_sum(x[i]);
        break;
    case WARPS_SUM_DOUBLE:
        y[i] = static_cast<float>(warp_sum(static_cast<double>(x[i])));
        break;
    case WARPS_BUTTERFLY:
        y[i] = butterfly(x[i]);
        break;
    case WARPS_MAX:
        y[i] = warp_max(x[i]);
        break;
    case WARPS_BLOCK_SUM:
        y[i] = block_sum(x[i]);
        break;
    }
}
void warps_reduce(struct gpu_stream *s, float *y, const float *x, enum warps_kind kind, int n, int block) {
    LAUNCH(reduce, n / block, block, 0, s, y, x, kind);
}

__global__ static void shuffle(int *y, enum warps_shuffle kind, int by, int width) {
    const int lane = static_cast<int>(threadIdx.x);
    int got = -1;
    if (kind == WARPS_INDEX) {
        got = __shfl_sync(0xffffffffu, lane, by, width);
    } else if (kind == WARPS_XOR) {
        got = __shfl_xor_sync(0xffffffffu, lane, by, width);
    } else if (kind == WARPS_UP) {
        got = __shfl_up_sync(0xffffffffu, lane, static_cast<unsigned>(by), width);
    } else {
        got = __shfl_down_sync(0xffffffffu, lane, static_cast<unsigned>(by), width);
    }
    y[lane] = got;
}
void warps_shuffle(struct gpu_stream *s, int *y, enum warps_shuffle kind, int by, int width) {
    LAUNCH(shuffle, 1, 32, 0, s, y, kind, by, width);
}

__global__ static void vote(unsigned *y, unsigned bits) {
    const bool own = (bits >> threadIdx.x & 1) != 0;
    const unsigned ballot = __ballot_sync(0xffffffffu, own);
    const int any = __any_sync(0xffffffffu, own), all = __all_sync(0xffffffffu, own);
    if (threadIdx.x == 31) {
        y[0] = ballot;
        y[1] = static_cast<unsigned>(any);
        y[2] = static_cast<unsigned>(all);
    }
}
void warps_vote(struct gpu_stream *s, unsigned *y, unsigned bits) {
    LAUNCH(vote, 1, 32, 0, s, y, bits);
}

__global__ static void indices(int *y) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int *own = y + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
    own[0] = static_cast<int>(threadIdx.x);
    own[1] = static_cast<int>(threadIdx.y);
    own[2] = static_cast<int>(threadIdx.z);
    __syncthreads(); /* the rest on the way back from another thread */
    own[3] = static_cast<int>(blockIdx.x);
    own[4] = static_cast<int>(blockIdx.y);
    own[5] = static_cast<int>(blockIdx.z) + static_cast<int>(threadIdx.x) - own[0];
}
void warps_indices(struct gpu_stream *s, int *y, const int grid[3], const int block[3]) {
    LAUNCH(indices, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0, s, y);
}
