/* The models of an engine: loading and unloading while others run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

/* Narrow workers take small batches: larger ones would be hardly faster, and who waits for a wide one waits
 * for the longest of them. */
#define NARROW_BATCH_S 10.0

/* Of threads that several workers share each has a part. */
static int count_narrow(const struct engine_model *m) {
    const struct model_info *info = model_get_info(m->model);
    const int threads = model_count_threads(m->model);
    if (threads == 1 || info->devices_count * info->workers_per_device > 1 ||
        m->engine->options.cpu_mode == ENGINE_CPU_LATENCY)
        return 0;
    return threads < ENGINE_NARROW_WORKERS_MAX ? threads : ENGINE_NARROW_WORKERS_MAX;
}

/* A clip is rounded up to whole frames on the tape, so the budget gets room for one more. */
static int64_t count_samples(const struct engine_model *m, double seconds) {
    const struct model_info *info = model_get_info(m->model);
    return (int64_t)(seconds * info->sampling_rate_hz) + model_count_slot(m->model, info->min_samples);
}

static int make_wide(struct engine_model *m, int count, struct status *st) {
    const struct model_info *info = model_get_info(m->model);
    const double batch_s_max = m->engine->options.batch_s_max;
    while (m->workers_count < count) {
        struct model_worker **w = &m->workers[m->workers_count];
        const int device = m->workers_count % info->devices_count;
        if (model_worker_new(w, m->model, device, count_samples(m, batch_s_max), ENGINE_BATCH_CLIPS_MAX,
                             st)) {
            if (info->workers_per_device == 1)
                return status_prefix(st, "max-batch-seconds %g", batch_s_max);
            return status_prefix(st,
                                 "max-batch-seconds %g, worker %d of %d (a GPU has %d, and each needs this)",
                                 batch_s_max, m->workers_count + 1, count, info->workers_per_device);
        }
        m->workers_count++;
    }
    return 0;
}

static int make_narrow(struct engine_model *m, int count, struct status *st) {
    /* Never at the same time as these; the batcher sees to it. */
    struct model_worker *lender = m->workers_count ? m->workers[0] : NULL;
    for (int i = 0; i < count; i++) {
        if (model_worker_new_part(&m->workers[m->workers_count], m->model, i, count, lender,
                                  count_samples(m, ENGINE_WHOLE_S_MAX), ENGINE_BATCH_CLIPS_MAX, st))
            return status_prefix(st, "worker %d of %d with a part of the threads (cpu-mode latency has none)",
                                 i + 1, count);
        m->workers_count++;
        m->narrow_count++;
    }
    return 0;
}

static int make_workers(struct engine_model *m, struct status *st) {
    const struct model_info *info = model_get_info(m->model);
    const int narrow = count_narrow(m);
    const bool wide = narrow == 0 || m->engine->options.cpu_mode != ENGINE_CPU_THROUGHPUT;
    const int count = wide ? info->devices_count * info->workers_per_device : 0;
    if (count + narrow < 1 || count + narrow > ENGINE_WORKERS_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%d workers, the limit is %d", count + narrow,
                          ENGINE_WORKERS_MAX);
    if (make_wide(m, count, st) || make_narrow(m, narrow, st))
        return -1;
    return engine_start_workers(m->engine, m->workers_count, st);
}

struct batcher_workers engine_model_workers(const struct engine_model *m) {
    const struct model_info *info = model_get_info(m->model);
    return (struct batcher_workers){.count = m->workers_count,
                                    .devices = info->devices_count,
                                    .share = info->workers_per_device > 1,
                                    .narrow = m->narrow_count,
                                    .narrow_samples = (int64_t)(NARROW_BATCH_S * info->sampling_rate_hz)};
}

struct batcher_workers engine_model_worker(const struct engine_model *m, int worker) {
    struct batcher_workers w = engine_model_workers(m);
    w.narrow = worker >= w.count - w.narrow;
    w.first = worker;
    w.count = 1;
    return w;
}

static int take_place(struct engine *e, struct status *st) {
    int result = 0;
    pthread_mutex_lock(&e->lock);
    if (e->models_count == ENGINE_MODELS_MAX)
        result = status_set(st, STATUS_RESOURCE_EXHAUSTED, "%d models are loaded, which is the limit",
                            ENGINE_MODELS_MAX);
    else
        e->models_count++;
    pthread_mutex_unlock(&e->lock);
    return result;
}

