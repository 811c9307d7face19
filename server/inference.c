/* inference.GRPCInferenceService: its methods, and ModelInfer and ModelStreamInfer. */
#include "server/inference.h"

#include <stdio.h>
#include <string.h>

#include "server/inference_answer.h"

static void fail_no_memory(struct call *c) {
    struct status st;
    status_set_no_memory(&st, 0, "an inference");
    call_fail(c, &st, NULL);
}

/* ---- ModelInfer ---- */

static void reply(struct call *c, struct inference_item *i) {
    struct failure f;
    const struct status *error = inference_item_get_error(i, &f);
    if (error) {
        call_fail(c, error, &f);
    } else {
        struct inference_answer *a = inference_item_make_answer(i);
        if (a)
            call_reply(c, &inference_answer_get(a)->base);
        else
            fail_no_memory(c);
        inference_answer_free(a);
    }
    inference_item_free(i);
}

static void infer(struct call *c, struct wire_message *in) {
    struct inference_item *i = inference_item_new(c, in, false);
    wire_message_free(in);
    if (!i)
        fail_no_memory(c);
    else if (inference_item_is_done(i))
        reply(c, i);
}

static void infer_answer(struct call *c, struct engine_request *r, void *user) {
    inference_item_finish(user, c, r);
    reply(c, user);
}

/* ---- ModelStreamInfer ---- */

/* Items wait here in the order of their messages until all before them were answered. */
struct stream {
    struct inference_item *items[INFERENCE_STREAM_REQUESTS_MAX]; /* a ring */
    int first, count;
    bool half_closed;
};

static bool wants_status(const struct call *c) {
    size_t bytes = 0;
    const char *value = call_get_metadata(c, "triton_grpc_error", &bytes);
    return value && bytes == 4 && memcmp(value, "true", 4) == 0;
}

static void send_error(struct call *c, const struct inference_item *i, const struct status *error) {
    char text[STATUS_MESSAGE_BYTES_MAX + 32];
    Inference__ModelInferResponse id = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    Inference__ModelStreamInferResponse m = INFERENCE__MODEL_STREAM_INFER_RESPONSE__INIT;
    snprintf(text, sizeof text, "%s: %s", status_code_name(error->code), error->message);
    id.id = (char *)inference_item_get_id(i);
    m.error_message = text;
    m.infer_response = &id;
    call_send(c, &m.base);
}

static void send_answer(struct call *c, const struct inference_item *i) {
    struct inference_answer *a = inference_item_make_answer(i);
    Inference__ModelStreamInferResponse m = INFERENCE__MODEL_STREAM_INFER_RESPONSE__INIT;
    if (!a) {
        fail_no_memory(c);
        return;
    }
    m.infer_response = inference_answer_get(a);
    call_send(c, &m.base);
    inference_answer_free(a);
}

static void send_item(struct call *c, const struct inference_item *i) {
    struct failure f;
    const struct status *error = inference_item_get_error(i, &f);
    if (error && wants_status(c))
        call_fail(c, error, &f);
    else if (error)
        send_error(c, i, error);
    else
        send_answer(c, i);
}

/* Sends what is done and next in order, as far as the caller reads it; reads on when there is room. */
static void advance(struct call *c) {
    struct stream *s = call_get_state(c);
    while (s->count && inference_item_is_done(s->items[s->first]) &&
           call_count_unsent(c) < INFERENCE_UNSENT_MAX) {
        struct inference_item *i = s->items[s->first];
        s->first = (s->first + 1) % INFERENCE_STREAM_REQUESTS_MAX;
        s->count--;
        send_item(c, i);
        inference_item_free(i);
    }
    if (s->half_closed && s->count == 0)
        call_end(c);
    else if (!s->half_closed && s->count < INFERENCE_STREAM_REQUESTS_MAX)
        call_read_next(c);
}

static void infer_stream(struct call *c, struct wire_message *in) {
    struct stream *s = call_get_state(c);
    struct inference_item *i = inference_item_new(c, in, true);
    wire_message_free(in);
    if (!i) {
        fail_no_memory(c);
        return;
    }
    s->items[(s->first + s->count++) % INFERENCE_STREAM_REQUESTS_MAX] = i;
    advance(c);
}

static void infer_stream_half_close(struct call *c) {
    struct stream *s = call_get_state(c);
    s->half_closed = true;
    advance(c);
}

static void infer_stream_answer(struct call *c, struct engine_request *r, void *user) {
    inference_item_finish(user, c, r);
    advance(c);
}

static void infer_stream_free(struct call *c) {
    struct stream *s = call_get_state(c);
    for (int k = 0; k < s->count; k++)
        inference_item_free(s->items[(s->first + k) % INFERENCE_STREAM_REQUESTS_MAX]);
}

/* ---- all methods ---- */

ProtobufCMessage *inference_unpack(struct call *c, struct wire_message *in,
                                   const ProtobufCMessageDescriptor *descriptor) {
    struct status st;
    ProtobufCMessage *m = wire_unpack(in, descriptor, &st);
    wire_message_free(in);
    if (!m)
        call_fail(c, &st, &(struct failure){.reason = "MALFORMED_MESSAGE"});
    return m;
}

#define PATH(method) "/inference.GRPCInferenceService/" method

const struct method inference_methods[] = {
    {.path = PATH("ServerLive"), .is_health = true, .on_message = inference_get_server_live},
    {.path = PATH("ServerReady"), .is_health = true, .on_message = inference_get_server_ready},
    {.path = PATH("ModelReady"), .is_health = true, .on_message = inference_get_model_ready},
    {.path = PATH("ServerMetadata"), .on_message = inference_get_server_metadata},
    {.path = PATH("ModelMetadata"), .on_message = inference_get_model_metadata},
    {.path = PATH("ModelInfer"), .is_upload = true, .on_message = infer, .on_answer = infer_answer},
    {.path = PATH("ModelStreamInfer"),
     .streams = true,
     .is_upload = true,
     .state_bytes = sizeof(struct stream),
     .on_message = infer_stream,
     .on_half_close = infer_stream_half_close,
     .on_answer = infer_stream_answer,
     .on_sent = advance,
     .on_free = infer_stream_free},
    {.path = PATH("ModelConfig"), .on_message = inference_get_model_config},
    {.path = PATH("ModelStatistics"), .on_message = inference_get_model_statistics},
    {.path = PATH("RepositoryIndex"), .on_message = inference_get_index},
    {.path = PATH("RepositoryModelLoad"),
     .state_bytes = INFERENCE_LOAD_STATE_BYTES,
     .on_message = inference_load,
     .on_wake = inference_end_load},
    {.path = PATH("RepositoryModelUnload"),
     .state_bytes = INFERENCE_LOAD_STATE_BYTES,
     .on_message = inference_unload,
     .on_wake = inference_end_load},
    {0},
};
