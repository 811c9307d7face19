/* Kernels with a bug each, for test_planted.c: the shim has to find it. */
#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

enum { N = PLANTED_N };

/* --- races ---------------------------------------------------------------------------------------------- */

__global__ static void reverse(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    if (!wrong) {
        __syncthreads();
    }
    y[threadIdx.x] = tile[N - 1 - threadIdx.x];
}
static void launch_reverse(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(reverse, 1, N, N * sizeof(float), s, y, x, wrong);
}

__global__ static void reverse_static(float *y, const float *x, bool wrong) {
    __shared__ float tile[N];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!wrong) {
        __syncthreads();
    }
    y[threadIdx.x] = tile[N - 1 - threadIdx.x];
}
static void launch_reverse_static(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(reverse_static, 2, N, 0, s, y, x, wrong);
}

/* The tile is written again before all have read it. */
__global__ static void reuse(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    float sum = 0.0f;
    for (int i = 0; i < 3; i++) {
        tile[threadIdx.x] = x[threadIdx.x] + static_cast<float>(i);
        __syncthreads();
        sum += tile[(threadIdx.x + 33) % N];
        if (!wrong) {
            __syncthreads();
        }
    }
    y[threadIdx.x] = sum;
}
static void launch_reuse(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(reuse, 1, N, N * sizeof(float), s, y, x, wrong);
}

__global__ static void within_warp(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    if (!wrong) {
        __syncwarp();
    }
    y[threadIdx.x] = tile[threadIdx.x ^ 5];
}
static void launch_within_warp(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(within_warp, 1, N, N * sizeof(float), s, y, x, wrong);
}

/* A shuffle does not order memory. */
__global__ static void shuffle_is_no_barrier(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    const float sum = warp_sum(1.0f);
    if (!wrong) {
        __syncwarp();
    }
    y[threadIdx.x] = tile[threadIdx.x ^ 5] + sum;
}
static void launch_shuffle_is_no_barrier(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(shuffle_is_no_barrier, 1, N, N * sizeof(float), s, y, x, wrong);
}

/* ldmatrix reads rows that other lanes wrote. */
__global__ static void matrix(float *y, const float *x, bool wrong) {
    DYN_SHARED(uint32_t, tile);
    for (unsigned i = threadIdx.x; i < 128; i += 32) {
        tile[i ^ 4] = static_cast<uint32_t>(x[i % N]);
    }
    if (!wrong) {
        __syncwarp();
    }
    uint32_t r[4];
    ldmatrix_x4(r, tile + threadIdx.x * 4);
    y[threadIdx.x] = y[threadIdx.x + 32] = static_cast<float>(r[0] + r[1] + r[2] + r[3]);
}
static void launch_matrix(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(matrix, 1, 32, 512, s, y, x, wrong);
}

/* Two stages: the copy into a stage is issued before all have read what was there. */
__global__ static void two_stages(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, stages); /* [2][N] */
    float sum = 0.0f;
    for (int i = 0; i < 5; i++) {
        if (i < 4) {
            if (threadIdx.x < N / 4) {
                cp_async_16(stages + i % 2 * N + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
            }
            cp_async_commit();
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        if (i > 0) {
            sum += stages[(i - 1) % 2 * N + (threadIdx.x + 33) % N];
        }
        if (!wrong) {
            __syncthreads();
        }
    }
    y[threadIdx.x] = sum;
}
static void launch_two_stages(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(two_stages, 1, N, 2 * N * sizeof(float), s, y, x, wrong);
}

__global__ static void one_place(float *y, const float *x, bool wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (wrong) {
        y[0] = x[threadIdx.x];
    }
}
static void launch_one_place(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(one_place, 1, N, 0, s, y, x, wrong);
}

/* --- memory --------------------------------------------------------------------------------------------- */

__global__ static void write_global(float *y, const float *x, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += N) {
        y[i] = x[threadIdx.x];
    }
}
static void launch_write_global(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(write_global, 1, N, 0, s, y, x, wrong ? N + 1 : N);
}

__global__ static void read_global(float *y, const float *x, int by) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) + by];
}
static void launch_read_global(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(read_global, 1, N, 0, s, y, x, wrong ? -1 : 0);
}

static void launch_dynamic_overrun(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(reverse, 1, N, (N - (wrong ? 1 : 0)) * sizeof(float), s, y, x, false);
}

