/* shim: CUDA's language and built-ins on the host, for tests. cuda.cuh includes it.
 *
 * A kernel runs at once, on the thread that launches it, and one kernel of the process at a time. The threads
 * of a block are fibers, in an order that TIMBRE_SHIM_SEED sets (0: ascending, 1: descending, others:
 * shuffled); blocks run one by one. Shared memory holds NaNs when a block begins. An asynchronous copy is
 * made when it is waited for, and its target holds NaNs until then. Breaking a rule of cuda.cuh aborts with
 * the source lines.
 *
 * In a build with ThreadSanitizer every thread of a block is a thread to it, ordered with the others by
 * __syncthreads and __syncwarp alone. AddressSanitizer sees the ends of dynamic shared memory, UBSan those of
 * static arrays.
 *
 * It does not find races between blocks (run under several seeds and compare), nor a launch whose static and
 * dynamic shared memory are too much together; nothing about speed can be learned from it, and sums of a
 * tensor core are added in another order than here. */
#ifndef TIMBRE_KERNELS_CUDA_HOST_SHIM_H
#define TIMBRE_KERNELS_CUDA_HOST_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/host/memory.h"

/* --- the language --------------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)
/* The section's name is a C identifier, so that the linker tells where it begins and ends. */
#define __shared__ static __attribute__((section("cu_shared")))

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

static inline uint2 make_uint2(unsigned x, unsigned y) {
    return uint2{x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4{x, y, z, w};
}
static inline int2 make_int2(int x, int y) {
    return int2{x, y};
}
static inline int4 make_int4(int x, int y, int z, int w) {
    return int4{x, y, z, w};
}
static inline float2 make_float2(float x, float y) {
    return float2{x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return float4{x, y, z, w};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

/* --- numbers -------------------------------------------------------------------------------------------- */

static inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
static inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
static inline int __float_as_int(float x) {
    return static_cast<int>(__float_as_uint(x));
}
static inline float __int_as_float(int bits) {
    return __uint_as_float(static_cast<uint32_t>(bits));
}
static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
template <typename T> static inline T __ldg(const T *p) {
    return *p;
}
static inline int min(int a, int b) {
    return a < b ? a : b;
}
static inline int max(int a, int b) {
    return a > b ? a : b;
}
static inline unsigned min(unsigned a, unsigned b) {
    return a < b ? a : b;
}
static inline unsigned max(unsigned a, unsigned b) {
    return a > b ? a : b;
}
static inline int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}

struct bf16 {
    uint16_t bits;
};
static inline float shim_bf16_to_float(bf16 x) {
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
static inline bf16 shim_float_to_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return bf16{0x7fff};
    }
    /* Half of the last kept bit, less one where that bit is even: a tie then does not carry. */
    return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/* --- places in the source, for messages; the id tells two on one line apart ----------------------------- */

struct shim_site {
    const char *file;
    int line, id;
};
#define SHIM_SITE (shim_site{__FILE__, __LINE__, __COUNTER__})

/* --- launches ------------------------------------------------------------------------------------------- */

struct shim_kernel {
    shim_site site;
    const char *text; /* the arguments of LAUNCH; the kernel comes first */
    dim3 grid, block;
    size_t shared_bytes;
    void (*run)(const shim_kernel *k); /* one thread of it */
};
void shim_launch_kernel(shim_kernel *k, size_t bytes, struct gpu_stream *stream);

template <typename... P> struct shim_call {
    shim_kernel head;
    void (*function)(P...);
    std::tuple<P...> arguments;
};
template <typename... P, size_t... I>
static inline void shim_call_with(const shim_call<P...> *call, std::index_sequence<I...>) {
    call->function(std::get<I>(call->arguments)...);
}
template <typename... P> static void shim_call_run(const shim_kernel *k) {
    shim_call_with(reinterpret_cast<const shim_call<P...> *>(k), std::index_sequence_for<P...>());
}
template <typename T> static inline void shim_check_argument(const char *text, const T &x) {
    if constexpr (std::is_pointer<T>::value) {
        gpu_host_check_argument(text, x);
    } else {
        (void)text;
        (void)x;
    }
}
template <typename T> struct shim_as { typedef T type; };
template <typename... P>
static void shim_launch(shim_site site, const char *text, void (*function)(P...), dim3 grid, dim3 block,
                        size_t shared_bytes, struct gpu_stream *stream,
                        typename shim_as<P>::type... arguments) {
    static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied as bytes");
    shim_call<P...> call = {{site, text, grid, block, shared_bytes, shim_call_run<P...>},
                            function,
                            std::tuple<P...>(arguments...)};
    static_assert(alignof(shim_call<P...>) <= 16, "a graph keeps it aligned to 16");
    (shim_check_argument(text, arguments), ...);
    shim_launch_kernel(&call.head, sizeof(call), stream);
}

/* --- blocks and warps ----------------------------------------------------------------------------------- */

void *shim_dynamic_shared(void);
[[noreturn]] void shim_fail_alignment(const void *p, size_t bytes);
static inline void shim_check_alignment(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
        shim_fail_alignment(p, bytes);
    }
}
unsigned shim_lane(void);
void shim_sync_threads(shim_site site);
void shim_sync_warp(shim_site site, unsigned mask);
struct shim_warp {
    shim_site site;
    void sync(unsigned mask = 0xffffffffu) {
        shim_sync_warp(site, mask);
    }
};
/* Every lane's value, once all 32 are there; until the lane's next call. */
const uint64_t *shim_exchange(shim_site site, unsigned mask, uint64_t value);
/* Rows of ldmatrix, checked. */
const uint64_t *shim_matrix_rows(shim_site site, const void *row, int matrices);
void shim_mma(shim_site site, float *d, const uint32_t *a, const uint32_t *b);
float shim_warp_sum(shim_site site, float x);
double shim_warp_sum(shim_site site, double x);
float shim_warp_max(shim_site site, float x);

#define __syncthreads() shim_sync_threads(SHIM_SITE)
#define __syncwarp(...) (shim_warp{SHIM_SITE}.sync(__VA_ARGS__))

template <typename T> static inline T shim_shuffle_from(const uint64_t *values, unsigned lane) {
    T x;
    memcpy(&x, &values[lane], sizeof(x));
    return x;
}
template <typename T> static inline const uint64_t *shim_shuffle(shim_site site, unsigned mask, T x) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles are of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(x));
    return shim_exchange(site, mask, bits);
}
/* The lanes are those of CUDA C++ Programming Guide, "Warp Shuffle Functions": segments of `width` lanes; a
 * lane outside of the own segment gives the own value. */
