/* One inference, from its message to its answer. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "server/inference.h"
#include "server/inference_answer.h"

struct inference_item {
    struct engine_model *model; /* valid while the engine's request is open */
    char name[REPOSITORY_NAME_BYTES], version[REPOSITORY_VERSION_BYTES], id[INFERENCE_ID_BYTES];
    bool raw, batched, is_stream, done;
    struct inference_output outputs[INFERENCE_OUTPUTS];
    int outputs_count;
    int64_t begin_ns;
    struct engine_request *answer; /* came back; owned */
    struct status status;          /* the error; code OK: none */
    struct failure failure;
    char field[INFERENCE_FIELD_BYTES];
};

static void fail(struct inference_item *i, struct failure f) {
    i->failure = f;
    i->done = true;
}

static bool find_model(struct inference_item *i, struct call *c, const struct inference_request *r) {
    struct repository_entry *entry;
    if (repository_find(call_get_server(c)->repository, r->model_name, r->model_version, &entry,
                        &i->status)) {
        fail(i, (struct failure){.reason = i->status.code == STATUS_NOT_FOUND ? "MODEL_NOT_FOUND"
                                                                              : "MODEL_NOT_READY"});
        return false;
    }
    call_set_model(c, entry->name);
    i->model = entry->model;
    memcpy(i->name, entry->name, sizeof i->name);
    memcpy(i->version, entry->version, sizeof i->version);
    return true;
}

static bool wants(const struct inference_request *r, enum inference_tensor_id id) {
    for (int k = 0; k < r->outputs_count; k++)
        if (r->outputs[k].id == id)
            return true;
    return false;
}

static struct engine_request_options make_options(const struct inference_item *i,
                                                  const struct inference_request *r) {
    struct engine_request_options o = {
        .model = i->model,
        .format = r->format,
        .window_s = r->window_s,
        .hop_s = r->hop_s,
        .embedding = wants(r, INFERENCE_EMBEDDING),
        .order = r->order,
        .deadline_ns = r->timeout_us ? i->begin_ns + r->timeout_us * 1000 : 0,
    };
    if (o.format.rate_hz == 0)
        o.format.rate_hz = model_get_info(engine_model_get(i->model))->sampling_rate_hz;
    return o;
}

static int give_audio(struct engine_request *r, const struct inference_request *request,
                      struct wire_message *in, struct status *st) {
    if (!request->pieces)
        return engine_feed(r, request->data, request->bytes, st);
    if (engine_give(r, request->pieces, request->pieces_count, wire_release, in->buffer, st))
        return -1;
    in->buffer = NULL; /* the engine's now */
    return 0;
}

/* Sends it on its way. On failure the status says why. */
static void submit(struct inference_item *i, struct call *c, const struct inference_request *request,
                   struct wire_message *in) {
    struct engine_request_options o = make_options(i, request);
    struct server *s = call_get_server(c);
    struct engine_request *r;
    struct failure f = {0};
    if (call_open_request(c, &r, &o, i, &i->status)) {
        fail(i, f);
        return;
    }
    if (give_audio(r, request, in, &i->status)) {
        f = (struct failure){.field = "inputs.AUDIO"};
    } else if (call_finish_request(c, r, &i->status) == 0) {
        return;
    } else {
        f = failure_of_finish(s, i->model, &i->status);
    }
    call_drop_request(c, r);
    repository_count_failure(s->repository, i->model, i->status.code, clock_now_ns() - i->begin_ns);
    fail(i, f);
}

static void read_message(struct inference_item *i, struct call *c, struct wire_message *in) {
    struct wire_parts parts;
    struct inference_request request;
    ProtobufCMessage *m = wire_unpack_parts(in, &inference__model_infer_request__descriptor,
                                            INFERENCE_RAW_FIELD, &parts, &i->status);
    if (!m) {
        fail(i, (struct failure){.reason = "MALFORMED_MESSAGE"});
        return;
    }
    const Inference__ModelInferRequest *message = (const Inference__ModelInferRequest *)m;
    strncpy(i->id, message->id, sizeof i->id - 1); /* told with an error too */
    if (inference_request_init(&request, message, &parts, &i->status)) {
        memcpy(i->field, request.field, sizeof i->field);
        fail(i, (struct failure){.reason = "INVALID_FIELD", .field = i->field});
    } else {
        if (!i->is_stream)
            call_set_request_id(c, i->id); /* what cannot be logged is only returned */
        i->raw = request.raw;
        i->batched = request.batched;
        i->outputs_count = request.outputs_count;
        memcpy(i->outputs, request.outputs, sizeof i->outputs);
        if (find_model(i, c, &request))
            submit(i, c, &request, in);
        inference_request_free(&request);
    }
    wire_parts_free(&parts);
    protobuf_c_message_free_unpacked(m, NULL);
}

struct inference_item *inference_item_new(struct call *c, struct wire_message *in, bool is_stream) {
    struct inference_item *i = calloc(1, sizeof *i);
    if (!i)
        return NULL;
    i->is_stream = is_stream;
    i->begin_ns = is_stream ? clock_now_ns() : call_get_begin_ns(c);
    read_message(i, c, in);
    return i;
}

void inference_item_free(struct inference_item *i) {
    if (!i)
        return;
    engine_close(i->answer);
    free(i);
}

void inference_item_finish(struct inference_item *i, struct call *c, struct engine_request *r) {
    const struct engine_result *result = engine_get_result(r);
    repository_count_answer(call_get_server(c)->repository, i->model, result, clock_now_ns() - i->begin_ns);
    i->answer = r;
    i->done = true;
    if (result->outcome != ENGINE_ERROR)
        return;
    i->status = result->status;
    i->failure = failure_of_engine(call_get_server(c), &i->status);
    if (i->status.code == STATUS_INVALID_ARGUMENT)
        i->failure = (struct failure){.reason = "BAD_AUDIO", .field = "inputs.AUDIO"};
}

bool inference_item_is_done(const struct inference_item *i) {
    return i->done;
}

const char *inference_item_get_id(const struct inference_item *i) {
    return i->id;
}

const struct status *inference_item_get_error(const struct inference_item *i, struct failure *f) {
    *f = i->failure;
    return i->status.code == STATUS_OK ? NULL : &i->status;
}

struct inference_answer *inference_item_make_answer(const struct inference_item *i) {
    const struct inference_answer_options o = {
        .model_name = i->name,
        .model_version = i->version,
        .id = i->id,
        .outputs = i->outputs,
        .outputs_count = i->outputs_count,
        .raw = i->raw,
        .batched = i->batched,
        .is_final = i->is_stream,
    };
    return inference_answer_new(engine_get_result(i->answer), engine_model_get(i->model), &o);
}
