/* The engine's threads: made in engine_new, ended in engine_del. */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

#include "audio/ffmpeg.h"
#include "base/team.h"
#include "engine/internal.h"

void engine_options_init(struct engine_options *o) {
    *o = (struct engine_options){
        .model = {.pin = true},
        .silence_dbfs = AUDIO_SILENCE_DBFS_MAX,
        .batch_s_max = ENGINE_BATCH_S_MAX_DEFAULT,
        .delay_us = ENGINE_DELAY_US_DEFAULT,
        .queue_depth = ENGINE_QUEUE_DEPTH_DEFAULT,
        .prepare_threads = ENGINE_PREPARE_THREADS_DEFAULT,
    };
    audio_limits_init(&o->audio);
}

static int check_options(const struct engine_options *o, struct status *st) {
    if (!(o->silence_dbfs <= 0))
        return status_set(st, STATUS_INVALID_ARGUMENT, "silence level: %g dB is above full scale",
                          o->silence_dbfs);
    if (!(o->batch_s_max >= ENGINE_WHOLE_S_MAX && o->batch_s_max <= 100000))
        return status_set(st, STATUS_INVALID_ARGUMENT, "max-batch-seconds: %g is not in %g..100000",
                          o->batch_s_max, ENGINE_WHOLE_S_MAX);
    if (o->queue_depth < 1 || o->queue_depth > 1000000)
        return status_set(st, STATUS_INVALID_ARGUMENT, "queue-depth: %d is not in 1..1000000",
                          o->queue_depth);
    if (o->prepare_threads < 1 || o->prepare_threads > ENGINE_PREPARE_THREADS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "prepare-threads: %d is not in 1..%d",
                          o->prepare_threads, ENGINE_PREPARE_THREADS_MAX);
    if (o->delay_us < 0 || o->delay_us > 10000000)
        return status_set(st, STATUS_INVALID_ARGUMENT, "batch delay: %d us is not in 0..10000000",
                          o->delay_us);
    return 0;
}

static void *prepare_main(void *arg) {
    struct engine *e = arg;
    struct engine_request *r;
    while ((r = queue_take(e->prepare))) {
        request_prepare(r);
        if (r->items_count == 0 || !batcher_put(e->batcher, r))
            request_reply(r);
    }
    return NULL;
}

static int start_threads(struct engine *e, struct status *st) {
    if (pthread_create(&e->worker_thread, NULL, engine_worker_main, e) != 0)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start the worker's thread");
    e->worker_started = true;
    for (int i = 0; i < e->options.prepare_threads; i++) {
        if (pthread_create(&e->prepare_threads[i], NULL, prepare_main, e) != 0)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start prepare thread %d", i + 1);
        e->prepare_threads_count = i + 1;
    }
    return 0;
}

static int make_worker(struct engine *e, struct status *st) {
    const struct model_info *info = model_get_info(e->model);
    /* A clip is rounded up to whole frames on the tape, so the budget gets room for one more. */
    int64_t samples = (int64_t)(e->options.batch_s_max * info->sampling_rate_hz);
    samples += model_count_slot(e->model, info->min_samples);
    if (model_worker_new(&e->worker, e->model, samples, ENGINE_BATCH_CLIPS_MAX, st)) {
        status_prefix(st, "max-batch-seconds %g", e->options.batch_s_max);
        return -1;
    }
    e->clips = calloc(ENGINE_BATCH_CLIPS_MAX, sizeof *e->clips);
    e->batch = calloc(ENGINE_BATCH_CLIPS_MAX, sizeof *e->batch);
    return e->clips && e->batch ? 0 : status_set_no_memory(st, ENGINE_BATCH_CLIPS_MAX, "a batch");
}

int engine_new(struct engine **out, const struct engine_options *o, struct status *st) {
    *out = NULL;
    if (check_options(o, st))
        return -1;
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return status_set_no_memory(st, sizeof *e, "the engine");
    e->options = *o;
    if (model_new(&e->model, o->model_dir, &o->model, st) || make_worker(e, st) ||
        queue_new(&e->prepare, (size_t)o->queue_depth, st) ||
        batcher_new(&e->batcher, o->queue_depth, o->delay_us, st) || start_threads(e, st)) {
        engine_del(e);
        return -1;
    }
    *out = e;
    return 0;
}

void engine_del(struct engine *e) {
    if (!e)
        return;
    if (e->prepare)
        queue_close(e->prepare);
    for (int i = 0; i < e->prepare_threads_count; i++)
        pthread_join(e->prepare_threads[i], NULL);
    if (e->batcher)
        batcher_close(e->batcher);
    if (e->worker_started)
        pthread_join(e->worker_thread, NULL);
    batcher_del(e->batcher);
    queue_del(e->prepare);
    model_worker_del(e->worker);
    model_del(e->model);
    free(e->clips);
    free(e->batch);
    free(e);
}

void engine_describe_machine(struct text *out) {
    const struct model_options automatic = {.threads = 1};
    char device[MODEL_DEVICE_NAME_BYTES], confinement[256];
    struct status st;
    text_printf(out, "processors %d\n", team_count_processors());
    if (model_find_device(&automatic, device, &st))
        text_printf(out, "device none: %s\n", st.message);
    else
        text_printf(out, "device %s, fp32\n", device);
    text_printf(out, "ffmpeg shut in by %s\n", ffmpeg_describe_confinement(confinement, sizeof confinement));
}

const struct model *engine_model(const struct engine *e) {
    return e->model;
}
