#include "base/json.h"

#include <math.h>
#include <string.h>

/* cJSON recurses, so depth is checked before it sees the text. */
static bool depth_is_within(const char *data, size_t bytes, int limit) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = data[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > limit)
                return false;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

int json_parse(cJSON **root, const char *data, size_t bytes, const char *where, struct status *st) {
    *root = NULL;
    if (bytes > JSON_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %zu bytes of JSON are more than the limit of %d",
                          where, bytes, JSON_BYTES_MAX);
    if (!depth_is_within(data, bytes, JSON_DEPTH_MAX))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: JSON is nested deeper than the limit of %d",
                          where, JSON_DEPTH_MAX);
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(data, bytes, &end, 0);
    if (!tree) {
        size_t at = end >= data && end <= data + bytes ? (size_t)(end - data) : 0;
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not valid JSON, at byte %zu", where, at);
    }
    while (end < data + bytes && *end && strchr(" \t\r\n", *end))
        end++;
    if (end != data + bytes) {
        cJSON_Delete(tree);
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not valid JSON: more text after it, at byte %zu",
                          where, (size_t)(end - data));
    }
    *root = tree;
    return 0;
}

static const cJSON *get(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

int json_get_int(const cJSON *object, const char *key, int64_t lo, int64_t hi, int64_t *value,
                 const char *where, struct status *st) {
    const cJSON *item = get(object, key);
    if (!item)
        return 0;
    double d = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(d == floor(d)) || fabs(d) > 9007199254740992.0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not a whole number", where, key);
    if (d < (double)lo || d > (double)hi)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is %.0f, which is not in %lld..%lld", where,
                          key, d, (long long)lo, (long long)hi);
    *value = (int64_t)d;
    return 0;
}

int json_get_double(const cJSON *object, const char *key, double lo, double hi, double *value,
                    const char *where, struct status *st) {
    const cJSON *item = get(object, key);
    if (!item)
        return 0;
    double d = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!isfinite(d))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not a number", where, key);
    if (d < lo || d > hi)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is %g, which is not in %g..%g", where, key, d,
                          lo, hi);
    *value = d;
    return 0;
}

int json_get_bool(const cJSON *object, const char *key, bool *value, const char *where, struct status *st) {
    const cJSON *item = get(object, key);
    if (!item)
        return 0;
    if (!cJSON_IsBool(item))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not true or false", where, key);
    *value = cJSON_IsTrue(item);
    return 0;
}

int json_get_string(const cJSON *object, const char *key, const char **value, const char *where,
                    struct status *st) {
    const cJSON *item = get(object, key);
    if (!item)
        return 0;
    if (!cJSON_IsString(item))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not a string", where, key);
    *value = item->valuestring;
    return 0;
}
