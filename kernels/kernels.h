/* kernels: the operations of the forward pass, as one table of functions for each backend.
 *
 * This header is the contract; kernels/ref is the same in naive C and is the specification. A backend is one
 * constant `struct kernels`. What it computes must agree with ref within tests/unit/kernels/tolerance.h.
 *
 * Invariance: a row's result depends on that row's clip alone. It must not depend, in any bit, on the row's
 * place, on the other clips, on the number of rows or threads, or on how the convolutions are cut into
 * segments. So: every sum is taken in an order fixed by the clip alone (no split-K chosen by size, blocks of
 * rows count from the clip's start).
 *
 * Notation: [rows, channels] is row-major, the last index contiguous. T = tokens of the batch, C = channels
 * of a convolution, H = hidden size. x is read, y is written; they may be the same buffer only where it says
 * so. Activations are in the device's memory, elements of `activation_bytes` (fp32: 4); samples, statistics,
 * logits and pooled vectors are always fp32. Sums, norms and softmax are computed in fp32 or better at every
 * precision.
 *
 * Operations return nothing. A backend that can fail asynchronously keeps its first error and `finish`
 * reports it. */
#ifndef TIMBRE_KERNELS_KERNELS_H
#define TIMBRE_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/batch.h"

enum { KERNELS_ABI = 3 }; /* goes up when this file changes in a way that a loaded module would notice */

enum kernels_precision { KERNELS_FP32, KERNELS_BF16, KERNELS_INT8 };

enum kernels_activation {
    KERNELS_IDENTITY,
    KERNELS_GELU,      /* 0.5 x (1 + erf(x / sqrt 2)); Hendrycks and Gimpel 2016, exact form */
    KERNELS_GELU_TANH, /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    KERNELS_RELU,
    KERNELS_SILU, /* x / (1 + exp(-x)) */
    KERNELS_TANH,
};

enum kernels_conv_norm {
    KERNELS_NORM_NONE,
    KERNELS_NORM_GROUP, /* per channel over the valid rows of the clip (GroupNorm with one channel a group) */
    KERNELS_NORM_LAYER, /* per row over its channels */
};

enum kernels_pool { KERNELS_POOL_MEAN, KERNELS_POOL_SUM, KERNELS_POOL_MAX };

enum kernels_weight_kind { KERNELS_LINEAR, KERNELS_CONV, KERNELS_POS_CONV, KERNELS_LAYER_NORM };

enum { KERNELS_PARTS_MAX = 3 };

/* What a weight is, before packing. All pointers are fp32 in host memory, read only during `pack`. While
 * sizes are counted (`weight_bytes`) the pointers may be NULL, except that a bias or norm that exists must be
 * told by the flags. */
struct kernels_weight_spec {
    enum kernels_weight_kind kind;
    int in, out;                 /* channels. LINEAR: `out` is the sum over parts. LAYER_NORM: out. */
    int kernel, stride, groups;  /* CONV: groups = 1. POS_CONV: stride = 1. Others: 0 */
    enum kernels_conv_norm norm; /* CONV */
    float eps;                   /* CONV with a norm, LAYER_NORM */
    bool has_bias;
    bool has_input_affine; /* POS_CONV */
    bool is_head;          /* LINEAR: for head_linear, which is fp32 at every precision */

    int parts; /* LINEAR: matrices of out/parts rows each behind each other (q, k, v); else 1 */
    const float *weight[KERNELS_PARTS_MAX]; /* LINEAR [out/parts, in]; CONV [out, in, kernel];
                                               POS_CONV [out, in/groups, kernel]; LAYER_NORM [out] */
    const float *bias[KERNELS_PARTS_MAX];   /* [out/parts] or NULL; LAYER_NORM [out] */
    const float *norm_weight, *norm_bias;   /* CONV with a norm: [out] each */
    /* POS_CONV with has_input_affine, [in] each: a batch norm folded */
    const float *input_scale, *input_shift;
};

/* A packed weight: what it is, and the backend's own layout of it. Read-only after `pack`; any device with
 * the same device_name and precision may use it, from any thread, as long as its memory lives. */
struct kernels_weight {
    enum kernels_weight_kind kind;
    enum kernels_conv_norm norm;
    int in, out, kernel, stride, groups;
    float eps;
    bool has_bias, has_input_affine, is_head;
    void *packed;
};

/* The weight that `pack` makes of a spec, once its own layout lies at `packed`. */
static inline struct kernels_weight kernels_weight_of(const struct kernels_weight_spec *s, void *packed) {
    return (struct kernels_weight){.kind = s->kind,
                                   .norm = s->norm,
                                   .in = s->in,
                                   .out = s->out,
                                   .kernel = s->kernel,
                                   .stride = s->stride,
                                   .groups = s->groups,
                                   .eps = s->eps,
                                   .has_bias = s->has_bias,
                                   .has_input_affine = s->has_input_affine,
                                   .is_head = s->is_head,
                                   .packed = packed};
}

