/* The forward pass, in paper order. Shapes: n_l rows of level l, C channels, T tokens of the whole batch (and
 * what the device adds to them: struct kernels_extent), H hidden, F feed-forward. See docs/architecture.md
 * for the tape. */
#include "models/wav2vec2.h"

#include <math.h>

/* The rows of each level that the rows [first, end) of the last level are computed from. */
static void plan_segment(struct kernels_rows *rows, const struct batch_shape *s, int64_t first, int64_t end) {
    rows[s->levels] = (struct kernels_rows){first, end - first};
    for (int l = s->levels - 1; l >= 0; l--) {
        rows[l].first = rows[l + 1].first * s->stride[l];
        rows[l].count = (rows[l + 1].count - 1) * s->stride[l] + s->kernel[l];
    }
}

/* The convolution stack over the tape, in segments of equal length so that its widest layers stay in cache. A
 * row is the same bits whichever segment computes it. */
static void feature_extractor(const struct wav2vec2 *m, const struct config *c, struct wav2vec2_state *s,
                              const struct kernels *k, struct kernels_device *d, const struct batch *b,
                              int64_t total) {
    const int levels = c->conv.levels;
    const int64_t segments = (total + s->segment_rows - 1) / s->segment_rows;
    const float *stats = c->conv_layer_norm ? NULL : s->group_stats;
    struct kernels_rows rows[BATCH_LEVELS_MAX + 1];

    if (stats)
        k->group_stats(d, s->group_stats, s->samples, &m->conv[0], b);
    for (int64_t i = 0; i < segments; i++) {
        plan_segment(rows, &c->conv, i * total / segments, (i + 1) * total / segments);
        const void *x = s->samples + rows[0].first;
        for (int l = 1; l <= levels; l++) {
            k->conv(d, s->conv[l % 2], x, &m->conv[l - 1], c->conv_act, l == 1 ? stats : NULL, l, rows[l], b);
            x = s->conv[l % 2];
        }
        k->compact(d, s->features, x, c->conv_dim[levels - 1], rows[levels], b);
    }
}

/* x = norm(x + attention(x)); x = norm(x + ffn(x)). (Vaswani et al. 2017; do_stable_layer_norm false) */
static void encoder_layer_post_norm(const struct wav2vec2_layer *w, const struct config *c,
                                    struct wav2vec2_state *s, const struct kernels *k,
                                    struct kernels_device *d, const struct batch *b, int64_t t) {
    const int head_dim = c->hidden / c->heads;
    void *qkv = s->wide,
         *heads = (char *)s->wide + (size_t)t * 3 * (size_t)c->hidden * k->activation_bytes(d);

    k->linear(d, qkv, s->x, &w->qkv, KERNELS_IDENTITY, NULL, t);
    k->attention(d, heads, qkv, c->heads, head_dim, 1.0f / sqrtf((float)head_dim), b);
    k->linear(d, s->x, heads, &w->out, KERNELS_IDENTITY, s->x, t);
    k->layer_norm(d, s->x, s->x, &w->attention_norm, t);
    k->linear(d, s->wide, s->x, &w->intermediate, c->hidden_act, NULL, t);
    k->linear(d, s->x, s->wide, &w->output, KERNELS_IDENTITY, s->x, t);
    k->layer_norm(d, s->x, s->x, &w->final_norm, t);
}

/* x += attention(norm(x)); x += ffn(norm(x)). (do_stable_layer_norm true) */
static void encoder_layer_pre_norm(const struct wav2vec2_layer *w, const struct config *c,
                                   struct wav2vec2_state *s, const struct kernels *k,
                                   struct kernels_device *d, const struct batch *b, int64_t t) {
    const int head_dim = c->hidden / c->heads;
    void *qkv = s->wide,
         *heads = (char *)s->wide + (size_t)t * 3 * (size_t)c->hidden * k->activation_bytes(d);

    k->layer_norm(d, s->y, s->x, &w->attention_norm, t);
    k->linear(d, qkv, s->y, &w->qkv, KERNELS_IDENTITY, NULL, t);
    k->attention(d, heads, qkv, c->heads, head_dim, 1.0f / sqrtf((float)head_dim), b);
    k->linear(d, s->x, heads, &w->out, KERNELS_IDENTITY, s->x, t);
    k->layer_norm(d, s->y, s->x, &w->final_norm, t);
    k->linear(d, s->wide, s->y, &w->intermediate, c->hidden_act, NULL, t);
    k->linear(d, s->x, s->wide, &w->output, KERNELS_IDENTITY, s->x, t);
}

const void *wav2vec2_forward(const struct wav2vec2 *m, const struct config *c, struct wav2vec2_state *s,
                             const float *layer_weights, const struct kernels *k, struct kernels_device *d,
                             const struct batch *b, struct kernels_extent e) {
    const int64_t t = e.tokens;
    const int h = c->hidden;

    if (c->normalize)
        k->input_norm(d, s->samples, s->samples, b); /* each clip: mean 0, variance 1 */
    feature_extractor(m, c, s, k, d, b, e.rows);     /* [T, C] */
    if (c->feature_projection_norm)
        k->layer_norm(d, s->features, s->features, &m->feature_norm, t);
    k->linear(d, s->y, s->features, &m->feature_projection, KERNELS_IDENTITY, NULL, t); /* [T, H] */
    k->pos_conv(d, s->x, s->y, &m->pos_conv, c->conv_act, b); /* x + gelu(conv(x)) */
    if (!c->stable_layer_norm)
        k->layer_norm(d, s->x, s->x, &m->encoder_norm, t);
    if (layer_weights)
        k->accumulate(d, s->sum, s->x, layer_weights[0], true, t, h);
    for (int i = 0; i < c->layers; i++) {
        if (c->stable_layer_norm)
            encoder_layer_pre_norm(&m->layer[i], c, s, k, d, b, t);
        else
            encoder_layer_post_norm(&m->layer[i], c, s, k, d, b, t);
        if (c->stable_layer_norm && i == c->layers - 1)
            k->layer_norm(d, s->x, s->x, &m->encoder_norm, t);
        if (layer_weights) /* the last state after the encoder's norm, as the published heads were trained */
            k->accumulate(d, s->sum, s->x, layer_weights[i + 1], false, t, h);
    }
    return layer_weights ? s->sum : s->x;
}
