/* The ref backend's memory and weights: host memory, weights as they come. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "kernels/ref/internal.h"

struct kernels_device {
    int64_t tokens_max;
};

static int count_devices(void) {
    return 1;
}

static int probe(const struct kernels_options *o, struct status *st) {
    if (o->precision != KERNELS_FP32)
        return status_set(st, STATUS_UNAVAILABLE, "device ref computes in fp32 only");
    return 0;
}

static int device_new(struct kernels_device **d, const struct kernels_options *o, struct status *st) {
    *d = NULL;
    if (probe(o, st))
        return -1;
    *d = calloc(1, sizeof **d);
    return *d ? 0 : status_set_no_memory(st, sizeof **d, "the ref device");
}

static void device_del(struct kernels_device *d) {
    free(d);
}

static const char *device_name(const struct kernels_device *d) {
    (void)d;
    return "ref";
}

static size_t activation_bytes(const struct kernels_device *d) {
    (void)d;
    return sizeof(float);
}

static int64_t segment_rows(const struct kernels_device *d) {
    (void)d;
    return 128; /* bounds the memory of the widest layers */
}

static int64_t spare_rows(const struct kernels_device *d) {
    (void)d;
    return 0;
}

static int memory_new(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st) {
    struct arena a;
    (void)d;
    *p = NULL;
    if (arena_init(&a, bytes, what, st))
        return -1;
    *p = a.base;
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

/* Lays out a weight in `a`, counting when the arena counts. */
static void layout(struct ref_packed *p, const struct kernels_weight_spec *s, struct arena *a) {
    size_t in = (size_t)s->in, out = (size_t)s->out, weights = out;
    if (s->kind == KERNELS_LINEAR)
        weights = out * in;
    else if (s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV)
        weights = out * (in / (size_t)s->groups) * (size_t)s->kernel;
    p->weight = arena_alloc(a, weights, sizeof(float));
    p->bias = arena_alloc(a, out, sizeof(float));
    p->norm_weight = arena_alloc(a, out, sizeof(float));
    p->norm_bias = arena_alloc(a, out, sizeof(float));
    p->input_scale = arena_alloc(a, in, sizeof(float));
    p->input_shift = arena_alloc(a, in, sizeof(float));
}

size_t ref_weight_bytes(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    struct arena a;
    struct ref_packed p;
    (void)d;
    arena_init_counting(&a);
    arena_alloc(&a, 1, sizeof p);
    layout(&p, s, &a);
    return a.used;
}

static void fill(float *to, const float *from, int n, float otherwise) {
    for (int i = 0; i < n; i++)
        to[i] = from ? from[i] : otherwise;
}

void ref_pack(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
              void *memory) {
    struct arena a = {.base = memory, .bytes = ref_weight_bytes(d, s)};
    struct ref_packed *p = arena_alloc(&a, 1, sizeof *p);
    layout(p, s, &a);
    int rows = s->out / s->parts;
    size_t row = 1;
    if (s->kind == KERNELS_LINEAR)
        row = (size_t)s->in;
    else if (s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV)
        row = (size_t)(s->in / s->groups) * (size_t)s->kernel;
    for (int i = 0; i < s->parts; i++) {
        memcpy(p->weight + (size_t)i * (size_t)rows * row, s->weight[i], (size_t)rows * row * sizeof(float));
        fill(p->bias + i * rows, s->bias[i], rows, 0.0f);
    }
    fill(p->norm_weight, s->norm_weight, s->out, 1.0f);
    fill(p->norm_bias, s->norm_bias, s->out, 0.0f);
    fill(p->input_scale, s->input_scale, s->in, 1.0f);
    fill(p->input_shift, s->input_shift, s->in, 0.0f);
    *w = kernels_weight_of(s, p);
}

static int reserve(struct kernels_device *d, const struct kernels_limits *limits, struct status *st) {
    (void)st;
    d->tokens_max = limits->tokens_max;
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

const struct kernels kernels_ref = {
    .abi = KERNELS_ABI,
    .name = "ref",
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
    .weight_bytes = ref_weight_bytes,
    .pack = ref_pack,
    .reserve = reserve,
    .warm_rows = warm_rows,
    .begin = begin,
    .end = end,
    .finish = finish,
    .is_lost = is_lost,
    .input_norm = ref_input_norm,
    .group_stats = ref_group_stats,
    .conv = ref_conv,
    .compact = ref_compact,
    .layer_norm = ref_layer_norm,
    .linear = ref_linear,
    .pos_conv = ref_pos_conv,
    .attention = ref_attention,
    .accumulate = ref_accumulate,
    .pool = ref_pool,
    .head_linear = ref_head_linear,
};
