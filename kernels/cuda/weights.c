/* Packing of weights, once at load: reordered and rounded on the host, then uploaded. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "kernels/cuda/internal.h"

static bool has_fp32_matrix(const struct kernels_weight *w) {
    return w->is_head || w->kind == KERNELS_LAYER_NORM || (w->kind == KERNELS_CONV && w->in == 1);
}

static size_t count_matrix(const struct kernels_weight *w) {
    const size_t in = (size_t)w->in, out = (size_t)w->out;
    switch (w->kind) {
    case KERNELS_LINEAR:
        return out * in;
    case KERNELS_CONV:
    case KERNELS_POS_CONV:
        return out * (in / (size_t)w->groups) * (size_t)w->kernel;
    case KERNELS_LAYER_NORM:
        return out;
    }
    return 0;
}

/* Takes the parts out of `a`, which may be counting. */
static struct cuda_weight layout(enum cuda_type type, const struct kernels_weight *w, struct arena *a) {
    const size_t in = (size_t)w->in, out = (size_t)w->out;
    const size_t element = type == CUDA_BF16 ? 2 : sizeof(float);
    const bool norm = w->kind == KERNELS_CONV && w->norm != KERNELS_NORM_NONE;
    struct cuda_weight p = {0};
    p.matrix = arena_alloc(a, count_matrix(w), has_fp32_matrix(w) ? sizeof(float) : element);
    p.bias = arena_alloc(a, out, sizeof(float));
    p.bias_typed = arena_alloc(a, out, element);
    if (norm) {
        p.norm_weight = arena_alloc(a, out, sizeof(float));
        p.norm_bias = arena_alloc(a, out, sizeof(float));
    }
    if (w->has_input_affine) {
        p.input_scale = arena_alloc(a, in, sizeof(float));
        p.input_shift = arena_alloc(a, in, sizeof(float));
    }
    return p;
}

struct cuda_weight cuda_weight_of(const struct kernels_device *d, const struct kernels_weight *w) {
    struct arena a = {.base = w->packed, .bytes = SIZE_MAX};
    return layout(d->type, w, &a);
}

size_t cuda_weight_bytes(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    const struct kernels_weight w = kernels_weight_of(s, NULL);
    struct arena a;
    arena_init_counting(&a);
    layout(d->type, &w, &a);
    return a.used;
}

/* To the nearest, ties to even; what is not a number stays one. */
static uint16_t round_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static void put(void *to, size_t index, float value, bool bf16) {
    if (bf16)
        ((uint16_t *)to)[index] = round_bf16(value);
    else
        ((float *)to)[index] = value;
}

/* Row by row, the parts behind each other. */
static void pack_linear(void *to, const struct kernels_weight_spec *s, bool bf16) {
    const size_t part = (size_t)(s->out / s->parts) * (size_t)s->in;
    for (int i = 0; i < s->parts; i++)
        for (size_t e = 0; e < part; e++)
            put(to, (size_t)i * part + e, s->weight[i][e], bf16);
}

/* [out, in, kernel] to [out, kernel, in], or for in = 1 to [kernel, out]. */
static void pack_conv(void *to, const struct kernels_weight_spec *s, bool bf16) {
    const size_t in = (size_t)s->in, out = (size_t)s->out, kernel = (size_t)s->kernel;
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t k = 0; k < kernel; k++)
                put(to, in == 1 ? k * out + o : (o * kernel + k) * in + i,
                    s->weight[0][(o * in + i) * kernel + k], bf16);
}

/* [out, in / groups, kernel] to [groups, kernel, in / groups, out / groups]. */
static void pack_pos_conv(void *to, const struct kernels_weight_spec *s, bool bf16) {
    const size_t groups = (size_t)s->groups, in = (size_t)s->in / groups, out = (size_t)s->out / groups;
    const size_t kernel = (size_t)s->kernel;
    for (size_t g = 0; g < groups; g++)
        for (size_t o = 0; o < out; o++)
            for (size_t i = 0; i < in; i++)
                for (size_t k = 0; k < kernel; k++)
                    put(to, ((g * kernel + k) * in + i) * out + o,
                        s->weight[0][((g * out + o) * in + i) * kernel + k], bf16);
}

static void fill(float *to, const float *from, int n, float otherwise) {
    for (int i = 0; to && i < n; i++)
        to[i] = from ? from[i] : otherwise;
}

static void pack_vectors(struct cuda_weight *p, const struct kernels_weight_spec *s, bool bf16) {
    const int rows = s->out / s->parts;
    for (int i = 0; i < s->parts; i++)
        fill(p->bias + i * rows, s->bias[i], rows, 0.0f);
    for (int i = 0; i < s->out; i++)
        put(p->bias_typed, (size_t)i, p->bias[i], bf16);
    fill(p->norm_weight, s->norm_weight, s->out, 1.0f);
    fill(p->norm_bias, s->norm_bias, s->out, 0.0f);
    fill(p->input_scale, s->input_scale, s->in, 1.0f);
    fill(p->input_shift, s->input_shift, s->in, 0.0f);
}

void cuda_pack(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
               void *memory) {
    const size_t bytes = cuda_weight_bytes(d, s);
    *w = kernels_weight_of(s, memory);
    unsigned char *staging = calloc(1, bytes);
    if (!staging) {
        cuda_fail(d, STATUS_RESOURCE_EXHAUSTED, "out of memory: %zu bytes to pack a weight", bytes);
        return;
    }
    struct arena a = {.base = staging, .bytes = bytes};
    struct cuda_weight p = layout(d->type, w, &a);
    const bool bf16 = d->type == CUDA_BF16 && !has_fp32_matrix(w);
    if (w->kind == KERNELS_CONV)
        pack_conv(p.matrix, s, bf16);
    else if (w->kind == KERNELS_POS_CONV)
        pack_pos_conv(p.matrix, s, bf16);
    else
        pack_linear(p.matrix,
                    &(struct kernels_weight_spec){.in = w->kind == KERNELS_LINEAR ? s->in : 1,
                                                  .out = s->out,
                                                  .parts = s->parts,
                                                  .weight = {s->weight[0], s->weight[1], s->weight[2]}},
                    bf16);
    pack_vectors(&p, s, d->type == CUDA_BF16);
    cuda_note(d, gpu_use(d->options.device_index));
    cuda_note(d, gpu_copy_in(memory, staging, bytes, d->stream));
    cuda_note(d, gpu_stream_wait(d->stream)); /* of `staging` */
    free(staging);
}
