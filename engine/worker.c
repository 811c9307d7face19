/* The worker's loop: take a batch, run it, reply. */
#include <math.h>

#include "base/clock.h"
#include "engine/internal.h"

/* Counts items as done and replies when they were the last. */
static void finish_items(struct engine_request *r, int count) {
    if (request_items_done(r, count))
        request_reply(r);
}

static void drop(struct engine_request *r, int items) {
    struct status st = {0};
    if (atomic_load(&r->cancelled))
        status_set(&st, STATUS_CANCELLED, "cancelled by the caller");
    else
        status_set(&st, STATUS_DEADLINE_EXCEEDED, "the deadline passed while the request was queued");
    request_fail(r, &st);
    finish_items(r, items);
}

static bool all_finite(const float *x, int n) {
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

static void deliver(const struct engine *e, struct engine_item *item) {
    struct status st;
    if (!all_finite(item->logits, model_get_info(e->model)->labels_count)) {
        status_set(&st, STATUS_INTERNAL, "the model's logits for this audio are not finite numbers");
        request_fail(item->request, &st);
        return;
    }
    model_scores(e->model, item->logits, item->scores);
    item->window->logits = item->logits;
    item->window->scores = item->scores;
}

static void run(struct engine *e, int count) {
    struct status st = {0};
    int64_t start_ns = clock_now_ns();
    for (int i = 0; i < count; i++) {
        struct engine_item *item = e->batch[i];
        item->start_ns = start_ns;
        e->clips[i] = (struct model_clip){.samples = item->samples,
                                          .count = item->count,
                                          .logits = item->logits,
                                          .embedding = item->embedding};
    }
    int result = model_worker_run(e->worker, e->clips, count, &st);
    double compute_ms = clock_elapsed_ms(start_ns);
    for (int i = 0; i < count; i++) {
        struct engine_item *item = e->batch[i];
        struct engine_request *r = item->request;
        item->batch_size = count;
        item->compute_ms = compute_ms;
        if (result)
            request_fail(r, &st);
        else
            deliver(e, item);
        finish_items(r, 1);
    }
}

void *engine_worker_main(void *arg) {
    struct engine *e = arg;
    const struct model_info *info = model_get_info(e->model);
    const int64_t samples_max = (int64_t)(e->options.batch_s_max * info->sampling_rate_hz);
    struct engine_request *dropped;
    int count, dropped_items;
    while (batcher_take(e->batcher, samples_max, ENGINE_BATCH_CLIPS_MAX, e->batch, &count, &dropped,
                        &dropped_items)) {
        if (dropped)
            drop(dropped, dropped_items);
        else if (count)
            run(e, count);
    }
    return NULL;
}
