#include "server/stream_answer.h"

#include <stdlib.h>

#include "server/answer.h"

struct stream_answer {
    Timbre__V1__StreamingPredictResponse response;
    Timbre__V1__StreamResult result;
    Timbre__V1__StreamSummary summary;
    Timbre__V1__Receipt receipt;
    Timbre__V1__Score dominant; /* of a result */
    struct arena block;
};

/* What is built, and where. While the arena counts there is no memory, only its size matters. */
struct build {
    const struct engine_stream_event *event;
    const struct stream_answer_options *options;
    const struct model_info *info;
    struct arena *arena;
};

/* All labels in the model's order. `scores` NULL: none; `logits` NULL: they stay 0. */
static Timbre__V1__Score **list_scores(const struct build *b, const float *scores, const float *logits,
                                       size_t *count) {
    const struct model_info *info = b->info;
    *count = scores ? (size_t)info->labels_count : 0;
    if (!scores)
        return NULL;
    Timbre__V1__Score **list = arena_alloc(b->arena, *count, sizeof *list);
    Timbre__V1__Score *each = arena_alloc(b->arena, *count, sizeof *each);
    for (int i = 0; list && each && i < info->labels_count; i++) {
        answer_fill_score(&each[i], info, i, scores[i], logits ? logits[i] : 0);
        list[i] = &each[i];
    }
    return list;
}

/* ---- results ---- */

static void fill_result(struct stream_answer *a, const struct build *b) {
    const struct engine_stream_event *e = b->event;
    const struct stream_channel *channel = &b->options->channels[e->channel];
    Timbre__V1__StreamResult *to = &a->result;
    timbre__v1__stream_result__init(to);
    to->channel = e->channel;
    to->channel_name = (char *)channel->name;
    to->role = (char *)channel->role;
    to->start_s = e->start_s;
    to->end_s = e->end_s;
    to->status = answer_convert_outcome(e->outcome);
    to->message = (char *)e->message;
    to->scores = list_scores(b, e->scores, e->logits, &to->n_scores);
    to->smoothed = list_scores(b, e->smoothed, NULL, &to->n_smoothed);
    to->final = e->final;
    to->resume_offset_ms = e->resume_offset_ms;
    to->embedding = (float *)e->embedding;
    to->n_embedding = e->embedding ? (size_t)b->info->hidden : 0;
    to->speech_s = e->speech_s;
    answer_fill_receipt(&a->receipt, b->info, b->options->model_name, b->options->model_version);
    a->receipt.batch_size = e->batch_size;
    a->receipt.queue_ms = e->queue_ms;
    a->receipt.compute_ms = e->compute_ms;
    a->receipt.audio_s = e->audio_s;
    to->receipt = &a->receipt;
    if (e->dominant >= 0 && e->scores) {
        answer_fill_score(&a->dominant, b->info, e->dominant, e->scores[e->dominant], e->logits[e->dominant]);
        to->dominant = &a->dominant;
    }
    a->response.response_case = TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_RESULT;
    a->response.result = to;
}

/* ---- summaries ---- */

static Timbre__V1__TimelineSegment **list_timeline(const struct build *b, const struct summary_channel *c) {
    const size_t count = (size_t)c->timeline_count;
    Timbre__V1__TimelineSegment **list = arena_alloc(b->arena, count, sizeof *list);
    Timbre__V1__TimelineSegment *each = arena_alloc(b->arena, count, sizeof *each);
    for (size_t i = 0; list && each && i < count; i++) {
        const struct summary_segment *from = &c->timeline[i];
        timbre__v1__timeline_segment__init(&each[i]);
        each[i].start_s = from->start_s;
        each[i].end_s = from->end_s;
        each[i].speech_s = from->speech_s;
        each[i].scores = (float *)from->scores;
        each[i].n_scores = from->scores ? (size_t)b->info->labels_count : 0;
        list[i] = &each[i];
    }
    return list;
}

static Timbre__V1__Score *find_dominant(const struct build *b, const float *scores) {
    const int best = scores ? model_dominant(b->options->model, scores) : -1;
    Timbre__V1__Score *s = best >= 0 ? arena_alloc(b->arena, 1, sizeof *s) : NULL;
    if (s)
        answer_fill_score(s, b->info, best, scores[best], 0);
    return s;
}

static void fill_channel(Timbre__V1__ChannelSummary *to, const struct build *b, int index) {
    const struct summary_channel *from = &b->event->summary->channels[index];
    timbre__v1__channel_summary__init(to);
    to->channel = index;
    to->channel_name = (char *)b->options->channels[index].name;
    to->role = (char *)b->options->channels[index].role;
    to->excluded = from->excluded;
    if (from->excluded)
        return;
    to->scores = list_scores(b, from->scores, NULL, &to->n_scores);
    to->dominant = find_dominant(b, from->scores);
    to->speech_s = from->speech_s;
    to->silence_s = from->silence_s;
    to->no_speech_share = from->results ? (double)from->no_speech_results / (double)from->results : 0;
    to->trend = list_scores(b, from->trend, NULL, &to->n_trend);
    to->results = from->results;
    to->no_speech_results = from->no_speech_results;
    to->forwards = from->forwards;
    to->timeline = list_timeline(b, from);
    to->n_timeline = (size_t)from->timeline_count;
}

static void fill_summary(struct stream_answer *a, const struct build *b) {
    const struct engine_stream_event *e = b->event;
    const size_t count = (size_t)e->summary->channels_count;
    Timbre__V1__StreamSummary *to = &a->summary;
    Timbre__V1__ChannelSummary **list = arena_alloc(b->arena, count, sizeof *list);
    Timbre__V1__ChannelSummary *each = arena_alloc(b->arena, count, sizeof *each), counted;
    timbre__v1__stream_summary__init(to);
    for (size_t i = 0; i < count; i++) {
        fill_channel(each ? &each[i] : &counted, b, (int)i);
        if (list && each)
            list[i] = &each[i];
    }
    to->channels = list;
    to->n_channels = count;
    to->final = e->last;
    to->talk_over_s = e->summary->talk_over_s;
    to->resume_offset_ms = e->resume_offset_ms;
    to->request_id = (char *)b->options->request_id;
    to->end = e->last ? b->options->end : TIMBRE__V1__STREAM_END__STREAM_END_UNSPECIFIED;
    to->start_s = e->summary->start_s;
    to->end_s = e->summary->end_s;
    a->response.response_case = TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_SUMMARY;
    a->response.summary = to;
}

static void fill(struct stream_answer *a, const struct build *b) {
    if (b->event->kind == ENGINE_STREAM_SUMMARY)
        fill_summary(a, b);
    else
        fill_result(a, b);
}

struct stream_answer *stream_answer_new(const struct engine_stream_event *e,
                                        const struct stream_answer_options *o) {
    struct stream_answer *a = calloc(1, sizeof *a);
    struct arena counting;
    if (!a)
        return NULL;
    timbre__v1__streaming_predict_response__init(&a->response);
    arena_init_counting(&counting);
    struct build b = {e, o, model_get_info(o->model), &counting};
    fill(a, &b);
    if (counting.failed || arena_init(&a->block, counting.used, "an answer", NULL)) {
        free(a);
        return NULL;
    }
    b.arena = &a->block;
    fill(a, &b);
    return a;
}

const Timbre__V1__StreamingPredictResponse *stream_answer_get(const struct stream_answer *a) {
    return &a->response;
}

void stream_answer_free(struct stream_answer *a) {
    if (!a)
        return;
    arena_free(&a->block);
    free(a);
}
