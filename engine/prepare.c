/* Prepare: from bytes to items, on the threads of two pools. What only ffmpeg reads goes from the first to
 * the second, so that slow files wait for each other alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/vad.h"
#include "base/clock.h"
#include "engine/cutter.h"
#include "engine/internal.h"
#include "engine/windows.h"

/* ---- what comes in
 * ------------------------------------------------------------------------------------------------ */

static int64_t value_bytes(enum audio_encoding encoding) {
    return encoding == AUDIO_PCM16 ? 2 : encoding == AUDIO_FLOAT32 ? 4 : 1;
}

int64_t request_estimate_us(const struct engine_request *r) {
    const struct audio_format *f = &r->options.format;
    double bytes_per_s = 2.0 * model_get_info(r->model->model)->sampling_rate_hz;
    /* What is out of range is refused by the decoder, and may count as anything. */
    if (f->encoding != AUDIO_FILE && f->rate_hz > 0 && f->channels > 0)
        bytes_per_s = (double)f->rate_hz * (double)f->channels * (double)value_bytes(f->encoding);
    return (int64_t)((double)r->bytes_count * 1e6 / bytes_per_s);
}

/* Makes one block of given pieces, unless they are one. */
static int flatten(struct engine_request *r, struct status *st) {
    if (r->pieces_count < 2 || r->flat)
        return 0;
    unsigned char *to = r->bytes = malloc(r->bytes_count ? r->bytes_count : 1);
    if (!to)
        return status_set_no_memory(st, r->bytes_count, "audio");
    for (size_t i = 0; i < r->pieces_count; i++) {
        if (r->pieces[i].bytes)
            memcpy(to, r->pieces[i].data, r->pieces[i].bytes);
        to += r->pieces[i].bytes;
    }
    r->flat = true;
    if (r->release)
        r->release(r->release_arg);
    r->release = NULL;
    return 0;
}

/* Sets *needs_ffmpeg instead of asking it, unless it may. */
static int decode(struct engine_request *r, bool may_ask_ffmpeg, bool *needs_ffmpeg, struct status *st) {
    const struct engine_options *o = &r->engine->options;
    const int rate_hz = model_get_info(r->model->model)->sampling_rate_hz;
    *needs_ffmpeg = false;
    if (flatten(r, st))
        return -1;
    const void *data = r->pieces_count == 1 ? r->pieces[0].data : r->bytes;
    if (may_ask_ffmpeg)
        return audio_decode(&r->clip, data, r->bytes_count, &r->options.format, rate_hz, &o->audio, st);
    return audio_decode_here(&r->clip, data, r->bytes_count, &r->options.format, rate_hz, &o->audio,
                             needs_ffmpeg, st);
}

/* ---- windows
 * ------------------------------------------------------------------------------------------------ */

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

enum engine_outcome request_judge(const struct engine *e, const struct model_info *info, const float *samples,
                                  int64_t count, bool no_speech) {
    if (count < info->min_samples)
        return ENGINE_TOO_SHORT;
    if (no_speech || audio_level_dbfs(samples, count, info->sampling_rate_hz) < e->options.silence_dbfs)
        return ENGINE_NO_SPEECH;
    return ENGINE_OK;
}

/* Decisions of the voice-activity rule; `speech` is NULL when it is not asked. */
struct voice {
    unsigned char *speech; /* [frames] */
    int64_t frames;
};

/* Over the whole clip, so that a window's do not depend on where the window begins; as in a stream. */
static int find_voice(const struct engine_request *r, int rate_hz, struct voice *voice, struct status *st) {
    struct vad *v = NULL;
    *voice = (struct voice){NULL, 0};
    if (!(r->options.speech_s_min > 0) || r->any_level)
        return 0;
    if (vad_new(&v, rate_hz, 0, st))
        return -1;
    const size_t samples = (size_t)r->clip.count, frames = vad_bound(v, samples);
    int result = 0;
    voice->speech = malloc(frames ? frames : 1);
    if (voice->speech)
        voice->frames = (int64_t)vad_process(v, r->clip.samples, samples, voice->speech);
    else
        result = status_set_no_memory(st, frames, "decisions on speech");
    vad_del(v);
    return result;
}

static bool lacks_speech(const struct engine_request *r, const struct voice *voice, int64_t first,
                         int64_t count) {
    return voice->speech && cutter_measure_speech_s(voice->speech, voice->frames, r->clip.rate_hz, first,
                                                    count) < r->options.speech_s_min;
}

