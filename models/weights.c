#include "models/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/builder.h"

enum { SHAPE_TEXT_BYTES = 24 * CHECKPOINT_RANK_MAX };

static const char probe[] = "feature_extractor.conv_layers.0.conv.weight";

/* What checkpoints put before the backbone's tensors. Prefixes of families whose forward pass differs are
 * left out on purpose: their tensors would load and mean something else. */
static const char *const prefixes[] = {"wav2vec2.",  "hubert.", "unispeech.", "unispeech_sat.", "model.",
                                       "ssl_model.", ""};

int weights_init(struct weights *w, struct checkpoint *c, struct status *st) {
    *w = (struct weights){.checkpoint = c, .st = st};
    const char *found = NULL;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        char name[sizeof w->prefix + sizeof probe];
        snprintf(name, sizeof name, "%s%s", prefixes[i], probe);
        if (!checkpoint_find(c, name))
            continue;
        if (found)
            return status_set(st, STATUS_FAILED_PRECONDITION,
                              "two backbones in one checkpoint: %s%s and %s%s", found, probe, prefixes[i],
                              probe);
        found = prefixes[i];
    }
    if (found) {
        snprintf(w->prefix, sizeof w->prefix, "%s", found);
        return 0;
    }
    for (int i = 0; i < c->tensors_count; i++) {
        const char *name = c->tensors[i].name;
        size_t n = strlen(name);
        if (n >= sizeof probe && strcmp(name + n - (sizeof probe - 1), probe) == 0)
            return status_set(st, STATUS_FAILED_PRECONDITION,
                              "no backbone of a known family: %s is there, but its "
                              "prefix \"%.*s\" is unknown",
                              name, (int)(n - (sizeof probe - 1)), name);
    }
    return status_set(st, STATUS_FAILED_PRECONDITION,
                      "no backbone: tensor %s is missing under every known prefix", probe);
}

void weights_free(struct weights *w) {
    for (int i = 0; i < WEIGHTS_SCRATCH_MAX; i++)
        free(w->scratch[i]);
    *w = (struct weights){0};
}

void weights_fail(struct weights *w, enum status_code code, const char *format, ...) {
    if (w->failed)
        return;
    w->failed = true;
    char text[STATUS_MESSAGE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    status_set(w->st, code, "%s", text);
}

static float *scratch_new(struct weights *w, int64_t floats) {
    if (w->scratch_used == WEIGHTS_SCRATCH_MAX) {
        weights_fail(w, STATUS_INTERNAL, "more than %d weights are held at once", WEIGHTS_SCRATCH_MAX);
        return NULL;
    }
    int i = w->scratch_used;
    size_t needed = floats > 0 ? (size_t)floats : 1;
    if (w->scratch_floats[i] < needed) {
        free(w->scratch[i]); /* its content is of no use any more */
        w->scratch_floats[i] = 0;
        w->scratch[i] = needed <= SIZE_MAX / sizeof(float) ? malloc(needed * sizeof(float)) : NULL;
        if (!w->scratch[i]) {
            weights_fail(w, STATUS_RESOURCE_EXHAUSTED, "out of memory: %zu floats to convert a weight",
                         needed);
            return NULL;
        }
        w->scratch_floats[i] = needed;
    }
    w->scratch_used++;
    return w->scratch[i];
}

/* ---- finding a tensor under its spellings ---- */

/* Replaces the ending `from` of `name` by `to`; false when it does not end so or would not fit. */
static bool replace_ending(char *name, size_t size, const char *from, const char *to) {
    size_t n = strlen(name), f = strlen(from);
    if (n < f || strcmp(name + n - f, from) != 0 || n - f + strlen(to) >= size)
        return false;
    strcpy(name + n - f, to);
    return true;
}

/* The exact name first, then the spellings of older exports: gamma and beta, LayerNorm. */
static struct tensor *find_spelling(const struct checkpoint *c, const char *name) {
    static const char *const spellings[][2] = {{".weight", ".gamma"},
                                               {".bias", ".beta"},
                                               {".layer_norm.weight", ".LayerNorm.weight"},
                                               {".layer_norm.bias", ".LayerNorm.bias"},
                                               {".layer_norm.weight", ".LayerNorm.gamma"},
                                               {".layer_norm.bias", ".LayerNorm.beta"}};
    struct tensor *t = checkpoint_find(c, name);
    for (size_t i = 0; !t && i < sizeof spellings / sizeof *spellings; i++) {
        char other[CHECKPOINT_NAME_BYTES_MAX];
        snprintf(other, sizeof other, "%s", name);
        if (replace_ending(other, sizeof other, spellings[i][0], spellings[i][1]))
            t = checkpoint_find(c, other);
    }
    return t;
}

/* The name in the file. A name that is too long for a file is cut and so not found. */
static const char *full_name(const struct weights *w, const char *name, char *full) {
    if (name[0] == '/')
        snprintf(full, CHECKPOINT_NAME_BYTES_MAX, "%s", name + 1);
    else
        snprintf(full, CHECKPOINT_NAME_BYTES_MAX, "%s%s", w->prefix, name);
    return full;
}

bool weights_has(const struct weights *w, const char *name) {
    char full[CHECKPOINT_NAME_BYTES_MAX];
    return find_spelling(w->checkpoint, full_name(w, name, full)) != NULL;
}

static struct tensor *find(struct weights *w, const char *name) {
    char full[CHECKPOINT_NAME_BYTES_MAX];
    if (w->failed)
        return NULL;
    struct tensor *t = find_spelling(w->checkpoint, full_name(w, name, full));
    if (!t)
        weights_fail(w, STATUS_FAILED_PRECONDITION, "tensor %s is missing", full);
    return t;
}

const struct tensor *weights_find(struct weights *w, const char *name) {
    return find(w, name);
}

/* ---- reading ---- */

static const char *format_shape(char *text, int rank, const int64_t *shape) {
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < rank; i++)
        n += (size_t)snprintf(text + n, SHAPE_TEXT_BYTES - n, i ? ", %lld" : "%lld", (long long)shape[i]);
    return text;
}

