/* The cpu backend's device: which instruction set, threads and scratch memory. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/arena.h"
#include "kernels/cpu/internal.h"

enum {
    LAYOUT_VERSION = 3, /* of packed weights */
    HUGE_PAGE_BYTES = 2 << 20,
    SEGMENT_ROWS = 160, /* see segment_rows */
};

/* The instruction sets, best first of each precision. TIMBRE_CPU takes what a name begins with. */
static const struct isa {
    const char *name;
    const struct kernels *ops;
    bool precisions[3]; /* that it computes in; enum kernels_precision */
    size_t element_bytes;
} isas[] = {
#if defined(__x86_64__)
    {"avx512", &cpu_avx512_ops, {[KERNELS_FP32] = true}, sizeof(float)},
    {"avx512bf16", &cpu_avx512bf16_ops, {[KERNELS_BF16] = true, [KERNELS_INT8] = true}, sizeof(uint16_t)},
    {"avx512vnni", &cpu_avx512vnni_ops, {[KERNELS_INT8] = true}, sizeof(float)},
    {"avx2", &cpu_avx2_ops, {[KERNELS_FP32] = true}, sizeof(float)},
#endif
    {"portable", &cpu_portable_ops, {[KERNELS_FP32] = true}, sizeof(float)},
};

static bool is_supported(const struct isa *isa) {
#if defined(__x86_64__)
    if (strncmp(isa->name, "avx512", 6) == 0 &&
        !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
        return false;
    if (isa->ops == &cpu_avx512bf16_ops && !__builtin_cpu_supports("avx512bf16"))
        return false;
    if (isa->precisions[KERNELS_INT8] && !__builtin_cpu_supports("avx512vnni"))
        return false;
    if (isa->ops != &cpu_portable_ops)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    (void)isa;
    return true;
}

static int choose_isa(const struct isa **chosen, enum kernels_precision precision, struct status *st) {
    static const char *const names[] = {"fp32", "bf16", "int8"}, *const needs[] = {"", "AVX512_BF16",
                                                                                   "AVX512_VNNI"};
    const char *forced = getenv("TIMBRE_CPU");
    bool known = false, have = false;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        *chosen = &isas[i];
        if (forced && strncmp(forced, isas[i].name, strlen(forced)) != 0)
            continue;
        known = true;
        if (!is_supported(&isas[i]))
            continue;
        if (isas[i].precisions[precision])
            return 0;
        have = true;
    }
    if (!known)
        return status_set(st, STATUS_UNAVAILABLE,
                          "TIMBRE_CPU=%s: not one of avx512, avx2, portable in this build", forced);
    if (!have)
        return status_set(st, STATUS_UNAVAILABLE, "TIMBRE_CPU=%s: this processor has no %s", forced, forced);
    return status_set(
        st, STATUS_UNAVAILABLE,
        "device cpu does not offer %s here: it needs a processor with %s, elsewhere fp32 is faster",
        names[precision], needs[precision]);
}

static int count_devices(void) {
    return 1;
}

static int probe(const struct kernels_options *o, struct status *st) {
    const struct isa *isa;
    return choose_isa(&isa, o->precision, st);
}

/* Aligned memory, in huge pages where the system gives them: weights are read from end to end for every
 * batch, and packing them would otherwise take a page fault for every 4 KiB. */
static int memory_new(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st) {
    const size_t unit = bytes >= 2 * (size_t)HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : ARENA_ALIGN_BYTES;
    (void)d;
    *p = NULL;
    if (bytes <= SIZE_MAX - unit) /* aligned_alloc wants a multiple of the alignment, and not 0 bytes */
        *p = aligned_alloc(unit, (bytes / unit + (bytes % unit != 0 || bytes == 0)) * unit);
    if (!*p)
        return status_set_no_memory(st, bytes, what);
    if (unit == HUGE_PAGE_BYTES)
        (void)madvise(*p, bytes / unit * unit, MADV_HUGEPAGE);
    return 0;
}

