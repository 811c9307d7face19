/* From pieces to results: each piece that needs a forward is a request of its own; what came back is told in
 * the order of its channel. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/stream_internal.h"

/* ---- how much may be on its way ---- */

/* Audio of one stream on its way, so that its windows' samples take no more memory than this; but at least a
 * window of each channel, or one when it is not live. */
#define LIVE_S_MAX   (2 * ENGINE_WHOLE_S_MAX)
#define BEHIND_S_MAX ENGINE_WHOLE_S_MAX

static bool is_live(const struct engine_stream *s) {
    const double given_s = (double)s->frames / s->options.format.rate_hz;
    return given_s - clock_elapsed_ms(s->begin_ns) * 1e-3 <= ENGINE_STREAM_AHEAD_S;
}

bool stream_may_cut(struct engine_stream *s) {
    if (s->in_flight >= ENGINE_STREAM_WINDOWS_MAX ||
        (s->in_flight >= s->options.format.channels && s->in_flight_s >= LIVE_S_MAX))
        return false;
    if (s->in_flight > 0 && !is_live(s) && s->in_flight_s >= BEHIND_S_MAX)
        return false;
    /* When more live streams are open than the engine can follow, none has more than one there. */
    if (s->in_flight > 0 && door_check(s->engine->door, NULL))
        return false;
    pthread_mutex_lock(&s->lock);
    s->waits_for_owner = s->events_count + s->untold >= ENGINE_STREAM_EVENTS_MAX;
    const bool may = !s->waits_for_owner;
    pthread_mutex_unlock(&s->lock);
    return may;
}

/* ---- on the way ---- */

/* It is not told, and nothing behind it: whoever goes on begins before it. */
static bool is_failed(const struct stream_window *w) {
    return w->outcome == ENGINE_ERROR &&
           (!w->request || engine_get_result(w->request)->status.code != STATUS_INTERNAL);
}

/* On the worker that ran it. From the unlock on the stream may be gone, unless a turn is to be put. */
static void came_back(void *arg) {
    struct stream_window *w = arg;
    struct engine_stream *s = w->stream;
    w->done_ns = clock_now_ns();
    pthread_mutex_lock(&s->lock);
    w->next_done = s->done;
    s->done = w;
    const bool put = stream_schedule(s);
    pthread_mutex_unlock(&s->lock);
    if (put)
        stream_turns_put(s->engine->turns, s);
}

static double measure_s(const struct engine_stream *s, int64_t samples) {
    return (double)samples / model_get_info(s->model->model)->sampling_rate_hz;
}

/* Gives it to the batcher; it is counted as on its way before it can come back. */
static void submit(struct engine_stream *s, struct stream_window *w, const float *samples) {
    const struct engine_request_options o = {
        .model = s->model,
        .embedding = s->options.embedding,
        .order = is_live(s) ? ENGINE_LIVE : ENGINE_BULK,
        .wake = came_back,
        .wake_arg = w,
    };
    struct status st;
    if (request_check_device(s->model, &st) || engine_open(&w->request, &o, &st)) {
        w->done = true;
        w->outcome = ENGINE_ERROR;
        stream_end(s, ENGINE_STREAM_FAILED, &st);
        return;
    }
    s->in_flight++;
    s->in_flight_s += measure_s(s, w->count);
    engine_run_samples(w->request, samples, w->count, (int64_t)(measure_s(s, w->count) * 1e6));
}

void stream_window_put(struct engine_stream *s, int channel, const struct cutter_piece *piece) {
    struct stream_channel *c = &s->channels[channel];
    const struct model_info *info = model_get_info(s->model->model);
    struct stream_window *w = calloc(1, sizeof *w);
    if (!w) {
        struct status st;
        status_set_no_memory(&st, sizeof *w, "a window");
        stream_end(s, ENGINE_STREAM_FAILED, &st);
        return;
    }
    w->stream = s;
    w->channel = channel;
    w->first = piece->first;
    w->count = piece->count;
    w->final = piece->final;
    w->speech_s = piece->speech_s;
    w->fed_ns = s->fed_ns;
    w->needed = piece->final ? cutter_find_needed(c->cutter) : -1;
    w->outcome = request_judge(s->engine, info, piece->samples, piece->count, piece->no_speech);
    *c->last = w;
    c->last = &w->next;
    s->untold++;
    if (w->outcome == ENGINE_OK) {
        submit(s, w, piece->samples);
    } else {
        w->done = true;
        w->done_ns = clock_now_ns();
    }
}

