#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

__global__ static void add_all(float *y, const float *x, float add, int n) {
    __shared__ float kept;
    if (threadIdx.x == 0) {
        kept = add;
    }
    __syncthreads();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = x[i] + kept;
    }
}
void graphs_add(struct gpu_stream *s, float *y, const float *x, float add, int n) {
    LAUNCH(add_all, (n + 63) / 64, 64, 0, s, y, x, add, n);
}

__global__ static void nothing() {}
void graphs_launch_badly(struct gpu_stream *s, int block, int shared_bytes) {
    LAUNCH(nothing, 1, block, shared_bytes, s);
}
void graphs_launch_no_grid(struct gpu_stream *s) {
    LAUNCH(nothing, 0, 2000, 0, s);
}
