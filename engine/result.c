/* The end of a request: what became of its windows is summed up, and it goes back to its caller. */
#include "engine/internal.h"

const char *engine_outcome_name(enum engine_outcome o) {
    static const char *const names[] = {"ok", "no_speech", "too_short", "error"};
    return names[o];
}

bool request_is_dead(const struct engine_request *r, int64_t now_ns) {
    return atomic_load(&r->cancelled) || atomic_load(&r->failed) || atomic_load(&r->lane->lost) ||
           (r->options.deadline_ns && now_ns > r->options.deadline_ns);
}

int request_check_device(const struct engine_model *m, struct status *st) {
    if (!atomic_load(&m->lane.lost))
        return 0;
    if (st)
        *st = m->lost_why;
    return -1;
}

void request_expect_less(struct engine_request *r) {
    if (r->arriving)
        batcher_expect_less(r->engine->batcher, r->lane);
    r->arriving = false;
}

void request_leave(struct engine_request *r) {
    if (r->inside)
        door_leave(r->engine->door, 1, r->door_us, r->ready);
    r->inside = false;
}

bool request_items_done(struct engine_request *r, int count) {
    return atomic_fetch_sub(&r->items_left, count) == count;
}

bool request_fail(struct engine_request *r, const struct status *st) {
    if (atomic_exchange(&r->failed, true))
        return false;
    r->failure = *st;
    return true;
}

/* y [n] = the items' vectors, weighted by their samples, in the order of the windows. `offset` finds the
 * vector. */
static void mean_over_items(const struct engine_request *r, float *y, size_t n, size_t offset) {
    double total = 0;
    for (int i = 0; i < r->items_count; i++)
        total += (double)r->items[i].count;
    for (size_t j = 0; j < n; j++) {
        double sum = 0;
        for (int i = 0; i < r->items_count; i++) {
            const float *x = *(float *const *)((const char *)&r->items[i] + offset);
            sum += (double)r->items[i].count * x[j];
        }
        y[j] = (float)(sum / total);
    }
}

/* The state of a clip none of whose windows could be run. */
static enum engine_outcome sum_up_empty(const struct engine_request *r) {
    for (int i = 0; i < r->windows_count; i++)
        if (r->windows[i].outcome == ENGINE_NO_SPEECH)
            return ENGINE_NO_SPEECH;
    return ENGINE_TOO_SHORT;
}

static void explain_empty(struct engine_request *r) {
    const struct model_info *info = model_get_info(r->model->model);
    if (r->result.outcome == ENGINE_NO_SPEECH)
        status_set(&r->result.status, STATUS_OK, "silence: the loudest 25 ms lie below %g dB of full scale",
                   r->engine->options.silence_dbfs);
    else
        status_set(&r->result.status, STATUS_OK,
                   "%lld samples at %d Hz; the model needs at least %lld for one frame",
                   (long long)r->clip.count, info->sampling_rate_hz, (long long)info->min_samples);
}

static void sum_up(struct engine_request *r) {
    struct engine_result *result = &r->result;
    const struct model_info *info = model_get_info(r->model->model);
    for (int i = 0; i < r->items_count; i++) {
        const struct engine_item *item = &r->items[i];
        if (item->batch_size > result->batch_size)
            result->batch_size = item->batch_size;
        if (i == 0)
            result->queue_ms = (double)(item->start_ns - r->ready_ns) * 1e-6;
        if (i == 0 || item->start_ns != item[-1].start_ns) /* each batch once */
            result->compute_ms += item->compute_ms;
        result->audio_s += (double)item->count / info->sampling_rate_hz;
    }
    const size_t labels = (size_t)info->labels_count;
    mean_over_items(r, r->logits, labels, offsetof(struct engine_item, logits));
    mean_over_items(r, r->scores, labels, offsetof(struct engine_item, scores));
    if (r->embedding)
        mean_over_items(r, r->embedding, (size_t)info->hidden, offsetof(struct engine_item, embedding));
    result->outcome = ENGINE_OK;
    result->logits = r->logits;
    result->scores = r->scores;
    result->embedding = r->embedding;
    result->dominant = model_dominant(r->model->model, result->scores);
}

void request_explain_drop(const struct engine_request *r, struct status *st) {
    if (atomic_load(&r->cancelled))
        status_set(st, STATUS_CANCELLED, "cancelled by the caller");
    else if (request_check_device(r->model, st))
        return;
    else if (r->needs_ns)
        status_set(st, STATUS_DEADLINE_EXCEEDED,
                   "the request cannot be done before its deadline: it needs %.0f ms of the device or more",
                   (double)r->needs_ns * 1e-6);
    else
        status_set(st, STATUS_DEADLINE_EXCEEDED, "the deadline passed while the request was queued");
}

void request_wake_flush(struct request_wake *w) {
    if (w->wake)
        w->wake(w->arg);
    *w = (struct request_wake){0};
}

void request_reply(struct engine_request *r, struct request_wake *w) {
    struct engine_result *result = &r->result;
    const struct request_wake own = {.wake = r->options.wake, .arg = r->options.wake_arg};
    struct request_wake alone = {0};
    struct queue *replies = r->options.replies;
    request_expect_less(r);
    request_leave(r);
    if (result->outcome != ENGINE_ERROR && atomic_load(&r->failed)) {
        result->outcome = ENGINE_ERROR;
        result->status = r->failure;
    } else if (result->outcome != ENGINE_ERROR && r->items_count) {
        sum_up(r);
    } else if (result->outcome != ENGINE_ERROR) {
        result->outcome = sum_up_empty(r);
        explain_empty(r);
    }
    if (result->outcome != ENGINE_ERROR && r->windowed) {
        result->windows = r->windows;
        result->windows_count = r->windows_count;
    }
    audio_clip_free(&r->clip);
    if (!replies) { /* the wake hands it over, so it cannot stand for others */
        own.wake(own.arg);
        return;
    }
    if (!w)
        w = &alone;
    if (w->wake != own.wake || w->arg != own.arg)
        request_wake_flush(w);
    if (!queue_try_put(replies, r)) { /* who is to make room may be asleep */
        request_wake_flush(w);
        queue_put(replies, r);
    } /* from here on the request is the caller's */
    *w = own;
    if (w == &alone)
        request_wake_flush(w);
}