__global__ static void static_overrun(float *y, const float *x, int n) {
    __shared__ float tile[N];
    for (int i = static_cast<int>(threadIdx.x); i < n; i += N) {
        tile[i] = x[threadIdx.x];
    }
    __syncthreads();
    y[threadIdx.x] = tile[N - 1 - threadIdx.x];
}
static void launch_static_overrun(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(static_overrun, 1, N, 0, s, y, x, wrong ? N + 1 : N);
}

/* By a pointer, whose array nobody knows. */
__global__ static void static_overrun_by_pointer(float *y, const float *x, int n) {
    __shared__ float tile[N];
    float *volatile hidden = tile;
    float *p = hidden;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += N) {
        p[i] = x[threadIdx.x];
    }
    __syncthreads();
    y[threadIdx.x] = p[N - 1 - threadIdx.x];
}
static void launch_static_overrun_by_pointer(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(static_overrun_by_pointer, 1, N, 0, s, y, x, wrong ? N + 1 : N);
}

__global__ static void read_4(float *y, const float *x, int by) {
    const float4 v = load4<float>(x + by);
    y[threadIdx.x] = v.x + v.w;
}
static void launch_misaligned_read(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(read_4, 1, N, 0, s, y, x, wrong ? 2 : 4);
}

__global__ static void read_4_plainly(float *y, const float *x, int by) {
    const float4 v = *reinterpret_cast<const float4 *>(x + by);
    y[threadIdx.x] = v.x + v.w;
}
static void launch_misaligned_plain_read(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(read_4_plainly, 1, N, 0, s, y, x, wrong ? 2 : 4);
}

__global__ static void write_8(float *y, const float *x, int by) {
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        float8 v = {};
        store8(reinterpret_cast<bf16 *>(y + by), v);
    }
}
static void launch_misaligned_write(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(write_8, 1, N, 0, s, y, x, wrong ? 2 : 4);
}

__global__ static void copy_misaligned(float *y, const float *x, int by) {
    DYN_SHARED(float, tile);
    cp_async_16(tile + 4 * threadIdx.x, x + by, true);
    cp_async_commit();
    cp_async_wait<0>();
    y[threadIdx.x] = tile[4 * threadIdx.x];
}
static void launch_misaligned_copy(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy_misaligned, 1, N, 16 * N, s, y, x, wrong ? 1 : 4);
}

__global__ static void copy_to_global(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    y[threadIdx.x] = x[threadIdx.x];
    cp_async_16(wrong ? y : tile + 4 * threadIdx.x, x, true);
}
static void launch_copy_to_global(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy_to_global, 1, N, 16 * N, s, y, x, wrong);
}

__global__ static void matrix_misaligned(float *y, const float *x, int by) {
    DYN_SHARED(float, tile);
    for (unsigned i = threadIdx.x; i < 132; i += 32) {
        tile[i] = x[i % N];
    }
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, tile + 4 * threadIdx.x + by);
    y[threadIdx.x] = y[threadIdx.x + 32] = __uint_as_float(r[0]);
}
static void launch_misaligned_matrix(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(matrix_misaligned, 1, 32, 132 * sizeof(float), s, y, x, wrong ? 1 : 4);
}

/* --- what nobody wrote ---------------------------------------------------------------------------------- */

__global__ static void uninitialised_dynamic(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    if (!wrong || threadIdx.x != 7) {
        tile[threadIdx.x] = x[threadIdx.x];
    }
    __syncthreads();
    y[threadIdx.x] = tile[N - 1 - threadIdx.x];
}
static void launch_uninitialised_dynamic(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(uninitialised_dynamic, 1, N, N * sizeof(float), s, y, x, wrong);
}

__global__ static void uninitialised_static(float *y, const float *x, bool wrong) {
    __shared__ float tile[N];
    if (!wrong || blockIdx.x == 0 || threadIdx.x != 7) {
        tile[threadIdx.x] = x[threadIdx.x];
    }
    __syncthreads();
    if (blockIdx.x == 1) { /* it finds NaNs, not what the block before it left */
        y[threadIdx.x] = tile[N - 1 - threadIdx.x];
    }
}
static void launch_uninitialised_static(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(uninitialised_static, 2, N, 0, s, y, x, wrong);
}

