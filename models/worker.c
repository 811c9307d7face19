/* A model's worker: the workspace, and one batch from samples to logits. */
#include <stdlib.h>
#include <string.h>

#include "base/team.h"
#include "models/model_internal.h"

/* Takes all buffers out of three arenas: the device's, the host's pinned one and the host's. They may be
 * counting. */
static void layout(struct model_worker *w, struct arena *device, struct arena *pinned, struct arena *host) {
    const struct model *m = w->model;
    const struct config *c = &m->config;
    const size_t clips = (size_t)w->clips_max;
    wav2vec2_state_init(&w->state, c, m->kernels, w->device, w->samples_max, w->clips_max, device);
    head_state_init(&w->head, &m->head, c, w->clips_max, device);
    w->tape =
        m->kernels->on_host ? w->state.samples : arena_alloc(pinned, (size_t)w->samples_max, sizeof(float));
    w->pooled = arena_alloc(pinned, clips * (size_t)c->hidden, sizeof(float));
    w->logits = arena_alloc(pinned, clips * (size_t)m->head.labels, sizeof(float));
    w->part = arena_alloc(pinned, clips * (size_t)m->head.labels, sizeof(float));
    batch_init(&w->batch, &c->conv, w->clips_max, host);
    w->samples = arena_alloc(host, clips, sizeof *w->samples);
}

static int channels_max(const struct config *c) {
    int most = c->hidden > c->intermediate ? c->hidden : c->intermediate;
    for (int l = 0; l < c->conv.levels; l++)
        if (c->conv_dim[l] > most)
            most = c->conv_dim[l];
    return most;
}

static int check_size(const struct config *c, int64_t samples_max, int clips_max, struct status *st) {
    if (samples_max >= batch_slot_samples(&c->conv, 1) && samples_max <= INT64_C(1) << 40 && clips_max >= 1 &&
        clips_max <= BATCH_CLIPS_MAX)
        return 0;
    return status_set(
        st, STATUS_INVALID_ARGUMENT,
        "a worker for %lld samples and %d clips: one frame needs %lld samples, and the limit is %d clips",
        (long long)samples_max, clips_max, (long long)batch_slot_samples(&c->conv, 1), BATCH_CLIPS_MAX);
}

/* Memory for the activations: the lender's as long as it has some, else the worker's own. Sizes are those
 * that an arena counted, so every part is aligned. */
static int take_activations(struct model_worker *w, size_t bytes, struct model_worker *lender,
                            struct status *st) {
    if (lender && bytes <= lender->activation_bytes - lender->lent_bytes) {
        w->memory = (char *)lender->memory + lender->lent_bytes;
        w->borrowed = true;
        lender->lent_bytes += bytes;
        return 0;
    }
    if (w->model->kernels->memory_new(w->device, &w->memory, bytes, "activations", st))
        return -1;
    w->activation_bytes = w->memory_bytes = bytes;
    return 0;
}

static int take_memory(struct model_worker *w, struct model_worker *lender, struct status *st) {
    const struct kernels *k = w->model->kernels;
    const struct config *c = &w->model->config;
    struct arena device, pinned, host;
    arena_init_counting(&device);
    arena_init_counting(&pinned);
    arena_init_counting(&host);
    layout(w, &device, &pinned, &host);
    if (device.failed || pinned.failed || host.failed)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "a worker for %lld samples: sizes overflow",
                          (long long)w->samples_max);
    const struct kernels_limits limits = {
        .samples_max = w->samples_max,
        .tokens_max = batch_count_rows(&c->conv, c->conv.levels, w->samples_max),
        .clips_max = w->clips_max,
        .hidden = c->hidden,
        .channels_max = channels_max(c),
        .heads = c->heads,
        .first_kernel = c->conv.kernel[0],
        .first_stride = c->conv.stride[0],
    };
    if (take_activations(w, device.used, lender, st) ||
        k->host_new(w->device, &w->pinned, pinned.used, "staging of a batch", st) ||
        arena_init(&w->host, host.used, "a worker's tables", st) || k->reserve(w->device, &limits, st))
        return -1;
    w->memory_bytes += pinned.used;
    device = (struct arena){.base = w->memory, .bytes = device.used};
    pinned = (struct arena){.base = w->pinned, .bytes = pinned.used};
    layout(w, &device, &pinned, &w->host);
    return 0;
}

