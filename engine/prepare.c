/* Prepare: from bytes to items. Runs on a thread of the prepare pool, or wherever the baton is. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"
#include "engine/windows.h"

static void give_up(struct engine_request *r, enum engine_outcome outcome) {
    r->result.outcome = outcome;
    r->items_count = 0;
}

/* Length and hop in samples; false when the clip is one whole. */
static bool plan_windows(const struct engine_request *r, int rate_hz, int64_t *window, int64_t *hop) {
    double window_s = r->options.window_s, hop_s = r->options.hop_s;
    if (window_s == 0) {
        if ((double)r->clip.count <= ENGINE_WHOLE_S_MAX * rate_hz)
            return false;
        window_s = ENGINE_WINDOW_S_DEFAULT;
        hop_s = ENGINE_HOP_S_DEFAULT;
    }
    if (hop_s == 0)
        hop_s = window_s;
    *window = llround(window_s * rate_hz);
    *hop = llround(hop_s * rate_hz);
    return true;
}

/* Takes everything a prepared request holds out of `a` (may be counting). */
static void layout(struct engine_request *r, const struct model_info *info, struct arena *a) {
    const size_t windows = (size_t)r->windows_count, labels = (size_t)info->labels_count;
    const size_t hidden = r->options.embedding ? (size_t)info->hidden : 0;
    r->windows = arena_alloc(a, windows, sizeof *r->windows);
    r->items = arena_alloc(a, windows, sizeof *r->items);
    r->logits = arena_alloc(a, (windows + 1) * labels, sizeof(float));
    r->scores = arena_alloc(a, (windows + 1) * labels, sizeof(float));
    r->embedding = hidden ? arena_alloc(a, (windows + 1) * hidden, sizeof(float)) : NULL;
}

/* Decides what becomes of window k, and makes an item of it if it needs a forward. */
static void add_window(struct engine_request *r, const struct model *m, int64_t k, int64_t first,
                       int64_t count) {
    const struct model_info *info = model_get_info(m);
    const float *samples = r->clip.samples + first;
    struct engine_window *w = &r->windows[k];
    *w = (struct engine_window){.start_s = (double)first / info->sampling_rate_hz,
                                .end_s = (double)(first + count) / info->sampling_rate_hz};
    if (count < info->min_samples) {
        w->outcome = ENGINE_TOO_SHORT;
    } else if (audio_level_dbfs(samples, count, info->sampling_rate_hz) < r->engine->options.silence_dbfs) {
        w->outcome = ENGINE_NO_SPEECH;
    } else {
        w->outcome = ENGINE_OK;
        const size_t at = (size_t)k + 1; /* place 0 is the result's */
        r->items[r->items_count++] = (struct engine_item){
            .request = r,
            .samples = samples,
            .count = count,
            .slot = model_count_slot(m, count),
            .window = w,
            .logits = r->logits + at * (size_t)info->labels_count,
            .scores = r->scores + at * (size_t)info->labels_count,
            .embedding = r->embedding ? r->embedding + at * (size_t)info->hidden : NULL,
        };
    }
}

static int cut(struct engine_request *r, struct status *st) {
    const struct model *m = r->engine->model;
    const struct model_info *info = model_get_info(m);
    int64_t window = r->clip.count, hop = r->clip.count, count = 1;
    r->windowed = plan_windows(r, info->sampling_rate_hz, &window, &hop);
    if (r->windowed)
        count = windows_count(r->clip.count, window, hop);
    if (count > ENGINE_WINDOWS_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "%lld windows are more than the limit of %d; use a larger hop", (long long)count,
                          ENGINE_WINDOWS_MAX);
    r->windows_count = (int)count;
    struct arena sizes;
    arena_init_counting(&sizes);
    layout(r, info, &sizes);
    if (arena_init(&r->block, sizes.used, "results", st))
        return -1;
    layout(r, info, &r->block);
    for (int64_t k = 0; k < count; k++) {
        int64_t first, length;
        windows_get(r->clip.count, window, hop, k, &first, &length);
        add_window(r, m, k, first, length);
    }
    return 0;
}

void request_prepare(struct engine_request *r) {
    const struct engine *e = r->engine;
    struct status *st = &r->result.status;
    int result = 0;
    if (atomic_load(&r->cancelled))
        result = status_set(st, STATUS_CANCELLED, "cancelled by the caller");
    else if (r->options.deadline_ns && clock_now_ns() > r->options.deadline_ns)
        result = status_set(st, STATUS_DEADLINE_EXCEEDED, "the deadline passed before the audio was decoded");
    if (result == 0)
        result = audio_decode(&r->clip, r->bytes, r->bytes_count, &r->options.format,
                              model_get_info(e->model)->sampling_rate_hz, &e->options.audio, st);
    free(r->bytes);
    r->bytes = NULL;
    if (result == 0) {
        r->result.duration_s = r->clip.source_duration_s;
        result = cut(r, st);
    }
    if (result)
        give_up(r, ENGINE_ERROR);
    atomic_store(&r->items_left, r->items_count);
}
