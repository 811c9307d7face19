/* Opening a model: device, files, config, head, labels, weights, digest, in this order, all strict. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/model_internal.h"

enum { WORKERS_PER_GPU = 2 }; /* one's audio is copied while the other computes */

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

/* Packs all weights on one device. Errors are left in w. */
static void load_replica(struct model *m, struct model_replica *r, struct weights *w) {
    struct loader l = {.kernels = m->kernels, .device = r->device, .weights = w, .counting = true};
    r->head = m->head;
    arena_init_counting(&l.arena);
    load_pass(m, r, &l);
    m->info.weight_bytes = (int64_t)l.arena.used;
    if (l.arena.failed) {
        weights_fail(w, STATUS_RESOURCE_EXHAUSTED, "the weights' sizes overflow");
        return;
    }
    if (m->kernels->memory_new(r->device, &r->weights, l.arena.used, "packed weights", w->st)) {
        w->failed = true;
        return;
    }
    l.arena = (struct arena){.base = r->weights, .bytes = l.arena.used};
    l.counting = false;
    w->parameters = 0;
    load_pass(m, r, &l);
    /* What was packed may still be on its way. */
    if (!w->failed && m->kernels->finish(r->device, w->st))
        w->failed = true;
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

static int load_weights(struct model *m, struct checkpoint *checkpoint, const struct model_options *o,
                        struct status *st) {
    struct weights w;
    if (weights_init(&w, checkpoint, st))
        return -1;
    head_detect(&m->head, &m->config, &w, o->head_activation);
    if (!w.failed)
        load_layer_weights(m, &w);
    const int64_t others = w.parameters;
    for (int i = 0; i < m->replicas_count && !w.failed; i++)
        load_replica(m, &m->replicas[i], &w);
    m->info.parameters = others + w.parameters;
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

/* ---- digest
 * ------------------------------------------------------------------------------------------------ */

struct digest_job {
    const char *dir;
    const char *names[CHECKPOINT_FILES_MAX + 8];
    int count;
    struct model_info *info;
    struct status status;
    int result;
};

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void *compute_digest(void *arg) {
    struct digest_job *job = arg;
    struct text lines;
    job->result = -1;
    text_init_growing(&lines);
    qsort(job->names, (size_t)job->count, sizeof *job->names, compare_names);
    for (int i = 0; i < job->count; i++) {
        char path[4096], hex[SHA256_HEX_BYTES];
        snprintf(path, sizeof path, "%s/%s", job->dir, job->names[i]);
        if (sha256_file(hex, path, &job->status))
            goto done;
        text_printf(&lines, "%s  %s\n", hex, job->names[i]);
        if (job->info->files_count < (int)(sizeof job->info->files / sizeof *job->info->files)) {
            struct model_file *f = &job->info->files[job->info->files_count++];
            snprintf(f->name, sizeof f->name, "%s", job->names[i]);
            memcpy(f->sha256, hex, sizeof hex);
        }
    }
    if (lines.failed)
        status_set_no_memory(&job->status, 0, "the digest");
    else
        job->result = sha256_memory(job->info->digest, lines.data, lines.length, &job->status);
done:
    text_free(&lines);
    return NULL;
}

/* ---- report
 * ------------------------------------------------------------------------------------------------ */

static void fill_info(struct model *m, const struct checkpoint *checkpoint) {
    static const char *const outputs[] = {"softmax", "sigmoid", "none", "softmax of gender"};
    static const char *const precisions[] = {"fp32", "bf16", "int8"};
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
                struct status *st) {
    struct digest_job digest = {.dir = m->dir, .info = &m->info};
    pthread_t thread;
    for (int i = 0; i < checkpoint->files_count; i++)
        digest.names[digest.count++] = checkpoint->files[i].name;
    for (int i = 0; i < m->config.files_count; i++)
        digest.names[digest.count++] = m->config.files[i];
    bool threaded = pthread_create(&thread, NULL, compute_digest, &digest) == 0;
    if (!threaded)
        compute_digest(&digest);
    int result = load_weights(m, checkpoint, o, st);
    if (threaded)
        pthread_join(thread, NULL);
    if (result)
        return -1;
    if (digest.result) {
        if (st)
            *st = digest.status;
        return -1;
    }
    if (o->labels_path && config_read_labels(&m->config, o->labels_path, st))
        return -1;
    if (set_labels(m, o->labels_path, st) || set_output(m, o->output, st) || list_unused(m, checkpoint, st))
        return -1;
    return 0;
}

int model_new(struct model **out, const char *dir, const struct model_options *o, struct status *st) {
    struct checkpoint checkpoint;
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
    int result = m->device_name ? load(m, &checkpoint, o, st) : status_set_no_memory(st, 32, "a model");
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