/* All operations of a batch that lies on the tape. */
static void forward(struct model_worker *w) {
    const struct model *m = w->model;
    const struct kernels *k = m->kernels;
    const struct kernels_extent extent = k->begin(w->device, &w->batch);
    const void *hidden = wav2vec2_forward(&w->replica->backbone, &m->config, &w->state,
                                          m->config.weighted_layer_sum ? m->layer_weights : NULL, k,
                                          w->device, &w->batch, extent);
    head_forward(&w->replica->head, &m->config, &w->head, hidden, k, w->device, &w->batch);
    k->end(w->device);
}

/* The runs that the device asks for before the first batch: one clip of silence each. */
static int warm(struct model_worker *w, struct status *st) {
    const struct kernels *k = w->model->kernels;
    const struct batch_shape *s = &w->model->config.conv;
    int64_t rows, step = 1;
    for (int l = 0; l < s->levels; l++)
        step *= s->stride[l];
    for (int i = 0; (rows = k->warm_rows(w->device, i)) > 0; i++) {
        const int64_t samples = batch_min_samples(s) + (rows - 1) * step;
        if (i == 0)
            memset(w->tape, 0, (size_t)w->samples_max * sizeof *w->tape);
        batch_plan(&w->batch, s, 1, &samples);
        k->upload(w->device, w->state.samples, w->tape, (size_t)w->batch.tape_rows[0] * sizeof *w->tape);
        forward(w);
        if (k->finish(w->device, st))
            return status_prefix(st, "warming up");
    }
    return 0;
}

static int make_worker(struct model_worker **out, const struct model *m, int device,
                       const struct kernels_options *o, struct model_worker *lender, int64_t samples_max,
                       int clips_max, struct status *st) {
    *out = NULL;
    if (check_size(&m->config, samples_max, clips_max, st))
        return -1;
    struct model_worker *w = calloc(1, sizeof *w);
    if (!w)
        return status_set_no_memory(st, sizeof *w, "a worker");
    w->model = m;
    w->replica = &m->replicas[device];
    w->samples_max = samples_max;
    w->clips_max = clips_max;
    if (m->kernels->device_new(&w->device, o, st) || take_memory(w, lender, st) || warm(w, st)) {
        model_worker_del(w);
        return -1;
    }
    *out = w;
    return 0;
}

int model_count_threads(const struct model *m) {
    if (!m->kernels->on_host || strcmp(m->kernels->name, "ref") == 0)
        return 1;
    const int threads = m->device_options.threads ? m->device_options.threads : team_count_processors();
    return threads < TEAM_THREADS_MAX ? threads : TEAM_THREADS_MAX;
}

int model_worker_new(struct model_worker **out, const struct model *m, int device, int64_t samples_max,
                     int clips_max, struct status *st) {
    struct kernels_options o = m->replicas[device].options;
    /* One thread alone is better off where the system sees room for it. */
    o.pin = o.pin && model_count_threads(m) > 1;
    return make_worker(out, m, device, &o, NULL, samples_max, clips_max, st);
}

int model_worker_new_part(struct model_worker **out, const struct model *m, int part, int parts,
                          struct model_worker *lender, int64_t samples_max, int clips_max,
                          struct status *st) {
    const int threads = model_count_threads(m), first = (int)((int64_t)part * threads / parts);
    struct kernels_options o = m->replicas[0].options;
    o.threads = (int)((int64_t)(part + 1) * threads / parts) - first;
    o.pin_first = first;
    return make_worker(out, m, 0, &o, lender, samples_max, clips_max, st);
}

