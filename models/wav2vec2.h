/* wav2vec2: the backbone of wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477), and of HuBERT, UniSpeech and
 * UniSpeech-SAT, whose forward passes are the same but for two switches of HuBERT. */
#ifndef TIMBRE_MODELS_WAV2VEC2_H
#define TIMBRE_MODELS_WAV2VEC2_H

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/loader.h"

struct wav2vec2_layer {
    struct kernels_weight qkv, out;             /* [3H, H], [H, H] */
    struct kernels_weight attention_norm;       /* layer_norm [H] */
    struct kernels_weight intermediate, output; /* [F, H], [H, F] */
    struct kernels_weight final_norm;           /* final_layer_norm [H] */
};

struct wav2vec2 {
    struct kernels_weight conv[BATCH_LEVELS_MAX];           /* [C, C', kernel] */
    struct kernels_weight feature_norm, feature_projection; /* [C], [H, C] */
    struct kernels_weight pos_conv;                         /* [H, H/groups, kernel] */
    struct kernels_weight encoder_norm;                     /* [H] */
    struct wav2vec2_layer layer[CONFIG_LAYERS_MAX];
};

/* The activations, all in the device's memory. T = tokens_max. */
struct wav2vec2_state {
    float *samples;     /* [samples_max] the tape */
    float *group_stats; /* [clips_max, C, 2] */
    void *conv[2];      /* one segment's rows of the odd and of the even levels */
    int64_t segment_rows;
    void *features; /* [T, C] */
    void *x, *y;    /* [T, H] residual stream, and what comes next */
    void *wide;     /* [T, max(4H, F)]: q|k|v and the attention's output, or the feed-forward's middle */
    void *sum;      /* [T, H] weighted sum of layers; NULL when the model has none */
};

/* Errors are left in the loader's weights. */
void wav2vec2_load(struct wav2vec2 *m, const struct config *c, struct loader *l);

/* Takes the buffers out of `a` (may be counting) for a tape of samples_max samples. */
void wav2vec2_state_init(struct wav2vec2_state *s, const struct config *c, const struct kernels *k,
                         const struct kernels_device *d, int64_t samples_max, int clips_max, struct arena *a);

/* Runs the backbone over s->samples, which holds the tape that `b` describes. layer_weights [layers + 1] are
 * the softmaxed weights of the layer sum, or NULL. `e` is what begin said. Returns the hidden states [T, H],
 * valid until the next call. */
const void *wav2vec2_forward(const struct wav2vec2 *m, const struct config *c, struct wav2vec2_state *s,
                             const float *layer_weights, const struct kernels *k, struct kernels_device *d,
                             const struct batch *b, struct kernels_extent e);

#endif
