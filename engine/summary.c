/* What a stream was like so far.
 *
 * Frames are counted up to the one before which every channel's are known, so that all numbers of a report
 * are of the same stretch, and a summary that goes on from it neither counts a frame twice nor leaves one
 * out. Channels that are ahead keep PENDING_FRAMES at most; with one further ahead, what is known is counted.
 */
#include "engine/summary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/vad.h"
#include "base/check.h"

enum { FRAMES_PER_S = 1000 / VAD_HOP_MS, PENDING_FRAMES = 60 * FRAMES_PER_S };
enum { SILENCE, SPEECH, UNKNOWN };

#define WEIGHT_MIN  0.01 /* seconds: of a result with scores and without speech */
#define TIME_S_MAX  1e9
#define SCORE_MAX   1e30 /* far more than any; so that sums stay finite */
#define COUNT_MAX   ((int64_t)1 << 53)
#define SEGMENT_MAX (SUMMARY_SEGMENT_S * 1e9)

/* Scores times weights, and the weights. */
struct mean {
    double weight;
    double *sums; /* [labels] */
};

struct channel {
    bool excluded;
    int64_t next; /* the frame that is to come */
    int64_t speech_frames, silence_frames;
    double speech_s, silence_s; /* of the summary before */
    int64_t results, no_speech_results, forwards;
    struct mean all, timeline[SUMMARY_SEGMENTS_MAX];
    int timeline_count;
    unsigned char *pending; /* [PENDING_FRAMES] decisions, frame n at n % PENDING_FRAMES */

    /* What a report points to. */
    struct summary_segment segments[SUMMARY_SEGMENTS_MAX];
    float *scores, *trend, *segment_scores; /* [labels], [labels], [SUMMARY_SEGMENTS_MAX, labels] */
};

struct summary {
    int channels_count, labels_count;
    double start_s;
    double segment_s;
    int64_t counted; /* frames before this one are */
    int64_t talk_over_frames;
    double talk_over_s; /* of the summary before */
    struct channel channels[SUMMARY_CHANNELS_MAX];
    struct summary_report report;
    double *sums; /* what the channels point to */
    float *floats;
    unsigned char *pending;
};

/* ---- going on from a summary
 * ------------------------------------------------------------------------------------------------ */

#define FIELD "resume_summary"

static int refuse(struct status *st, int channel, const char *field, const char *why) {
    if (channel < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, FIELD ".%s: %s", field, why);
    return status_set(st, STATUS_INVALID_ARGUMENT, FIELD ".channels[%d].%s: %s", channel, field, why);
}

static int refuse_segment(struct status *st, int channel, int segment, const char *field, const char *why) {
    return status_set(st, STATUS_INVALID_ARGUMENT, FIELD ".channels[%d].timeline[%d].%s: %s", channel,
                      segment, field, why);
}

/* NaN is none. */
static bool is_time(double s) {
    return s >= 0 && s <= TIME_S_MAX;
}

static bool is_count(int64_t n) {
    return n >= 0 && n <= COUNT_MAX;
}

static bool are_scores(const float *scores, int labels_count) {
    for (int i = 0; i < labels_count; i++)
        if (!(fabs((double)scores[i]) <= SCORE_MAX))
            return false;
    return true;
}

static const char BAD_TIME[] = "no time from 0 to 1e9 seconds";
static const char BAD_SCORES[] = "scores that are not finite, or too large";
static const char NO_WEIGHT[] = "there are scores without speech, or speech without scores";

static bool is_empty(const struct summary_segment *s) {
    return s->start_s == 0 && s->end_s == 0 && s->speech_s == 0 && !s->scores;
}

/* The length of the segments is SUMMARY_SEGMENT_S, doubled some times; 0 when it is not. */
static double find_segment_s(const struct summary_segment *s) {
    const double length_s = s->end_s - s->start_s;
    double segment_s = SUMMARY_SEGMENT_S;
    while (segment_s <= SEGMENT_MAX && !(fabs(length_s - segment_s) <= 1e-6 * segment_s))
        segment_s *= 2;
    return segment_s <= SEGMENT_MAX ? segment_s : 0;
}

