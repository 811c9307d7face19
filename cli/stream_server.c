/* stream by a running server. Its results print as those of this machine would. Callbacks print on the
 * client's thread: who does not read the output is not read from either, and the server's limits hold. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "cli/stream.h"

struct server {
    const struct stream_arguments *arguments;
    struct stream_output *out;
    struct timbre_client *client;
    struct timbre_models *models; /* the one asked; NULL: the server did not say */
    struct timbre_stream *stream;
    int wake_fd;
    bool finished;
    atomic_bool over; /* then the status is set */
    struct timbre_status status;
};

/* ---- what comes back ---- */

static void out_of_memory(struct server *s) {
    fprintf(stderr, "timbre stream: out of memory for a result\n");
    s->out->failed++;
}

static int find_score(const struct timbre_score *scores, size_t count, const struct timbre_score *wanted) {
    for (size_t i = 0; wanted && i < count; i++)
        if (scores[i].index == wanted->index)
            return (int)i;
    return -1;
}

/* Labels of the scores, else of the model. */
static int take_labels(const char **labels, const struct timbre_score *scores, size_t count) {
    for (size_t i = 0; i < count; i++)
        labels[i] = scores[i].label;
    return (int)count;
}

static const struct timbre_model *get_model(const struct server *s) {
    static const struct timbre_model unknown = {.name = "", .digest = "", .device = "", .precision = ""};
    return s->models ? &s->models->models[0] : &unknown;
}

static bool is_shown(const struct server *s, int channel) {
    return channel >= 0 && channel < s->arguments->analysis.format.channels;
}

/* `values` [3][scores_count] and `labels` [scores_count] are room. */
static void print_result(struct server *s, const struct timbre_stream_result *r, float *values,
                         const char **labels) {
    const size_t n = r->scores_count;
    const bool smoothed = r->smoothed_count == n && n > 0;
    const bool known = r->answer >= TIMBRE_ANSWER_OK && r->answer <= TIMBRE_ANSWER_ERROR;
    const struct timbre_model *m = get_model(s);
    for (size_t i = 0; i < n; i++) {
        values[i] = r->scores[i].score;
        values[n + i] = r->scores[i].logit;
        values[2 * n + i] = smoothed ? r->smoothed[i].score : 0;
    }
    const struct stream_result result = {
        .channel = r->channel,
        .start_s = r->start_s,
        .end_s = r->end_s,
        .speech_s = r->speech_s,
        .status = known ? timbre_answer_name(r->answer) : "error",
        .message = known ? r->message : "the server's answer is of a kind that this version does not know",
        .final = r->final,
        .labels = n ? labels : m->labels,
        .labels_count = n ? take_labels(labels, r->scores, n) : (int)m->labels_count,
        .scores = n ? values : NULL,
        .logits = n ? values + n : NULL,
        .smoothed = smoothed ? values + 2 * n : NULL,
        .embedding = r->embedding_count ? r->embedding : NULL,
        .embedding_count = (int)r->embedding_count,
        .dominant = find_score(r->scores, n, r->dominant),
        .receipt = {.model = r->receipt.model,
                    .digest = r->receipt.digest,
                    .device = r->receipt.device,
                    .precision = r->receipt.precision,
                    .batch_size = r->receipt.batch_size,
                    .queue_ms = r->receipt.queue_ms,
                    .compute_ms = r->receipt.compute_ms,
                    .audio_s = r->receipt.audio_s},
        .resume_offset_ms = r->resume_offset_ms,
        .lag_ms = r->lag_ms};
    stream_print_result(s->out, &result);
}

static void on_result(const struct timbre_stream_result *r, void *user) {
    struct server *s = user;
    size_t count;
    if (!is_shown(s, r->channel))
        return;
    float *values = check_mul_size(r->scores_count, 3, &count) ? calloc(count + 1, sizeof *values) : NULL;
    const char **labels = calloc(r->scores_count + 1, sizeof *labels);
    if (values && labels)
        print_result(s, r, values, labels);
    else
        out_of_memory(s);
    free(values);
    free(labels);
}

static const char *name_end(int end) {
    static const char *const names[] = {"", "client", "drain", "lifetime", "idle", "error"};
    return end >= 0 && end < (int)(sizeof names / sizeof *names) ? names[end] : "error";
}