static const float *read_tensor(struct weights *w, struct tensor *t, int rank, const int64_t *shape) {
    const char *file = w->checkpoint->files[t->file].name;
    bool same = t->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = t->shape[i] == shape[i];
    if (!same) {
        char is[SHAPE_TEXT_BYTES], needed[SHAPE_TEXT_BYTES];
        weights_fail(w, STATUS_FAILED_PRECONDITION,
                     "%s: tensor %s has shape [%s], the configuration needs [%s]", file, t->name,
                     format_shape(is, t->rank, t->shape), format_shape(needed, rank, shape));
        return NULL;
    }
    if (t->dtype == TENSOR_OTHER) {
        weights_fail(w, STATUS_FAILED_PRECONDITION,
                     "%s: tensor %s has dtype %s; weights must be F32, F16 or BF16", file, t->name,
                     t->dtype_name);
        return NULL;
    }
    if (!t->used)
        w->parameters += t->elements;
    t->used = true;
    if (w->check_only)
        return NULL;
    const float *values;
    bool finite;
    if (t->dtype == TENSOR_F32 && (uintptr_t)t->data % _Alignof(float) == 0) {
        values = (const float *)(const void *)t->data;
        finite = tensor_is_finite_f32(t);
    } else {
        float *to = scratch_new(w, t->elements);
        if (!to)
            return NULL;
        finite = tensor_read_f32(t, to);
        values = to;
    }
    if (!finite) {
        weights_fail(w, STATUS_FAILED_PRECONDITION,
                     "%s: tensor %s is not finite: it holds a NaN or an infinity", file, t->name);
        return NULL;
    }
    if (w->read_count < WEIGHTS_READ_MAX)
        w->read[w->read_count++] = t;
    return values;
}

const float *weights_get(struct weights *w, const char *name, int rank, const int64_t *shape) {
    struct tensor *t = find(w, name);
    return t ? read_tensor(w, t, rank, shape) : NULL;
}

/* to[r, k] = g[k] v[r, k] / |v[., k]| over `rows` = out * in. False when a norm is zero or the result not
 * finite. */
static bool fold_weight_norm(float *to, const float *g, const float *v, double *scale, int64_t rows,
                             int64_t kernel) {
    for (int64_t k = 0; k < kernel; k++)
        scale[k] = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < kernel; k++)
            scale[k] += (double)v[r * kernel + k] * v[r * kernel + k];
    bool finite = true;
    for (int64_t k = 0; k < kernel; k++) {
        scale[k] = g[k] / sqrt(scale[k]);
        finite = finite && isfinite(scale[k]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < kernel; k++)
            to[r * kernel + k] = (float)(v[r * kernel + k] * scale[k]);
    return finite;
}

const float *weights_get_weight_norm(struct weights *w, const char *name, int64_t out, int64_t in_per_group,
                                     int64_t kernel) {
    static const char *const spellings[][2] = {
        {".weight_g", ".weight_v"},
        {".parametrizations.weight.original0", ".parametrizations.weight.original1"}};
    const int64_t g_shape[] = {1, 1, kernel}, v_shape[] = {out, in_per_group, kernel};
    char g_name[CHECKPOINT_NAME_BYTES_MAX], v_name[CHECKPOINT_NAME_BYTES_MAX];
    for (size_t i = 0; i < 2; i++) {
        snprintf(g_name, sizeof g_name, "%s%s", name, spellings[i][0]);
        snprintf(v_name, sizeof v_name, "%s%s", name, spellings[i][1]);
        if (!weights_has(w, g_name) && !weights_has(w, v_name))
            continue;
        const float *g = weights_get(w, g_name, 3, g_shape), *v = weights_get(w, v_name, 3, v_shape);
        if (w->check_only)
            return NULL;
        double *scale = (double *)(void *)scratch_new(w, 2 * kernel);
        float *to = scratch_new(w, out * in_per_group * kernel);
        if (w->failed)
            return NULL;
        if (fold_weight_norm(to, g, v, scale, out * in_per_group, kernel))
            return to;
        weights_fail(w, STATUS_FAILED_PRECONDITION,
                     "tensor %s%s has a norm of zero, so its weight is not finite",
                     name[0] == '/' ? "" : w->prefix, v_name + (name[0] == '/'));
        return NULL;
    }
    snprintf(v_name, sizeof v_name, "%s.weight", name);
    return weights_get(w, v_name, 3, v_shape);
}

void weights_release(struct weights *w) {
    for (int i = 0; i < w->read_count; i++)
        checkpoint_release(w->checkpoint, w->read[i]);
    w->read_count = 0;
    w->scratch_used = 0;
}