static int check_segment(const struct summary *s, const struct summary_report *before, int channel, int i,
                         double *segment_s, struct status *st) {
    const struct summary_segment *segment = &before->channels[channel].timeline[i];
    if (is_empty(segment))
        return 0;
    if (!is_time(segment->start_s) || !is_time(segment->end_s))
        return refuse_segment(st, channel, i, is_time(segment->start_s) ? "end_s" : "start_s", BAD_TIME);
    if (*segment_s == 0)
        *segment_s = find_segment_s(segment);
    if (*segment_s == 0 || find_segment_s(segment) != *segment_s)
        return refuse_segment(st, channel, i, "end_s", "not a length of segments, or not that of the others");
    if (fabs(segment->start_s - (before->start_s + i * *segment_s)) > 1e-6 * (1 + before->start_s))
        return refuse_segment(st, channel, i, "start_s", "not where this segment begins");
    if (!is_time(segment->speech_s))
        return refuse_segment(st, channel, i, "speech_s", BAD_TIME);
    if ((segment->speech_s > 0) != (segment->scores != NULL))
        return refuse_segment(st, channel, i, "scores", NO_WEIGHT);
    if (segment->scores && !are_scores(segment->scores, s->labels_count))
        return refuse_segment(st, channel, i, "scores", BAD_SCORES);
    return 0;
}

static int check_channel(const struct summary *s, const struct summary_report *before, int channel,
                         double *segment_s, struct status *st) {
    const struct summary_channel *c = &before->channels[channel];
    if (c->excluded != s->channels[channel].excluded)
        return refuse(st, channel, "excluded", "not as the channel is now");
    if (c->excluded)
        return 0;
    if (!is_time(c->speech_s))
        return refuse(st, channel, "speech_s", BAD_TIME);
    if (!is_time(c->silence_s))
        return refuse(st, channel, "silence_s", BAD_TIME);
    if (!is_count(c->results))
        return refuse(st, channel, "results", "out of range");
    if (!is_count(c->no_speech_results) || c->no_speech_results > c->results)
        return refuse(st, channel, "no_speech_results", "out of range");
    if (!is_count(c->forwards))
        return refuse(st, channel, "forwards", "out of range");
    if (c->timeline_count < 0 || c->timeline_count > SUMMARY_SEGMENTS_MAX)
        return refuse(st, channel, "timeline", "more than 48 segments");
    bool weighted = false;
    for (int i = 0; i < c->timeline_count; i++) {
        if (check_segment(s, before, channel, i, segment_s, st))
            return -1;
        weighted = weighted || c->timeline[i].speech_s > 0;
    }
    if (weighted != (c->scores != NULL))
        return refuse(st, channel, "scores",
                      "the timeline has scores and the channel has not, or vice versa");
    if (c->scores && !are_scores(c->scores, s->labels_count))
        return refuse(st, channel, "scores", BAD_SCORES);
    return 0;
}

/* Sets *segment_s, 0 when no segment tells. */
static int check_before(const struct summary *s, const struct summary_report *before, double *segment_s,
                        struct status *st) {
    *segment_s = 0;
    if (before->channels_count != s->channels_count)
        return status_set(st, STATUS_INVALID_ARGUMENT, FIELD ".channels: %d of them; the stream has %d",
                          before->channels_count, s->channels_count);
    if (!is_time(before->start_s))
        return refuse(st, -1, "start_s", BAD_TIME);
    if (!is_time(before->end_s) || before->end_s < before->start_s)
        return refuse(st, -1, "end_s", "before start_s, or no time from 0 to 1e9 seconds");
    if (!is_time(before->talk_over_s))
        return refuse(st, -1, "talk_over_s", BAD_TIME);
    for (int c = 0; c < s->channels_count; c++)
        if (check_channel(s, before, c, segment_s, st))
            return -1;
    return 0;
}

