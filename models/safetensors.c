/* The safetensors container: u64 length of a JSON header (little-endian), the header
 * {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..}, then the data. Offsets count
 * from the end of the header. As its specification asks, the data must be covered without overlap and without
 * gaps. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/json.h"
#include "models/builder.h"
#include "models/checkpoint.h"

struct extent {
    uint64_t begin, end;
    const char *name;
};

struct reader {
    struct checkpoint_builder *builder;
    const char *file;
    uint64_t data_offset; /* in the file, of the first byte behind the header */
    struct status *st;
};

/* cJSON keeps numbers as doubles: exact below 2^53, and anything there or above may have been rounded. */
static bool read_integer(const cJSON *item, int64_t *value) {
    if (!cJSON_IsNumber(item))
        return false;
    double d = item->valuedouble;
    if (!(d >= 0 && d < 9007199254740992.0) || d != (double)(int64_t)d)
        return false;
    *value = (int64_t)d;
    return true;
}

static int refuse(const struct reader *r, const char *name, const char *reason) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    return status_set(r->st, STATUS_INVALID_ARGUMENT, "%s: tensor %s: %s", r->file,
                      checkpoint_show(shown, name, strlen(name)), reason);
}

static int read_shape(const struct reader *r, const char *name, const cJSON *array, int *rank,
                      int64_t *shape) {
    *rank = 0;
    if (!cJSON_IsArray(array))
        return refuse(r, name, "shape is missing or not an array");
    for (const cJSON *item = array->child; item; item = item->next) {
        if (*rank == CHECKPOINT_RANK_MAX)
            return status_set(r->st, STATUS_INVALID_ARGUMENT,
                              "%s: tensor %s: more dimensions than the limit of %d", r->file, name,
                              CHECKPOINT_RANK_MAX);
        if (!read_integer(item, &shape[*rank]))
            return refuse(r, name, "shape holds something that is not a whole number from 0 to 2^53 - 1");
        ++*rank;
    }
    return 0;
}

static int read_offsets(const struct reader *r, const char *name, const cJSON *array, struct extent *e) {
    int64_t begin, end;
    if (!cJSON_IsArray(array) || cJSON_GetArraySize(array) != 2)
        return refuse(r, name, "data_offsets is missing or not two numbers");
    if (!read_integer(array->child, &begin) || !read_integer(array->child->next, &end))
        return refuse(r, name, "data_offsets holds something that is not a whole number from 0 to 2^53 - 1");
    if (end < begin)
        return refuse(r, name, "data_offsets end before they begin");
    *e = (struct extent){(uint64_t)begin, (uint64_t)end, name};
    return 0;
}

static int read_tensor(const struct reader *r, const cJSON *item, struct extent *e) {
    const char *name = item->string;
    const cJSON *dtype = NULL, *shape = NULL, *offsets = NULL;
    if (!cJSON_IsObject(item))
        return refuse(r, name, "its entry is not an object");
    for (const cJSON *field = item->child; field; field = field->next) {
        const cJSON **slot = strcmp(field->string, "dtype") == 0          ? &dtype
                             : strcmp(field->string, "shape") == 0        ? &shape
                             : strcmp(field->string, "data_offsets") == 0 ? &offsets
                                                                          : NULL;
        if (slot && *slot)
            return refuse(r, name, "a field of its entry is there twice");
        if (slot)
            *slot = field;
    }
    if (!cJSON_IsString(dtype))
        return refuse(r, name, "dtype is missing or not a string");
    int rank;
    int64_t dims[CHECKPOINT_RANK_MAX];
    if (read_shape(r, name, shape, &rank, dims) || read_offsets(r, name, offsets, e))
        return -1;
    uint64_t at;
    if (!check_add_u64(r->data_offset, e->begin, &at))
        return refuse(r, name, "data_offsets overflow");
    return checkpoint_add(r->builder, name, strlen(name), dtype->valuestring, rank, dims, at,
                          e->end - e->begin, r->st);
}

static int compare_extents(const void *a, const void *b) {
    const struct extent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int check_cover(const struct reader *r, struct extent *extents, size_t count, uint64_t data_bytes) {
    qsort(extents, count, sizeof *extents, compare_extents);
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (extents[i].begin < at)
            return status_set(r->st, STATUS_INVALID_ARGUMENT, "%s: tensors %s and %s overlap", r->file,
                              extents[i - 1].name, extents[i].name);
        if (extents[i].begin > at)
            return status_set(r->st, STATUS_INVALID_ARGUMENT, "%s: a gap of %llu bytes before tensor %s",
                              r->file, (unsigned long long)(extents[i].begin - at), extents[i].name);
        at = extents[i].end;
    }
    if (at != data_bytes)
        return status_set(r->st, STATUS_INVALID_ARGUMENT,
                          "%s: %llu bytes after the last tensor belong to none", r->file,
                          (unsigned long long)(data_bytes - at));
    return 0;
}

static int read_header(const struct reader *r, const cJSON *root, uint64_t data_bytes) {
    if (!cJSON_IsObject(root))
        return status_set(r->st, STATUS_INVALID_ARGUMENT, "%s: the header is not a JSON object", r->file);
    size_t limit = 0, count = 0;
    for (const cJSON *item = root->child; item; item = item->next)
        limit++;
    struct extent *extents = malloc((limit + 1) * sizeof *extents);
    if (!extents)
        return status_set_no_memory(r->st, (limit + 1) * sizeof *extents, "the header's table");
    int rc = 0;
    for (const cJSON *item = root->child; item && !rc; item = item->next)
        if (strcmp(item->string, "__metadata__") != 0)
            rc = read_tensor(r, item, &extents[count++]);
    if (!rc)
        rc = check_cover(r, extents, count, data_bytes);
    free(extents);
    return rc;
}

int safetensors_read(struct checkpoint_builder *b, const struct file_map *m, const char *file,
                     struct status *st) {
    uint64_t header_bytes = 0;
    if (m->bytes < 8)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %llu bytes are too short for a safetensors file",
                          file, (unsigned long long)m->bytes);
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | m->data[i];
    if (header_bytes > JSON_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: a header of %llu bytes is more than the limit of %d", file,
                          (unsigned long long)header_bytes, JSON_BYTES_MAX);
    if (header_bytes > m->bytes - 8)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: the header of %llu bytes ends beyond the end of the file (truncated?)", file,
                          (unsigned long long)header_bytes);
    const char *header = (const char *)m->data + 8;
    cJSON *root;
    if (checkpoint_check_json(header, header_bytes, file, st) ||
        json_parse(&root, header, header_bytes, file, st))
        return -1;
    struct reader r = {.builder = b, .file = file, .data_offset = 8 + header_bytes, .st = st};
    int rc = read_header(&r, root, m->bytes - r.data_offset);
    cJSON_Delete(root);
    return rc;
}
