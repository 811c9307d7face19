/* A request's life on the caller's side, and its end. */
#include "engine/request.h"

#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

const char *engine_outcome_name(enum engine_outcome o) {
    static const char *const names[] = {"ok", "no_speech", "too_short", "error"};
    return names[o];
}

static int check_options(const struct engine_request_options *o, struct status *st) {
    if (o->window_s != 0 && !(o->window_s >= 0.05 && o->window_s <= ENGINE_WHOLE_S_MAX))
        return status_set(st, STATUS_INVALID_ARGUMENT, "window: %g s is not in 0.05..%g", o->window_s,
                          ENGINE_WHOLE_S_MAX);
    if (o->hop_s != 0 && !(o->window_s != 0 && o->hop_s >= 0.01 && o->hop_s <= o->window_s))
        return status_set(st, STATUS_INVALID_ARGUMENT, "hop: %g s is not in 0.01..window (%g s)", o->hop_s,
                          o->window_s);
    if (!o->replies)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a request needs a queue for its reply");
    return 0;
}

int engine_open(struct engine_request **out, struct engine *e, const struct engine_request_options *o,
                struct status *st) {
    *out = NULL;
    if (check_options(o, st))
        return -1;
    struct engine_request *r = calloc(1, sizeof *r);
    if (!r)
        return status_set_no_memory(st, sizeof *r, "a request");
    r->engine = e;
    r->options = *o;
    r->result.dominant = -1;
    *out = r;
    return 0;
}

int engine_feed(struct engine_request *r, const void *data, size_t bytes, struct status *st) {
    const size_t most = r->engine->options.audio.bytes_max;
    if (bytes > most - r->bytes_count)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "more than max-file-bytes (%zu bytes)", most);
    if (bytes > r->bytes_capacity - r->bytes_count) {
        size_t capacity = r->bytes_count + bytes + r->bytes_capacity / 2;
        unsigned char *grown = realloc(r->bytes, capacity);
        if (!grown)
            return status_set_no_memory(st, capacity, "audio");
        r->bytes = grown;
        r->bytes_capacity = capacity;
    }
    if (bytes)
        memcpy(r->bytes + r->bytes_count, data, bytes);
    r->bytes_count += bytes;
    return 0;
}

int engine_finish(struct engine_request *r, bool wait, struct status *st) {
    struct engine *e = r->engine;
    if (wait ? queue_put(e->prepare, r) : queue_try_put(e->prepare, r))
        return 0;
    if (wait)
        return status_set(st, STATUS_UNAVAILABLE, "the engine is stopping");
    return status_set(st, STATUS_RESOURCE_EXHAUSTED, "queue-depth: %d requests are waiting",
                      e->options.queue_depth);
}

void engine_cancel(struct engine_request *r) {
    atomic_store(&r->cancelled, true);
}

const struct engine_result *engine_get_result(const struct engine_request *r) {
    return &r->result;
}

void *engine_get_user(const struct engine_request *r) {
    return r->options.user;
}

void engine_close(struct engine_request *r) {
    if (!r)
        return;
    free(r->bytes);
    audio_clip_free(&r->clip);
    arena_free(&r->block);
    free(r);
}

/* ---- the end of a request
 * ---------------------------------------------------------------------------------- */

bool request_items_done(struct engine_request *r, int count) {
    return atomic_fetch_sub(&r->items_left, count) == count;
}

void request_fail(struct engine_request *r, const struct status *st) {
    if (!atomic_exchange(&r->failed, true))
        r->failure = *st;
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
    const struct model_info *info = model_get_info(r->engine->model);
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
    const struct model_info *info = model_get_info(r->engine->model);
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
    result->dominant = model_dominant(r->engine->model, result->scores);
}

void request_reply(struct engine_request *r) {
    struct engine_result *result = &r->result;
    void (*wake)(void *) = r->options.wake;
    void *wake_arg = r->options.wake_arg;
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
    queue_put(r->options.replies, r); /* from here on the request is the caller's */
    if (wake)
        wake(wake_arg);
}