static void memory_del(struct kernels_device *d, void *p) {
    (void)d;
    free(p);
}

static void copy(struct kernels_device *d, void *to, const void *from, size_t bytes) {
    (void)d;
    if (bytes)
        memcpy(to, from, bytes);
}

static void device_del(struct kernels_device *d) {
    if (!d)
        return;
    team_del(d->team);
    free(d->sums);
    free(d->reserved);
    free(d);
}

static int device_new(struct kernels_device **out, const struct kernels_options *o, struct status *st) {
    const struct isa *isa;
    *out = NULL;
    if (choose_isa(&isa, o->precision, st))
        return -1;
    struct kernels_device *d = calloc(1, sizeof *d);
    if (!d)
        return status_set_no_memory(st, sizeof *d, "the cpu device");
    void *sums;
    d->ops = isa->ops;
    d->precision = o->precision;
    d->element_bytes = isa->element_bytes;
    if (team_new(&d->team, o->threads, o->pin, o->pin_first, st))
        goto fail;
    d->threads = team_count_threads(d->team);
    if (memory_new(d, &sums, (size_t)d->threads * CPU_SUM_FLOATS * sizeof(float), "the sums of a tile", st))
        goto fail;
    d->sums = sums;
    *out = d;
    return 0;

fail:
    device_del(d);
    return -1;
}

static const char *device_name(const struct kernels_device *d) {
    return d->ops->name;
}

static size_t activation_bytes(const struct kernels_device *d) {
    return d->element_bytes;
}

static int64_t segment_rows(const struct kernels_device *d) {
    (void)d;
    return SEGMENT_ROWS;
}

static int64_t spare_rows(const struct kernels_device *d) {
    (void)d;
    return 0;
}

static void layout_scratch(struct kernels_device *d, const struct kernels_limits *limits, struct arena *a) {
    const size_t threads = (size_t)d->threads, h = (size_t)limits->hidden, padded = h + CPU_LANES_MAX;
    d->windows_floats =
        ((CPU_POS_CONV_ROWS + CPU_POS_CONV_TAPS) * h + CPU_LANES_MAX) / CPU_LANES_MAX * CPU_LANES_MAX;
    d->attention_floats = CPU_QUERIES * (CPU_KEYS + padded);
    d->keys_floats = ((size_t)limits->tokens_max + (size_t)limits->clips_max * CPU_LANES_MAX) * (h + padded);
    d->windows = arena_alloc(a, threads * d->windows_floats, sizeof(float));
    d->attention = arena_alloc(a, threads * d->attention_floats, sizeof(float));
    d->keys = arena_alloc(a, d->keys_floats, sizeof(float));
    d->pairs_bytes = cpu_pairs_bytes(cpu_divide_up(limits->channels_max, 8) * 8);
    d->pairs = arena_alloc(a, threads, d->pairs_bytes);
    if (d->precision == KERNELS_INT8) {
        const size_t tokens = (size_t)limits->tokens_max, rows = threads * CPU_CONV_TOKENS;
        d->quantized_bytes = cpu_divide_up(limits->channels_max, 4) * 4;
        d->quantized = arena_alloc(a, tokens, (size_t)d->quantized_bytes);
        d->conv_quantized = arena_alloc(a, rows, (size_t)d->quantized_bytes);
        d->row_scale = arena_alloc(a, tokens, sizeof(float));
        d->row_min = arena_alloc(a, tokens, sizeof(float));
        d->conv_row_scale = arena_alloc(a, rows, sizeof(float));
        d->conv_row_min = arena_alloc(a, rows, sizeof(float));
        d->group_scale = arena_alloc(a, (size_t)limits->clips_max * h, sizeof(float));
        d->group_min = arena_alloc(a, (size_t)limits->clips_max * h, sizeof(float));
    }
}

