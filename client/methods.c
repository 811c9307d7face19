/* The methods: from the structs of client.h to messages, and waiting for the answer. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "client/internal.h"
#include "client/reply.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/timbre/v1/timbre.pb-c.h"

/* gRPC's lengths have 32 bits with a sign; and room for the rest of the message. */
#define AUDIO_BYTES_MAX ((size_t)INT_MAX - (1 << 20))

enum { AUDIO_HEADER_BYTES = 6, AUDIO_TAG = 1 << 3 | 2 /* field 1, bytes */ };

const char *timbre_code_name(int code) {
    static const char *const names[] = {
        "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED",
    };
    return code >= 0 && code < (int)(sizeof names / sizeof *names) ? names[code] : "UNKNOWN";
}

const char *timbre_answer_name(int answer) {
    static const char *const names[] = {"unknown", "ok", "no_speech", "too_short", "error"};
    return names[answer >= TIMBRE_ANSWER_OK && answer <= TIMBRE_ANSWER_ERROR ? answer : 0];
}

static void clear(struct timbre_status *status) {
    if (status)
        *status = (struct timbre_status){.retry_after_ms = -1};
}

/* ---- waiting ---- */

/* A caller that waits for one call. */
struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
    struct timbre_status status;
    enum client_method method;
    struct timbre_prediction *prediction;
    struct timbre_models *models;
    bool serving;
};

static void on_done(struct timbre_call *c, const void *bytes, size_t count) {
    struct waiter *w = c->done_arg;
    if (c->status.code == TIMBRE_CODE_OK) {
        switch (w->method) {
        case CLIENT_PREDICT:
            w->prediction = reply_parse_prediction(bytes, count, &c->status);
            break;
        case CLIENT_LIST_MODELS:
            w->models = reply_parse_models(bytes, count, &c->status);
            break;
        case CLIENT_GET_MODEL:
            w->models = reply_parse_model(bytes, count, &c->status);
            break;
        default:
            reply_parse_health(bytes, count, &w->serving, &c->status);
        }
    }
    pthread_mutex_lock(&w->mutex);
    w->status = c->status;
    w->done = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex); /* from here on *w may be gone */
}

/* Takes over the options' payload. -1 with *status filled. */
static int wait_for(struct timbre_client *client, struct call_options *o, struct waiter *w,
                    struct timbre_status *status) {
    clear(status);
    w->method = o->method;
    o->done = on_done;
    o->done_arg = w;
    if (pthread_equal(pthread_self(), client->thread)) {
        for (size_t i = 0; i < o->payload_count; i++)
            grpc_slice_unref(o->payload[i]);
        return reply_fail(status, TIMBRE_CODE_FAILED_PRECONDITION,
                          "a callback must not wait; timbre_predict_start does not");
    }
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->cond, NULL);
    int result = call_start(client, o, NULL, status);
    if (result == 0) {
        pthread_mutex_lock(&w->mutex);
        while (!w->done)
            pthread_cond_wait(&w->cond, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
        if (status)
            *status = w->status;
        result = w->status.code == TIMBRE_CODE_OK ? 0 : -1;
    }
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    return result;
}

/* ---- Predict ---- */

static grpc_slice pack(const ProtobufCMessage *m, size_t extra) {
    const size_t bytes = protobuf_c_message_get_packed_size(m);
    grpc_slice slice = grpc_slice_malloc(bytes + extra);
    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(slice));
    return slice;
}

/* Everything but the audio, then the header of the audio: the bytes themselves follow as a slice of their
 * own. */
static grpc_slice pack_request(const struct timbre_predict_request *r) {
    Timbre__V1__PredictRequest m = TIMBRE__V1__PREDICT_REQUEST__INIT;
    Timbre__V1__AudioFormat format = TIMBRE__V1__AUDIO_FORMAT__INIT;
    Timbre__V1__Windows windows = TIMBRE__V1__WINDOWS__INIT;
    format.encoding = (Timbre__V1__Encoding)r->encoding;
    format.sample_rate_hz = r->sample_rate_hz;
    format.channels = r->channels;
    windows.length_s = r->window_s;
    windows.hop_s = r->hop_s;
    windows.speech_s_min = r->speech_s_min;
    if (r->encoding || r->sample_rate_hz || r->channels)
        m.format = &format;
    if (r->window_s != 0 || r->hop_s != 0 || r->speech_s_min != 0)
        m.windows = &windows;
    if (r->model)
        m.model = (char *)r->model;
    if (r->model_version)
        m.model_version = (char *)r->model_version;
    if (r->request_id)
        m.request_id = (char *)r->request_id;
    m.top_k = r->top_k;
    m.embedding = r->embedding;
    m.priority = (Timbre__V1__Priority)r->priority;

    grpc_slice slice = pack(&m.base, AUDIO_HEADER_BYTES);
    uint8_t *end = GRPC_SLICE_END_PTR(slice) - AUDIO_HEADER_BYTES;
    *end++ = AUDIO_TAG;
    size_t rest = r->audio_bytes;
    for (; rest >= 0x80; rest >>= 7)
        *end++ = (uint8_t)(rest | 0x80);
    *end++ = (uint8_t)rest;
    GRPC_SLICE_SET_LENGTH(slice, end - GRPC_SLICE_START_PTR(slice));
    return slice;
}

