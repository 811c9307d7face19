#include "models/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "models/builder.h"
#include "models/config_parts.h"

enum {
    INTERMEDIATE_MAX = 4 * CONFIG_HIDDEN_MAX,
    KERNEL_MAX = 1024,
    STRIDES_PRODUCT_MAX = 1 << 16, /* samples in one token: four seconds of 16 kHz */
};

static const char where[] = "config.json";

/* ---- helpers ---- */

void config_warn(struct config *c, const char *format, ...) {
    if (c->warnings_count == CONFIG_WARNINGS_MAX)
        return;
    char text[STATUS_MESSAGE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    char *copy = malloc(strlen(text) + 1);
    if (copy)
        c->warnings[c->warnings_count++] = strcpy(copy, text);
}

int config_join_path(char *path, const char *dir, const char *file, struct status *st) {
    int n = snprintf(path, CONFIG_PATH_BYTES_MAX, "%s/%s", dir, file);
    if (n < 0 || n >= CONFIG_PATH_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a path of %d bytes is more than the limit of %d", n,
                          CONFIG_PATH_BYTES_MAX);
    return 0;
}

int config_open_json(struct config *c, cJSON **root, const char *dir, const char *file, struct status *st) {
    *root = NULL;
    char path[CONFIG_PATH_BYTES_MAX], *data;
    size_t bytes;
    if (config_join_path(path, dir, file, st))
        return -1;
    if (file_kind(path) == 0)
        return 0;
    if (file_read(&data, &bytes, path, CONFIG_FILE_BYTES_MAX, "CONFIG_FILE_BYTES_MAX", st))
        return -1;
    int rc = checkpoint_check_json(data, bytes, file, st);
    if (!rc)
        rc = json_parse(root, data, bytes, file, st);
    free(data);
    if (!rc && !cJSON_IsObject(*root))
        rc = status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a JSON object", file);
    if (!rc) {
        char *name = malloc(strlen(file) + 1);
        if (name)
            c->files[c->files_count++] = strcpy(name, file);
        else
            rc = status_set_no_memory(st, strlen(file) + 1, "a file's name");
    }
    if (rc) {
        cJSON_Delete(*root);
        *root = NULL;
    }
    return rc;
}

int config_check_once(const cJSON *object, const char *key, const char *file, struct status *st) {
    int count = 0;
    for (const cJSON *item = object->child; item; item = item->next)
        count += strcmp(item->string, key) == 0;
    return count > 1 ? status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is there twice", file, key) : 0;
}

int config_refuse(const char *file, const char *key, const char *value, const char *reason,
                  struct status *st) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    return status_set(st, STATUS_FAILED_PRECONDITION, "%s: %s: %s is not supported%s%s", file, key,
                      checkpoint_show(shown, value, strlen(value)), *reason ? ": " : "", reason);
}

static bool is_set(const cJSON *root, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    return item && !cJSON_IsNull(item);
}

static int get_int(const cJSON *root, const char *key, int lo, int hi, int *value, struct status *st) {
    int64_t v = *value;
    if (config_check_once(root, key, where, st) || json_get_int(root, key, lo, hi, &v, where, st))
        return -1;
    *value = (int)v;
    return 0;
}

static int get_bool(const cJSON *root, const char *key, bool *value, struct status *st) {
    return config_check_once(root, key, where, st) || json_get_bool(root, key, value, where, st) ? -1 : 0;
}

static int get_string(const cJSON *root, const char *key, const char **value, struct status *st) {
    return config_check_once(root, key, where, st) || json_get_string(root, key, value, where, st) ? -1 : 0;
}

/* ---- fields ---- */

static const struct {
    const char *name;
    enum config_family family;
} families[] = {{"wav2vec2", CONFIG_WAV2VEC2},
                {"hubert", CONFIG_HUBERT},
                {"unispeech", CONFIG_UNISPEECH},
                {"unispeech-sat", CONFIG_UNISPEECH_SAT}};

const char *config_family_name(enum config_family f) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (families[i].family == f)
            return families[i].name;
    return "";
}

static int read_family(struct config *c, const cJSON *root, struct status *st) {
    const char *name = NULL;
    if (get_string(root, "model_type", &name, st))
        return -1;
    if (!name)
        return status_set(st, STATUS_FAILED_PRECONDITION, "%s: model_type is missing", where);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].name, name) == 0) {
            c->family = families[i].family;
            return 0;
        }
    return config_refuse(where, "model_type", name,
                         "this program runs wav2vec2, hubert, unispeech and unispeech-sat", st);
}

