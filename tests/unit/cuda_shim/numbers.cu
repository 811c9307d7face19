#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

__global__ static void round_all(bf16 *y, const float *x, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = from_float<bf16>(x[i]);
    }
}
void numbers_round(struct gpu_stream *s, uint16_t *y, const float *x, int n) {
    LAUNCH(round_all, (n + 255) / 256, 256, 0, s, reinterpret_cast<bf16 *>(y), x, n);
}

__global__ static void widen_all(float *y, const bf16 *x, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = to_float(x[i]);
    }
}
void numbers_widen(struct gpu_stream *s, float *y, const uint16_t *x, int n) {
    LAUNCH(widen_all, (n + 255) / 256, 256, 0, s, y, reinterpret_cast<const bf16 *>(x), n);
}

template <enum cuda_activation ACT> __global__ static void activate_all(float *y, const float *x, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = activate<ACT>(x[i]);
    }
}
__global__ static void activate_any(float *y, const float *x, int n, enum cuda_activation act) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        y[i] = activate(act, x[i]);
    }
}
template <enum cuda_activation ACT>
static void launch_activate(struct gpu_stream *s, float *y, const float *x, int n) {
    LAUNCH((activate_all<ACT>), (n + 255) / 256, 256, 0, s, y, x, n);
}
void numbers_activate(struct gpu_stream *s, float *y, const float *x, int n, enum cuda_activation act,
                      bool templated) {
    void (*const launch[])(struct gpu_stream *, float *, const float *, int) = {
        launch_activate<CUDA_IDENTITY>, launch_activate<CUDA_GELU>, launch_activate<CUDA_GELU_TANH>,
        launch_activate<CUDA_RELU>,     launch_activate<CUDA_SILU>, launch_activate<CUDA_TANH>};
    if (templated) {
        launch[act](s, y, x, n);
    } else {
        LAUNCH(activate_any, (n + 255) / 256, 256, 0, s, y, x, n, act);
    }
}

__global__ static void copy_all(bf16 *y, const bf16 *x, int n, enum numbers_width width) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= n) {
        return;
    }
    if (width == NUMBERS_4) {
        store4<bf16>(y + i, load4<bf16>(x + i));
        store4<bf16>(y + i + 4, load4<bf16>(x + i + 4));
    } else if (width == NUMBERS_8) {
        store8(y + i, load8(x + i));
    } else {
        for (int k = 0; k < 8; k += 2) {
            const float2 v = unpack_bf16(*reinterpret_cast<const uint32_t *>(x + i + k));
            *reinterpret_cast<uint32_t *>(y + i + k) = pack_bf16(v.x, v.y);
        }
    }
}
void numbers_copy(struct gpu_stream *s, uint16_t *y, const uint16_t *x, int n, enum numbers_width width) {
    LAUNCH(copy_all, (n / 8 + 63) / 64, 64, 0, s, reinterpret_cast<bf16 *>(y),
           reinterpret_cast<const bf16 *>(x), n, width);
}