void stream_window_finish(struct engine_stream *s, struct stream_window *w) {
    const struct engine_result *r = engine_get_result(w->request);
    s->in_flight--;
    s->in_flight_s -= measure_s(s, w->count);
    w->done = true;
    w->outcome = r->outcome;
    /* The device's failure is not this window's: the stream goes on elsewhere, from before it. */
    if (is_failed(w))
        stream_end(s, ENGINE_STREAM_FAILED, &r->status);
}

void stream_cancel_windows(struct engine_stream *s) {
    for (int c = 0; c < ENGINE_STREAM_CHANNELS_MAX; c++)
        for (struct stream_window *w = s->channels[c].first; w; w = w->next)
            if (w->request && !w->done)
                engine_cancel(w->request);
}

static void free_window(struct stream_window *w) {
    engine_close(w->request);
    free(w);
}

void stream_free_windows(struct engine_stream *s) {
    for (int c = 0; c < ENGINE_STREAM_CHANNELS_MAX; c++)
        for (struct stream_window *w = s->channels[c].first, *next; w; w = next) {
            next = w->next;
            free_window(w);
        }
}

/* ---- events ---- */

static struct stream_node *new_node(struct engine_stream *s, const struct arena *sizes) {
    struct status st;
    struct stream_node *n = calloc(1, sizeof *n);
    if (n && arena_init(&n->block, sizes->used, "an event of a stream", &st) == 0)
        return n;
    if (!n)
        status_set_no_memory(&st, sizeof *n, "an event of a stream");
    free(n);
    stream_end(s, ENGINE_STREAM_FAILED, &st);
    return NULL;
}

static void put_node(struct engine_stream *s, struct stream_node *n) {
    pthread_mutex_lock(&s->lock);
    *s->events_last = n;
    s->events_last = &n->next;
    s->events_count++;
    pthread_mutex_unlock(&s->lock);
}

/* Where the audio must begin for whoever has had what was told. */
static int64_t find_resume_offset_ms(const struct engine_stream *s) {
    const int from_hz = s->options.format.rate_hz, to_hz = model_get_info(s->model->model)->sampling_rate_hz;
    int64_t needed = INT64_MAX;
    for (int c = 0; c < s->options.format.channels; c++)
        if (!s->channels[c].excluded && s->channels[c].needed < needed)
            needed = s->channels[c].needed;
    const int64_t offset_ms = resampler_find_input_s(from_hz, to_hz, needed / to_hz) * 1000;
    return offset_ms > s->options.resume_offset_ms ? offset_ms : s->options.resume_offset_ms;
}

/* Scores that follow the raw ones with a time constant; a result counts for the time it adds. */
static void smooth(struct engine_stream *s, const struct stream_window *w, const float *scores, int labels) {
    struct stream_channel *c = &s->channels[w->channel];
    const double step_s = s->options.utterances ? measure_s(s, w->count) : s->options.hop_s;
    const double share = -expm1(-step_s / s->options.smoothing_s);
    for (int i = 0; i < labels; i++)
        c->smoothed[i] = c->has_smoothed
                             ? (float)(c->smoothed[i] + share * ((double)scores[i] - c->smoothed[i]))
                             : scores[i];
    c->has_smoothed = true;
}

/* NULL gives NULL, and with a counting arena only the size matters. */
static const float *copy_floats(struct arena *a, const float *from, size_t count) {
    float *to = from ? arena_alloc(a, count, sizeof *to) : NULL;
    if (to)
        memcpy(to, from, count * sizeof *to);
    return to;
}

static void explain(struct engine_stream *s, const struct stream_window *w, struct status *st) {
    const struct model_info *info = model_get_info(s->model->model);
    if (w->outcome == ENGINE_NO_SPEECH)
        status_set(st, STATUS_OK, "no speech: %.2f s of it in %.2f s", w->speech_s, measure_s(s, w->count));
    else if (w->outcome == ENGINE_TOO_SHORT)
        status_set(st, STATUS_OK, "%lld samples at %d Hz; the model needs at least %lld for one frame",
                   (long long)w->count, info->sampling_rate_hz, (long long)info->min_samples);
    else if (w->request)
        *st = engine_get_result(w->request)->status;
}

/* What a result points to; `a` may be counting. */
static void copy_scores(struct engine_stream *s, const struct stream_window *w, struct engine_stream_event *e,
                        struct arena *a) {
    const struct model_info *info = model_get_info(s->model->model);
    const struct engine_result *r = engine_get_result(w->request);
    const size_t labels = (size_t)info->labels_count;
    e->scores = copy_floats(a, r->scores, labels);
    e->logits = copy_floats(a, r->logits, labels);
    e->embedding = copy_floats(a, r->embedding, (size_t)info->hidden);
    if (w->final && s->options.smoothing_s > 0)
        e->smoothed = copy_floats(a, s->channels[w->channel].smoothed, labels);
}