/* Mean scores and trend of a channel, and its timeline: what a summary needs room for. */
struct room {
    float *values; /* [2][labels] */
    struct summary_segment *timeline;
};

static bool fill_channel(struct summary_channel *to, const struct timbre_channel_summary *from, size_t labels,
                         struct room *room) {
    room->values = calloc(2 * labels + 1, sizeof *room->values);
    room->timeline = calloc(from->timeline_count + 1, sizeof *room->timeline);
    if (!room->values || !room->timeline)
        return false;
    for (size_t i = 0; i < labels && i < from->scores_count; i++)
        room->values[i] = from->scores[i].score;
    for (size_t i = 0; i < labels && i < from->trend_count; i++)
        room->values[labels + i] = from->trend[i].score;
    for (size_t i = 0; i < from->timeline_count; i++) {
        const struct timbre_timeline_segment *t = &from->timeline[i];
        room->timeline[i] =
            (struct summary_segment){.start_s = t->start_s,
                                     .end_s = t->end_s,
                                     .speech_s = t->speech_s,
                                     .scores = labels && t->scores_count == labels ? t->scores : NULL};
    }
    *to = (struct summary_channel){.excluded = from->excluded,
                                   .speech_s = from->speech_s,
                                   .silence_s = from->silence_s,
                                   .results = from->results,
                                   .no_speech_results = from->no_speech_results,
                                   .forwards = from->forwards,
                                   .scores = labels && from->scores_count == labels ? room->values : NULL,
                                   .trend =
                                       labels && from->trend_count == labels ? room->values + labels : NULL,
                                   .timeline = room->timeline,
                                   .timeline_count = (int)from->timeline_count};
    return true;
}

static void on_summary(const struct timbre_stream_summary *from, void *user) {
    struct server *s = user;
    const struct timbre_model *m = get_model(s);
    struct summary_report report = {
        .talk_over_s = from->talk_over_s, .start_s = from->start_s, .end_s = from->end_s};
    struct stream_summary summary = {.report = &report,
                                     .labels = m->labels,
                                     .labels_count = (int)m->labels_count,
                                     .final = from->final,
                                     .end = from->final ? name_end(from->end) : "",
                                     .resume_offset_ms = from->resume_offset_ms,
                                     .request_id = from->request_id};
    struct room room[SUMMARY_CHANNELS_MAX] = {{NULL, NULL}};
    const char **labels = NULL;
    bool fits = true;
    for (size_t c = 0; c < from->channels_count && !labels; c++)
        if (from->channels[c].scores_count) {
            const size_t n = from->channels[c].scores_count;
            labels = calloc(n + 1, sizeof *labels);
            summary.labels = labels;
            summary.labels_count = labels ? take_labels(labels, from->channels[c].scores, n) : 0;
            fits = labels != NULL;
        }
    for (size_t c = 0; fits && c < from->channels_count && is_shown(s, (int)c); c++) {
        const struct timbre_channel_summary *channel = &from->channels[c];
        fits = fill_channel(&report.channels[c], channel, (size_t)summary.labels_count, &room[c]);
        summary.dominant[c] = find_score(channel->scores, channel->scores_count, channel->dominant);
        report.channels_count++;
    }
    if (fits)
        stream_print_summary(s->out, &summary);
    else
        out_of_memory(s);
    for (int c = 0; c < SUMMARY_CHANNELS_MAX; c++) {
        free(room[c].values);
        free(room[c].timeline);
    }
    free(labels);
}

static void on_resume(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user) {
    stream_print_resume(((struct server *)user)->out, timbre_code_name(why->code), why->message, offset_ms,
                        wait_ms);
}

static void on_end(const struct timbre_status *status, void *user) {
    struct server *s = user;
    const uint64_t one = 1;
    s->status = *status;
    atomic_store(&s->over, true);
    const ssize_t ignored = write(s->wake_fd, &one, sizeof one);
    (void)ignored;
}

/* ---- the stream ---- */

/* Whether another server, or the same one later, would say so too. */
static bool is_hopeless(int code) {
    return code == TIMBRE_CODE_NOT_FOUND || code == TIMBRE_CODE_UNAUTHENTICATED ||
           code == TIMBRE_CODE_PERMISSION_DENIED || code == TIMBRE_CODE_INVALID_ARGUMENT;
}

