#include "models/checkpoint.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/json.h"
#include "models/builder.h"

enum {
    CHECKPOINT_PATH_BYTES_MAX = 4096,
    CHECKPOINT_INDEX_BYTES_MAX = 16 << 20,
    CHECKPOINT_FILE_NAME_BYTES_MAX = 256,
};

typedef int (*container_reader)(struct checkpoint_builder *b, const struct file_map *m, const char *file,
                                struct status *st);

/* Every dtype whose size is known. Only the first three can be weights. */
static const struct {
    const char *name;
    enum tensor_dtype dtype;
    unsigned bytes;
} dtypes[] = {
    {"F32", TENSOR_F32, 4},    {"F16", TENSOR_F16, 2},       {"BF16", TENSOR_BF16, 2},
    {"F64", TENSOR_OTHER, 8},  {"I64", TENSOR_OTHER, 8},     {"I32", TENSOR_OTHER, 4},
    {"I16", TENSOR_OTHER, 2},  {"I8", TENSOR_OTHER, 1},      {"U64", TENSOR_OTHER, 8},
    {"U32", TENSOR_OTHER, 4},  {"U16", TENSOR_OTHER, 2},     {"U8", TENSOR_OTHER, 1},
    {"BOOL", TENSOR_OTHER, 1}, {"F8_E4M3", TENSOR_OTHER, 1}, {"F8_E5M2", TENSOR_OTHER, 1},
    {"C64", TENSOR_OTHER, 8},
};

const char *checkpoint_show(char *to, const char *text, size_t bytes) {
    size_t n = bytes < CHECKPOINT_SHOWN_BYTES - 1 ? bytes : CHECKPOINT_SHOWN_BYTES - 1;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        to[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    to[n] = 0;
    return to;
}

int checkpoint_check_json(const char *data, size_t bytes, const char *where, struct status *st) {
    size_t values = 1;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = data[i];
        if (c == '"') {
            in_string = !in_string;
        } else if (in_string && c == '\\') {
            if (bytes - i >= 6 && memcmp(data + i, "\\u0000", 6) == 0)
                return status_set(st, STATUS_INVALID_ARGUMENT, "%s: a zero byte within a name, at byte %zu",
                                  where, i);
            i++;
        } else if (!in_string && (c == ',' || c == '[' || c == '{')) {
            values++;
        }
    }
    if (values > CHECKPOINT_JSON_VALUES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %zu JSON values are more than the limit of %d",
                          where, values, CHECKPOINT_JSON_VALUES_MAX);
    return 0;
}

/* ---- the table of tensors ---- */

static int check_name(const char *name, size_t bytes, const char *file, struct status *st) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    if (bytes == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: a tensor without a name", file);
    if (bytes >= CHECKPOINT_NAME_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: tensor %s...: a name of %zu bytes, the limit is %d", file,
                          checkpoint_show(shown, name, bytes), bytes, CHECKPOINT_NAME_BYTES_MAX - 1);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: tensor %s: a control character in its name",
                              file, checkpoint_show(shown, name, bytes));
    return 0;
}

/* Elements and bytes that the shape needs, as t->elements and *bytes. */
static bool shape_bytes(struct tensor *t, int rank, const int64_t *shape, unsigned size, uint64_t *bytes) {
    uint64_t elements = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || !check_mul_u64(elements, (uint64_t)shape[i], &elements))
            return false;
        t->shape[i] = shape[i];
    }
    t->rank = rank;
    t->elements = (int64_t)elements;
    return elements <= INT64_MAX && check_mul_u64(elements, size, bytes);
}

static int grow_tensors(struct checkpoint_builder *b, const char *file, struct status *st) {
    struct checkpoint *c = b->checkpoint;
    if (c->tensors_count < b->capacity)
        return 0;
    if (c->tensors_count >= CHECKPOINT_TENSORS_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%s: more tensors than the limit of %d", file,
                          CHECKPOINT_TENSORS_MAX);
    int capacity = b->capacity ? b->capacity * 2 : 64;
    struct tensor *bigger = realloc(c->tensors, (size_t)capacity * sizeof *bigger);
    if (!bigger)
        return status_set_no_memory(st, (size_t)capacity * sizeof *bigger, "the table of tensors");
    c->tensors = bigger;
    b->capacity = capacity;
    return 0;
}

