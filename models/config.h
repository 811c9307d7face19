/* config: what config.json and preprocessor_config.json (or processor_config.json) say, with their defaults.
 *
 * Every field that changes the output is read and checked; a value this program cannot compute exactly is
 * refused by name. Fields that do not change the output (dropout, masking in training, CTC, ...) are ignored.
 * Source of the defaults: Wav2Vec2Config and HubertConfig of transformers 4.57. */
#ifndef TIMBRE_MODELS_CONFIG_H
#define TIMBRE_MODELS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/kernels.h"

enum {
    CONFIG_HIDDEN_MAX = 8192,
    CONFIG_LAYERS_MAX = 128,
    CONFIG_LABELS_MAX = 4096,
    CONFIG_LABEL_BYTES_MAX = 256,
    CONFIG_WARNINGS_MAX = 32,
    CONFIG_FILE_BYTES_MAX = 8 << 20,
    CONFIG_SAMPLING_RATE_MIN = 4000,
    CONFIG_SAMPLING_RATE_MAX = 192000,
    CONFIG_SAMPLING_RATE_DEFAULT = 16000,
};

enum config_family { CONFIG_WAV2VEC2, CONFIG_HUBERT, CONFIG_UNISPEECH, CONFIG_UNISPEECH_SAT };

/* What turns logits into scores. */
enum config_output { CONFIG_OUTPUT_SOFTMAX, CONFIG_OUTPUT_SIGMOID, CONFIG_OUTPUT_NONE };

struct config {
    enum config_family family; /* from model_type */
    int hidden, layers, heads, intermediate;
    enum kernels_activation hidden_act, conv_act; /* hidden_act, feat_extract_activation */
    float layer_norm_eps;
    bool conv_layer_norm; /* feat_extract_norm: "layer" (true) or "group" */
    bool conv_bias;
    struct batch_shape conv; /* conv_kernel, conv_stride */
    int conv_dim[BATCH_LEVELS_MAX];
    int pos_conv_kernel, pos_conv_groups; /* num_conv_pos_embeddings, num_conv_pos_embedding_groups */
    bool pos_conv_batch_norm;             /* HuBERT conv_pos_batch_norm */
    bool stable_layer_norm;               /* do_stable_layer_norm: pre-LN */
    bool feature_projection_norm;         /* HuBERT feat_proj_layer_norm; else true */
    bool weighted_layer_sum;              /* use_weighted_layer_sum */
    enum kernels_pool pooling;            /* pooling_mode of head b; mean where it is not said */
    char problem_type[48];                /* "" when the file has none */
    bool regression, multi_label;         /* from problem_type */

    char *labels[CONFIG_LABELS_MAX]; /* id2label by index; NULL where there is none; owned */
    int labels_count;                /* highest index + 1; 0: no id2label */

    int sampling_rate;
    bool normalize;                      /* do_normalize */
    bool has_preprocessor;               /* one of the preprocessor files was there */
    char licence[64];                    /* from the YAML block of README.md; "" when there is none */
    char *warnings[CONFIG_WARNINGS_MAX]; /* owned; for the load report */
    int warnings_count;
    char *files[4]; /* names of the files read, for the digest; owned */
    int files_count;
};

/* Reads the folder's files. Errors: NOT_FOUND (no config.json), INVALID_ARGUMENT (not JSON, wrong type, out
 * of range: file and field named), FAILED_PRECONDITION (a value this program cannot run exactly: file, field,
 * value named). On failure nothing is left to free. */
int config_init(struct config *c, const char *dir, struct status *st);
void config_free(struct config *c);

/* Keeps a warning for the load report; silently drops what is over CONFIG_WARNINGS_MAX. */
void config_warn(struct config *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Replaces the labels by those of a file: one a line, or a JSON array of strings, or a JSON object
 * {"0": "angry", ...}. Errors: NOT_FOUND, INVALID_ARGUMENT. */
int config_read_labels(struct config *c, const char *path, struct status *st);

const char *config_family_name(enum config_family f); /* "wav2vec2", "hubert", "unispeech", "unispeech-sat" */

#endif