static void take_mean(struct mean *m, const float *scores, double weight, int labels_count) {
    m->weight = weight;
    for (int i = 0; scores && i < labels_count; i++)
        m->sums[i] = weight * (double)scores[i];
}

static void go_on(struct summary *s, const struct summary_report *before, double segment_s) {
    s->start_s = before->start_s;
    s->talk_over_s = before->talk_over_s;
    s->segment_s = segment_s > 0 ? segment_s : SUMMARY_SEGMENT_S;
    for (int i = 0; i < s->channels_count; i++) {
        const struct summary_channel *from = &before->channels[i];
        struct channel *c = &s->channels[i];
        if (c->excluded)
            continue;
        c->speech_s = from->speech_s;
        c->silence_s = from->silence_s;
        c->results = from->results;
        c->no_speech_results = from->no_speech_results;
        c->forwards = from->forwards;
        c->timeline_count = from->timeline_count;
        double weight = 0;
        for (int k = 0; k < from->timeline_count; k++) {
            take_mean(&c->timeline[k], from->timeline[k].scores, from->timeline[k].speech_s, s->labels_count);
            weight += from->timeline[k].speech_s;
        }
        take_mean(&c->all, from->scores, weight, s->labels_count);
    }
}

/* ---- beginning and end
 * ------------------------------------------------------------------------------------------------ */

enum { MEANS = SUMMARY_SEGMENTS_MAX + 1, FLOATS = SUMMARY_SEGMENTS_MAX + 2 };

static int make_room(struct summary *s, struct status *st) {
    const size_t channels = (size_t)s->channels_count, labels = (size_t)s->labels_count;
    size_t values;
    if (!check_mul_size(channels * FLOATS, labels ? labels : 1, &values))
        return status_set_no_memory(st, SIZE_MAX, "a summary");
    s->sums = calloc(values, sizeof *s->sums);
    s->floats = calloc(values, sizeof *s->floats);
    s->pending = malloc(channels * PENDING_FRAMES);
    if (!s->sums || !s->floats || !s->pending)
        return status_set_no_memory(st, values * (sizeof *s->sums + sizeof *s->floats), "a summary");
    memset(s->pending, UNKNOWN, channels * PENDING_FRAMES);
    for (size_t i = 0; i < channels; i++) {
        struct channel *c = &s->channels[i];
        double *sums = s->sums + i * MEANS * labels;
        c->all.sums = sums;
        for (size_t k = 0; k < SUMMARY_SEGMENTS_MAX; k++)
            c->timeline[k].sums = sums + (k + 1) * labels;
        c->scores = s->floats + i * FLOATS * labels;
        c->trend = c->scores + labels;
        c->segment_scores = c->trend + labels;
        c->pending = s->pending + i * PENDING_FRAMES;
    }
    return 0;
}

static int fill(struct summary *s, const bool *excluded, double start_s, const struct summary_report *before,
                struct status *st) {
    double segment_s = 0;
    for (int i = 0; i < s->channels_count; i++)
        s->channels[i].excluded = excluded && excluded[i];
    if (!is_time(start_s))
        return status_set(st, STATUS_INVALID_ARGUMENT, "a summary cannot begin at %g s", start_s);
    if ((before && check_before(s, before, &segment_s, st)) || make_room(s, st))
        return -1;
    s->start_s = start_s;
    s->segment_s = SUMMARY_SEGMENT_S;
    if (before)
        go_on(s, before, segment_s);
    s->counted = llround((before ? before->end_s : start_s) * FRAMES_PER_S);
    for (int i = 0; i < s->channels_count; i++)
        s->channels[i].next = s->counted;
    return 0;
}