static int reserve(struct kernels_device *d, const struct kernels_limits *limits, struct status *st) {
    struct arena a;
    arena_init_counting(&a);
    layout_scratch(d, limits, &a);
    if (a.failed)
        return status_set_no_memory(st, SIZE_MAX, "scratch of the cpu device");
    free(d->reserved);
    if (memory_new(d, &d->reserved, a.used, "scratch of the cpu device", st))
        return -1;
    a = (struct arena){.base = d->reserved, .bytes = a.used};
    layout_scratch(d, limits, &a);
    return 0;
}

static int64_t warm_rows(const struct kernels_device *d, int i) {
    (void)d, (void)i;
    return 0;
}

static struct kernels_extent begin(struct kernels_device *d, const struct batch *b) {
    (void)d;
    return (struct kernels_extent){.rows = b->tape_rows[b->levels], .tokens = batch_tokens(b)};
}

static void end(struct kernels_device *d) {
    (void)d;
}

static int finish(struct kernels_device *d, struct status *st) {
    (void)d, (void)st;
    return 0;
}

static bool is_lost(const struct kernels_device *d) {
    (void)d;
    return false;
}

/* The operations: those of the instruction set chosen. */

static size_t weight_bytes(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    return d->ops->weight_bytes(d, s);
}

static void pack(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                 void *memory) {
    d->ops->pack(d, w, s, memory);
}

static void adopt(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                  void *memory) {
    d->ops->adopt(d, w, s, memory);
}

static void input_norm(struct kernels_device *d, float *y, const float *x, const struct batch *b) {
    d->ops->input_norm(d, y, x, b);
}

static void group_stats(struct kernels_device *d, float *stats, const float *x,
                        const struct kernels_weight *w, const struct batch *b) {
    d->ops->group_stats(d, stats, x, w, b);
}

static void conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                 enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                 const struct batch *b) {
    d->ops->conv(d, y, x, w, act, stats, level, rows, b);
}

static void compact(struct kernels_device *d, void *y, const void *x, int channels, struct kernels_rows rows,
                    const struct batch *b) {
    d->ops->compact(d, y, x, channels, rows, b);
}

static void layer_norm(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                       int64_t rows) {
    d->ops->layer_norm(d, y, x, w, rows);
}

static void linear(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                   enum kernels_activation act, const void *residual, int64_t rows) {
    d->ops->linear(d, y, x, w, act, residual, rows);
}

static void pos_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                     enum kernels_activation act, const struct batch *b) {
    d->ops->pos_conv(d, y, x, w, act, b);
}

static void attention(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                      float scale, const struct batch *b) {
    d->ops->attention(d, y, qkv, heads, head_dim, scale, b);
}

static void accumulate(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                       int64_t rows, int channels) {
    d->ops->accumulate(d, y, x, weight, first, rows, channels);
}

static void pool(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                 const struct batch *b) {
    d->ops->pool(d, y, x, kind, channels, b);
}

static void head_linear(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                        enum kernels_activation act, int64_t rows) {
    d->ops->head_linear(d, y, x, w, act, rows);
}

const struct kernels kernels_cpu = {
    .abi = KERNELS_ABI,
    .name = "cpu",
    .on_host = true,
    .count_devices = count_devices,
    .probe = probe,
    .device_new = device_new,
    .device_del = device_del,
    .device_name = device_name,
    .activation_bytes = activation_bytes,
    .segment_rows = segment_rows,
    .spare_rows = spare_rows,
    .memory_new = memory_new,
    .memory_del = memory_del,
    .host_new = memory_new,
    .host_del = memory_del,
    .upload = copy,
    .download = copy,
    .weight_bytes = weight_bytes,
    .pack = pack,
    .layout_version = LAYOUT_VERSION,
    .adopt = adopt,
    .reserve = reserve,
    .warm_rows = warm_rows,
    .begin = begin,
    .end = end,
    .finish = finish,
    .is_lost = is_lost,
    .input_norm = input_norm,
    .group_stats = group_stats,
    .conv = conv,
    .compact = compact,
    .layer_norm = layer_norm,
    .linear = linear,
    .pos_conv = pos_conv,
    .attention = attention,
    .accumulate = accumulate,
    .pool = pool,
    .head_linear = head_linear,
};