/* How the cuda backend computes what it can compute in two ways; the others look at none of them. */
enum kernels_conv_way { KERNELS_CONV_AUTO, KERNELS_CONV_CUDNN, KERNELS_CONV_GEMM };
enum kernels_attention_way { KERNELS_ATTENTION_AUTO, KERNELS_ATTENTION_FUSED, KERNELS_ATTENTION_CUBLAS };

struct kernels_options {
    enum kernels_precision precision;
    int threads;      /* CPU: threads, 0 = one a processor */
    bool pin;         /* CPU: pin them, */
    int pin_first;    /* beginning with this one of the processors the process may use */
    int device_index; /* GPU, as the driver counts those this process may see */
    enum kernels_conv_way conv_way;
    enum kernels_attention_way attention_way;
    bool eager;              /* GPU: no CUDA graphs */
    size_t memory_bytes_max; /* GPU: of its memory, for all that this process puts there; 0: no limit */
};

/* The largest batch a device is reserved for. */
struct kernels_limits {
    int64_t samples_max; /* of the tape */
    int64_t tokens_max;  /* and rows of the last level, and of linear */
    int clips_max;
    int hidden, channels_max;       /* the widest activation */
    int heads;                      /* of attention; 0: there is none */
    int first_kernel, first_stride; /* of the first convolution */
};

/* How many rows the operations of a batch are run for. */
struct kernels_extent {
    int64_t rows;   /* of the last level of the tape */
    int64_t tokens; /* what `rows` of layer_norm, linear and accumulate should be */
};

/* One worker's place to compute: a thread team and scratch memory, or a GPU stream. One owner at a time. */
struct kernels_device;

/* A run of rows of the tape at one level. */
struct kernels_rows {
    int64_t first, count;
};

struct kernels {
    uint32_t abi;
    const char *name; /* "ref", "cpu", "cuda" */
    bool on_host;     /* device memory is host memory: what is uploaded may as well be written there */

    /* Devices there are: GPUs that this process may see; 1 for the others. */
    int (*count_devices)(void);
    /* Why this backend cannot run here, in `st` (UNAVAILABLE); 0 when it can. */
    int (*probe)(const struct kernels_options *o, struct status *st);
    /* Errors: UNAVAILABLE (no such device, precision not offered: named), RESOURCE_EXHAUSTED. */
    int (*device_new)(struct kernels_device **d, const struct kernels_options *o, struct status *st);
    void (*device_del)(struct kernels_device *d);               /* NULL is fine */
    const char *(*device_name)(const struct kernels_device *d); /* such as "cpu-avx512"; lives as long as d */
    size_t (*activation_bytes)(const struct kernels_device *d);
    /* Rows of the last level that one segment of the convolution stack should have, so that its widest layers
     * stay in cache; INT64_MAX when the whole tape at once is best. */
    int64_t (*segment_rows)(const struct kernels_device *d);
    /* Rows that the memory of every level's activations must have beyond those of a segment: conv may read
     * and write there. */
    int64_t (*spare_rows)(const struct kernels_device *d);

    /* Memory of the device, aligned to ARENA_ALIGN_BYTES. Error: RESOURCE_EXHAUSTED naming `what`. */
    int (*memory_new)(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st);
    void (*memory_del)(struct kernels_device *d, void *p);
    /* Memory of the host that uploads and downloads are fast from and to (pinned). Error as above. */
    int (*host_new)(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st);
    void (*host_del)(struct kernels_device *d, void *p);
    /* In order with the operations. The host's memory belongs to the device until `finish`. */
    void (*upload)(struct kernels_device *d, void *to_device, const void *from_host, size_t bytes);
    void (*download)(struct kernels_device *d, void *to_host, const void *from_device, size_t bytes);