int checkpoint_add(struct checkpoint_builder *b, const char *name, size_t name_bytes, const char *dtype_name,
                   int rank, const int64_t *shape, uint64_t offset, uint64_t bytes, struct status *st) {
    struct checkpoint *c = b->checkpoint;
    const struct checkpoint_file *f = &c->files[b->file];
    char shown[CHECKPOINT_SHOWN_BYTES];
    if (check_name(name, name_bytes, f->name, st))
        return -1;
    int n = (int)name_bytes;
    size_t d = 0;
    while (d < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[d].name, dtype_name) != 0)
        d++;
    if (d == sizeof dtypes / sizeof *dtypes)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: tensor %.*s: unknown dtype %s", f->name, n, name,
                          checkpoint_show(shown, dtype_name, strlen(dtype_name)));
    if (rank < 0 || rank > CHECKPOINT_RANK_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: tensor %.*s: %d dimensions, the limit is %d",
                          f->name, n, name, rank, CHECKPOINT_RANK_MAX);
    struct tensor t = {.dtype = dtypes[d].dtype, .bytes = bytes, .file = b->file};
    memcpy(t.dtype_name, dtypes[d].name, strlen(dtypes[d].name) + 1);
    uint64_t needed;
    if (!shape_bytes(&t, rank, shape, dtypes[d].bytes, &needed))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: tensor %.*s: its shape overflows or is negative",
                          f->name, n, name);
    if (needed != bytes)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: tensor %.*s: %llu bytes of data, shape and dtype need %llu", f->name, n, name,
                          (unsigned long long)bytes, (unsigned long long)needed);
    if (!check_range_u64(offset, bytes, f->map.bytes))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: tensor %.*s: its data ends beyond the end of the file (truncated?)", f->name,
                          n, name);
    if (grow_tensors(b, f->name, st))
        return -1;
    char *copy = malloc(name_bytes + 1);
    if (!copy)
        return status_set_no_memory(st, name_bytes + 1, "a tensor's name");
    memcpy(copy, name, name_bytes);
    copy[name_bytes] = 0;
    t.name = copy;
    t.data = f->map.data + offset;
    c->tensors[c->tensors_count++] = t;
    return 0;
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int checkpoint_sort(struct checkpoint *c, struct status *st) {
    if (c->tensors_count)
        qsort(c->tensors, (size_t)c->tensors_count, sizeof *c->tensors, compare_tensors);
    for (int i = 1; i < c->tensors_count; i++) {
        const struct tensor *t = &c->tensors[i], *u = t - 1;
        if (strcmp(t->name, u->name) != 0)
            continue;
        if (t->file == u->file)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: tensor %s is there twice (duplicate)",
                              c->files[t->file].name, t->name);
        return status_set(st, STATUS_INVALID_ARGUMENT, "tensor %s is a duplicate: both %s and %s hold it",
                          t->name, c->files[u->file].name, c->files[t->file].name);
    }
    return 0;
}

struct tensor *checkpoint_find(const struct checkpoint *c, const char *name) {
    struct tensor key = {.name = name};
    return c->tensors_count
               ? bsearch(&key, c->tensors, (size_t)c->tensors_count, sizeof *c->tensors, compare_tensors)
               : NULL;
}

void checkpoint_free_tensors(struct checkpoint *c) {
    for (int i = 0; i < c->tensors_count; i++)
        free((char *)(uintptr_t)c->tensors[i].name);
    free(c->tensors);
    c->tensors = NULL;
    c->tensors_count = 0;
}

void checkpoint_release(const struct checkpoint *c, const struct tensor *t) {
    const struct file_map *m = &c->files[t->file].map;
    if (t->bytes)
        file_map_release(m, (uint64_t)(t->data - m->data), t->bytes);
}

/* ---- reading ----
 *
 * These loops see every byte of a checkpoint once, so they are written to be vectorised: no branch, no early
 * exit, and a test for NaN and infinity that only ORs integers. */

enum { BLOCK = 4096 }; /* elements; copied and tested while they are in the first cache */

/* Adding one to the exponent carries into the sign bit exactly when the exponent is all ones, that is for NaN
 * and the infinities. Two floats at a time: the lower one cannot carry into the upper one. */
static const uint64_t exponents = 0x7f8000007f800000, ones = 0x0080000000800000, signs = 0x8000000080000000;

static uint64_t load_u64(const unsigned char *p) {
    uint64_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

static bool is_finite_f32(const unsigned char *p, int64_t n) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8, p += 32) {
        a |= (load_u64(p) & exponents) + ones;
        b |= (load_u64(p + 8) & exponents) + ones;
        c |= (load_u64(p + 16) & exponents) + ones;
        d |= (load_u64(p + 24) & exponents) + ones;
    }
    for (; i < n; i++, p += 4) {
        uint32_t u;
        memcpy(&u, p, sizeof u);
        a |= (u & exponents) + ones;
    }
    return !((a | b | c | d) & signs);
}

/* IEEE 754 binary16 to binary32. A subnormal m * 2^-24 is put together as 2^-14 + m * 2^-24, which is exact,
 * and 2^-14 taken off again: no subnormal arithmetic on the way, whatever the processor's flush modes. */