__global__ static void no_wait(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    if (threadIdx.x < N / 4) {
        cp_async_16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    }
    cp_async_commit();
    if (!wrong) {
        cp_async_wait<0>();
    }
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
static void launch_no_wait(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(no_wait, 1, N, N * sizeof(float), s, y, x, wrong);
}

/* Waits for all groups but the last, which is the one that is read. */
__global__ static void short_wait(float *y, const float *x, bool wrong) {
    DYN_SHARED(float, tile);
    cp_async_16(tile + 4 * threadIdx.x, x, true);
    cp_async_commit();
    cp_async_16(tile + 4 * (N + threadIdx.x), x + 4, true);
    cp_async_commit();
    if (wrong) {
        cp_async_wait<1>();
    } else {
        cp_async_wait<0>();
    }
    y[threadIdx.x] = tile[4 * threadIdx.x] + tile[4 * (N + threadIdx.x)];
}
static void launch_short_wait(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(short_wait, 1, N, 32 * N, s, y, x, wrong);
}

static void launch_uninitialised_global(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(write_global, 1, N, 0, s, y, x, wrong ? N - 1 : N);
}

/* --- divergence ----------------------------------------------------------------------------------------- */

__global__ static void two_barriers(float *y, const float *x, bool wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32 || !wrong) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
static void launch_two_barriers(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(two_barriers, 1, N, 0, s, y, x, wrong);
}

// clang-format off
__global__ static void two_barriers_on_a_line(float *y, const float *x, bool wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32 || !wrong) { __syncthreads(); } else { __syncthreads(); }
}
// clang-format on
static void launch_two_barriers_on_a_line(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(two_barriers_on_a_line, 1, N, 0, s, y, x, wrong);
}

__global__ static void early_return(float *y, const float *x, bool wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (wrong && threadIdx.x == 40) {
        return;
    }
    __syncthreads();
}
static void launch_early_return(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(early_return, 1, N, 0, s, y, x, wrong);
}

__global__ static void half_shuffle(float *y, const float *x, bool wrong) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16 || !wrong) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    }
    y[threadIdx.x] = v;
}
static void launch_half_shuffle(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(half_shuffle, 1, N, 0, s, y, x, wrong);
}

__global__ static void shuffle_apart(float *y, const float *x, bool wrong) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16 || !wrong) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    } else {
        v = __shfl_xor_sync(0xffffffffu, v, 2);
    }
    y[threadIdx.x] = v;
}
static void launch_shuffle_apart(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(shuffle_apart, 1, N, 0, s, y, x, wrong);
}

__global__ static void shuffle(float *y, const float *x, unsigned mask) {
    y[threadIdx.x] = y[threadIdx.x + 32] = __shfl_xor_sync(mask, x[threadIdx.x], 1);
}
static void launch_part_of_a_warp(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(shuffle, 1, wrong ? 20 : 32, 0, s, y, x, 0xffffffffu);
}
static void launch_part_of_a_mask(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(shuffle, 1, 32, 0, s, y, x, wrong ? 0xffffu : 0xffffffffu);
}

/* Some lanes at a barrier of the block, some at one of the warp. */
__global__ static void block_and_warp(float *y, const float *x, bool wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 3 && wrong) {
        __syncthreads();
    }
    __syncwarp();
}
static void launch_block_and_warp(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(block_and_warp, 1, N, 0, s, y, x, wrong);
}

/* --- launches ------------------------------------------------------------------------------------------- */

__global__ static void copy(float *y, const float *x) {
    if (threadIdx.x < N && threadIdx.z == 0) {
        y[threadIdx.x] = x[threadIdx.x];
    }
}
static void launch_large_block(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy, 1, wrong ? 1025 : 1024, 0, s, y, x);
}
static void launch_large_shared(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy, 1, N, 227 * 1024 + (wrong ? 1 : 0), s, y, x);
}
static void launch_empty_block(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy, 1, dim3(N, wrong ? 0 : 1), 0, s, y, x);
}
static void launch_deep_block(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy, 1, wrong ? dim3(1, 1, 65) : dim3(N, 1, 2), 0, s, y, x);
}

/* --- the host's memory and the device's ----------------------------------------------------------------- */

