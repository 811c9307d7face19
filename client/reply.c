#include "client/reply.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/reply_parts.h"
#include "proto/google/protobuf/duration.pb-c.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/timbre/v1/timbre.pb-c.h"

/* What the caller gets, with the memory of everything it points to. */
struct prediction_block {
    struct timbre_prediction prediction;
    struct pool pool;
};
struct models_block {
    struct timbre_models models;
    struct pool pool;
};

int reply_fail(struct timbre_status *status, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (status) {
        vsnprintf(status->message, sizeof status->message, format, args);
        status->code = code;
    }
    va_end(args);
    return -1;
}

int reply_fail_memory(struct timbre_status *status) {
    return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED,
                      "the reply needs more memory than there is, or than "
                      "a message of its size may take");
}

void *reply_unpack(struct pool *p, const ProtobufCMessageDescriptor *type, const void *bytes, size_t count,
                   struct timbre_status *status) {
    ProtobufCAllocator allocator = pool_allocator(p);
    void *message = protobuf_c_message_unpack(type, &allocator, count, bytes);
    if (!message)
        reply_fail(status, TIMBRE_CODE_INTERNAL, "the server's reply of %zu bytes is not a %s", count,
                   type->name);
    return message;
}

/* ---- predictions ---- */

static struct timbre_score take_score(const Timbre__V1__Score *s) {
    return (struct timbre_score){.label = s->label, .index = s->index, .score = s->score, .logit = s->logit};
}

const struct timbre_score *reply_take_scores(struct pool *p, Timbre__V1__Score **scores, size_t count) {
    struct timbre_score *result = pool_alloc(p, count, sizeof *result);
    for (size_t i = 0; result && i < count; i++)
        result[i] = take_score(scores[i]);
    return result;
}

static int take_windows(struct prediction_block *b, const Timbre__V1__PredictResponse *m,
                        struct timbre_status *status) {
    struct timbre_window *windows = pool_alloc(&b->pool, m->n_windows, sizeof *windows);
    if (!windows)
        return reply_fail_memory(status);
    for (size_t i = 0; i < m->n_windows; i++) {
        const Timbre__V1__Window *w = m->windows[i];
        windows[i] =
            (struct timbre_window){.start_s = w->start_s, .end_s = w->end_s, .answer = (int)w->status};
        if (windows[i].answer != TIMBRE_ANSWER_OK)
            continue;
        if (w->n_scores == 0)
            return reply_fail(status, TIMBRE_CODE_INTERNAL,
                              "the server's reply has window %zu OK without scores", i);
        windows[i].scores_count = w->n_scores;
        windows[i].scores = reply_take_scores(&b->pool, w->scores, w->n_scores);
        if (!windows[i].scores)
            return reply_fail_memory(status);
    }
    b->prediction.windows = windows;
    b->prediction.windows_count = m->n_windows;
    return 0;
}

static int take_answer(struct prediction_block *b, const Timbre__V1__PredictResponse *m,
                       struct timbre_status *status) {
    struct timbre_prediction *p = &b->prediction;
    if (m->n_scores == 0)
        return reply_fail(status, TIMBRE_CODE_INTERNAL, "the server's reply is OK without scores");
    p->scores = reply_take_scores(&b->pool, m->scores, m->n_scores);
    p->scores_count = m->n_scores;
    p->embedding = m->embedding;
    p->embedding_count = m->n_embedding;
    if (m->dominant)
        p->dominant = reply_take_scores(&b->pool, (Timbre__V1__Score **)&m->dominant, 1);
    return !p->scores || (m->dominant && !p->dominant) ? reply_fail_memory(status) : 0;
}

void reply_take_receipt(struct timbre_receipt *r, const Timbre__V1__Receipt *m) {
    static const Timbre__V1__Receipt none = TIMBRE__V1__RECEIPT__INIT;
    m = m ? m : &none;
    *r = (struct timbre_receipt){.model = m->model,
                                 .model_version = m->model_version,
                                 .digest = m->digest,
                                 .device = m->device,
                                 .precision = m->precision,
                                 .batch_size = m->batch_size,
                                 .queue_ms = m->queue_ms,
                                 .compute_ms = m->compute_ms,
                                 .audio_s = m->audio_s};
}

struct timbre_prediction *reply_parse_prediction(const void *bytes, size_t count,
                                                 struct timbre_status *status) {
    struct prediction_block *b = calloc(1, sizeof *b);
    if (!b) {
        reply_fail_memory(status);
        return NULL;
    }
    pool_init(&b->pool, count);
    const Timbre__V1__PredictResponse *m =
        reply_unpack(&b->pool, &timbre__v1__predict_response__descriptor, bytes, count, status);
    if (!m)
        goto failed;
    struct timbre_prediction *p = &b->prediction;
    p->answer = (int)m->status;
    p->message = m->message;
    p->duration_s = m->duration_s;
    p->request_id = m->request_id;
    reply_take_receipt(&p->receipt, m->receipt);
    if (p->answer < TIMBRE_ANSWER_OK) {
        reply_fail(status, TIMBRE_CODE_INTERNAL,
                   "the server's reply does not say what became of the recording");
        goto failed;
    }
    if ((p->answer == TIMBRE_ANSWER_OK && take_answer(b, m, status)) ||
        (m->n_windows && take_windows(b, m, status)))
        goto failed;
    return p;
failed:
    pool_free(&b->pool);
    free(b);
    return NULL;
}