int summary_new(struct summary **out, int channels_count, const bool *excluded, int labels_count,
                double start_s, const struct summary_report *before, struct status *st) {
    *out = NULL;
    if (channels_count < 1 || channels_count > SUMMARY_CHANNELS_MAX || labels_count < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a summary of %d channels and %d labels",
                          channels_count, labels_count);
    struct summary *s = calloc(1, sizeof *s);
    if (!s)
        return status_set_no_memory(st, sizeof *s, "a summary");
    s->channels_count = channels_count;
    s->labels_count = labels_count;
    if (fill(s, excluded, start_s, before, st)) {
        summary_del(s);
        return -1;
    }
    *out = s;
    return 0;
}

void summary_del(struct summary *s) {
    if (!s)
        return;
    free(s->sums);
    free(s->floats);
    free(s->pending);
    free(s);
}

/* ---- frames
 * ------------------------------------------------------------------------------------------------ */

static void count_own(struct channel *c, bool speech) {
    c->speech_frames += speech;
    c->silence_frames += !speech;
}

/* Counts the frames before `end`, as far as they are known. */
static void count_until(struct summary *s, int64_t end) {
    const int64_t last_kept = s->counted + PENDING_FRAMES;
    for (int64_t n = s->counted; n < end && n < last_kept; n++) {
        int speaking = 0;
        for (int i = 0; i < s->channels_count; i++) {
            struct channel *c = &s->channels[i];
            unsigned char *decision = &c->pending[n % PENDING_FRAMES];
            if (!c->excluded && *decision != UNKNOWN)
                count_own(c, *decision == SPEECH);
            speaking += *decision == SPEECH;
            *decision = UNKNOWN;
        }
        s->talk_over_frames += speaking >= 2;
    }
    if (end > s->counted)
        s->counted = end;
}

void summary_add_frames(struct summary *s, int channel, int64_t first, size_t count,
                        const unsigned char *speech) {
    struct channel *c = &s->channels[channel];
    if (c->excluded)
        return;
    for (size_t i = 0; i < count; i++) {
        const int64_t n = first + (int64_t)i;
        if (n < c->next)
            continue;
        c->next = n + 1;
        if (n < s->counted) { /* others were too far ahead to wait for it */
            count_own(c, speech[i] != 0);
            continue;
        }
        if (n - s->counted >= PENDING_FRAMES)
            count_until(s, n - PENDING_FRAMES + 1);
        c->pending[n % PENDING_FRAMES] = speech[i] ? SPEECH : SILENCE;
    }
    int64_t known = INT64_MAX;
    for (int i = 0; i < s->channels_count; i++)
        if (!s->channels[i].excluded && s->channels[i].next < known)
            known = s->channels[i].next;
    count_until(s, known);
}

/* ---- results
 * ------------------------------------------------------------------------------------------------ */

static void add_to_mean(struct mean *m, const float *scores, double weight, int labels_count) {
    m->weight += weight;
    for (int i = 0; i < labels_count; i++)
        m->sums[i] += weight * (double)scores[i];
}

/* Segments of all channels become twice as long. */
static void double_segments(struct summary *s) {
    for (int i = 0; i < s->channels_count; i++) {
        struct channel *c = &s->channels[i];
        for (int k = 0; k < c->timeline_count; k++) {
            struct mean *from = &c->timeline[k], *to = &c->timeline[k / 2];
            if (to == from) /* the first of all */
                continue;
            to->weight += from->weight;
            for (int l = 0; l < s->labels_count; l++)
                to->sums[l] += from->sums[l];
            from->weight = 0;
            memset(from->sums, 0, (size_t)s->labels_count * sizeof *from->sums);
        }
        c->timeline_count = (c->timeline_count + 1) / 2;
    }
    s->segment_s *= 2;
}

