/* cpu: what the files of this backend share.
 *
 * Everything that computes is compiled once for each instruction set, under names made by CPU_NAME; device.c,
 * compiled once and for any processor, picks one such set (a `struct kernels` of which only the operations
 * are filled) when a device is made, and forwards to it. */
#ifndef TIMBRE_KERNELS_CPU_INTERNAL_H
#define TIMBRE_KERNELS_CPU_INTERNAL_H

#include "base/team.h"
#include "kernels/kernels.h"

#define CPU_PASTE2(isa, name) cpu_##isa##_##name
#define CPU_PASTE(isa, name)  CPU_PASTE2(isa, name)
#define CPU_NAME(name)        CPU_PASTE(CPU_ISA, name)
#define CPU_STRING2(text)     #text
#define CPU_STRING(text)      CPU_STRING2(text)

enum {
    CPU_LANES_MAX = 16,       /* of any instruction set */
    CPU_SUM_FLOATS = 1 << 15, /* per thread: the sums of one tile of a matrix product, 128 KiB */
    CPU_POS_CONV_ROWS = 40,   /* of output that one tile of pos_conv makes, at most */
    CPU_POS_CONV_TAPS = 128,  /* that one tile copies its input for at a time */
    CPU_QUERIES = 48,         /* of one tile of attention, at most */
    CPU_KEYS = 256,           /* that attention takes in one step */
    CPU_ALONE_FLOP =
        1 << 20,           /* an operation of less is done, by one thread, before another would have begun */
    CPU_ELEMENT_FLOP = 16, /* what an element of a normalisation, a copy or a sum counts */
    CPU_PAIRS = 48,        /* of rows that one tile of conv_pairs makes, at most */
    CPU_CONV_TOKENS = 208, /* that one tile of an int8 convolution reads, at most */
    CPU_INT8_TERMS_MAX = 1 << 16, /* of a product in int8: 127 * 255 times as many is below 2^31 */
};

/* What the words of a matrix product are (gemm.h). */
enum cpu_kind { CPU_FP32, CPU_BF16, CPU_INT8 };

struct kernels_device {
    const struct kernels *ops; /* of the instruction set chosen */
    enum kernels_precision precision;
    size_t element_bytes; /* of an activation */
    struct team *team;
    int threads;
    float *sums; /* [threads, CPU_SUM_FLOATS] */

    /* From reserve. */
    void *reserved;
    float *windows;   /* [threads, windows_floats]: pos_conv's input, one group of channels */
    float *attention; /* [threads, attention_floats]: scores and outputs of one tile */
    float *keys;      /* [keys_floats]: attention's packed keys and values */
    void *pairs;      /* [threads, pairs_bytes]: what conv_pairs subtracts, or makes bytes of */
    size_t windows_floats, attention_floats, keys_floats, pairs_bytes;
    /* int8: the input of a linear layer in bytes, [tokens_max, quantized_bytes], and what they stand for;
     * and [threads] of the input of one tile of a convolution, [CPU_CONV_TOKENS, quantized_bytes]. */
    uint8_t *quantized, *conv_quantized;
    float *row_scale, *row_min;           /* [tokens_max] */
    float *conv_row_scale, *conv_row_min; /* [threads, CPU_CONV_TOKENS] */
    float *group_scale, *group_min;       /* of pos_conv: [clips_max, at most hidden groups] */
    int64_t quantized_bytes;              /* of a row of the widest activation */
};

/* A packed weight. The matrix is [groups] of what gemm.h calls packed; the vectors are padded with zeros so
 * that whole vectors can be read at every channel. */
struct cpu_packed {
    const struct kernels *ops; /* the instruction set whose layout this is */
    enum cpu_kind kind;
    bool pairs;          /* a convolution as conv_pairs.h does it */
    int64_t k, n;        /* of one group's matrix; int8: k with the padding of each tap's channels */
    float *matrix;       /* words */
    float *column_scale; /* int8: [out]; else NULL */
    /* int8: [groups, taps, n to the next multiple of lanes]; of a positional convolution [groups, taps + 1,
     * ...], each row what all taps before it add up to; of pairs as conv_pairs.h says; else NULL */
    float *column_sums;
    float *bias;                      /* [out], zeros where there is none */
    float *norm_weight, *norm_bias;   /* [out]; NULL where there is none; of a LAYER_NORM, its own */
    float *input_scale, *input_shift; /* [in]; NULL where there is none */
};

