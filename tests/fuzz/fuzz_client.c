/* Fuzzes what the client reads of a server: replies, messages of streams, error details, the time to come
 * again. The first byte chooses. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/reply.h"
#include "client/retry.h"
#include "client/stream_reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile size_t sink;

/* Reads all that a program would, up to the last zero. */
static void read_prediction(const struct timbre_prediction *p) {
    size_t sum = strlen(p->message) + strlen(p->request_id) + strlen(p->receipt.model) +
                 strlen(p->receipt.digest) + strlen(p->receipt.model_version) + strlen(p->receipt.device) +
                 strlen(p->receipt.precision);
    for (size_t i = 0; i < p->scores_count; i++)
        sum += strlen(p->scores[i].label);
    for (size_t i = 0; i < p->embedding_count; i++)
        sum += p->embedding[i] > 0;
    for (size_t w = 0; w < p->windows_count; w++) {
        if (p->windows[w].answer == TIMBRE_ANSWER_OK && p->windows[w].scores_count == 0)
            abort();
        for (size_t i = 0; i < p->windows[w].scores_count; i++)
            sum += strlen(p->windows[w].scores[i].label);
    }
    if (p->dominant)
        sum += strlen(p->dominant->label);
    if ((p->answer == TIMBRE_ANSWER_OK) != (p->scores_count > 0))
        abort();
    sink = sum;
}

static void read_models(const struct timbre_models *models) {
    size_t sum = 0;
    for (size_t i = 0; i < models->count; i++) {
        const struct timbre_model *m = &models->models[i];
        sum += strlen(m->name) + strlen(m->version) + strlen(m->digest) + strlen(m->family) +
               strlen(m->head) + strlen(m->output) + strlen(m->licence) + strlen(m->device) +
               strlen(m->precision);
        for (size_t l = 0; l < m->labels_count; l++)
            sum += strlen(m->labels[l]);
    }
    sink = sum;
}

static size_t read_scores(const struct timbre_score *scores, size_t count) {
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += strlen(scores[i].label) + (scores[i].score > 0);
    return sum;
}

static void read_result(const struct timbre_stream_result *r) {
    size_t sum = strlen(r->channel_name) + strlen(r->role) + strlen(r->message) + strlen(r->receipt.model);
    sum += read_scores(r->scores, r->scores_count) + read_scores(r->smoothed, r->smoothed_count) +
           (r->dominant ? read_scores(r->dominant, 1) : 0);
    for (size_t i = 0; i < r->embedding_count; i++)
        sum += r->embedding[i] > 0;
    if (r->channel < 0 || r->channel >= TIMBRE_STREAM_CHANNELS_MAX || r->resume_offset_ms < 0 ||
        r->resume_offset_ms % 1000 || !(r->end_s >= r->start_s) ||
        (r->answer == TIMBRE_ANSWER_OK) != (r->scores_count > 0))
        abort();
    sink = sum;
}

static void read_summary(const struct timbre_stream_summary *s) {
    size_t sum = strlen(s->request_id);
    for (size_t i = 0; i < s->channels_count; i++) {
        const struct timbre_channel_summary *c = &s->channels[i];
        sum += strlen(c->channel_name) + strlen(c->role) + read_scores(c->scores, c->scores_count) +
               read_scores(c->trend, c->trend_count) + (c->dominant ? read_scores(c->dominant, 1) : 0);
        for (size_t t = 0; t < c->timeline_count; t++)
            for (size_t k = 0; k < c->timeline[t].scores_count; k++)
                sum += c->timeline[t].scores[k] > 0;
        if (c->channel < 0 || c->channel >= TIMBRE_STREAM_CHANNELS_MAX)
            abort();
    }
    if (s->resume_offset_ms < 0 || s->resume_offset_ms % 1000 || (s->final && !s->end))
        abort();
    sink = sum;
}

static void read_stream_reply(const uint8_t *data, size_t size, struct timbre_status *status) {
    struct stream_reply r;
    if (stream_reply_parse(&r, data, size, status) == 0) {
        if (r.is_summary)
            read_summary(&r.summary);
        else
            read_result(&r.result);
    }
    stream_reply_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct timbre_status status = {.retry_after_ms = -1};
    struct timbre_prediction *p;
    struct timbre_models *models;
    bool serving = false;
    if (size == 0)
        return 0;
    const uint8_t kind = data[0];
    data++, size--;
    switch (kind % 7) {
    case 0:
        if ((p = reply_parse_prediction(data, size, &status)))
            read_prediction(p);
        timbre_prediction_free(p);
        break;
    case 1:
    case 2:
        models =
            kind % 7 == 1 ? reply_parse_models(data, size, &status) : reply_parse_model(data, size, &status);
        if (models)
            read_models(models);
        timbre_models_free(models);
        break;
    case 3:
        reply_parse_health(data, size, &serving, &status);
        break;
    case 4:
        reply_parse_details(data, size, &status);
        sink = strlen(status.reason);
        break;
    case 5:
        sink = (size_t)retry_parse_pushback((const char *)data, size);
        break;
    default:
        read_stream_reply(data, size, &status);
    }
    return 0;
}