static int open_stream(struct server *s) {
    const struct stream_arguments *a = s->arguments;
    const struct engine_stream_options *o = &a->analysis;
    char names[ENGINE_STREAM_CHANNELS_MAX][STREAM_NAME_BYTES];
    struct timbre_status status;
    struct timbre_stream_options to = {.encoding = cli_client_encoding(o->format.encoding),
                                       .sample_rate_hz = o->format.rate_hz,
                                       .channels_count = o->format.channels,
                                       .model = a->model,
                                       .utterances = o->utterances,
                                       .window_s = o->window_s,
                                       .hop_s = o->hop_s,
                                       .speech_s_min = o->speech_s_min,
                                       .length_s_min = o->length_s_min,
                                       .length_s_max = o->length_s_max,
                                       .hangover_s = o->hangover_s,
                                       .interim_every_s = o->interim_every_s,
                                       .smoothing_s = o->smoothing_s,
                                       .summary_every_s = o->summary_every_s,
                                       .embedding = o->embedding,
                                       .on_result = on_result,
                                       .on_summary = on_summary,
                                       .on_resume = on_resume,
                                       .on_end = on_end,
                                       .user = s,
                                       .no_resume = a->no_resume,
                                       .deadline_ms = a->server.deadline_ms,
                                       .resume_offset_ms = o->resume_offset_ms};
    for (int c = 0; c < o->format.channels; c++) {
        stream_name_channel(names[c], a, c);
        to.channels[c] = (struct timbre_stream_channel){
            .name = names[c], .role = a->channels[c].role, .exclude = o->channels[c].excluded};
        to.resume_end_s[c] = o->channels[c].had_s;
    }
    if (timbre_stream_open(s->client, &to, &s->stream, &status))
        return cli_fail("stream", CLI_NOT_STARTED, "%s", status.message);
    return CLI_OK;
}

static int open_server(void **self, const struct stream_arguments *a, struct stream_output *out,
                       int wake_fd) {
    struct timbre_status status;
    struct server *s = *self = calloc(1, sizeof *s);
    if (!s)
        return cli_fail("stream", CLI_NOT_STARTED, "out of memory");
    s->arguments = a;
    s->out = out;
    s->wake_fd = wake_fd;
    if (timbre_client_new(&s->client, &a->server, &status))
        return cli_fail("stream", CLI_NOT_STARTED, "--server %s: %s", a->server.target, status.message);
    /* The labels, also of results without scores. A server that is not there is the stream's error. */
    if (timbre_get_model(s->client, a->model, NULL, 0, &s->models, &status) && is_hopeless(status.code))
        return cli_fail("stream", CLI_NOT_STARTED, "--server %s: %s: %s", a->server.target,
                        timbre_code_name(status.code), status.message);
    return open_stream(s);
}

static enum stream_sent send_server(void *self, const void *data, size_t bytes) {
    struct server *s = self;
    struct timbre_status status;
    if (s->finished || atomic_load(&s->over))
        return STREAM_OVER;
    if (timbre_stream_send(s->stream, data, bytes, 0, &status) == 0)
        return STREAM_SENT;
    return status.code == TIMBRE_CODE_RESOURCE_EXHAUSTED ? STREAM_NO_ROOM : STREAM_OVER;
}

static void finish_server(void *self) {
    struct server *s = self;
    if (!s->finished && !atomic_load(&s->over))
        timbre_stream_finish(s->stream, NULL);
    s->finished = true;
}

static bool attend_server(void *self) {
    return !atomic_load(&((struct server *)self)->over);
}

static int end_server(void *self) {
    struct server *s = self;
    if (!s)
        return CLI_OK;
    if (s->stream && !atomic_load(&s->over))
        timbre_stream_cancel(s->stream);
    timbre_stream_del(s->stream);
    timbre_client_del(s->client);
    timbre_models_free(s->models);
    int result = CLI_OK;
    if (s->status.code != TIMBRE_CODE_OK)
        result = cli_fail("stream", CLI_SOME_FAILED, "%s: %s", timbre_code_name(s->status.code),
                          s->status.message);
    free(s);
    return result;
}

const struct stream_backend stream_server = {
    .open = open_server,
    .send = send_server,
    .finish = finish_server,
    .attend = attend_server,
    .end = end_server,
};
