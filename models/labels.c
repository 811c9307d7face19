/* Labels: id2label of config.json, and files that replace it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "models/builder.h"
#include "models/config_parts.h"

void config_free_labels(struct config *c) {
    for (int i = 0; i < c->labels_count; i++)
        free(c->labels[i]);
    memset(c->labels, 0, sizeof c->labels);
    c->labels_count = 0;
}

/* Stores a copy of `text` as label `index`. */
static int set_label(struct config *c, int64_t index, const char *text, size_t bytes, const char *where,
                     struct status *st) {
    if (index >= CONFIG_LABELS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld is over the limit of %d labels", where,
                          (long long)index, CONFIG_LABELS_MAX);
    if (bytes >= CONFIG_LABEL_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld is longer than the limit of %d bytes",
                          where, (long long)index, CONFIG_LABEL_BYTES_MAX - 1);
    if (bytes == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld is empty", where, (long long)index);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld holds a control character", where,
                              (long long)index);
    if (c->labels[index])
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld is there twice", where,
                          (long long)index);
    char *copy = malloc(bytes + 1);
    if (!copy)
        return status_set_no_memory(st, bytes + 1, "a label");
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    c->labels[index] = copy;
    if (c->labels_count <= index)
        c->labels_count = (int)index + 1;
    return 0;
}

/* A label's value: a string, or a whole number, which older exports write. */
static int set_label_json(struct config *c, int64_t index, const cJSON *item, const char *where,
                          struct status *st) {
    char number[32];
    if (cJSON_IsString(item))
        return set_label(c, index, item->valuestring, strlen(item->valuestring), where, st);
    if (cJSON_IsNumber(item) && item->valuedouble > -1e15 && item->valuedouble < 1e15 &&
        item->valuedouble == (double)(int64_t)item->valuedouble) {
        int n = snprintf(number, sizeof number, "%lld", (long long)item->valuedouble);
        return set_label(c, index, number, (size_t)n, where, st);
    }
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s: label %lld is neither a string nor a whole number",
                      where, (long long)index);
}

/* "0", "12": digits alone, without leading zeros; -1 for anything else. */
static int64_t parse_index(const char *key) {
    size_t n = strlen(key);
    if (n == 0 || n > 9 || (n > 1 && key[0] == '0') || strspn(key, "0123456789") != n)
        return -1;
    return strtol(key, NULL, 10);
}

int config_read_label_map(struct config *c, const cJSON *object, const char *key, const char *where,
                          struct status *st) {
    if (!cJSON_IsObject(object))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not an object", where, key);
    char place[CONFIG_PATH_BYTES_MAX + 32];
    snprintf(place, sizeof place, "%s: %s", where, key);
    for (const cJSON *item = object->child; item; item = item->next) {
        char shown[CHECKPOINT_SHOWN_BYTES];
        int64_t index = parse_index(item->string);
        if (index < 0)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: \"%s\" is not the number of a label", place,
                              checkpoint_show(shown, item->string, strlen(item->string)));
        if (set_label_json(c, index, item, place, st))
            return -1;
    }
    return 0;
}

static int read_json(struct config *c, const char *data, size_t bytes, const char *where, struct status *st) {
    cJSON *root;
    if (checkpoint_check_json(data, bytes, where, st) || json_parse(&root, data, bytes, where, st))
        return -1;
    int rc = 0;
    int64_t index = 0;
    if (cJSON_IsObject(root))
        rc = config_read_label_map(c, root, "labels", where, st);
    else
        for (const cJSON *item = root->child; item && !rc; item = item->next)
            rc = set_label_json(c, index++, item, where, st);
    cJSON_Delete(root);
    return rc;
}

static int read_lines(struct config *c, const char *data, const char *where, struct status *st) {
    const char *end = data + strlen(data);
    while (end > data && strchr(" \t\r\n", end[-1]))
        end--;
    int64_t index = 0;
    for (const char *line = data; line < end; index++) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const char *next = stop ? stop + 1 : end;
        if (!stop)
            stop = end;
        while (stop > line && strchr(" \t\r", stop[-1]))
            stop--;
        if (set_label(c, index, line, (size_t)(stop - line), where, st))
            return -1;
        line = next;
    }
    return 0;
}

/* Moves the labels and their count from one struct to another. */
static void move_labels(struct config *to, struct config *from) {
    memcpy(to->labels, from->labels, sizeof to->labels);
    to->labels_count = from->labels_count;
    memset(from->labels, 0, sizeof from->labels);
    from->labels_count = 0;
}

int config_read_labels(struct config *c, const char *path, struct status *st) {
    char *data;
    size_t bytes;
    if (file_read(&data, &bytes, path, CONFIG_FILE_BYTES_MAX, "CONFIG_FILE_BYTES_MAX", st))
        return -1;
    struct config *read = calloc(1, sizeof *read); /* the old labels stay if this fails half-way */
    if (!read) {
        free(data);
        return status_set_no_memory(st, sizeof *read, "labels");
    }
    const char *start = data;
    if (bytes >= 3 && memcmp(start, "\xef\xbb\xbf", 3) == 0)
        start += 3; /* a byte order mark */
    size_t rest = bytes - (size_t)(start - data), space = strspn(start, " \t\r\n");
    int rc;
    if (strlen(start) != rest)
        rc = status_set(st, STATUS_INVALID_ARGUMENT, "%s: holds a zero byte, so it is not text", path);
    else if (start[space] == '[' || start[space] == '{')
        rc = read_json(read, start + space, rest - space, path, st);
    else
        rc = read_lines(read, start, path, st);
    if (!rc && read->labels_count == 0)
        rc = status_set(st, STATUS_INVALID_ARGUMENT, "%s: holds no labels", path);
    if (!rc) {
        config_free_labels(c);
        move_labels(c, read);
    }
    config_free_labels(read);
    free(read);
    free(data);
    return rc;
}
