/* A request's life on the caller's side. */
#include "engine/request.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "engine/internal.h"

static int check_options(const struct engine_request_options *o, struct status *st) {
    if (o->window_s != 0 && !(o->window_s >= 0.05 && o->window_s <= ENGINE_WHOLE_S_MAX))
        return status_set(st, STATUS_INVALID_ARGUMENT, "window: %g s is not in 0.05..%g", o->window_s,
                          ENGINE_WHOLE_S_MAX);
    if (o->hop_s != 0 && !(o->window_s != 0 && o->hop_s >= 0.01 && o->hop_s <= o->window_s))
        return status_set(st, STATUS_INVALID_ARGUMENT, "hop: %g s is not in 0.01..window (%g s)", o->hop_s,
                          o->window_s);
    if (o->speech_s_min != 0 && !(o->window_s != 0 && o->speech_s_min > 0 && o->speech_s_min <= o->window_s))
        return status_set(st, STATUS_INVALID_ARGUMENT, "min-speech: %g s is not in 0..window (%g s)",
                          o->speech_s_min, o->window_s);
    if ((int)o->order < 0 || (int)o->order >= ENGINE_CLASSES)
        return status_set(st, STATUS_INVALID_ARGUMENT, "there is no class %d of requests", (int)o->order);
    if (!o->model)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a request needs a model");
    if (!o->replies && !o->wake)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a request needs a queue for its reply, or a wake");
    return 0;
}

int engine_open(struct engine_request **out, const struct engine_request_options *o, struct status *st) {
    *out = NULL;
    if (check_options(o, st))
        return -1;
    struct engine_request *r = calloc(1, sizeof *r);
    if (!r)
        return status_set_no_memory(st, sizeof *r, "a request");
    r->model = o->model;
    r->lane = &o->model->lane;
    r->engine = o->model->engine;
    r->options = *o;
    r->result.dominant = -1;
    atomic_fetch_add(&r->model->open, 1);
    *out = r;
    return 0;
}

int engine_feed(struct engine_request *r, const void *data, size_t bytes, struct status *st) {
    const size_t most = r->engine->options.audio.bytes_max;
    if (r->pieces)
        return status_set(st, STATUS_INTERNAL, "audio was fed after it was given");
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

int engine_give(struct engine_request *r, const struct engine_piece *pieces, size_t count,
                void (*release)(void *arg), void *arg, struct status *st) {
    const size_t most = r->engine->options.audio.bytes_max;
    size_t total = 0, table;
    if (r->pieces || r->bytes)
        return status_set(st, STATUS_INTERNAL, "audio was given twice");
    for (size_t i = 0; i < count; i++)
        if (!check_add_size(total, pieces[i].bytes, &total) || total > most)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "more than max-file-bytes (%zu bytes)", most);
    if (!check_mul_size(count, sizeof *pieces, &table) ||
        !(r->pieces = malloc(table ? table : sizeof *pieces)))
        return status_set_no_memory(st, count * sizeof *pieces, "audio");
    if (count)
        memcpy(r->pieces, pieces, table);
    r->pieces_count = count;
    r->bytes_count = total;
    r->release = release;
    r->release_arg = arg;
    return 0;
}

void request_free_bytes(struct engine_request *r) {
    void (*release)(void *) = r->release;
    r->release = NULL;
    if (release)
        release(r->release_arg);
    free(r->pieces);
    free(r->bytes);
    r->pieces = NULL;
    r->bytes = NULL;
    r->pieces_count = r->bytes_count = r->bytes_capacity = 0;
}

int engine_finish(struct engine_request *r, bool wait, struct status *st) {
    struct engine *e = r->engine;
    const int64_t deadline_ns = r->options.deadline_ns, estimate_us = request_estimate_us(r);
    bool gone = false;
    if (request_check_device(r->model, st) || door_enter(e->door, estimate_us, wait, st))
        return -1;
    r->patient = wait;
    r->inside = r->arriving = true;
    r->door_us = estimate_us;
    atomic_fetch_add(&r->lane->arriving, 1);
    if (waiting_put(e->prepare, r, &gone) != WAITING_OK) {
        batcher_expect_less(e->batcher, r->lane);
        r->arriving = false;
        request_leave(r);
        return status_set(st, STATUS_UNAVAILABLE, "the engine is stopping");
    }
    if (gone)
        sweeper_ask(e->sweeper);
    sweeper_note(e->sweeper, deadline_ns);
    return 0;
}

void engine_cancel(struct engine_request *r) {
    struct engine *e = r->engine;
    atomic_store(&r->cancelled, true);
    batcher_suspect(e->batcher);
    sweeper_ask(e->sweeper);
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
    request_free_bytes(r);
    audio_clip_free(&r->clip);
    arena_free(&r->block);
    engine_model_release(r->model);
    free(r);
}
