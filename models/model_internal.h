/* model_internal: what struct model and struct model_worker are made of, for models/ alone. */
#ifndef TIMBRE_MODELS_MODEL_INTERNAL_H
#define TIMBRE_MODELS_MODEL_INTERNAL_H

#include "models/config.h"
#include "models/heads.h"
#include "models/model.h"
#include "models/packed_cache.h"
#include "models/wav2vec2.h"

enum { MODEL_UNUSED_MAX = 1024 };

enum model_output { MODEL_SOFTMAX, MODEL_SIGMOID, MODEL_NONE, MODEL_AGE_GENDER };

/* The weights on one device. */
struct model_replica {
    struct kernels_options options;
    struct kernels_device *device; /* packs the weights and owns their memory; does not compute */
    void *weights; /* all packed weights, in the device's memory; NULL: they are the packed cache's */
    struct wav2vec2 backbone;
    struct head head;
};

struct model {
    struct config config;
    struct head head;                           /* what it is; the weights are the replicas' */
    float layer_weights[CONFIG_LAYERS_MAX + 1]; /* softmaxed; when config.weighted_layer_sum */
    enum model_output output;

    const struct kernels *kernels;
    struct kernels_options device_options; /* but for the index */
    struct model_replica replicas[MODEL_DEVICES_MAX];
    int replicas_count;
    char device_note[STATUS_MESSAGE_BYTES_MAX], precision_note[STATUS_MESSAGE_BYTES_MAX];
    bool any_precision; /* "auto" */

    struct packed_cache *packed_cache; /* NULL: none; may be writing from the first replica's weights */
    struct model_info info;
    char *dir, *device_name;
    char *labels[CONFIG_LABELS_MAX];
    char *unused[MODEL_UNUSED_MAX];
};

struct model_worker {
    const struct model *model;
    const struct model_replica *replica;
    struct kernels_device *device;
    bool lost;
    void *memory;                        /* of the activations, in the device's memory */
    size_t memory_bytes;                 /* of its own, pinned memory included */
    size_t activation_bytes, lent_bytes; /* of its own, and those that others may use meanwhile */
    bool borrowed;                       /* the activations are another worker's */
    struct wav2vec2_state state;
    struct head_state head;
    struct arena host; /* the batch's tables, and staging */
    struct batch batch;
    int64_t *samples;       /* [clips_max] */
    void *pinned;           /* the host's side of uploads and downloads */
    float *tape;            /* [samples_max] the clips before they are uploaded; the device's own on a host */
    float *pooled, *logits; /* [clips_max, H], [clips_max, labels] as downloaded */
    float *part;            /* [clips_max, labels] */
    int64_t samples_max;
    int clips_max;
};

/* Reads the device's options and makes a packing device for each; model_free_devices also after an error.
 * Errors: INVALID_ARGUMENT, UNAVAILABLE. */
int model_choose_devices(struct model *m, const struct model_options *o, struct status *st);
void model_free_devices(struct model *m);

#endif
