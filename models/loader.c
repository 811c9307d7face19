#include "models/loader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/xxh64.h"

enum { NAME_BYTES = 192, BATCH_NORM_CHANNELS_MAX = 8192 };

/* Normalisation layers inside the feature extractor and batch norms have this eps whatever the config says
 * (torch.nn.GroupNorm, LayerNorm and BatchNorm1d defaults). */
static const float FIXED_EPS = 1e-5f;

static const float *get(struct loader *l, const char *name, const char *suffix, int rank,
                        const int64_t *shape) {
    char full[NAME_BYTES + 32];
    if (l->counting)
        return NULL;
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return weights_get(l->weights, full, rank, shape);
}

/* Goes on with the checksum of the layout. */
static uint64_t add_to_layout(uint64_t layout, const struct kernels_weight_spec *s, size_t offset,
                              size_t bytes) {
    uint32_t eps;
    memcpy(&eps, &s->eps, sizeof eps);
    const uint64_t facts[] = {offset,
                              bytes,
                              (uint64_t)s->kind,
                              (uint64_t)s->norm,
                              (uint64_t)s->in,
                              (uint64_t)s->out,
                              (uint64_t)s->kernel,
                              (uint64_t)s->stride,
                              (uint64_t)s->groups,
                              (uint64_t)s->parts,
                              eps,
                              s->has_bias,
                              s->has_input_affine,
                              s->is_head};
    return xxh64(facts, sizeof facts, layout);
}

/* Places one weight: counts its bytes, or packs it and lets go of what was read for it. */
static void place(struct loader *l, struct kernels_weight *w, const struct kernels_weight_spec *s) {
    const size_t offset = l->arena.used, bytes = l->kernels->weight_bytes(l->device, s);
    void *memory = arena_alloc(&l->arena, 1, bytes);
    if (l->counting)
        l->layout = add_to_layout(l->layout, s, offset, bytes);
    if (l->counting || l->weights->failed)
        return;
    if (!memory) {
        weights_fail(l->weights, STATUS_INTERNAL, "packed weights outgrew what was counted");
        return;
    }
    if (l->adopting)
        l->kernels->adopt(l->device, w, s, memory);
    else
        l->kernels->pack(l->device, w, s, memory);
    weights_release(l->weights);
}

static void linear(struct loader *l, struct kernels_weight *w, const char *name, int in, int out, bool head) {
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = in, .out = out, .has_bias = true, .parts = 1, .is_head = head};
    s.weight[0] = get(l, name, ".weight", 2, (int64_t[]){out, in});
    s.bias[0] = get(l, name, ".bias", 1, (int64_t[]){out});
    place(l, w, &s);
}

void loader_linear(struct loader *l, struct kernels_weight *w, const char *name, int in, int out) {
    linear(l, w, name, in, out, false);
}

void loader_head_linear(struct loader *l, struct kernels_weight *w, const char *name, int in, int out) {
    linear(l, w, name, in, out, true);
}

void loader_qkv(struct loader *l, struct kernels_weight *w, const char *name, int hidden) {
    static const char *const weight[] = {".q_proj.weight", ".k_proj.weight", ".v_proj.weight"};
    static const char *const bias[] = {".q_proj.bias", ".k_proj.bias", ".v_proj.bias"};
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = hidden, .out = 3 * hidden, .has_bias = true, .parts = 3};
    for (int i = 0; i < 3; i++) {
        s.weight[i] = get(l, name, weight[i], 2, (int64_t[]){hidden, hidden});
        s.bias[i] = get(l, name, bias[i], 1, (int64_t[]){hidden});
    }
    place(l, w, &s);
}

void loader_layer_norm(struct loader *l, struct kernels_weight *w, const char *name, int channels,
                       float eps) {
    struct kernels_weight_spec s = {.kind = KERNELS_LAYER_NORM,
                                    .in = channels,
                                    .out = channels,
                                    .eps = eps,
                                    .has_bias = true,
                                    .parts = 1};
    s.weight[0] = get(l, name, ".weight", 1, (int64_t[]){channels});
    s.bias[0] = get(l, name, ".bias", 1, (int64_t[]){channels});
    place(l, w, &s);
}

void loader_conv(struct loader *l, struct kernels_weight *w, const char *name, int in, int out, int kernel,
                 int stride, bool bias, enum kernels_conv_norm norm) {
    struct kernels_weight_spec s = {.kind = KERNELS_CONV,
                                    .in = in,
                                    .out = out,
                                    .kernel = kernel,
                                    .stride = stride,
                                    .groups = 1,
                                    .norm = norm,
                                    .eps = FIXED_EPS,
                                    .has_bias = bias,
                                    .parts = 1};
    s.weight[0] = get(l, name, ".conv.weight", 3, (int64_t[]){out, in, kernel});
    if (bias)
        s.bias[0] = get(l, name, ".conv.bias", 1, (int64_t[]){out});
    if (norm != KERNELS_NORM_NONE) {
        s.norm_weight = get(l, name, ".layer_norm.weight", 1, (int64_t[]){out});
        s.norm_bias = get(l, name, ".layer_norm.bias", 1, (int64_t[]){out});
    }
    place(l, w, &s);
}

void loader_pos_conv(struct loader *l, struct kernels_weight *w, const char *name, int channels, int kernel,
                     int groups, bool batch_norm) {
    float scale[BATCH_NORM_CHANNELS_MAX], shift[BATCH_NORM_CHANNELS_MAX];
    char conv[NAME_BYTES];
    struct kernels_weight_spec s = {.kind = KERNELS_POS_CONV,
                                    .in = channels,
                                    .out = channels,
                                    .kernel = kernel,
                                    .stride = 1,
                                    .groups = groups,
                                    .has_bias = true,
                                    .has_input_affine = batch_norm,
                                    .parts = 1};
    snprintf(conv, sizeof conv, "%s.conv", name);
    if (!l->counting)
        s.weight[0] = weights_get_weight_norm(l->weights, conv, channels, channels / groups, kernel);
    s.bias[0] = get(l, conv, ".bias", 1, (int64_t[]){channels});
    if (batch_norm && !l->counting) {
        const int64_t shape[] = {channels};
        const float *gamma = get(l, name, ".batch_norm.weight", 1, shape);
        const float *beta = get(l, name, ".batch_norm.bias", 1, shape);
        const float *mean = get(l, name, ".batch_norm.running_mean", 1, shape);
        const float *variance = get(l, name, ".batch_norm.running_var", 1, shape);
        if (channels > BATCH_NORM_CHANNELS_MAX)
            weights_fail(l->weights, STATUS_FAILED_PRECONDITION, "%s.batch_norm: more than %d channels", name,
                         BATCH_NORM_CHANNELS_MAX);
        for (int i = 0; i < channels && !l->weights->failed && !l->adopting; i++) {
            double factor = gamma[i] / sqrt((double)variance[i] + FIXED_EPS);
            scale[i] = (float)factor;
            shift[i] = (float)(beta[i] - mean[i] * factor);
            if (!(variance[i] >= 0))
                weights_fail(l->weights, STATUS_FAILED_PRECONDITION,
                             "%s.batch_norm.running_var: negative at %d", name, i);
        }
        s.input_scale = scale;
        s.input_shift = shift;
    }
    place(l, w, &s);
}