static void enter_table(struct engine *e, struct engine_model *m) {
    int at = 0;
    pthread_mutex_lock(&e->lock);
    while (e->models[at]) /* there is a free one: the place was taken */
        at++;
    e->models[at] = m;
    pthread_mutex_unlock(&e->lock);
}

static void leave_table(struct engine *e, const struct engine_model *m) {
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < ENGINE_MODELS_MAX; i++)
        if (e->models[i] == m)
            e->models[i] = NULL;
    e->models_count--;
    pthread_mutex_unlock(&e->lock);
}

static void free_model(struct engine_model *m) {
    for (int i = 0; i < m->workers_count; i++)
        model_worker_del(m->workers[i]);
    model_del(m->model);
    free(m);
}

int engine_model_load(struct engine_model **out, struct engine *e, const char *name, const char *dir,
                      const struct model_options *o, struct status *st) {
    *out = NULL;
    if (take_place(e, st))
        return -1;
    struct engine_model *m = calloc(1, sizeof *m);
    if (!m) {
        leave_table(e, NULL);
        return status_set_no_memory(st, sizeof *m, "a model");
    }
    m->engine = e;
    snprintf(m->name, sizeof m->name, "%s", name);
    if (o->head_activation)
        snprintf(m->head_activation, sizeof m->head_activation, "%s", o->head_activation);
    if (model_new(&m->model, dir, o, st) || make_workers(m, st)) {
        leave_table(e, NULL);
        free_model(m);
        return -1;
    }
    counts_add_model(m);
    batcher_add_lane(e->batcher, &m->lane,
                     (int64_t)(e->options.batch_s_max * model_get_info(m->model)->sampling_rate_hz),
                     engine_model_workers(m));
    enter_table(e, m);
    *out = m;
    return 0;
}

void engine_model_unload(struct engine_model *m) {
    if (!m)
        return;
    struct engine *e = m->engine;
    atomic_fetch_add(&e->unloading, 1);
    pthread_mutex_lock(&e->lock);
    while (atomic_load(&m->open) > 0)
        pthread_cond_wait(&e->closed_last, &e->lock);
    pthread_mutex_unlock(&e->lock);
    atomic_fetch_sub(&e->unloading, 1);
    batcher_remove_lane(e->batcher, &m->lane);
    leave_table(e, m);
    counts_remove_model(m);
    free_model(m);
}

/* From the moment the last one is counted off, the model may be gone; the engine is not. */
void engine_model_release(struct engine_model *m) {
    struct engine *e = m->engine;
    if (atomic_fetch_sub(&m->open, 1) == 1 && atomic_load(&e->unloading) > 0) {
        pthread_mutex_lock(&e->lock);
        pthread_cond_broadcast(&e->closed_last);
        pthread_mutex_unlock(&e->lock);
    }
}

void engine_free_models(struct engine *e) {
    for (int i = 0; i < ENGINE_MODELS_MAX; i++)
        if (e->models[i])
            free_model(e->models[i]);
}

bool engine_model_is_lost(const struct engine_model *m) {
    return atomic_load(&m->lane.lost);
}

/* All models on one kind of device have the same options, so that they are on the same GPUs. */
static bool shares_device(const struct engine_model *a, const struct engine_model *b) {
    return strcmp(model_get_info(a->model)->device, model_get_info(b->model)->device) == 0;
}

void engine_lose_device(struct engine_model *m, const struct status *why) {
    struct engine *e = m->engine;
    pthread_mutex_lock(&e->lock);
    /* One that is not in the table yet is lost alone. */
    const bool first = !atomic_load(&m->lane.lost);
    if (first && e->options.on_lost)
        e->options.on_lost(e->options.on_lost_arg, why);
    for (int i = 0; first && i <= ENGINE_MODELS_MAX; i++) {
        struct engine_model *other = i < ENGINE_MODELS_MAX ? e->models[i] : m;
        if (other && !atomic_load(&other->lane.lost) && shares_device(m, other)) {
            other->lost_why = *why;
            atomic_store(&other->lane.lost, true);
        }
    }
    pthread_mutex_unlock(&e->lock);
    batcher_suspect(e->batcher);
    sweeper_ask(e->sweeper);
}

const struct model *engine_model_get(const struct engine_model *m) {
    return m->model;
}