void timbre_prediction_free(struct timbre_prediction *prediction) {
    struct prediction_block *b = (struct prediction_block *)prediction; /* its first member */
    if (!b)
        return;
    pool_free(&b->pool);
    free(b);
}

/* ---- models ---- */

static struct timbre_model take_model(const Timbre__V1__Model *m) {
    return (struct timbre_model){.name = m->name,
                                 .version = m->version,
                                 .digest = m->digest,
                                 .family = m->family,
                                 .head = m->head,
                                 .labels = (const char *const *)m->labels,
                                 .labels_count = m->n_labels,
                                 .output = m->output,
                                 .sample_rate_hz = m->sample_rate_hz,
                                 .min_audio_s = m->min_audio_s,
                                 .frame_s = m->frame_s,
                                 .hidden = m->hidden,
                                 .parameters = m->parameters,
                                 .licence = m->licence,
                                 .device = m->device,
                                 .precision = m->precision};
}

/* From one Model, or from a ListModelsResponse. */
static struct timbre_models *parse_models(const ProtobufCMessageDescriptor *type, const void *bytes,
                                          size_t count, struct timbre_status *status) {
    struct models_block *b = calloc(1, sizeof *b);
    if (!b) {
        reply_fail_memory(status);
        return NULL;
    }
    pool_init(&b->pool, count);
    void *message = reply_unpack(&b->pool, type, bytes, count, status);
    if (!message)
        goto failed;
    Timbre__V1__Model *one = message, **all = &one;
    size_t models_count = 1;
    if (type == &timbre__v1__list_models_response__descriptor) {
        const Timbre__V1__ListModelsResponse *list = message;
        all = list->models;
        models_count = list->n_models;
    }
    struct timbre_model *models = pool_alloc(&b->pool, models_count, sizeof *models);
    if (!models) {
        reply_fail_memory(status);
        goto failed;
    }
    for (size_t i = 0; i < models_count; i++)
        models[i] = take_model(all[i]);
    b->models = (struct timbre_models){.models = models, .count = models_count};
    return &b->models;
failed:
    pool_free(&b->pool);
    free(b);
    return NULL;
}

struct timbre_models *reply_parse_models(const void *bytes, size_t count, struct timbre_status *status) {
    return parse_models(&timbre__v1__list_models_response__descriptor, bytes, count, status);
}

struct timbre_models *reply_parse_model(const void *bytes, size_t count, struct timbre_status *status) {
    return parse_models(&timbre__v1__model__descriptor, bytes, count, status);
}

void timbre_models_free(struct timbre_models *models) {
    struct models_block *b = (struct models_block *)models;
    if (!b)
        return;
    pool_free(&b->pool);
    free(b);
}

/* ---- health and error details ---- */

int reply_parse_health(const void *bytes, size_t count, bool *serving, struct timbre_status *status) {
    struct pool pool;
    pool_init(&pool, count);
    const Grpc__Health__V1__HealthCheckResponse *m =
        reply_unpack(&pool, &grpc__health__v1__health_check_response__descriptor, bytes, count, status);
    if (m)
        *serving = m->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    pool_free(&pool);
    return m ? 0 : -1;
}

static bool is_type(const Google__Protobuf__Any *any, const char *name) {
    const char *slash = strrchr(any->type_url, '/');
    return slash && strcmp(slash + 1, name) == 0;
}

static void take_retry_info(struct pool *pool, const ProtobufCBinaryData *value,
                            struct timbre_status *status) {
    ProtobufCAllocator allocator = pool_allocator(pool);
    const Google__Rpc__RetryInfo *m = google__rpc__retry_info__unpack(&allocator, value->len, value->data);
    const Google__Protobuf__Duration *d = m ? m->retry_delay : NULL;
    if (d && d->seconds >= 0 && d->seconds < INT32_MAX / 1000 && d->nanos >= 0 && d->nanos < 1000000000)
        status->retry_after_ms = (int)(d->seconds * 1000 + d->nanos / 1000000);
}

void reply_parse_details(const void *bytes, size_t count, struct timbre_status *status) {
    struct pool pool;
    pool_init(&pool, count);
    ProtobufCAllocator allocator = pool_allocator(&pool);
    const Google__Rpc__Status *m = google__rpc__status__unpack(&allocator, count, bytes);
    for (size_t i = 0; m && i < m->n_details; i++) {
        const Google__Protobuf__Any *any = m->details[i];
        if (is_type(any, "google.rpc.ErrorInfo")) {
            const Google__Rpc__ErrorInfo *info =
                google__rpc__error_info__unpack(&allocator, any->value.len, any->value.data);
            if (info)
                snprintf(status->reason, sizeof status->reason, "%s", info->reason);
        } else if (status->retry_after_ms < 0 && is_type(any, "google.rpc.RetryInfo")) {
            take_retry_info(&pool, &any->value, status);
        }
    }
    pool_free(&pool);
}
