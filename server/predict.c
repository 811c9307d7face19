/* timbre.v1.Timbre: Predict, ListModels, GetModel. StreamingPredict is stream.c's. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "server/answer.h"
#include "server/timbre.h"

enum { AUDIO_FIELD = 1 }; /* PredictRequest.audio */

/* What Predict remembers of a request while the engine has it. */
struct predict {
    struct engine_model *model; /* valid while the engine's request is open */
    char name[REPOSITORY_NAME_BYTES], version[REPOSITORY_VERSION_BYTES];
    int top_k;
};

static bool fail_field(struct call *c, const char *field, const struct status *st) {
    call_fail(c, st, &(struct failure){.reason = "INVALID_FIELD", .field = field});
    return false;
}

int timbre_read_format(const Timbre__V1__AudioFormat *from, const struct timbre_format_limits *limits,
                       struct audio_format *to, const char **field, struct status *st) {
    static const enum audio_encoding encodings[] = {
        [TIMBRE__V1__ENCODING__ENCODING_UNSPECIFIED] = AUDIO_FILE,
        [TIMBRE__V1__ENCODING__ENCODING_FILE] = AUDIO_FILE,
        [TIMBRE__V1__ENCODING__ENCODING_PCM16] = AUDIO_PCM16,
        [TIMBRE__V1__ENCODING__ENCODING_FLOAT32] = AUDIO_FLOAT32,
        [TIMBRE__V1__ENCODING__ENCODING_MULAW] = AUDIO_MULAW,
        [TIMBRE__V1__ENCODING__ENCODING_ALAW] = AUDIO_ALAW,
    };
    *to = (struct audio_format){.encoding = AUDIO_FILE, .rate_hz = 16000, .channels = 1};
    *field = "format.encoding";
    if (from && (unsigned)from->encoding >= sizeof encodings / sizeof *encodings)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %d is none that this server knows", *field,
                          (int)from->encoding);
    if (from)
        to->encoding = encodings[from->encoding];
    if (to->encoding == AUDIO_FILE && limits->raw_only)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%s: a raw encoding is needed: PCM16, FLOAT32, MULAW or ALAW", *field);
    if (to->encoding == AUDIO_FILE)
        return 0;
    if (from->sample_rate_hz)
        to->rate_hz = from->sample_rate_hz;
    if (from->channels)
        to->channels = from->channels;
    *field = "format.sample_rate_hz";
    if (to->rate_hz < limits->rate_hz_min || to->rate_hz > limits->rate_hz_max)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %d is not in %d..%d", *field, to->rate_hz,
                          limits->rate_hz_min, limits->rate_hz_max);
    *field = "format.channels";
    if (to->channels < 1 || to->channels > limits->channels_max)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %d is not in 1..%d", *field, to->channels,
                          limits->channels_max);
    return 0;
}

static bool read_format(struct call *c, const Timbre__V1__AudioFormat *from, struct audio_format *to) {
    static const struct timbre_format_limits limits = {.rate_hz_min = AUDIO_RATE_HZ_MIN,
                                                       .rate_hz_max = AUDIO_RATE_HZ_MAX,
                                                       .channels_max = AUDIO_CHANNELS_MAX};
    const char *field;
    struct status st;
    return timbre_read_format(from, &limits, to, &field, &st) == 0 || fail_field(c, field, &st);
}

static bool read_windows(struct call *c, const Timbre__V1__Windows *from, struct engine_request_options *o) {
    struct status st;
    if (!from)
        return true;
    o->window_s = from->length_s == 0 ? ENGINE_WINDOW_S_DEFAULT : from->length_s;
    o->hop_s = from->hop_s == 0 ? o->window_s / 2 : from->hop_s;
    if (!(o->window_s >= 0.05 && o->window_s <= ENGINE_WHOLE_S_MAX)) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "windows.length_s: %g is not in 0.05..%g", o->window_s,
                   ENGINE_WHOLE_S_MAX);
        return fail_field(c, "windows.length_s", &st);
    }
    if (!(o->hop_s >= 0.01 && o->hop_s <= o->window_s)) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "windows.hop_s: %g is not in 0.01..%g (the length)",
                   o->hop_s, o->window_s);
        return fail_field(c, "windows.hop_s", &st);
    }
    o->speech_s_min = from->speech_s_min;
    if (!(o->speech_s_min >= 0 && o->speech_s_min <= o->window_s)) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "windows.speech_s_min: %g is not in 0..%g (the length)",
                   o->speech_s_min, o->window_s);
        return fail_field(c, "windows.speech_s_min", &st);
    }
    return true;
}

