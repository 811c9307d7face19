/* model_internal: what struct model and struct model_worker are made of, for models/ alone. */
#ifndef TIMBRE_MODELS_MODEL_INTERNAL_H
#define TIMBRE_MODELS_MODEL_INTERNAL_H

#include "models/config.h"
#include "models/heads.h"
#include "models/model.h"
#include "models/wav2vec2.h"

enum { MODEL_UNUSED_MAX = 1024 };

enum model_output { MODEL_SOFTMAX, MODEL_SIGMOID, MODEL_NONE, MODEL_AGE_GENDER };

struct model {
    struct config config;
    struct wav2vec2 backbone;
    struct head head;
    float layer_weights[CONFIG_LAYERS_MAX + 1]; /* softmaxed; when config.weighted_layer_sum */
    enum model_output output;

    const struct kernels *kernels;
    struct kernels_options device_options;
    struct kernels_device *device; /* packs the weights and owns their memory; does not compute */
    void *weights;                 /* all packed weights, in the device's memory */

    struct model_info info;
    char *dir, *device_name;
    char *labels[CONFIG_LABELS_MAX];
    char *unused[MODEL_UNUSED_MAX];
};

struct model_worker {
    const struct model *model;
    struct kernels_device *device;
    void *memory; /* of the activations, in the device's memory */
    size_t memory_bytes;
    struct wav2vec2_state state;
    struct head_state head;
    struct arena host; /* the batch's tables, and staging */
    struct batch batch;
    int64_t *samples;       /* [clips_max] */
    float *zeros;           /* [slot] what lies between clips */
    float *pooled, *logits; /* [clips_max, H], [clips_max, labels] as downloaded */
    float *part;            /* [clips_max, labels] */
    int64_t samples_max;
    int clips_max;
};

#endif
