/* A worker's loop: take a batch, run it, reply. */
#include <math.h>

#include "base/clock.h"
#include "engine/internal.h"

static bool all_finite(const float *x, int n) {
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

static void deliver(struct engine_item *item) {
    const struct model *m = item->request->model->model;
    struct status st;
    if (!all_finite(item->logits, model_get_info(m)->labels_count)) {
        status_set(&st, STATUS_INTERNAL, "the model's logits for this audio are not finite numbers");
        request_fail(item->request, &st);
        return;
    }
    model_scores(m, item->logits, item->scores);
    item->window->logits = item->logits;
    item->window->scores = item->scores;
}

/* A batch that failed: whatever the device says, its callers may try again. When the device is lost, whoever
 * is to know hears of it before they do. */
static void explain_failure(struct engine_model *m, int worker, struct status *st) {
    const bool lost = model_worker_is_lost(m->workers[worker]);
    st->code = STATUS_UNAVAILABLE;
    status_prefix(st, lost ? "the device failed and is lost to this process" : "the device failed");
    counts_fault(m, worker, lost);
    if (lost)
        engine_lose_device(m, st);
}

/* One forward, with everything that is counted of it. Once the first request is replied to, its model may be
 * unloaded by those who wait for that, so nothing of it is touched afterwards but through requests still
 * held. */
static int forward(struct engine *e, int worker, struct batcher_batch *b, double *compute_ms,
                   struct status *st) {
    struct engine_model *m = b->items[0]->request->model;
    struct model_clip clips[ENGINE_BATCH_CLIPS_MAX];
    int64_t samples = 0, slots = 0;
    for (int i = 0; i < b->count; i++) {
        struct engine_item *item = b->items[i];
        samples += item->count;
        slots += item->slot;
        clips[i] = (struct model_clip){.samples = item->samples,
                                       .count = item->count,
                                       .logits = item->logits,
                                       .embedding = item->embedding};
    }
    const int64_t audio_us = samples * 1000000 / model_get_info(m->model)->sampling_rate_hz;
    door_leave(e->door, b->requests, b->door_us, true);
    door_begin_batch(e->door, audio_us);
    /* What was lost since these were taken need not fail once more. */
    int result = request_check_device(m, st);
    if (result == 0 && model_worker_run(m->workers[worker], clips, b->count, st)) {
        explain_failure(m, worker, st);
        result = -1;
    }
    int64_t begin_ns;
    const int64_t busy_ns = batcher_ran(e->batcher, worker, result ? 0 : slots, &begin_ns);
    for (int i = 0; i < b->count; i++)
        b->items[i]->start_ns = begin_ns;
    *compute_ms = clock_elapsed_ms(begin_ns);
    door_end_batch(e->door, audio_us, result == 0);
    counts_batch(m, worker, b, begin_ns, busy_ns);
    return result;
}

static void run(struct engine *e, int worker, struct batcher_batch *b) {
    struct status st = {0};
    struct request_wake wake = {0};
    double compute_ms;
    const int result = forward(e, worker, b, &compute_ms, &st);
    for (int i = 0; i < b->count; i++) {
        struct engine_item *item = b->items[i];
        struct engine_request *r = item->request;
        item->batch_size = b->count;
        item->compute_ms = compute_ms;
        if (result)
            request_fail(r, &st);
        else
            deliver(item);
        if (atomic_load(&r->failed))
            batcher_suspect(e->batcher); /* the rest of it may still wait there */
        if (request_items_done(r, 1))
            request_reply(r, &wake);
    }
    request_wake_flush(&wake);
}

void *engine_worker_main(void *arg) {
    const struct engine_worker *w = arg;
    struct engine *e = w->engine;
    struct batcher_batch batch;
    while (batcher_take(e->batcher, w->index, ENGINE_BATCH_CLIPS_MAX, &batch)) {
        sweeper_drop_batched(e, batch.dead);
        if (batch.count)
            run(e, w->index, &batch);
    }
    return NULL;
}