bool timbre_find_model(struct call *c, const char *name, const char *version,
                       struct repository_entry **entry) {
    struct status st;
    if (repository_find(call_get_server(c)->repository, name, version, entry, &st)) {
        call_fail(
            c, &st,
            &(struct failure){.reason = st.code == STATUS_NOT_FOUND ? "MODEL_NOT_FOUND" : "MODEL_NOT_READY"});
        return false;
    }
    call_set_model(c, (*entry)->name);
    return true;
}

/* Checks the request and fills in what the engine wants. False: the call was failed. */
static bool read_request(struct call *c, const Timbre__V1__PredictRequest *request,
                         struct engine_request_options *o) {
    struct predict *p = call_get_state(c);
    struct repository_entry *entry;
    struct status st;
    if (!call_set_request_id(c, request->request_id)) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "request_id: up to %d printable ASCII characters",
                   CALL_REQUEST_ID_BYTES - 1);
        return fail_field(c, "request_id", &st);
    }
    if (request->top_k < 0) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "top_k: %d is negative", request->top_k);
        return fail_field(c, "top_k", &st);
    }
    if ((unsigned)request->priority > TIMBRE__V1__PRIORITY__PRIORITY_BULK) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "priority: %d is none that this server knows",
                   (int)request->priority);
        return fail_field(c, "priority", &st);
    }
    if (!read_format(c, request->format, &o->format) || !read_windows(c, request->windows, o) ||
        !timbre_find_model(c, request->model, request->model_version, &entry))
        return false;
    o->model = p->model = entry->model;
    o->embedding = request->embedding;
    o->order = request->priority == TIMBRE__V1__PRIORITY__PRIORITY_BULK ? ENGINE_BULK : ENGINE_UNARY;
    p->top_k = request->top_k;
    memcpy(p->name, entry->name, sizeof p->name);
    memcpy(p->version, entry->version, sizeof p->version);
    return true;
}

/* Gives the audio to the engine; the message's bytes go with it. */
static void submit(struct call *c, struct wire_message *in, const struct wire_field *audio,
                   struct engine_request_options *o) {
    struct engine_request *r;
    struct status st;
    if (call_open_request(c, &r, o, NULL, &st)) {
        call_fail(c, &st, NULL);
        return;
    }
    if (engine_give(r, audio->pieces, audio->pieces_count, wire_release, in->buffer, &st)) {
        call_drop_request(c, r);
        fail_field(c, "audio", &st);
        return;
    }
    in->buffer = NULL;
    if (call_finish_request(c, r, &st)) {
        const struct failure f = failure_of_finish(call_get_server(c), o->model, &st);
        call_drop_request(c, r);
        repository_count_failure(call_get_server(c)->repository, o->model, st.code,
                                 clock_now_ns() - call_get_begin_ns(c));
        call_fail(c, &st, &f);
    }
}

static void predict(struct call *c, struct wire_message *in) {
    struct wire_parts parts;
    struct engine_request_options o = {0};
    struct status st;
    ProtobufCMessage *m =
        wire_unpack_parts(in, &timbre__v1__predict_request__descriptor, AUDIO_FIELD, &parts, &st);
    if (!m) {
        call_fail(c, &st, &(struct failure){.reason = "MALFORMED_MESSAGE"});
        wire_message_free(in);
        return;
    }
    if (parts.fields_count == 0 || parts.fields[parts.fields_count - 1].bytes == 0) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "audio: no bytes");
        fail_field(c, "audio", &st);
    } else if (read_request(c, (const Timbre__V1__PredictRequest *)m, &o)) {
        submit(c, in, &parts.fields[parts.fields_count - 1], &o); /* of several, the last counts */
    }
    wire_parts_free(&parts);
    protobuf_c_message_free_unpacked(m, NULL);
    wire_message_free(in);
}