void model_worker_del(struct model_worker *w) {
    if (!w)
        return;
    if (w->memory && !w->borrowed)
        w->model->kernels->memory_del(w->device, w->memory);
    if (w->pinned)
        w->model->kernels->host_del(w->device, w->pinned);
    w->model->kernels->device_del(w->device);
    arena_free(&w->host);
    free(w);
}

bool model_worker_is_lost(const struct model_worker *w) {
    return w->lost;
}

int64_t model_worker_get_bytes(const struct model_worker *w) {
    return (int64_t)(w->memory_bytes + w->host.bytes);
}

int64_t model_count_slot(const struct model *m, int64_t count) {
    const struct batch_shape *s = &m->config.conv;
    return count < batch_min_samples(s) ? 0 : batch_slot_samples(s, count);
}

static int check_batch(const struct model_worker *w, const struct model_clip *clips, int count,
                       struct status *st) {
    int64_t total = 0;
    if (count < 1 || count > w->clips_max)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a batch of %d clips: the worker takes 1 to %d", count,
                          w->clips_max);
    for (int i = 0; i < count; i++) {
        int64_t slot = model_count_slot(w->model, clips[i].count);
        if (slot == 0)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "clip %d of the batch has %lld samples, too few for a frame", i,
                              (long long)clips[i].count);
        if (slot > w->samples_max - total)
            return status_set(st, STATUS_INVALID_ARGUMENT, "a batch of over %lld samples",
                              (long long)w->samples_max);
        total += slot;
    }
    return 0;
}

/* Lays the clips on the tape, zeros between them. */
static void stage(struct model_worker *w, const struct model_clip *clips, int count) {
    const struct config *c = &w->model->config;
    const struct kernels *k = w->model->kernels;
    for (int i = 0; i < count; i++)
        w->samples[i] = clips[i].count;
    batch_plan(&w->batch, &c->conv, count, w->samples);
    for (int i = 0; i < count; i++) {
        float *to = w->tape + w->batch.offset[i];
        int64_t gap = batch_slot_samples(&c->conv, clips[i].count) - clips[i].count;
        memcpy(to, clips[i].samples, (size_t)clips[i].count * sizeof *to);
        memset(to + clips[i].count, 0, (size_t)gap * sizeof *to);
    }
    if (!k->on_host)
        k->upload(w->device, w->state.samples, w->tape, (size_t)w->batch.tape_rows[0] * sizeof *w->tape);
}

/* Hands out what was downloaded, the age-and-gender head's two parts joined. */
static void deliver(const struct model_worker *w, struct model_clip *clips, int count) {
    const struct model *m = w->model;
    const size_t labels = (size_t)m->head.labels, hidden = (size_t)m->config.hidden;
    for (int i = 0; i < count; i++) {
        if (m->head.kind == HEAD_AGE_GENDER) {
            clips[i].logits[0] = w->logits[i];
            memcpy(clips[i].logits + 1, w->part + (size_t)i * (labels - 1), (labels - 1) * sizeof(float));
        } else {
            memcpy(clips[i].logits, w->logits + (size_t)i * labels, labels * sizeof(float));
        }
        if (clips[i].embedding)
            memcpy(clips[i].embedding, w->pooled + (size_t)i * hidden, hidden * sizeof(float));
    }
}

int model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    const struct model *m = w->model;
    const struct kernels *k = m->kernels;
    struct kernels_device *d = w->device;
    if (check_batch(w, clips, count, st))
        return -1;
    stage(w, clips, count);
    forward(w);

    const size_t clips_count = (size_t)count, labels = (size_t)m->head.labels;
    const bool two = m->head.kind == HEAD_AGE_GENDER;
    k->download(d, w->pooled, w->head.pooled, clips_count * (size_t)m->config.hidden * sizeof(float));
    k->download(d, w->logits, w->head.logits, clips_count * (two ? 1 : labels) * sizeof(float));
    if (two)
        k->download(d, w->part, w->head.part, clips_count * (labels - 1) * sizeof(float));
    if (k->finish(d, st)) {
        w->lost = k->is_lost(d);
        return -1;
    }
    deliver(w, clips, count);
    return 0;
}
