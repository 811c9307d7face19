#include "client/stream_reply.h"

#include <math.h>

#include "client/reply.h"
#include "client/reply_parts.h"

/* No call is longer; far from where a double no longer tells samples apart, and from overflow. */
#define STREAM_S_MAX (366.0 * 24 * 3600)

enum { MS_PER_S = 1000 };

static int fail(struct timbre_status *status, const char *what) {
    return reply_fail(status, TIMBRE_CODE_INTERNAL, "the server sent a message of a stream with %s", what);
}

static int check_times(double start_s, double end_s, struct timbre_status *status) {
    if (start_s >= 0 && end_s >= start_s && end_s <= STREAM_S_MAX)
        return 0;
    return fail(status, "impossible times");
}

static int check_offset(int64_t offset_ms, struct timbre_status *status) {
    if (offset_ms >= 0 && offset_ms % MS_PER_S == 0 && offset_ms <= (int64_t)STREAM_S_MAX * MS_PER_S)
        return 0;
    return fail(status, "an impossible resume_offset_ms");
}

static int check_channel(int channel, struct timbre_status *status) {
    return channel >= 0 && channel < TIMBRE_STREAM_CHANNELS_MAX ? 0 : fail(status, "a channel that is none");
}

/* Scores, and the highest of them as a score of its own. */
static int take_all_scores(struct pool *p, const struct timbre_score **scores, size_t *count,
                           Timbre__V1__Score **from, size_t from_count, struct timbre_status *status) {
    *scores = reply_take_scores(p, from, from_count);
    *count = from_count;
    return *scores ? 0 : reply_fail_memory(status);
}

static int take_dominant(struct pool *p, const struct timbre_score **dominant, Timbre__V1__Score *from,
                         struct timbre_status *status) {
    if (!from)
        return 0;
    *dominant = reply_take_scores(p, &from, 1);
    return *dominant ? 0 : reply_fail_memory(status);
}

/* ---- results ---- */

static int take_result(struct stream_reply *reply, const Timbre__V1__StreamResult *m,
                       struct timbre_status *status) {
    struct pool *p = &reply->pool;
    struct timbre_stream_result *r = &reply->result;
    if (check_channel(m->channel, status) || check_times(m->start_s, m->end_s, status) ||
        check_offset(m->resume_offset_ms, status))
        return -1;
    *r = (struct timbre_stream_result){.channel = m->channel,
                                       .channel_name = m->channel_name,
                                       .role = m->role,
                                       .start_s = m->start_s,
                                       .end_s = m->end_s,
                                       .speech_s = m->speech_s,
                                       .answer = (int)m->status,
                                       .message = m->message,
                                       .final = m->final,
                                       .resume_offset_ms = m->resume_offset_ms,
                                       .lag_ms = NAN};
    reply_take_receipt(&r->receipt, m->receipt);
    if (r->answer < TIMBRE_ANSWER_OK)
        return fail(status, "a result that does not say what became of it");
    /* Smoothed scores go on through silence. */
    if (take_all_scores(p, &r->smoothed, &r->smoothed_count, m->smoothed, m->n_smoothed, status))
        return -1;
    if (r->answer != TIMBRE_ANSWER_OK)
        return 0;
    if (m->n_scores == 0)
        return fail(status, "a result that is OK without scores");
    r->embedding = m->embedding;
    r->embedding_count = m->n_embedding;
    return take_all_scores(p, &r->scores, &r->scores_count, m->scores, m->n_scores, status) ||
                   take_dominant(p, &r->dominant, m->dominant, status)
               ? -1
               : 0;
}

/* ---- summaries ---- */

static int take_timeline(struct pool *p, struct timbre_channel_summary *c,
                         const Timbre__V1__ChannelSummary *m, struct timbre_status *status) {
    struct timbre_timeline_segment *segments = pool_alloc(p, m->n_timeline, sizeof *segments);
    if (!segments)
        return reply_fail_memory(status);
    for (size_t i = 0; i < m->n_timeline; i++) {
        const Timbre__V1__TimelineSegment *s = m->timeline[i];
        if (check_times(s->start_s, s->end_s, status))
            return -1;
        segments[i] = (struct timbre_timeline_segment){.start_s = s->start_s,
                                                       .end_s = s->end_s,
                                                       .speech_s = s->speech_s,
                                                       .scores = s->scores,
                                                       .scores_count = s->n_scores};
    }
    c->timeline = segments;
    c->timeline_count = m->n_timeline;
    return 0;
}

static int take_channel(struct pool *p, struct timbre_channel_summary *c, const Timbre__V1__ChannelSummary *m,
                        struct timbre_status *status) {
    *c = (struct timbre_channel_summary){.channel = m->channel,
                                         .channel_name = m->channel_name,
                                         .role = m->role,
                                         .excluded = m->excluded,
                                         .speech_s = m->speech_s,
                                         .silence_s = m->silence_s,
                                         .no_speech_share = m->no_speech_share,
                                         .results = m->results,
                                         .no_speech_results = m->no_speech_results,
                                         .forwards = m->forwards};
    if (check_channel(m->channel, status) ||
        take_all_scores(p, &c->scores, &c->scores_count, m->scores, m->n_scores, status) ||
        take_all_scores(p, &c->trend, &c->trend_count, m->trend, m->n_trend, status) ||
        take_dominant(p, &c->dominant, m->dominant, status) || take_timeline(p, c, m, status))
        return -1;
    return 0;
}

static int take_summary(struct stream_reply *reply, Timbre__V1__StreamSummary *m,
                        struct timbre_status *status) {
    struct timbre_stream_summary *s = &reply->summary;
    if (check_times(m->start_s, m->end_s, status) || check_offset(m->resume_offset_ms, status))
        return -1;
    if (m->n_channels > TIMBRE_STREAM_CHANNELS_MAX)
        return fail(status, "a summary of too many channels");
    struct timbre_channel_summary *channels = pool_alloc(&reply->pool, m->n_channels, sizeof *channels);
    if (!channels)
        return reply_fail_memory(status);
    for (size_t i = 0; i < m->n_channels; i++)
        if (take_channel(&reply->pool, &channels[i], m->channels[i], status))
            return -1;
    *s = (struct timbre_stream_summary){.final = m->final,
                                        .end = (int)m->end,
                                        .channels = channels,
                                        .channels_count = m->n_channels,
                                        .talk_over_s = m->talk_over_s,
                                        .start_s = m->start_s,
                                        .end_s = m->end_s,
                                        .resume_offset_ms = m->resume_offset_ms,
                                        .request_id = m->request_id};
    if (s->final && s->end == TIMBRE_STREAM_GOES_ON)
        return fail(status, "a final summary that does not say what ended the stream");
    reply->is_summary = true;
    reply->message = m;
    return 0;
}

/* ---- both ---- */

int stream_reply_parse(struct stream_reply *r, const void *bytes, size_t count,
                       struct timbre_status *status) {
    *r = (struct stream_reply){.is_summary = false};
    pool_init(&r->pool, count);
    const Timbre__V1__StreamingPredictResponse *m =
        reply_unpack(&r->pool, &timbre__v1__streaming_predict_response__descriptor, bytes, count, status);
    if (!m)
        return -1;
    switch (m->response_case) {
    case TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_RESULT:
        return take_result(r, m->result, status);
    case TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_SUMMARY:
        return take_summary(r, m->summary, status);
    default:
        return fail(status, "neither a result nor a summary");
    }
}

void stream_reply_free(struct stream_reply *r) {
    pool_free(&r->pool);
}
