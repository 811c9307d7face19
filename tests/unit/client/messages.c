#include "messages.h"

#include <stdlib.h>

#include "proto/google/protobuf/any.pb-c.h"
#include "proto/google/protobuf/duration.pb-c.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/timbre/v1/timbre.pb-c.h"

enum { WINDOWS_MAX = 1000, MODELS_MAX = 8 };

static struct bytes pack(const ProtobufCMessage *m) {
    struct bytes b = {.count = protobuf_c_message_get_packed_size(m)};
    b.data = malloc(b.count ? b.count : 1);
    protobuf_c_message_pack(m, b.data);
    return b;
}

struct bytes messages_make_prediction(const char *request_id, int windows, int embedding) {
    static char *const labels[] = {"anger", "joy", "sadness"};
    static const float values[] = {0.7f, 0.2f, 0.1f};
    Timbre__V1__PredictResponse m = TIMBRE__V1__PREDICT_RESPONSE__INIT;
    Timbre__V1__Receipt receipt = TIMBRE__V1__RECEIPT__INIT;
    Timbre__V1__Score scores[3], *list[3];
    static Timbre__V1__Window window[WINDOWS_MAX], *window_list[WINDOWS_MAX];
    float hidden[WINDOWS_MAX];
    for (int i = 0; i < 3; i++) {
        timbre__v1__score__init(&scores[i]);
        scores[i].index = i;
        scores[i].label = labels[i];
        scores[i].score = values[i];
        scores[i].logit = values[i] * 10;
        list[i] = &scores[i];
    }
    for (int i = 0; i < windows; i++) {
        timbre__v1__window__init(&window[i]);
        window[i].start_s = i;
        window[i].end_s = i + 2;
        window[i].status = i % 2 ? TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH
                                 : TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK;
        window[i].n_scores = i % 2 ? 0 : 3;
        window[i].scores = list;
        window_list[i] = &window[i];
    }
    for (int i = 0; i < embedding; i++)
        hidden[i] = (float)i;
    receipt.model = "base";
    receipt.digest = "d1";
    receipt.device = "cpu";
    receipt.precision = "fp32";
    receipt.batch_size = 5;
    receipt.queue_ms = 1.5;
    receipt.compute_ms = 2.5;
    receipt.audio_s = 3;
    m.status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK;
    m.duration_s = 3;
    m.n_scores = 3;
    m.scores = list;
    m.dominant = &scores[0];
    m.n_windows = (size_t)windows;
    m.windows = window_list;
    m.n_embedding = (size_t)embedding;
    m.embedding = hidden;
    m.receipt = &receipt;
    m.request_id = (char *)request_id;
    return pack(&m.base);
}

static Timbre__V1__Model make_model(void) {
    static char *labels[] = {"anger", "joy", "sadness"};
    Timbre__V1__Model m = TIMBRE__V1__MODEL__INIT;
    m.name = "base";
    m.digest = "d1";
    m.labels = labels;
    m.n_labels = 3;
    m.hidden = 64;
    m.parameters = 5000000000;
    return m;
}

struct bytes messages_make_model(void) {
    Timbre__V1__Model m = make_model();
    return pack(&m.base);
}

struct bytes messages_make_models(int count) {
    Timbre__V1__ListModelsResponse m = TIMBRE__V1__LIST_MODELS_RESPONSE__INIT;
    Timbre__V1__Model one = make_model(), *list[MODELS_MAX];
    for (int i = 0; i < count; i++)
        list[i] = &one;
    m.n_models = (size_t)count;
    m.models = list;
    return pack(&m.base);
}

struct bytes messages_make_health(int serving) {
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    m.status = serving ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                       : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    return pack(&m.base);
}

struct bytes messages_make_details(const char *reason, int retry_ms) {
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    Google__Protobuf__Duration delay = GOOGLE__PROTOBUF__DURATION__INIT;
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    Google__Protobuf__Any any[2], *list[2] = {&any[0], &any[1]};
    google__protobuf__any__init(&any[0]);
    google__protobuf__any__init(&any[1]);
    info.reason = (char *)reason;
    info.domain = "timbre";
    delay.seconds = retry_ms / 1000;
    delay.nanos = retry_ms % 1000 * 1000000;
    retry.retry_delay = &delay;
    struct bytes packed_info = pack(&info.base), packed_retry = pack(&retry.base);
    any[0].type_url = "type.googleapis.com/google.rpc.ErrorInfo";
    any[0].value = (ProtobufCBinaryData){.len = packed_info.count, .data = packed_info.data};
    any[1].type_url = "type.googleapis.com/google.rpc.RetryInfo";
    any[1].value = (ProtobufCBinaryData){.len = packed_retry.count, .data = packed_retry.data};
    status.code = 8;
    status.details = list;
    status.n_details = retry_ms < 0 ? 1 : 2;
    struct bytes result = pack(&status.base);
    free(packed_info.data);
    free(packed_retry.data);
    return result;
}