template <typename T>
static inline T shim_shfl(shim_site site, unsigned mask, T x, int lane, unsigned width = 32) {
    const uint64_t *values = shim_shuffle(site, mask, x);
    return shim_shuffle_from<T>(values,
                                (shim_lane() & ~(width - 1)) | (static_cast<unsigned>(lane) & (width - 1)));
}
template <typename T>
static inline T shim_shfl_xor(shim_site site, unsigned mask, T x, int lanes, unsigned width = 32) {
    const uint64_t *values = shim_shuffle(site, mask, x);
    const unsigned self = shim_lane(), lane = self ^ static_cast<unsigned>(lanes);
    return shim_shuffle_from<T>(values, lane >= (self & ~(width - 1)) + width ? self : lane);
}
template <typename T>
static inline T shim_shfl_down(shim_site site, unsigned mask, T x, unsigned delta, unsigned width = 32) {
    const uint64_t *values = shim_shuffle(site, mask, x);
    const unsigned self = shim_lane();
    return shim_shuffle_from<T>(values, self % width + delta >= width ? self : self + delta);
}
template <typename T>
static inline T shim_shfl_up(shim_site site, unsigned mask, T x, unsigned delta, unsigned width = 32) {
    const uint64_t *values = shim_shuffle(site, mask, x);
    const unsigned self = shim_lane();
    return shim_shuffle_from<T>(values, self % width < delta ? self : self - delta);
}
static inline unsigned shim_ballot(shim_site site, unsigned mask, bool x) {
    const uint64_t *values = shim_exchange(site, mask, x ? 1 : 0);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        bits |= static_cast<unsigned>(values[lane]) << lane;
    }
    return bits;
}
#define __shfl_sync(...)      shim_shfl(SHIM_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...)  shim_shfl_xor(SHIM_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) shim_shfl_down(SHIM_SITE, __VA_ARGS__)
#define __shfl_up_sync(...)   shim_shfl_up(SHIM_SITE, __VA_ARGS__)
#define __ballot_sync(...)    shim_ballot(SHIM_SITE, __VA_ARGS__)
#define __any_sync(...)       (shim_ballot(SHIM_SITE, __VA_ARGS__) != 0 ? 1 : 0)
#define __all_sync(...)       (shim_ballot(SHIM_SITE, __VA_ARGS__) == 0xffffffffu ? 1 : 0)

/* --- asynchronous copies -------------------------------------------------------------------------------- */

struct shim_copy {
    void *to;
    const void *from; /* NULL: zeros */
    int group;
};
void shim_copy_issue(shim_site site, void *shared, const void *global, bool valid);
void shim_copy_commit(void);
/* The next copy to make so that only the last `groups` committed groups are left; false when there is none.
 */
bool shim_copy_next(int groups, shim_copy *copy);

#endif
