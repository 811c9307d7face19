/* Opening a model: device, files, config, head, labels, weights, digest, in this order, all strict. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "models/model_internal.h"

enum { WORKERS_PER_GPU = 2 }; /* one's audio is copied while the other computes */

static const char *const precisions[] = {"fp32", "bf16", "int8"};

/* ---- labels and output
 * ------------------------------------------------------------------------------------- */

/* `given`: the file the labels were read from instead of config.json, or NULL. */
static int set_labels(struct model *m, const char *given, struct status *st) {
    static const char *const age_gender[] = {"age", "female", "male", "child"};
    struct config *c = &m->config;
    const int n = m->head.labels;
    const bool builtin = m->head.kind == HEAD_AGE_GENDER && n == 4 && c->labels_count != n;
    if (given && c->labels_count != n)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %d labels, but the head has %d", given,
                          c->labels_count, n);
    if (c->labels_count > n)
        config_warn(c, "id2label names %d labels, but the head has %d: the rest is left out", c->labels_count,
                    n);
    for (int i = 0; i < n; i++) {
        char made[32];
        const char *label = i < c->labels_count ? c->labels[i] : NULL;
        if (builtin)
            label = age_gender[i];
        if (!label) {
            snprintf(made, sizeof made, "LABEL_%d", i);
            config_warn(c, "no name for label %d: it is called %s", i, made);
            label = made;
        }
        m->labels[i] = strdup(label);
        if (!m->labels[i])
            return status_set_no_memory(st, strlen(label), "labels");
    }
    return 0;
}

static int set_output(struct model *m, const char *wanted, struct status *st) {
    const struct config *c = &m->config;
    if (!wanted || strcmp(wanted, "auto") == 0)
        m->output = m->head.kind == HEAD_AGE_GENDER ? MODEL_AGE_GENDER
                    : c->regression                 ? MODEL_NONE
                    : c->multi_label                ? MODEL_SIGMOID
                                                    : MODEL_SOFTMAX;
    else if (strcmp(wanted, "softmax") == 0)
        m->output = MODEL_SOFTMAX;
    else if (strcmp(wanted, "sigmoid") == 0)
        m->output = MODEL_SIGMOID;
    else if (strcmp(wanted, "none") == 0)
        m->output = MODEL_NONE;
    else
        return status_set(st, STATUS_INVALID_ARGUMENT, "output %s: not one of auto, softmax, sigmoid, none",
                          wanted);
    return 0;
}

static void softmax(const float *x, float *y, int n) {
    double max = x[0], total = 0;
    for (int i = 1; i < n; i++)
        max = fmax(max, x[i]);
    for (int i = 0; i < n; i++)
        total += exp(x[i] - max);
    for (int i = 0; i < n; i++)
        y[i] = (float)(exp(x[i] - max) / total);
}

void model_scores(const struct model *m, const float *logits, float *scores) {
    const int n = m->head.labels;
    switch (m->output) {
    case MODEL_SOFTMAX:
        softmax(logits, scores, n);
        break;
    case MODEL_SIGMOID:
        for (int i = 0; i < n; i++)
            scores[i] = (float)(1.0 / (1.0 + exp(-(double)logits[i])));
        break;
    case MODEL_NONE:
        memmove(scores, logits, (size_t)n * sizeof *scores);
        break;
    case MODEL_AGE_GENDER:
        scores[0] = logits[0];
        softmax(logits + 1, scores + 1, n - 1);
        break;
    }
}

int model_dominant(const struct model *m, const float *scores) {
    if (m->output == MODEL_NONE && m->config.regression)
        return -1;
    int best = m->output == MODEL_AGE_GENDER ? 1 : 0;
    for (int i = best + 1; i < m->head.labels; i++)
        if (scores[i] > scores[best])
            best = i;
    return best;
}

/* ---- weights
 * ----------------------------------------------------------------------------------------------- */

static void load_pass(struct model *m, struct model_replica *r, struct loader *l) {
    wav2vec2_load(&r->backbone, &m->config, l);
    head_load(&r->head, &m->config, l);
}

/* How many bytes the weights take on one device, and their layout. Errors are left in w. */
static void count_replica(struct model *m, struct model_replica *r, struct loader *l, struct weights *w) {
    *l = (struct loader){.kernels = m->kernels, .device = r->device, .weights = w, .counting = true};
    r->head = m->head;
    arena_init_counting(&l->arena);
    load_pass(m, r, l);
    m->info.weight_bytes = (int64_t)l->arena.used;
    if (l->arena.failed)
        weights_fail(w, STATUS_RESOURCE_EXHAUSTED, "the weights' sizes overflow");
}