static void fill_scores(struct engine_stream *s, const struct stream_window *w, struct stream_node *n) {
    const struct engine_result *r = engine_get_result(w->request);
    struct engine_stream_event *e = &n->event;
    if (w->final && s->options.smoothing_s > 0)
        smooth(s, w, r->scores, model_get_info(s->model->model)->labels_count);
    copy_scores(s, w, e, &n->block);
    e->dominant = r->dominant;
    e->batch_size = r->batch_size;
    e->queue_ms = r->queue_ms;
    e->compute_ms = r->compute_ms;
    e->audio_s = r->audio_s;
}

static bool tell_window(struct engine_stream *s, const struct stream_window *w) {
    struct engine_stream_event sizes;
    struct arena counting;
    arena_init_counting(&counting);
    if (w->outcome == ENGINE_OK)
        copy_scores(s, w, &sizes, &counting);
    struct stream_node *n = new_node(s, &counting);
    if (!n)
        return false;
    struct engine_stream_event *e = &n->event;
    *e = (struct engine_stream_event){
        .kind = ENGINE_STREAM_RESULT,
        .channel = w->channel,
        .start_s = measure_s(s, w->first),
        .end_s = measure_s(s, w->first + w->count),
        .speech_s = w->speech_s,
        .final = w->final,
        .outcome = w->outcome,
        .message = n->status.message,
        .dominant = -1,
        .lag_ms = (double)(w->done_ns - w->fed_ns) * 1e-6,
    };
    if (w->outcome == ENGINE_OK)
        fill_scores(s, w, n);
    else
        explain(s, w, &n->status);
    if (w->request)
        summary_count_forward(s->summary, w->channel);
    if (w->final) {
        s->channels[w->channel].needed = w->needed;
        summary_add_result(s->summary, w->channel, e->start_s, e->end_s, w->speech_s, e->scores,
                           w->outcome == ENGINE_NO_SPEECH);
    }
    e->resume_offset_ms = find_resume_offset_ms(s);
    put_node(s, n);
    return true;
}

void stream_tell(struct engine_stream *s) {
    for (int c = 0; c < s->options.format.channels; c++) {
        struct stream_channel *channel = &s->channels[c];
        for (struct stream_window *w; (w = channel->first) && w->done && !is_failed(w);) {
            if (!tell_window(s, w))
                return;
            channel->first = w->next;
            if (!channel->first)
                channel->last = &channel->first;
            s->untold--;
            free_window(w);
        }
    }
}

/* ---- summaries ---- */

/* What a report points to, copied to `a` (may be counting). */
static void copy_report(struct summary_report *to, const struct summary_report *from, size_t labels,
                        struct arena *a) {
    *to = *from;
    for (int c = 0; c < from->channels_count; c++) {
        const struct summary_channel *f = &from->channels[c];
        struct summary_channel *t = &to->channels[c];
        const size_t segments = (size_t)f->timeline_count;
        t->scores = copy_floats(a, f->scores, labels);
        t->trend = copy_floats(a, f->trend, labels);
        struct summary_segment *timeline = segments ? arena_alloc(a, segments, sizeof *timeline) : NULL;
        for (size_t i = 0; i < segments; i++) {
            const float *copy = copy_floats(a, f->timeline[i].scores, labels);
            if (timeline) {
                timeline[i] = f->timeline[i];
                timeline[i].scores = copy;
            }
        }
        t->timeline = timeline;
    }
}

void stream_tell_summary(struct engine_stream *s, bool last) {
    const struct summary_report *report = summary_get(s->summary);
    const size_t labels = (size_t)model_get_info(s->model->model)->labels_count;
    struct summary_report sizes;
    struct arena a;
    arena_init_counting(&a);
    copy_report(&sizes, report, labels, &a);
    struct stream_node *n = new_node(s, &a);
    if (!n)
        return;
    copy_report(&n->report, report, labels, &n->block);
    n->event = (struct engine_stream_event){
        .kind = ENGINE_STREAM_SUMMARY,
        .channel = -1,
        .dominant = -1,
        .message = "",
        .summary = &n->report,
        .last = last,
        .end = last ? s->turn_end : ENGINE_STREAM_GOES_ON,
        .resume_offset_ms = find_resume_offset_ms(s),
    };
    if (last)
        n->event.status = s->turn_status;
    put_node(s, n);
}
