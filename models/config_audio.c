/* The smaller files of a model folder: how the audio is prepared, and the card. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "models/config_parts.h"

static int get_int(const cJSON *o, const char *key, int lo, int hi, int *value, const char *where,
                   struct status *st) {
    int64_t v = *value;
    if (config_check_once(o, key, where, st) || json_get_int(o, key, lo, hi, &v, where, st))
        return -1;
    *value = (int)v;
    return 0;
}

static int read_fields(struct config *c, const cJSON *o, const char *where, int stated, struct status *st) {
    const char *type = NULL;
    int feature_size = 1, rate = 0;
    if (config_check_once(o, "feature_extractor_type", where, st) ||
        json_get_string(o, "feature_extractor_type", &type, where, st) ||
        config_check_once(o, "do_normalize", where, st) ||
        json_get_bool(o, "do_normalize", &c->normalize, where, st) ||
        get_int(o, "feature_size", 1, CONFIG_HIDDEN_MAX, &feature_size, where, st) ||
        get_int(o, "sampling_rate", CONFIG_SAMPLING_RATE_MIN, CONFIG_SAMPLING_RATE_MAX, &rate, where, st))
        return -1;
    if (type && strcmp(type, "Wav2Vec2FeatureExtractor") != 0)
        return config_refuse(where, "feature_extractor_type", type, "it must be Wav2Vec2FeatureExtractor",
                             st);
    if (feature_size != 1)
        return config_refuse(where, "feature_size", "more than 1", "the input must be one channel of samples",
                             st);
    if (rate && stated && rate != stated)
        config_warn(c, "%s: sampling_rate is %d, config.json says %d; the former counts", where, rate,
                    stated);
    if (rate)
        c->sampling_rate = rate;
    return 0;
}

int config_read_preprocessor(struct config *c, const char *dir, int stated, struct status *st) {
    static const char *const files[] = {"preprocessor_config.json", "processor_config.json"};
    c->normalize = true;
    c->sampling_rate = stated ? stated : CONFIG_SAMPLING_RATE_DEFAULT;
    for (int i = 0; i < 2; i++) {
        cJSON *root;
        if (config_open_json(c, &root, dir, files[i], st))
            return -1;
        const cJSON *fields = root;
        if (root &&
            i == 1) /* the newer file keeps them one level down, and may be about other things alone */
            fields = cJSON_GetObjectItemCaseSensitive(root, "feature_extractor");
        int rc = 0;
        if (fields && !cJSON_IsObject(fields))
            rc = status_set(st, STATUS_INVALID_ARGUMENT, "%s: feature_extractor is not an object", files[i]);
        else if (fields)
            rc = read_fields(c, fields, files[i], stated, st);
        c->has_preprocessor = fields != NULL;
        cJSON_Delete(root);
        if (rc || c->has_preprocessor)
            return rc;
    }
    config_warn(c, "preprocessor_config.json is missing: do_normalize is taken as true, sampling_rate as %d",
                c->sampling_rate);
    return 0;
}

/* ---- the card ---- */

/* The value of a YAML line "key: value", quotes taken off; NULL when the line is about something else. */
static char *yaml_value(char *line, const char *key) {
    size_t n = strlen(key);
    if (strncmp(line, key, n) != 0 || line[n] != ':')
        return NULL;
    char *value = line + n + 1;
    value += strspn(value, " \t\"'");
    size_t end = strlen(value);
    while (end > 0 && strchr(" \t\r\"'", value[end - 1]))
        value[--end] = 0;
    return value;
}

static void read_front_matter(struct config *c, char *text) {
    char *rest = text;
    for (int number = 0;; number++) {
        char *line = rest, *end = strchr(rest, '\n');
        if (end)
            *end = 0;
        bool is_rule = strncmp(line, "---", 3) == 0 && line[3 + strspn(line + 3, " \t\r")] == 0;
        if (is_rule != (number == 0)) /* it must open with a rule, and ends at the next */
            return;
        const char *value = yaml_value(line, "license");
        if (value && *value) {
            snprintf(c->licence, sizeof c->licence, "%s", value);
            for (char *p = c->licence; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f)
                    *p = '?';
            return;
        }
        if (!end)
            return;
        rest = end + 1;
    }
}

int config_read_licence(struct config *c, const char *dir, struct status *st) {
    char path[CONFIG_PATH_BYTES_MAX], *text;
    size_t bytes;
    if (config_join_path(path, dir, "README.md", st))
        return -1;
    if (file_kind(path) != 1)
        return 0;
    if (file_read(&text, &bytes, path, CONFIG_FILE_BYTES_MAX, "CONFIG_FILE_BYTES_MAX", st))
        return -1;
    read_front_matter(c, text);
    free(text);
    return 0;
}
