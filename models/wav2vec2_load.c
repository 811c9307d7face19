/* Loading the backbone: the list of its tensors, and the table of its buffers. */
#include <stdio.h>

#include "models/wav2vec2.h"

enum { NAME_BYTES = 128 };

static void load_layer(struct wav2vec2_layer *w, const struct config *c, struct loader *l, int index) {
    char name[NAME_BYTES];
    const int h = c->hidden, f = c->intermediate;
    snprintf(name, sizeof name, "encoder.layers.%d.attention", index);
    loader_qkv(l, &w->qkv, name, h);
    snprintf(name, sizeof name, "encoder.layers.%d.attention.out_proj", index);
    loader_linear(l, &w->out, name, h, h);
    snprintf(name, sizeof name, "encoder.layers.%d.layer_norm", index);
    loader_layer_norm(l, &w->attention_norm, name, h, c->layer_norm_eps);
    snprintf(name, sizeof name, "encoder.layers.%d.feed_forward.intermediate_dense", index);
    loader_linear(l, &w->intermediate, name, h, f);
    snprintf(name, sizeof name, "encoder.layers.%d.feed_forward.output_dense", index);
    loader_linear(l, &w->output, name, f, h);
    snprintf(name, sizeof name, "encoder.layers.%d.final_layer_norm", index);
    loader_layer_norm(l, &w->final_norm, name, h, c->layer_norm_eps);
}

void wav2vec2_load(struct wav2vec2 *m, const struct config *c, struct loader *l) {
    const int levels = c->conv.levels, channels = c->conv_dim[levels - 1];
    char name[NAME_BYTES];
    for (int i = 0; i < levels; i++) {
        enum kernels_conv_norm norm = c->conv_layer_norm ? KERNELS_NORM_LAYER
                                      : i == 0           ? KERNELS_NORM_GROUP
                                                         : KERNELS_NORM_NONE;
        snprintf(name, sizeof name, "feature_extractor.conv_layers.%d", i);
        loader_conv(l, &m->conv[i], name, i == 0 ? 1 : c->conv_dim[i - 1], c->conv_dim[i], c->conv.kernel[i],
                    c->conv.stride[i], c->conv_bias, norm);
    }
    if (c->feature_projection_norm)
        loader_layer_norm(l, &m->feature_norm, "feature_projection.layer_norm", channels, c->layer_norm_eps);
    loader_linear(l, &m->feature_projection, "feature_projection.projection", channels, c->hidden);
    loader_pos_conv(l, &m->pos_conv, "encoder.pos_conv_embed", c->hidden, c->pos_conv_kernel,
                    c->pos_conv_groups, c->pos_conv_batch_norm);
    loader_layer_norm(l, &m->encoder_norm, "encoder.layer_norm", c->hidden, c->layer_norm_eps);
    for (int i = 0; i < c->layers; i++)
        load_layer(&m->layer[i], c, l, i);
}

void wav2vec2_state_init(struct wav2vec2_state *s, const struct config *c, const struct kernels *k,
                         const struct kernels_device *d, int64_t samples_max, int clips_max,
                         struct arena *a) {
    const size_t element = k->activation_bytes(d);
    const int levels = c->conv.levels;
    const int64_t tokens = batch_count_rows(&c->conv, levels, samples_max);
    const size_t t = (size_t)tokens, h = (size_t)c->hidden;

    s->segment_rows = k->segment_rows(d) < tokens ? k->segment_rows(d) : tokens;
    size_t conv[2] = {0, 0};
    int64_t rows = s->segment_rows;
    for (int l = levels; l >= 1; l--) { /* rows of level l in one segment */
        size_t elements = (size_t)(rows + k->spare_rows(d)) * (size_t)c->conv_dim[l - 1];
        if (elements > conv[l % 2])
            conv[l % 2] = elements;
        rows = (rows - 1) * c->conv.stride[l - 1] + c->conv.kernel[l - 1];
    }
    size_t wide = 4 * h > (size_t)c->intermediate ? 4 * h : (size_t)c->intermediate;
    s->samples = arena_alloc(a, (size_t)samples_max, sizeof(float));
    s->group_stats = c->conv_layer_norm
                         ? NULL
                         : arena_alloc(a, (size_t)clips_max * (size_t)c->conv_dim[0], 2 * sizeof(float));
    s->conv[0] = arena_alloc(a, conv[0], element);
    s->conv[1] = arena_alloc(a, conv[1], element);
    s->features = arena_alloc(a, t * (size_t)c->conv_dim[levels - 1], element);
    s->x = arena_alloc(a, t * h, element);
    s->y = arena_alloc(a, t * h, element);
    s->wide = arena_alloc(a, t * wide, element);
    s->sum = c->weighted_layer_sum ? arena_alloc(a, t * h, element) : NULL;
}