static int read_activation(const cJSON *root, const char *key, enum kernels_activation *value,
                           struct status *st) {
    static const struct {
        const char *name;
        enum kernels_activation activation;
    } known[] = {{"gelu", KERNELS_GELU},          {"gelu_python", KERNELS_GELU},
                 {"gelu_new", KERNELS_GELU_TANH}, {"gelu_fast", KERNELS_GELU_TANH},
                 {"relu", KERNELS_RELU},          {"gelu_pytorch_tanh", KERNELS_GELU_TANH},
                 {"silu", KERNELS_SILU},          {"swish", KERNELS_SILU}};
    const char *name = "gelu";
    if (get_string(root, key, &name, st))
        return -1;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) {
            *value = known[i].activation;
            return 0;
        }
    return config_refuse(where, key, name, "", st);
}

static int read_sizes(struct config *c, const cJSON *root, struct status *st) {
    double eps = 1e-5;
    c->hidden = 768;
    c->layers = c->heads = 12;
    c->intermediate = 3072;
    if (get_int(root, "hidden_size", 1, CONFIG_HIDDEN_MAX, &c->hidden, st) ||
        get_int(root, "num_hidden_layers", 1, CONFIG_LAYERS_MAX, &c->layers, st) ||
        get_int(root, "num_attention_heads", 1, CONFIG_HIDDEN_MAX, &c->heads, st) ||
        get_int(root, "intermediate_size", 1, INTERMEDIATE_MAX, &c->intermediate, st) ||
        config_check_once(root, "layer_norm_eps", where, st) ||
        json_get_double(root, "layer_norm_eps", 1e-20, 1, &eps, where, st))
        return -1;
    c->layer_norm_eps = (float)eps;
    if (c->hidden % c->heads != 0)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: hidden_size %d is not a multiple of num_attention_heads %d", where, c->hidden,
                          c->heads);
    return 0;
}

/* A list of whole numbers, 1..hi each. Absent or null: *count and values stay. */
static int get_list(const cJSON *root, const char *key, int hi, int *count, int *values, struct status *st) {
    if (config_check_once(root, key, where, st))
        return -1;
    if (!is_set(root, key))
        return 0;
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(root, key);
    if (!cJSON_IsArray(array))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not a list", where, key);
    int n = 0;
    for (const cJSON *item = array->child; item; item = item->next, n++) {
        if (n == BATCH_LEVELS_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s has more entries than the limit of %d",
                              where, key, BATCH_LEVELS_MAX);
        double d = cJSON_IsNumber(item) ? item->valuedouble : 0;
        if (!(d >= 1 && d <= hi) || d != (double)(int)d)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "%s: %s holds something that is not a whole number in 1..%d", where, key, hi);
        values[n] = (int)d;
    }
    if (n == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is empty", where, key);
    *count = n;
    return 0;
}

static int read_convolutions(struct config *c, const cJSON *root, struct status *st) {
    static const int kernel[] = {10, 3, 3, 3, 3, 2, 2}, stride[] = {5, 2, 2, 2, 2, 2, 2};
    int dims = 7, kernels = 7, strides = 7;
    for (int i = 0; i < 7; i++) {
        c->conv_dim[i] = 512;
        c->conv.kernel[i] = kernel[i];
        c->conv.stride[i] = stride[i];
    }
    if (get_list(root, "conv_dim", CONFIG_HIDDEN_MAX, &dims, c->conv_dim, st) ||
        get_list(root, "conv_kernel", KERNEL_MAX, &kernels, c->conv.kernel, st) ||
        get_list(root, "conv_stride", KERNEL_MAX, &strides, c->conv.stride, st))
        return -1;
    if (dims != kernels || dims != strides)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: conv_dim, conv_kernel and conv_stride have %d, %d and %d entries", where, dims,
                          kernels, strides);
    c->conv.levels = dims;
    int64_t product = 1;
    for (int i = 0; i < strides; i++) {
        product *= c->conv.stride[i];
        if (product > STRIDES_PRODUCT_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "%s: conv_stride: its product is more than the limit of %d", where,
                              STRIDES_PRODUCT_MAX);
    }
    const cJSON *count = cJSON_GetObjectItemCaseSensitive(root, "num_feat_extract_layers");
    if (cJSON_IsNumber(count) && count->valuedouble != dims)
        config_warn(c, "%s: num_feat_extract_layers is %g, but conv_dim has %d entries, which counts", where,
                    count->valuedouble, dims);
    return 0;
}