/* Packs all weights on one device, or takes them from the cache: open tells whether that may be read. */
static void load_replica(struct model *m, struct model_replica *r, struct loader *l, bool open,
                         struct sources *sources) {
    struct weights *w = l->weights;
    void *memory = open ? packed_cache_read(m->packed_cache, sources) : NULL; /* the cache's own */
    l->adopting = w->check_only = memory != NULL;
    if (!l->adopting) {
        sources_hash_begin(sources);
        if (m->kernels->memory_new(r->device, &r->weights, l->arena.used, "packed weights", w->st)) {
            w->failed = true;
            return;
        }
        memory = r->weights;
        if (m->packed_cache)
            packed_cache_clear(m->packed_cache, memory);
    }
    l->arena = (struct arena){.base = memory, .bytes = l->arena.used};
    l->counting = false;
    load_pass(m, r, l);
    /* What was packed may still be on its way. */
    if (!w->failed && m->kernels->finish(r->device, w->st))
        w->failed = true;
}

/* Whether the packed cache may be read for the weights that were counted. */
static bool open_cache(struct model *m, const struct model_options *o, const struct loader *counted,
                       int64_t begun_ns, struct sources *sources) {
    if (!o->packed_cache || !o->packed_cache[0])
        return false;
    if (!m->kernels->on_host || m->kernels->layout_version == 0) {
        log_write(LOG_INFO, "models", "no packed cache for %s on device %s: there is none for it", m->dir,
                  m->device_name);
        return false;
    }
    const struct packed_cache_options options = {
        .place = o->packed_cache,
        .verify = o->packed_cache_verify,
        .threads = o->threads,
        .device = m->device_name,
        .precision = precisions[m->device_options.precision],
        .layout_version = m->kernels->layout_version,
        .layout = counted->layout,
        .bytes = counted->arena.used,
        .begun_ns = begun_ns,
    };
    m->packed_cache = packed_cache_new(m->dir, &options);
    return m->packed_cache && packed_cache_open(m->packed_cache, sources);
}

static void load_layer_weights(struct model *m, struct weights *w) {
    struct config *c = &m->config;
    if (c->weighted_layer_sum && m->head.kind != HEAD_PROJECTOR) {
        config_warn(
            c,
            "use_weighted_layer_sum is set, but this head reads the last layer alone, as its authors' code "
            "does");
        c->weighted_layer_sum = false;
    }
    if (!c->weighted_layer_sum)
        return;
    const float *raw = weights_get(w, "/layer_weights", 1, (int64_t[]){c->layers + 1});
    if (raw)
        softmax(raw, m->layer_weights, c->layers + 1);
}

/* A backbone tensor that nobody asked for belongs to another network (relative positions, adapters, a bias
 * the config denies), whose answers would differ: refused. Layers beyond num_hidden_layers are cut off by
 * transformers too. */
static int check_backbone(struct model *m, const struct weights *w, struct status *st) {
    static const char *const parts[] = {"feature_extractor.", "feature_projection.", "encoder."};
    const size_t prefix = strlen(w->prefix);
    int beyond = 0;
    for (int i = 0; i < w->checkpoint->tensors_count; i++) {
        const struct tensor *t = &w->checkpoint->tensors[i];
        const char *name = t->name + prefix, *end = strrchr(t->name, '.');
        int layer;
        if (t->used || strncmp(t->name, w->prefix, prefix) != 0 ||
            (end && strcmp(end, ".num_batches_tracked") == 0))
            continue;
        if (sscanf(name, "encoder.layers.%d.", &layer) == 1 && layer >= m->config.layers) {
            beyond++;
            continue;
        }
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
            if (strncmp(name, parts[p], strlen(parts[p])) == 0)
                return status_set(st, STATUS_FAILED_PRECONDITION,
                                  "tensor %s is not part of the network that config.json describes", t->name);
    }
    if (beyond)
        config_warn(&m->config, "%d tensors of layers beyond num_hidden_layers (%d) are left out", beyond,
                    m->config.layers);
    return 0;
}

/* `sources` are being hashed when it returns, unless the cache told all of them. */
static int load_weights(struct model *m, struct checkpoint *checkpoint, const struct model_options *o,
                        int64_t begun_ns, struct sources *sources, struct status *st) {
    struct weights w;
    struct loader l;
    if (weights_init(&w, checkpoint, st))
        return -1;
    head_detect(&m->head, &m->config, &w, o->head_activation);
    if (!w.failed)
        load_layer_weights(m, &w);
    for (int i = 0; i < m->replicas_count && !w.failed; i++) {
        count_replica(m, &m->replicas[i], &l, &w);
        const bool open = !w.failed && i == 0 && open_cache(m, o, &l, begun_ns, sources);
        if (!w.failed)
            load_replica(m, &m->replicas[i], &l, open, sources);
    }
    m->info.parameters = w.parameters;
    int result = w.failed ? -1 : check_backbone(m, &w, st);
    weights_free(&w);
    return result;
}

