#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

__global__ static void fill(float *y, const float *x, int valid, int n) {
    DYN_SHARED(float, tile);
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        cp_async_16(tile + 4 * threadIdx.x, i < valid ? x + 4 * i : NULL, i < valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    if (i < n) {
        store4<float>(y + 4 * i, load4<float>(tile + 4 * threadIdx.x));
    }
}
void copies_fill(struct gpu_stream *s, float *y, const float *x, int valid, int n) {
    LAUNCH(fill, (n + 31) / 32, 32, 32 * 16, s, y, x, valid, n);
}

enum { STAGES = 3, ROW = 128 };

/* One barrier a step: the stage that is filled is the one that all have left before it. */
__global__ static void pipeline(float *y, const float *x, int steps) {
    DYN_SHARED(float, stages); /* [STAGES][ROW] */
    for (int i = 0; i < STAGES - 1; i++) {
        if (threadIdx.x < ROW / 4 && i < steps) {
            cp_async_16(stages + i * ROW + 4 * threadIdx.x, x + i * ROW + 4 * threadIdx.x, true);
        }
        cp_async_commit();
    }
    for (int i = 0; i < steps; i++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        const int next = i + STAGES - 1;
        if (threadIdx.x < ROW / 4 && next < steps) {
            cp_async_16(stages + next % STAGES * ROW + 4 * threadIdx.x, x + next * ROW + 4 * threadIdx.x,
                        true);
        }
        cp_async_commit();
        y[i * ROW + static_cast<int>(threadIdx.x)] = stages[i % STAGES * ROW + static_cast<int>(threadIdx.x)];
    }
}
void copies_pipeline(struct gpu_stream *s, float *y, const float *x, int steps) {
    LAUNCH(pipeline, 1, ROW, STAGES * ROW * sizeof(float), s, y, x, steps);
}
