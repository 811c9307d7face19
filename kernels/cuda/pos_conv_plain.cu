/* pos_conv: the positional convolution without tensor cores, for fp32 and for shapes that they do not take.
 *
 * A block computes a tile of tokens for OUT of a group's channels, in steps of TAPS taps and IN input
 * channels, whose rows and weights are in shared memory. A thread has 8 tokens side by side and 4 channels;
 * the rows that it reads at TAPS taps are 8 + TAPS - 1 side by side, read once for all of them. Every step's
 * sum begins at zero and is then added to the total: thousands of products in one chain would round more than
 * fp32 results may. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/pos_conv.h"

namespace {

enum {
    TOKENS = CUDA_TILE_LARGE,
    OWN = 8, /* tokens of a thread */
    OUT = 16,
    IN = 16,
    TAPS = 8,
    THREADS = TOKENS / OWN * OUT / 4,
    ROWS = TOKENS + TAPS,
    PITCH = ROWS + 4, /* rows lie along shared memory; two channels' begin 12 banks apart */
    WEIGHTS = TAPS * IN * OUT,
    SHARED_BYTES = (IN * PITCH + WEIGHTS) * 4,
};

template <typename T> struct operands {
    T *y;
    const T *x, *w;
    const float *bias, *scale, *shift;
    enum cuda_activation act;
    int kernel, channels, group; /* group: channels of one */
};

/* Where a step stands: from tap `tap` and the group's input channel `in`; the block's channels are from `out`
 * of the group whose first is `channel`. */
struct step {
    int tap, in, out, channel;
};

} // namespace

/* rows [IN, PITCH]: row i is token first - kernel / 2 + tap + i of the clip, zeros outside the clip and the
 * group. */
template <typename T>
__device__ static inline void load_rows(float *rows, const operands<T> &o, const pos_conv_tile &tile,
                                        const step &s) {
    const int start = tile.first - o.kernel / 2 + s.tap;
    for (int i = threadIdx.x; i < ROWS * IN; i += THREADS) {
        const int row = i / IN, in = i % IN, t = start + row, c = s.channel + s.in + in;
        float v = 0.0f;
        if (t >= 0 && t < tile.tokens && s.in + in < o.group) {
            v = to_float(o.x[(tile.row + t) * o.channels + c]);
            v = o.scale == NULL ? v : fmaf(v, o.scale[c], o.shift[c]);
        }
        rows[in * PITCH + row] = v;
    }
}

/* weights [TAPS, IN, OUT], zeros outside the kernel and the group. */
template <typename T>
__device__ static inline void load_weights(float *weights, const operands<T> &o, const step &s) {
    const int64_t group = s.channel / o.group;
    for (int i = threadIdx.x; i < WEIGHTS; i += THREADS) {
        const int k = s.tap + i / (IN * OUT), in = s.in + i / OUT % IN, out = s.out + i % OUT;
        const bool valid = k < o.kernel && in < o.group && out < o.group;
        weights[i] = valid ? to_float(o.w[((group * o.kernel + k) * o.group + in) * o.group + out]) : 0.0f;
    }
}

