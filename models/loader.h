/* loader: from tensors in a checkpoint to packed weights in the device's memory, in one allocation.
 *
 * A family's load function runs twice over the same list of calls: first counting bytes, then reading and
 * packing; or, where the memory already holds what was packed in another process, checking and adopting. */
#ifndef TIMBRE_MODELS_LOADER_H
#define TIMBRE_MODELS_LOADER_H

#include "base/arena.h"
#include "kernels/kernels.h"
#include "models/weights.h"

struct loader {
    const struct kernels *kernels;
    struct kernels_device *device;
    struct weights *weights;
    struct arena arena; /* over the device's memory; counting in the first pass */
    uint64_t layout;    /* after the first pass: a checksum over what all weights are and where they lie */
    bool counting;
    bool adopting; /* with weights->check_only */
};

/* Each names its tensors without ".weight" and ".bias"; names beginning with '/' have no backbone prefix.
 * After an error they do nothing; the error is in loader->weights->st. */
void loader_linear(struct loader *l, struct kernels_weight *w, const char *name, int in, int out);
void loader_head_linear(struct loader *l, struct kernels_weight *w, const char *name, int in, int out);
/* q, k and v of one attention as one matrix [3 * hidden, hidden]; `name` is the attention. */
void loader_qkv(struct loader *l, struct kernels_weight *w, const char *name, int hidden);
void loader_layer_norm(struct loader *l, struct kernels_weight *w, const char *name, int channels, float eps);
/* `name` is the layer: its tensors are <name>.conv.* and, with a norm, <name>.layer_norm.* */
void loader_conv(struct loader *l, struct kernels_weight *w, const char *name, int in, int out, int kernel,
                 int stride, bool bias, enum kernels_conv_norm norm);
/* `name` is the embedding: <name>.conv.*, weight norm folded; with batch_norm <name>.batch_norm.* too. */
void loader_pos_conv(struct loader *l, struct kernels_weight *w, const char *name, int channels, int kernel,
                     int groups, bool batch_norm);

#endif