static int read_norms(struct config *c, const cJSON *root, struct status *st) {
    const char *norm = "group";
    if (get_string(root, "feat_extract_norm", &norm, st) || get_bool(root, "conv_bias", &c->conv_bias, st) ||
        get_bool(root, "do_stable_layer_norm", &c->stable_layer_norm, st) ||
        get_bool(root, "use_weighted_layer_sum", &c->weighted_layer_sum, st))
        return -1;
    if (strcmp(norm, "group") != 0 && strcmp(norm, "layer") != 0)
        return config_refuse(where, "feat_extract_norm", norm, "it must be group or layer", st);
    c->conv_layer_norm = strcmp(norm, "layer") == 0;
    c->feature_projection_norm = true;
    if (c->family != CONFIG_HUBERT)
        return 0; /* the other families do not read these two */
    if (get_bool(root, "feat_proj_layer_norm", &c->feature_projection_norm, st) ||
        get_bool(root, "conv_pos_batch_norm", &c->pos_conv_batch_norm, st))
        return -1;
    return 0;
}

static int read_positions(struct config *c, const cJSON *root, struct status *st) {
    c->pos_conv_kernel = 128;
    c->pos_conv_groups = 16;
    if (get_int(root, "num_conv_pos_embeddings", 1, KERNEL_MAX, &c->pos_conv_kernel, st) ||
        get_int(root, "num_conv_pos_embedding_groups", 1, CONFIG_HIDDEN_MAX, &c->pos_conv_groups, st))
        return -1;
    if (c->hidden % c->pos_conv_groups != 0)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: hidden_size %d is not a multiple of num_conv_pos_embedding_groups %d", where,
                          c->hidden, c->pos_conv_groups);
    return 0;
}

/* Fields whose mere presence means another forward pass. */
static int read_refused(const cJSON *root, struct status *st) {
    bool add_adapter = false;
    if (get_bool(root, "add_adapter", &add_adapter, st))
        return -1;
    if (add_adapter)
        return config_refuse(where, "add_adapter", "true", "adapter layers are not run", st);
    if (is_set(root, "adapter_attn_dim"))
        return config_refuse(where, "adapter_attn_dim", "a value", "attention adapters are not run", st);
    if (is_set(root, "quantization_config"))
        return config_refuse(where, "quantization_config", "a value", "weights must be F32, F16 or BF16", st);
    return 0;
}

static int read_head(struct config *c, const cJSON *root, struct status *st) {
    const char *pooling = "mean", *problem = "";
    if (get_string(root, "pooling_mode", &pooling, st) || get_string(root, "problem_type", &problem, st))
        return -1;
    if (strcmp(pooling, "mean") == 0)
        c->pooling = KERNELS_POOL_MEAN;
    else if (strcmp(pooling, "sum") == 0)
        c->pooling = KERNELS_POOL_SUM;
    else if (strcmp(pooling, "max") == 0)
        c->pooling = KERNELS_POOL_MAX;
    else
        return config_refuse(where, "pooling_mode", pooling, "it must be mean, sum or max", st);
    c->regression = strcmp(problem, "regression") == 0;
    c->multi_label = strcmp(problem, "multi_label_classification") == 0;
    if (*problem && !c->regression && !c->multi_label && strcmp(problem, "single_label_classification") != 0)
        return config_refuse(where, "problem_type", problem, "", st);
    snprintf(c->problem_type, sizeof c->problem_type, "%s", problem);
    if (config_check_once(root, "id2label", where, st))
        return -1;
    return is_set(root, "id2label")
               ? config_read_label_map(c, cJSON_GetObjectItemCaseSensitive(root, "id2label"), "id2label",
                                       where, st)
               : 0;
}

static int read_config(struct config *c, const cJSON *root, struct status *st) {
    if (read_family(c, root, st) || read_refused(root, st) || read_sizes(c, root, st) ||
        read_activation(root, "hidden_act", &c->hidden_act, st) ||
        read_activation(root, "feat_extract_activation", &c->conv_act, st) ||
        read_convolutions(c, root, st) || read_norms(c, root, st) || read_positions(c, root, st) ||
        read_head(c, root, st))
        return -1;
    return 0;
}

int config_init(struct config *c, const char *dir, struct status *st) {
    *c = (struct config){0};
    cJSON *root;
    int rate = 0;
    if (config_open_json(c, &root, dir, where, st))
        goto fail;
    if (!root) {
        status_set(st, STATUS_NOT_FOUND, "%s: no config.json", dir);
        goto fail;
    }
    int rc = read_config(c, root, st);
    if (!rc)
        rc = get_int(root, "sampling_rate", CONFIG_SAMPLING_RATE_MIN, CONFIG_SAMPLING_RATE_MAX, &rate, st);
    cJSON_Delete(root);
    if (rc || config_read_preprocessor(c, dir, rate, st) || config_read_licence(c, dir, st))
        goto fail;
    return 0;
fail:
    config_free(c);
    return -1;
}

void config_free(struct config *c) {
    config_free_labels(c);
    for (int i = 0; i < c->warnings_count; i++)
        free(c->warnings[i]);
    for (int i = 0; i < c->files_count; i++)
        free(c->files[i]);
    *c = (struct config){0};
}
