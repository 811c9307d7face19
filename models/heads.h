/* heads: what stands between the backbone's hidden states and the labels. Detected by tensor names, never by
 * what the config calls itself. */
#ifndef TIMBRE_MODELS_HEADS_H
#define TIMBRE_MODELS_HEADS_H

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/loader.h"

enum head_kind {
    HEAD_PROJECTOR, /* transformers' own: projector per frame, mean, classifier (the mean is taken first: same
                       sum) */
    HEAD_DENSE_TANH, /* classifier.dense, tanh, classifier.out_proj over pooled frames */
    HEAD_AGE_GENDER, /* two of these: age.* with one output, gender.* with several */
    HEAD_DENSE,      /* classifier.dense, classifier.output: an activation no file tells, by default none */
};

struct head {
    enum head_kind kind;
    enum kernels_pool pooling;
    enum kernels_activation middle;                  /* after dense */
    int middle_size;                                 /* rows of projector or dense */
    int labels;                                      /* outputs in all */
    struct kernels_weight first, last;               /* [middle, H], [labels, middle] */
    struct kernels_weight second_first, second_last; /* HEAD_AGE_GENDER: gender */
};

/* Finds out which head the checkpoint has, and its sizes. `head_activation`: "none", "tanh", "relu", for
 * HEAD_DENSE only; NULL is none. Errors in w: FAILED_PRECONDITION (none, or more than one), INVALID_ARGUMENT
 * (activation). */
void head_detect(struct head *h, const struct config *c, struct weights *w, const char *head_activation);
void head_load(struct head *h, const struct config *c, struct loader *l);
const char *head_name(const struct head *h);

struct head_state {
    float *pooled; /* [clips_max, H]: the embedding */
    float *middle; /* [clips_max, middle_size] */
    float *logits; /* [clips_max, labels] */
    float *part;   /* [clips_max, labels] HEAD_AGE_GENDER */
};
void head_state_init(struct head_state *s, const struct head *h, const struct config *c, int clips_max,
                     struct arena *a);

/* hidden [T, H] -> s->pooled and s->logits in the device's memory. */
void head_forward(const struct head *h, const struct config *c, struct head_state *s, const void *hidden,
                  const struct kernels *k, struct kernels_device *d, const struct batch *b);

#endif