static bool widen_f16(float *restrict to, const unsigned char *restrict from, int64_t n) {
    const float smallest = 0x1p-14f;
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, sizeof h);
        uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, exponent = h & 0x7c00u;
        uint32_t special = exponent == 0x7c00u ? UINT32_MAX : 0, subnormal = exponent == 0 ? UINT32_MAX : 0;
        uint32_t normal_bits = magnitude + (112u << 23) + (special & (112u << 23));
        uint32_t low_bits = magnitude + (113u << 23);
        float low;
        memcpy(&low, &low_bits, sizeof low);
        low -= smallest;
        memcpy(&low_bits, &low, sizeof low);
        uint32_t bits = (low_bits & subnormal) | (normal_bits & ~subnormal) | (uint32_t)(h & 0x8000) << 16;
        memcpy(to + i, &bits, sizeof bits);
        bad |= special;
    }
    return !bad;
}

/* A bfloat16 is the upper half of a binary32. */
static bool widen_bf16(float *restrict to, const unsigned char *restrict from, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, sizeof h);
        uint32_t bits = (uint32_t)h << 16;
        memcpy(to + i, &bits, sizeof bits);
        bad |= (bits & 0x7f800000u) + 0x00800000u;
    }
    return !(bad >> 31);
}

bool tensor_read_f32(const struct tensor *t, float *to) {
    bool finite = true;
    const unsigned char *p = t->data;
    for (int64_t i = 0; i < t->elements; i += BLOCK) {
        int64_t n = t->elements - i < BLOCK ? t->elements - i : BLOCK;
        if (t->dtype == TENSOR_F32) {
            memcpy(to + i, p + 4 * i, (size_t)n * 4);
            finite &= is_finite_f32((const unsigned char *)(to + i), n);
        } else if (t->dtype == TENSOR_F16) {
            finite &= widen_f16(to + i, p + 2 * i, n);
        } else if (t->dtype == TENSOR_BF16) {
            finite &= widen_bf16(to + i, p + 2 * i, n);
        }
    }
    return finite;
}

bool tensor_is_finite_f32(const struct tensor *t) {
    return t->dtype == TENSOR_F32 && is_finite_f32(t->data, t->elements);
}

/* ---- files ---- */

static int join_path(char *path, const char *dir, const char *name, struct status *st) {
    int n = snprintf(path, CHECKPOINT_PATH_BYTES_MAX, "%s/%s", dir, name);
    if (n < 0 || n >= CHECKPOINT_PATH_BYTES_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a path of %d bytes is more than the limit of %d", n,
                          CHECKPOINT_PATH_BYTES_MAX);
    return 0;
}

/* A clone without Git LFS holds short text files in the place of the weights. */
static bool is_lfs_pointer(const struct file_map *m) {
    static const char start[] = "version https://git-lfs";
    return m->bytes >= sizeof start - 1 && memcmp(m->data, start, sizeof start - 1) == 0;
}

/* Maps `name` as the next file and reads its tensors. */
static int open_file(struct checkpoint_builder *b, const char *name, container_reader reader,
                     struct status *st) {
    struct checkpoint *c = b->checkpoint;
    if (c->files_count >= CHECKPOINT_FILES_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "more shards than the limit of %d",
                          CHECKPOINT_FILES_MAX);
    char path[CHECKPOINT_PATH_BYTES_MAX];
    if (join_path(path, c->dir, name, st))
        return -1;
    if (file_kind(path) != 1) /* opening a pipe would wait for its other end */
        return status_set(st, STATUS_NOT_FOUND, "%s: no such file", path);
    struct checkpoint_file *bigger = realloc(c->files, (size_t)(c->files_count + 1) * sizeof *bigger);
    if (!bigger)
        return status_set_no_memory(st, sizeof *bigger, "the table of files");
    c->files = bigger;
    struct checkpoint_file *f = &c->files[c->files_count];
    f->name = malloc(strlen(name) + 1);
    if (!f->name)
        return status_set_no_memory(st, strlen(name) + 1, "a file's name");
    memcpy(f->name, name, strlen(name) + 1);
    if (file_map_init(&f->map, path, st)) {
        free(f->name);
        return -1;
    }
    b->file = c->files_count++;
    if (is_lfs_pointer(&f->map))
        return status_set(
            st, STATUS_FAILED_PRECONDITION,
            "%s: a Git LFS pointer in the place of the weights; fetch them with \"git lfs pull\"", name);
    return reader(b, &f->map, name, st);
}