/* total [tokens, channels of the thread] += one step of `taps` taps and `ins` channels. */
__device__ static inline void multiply(float (&total)[OWN][4], const float *rows, const float *weights,
                                       int taps, int ins) {
    float sums[OWN][4] = {};
    for (int in = 0; in < ins; in++) {
        float x[OWN + TAPS];
#pragma unroll
        for (int i = 0; i < OWN + TAPS; i += 4) {
            const float4 v = load4(rows + in * PITCH + i);
            x[i] = v.x;
            x[i + 1] = v.y;
            x[i + 2] = v.z;
            x[i + 3] = v.w;
        }
#pragma unroll
        for (int k = 0; k < TAPS; k++) {
            if (k < taps) {
                const float4 w = load4(weights + (k * IN + in) * OUT);
#pragma unroll
                for (int t = 0; t < OWN; t++) {
                    sums[t][0] = fmaf(x[t + k], w.x, sums[t][0]);
                    sums[t][1] = fmaf(x[t + k], w.y, sums[t][1]);
                    sums[t][2] = fmaf(x[t + k], w.z, sums[t][2]);
                    sums[t][3] = fmaf(x[t + k], w.w, sums[t][3]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < OWN; t++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            total[t][c] += sums[t][c];
        }
    }
}

/* y = x + act(total + bias), the thread's 4 channels from `out` of the group, of one token. */
template <typename T>
__device__ static inline void write_row(const operands<T> &o, int64_t row, int channel, int out,
                                        const float (&total)[4]) {
    const int64_t at = row * o.channels + channel + out;
    float v[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        v[c] = out + c < o.group
                   ? to_float(o.x[at + c]) + activate(o.act, total[c] + o.bias[channel + out + c])
                   : 0.0f;
    }
    if (o.group % 4 == 0) {
        if (out < o.group) {
            store4(o.y + at, make_float4(v[0], v[1], v[2], v[3]));
        }
        return;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        if (out + c < o.group) {
            o.y[at + c] = from_float<T>(v[c]);
        }
    }
}

template <typename T>
__global__ static void __launch_bounds__(THREADS) convolve(struct cuda_tables tables, operands<T> o) {
    const int pieces = (o.group + OUT - 1) / OUT, index = blockIdx.x;
    if (index >= tables.counts->tiles_large) {
        return;
    }
    DYN_SHARED(float, rows);
    float *weights = rows + IN * PITCH;
    const pos_conv_tile tile = pos_conv_find_tile(&tables, index);
    const pos_conv_taps taps = pos_conv_find_taps(tile.first, tile.end, tile.tokens, o.kernel);
    const int token = threadIdx.x / (OUT / 4) * OWN, out = threadIdx.x % (OUT / 4) * 4;
    step s = {0, 0, static_cast<int>(blockIdx.y) % pieces * OUT,
              static_cast<int>(blockIdx.y) / pieces * o.group};

    float total[OWN][4] = {};
    /* Steps count from tap 0, whichever are left out: an order that all tokens share. */
    for (s.tap = taps.first / TAPS * TAPS; s.tap < taps.end; s.tap += TAPS) {
        for (s.in = 0; s.in < o.group; s.in += IN) {
            __syncthreads(); /* the step before is read */
            load_rows(rows, o, tile, s);
            load_weights(weights, o, s);
            __syncthreads(); /* this one is there */
            if (tile.first + token < tile.end) {
                multiply(total, rows + token, weights + out, min(TAPS, o.kernel - s.tap),
                         min(IN, o.group - s.in));
            }
        }
    }
#pragma unroll
    for (int t = 0; t < OWN; t++) {
        if (tile.first + token + t < tile.end) {
            write_row(o, tile.row + tile.first + token + t, s.channel, s.out + out, total[t]);
        }
    }
}

template <typename T>
static void launch(const struct cuda_launch *l, void *y, const void *x, const void *w, const float *bias,
                   const float *scale, const float *shift, enum cuda_activation act, int kernel, int groups,
                   int channels) {
    const int group = channels / groups;
    const operands<T> o = {static_cast<T *>(y),
                           static_cast<const T *>(x),
                           static_cast<const T *>(w),
                           bias,
                           scale,
                           shift,
                           act,
                           kernel,
                           channels,
                           group};
    const dim3 grid(l->grid.tiles_large, groups * ((group + OUT - 1) / OUT));
    LAUNCH((convolve<T>), grid, THREADS, SHARED_BYTES, l->stream, l->tables, o);
}

void cuda_pos_conv_plain(const struct cuda_launch *l, void *y, const void *x, const void *w,
                         const float *bias, const float *input_scale, const float *input_shift,
                         enum cuda_activation act, int kernel, int groups, int channels) {
    if (l->type == CUDA_BF16) {
        launch<bf16>(l, y, x, w, bias, input_scale, input_shift, act, kernel, groups, channels);
    } else {
        launch<float>(l, y, x, w, bias, input_scale, input_shift, act, kernel, groups, channels);
    }
}
