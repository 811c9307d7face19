/* cuda: what the kernels are written with. The same .cu file is compiled by nvcc for GPUs, and by the host's
 * C++ compiler with TIMBRE_CUDA_ON_HOST for the tests, where host/shim.h stands in for the GPU.
 *
 *   LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
 *     puts a kernel into a `struct gpu_stream *`. Grid and block are dim3 or int; a grid with a zero
 * dimension is no launch. A template's instance may stand in parentheses: LAUNCH((k<float, 4>), ...). Errors:
 *     gpu_last_error.
 *   DYN_SHARED(T, name);
 *     declares `T *name`, the block's dynamic shared memory, aligned to 16 bytes.
 *
 * All threads of a block must reach every __syncthreads, and all 32 lanes of a warp every shuffle, ballot,
 * warp_sum, ldmatrix and mma: blocks are a multiple of 32 threads where those are used. */
#ifndef TIMBRE_KERNELS_CUDA_CUDA_CUH
#define TIMBRE_KERNELS_CUDA_CUDA_CUH

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/launch.h"

#ifdef TIMBRE_CUDA_ON_HOST
#include "kernels/cuda/host/shim.h"

#define LAUNCH(...)         shim_launch(SHIM_SITE, #__VA_ARGS__, __VA_ARGS__)
#define DYN_SHARED(T, name) T *name = static_cast<T *>(shim_dynamic_shared())

__device__ static inline float bf16_to_float(bf16 x) {
    return shim_bf16_to_float(x);
}
__device__ static inline bf16 float_to_bf16(float x) {
    return shim_float_to_bf16(x);
}

#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;

#define LAUNCH(...) cuda_launch_kernel(__VA_ARGS__)
#define DYN_SHARED(T, name)                                                                                  \
    extern __shared__ __align__(16) unsigned char cuda_dynamic_shared[];                                     \
    T *name = reinterpret_cast<T *>(cuda_dynamic_shared)

/* Without the alias, P would be deduced from the arguments too, which then could not be converted. */
template <typename T> struct cuda_as { typedef T type; };

template <typename... P>
static void cuda_launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                               struct gpu_stream *stream, typename cuda_as<P>::type... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return;
    }
    const void *function = reinterpret_cast<const void *>(kernel);
    /* More than 48 KiB of dynamic shared memory has to be asked for. An error stays for gpu_last_error. */
    if (shared_bytes > 48 * 1024 &&
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)) != cudaSuccess) {
        return;
    }
    void *pointers[] = {const_cast<void *>(static_cast<const void *>(&arguments))..., NULL};
    (void)cudaLaunchKernel(function, grid, block, pointers, shared_bytes,
                           reinterpret_cast<cudaStream_t>(stream));
}

__device__ static inline float bf16_to_float(bf16 x) {
    return __bfloat162float(x);
}
__device__ static inline bf16 float_to_bf16(float x) {
    return __float2bfloat16_rn(x);
}
#endif

/* --- numbers -------------------------------------------------------------------------------------------- */

struct float8 {
    float v[8];
};

__device__ static inline float to_float(float x) {
    return x;
}
__device__ static inline float to_float(bf16 x) {
    return bf16_to_float(x);
}

/* Rounds to nearest, ties to even; a NaN becomes 0x7fff. */
template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) {
    return x;
}
template <> __device__ inline bf16 from_float<bf16>(float x) {
    return float_to_bf16(x);
}

/* Two bf16, `lo` in the lower half: the one that lies first in memory. */
__device__ static inline uint32_t pack_bf16(float lo, float hi) {
#ifdef TIMBRE_CUDA_ON_HOST
    return static_cast<uint32_t>(float_to_bf16(lo).bits) | static_cast<uint32_t>(float_to_bf16(hi).bits)
                                                               << 16;
#else
    __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&pair);