    /* Bytes of device memory that `pack` will use for this weight. */
    size_t (*weight_bytes)(const struct kernels_device *d, const struct kernels_weight_spec *s);
    /* Packs into `memory`, which has that many bytes and is aligned; w->packed points into it. */
    void (*pack)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                 void *memory);

    /* Goes up when what `pack` writes changes. 0: it cannot be kept beyond the process, and there is no
     * `adopt`. */
    int layout_version;
    /* As pack, for memory that already holds a copy of what pack wrote for an equal spec, perhaps in another
     * process: by a device of the same device_name, precision and layout_version. The spec's pointers are not
     * looked at; has_bias and a norm must be told as for weight_bytes. Writes a few bytes of `memory`. */
    void (*adopt)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                  void *memory);

    /* Scratch memory the operations need for a batch of at most this size (attention, packing of A, partial
     * sums). Called once, at start; operations allocate nothing. Error: RESOURCE_EXHAUSTED. */
    int (*reserve)(struct kernels_device *d, const struct kernels_limits *limits, struct status *st);

    /* What to run once, before the first batch: the rows of the last level that the i-th run (0, 1, ...)
     * should have, 0 when there are no more. The caller lays one clip on the tape that makes that many, and
     * goes from begin to finish with all operations; nothing it computes is looked at. Here the cuda backend
     * makes its plans and captures its graphs. */
    int64_t (*warm_rows)(const struct kernels_device *d, int i);

    /* A batch: upload the tape, begin, the operations, end, downloads, finish. `b` stays unchanged until
     * finish. The extent is at least that of the batch and at most the limits; a backend that returns more
     * than the batch needs (a bucket: the cuda backend, whose graphs have fixed sizes) is given rows behind
     * the last clip to compute that nobody reads. Within a batch and between two of the same extent the
     * operations must be called alike: the same ones in the same order, with the same memory.
     *
     * Operations that are not told a batch may also be called outside of begin and end, and are waited for by
     * finish. */
    struct kernels_extent (*begin)(struct kernels_device *d, const struct batch *b);
    void (*end)(struct kernels_device *d);
    /* Waits until all is done. Error: the first that occurred, UNAVAILABLE or INTERNAL. */
    int (*finish)(struct kernels_device *d, struct status *st);
    /* After an error of finish: no later call on this device will work, nor on another of the same GPU. */
    bool (*is_lost)(const struct kernels_device *d);

    /* x, y [tape samples] fp32, may be the same. Each clip: y = (x - mean) / sqrt(var + 1e-7), mean and
     * biased variance over the clip's own samples; zeros between clips.
     * (Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm) */
    void (*input_norm)(struct kernels_device *d, float *y, const float *x, const struct batch *b);

    /* stats [clips, out, 2] fp32: mean and 1 / sqrt(var + eps) of the first convolution's output (bias
     * included) for each clip and channel, over the clip's valid rows of level 1. x [tape samples], w of kind
     * CONV with in = 1. */
    void (*group_stats)(struct kernels_device *d, float *stats, const float *x,
                        const struct kernels_weight *w, const struct batch *b);

    /* y [rows.count, out] = act(norm(conv(x) + bias)), rows `rows` of level `level` >= 1 of the tape.
     * x[0] is row rows.first * stride of level - 1 (fp32 samples when level = 1), and x holds all rows that
     * are read: (rows.count - 1) * stride + kernel. `stats` only with KERNELS_NORM_GROUP, else NULL: with it
     * norm(v) = (v - mean) * rstd * norm_weight + norm_bias with the numbers of the row's clip; rows between
     * clips are undefined. KERNELS_NORM_LAYER: layer norm over the row's channels with norm_weight and
     * norm_bias. */
    void (*conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                 enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                 const struct batch *b);

    /* y [tokens, channels]: copies the valid ones among rows `rows` of the last level, x [rows.count,
     * channels], to their token rows. */
    void (*compact)(struct kernels_device *d, void *y, const void *x, int channels, struct kernels_rows rows,
                    const struct batch *b);

    /* y = (x - mean) / sqrt(var + eps) * weight + bias, each row of [rows, out] over its channels; biased
     * variance. y may be x. (Ba et al. 2016) */
    void (*layer_norm)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                       int64_t rows);

    /* y [rows, out] = act(x [rows, in] * weight^T + bias) + residual. residual [rows, out] or NULL; y may be
     * residual, not x. */
    void (*linear)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                   enum kernels_activation act, const void *residual, int64_t rows);

    /* y [T, H] = x + act(conv(x') + bias), x' = x * input_scale + input_shift if there is one, else x.
     * Grouped convolution over each clip's own tokens: position t reads tokens t - kernel/2 .. t - kernel/2 +
     * kernel - 1, zero outside the clip (after the affine). That is padding kernel/2 on both sides and, for
     * even kernels, the last row dropped. y must not be x. (Baevski et al. 2020, convolutional relative
     * positions) */
    void (*pos_conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                     enum kernels_activation act, const struct batch *b);

    /* y [T, heads * head_dim]; qkv [T, 3 * heads * head_dim] = q | k | v, each head by head. For each clip
     * and head: softmax(scale * q k^T) v over the clip's own tokens. y must not overlap qkv. (Vaswani et al.
     * 2017) */
    void (*attention)(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                      float scale, const struct batch *b);

    /* y [rows, channels] = (first ? 0 : y) + weight * x: one step of a weighted sum of layers. */
    void (*accumulate)(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                       int64_t rows, int channels);

    /* y [clips, channels] fp32: mean, sum or maximum over each clip's tokens of x [T, channels]. */
    void (*pool)(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                 const struct batch *b);

    /* y [clips, out] fp32 = act(x [clips, in] * weight^T + bias): the classifier's layers, always fp32. y not
     * x. */
    void (*head_linear)(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                        enum kernels_activation act, int64_t rows);
};

extern const struct kernels kernels_ref;
extern const struct kernels kernels_cpu; /* TIMBRE_CPU forces an instruction set, for tests: docs/cpu.md */

/* By name ("ref", "cpu", "cuda"). "cuda" asks the driver first, without any library of CUDA, and only when it
 * sees a GPU loads the module (kernels/module.c), once for the process and for ever. NULL with
 * INVALID_ARGUMENT when there is no such name, with UNAVAILABLE and the reason in one sentence when it cannot
 * be had here. Any thread. */
const struct kernels *kernels_find(const char *name, struct status *st);

/* What the module exports, under this name: a `const struct kernels` of this KERNELS_ABI. */
#define KERNELS_MODULE_SYMBOL "timbre_kernels_cuda"

#endif
