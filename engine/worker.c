/* The worker's loop: take a batch, run it, reply. */
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

/* One forward, with everything that is counted of it. Once the first request is replied to, its model may be
 * unloaded by those who wait for that, so nothing of it is touched afterwards but through requests still
 * held. */
static int forward(struct engine *e, struct batcher_batch *b, double *compute_ms, struct status *st) {
    struct engine_model *m = b->items[0]->request->model;
    const int64_t start_ns = clock_now_ns();
    int64_t samples = 0, slots = 0;
    for (int i = 0; i < b->count; i++) {
        struct engine_item *item = b->items[i];
        item->start_ns = start_ns;
        samples += item->count;
        slots += item->slot;
        e->clips[i] = (struct model_clip){.samples = item->samples,
                                          .count = item->count,
                                          .logits = item->logits,
                                          .embedding = item->embedding};
    }
    const int64_t audio_us = samples * 1000000 / model_get_info(m->model)->sampling_rate_hz;
    door_leave(e->door, b->requests, b->door_us, true);
    door_begin_batch(e->door, audio_us);
    counts_begin_batch(m, b, start_ns);
    const int result = model_worker_run(m->worker, e->clips, b->count, st);
    const int64_t busy_ns = clock_now_ns() - start_ns;
    *compute_ms = (double)busy_ns * 1e-6;
    door_end_batch(e->door, audio_us, busy_ns);
    batcher_ran(e->batcher, b->lane, slots, busy_ns);
    counts_end_batch(m, b, busy_ns);
    return result;
}

static void run(struct engine *e, struct batcher_batch *b) {
    struct status st = {0};
    struct request_wake wake = {0};
    double compute_ms;
    const int result = forward(e, b, &compute_ms, &st);
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
    struct engine *e = arg;
    while (batcher_take(e->batcher, ENGINE_BATCH_CLIPS_MAX, &e->batch)) {
        sweeper_drop_batched(e, e->batch.dead);
        if (e->batch.count)
            run(e, &e->batch);
    }
    return NULL;
}