static inline float *cpu_sums(const struct kernels_device *d, int thread) {
    return d->sums + (size_t)thread * CPU_SUM_FLOATS;
}

static inline int64_t cpu_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t cpu_divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Scratch of conv_pairs for inputs of so many channels: two operands of five in fp32, or five in bytes with
 * three scales and minima for each pair. */
static inline size_t cpu_pairs_bytes(int64_t channels) {
    return CPU_PAIRS * (8 * (size_t)channels + 64);
}

/* team_for, but on this thread alone when `flop` is little: small batches then disturb nobody. Whichever it
 * is, the bits are the same. */
static inline void cpu_for(struct kernels_device *d, int64_t tiles, int64_t flop,
                           void (*fn)(void *arg, int64_t tile, int thread), void *arg) {
    if (flop >= CPU_ALONE_FLOP) {
        team_for(d->team, tiles, fn, arg);
        return;
    }
    for (int64_t i = 0; i < tiles; i++)
        fn(arg, i, 0);
}

/* The rows [first, first + count) of one clip's tokens, counted from the clip's first. */
struct cpu_block {
    int clip;
    int64_t first, count;
};

/* Cuts every clip's tokens into equal blocks of at most `rows`, which have numbers below cpu_count_blocks;
 * some numbers stand for an empty block (count = 0). That needs no table: clip c has the numbers from
 * cu_tokens[c] / rows + c on. */
static inline int64_t cpu_count_blocks(const struct batch *b, int64_t rows) {
    return batch_tokens(b) / rows + b->clips;
}

static inline struct cpu_block cpu_find_block(const struct batch *b, int64_t rows, int64_t index) {
    int lo = 0, hi = b->clips; /* the clip is in [lo, hi) */
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (b->cu_tokens[mid] / rows + mid <= index)
            lo = mid;
        else
            hi = mid;
    }
    int64_t n = b->cu_tokens[lo + 1] - b->cu_tokens[lo], blocks = cpu_divide_up(n, rows);
    int64_t at = index - (b->cu_tokens[lo] / rows + lo);
    if (at >= blocks)
        return (struct cpu_block){.clip = lo};
    int64_t first = at * n / blocks;
    return (struct cpu_block){.clip = lo, .first = first, .count = (at + 1) * n / blocks - first};
}

extern const struct kernels cpu_avx512bf16_ops, cpu_avx512vnni_ops, cpu_avx512_ops, cpu_avx2_ops,
    cpu_portable_ops;

#ifdef CPU_ISA

/* Shared by the files of one instruction set. */
size_t CPU_NAME(weight_bytes)(const struct kernels_device *d, const struct kernels_weight_spec *s);
void CPU_NAME(pack)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                    void *memory);
void CPU_NAME(adopt)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                     void *memory);
void CPU_NAME(input_norm)(struct kernels_device *d, float *y, const float *x, const struct batch *b);
void CPU_NAME(layer_norm)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                          int64_t rows);
void CPU_NAME(group_stats)(struct kernels_device *d, float *stats, const float *x,
                           const struct kernels_weight *w, const struct batch *b);
void CPU_NAME(conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                    enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                    const struct batch *b);
void CPU_NAME(compact)(struct kernels_device *d, void *y, const void *x, int channels,
                       struct kernels_rows rows, const struct batch *b);
void CPU_NAME(linear)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                      enum kernels_activation act, const void *residual, int64_t rows);
void CPU_NAME(head_linear)(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                           enum kernels_activation act, int64_t rows);
void CPU_NAME(pos_conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                        enum kernels_activation act, const struct batch *b);
void CPU_NAME(attention)(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                         float scale, const struct batch *b);
void CPU_NAME(accumulate)(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                          int64_t rows, int channels);
void CPU_NAME(pool)(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                    const struct batch *b);

#endif
#endif
