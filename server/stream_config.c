#include "server/stream_config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "server/timbre.h"

/* The message at hand, and where what is wrong is told. */
struct reader {
    const Timbre__V1__StreamConfig *from;
    struct stream_config *to;
    int labels_count;
    char *field; /* [STREAM_FIELD_BYTES] the one at hand */
    struct status *st;
};

__attribute__((format(printf, 2, 3))) static void point(struct reader *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->field, STREAM_FIELD_BYTES, format, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3))) static int refuse(struct reader *r, const char *format, ...) {
    char text[STATUS_MESSAGE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return status_set(r->st, STATUS_INVALID_ARGUMENT, "%s: %s", r->field, text);
}

/* ---- format, channels ---- */

static int read_format(struct reader *r) {
    static const struct timbre_format_limits limits = {.raw_only = true,
                                                       .rate_hz_min = ENGINE_STREAM_RATE_HZ_MIN,
                                                       .rate_hz_max = ENGINE_STREAM_RATE_HZ_MAX,
                                                       .channels_max = ENGINE_STREAM_CHANNELS_MAX};
    const char *field;
    point(r, "format");
    if (!r->from->format)
        return refuse(r, "a stream needs one");
    const int failed = timbre_read_format(r->from->format, &limits, &r->to->options.format, &field, r->st);
    point(r, "%s", field);
    return failed;
}

static int read_text(struct reader *r, const char *from, char *to) {
    const size_t bytes = strlen(from);
    if (bytes >= STREAM_NAME_BYTES)
        return refuse(r, "%zu bytes, more than %d", bytes, STREAM_NAME_BYTES - 1);
    memcpy(to, from, bytes + 1);
    return 0;
}

static int read_channel(struct reader *r, int i) {
    const Timbre__V1__ChannelConfig *from = r->from->channels[i];
    struct engine_stream_channel *to = &r->to->options.channels[i];
    point(r, "channels[%d].name", i);
    if (read_text(r, from->name, r->to->channels[i].name))
        return -1;
    point(r, "channels[%d].role", i);
    if (read_text(r, from->role, r->to->channels[i].role))
        return -1;
    point(r, "channels[%d].resume_smoothed", i);
    if (from->n_resume_smoothed && from->n_resume_smoothed != (size_t)r->labels_count)
        return refuse(r, "%zu scores, but the model has %d labels", from->n_resume_smoothed, r->labels_count);
    to->excluded = from->exclude;
    to->had_s = from->resume_end_s;
    to->smoothed = from->n_resume_smoothed ? from->resume_smoothed : NULL;
    return 0;
}

static int read_channels(struct reader *r) {
    const int count = r->to->options.format.channels;
    point(r, "channels");
    if (r->from->n_channels && r->from->n_channels != (size_t)count)
        return refuse(r, "%zu of them, but format.channels is %d", r->from->n_channels, count);
    for (int i = 0; i < (int)r->from->n_channels; i++)
        if (read_channel(r, i))
            return -1;
    for (int i = 0; i < count; i++)
        if (!r->to->channels[i].name[0])
            snprintf(r->to->channels[i].name, STREAM_NAME_BYTES, "%d", i);
    return 0;
}

/* ---- analysis ---- */

static void read_analysis(struct reader *r) {
    struct engine_stream_options *o = &r->to->options;
    const Timbre__V1__StreamConfig *from = r->from;
    if (from->analysis_case == TIMBRE__V1__STREAM_CONFIG__ANALYSIS_WINDOWS) {
        o->window_s = from->windows->length_s;
        o->hop_s = from->windows->hop_s;
        o->speech_s_min = from->windows->speech_s_min;
    }
    if (from->analysis_case == TIMBRE__V1__STREAM_CONFIG__ANALYSIS_UTTERANCES) {
        o->utterances = true;
        o->length_s_min = from->utterances->length_s_min;
        o->length_s_max = from->utterances->length_s_max;
        o->hangover_s = from->utterances->hangover_s;
        o->interim_every_s = from->utterances->interim_every_s;
    }
    o->embedding = from->embedding;
    o->smoothing_s = from->smoothing_s;
    o->summary_every_s = from->summary_every_s;
    o->resume_offset_ms = from->resume_offset_ms;
}

/* ---- what was before ---- */

#define BEFORE "resume_summary."

/* The labels in their order, or none. */
static int check_scores(struct reader *r, Timbre__V1__Score *const *scores, size_t count) {
    if (count && count != (size_t)r->labels_count)
        return refuse(r, "%zu scores, but the model has %d labels", count, r->labels_count);
    for (size_t i = 0; i < count; i++)
        if (scores[i]->index != (int)i)
            return refuse(r, "score %zu has the index %d", i, scores[i]->index);
    return 0;
}

/* The lists have the lengths that the engine takes for granted; it checks what is in them. */
static int check_before_channel(struct reader *r, int i, const Timbre__V1__ChannelSummary *c) {
    point(r, BEFORE "channels[%d].channel", i);
    if (c->channel != i)
        return refuse(r, "%d, in the place of %d", c->channel, i);
    point(r, BEFORE "channels[%d].scores", i);
    if (check_scores(r, c->scores, c->n_scores))
        return -1;
    point(r, BEFORE "channels[%d].trend", i);
    if (check_scores(r, c->trend, c->n_trend))
        return -1;
    point(r, BEFORE "channels[%d].timeline", i);
    if (c->n_timeline > SUMMARY_SEGMENTS_MAX)
        return refuse(r, "%zu segments, more than %d", c->n_timeline, SUMMARY_SEGMENTS_MAX);
    for (size_t k = 0; k < c->n_timeline; k++) {
        const Timbre__V1__TimelineSegment *s = c->timeline[k];
        point(r, BEFORE "channels[%d].timeline[%zu].scores", i, k);
        if (s->n_scores && s->n_scores != (size_t)r->labels_count)
            return refuse(r, "%zu scores, but the model has %d labels", s->n_scores, r->labels_count);
    }
    return 0;
}

static int check_before(struct reader *r, const Timbre__V1__StreamSummary *from) {
    const int count = r->to->options.format.channels;
    point(r, BEFORE "channels");
    if (from->n_channels != (size_t)count)
        return refuse(r, "%zu of them, but format.channels is %d", from->n_channels, count);
    for (int i = 0; i < count; i++)
        if (check_before_channel(r, i, from->channels[i]))
            return -1;
    return 0;
}

/* In the arena; with a counting one only its size matters. */
static const float *copy_scores(struct arena *a, Timbre__V1__Score *const *scores, size_t count) {
    float *to = count ? arena_alloc(a, count, sizeof *to) : NULL;
    for (size_t i = 0; to && i < count; i++)
        to[i] = scores[i]->score;
    return to;
}

static const struct summary_segment *copy_timeline(struct arena *a, const Timbre__V1__ChannelSummary *c) {
    struct summary_segment *to = c->n_timeline ? arena_alloc(a, c->n_timeline, sizeof *to) : NULL;
    for (size_t i = 0; to && i < c->n_timeline; i++) {
        const Timbre__V1__TimelineSegment *s = c->timeline[i];
        to[i] = (struct summary_segment){.start_s = s->start_s,
                                         .end_s = s->end_s,
                                         .speech_s = s->speech_s,
                                         .scores = s->n_scores ? s->scores : NULL};
    }
    return to;
}

static void copy_before(struct summary_report *to, struct arena *a, const Timbre__V1__StreamSummary *from) {
    to->channels_count = (int)from->n_channels;
    to->talk_over_s = from->talk_over_s;
    to->start_s = from->start_s;
    to->end_s = from->end_s;
    for (size_t i = 0; i < from->n_channels; i++) {
        const Timbre__V1__ChannelSummary *c = from->channels[i];
        struct summary_channel *channel = &to->channels[i];
        *channel = (struct summary_channel){.excluded = c->excluded};
        if (c->excluded)
            continue;
        channel->speech_s = c->speech_s;
        channel->silence_s = c->silence_s;
        channel->results = c->results;
        channel->no_speech_results = c->no_speech_results;
        channel->forwards = c->forwards;
        channel->scores = copy_scores(a, c->scores, c->n_scores);
        channel->trend = copy_scores(a, c->trend, c->n_trend);
        channel->timeline = copy_timeline(a, c);
        channel->timeline_count = (int)c->n_timeline;
    }
}

static int read_before(struct reader *r) {
    if (!r->from->resume_summary)
        return 0;
    if (check_before(r, r->from->resume_summary))
        return -1;
    struct arena counting;
    arena_init_counting(&counting);
    copy_before(&r->to->before, &counting, r->from->resume_summary);
    point(r, "resume_summary");
    if (arena_init(&r->to->block, counting.used, "a summary", r->st))
        return -1;
    copy_before(&r->to->before, &r->to->block, r->from->resume_summary);
    r->to->options.before = &r->to->before;
    return 0;
}

int stream_config_init(struct stream_config *c, const Timbre__V1__StreamConfig *from, int labels_count,
                       char *field, struct status *st) {
    struct reader r = {.from = from, .to = c, .labels_count = labels_count, .field = field, .st = st};
    *c = (struct stream_config){0};
    read_analysis(&r);
    return read_format(&r) || read_channels(&r) || read_before(&r) ? -1 : 0;
}

void stream_config_free(struct stream_config *c) {
    arena_free(&c->block);
}