/* A shard must lie in the folder itself. */
static bool is_plain_file_name(const char *name) {
    size_t n = strlen(name);
    if (n == 0 || n >= CHECKPOINT_FILE_NAME_BYTES_MAX || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/' || name[i] == '\\' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return true;
}

static int find_file(const struct checkpoint *c, const char *name) {
    for (int i = 0; i < c->files_count; i++)
        if (strcmp(c->files[i].name, name) == 0)
            return i;
    return -1;
}

static int open_shards(struct checkpoint_builder *b, const cJSON *map, const char *index,
                       container_reader reader, struct status *st) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    int entries = 0;
    for (const cJSON *item = map->child; item; item = item->next) {
        if (++entries > CHECKPOINT_TENSORS_MAX)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                              "%s: weight_map names more tensors than the limit of %d", index,
                              CHECKPOINT_TENSORS_MAX);
        const char *name = cJSON_IsString(item) ? item->valuestring : "";
        if (!is_plain_file_name(name))
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "%s: weight_map: \"%s\" is not the name of a file in this folder", index,
                              checkpoint_show(shown, name, strlen(name)));
        if (find_file(b->checkpoint, name) < 0 && open_file(b, name, reader, st)) {
            if (st && st->code == STATUS_NOT_FOUND)
                return status_set(st, STATUS_INVALID_ARGUMENT, "%s: the shard %s is missing", index, name);
            return -1;
        }
    }
    if (entries == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: weight_map is empty", index);
    return 0;
}

/* The index and the shards must tell the same. */
static int check_shards(const struct checkpoint *c, const cJSON *map, const char *index, struct status *st) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    for (const cJSON *item = map->child; item; item = item->next) {
        const struct tensor *t = checkpoint_find(c, item->string);
        if (!t || strcmp(c->files[t->file].name, item->valuestring) != 0)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "%s: tensor %s should be in %s, which does not hold it", index,
                              checkpoint_show(shown, item->string, strlen(item->string)), item->valuestring);
    }
    return 0;
}

static int open_sharded(struct checkpoint_builder *b, const char *index, container_reader reader,
                        struct status *st) {
    char path[CHECKPOINT_PATH_BYTES_MAX];
    char *data;
    size_t bytes;
    if (join_path(path, b->checkpoint->dir, index, st) ||
        file_read(&data, &bytes, path, CHECKPOINT_INDEX_BYTES_MAX, "CHECKPOINT_INDEX_BYTES_MAX", st))
        return -1;
    cJSON *root = NULL;
    int rc = checkpoint_check_json(data, bytes, index, st);
    if (!rc)
        rc = json_parse(&root, data, bytes, index, st);
    free(data);
    if (rc)
        return -1;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map");
    if (!cJSON_IsObject(map))
        rc = status_set(st, STATUS_INVALID_ARGUMENT, "%s: weight_map is missing or not an object", index);
    if (!rc)
        rc = open_shards(b, map, index, reader, st);
    if (!rc)
        rc = checkpoint_sort(b->checkpoint, st);
    if (!rc)
        rc = check_shards(b->checkpoint, map, index, st);
    cJSON_Delete(root);
    return rc;
}

static const struct {
    const char *file, *format;
    container_reader reader;
    bool index;
} sources[] = {
    {"model.safetensors", "safetensors", safetensors_read, false},
    {"model.safetensors.index.json", "safetensors, sharded", safetensors_read, true},
    {"pytorch_model.bin", "torch", torch_read, false},
    {"pytorch_model.bin.index.json", "torch, sharded", torch_read, true},
};

int checkpoint_init(struct checkpoint *c, const char *dir, struct status *st) {
    *c = (struct checkpoint){0};
    struct checkpoint_builder b = {.checkpoint = c};
    c->dir = malloc(strlen(dir) + 1);
    if (!c->dir)
        return status_set_no_memory(st, strlen(dir) + 1, "the folder's name");
    memcpy(c->dir, dir, strlen(dir) + 1);
    size_t i, count = sizeof sources / sizeof *sources;
    for (i = 0; i < count; i++) {
        char path[CHECKPOINT_PATH_BYTES_MAX];
        if (join_path(path, dir, sources[i].file, st))
            goto fail;
        if (file_kind(path) == 1)
            break;
    }
    if (i == count) {
        status_set(st, STATUS_NOT_FOUND,
                   "%s: no weights: neither model.safetensors nor pytorch_model.bin, nor an index", dir);
        goto fail;
    }
    c->format = sources[i].format;
    if (sources[i].index ? open_sharded(&b, sources[i].file, sources[i].reader, st)
                         : open_file(&b, sources[i].file, sources[i].reader, st) || checkpoint_sort(c, st))
        goto fail;
    if (c->tensors_count == 0) {
        status_set(st, STATUS_INVALID_ARGUMENT, "%s: holds no tensors", sources[i].file);
        goto fail;
    }
    return 0;
fail:
    checkpoint_free(c);
    return -1;
}

void checkpoint_free(struct checkpoint *c) {
    checkpoint_free_tensors(c);
    for (int i = 0; i < c->files_count; i++) {
        file_map_free(&c->files[i].map);
        free(c->files[i].name);
    }
    free(c->files);
    free(c->dir);
    *c = (struct checkpoint){0};
}