static void predict_answer(struct call *c, struct engine_request *r, void *user) {
    const struct predict *p = call_get_state(c);
    const struct engine_result *result = engine_get_result(r);
    (void)user;
    repository_count_answer(call_get_server(c)->repository, p->model, result,
                            clock_now_ns() - call_get_begin_ns(c));
    if (result->outcome == ENGINE_ERROR) {
        struct failure f = failure_of_engine(call_get_server(c), &result->status);
        if (result->status.code == STATUS_INVALID_ARGUMENT)
            f = (struct failure){.reason = "BAD_AUDIO", .field = "audio"};
        call_fail(c, &result->status, &f);
    } else {
        const struct answer_options o = {.model_name = p->name,
                                         .model_version = p->version,
                                         .request_id = call_get_request_id(c),
                                         .top_k = p->top_k};
        struct answer *a = answer_new(result, engine_model_get(p->model), &o);
        struct status st;
        if (a) {
            call_reply(c, &answer_get(a)->base);
        } else {
            status_set_no_memory(&st, 0, "an answer");
            call_fail(c, &st, NULL);
        }
        answer_free(a);
    }
    engine_close(r);
}

static void list_models(struct call *c, struct wire_message *in) {
    struct repository *repository = call_get_server(c)->repository;
    Timbre__V1__ListModelsResponse response = TIMBRE__V1__LIST_MODELS_RESPONSE__INIT;
    Timbre__V1__Model models[SERVER_MODELS_MAX], *list[SERVER_MODELS_MAX];
    wire_message_free(in);
    for (int i = 0; i < repository_count(repository) && response.n_models < SERVER_MODELS_MAX; i++) {
        const struct repository_entry *e = repository_at(repository, i);
        if (e->state != REPOSITORY_READY)
            continue;
        list[response.n_models] = &models[response.n_models];
        answer_describe_model(list[response.n_models++], e->name, e->version, engine_model_get(e->model));
    }
    response.models = list;
    call_reply(c, &response.base);
}

static void get_model(struct call *c, struct wire_message *in) {
    struct status st;
    struct repository_entry *entry;
    Timbre__V1__GetModelRequest *request =
        (Timbre__V1__GetModelRequest *)wire_unpack(in, &timbre__v1__get_model_request__descriptor, &st);
    wire_message_free(in);
    if (!request) {
        call_fail(c, &st, &(struct failure){.reason = "MALFORMED_MESSAGE"});
        return;
    }
    if (timbre_find_model(c, request->model, request->model_version, &entry)) {
        Timbre__V1__Model model;
        answer_describe_model(&model, entry->name, entry->version, engine_model_get(entry->model));
        call_reply(c, &model.base);
    }
    timbre__v1__get_model_request__free_unpacked(request, NULL);
}

const struct method timbre_methods[] = {
    {.path = "/timbre.v1.Timbre/Predict",
     .is_upload = true,
     .state_bytes = sizeof(struct predict),
     .on_message = predict,
     .on_answer = predict_answer},
    {.path = "/timbre.v1.Timbre/StreamingPredict",
     .streams = true,
     .state_bytes = sizeof(struct stream *),
     .on_message = server_stream_message,
     .on_half_close = server_stream_half_close,
     .on_sent = server_stream_sent,
     .on_wake = server_stream_wake,
     .on_drain = server_stream_drain,
     .on_tick = server_stream_tick,
     .on_cancel = server_stream_cancel,
     .on_free = server_stream_free},
    {.path = "/timbre.v1.Timbre/ListModels", .on_message = list_models},
    {.path = "/timbre.v1.Timbre/GetModel", .on_message = get_model},
    {0},
};