static int list_unused(struct model *m, const struct checkpoint *checkpoint, struct status *st) {
    for (int i = 0; i < checkpoint->tensors_count; i++) {
        const struct tensor *t = &checkpoint->tensors[i];
        if (t->used) {
            m->info.tensors_used++;
            continue;
        }
        if (m->info.tensors_unused >= MODEL_UNUSED_MAX)
            continue;
        char *name = strdup(t->name);
        if (!name)
            return status_set_no_memory(st, strlen(t->name), "tensor names");
        m->unused[m->info.tensors_unused++] = name;
    }
    return 0;
}

/* ---- report
 * ------------------------------------------------------------------------------------------------ */

static void fill_info(struct model *m, const struct checkpoint *checkpoint) {
    static const char *const outputs[] = {"softmax", "sigmoid", "none", "softmax of gender"};
    struct model_info *i = &m->info;
    const struct config *c = &m->config;
    int64_t step = 1;
    for (int l = 0; l < c->conv.levels; l++)
        step *= c->conv.stride[l];
    i->dir = m->dir;
    i->family = config_family_name(c->family);
    i->head = head_name(&m->head);
    i->format = checkpoint->format;
    i->hidden = c->hidden;
    i->layers = c->layers;
    i->heads = c->heads;
    i->feature_norm = c->conv_layer_norm ? "layer" : "group";
    i->layer_order = c->stable_layer_norm ? "pre-norm" : "post-norm";
    i->weighted_layer_sum = c->weighted_layer_sum;
    i->unused = (const char *const *)m->unused;
    i->labels = (const char *const *)m->labels;
    i->labels_count = m->head.labels;
    i->sampling_rate_hz = c->sampling_rate;
    i->normalize = c->normalize;
    i->output = outputs[m->output];
    i->licence = c->licence;
    i->device = m->device_name;
    i->precision = precisions[m->device_options.precision];
    i->device_note = m->device_note;
    i->precision_note = m->precision_note;
    i->devices_count = m->replicas_count;
    i->workers_per_device = m->kernels->on_host ? 1 : WORKERS_PER_GPU;
    i->min_samples = batch_min_samples(&c->conv);
    i->frame_s = (double)step / c->sampling_rate;
    i->warnings = (const char *const *)c->warnings;
    i->warnings_count = c->warnings_count;
}

/* ---- open and close
 * ---------------------------------------------------------------------------------------- */

static int load(struct model *m, struct checkpoint *checkpoint, const struct model_options *o,
                int64_t begun_ns, struct status *st) {
    struct sources sources;
    struct status hash_status;
    sources_init(&sources, m->dir, checkpoint, &m->config);
    const int result = load_weights(m, checkpoint, o, begun_ns, &sources, st),
              hash_result = sources_hash_end(&sources, &hash_status);
    if (result)
        return -1;
    if (hash_result) {
        if (st)
            *st = hash_status;
        return -1;
    }
    if (sources_report(&sources, &m->info, st))
        return -1;
    if (o->labels_path && config_read_labels(&m->config, o->labels_path, st))
        return -1;
    if (set_labels(m, o->labels_path, st) || set_output(m, o->output, st) || list_unused(m, checkpoint, st))
        return -1;
    if (m->packed_cache)
        packed_cache_write(m->packed_cache, &sources, m->replicas[0].weights);
    return 0;
}

int model_new(struct model **out, const char *dir, const struct model_options *o, struct status *st) {
    struct checkpoint checkpoint;
    const int64_t begun_ns = file_clock_ns();
    *out = NULL;
    struct model *m = calloc(1, sizeof *m);
    if (!m || !(m->dir = strdup(dir))) {
        free(m);
        return status_set_no_memory(st, sizeof *m, "a model");
    }
    if (model_choose_devices(m, o, st) || config_init(&m->config, dir, st))
        goto fail;
    if (checkpoint_init(&checkpoint, dir, st))
        goto fail;
    m->device_name = strdup(m->kernels->device_name(m->replicas[0].device));
    int result =
        m->device_name ? load(m, &checkpoint, o, begun_ns, st) : status_set_no_memory(st, 32, "a model");
    if (result == 0)
        fill_info(m, &checkpoint);
    checkpoint_free(&checkpoint);
    if (result)
        goto fail;
    *out = m;
    return 0;
fail:
    model_del(m);
    return -1;
}

void model_del(struct model *m) {
    if (!m)
        return;
    packed_cache_del(m->packed_cache);
    model_free_devices(m);
    for (int i = 0; i < CONFIG_LABELS_MAX; i++)
        free(m->labels[i]);
    for (int i = 0; i < MODEL_UNUSED_MAX; i++)
        free(m->unused[i]);
    config_free(&m->config);
    free(m->device_name);
    free(m->dir);
    free(m);
}

const struct model_info *model_get_info(const struct model *m) {
    return &m->info;
}