static void launch_touch_by_host(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    LAUNCH(copy, 1, N, 0, s, y, x);
    if (wrong) {
        *static_cast<volatile float *>(y) = 1.0f;
    }
}
static void launch_host_argument(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    static float host[N];
    LAUNCH(copy, 1, N, 0, s, y, wrong ? host : x);
}
static void launch_copy_backwards(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    float host[N];
    (void)gpu_copy_out(host, x, sizeof(host), s);
    (void)(wrong ? gpu_copy_out(y, host, sizeof(host), s) : gpu_copy_in(y, host, sizeof(host), s));
}
static void launch_copy_too_much(struct gpu_stream *s, float *y, const float *x, bool wrong) {
    (void)gpu_copy_within(y, x, N * sizeof(float), s);
    (void)gpu_zero(y + 1, (N - (wrong ? 0 : 1)) * sizeof(float), s);
}

#define PLANTED(name, build, report)                                                                         \
    { #name, build, report, launch_##name }
const struct planted planted[] = {
    PLANTED(reverse, PLANTED_THREAD, "data race"),
    PLANTED(reverse_static, PLANTED_THREAD, "data race"),
    PLANTED(reuse, PLANTED_THREAD, "data race"),
    PLANTED(within_warp, PLANTED_THREAD, "data race"),
    PLANTED(shuffle_is_no_barrier, PLANTED_THREAD, "data race"),
    PLANTED(matrix, PLANTED_THREAD, "data race"),
    PLANTED(two_stages, PLANTED_THREAD, "data race"),
    PLANTED(one_place, PLANTED_THREAD, "data race"),
    PLANTED(write_global, PLANTED_ADDRESS, "heap-buffer-overflow"),
    PLANTED(read_global, PLANTED_ADDRESS, "heap-buffer-overflow"),
    PLANTED(dynamic_overrun, PLANTED_ADDRESS, "heap-buffer-overflow"),
    PLANTED(static_overrun, PLANTED_UNDEFINED, "out of bounds"),
    PLANTED(static_overrun_by_pointer, PLANTED_ADDRESS_GCC, "global-buffer-overflow"),
    PLANTED(misaligned_read, PLANTED_ANY, "is misaligned"),
    PLANTED(misaligned_write, PLANTED_ANY, "is misaligned"),
    PLANTED(misaligned_plain_read, PLANTED_UNDEFINED_GCC, "misaligned address"),
    PLANTED(misaligned_copy, PLANTED_ANY, "the source is not 16 aligned bytes"),
    PLANTED(copy_to_global, PLANTED_ANY, "the target is not 16 aligned bytes of shared"),
    PLANTED(misaligned_matrix, PLANTED_ANY, "row is not 16 aligned bytes"),
    PLANTED(uninitialised_dynamic, PLANTED_ANY, "NaN in the result"),
    PLANTED(uninitialised_static, PLANTED_ANY, "NaN in the result"),
    PLANTED(uninitialised_global, PLANTED_ANY, "NaN in the result"),
    PLANTED(no_wait, PLANTED_ANY, "NaN in the result"),
    PLANTED(short_wait, PLANTED_ANY, "NaN in the result"),
    PLANTED(two_barriers, PLANTED_ANY, "some threads are at"),
    PLANTED(two_barriers_on_a_line, PLANTED_ANY, "some threads are at"),
    PLANTED(early_return, PLANTED_ANY, "have returned"),
    PLANTED(half_shuffle, PLANTED_ANY, "wait for the warp at"),
    PLANTED(shuffle_apart, PLANTED_ANY, "some threads are at"),
    PLANTED(part_of_a_warp, PLANTED_ANY, "lanes are missing"),
    PLANTED(part_of_a_mask, PLANTED_ANY, "lanes are missing"),
    PLANTED(block_and_warp, PLANTED_ANY, "deadlock"),
    PLANTED(touch_by_host, PLANTED_STRICT, ""),
    PLANTED(host_argument, PLANTED_STRICT, "is neither device memory nor pinned"),
    PLANTED(copy_backwards, PLANTED_STRICT, "the target of gpu_copy_out"),
    PLANTED(copy_too_much, PLANTED_STRICT, "goes beyond the end of its device memory"),
    PLANTED(large_block, PLANTED_ANY, "error 9"),
    PLANTED(large_shared, PLANTED_ANY, "error 9"),
    PLANTED(empty_block, PLANTED_ANY, "error 9"),
    PLANTED(deep_block, PLANTED_ANY, "error 9"),
};
const int planted_count = sizeof(planted) / sizeof(planted[0]);