static int check_request(const struct timbre_predict_request *r, struct timbre_status *status) {
    if (!r->audio && r->audio_bytes)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "audio: none, but audio_bytes is %zu",
                          r->audio_bytes);
    if (r->audio_bytes > AUDIO_BYTES_MAX)
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "audio_bytes: %zu are more than %zu",
                          r->audio_bytes, AUDIO_BYTES_MAX);
    if (r->deadline_ms < TIMBRE_NO_DEADLINE)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "deadline_ms: %d", r->deadline_ms);
    return call_check_traceparent(r->traceparent, status);
}

/* The request as options of a call; its audio is released in any case. */
static int take_request(struct call_options *o, const struct timbre_predict_request *r,
                        struct timbre_status *status) {
    void *audio = (void *)r->audio;
    void (*release)(void *) = r->release;
    void *release_arg = r->release_arg;
    clear(status);
    if (check_request(r, status)) {
        if (release)
            release(release_arg);
        return -1;
    }
    if (!release) {
        audio = malloc(r->audio_bytes ? r->audio_bytes : 1);
        if (!audio)
            return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED,
                              "out of memory: %zu bytes for a copy of audio", r->audio_bytes);
        if (r->audio_bytes)
            memcpy(audio, r->audio, r->audio_bytes);
        release = free;
        release_arg = audio;
    }
    *o = (struct call_options){.method = CLIENT_PREDICT,
                               .traceparent = r->traceparent,
                               .deadline_ms = r->deadline_ms,
                               .payload_count = 2};
    o->payload[0] = pack_request(r);
    o->payload[1] = grpc_slice_new_with_user_data(audio, r->audio_bytes, release, release_arg);
    return 0;
}

int timbre_predict(struct timbre_client *client, const struct timbre_predict_request *request,
                   struct timbre_prediction **prediction, struct timbre_status *status) {
    struct waiter w = {.done = false};
    struct call_options o;
    *prediction = NULL;
    if (take_request(&o, request, status) || wait_for(client, &o, &w, status))
        return -1;
    *prediction = w.prediction;
    return 0;
}

static void call_back(struct timbre_call *c, const void *bytes, size_t count) {
    struct timbre_prediction *p = NULL;
    if (c->status.code == TIMBRE_CODE_OK)
        p = reply_parse_prediction(bytes, count, &c->status);
    c->callback(p, &c->status, c->done_arg);
}

int timbre_predict_start(struct timbre_client *client, const struct timbre_predict_request *request,
                         timbre_predict_callback *callback, void *user, struct timbre_call **call,
                         struct timbre_status *status) {
    struct call_options o;
    if (call)
        *call = NULL;
    if (take_request(&o, request, status))
        return -1;
    o.done = call_back;
    o.done_arg = user;
    o.callback = callback;
    return call_start(client, &o, call, status);
}

/* ---- models and health ---- */

static int ask(struct timbre_client *client, enum client_method method, const ProtobufCMessage *m,
               int deadline_ms, struct waiter *w, struct timbre_status *status) {
    clear(status);
    if (deadline_ms < TIMBRE_NO_DEADLINE)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "deadline_ms: %d", deadline_ms);
    struct call_options o = {.method = method, .deadline_ms = deadline_ms, .payload_count = 1};
    o.payload[0] = pack(m, 0);
    return wait_for(client, &o, w, status);
}

int timbre_list_models(struct timbre_client *client, int deadline_ms, struct timbre_models **models,
                       struct timbre_status *status) {
    Timbre__V1__ListModelsRequest m = TIMBRE__V1__LIST_MODELS_REQUEST__INIT;
    struct waiter w = {.done = false};
    int result = ask(client, CLIENT_LIST_MODELS, &m.base, deadline_ms, &w, status);
    *models = w.models;
    return result;
}

int timbre_get_model(struct timbre_client *client, const char *name, const char *version, int deadline_ms,
                     struct timbre_models **models, struct timbre_status *status) {
    Timbre__V1__GetModelRequest m = TIMBRE__V1__GET_MODEL_REQUEST__INIT;
    struct waiter w = {.done = false};
    if (name)
        m.model = (char *)name;
    if (version)
        m.model_version = (char *)version;
    int result = ask(client, CLIENT_GET_MODEL, &m.base, deadline_ms, &w, status);
    *models = w.models;
    return result;
}

int timbre_check_health(struct timbre_client *client, const char *service, int deadline_ms, bool *serving,
                        struct timbre_status *status) {
    Grpc__Health__V1__HealthCheckRequest m = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    struct waiter w = {.done = false};
    *serving = false;
    if (service)
        m.service = (char *)service;
    if (ask(client, CLIENT_CHECK_HEALTH, &m.base, deadline_ms, &w, status))
        return -1;
    *serving = w.serving;
    return 0;
}
