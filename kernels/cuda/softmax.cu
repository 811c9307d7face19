/* softmax: of the rows of a matrix of scores, in place, for attention by cuBLAS.
 *
 * Up to ROW_KEYS_MAX keys a row is a warp's, which keeps it in registers; longer ones are a block's, which
 * reads them three times. In both, element e belongs to thread e / 4 modulo the number of threads, so that
 * the order of a sum follows from `keys` alone. What lies between a row's keys and the next row becomes 0,
 * which a product over the whole stride then may read. */
#include "kernels/cuda/cuda.cuh"

namespace {

enum { ROW_KEYS_MAX = 1024, ROWS = 4 /* of a block of ROWS warps */, THREADS = 256 /* of a row's block */ };

template <typename T> struct operands {
    T *scores;
    int64_t rows, stride;
    int keys;
    float scale;
};

} // namespace

/* scale * row[e .. e + 4]; -inf from `keys` on. */
template <typename T, bool ALIGNED>
__device__ static inline float4 load_scores(const T *row, int e, const operands<T> &o) {
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (e >= o.keys) {
        return v;
    }
    if (ALIGNED) {
        v = load4<T>(row + e);
    } else {
        v.x = to_float(row[e]);
        v.y = e + 1 < o.keys ? to_float(row[e + 1]) : 0.0f;
        v.z = e + 2 < o.keys ? to_float(row[e + 2]) : 0.0f;
        v.w = e + 3 < o.keys ? to_float(row[e + 3]) : 0.0f;
    }
    v.x *= o.scale;
    v.y = e + 1 < o.keys ? v.y * o.scale : -INFINITY;
    v.z = e + 2 < o.keys ? v.z * o.scale : -INFINITY;
    v.w = e + 3 < o.keys ? v.w * o.scale : -INFINITY;
    return v;
}

/* row[e .. e + 4] = v, as far as there is room in the row. */
template <typename T, bool ALIGNED>
__device__ static inline void store_weights(T *row, int64_t e, int64_t stride, float4 v) {
    if (e >= stride) {
        return;
    }
    if (ALIGNED) {
        store4<T>(row + e, v);
        return;
    }
    row[e] = from_float<T>(v.x);
    if (e + 1 < stride) {
        row[e + 1] = from_float<T>(v.y);
    }
    if (e + 2 < stride) {
        row[e + 2] = from_float<T>(v.z);
    }
    if (e + 3 < stride) {
        row[e + 3] = from_float<T>(v.w);
    }
}

__device__ static inline float max4(float4 v) {
    return fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
}
__device__ static inline float sum4(float4 v) {
    return (v.x + v.y) + (v.z + v.w);
}
__device__ static inline float4 exp4(float4 v, float max) {
    return make_float4(expf(v.x - max), expf(v.y - max), expf(v.z - max), expf(v.w - max));
}
__device__ static inline float4 scale4(float4 v, float a) {
    return make_float4(v.x * a, v.y * a, v.z * a, v.w * a);
}

/* A warp a row. N: times 128 keys. */
template <typename T, int N, bool ALIGNED>
__global__ static void __launch_bounds__(ROWS * 32) softmax_by_warp(operands<T> o) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * ROWS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (index >= o.rows) {
        return;
    }
    T *row = o.scores + index * o.stride;
    float4 v[N];
    float max = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] = load_scores<T, ALIGNED>(row, (i * 32 + lane) * 4, o);
        max = fmaxf(max, max4(v[i]));
    }
    max = warp_max(max);
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] = exp4(v[i], max);
        sum += sum4(v[i]);
    }
    const float rescale = 1.0f / warp_sum(sum);
#pragma unroll
    for (int i = 0; i < N; i++) {
        store_weights<T, ALIGNED>(row, (i * 32 + lane) * 4, o.stride, scale4(v[i], rescale));
    }
    for (int64_t e = (N * 32 + lane) * 4; e < o.stride; e += 32 * 4) {
        store_weights<T, ALIGNED>(row, e, o.stride, make_float4(0, 0, 0, 0));
    }
}

/* A block a row. */
template <typename T, bool ALIGNED>
__global__ static void __launch_bounds__(THREADS) softmax_by_block(operands<T> o) {
    __shared__ float of_warp[2][THREADS / 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    T *row = o.scores + static_cast<int64_t>(blockIdx.x) * o.stride;

    float max = -INFINITY;
    for (int e = threadIdx.x * 4; e < o.keys; e += THREADS * 4) {
        max = fmaxf(max, max4(load_scores<T, ALIGNED>(row, e, o)));
    }
    max = warp_max(max);
    if (lane == 0) {
        of_warp[0][warp] = max;
    }
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++) {
        max = fmaxf(max, of_warp[0][i]);
    }

    float sum = 0.0f;
    for (int e = threadIdx.x * 4; e < o.keys; e += THREADS * 4) {
        sum += sum4(exp4(load_scores<T, ALIGNED>(row, e, o), max));
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        of_warp[1][warp] = sum;
    }
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) {
        sum += of_warp[1][i];
    }

    const float rescale = 1.0f / sum;
    for (int64_t e = threadIdx.x * 4; e < o.stride; e += THREADS * 4) {
        float4 v = make_float4(0, 0, 0, 0);
        if (e < o.keys) {
            v = scale4(exp4(load_scores<T, ALIGNED>(row, static_cast<int>(e), o), max), rescale);
        }
        store_weights<T, ALIGNED>(row, e, o.stride, v);
    }
}

template <typename T, bool ALIGNED> static void launch(const struct cuda_launch *l, const operands<T> &o) {
    const dim3 grid(static_cast<unsigned>((o.rows + ROWS - 1) / ROWS));
    if (o.keys <= 128) {
        LAUNCH((softmax_by_warp<T, 1, ALIGNED>), grid, ROWS * 32, 0, l->stream, o);
    } else if (o.keys <= 256) {
        LAUNCH((softmax_by_warp<T, 2, ALIGNED>), grid, ROWS * 32, 0, l->stream, o);
    } else if (o.keys <= 512) {
        LAUNCH((softmax_by_warp<T, 4, ALIGNED>), grid, ROWS * 32, 0, l->stream, o);
    } else if (o.keys <= ROW_KEYS_MAX) {
        LAUNCH((softmax_by_warp<T, ROW_KEYS_MAX / 128, ALIGNED>), grid, ROWS * 32, 0, l->stream, o);
    } else {
        LAUNCH((softmax_by_block<T, ALIGNED>), static_cast<unsigned>(o.rows), THREADS, 0, l->stream, o);
    }
}

template <typename T>
static void launch_type(const struct cuda_launch *l, void *scores, int64_t rows, int keys, int64_t stride,
                        float scale) {
    const operands<T> o = {static_cast<T *>(scores), rows, stride, keys, scale};
    if (stride % 4 == 0) {
        launch<T, true>(l, o);
    } else {
        launch<T, false>(l, o);
    }
}

void cuda_softmax(const struct cuda_launch *l, void *scores, int64_t rows, int keys, int64_t stride,
                  float scale) {
    if (l->type == CUDA_BF16) {
        launch_type<bf16>(l, scores, rows, keys, stride, scale);
    } else {
        launch_type<float>(l, scores, rows, keys, stride, scale);
    }
}
