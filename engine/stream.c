/* A stream's life on the owner's side: everything here only looks into the mailbox and leaves the rest to a
 * turn. */
#include "engine/stream.h"

#include <stdlib.h>
#include <string.h>

#include "audio/vad.h"
#include "base/clock.h"
#include "engine/stream_internal.h"

/* Something came: a turn follows. */
static void post(struct engine_stream *s) {
    pthread_mutex_lock(&s->lock);
    const bool put = stream_schedule(s);
    pthread_mutex_unlock(&s->lock);
    if (put)
        stream_turns_put(s->engine->turns, s);
}

/* ---- opening ---- */

static int enter(struct engine *e, struct status *st) {
    if (atomic_fetch_add(&e->streams, 1) < e->options.streams_max)
        return 0;
    atomic_fetch_sub(&e->streams, 1);
    return status_set(st, STATUS_RESOURCE_EXHAUSTED, "max-streams: %d streams are open, the limit",
                      e->options.streams_max);
}

static int open_parts(struct engine_stream *s, struct status *st) {
    const struct engine_stream_options *o = &s->options;
    const struct model_info *info = model_get_info(s->model->model);
    bool excluded[ENGINE_STREAM_CHANNELS_MAX];
    for (int c = 0; c < o->format.channels; c++)
        excluded[c] = o->channels[c].excluded;
    if (info->sampling_rate_hz < VAD_RATE_HZ_MIN || info->sampling_rate_hz > VAD_RATE_HZ_MAX)
        return status_set(st, STATUS_FAILED_PRECONDITION,
                          "a model of %d Hz does not take streams: %d to %d Hz do", info->sampling_rate_hz,
                          VAD_RATE_HZ_MIN, VAD_RATE_HZ_MAX);
    return stream_open_channels(s, st) ||
                   summary_new(&s->summary, o->format.channels, excluded, info->labels_count,
                               (double)stream_find_begin_s(s), o->before, st)
               ? -1
               : 0;
}

int engine_stream_open(struct engine_stream **out, const struct engine_stream_options *o, struct status *st) {
    struct engine_stream_options options = *o;
    *out = NULL;
    if (stream_settle_options(&options, st) || request_check_device(o->model, st) ||
        enter(o->model->engine, st))
        return -1;
    struct engine *e = o->model->engine;
    struct engine_stream *s = calloc(1, sizeof *s);
    if (!s) {
        atomic_fetch_sub(&e->streams, 1);
        return status_set_no_memory(st, sizeof *s, "a stream");
    }
    s->engine = e;
    s->model = o->model;
    s->options = options;
    s->events_last = &s->events;
    s->begin_ns = s->fed_ns = clock_now_ns();
    s->summary_due_s = (double)o->resume_offset_ms * 1e-3 + o->summary_every_s;
    pthread_mutex_init(&s->lock, NULL);
    atomic_fetch_add(&s->model->open, 1);
    if (open_parts(s, st)) {
        stream_free(s);
        return -1;
    }
    s->options.before = NULL; /* both were copied */
    for (int c = 0; c < ENGINE_STREAM_CHANNELS_MAX; c++)
        s->options.channels[c].smoothed = NULL;
    *out = s;
    return 0;
}

/* ---- what the owner asks ---- */

int engine_stream_feed(struct engine_stream *s, const struct engine_piece *pieces, size_t count,
                       void (*release)(void *arg), void *arg, struct status *st) {
    pthread_mutex_lock(&s->lock);
    const bool may = !s->has_bytes && !s->finish && !s->stop;
    pthread_mutex_unlock(&s->lock);
    if (!may)
        return status_set(st, STATUS_INTERNAL, "a stream was fed before it wanted more, or after its end");
    struct engine_piece *copy = calloc(count ? count : 1, sizeof *copy);
    if (!copy)
        return status_set_no_memory(st, count * sizeof *copy, "a stream's audio");
    if (count)
        memcpy(copy, pieces, count * sizeof *copy);
    pthread_mutex_lock(&s->lock);
    s->fed = (struct stream_bytes){
        .pieces = copy, .count = count, .release = release, .release_arg = arg, .fed_ns = clock_now_ns()};
    s->has_bytes = true;
    pthread_mutex_unlock(&s->lock);
    post(s);
    return 0;
}

static void ask(struct engine_stream *s, bool *what) {
    pthread_mutex_lock(&s->lock);
    *what = true;
    pthread_mutex_unlock(&s->lock);
    post(s);
}

void engine_stream_summarise(struct engine_stream *s) {
    ask(s, &s->summarise);
}

void engine_stream_finish(struct engine_stream *s) {
    ask(s, &s->finish);
}

void engine_stream_stop(struct engine_stream *s) {
    ask(s, &s->stop);
}

/* ---- events ---- */

bool engine_stream_take(struct engine_stream *s, struct engine_stream_event *event) {
    bool some = true, room = false;
    pthread_mutex_lock(&s->lock);
    struct stream_node *old = s->taken, *n = s->taken = s->events;
    if (n) {
        s->events = n->next;
        if (!s->events)
            s->events_last = &s->events;
        s->events_count--;
        *event = n->event;
        room = s->waits_for_owner && s->events_count <= ENGINE_STREAM_EVENTS_MAX / 2;
        s->waits_for_owner = s->waits_for_owner && !room;
    } else if (s->wants && !s->ended) {
        s->wants = false;
        *event = (struct engine_stream_event){.kind = ENGINE_STREAM_WANTS, .message = ""};
    } else if (s->ended && !s->end_told) {
        s->end_told = true;
        *event = (struct engine_stream_event){
            .kind = ENGINE_STREAM_END, .message = "", .end = s->end, .status = s->end_status};
    } else {
        some = false;
        s->armed = true;
    }
    pthread_mutex_unlock(&s->lock);
    stream_free_node(old);
    if (room)
        post(s);
    return some;
}

bool engine_stream_close(struct engine_stream *s) {
    if (!s)
        return false;
    pthread_mutex_lock(&s->lock);
    const bool armed = s->armed;
    s->armed = false;
    s->closed = true;
    pthread_mutex_unlock(&s->lock);
    post(s);
    return armed;
}

int engine_count_streams(const struct engine *e) {
    return atomic_load(&e->streams);
}