#endif
}
__device__ static inline float2 unpack_bf16(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* --- vector access: pointers aligned to the access, 4 * sizeof(T) or 16 bytes --------------------------- */

template <typename V, typename T> __device__ static inline V *cuda_vector(T *p) {
#ifdef TIMBRE_CUDA_ON_HOST
    shim_check_alignment(p, sizeof(V));
#endif
    return reinterpret_cast<V *>(p);
}

template <typename T> __device__ static inline float4 load4(const T *p);
template <> __device__ inline float4 load4<float>(const float *p) {
    return *cuda_vector<const float4>(p);
}
template <> __device__ inline float4 load4<bf16>(const bf16 *p) {
    const uint2 w = *cuda_vector<const uint2>(p);
    const float2 a = unpack_bf16(w.x), b = unpack_bf16(w.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

template <typename T> __device__ static inline void store4(T *p, float4 v);
template <> __device__ inline void store4<float>(float *p, float4 v) {
    *cuda_vector<float4>(p) = v;
}
template <> __device__ inline void store4<bf16>(bf16 *p, float4 v) {
    *cuda_vector<uint2>(p) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}

__device__ static inline float8 load8(const bf16 *p) {
    const uint4 w = *cuda_vector<const uint4>(p);
    const float2 a = unpack_bf16(w.x), b = unpack_bf16(w.y), c = unpack_bf16(w.z), d = unpack_bf16(w.w);
    return float8{{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
__device__ static inline void store8(bf16 *p, float8 x) {
    *cuda_vector<uint4>(p) = make_uint4(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]),
                                        pack_bf16(x.v[4], x.v[5]), pack_bf16(x.v[6], x.v[7]));
}

/* --- warps: butterflies over 32 lanes, so that all lanes get the same bits ------------------------------ */

#ifdef TIMBRE_CUDA_ON_HOST
#define warp_sum(x) shim_warp_sum(SHIM_SITE, x)
#define warp_max(x) shim_warp_max(SHIM_SITE, x)
#else
template <typename T> __device__ static inline T warp_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}
__device__ static inline float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}
#endif

/* --- activations: kernels/kernels.h has the formulas ---------------------------------------------------- */

/* GELU, exact form: x Phi(x) = max(x, 0) - |x| Phi(-|x|), with log2 Phi(-t) as a polynomial, fitted to it in
 * the least squares sense. Off by at most 4.8e-8 (1 + |y|) over all floats, where erff gives 8.3e-8 in twice
 * the instructions; measured against double in steps of 1e-5. */
__device__ static inline float gelu_exact(float x) {
    const float t = fabsf(x);
    float p = -1.69038339e-06f;
    p = fmaf(p, t, 2.50830877e-05f);
    p = fmaf(p, t, -1.14461618e-04f);
    p = fmaf(p, t, -3.23344789e-04f);
    p = fmaf(p, t, 7.33338782e-03f);
    p = fmaf(p, t, -5.27142016e-02f);
    p = fmaf(p, t, -4.59115436e-01f);
    p = fmaf(p, t, -1.15112326f);
    p = fmaf(p, t, -0.999998874f);
    return fmaf(-t, exp2f(p), fmaxf(x, 0.0f));
}

template <enum cuda_activation ACT> __device__ static inline float activate(float x) {
    if (ACT == CUDA_GELU) {
        return gelu_exact(x);
    }
    if (ACT == CUDA_GELU_TANH) {
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    }
    if (ACT == CUDA_RELU) {
        return x < 0.0f ? 0.0f : x; /* NaN stays NaN */
    }
    if (ACT == CUDA_SILU) {
        return x / (1.0f + expf(-x));
    }
    if (ACT == CUDA_TANH) {
        return tanhf(x);
    }
    return x;
}
__device__ static inline float activate(enum cuda_activation act, float x) {
    switch (act) {
    case CUDA_GELU:
        return activate<CUDA_GELU>(x);
    case CUDA_GELU_TANH:
        return activate<CUDA_GELU_TANH>(x);
    case CUDA_RELU:
        return activate<CUDA_RELU>(x);
    case CUDA_SILU:
        return activate<CUDA_SILU>(x);
    case CUDA_TANH:
        return activate<CUDA_TANH>(x);
    default:
        return x;
    }
}

#include "kernels/cuda/mma.cuh"

#endif