/* Decides what becomes of window k, and makes an item of it if it needs a forward. */
static void add_window(struct engine_request *r, const struct model *m, int64_t k, int64_t first,
                       int64_t count, bool no_speech) {
    const struct model_info *info = model_get_info(m);
    const float *samples = r->clip.samples + first;
    struct engine_window *w = &r->windows[k];
    *w = (struct engine_window){.start_s = (double)first / info->sampling_rate_hz,
                                .end_s = (double)(first + count) / info->sampling_rate_hz};
    if (r->any_level)
        w->outcome = count < info->min_samples ? ENGINE_TOO_SHORT : ENGINE_OK;
    else
        w->outcome = request_judge(r->engine, info, samples, count, no_speech);
    if (w->outcome == ENGINE_OK) {
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
    const struct model *m = r->model->model;
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
    struct voice voice;
    if (find_voice(r, info->sampling_rate_hz, &voice, st))
        return -1;
    for (int64_t k = 0; k < count; k++) {
        int64_t first, length;
        windows_get(r->clip.count, window, hop, k, &first, &length);
        add_window(r, m, k, first, length, lacks_speech(r, &voice, first, length));
    }
    free(voice.speech);
    return 0;
}

/* ---- one request
 * ------------------------------------------------------------------------------------------------ */

static int check_wanted(const struct engine_request *r, struct status *st) {
    if (atomic_load(&r->cancelled))
        return status_set(st, STATUS_CANCELLED, "cancelled by the caller");
    if (r->options.deadline_ns && clock_now_ns() > r->options.deadline_ns)
        return status_set(st, STATUS_DEADLINE_EXCEEDED, "the deadline passed before the audio was decoded");
    return request_check_device(r->model, st);
}

enum request_next request_prepare(struct engine_request *r, bool may_ask_ffmpeg) {
    struct status *st = &r->result.status;
    const int64_t start_ns = clock_now_ns();
    bool needs_ffmpeg = false;
    int result = check_wanted(r, st);
    if (result) {
        counts_drop(&r->engine->counts, st->code);
    } else {
        result = decode(r, may_ask_ffmpeg, &needs_ffmpeg, st);
        if (result == 0 && needs_ffmpeg)
            return REQUEST_TRANSCODE;
        request_free_bytes(r);
        if (result == 0) {
            r->result.duration_s = r->clip.source_duration_s;
            result = cut(r, st);
        }
        counts_prepare(&r->engine->counts, r->clip.decoder, clock_now_ns() - start_ns);
    }
    if (result) {
        request_free_bytes(r);
        r->result.outcome = ENGINE_ERROR;
        r->items_count = 0;
    }
    atomic_store(&r->items_left, r->items_count);
    return r->items_count ? REQUEST_RUN : REQUEST_REPLY;
}

/* ---- the threads
 * ------------------------------------------------------------------------------------------------ */

static void refuse(struct engine_request *r) {
    r->result.outcome = ENGINE_ERROR;
    r->items_count = 0;
    r->result.duration_s = 0;
}

/* Tells the door how long it is. False: it found no room, and its result says so. */
static bool correct(struct engine_request *r) {
    const bool is_file = r->options.format.encoding == AUDIO_FILE;
    const int64_t audio_us = is_file ? (int64_t)(r->clip.source_duration_s * 1e6) : r->door_us;
    struct door *d = r->engine->door;
    if (door_correct(d, r->door_us, audio_us, false, &r->result.status)) {
        if (!r->patient) {
            refuse(r);
            return false;
        }
        request_expect_less(r); /* nobody is to wait for it as long as it waits */
        status_clear(&r->result.status);
        (void)door_correct(d, r->door_us, audio_us, true, NULL);
    }
    r->ready = true;
    r->door_us = audio_us;
    return true;
}

static void hand_to_worker(struct engine *e, struct engine_request *r) {
    const int64_t deadline_ns = r->options.deadline_ns;
    bool gone = false;
    if (!r->arriving) {
        atomic_fetch_add(&r->lane->arriving, 1);
        r->arriving = true;
    }
    batcher_put(e->batcher, r, &gone);
    if (gone)
        sweeper_ask(e->sweeper);
    sweeper_note(e->sweeper, deadline_ns);
}

/* A file that needs ffmpeg. Those may take half of the room at most, so that others always find some. */
static void hand_to_transcode(struct engine *e, struct engine_request *r) {
    const int64_t deadline_ns = r->options.deadline_ns;
    bool gone = false;
    request_expect_less(r);
    if (waiting_put(e->transcode, r, &gone) == WAITING_OK) {
        if (gone)
            sweeper_ask(e->sweeper);
        sweeper_note(e->sweeper, deadline_ns);
        return;
    }
    status_set(&r->result.status, STATUS_RESOURCE_EXHAUSTED,
               "queue-depth: the files that wait for ffmpeg fill their half of it (%d requests) or of "
               "max-queued-seconds "
               "(%g s)",
               e->options.queue_depth, e->options.queued_s_max);
    refuse(r);
    request_reply(r, NULL);
}

static void pass_on(struct engine *e, struct engine_request *r, bool may_ask_ffmpeg) {
    enum request_next next = request_prepare(r, may_ask_ffmpeg);
    if (next == REQUEST_RUN && !correct(r))
        next = REQUEST_REPLY;
    if (next == REQUEST_RUN)
        hand_to_worker(e, r);
    else if (next == REQUEST_TRANSCODE)
        hand_to_transcode(e, r);
    else
        request_reply(r, NULL);
}

void *engine_prepare_main(void *arg) {
    struct engine *e = arg;
    for (struct engine_request *r; (r = waiting_take(e->prepare));)
        pass_on(e, r, false);
    return NULL;
}

void *engine_transcode_main(void *arg) {
    struct engine *e = arg;
    for (struct engine_request *r; (r = waiting_take(e->transcode));)
        pass_on(e, r, true);
    return NULL;
}

void engine_run_samples(struct engine_request *r, const float *samples, int64_t count, int64_t audio_us) {
    struct status *st = &r->result.status;
    const int rate_hz = model_get_info(r->model->model)->sampling_rate_hz;
    const size_t bytes = (size_t)count * sizeof *samples;
    r->any_level = true;
    r->clip = (struct audio_clip){.samples = malloc(bytes), .count = count, .rate_hz = rate_hz};
    int result = r->clip.samples ? 0 : status_set_no_memory(st, bytes, "samples");
    if (result == 0) {
        memcpy(r->clip.samples, samples, bytes);
        result = cut(r, st);
    }
    if (result)
        refuse(r);
    atomic_store(&r->items_left, r->items_count);
    if (r->items_count == 0) {
        request_reply(r, NULL);
        return;
    }
    door_force(r->engine->door, audio_us);
    r->door_us = audio_us;
    r->inside = r->ready = true;
    hand_to_worker(r->engine, r);
}