void summary_add_result(struct summary *s, int channel, double start_s, double end_s, double speech_s,
                        const float *scores, bool no_speech) {
    struct channel *c = &s->channels[channel];
    if (c->excluded)
        return;
    c->results++;
    c->no_speech_results += no_speech;
    const double middle_s = (start_s + end_s) / 2 - s->start_s;
    if (!scores || !are_scores(scores, s->labels_count) || !(fabs(middle_s) <= TIME_S_MAX))
        return;
    while (middle_s >= s->segment_s * SUMMARY_SEGMENTS_MAX)
        double_segments(s);
    const int k = middle_s > 0 ? (int)(middle_s / s->segment_s) : 0;
    const double weight = speech_s > WEIGHT_MIN ? speech_s : WEIGHT_MIN;
    add_to_mean(&c->all, scores, weight, s->labels_count);
    add_to_mean(&c->timeline[k], scores, weight, s->labels_count);
    c->timeline_count = k < c->timeline_count ? c->timeline_count : k + 1;
}

void summary_count_forward(struct summary *s, int channel) {
    s->channels[channel].forwards++;
}

/* ---- the report
 * ------------------------------------------------------------------------------------------------ */

/* NULL without weight. */
static const float *give_mean(const struct mean *m, float *to, int labels_count) {
    if (!(m->weight > 0))
        return NULL;
    for (int i = 0; i < labels_count; i++)
        to[i] = (float)(m->sums[i] / m->weight);
    return to;
}

/* 0, 1 or 2: the third of the signal in which the middle of segment k lies, as far as the signal goes. */
static int find_third(const struct summary *s, int k, double length_s) {
    const double begin_s = k * s->segment_s;
    const double end_s = begin_s + s->segment_s < length_s ? begin_s + s->segment_s : length_s;
    const double share = (begin_s + end_s) / 2 / length_s;
    return share < 1.0 / 3 ? 0 : share < 2.0 / 3 ? 1 : 2;
}

static const float *give_trend(const struct summary *s, struct channel *c, double length_s) {
    double weights[3] = {0};
    if (!(length_s > 0))
        return NULL;
    for (int k = 0; k < c->timeline_count; k++)
        weights[find_third(s, k, length_s)] += c->timeline[k].weight;
    if (!(weights[0] > 0 && weights[2] > 0))
        return NULL;
    for (int i = 0; i < s->labels_count; i++) {
        double sums[3] = {0};
        for (int k = 0; k < c->timeline_count; k++)
            sums[find_third(s, k, length_s)] += c->timeline[k].sums[i];
        c->trend[i] = (float)(sums[2] / weights[2] - sums[0] / weights[0]);
    }
    return c->trend;
}

static void give_timeline(const struct summary *s, struct channel *c) {
    for (int k = 0; k < c->timeline_count; k++) {
        float *scores = c->segment_scores + (size_t)k * (size_t)s->labels_count;
        c->segments[k] = (struct summary_segment){
            .start_s = s->start_s + k * s->segment_s,
            .end_s = s->start_s + (k + 1) * s->segment_s,
            .speech_s = c->timeline[k].weight,
            .scores = give_mean(&c->timeline[k], scores, s->labels_count),
        };
    }
}

const struct summary_report *summary_get(struct summary *s) {
    const double end_s = (double)s->counted / FRAMES_PER_S;
    s->report = (struct summary_report){
        .channels_count = s->channels_count,
        .talk_over_s = s->talk_over_s + (double)s->talk_over_frames / FRAMES_PER_S,
        .start_s = s->start_s,
        .end_s = end_s > s->start_s ? end_s : s->start_s,
    };
    for (int i = 0; i < s->channels_count; i++) {
        struct channel *c = &s->channels[i];
        struct summary_channel *to = &s->report.channels[i];
        to->excluded = c->excluded;
        if (c->excluded)
            continue;
        give_timeline(s, c);
        *to = (struct summary_channel){
            .speech_s = c->speech_s + (double)c->speech_frames / FRAMES_PER_S,
            .silence_s = c->silence_s + (double)c->silence_frames / FRAMES_PER_S,
            .results = c->results,
            .no_speech_results = c->no_speech_results,
            .forwards = c->forwards,
            .scores = give_mean(&c->all, c->scores, s->labels_count),
            .trend = give_trend(s, c, s->report.end_s - s->start_s),
            .timeline = c->segments,
            .timeline_count = c->timeline_count,
        };
    }
    return &s->report;
}
