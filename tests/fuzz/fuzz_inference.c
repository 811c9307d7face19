/* Fuzzing the requests of inference.GRPCInferenceService: the first byte says which message the rest is, and
 * into how small slices it is cut. What comes out of a ModelInferRequest must lie within the message. */
#include <stdlib.h>
#include <string.h>

#include <grpc/grpc.h>

#include "server/inference_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLICE_BITS = 5, SLICES_MAX = 1 << 16 };

static struct wire_message make(const uint8_t *data, size_t size, size_t slice_bytes) {
    static grpc_slice slices[SLICES_MAX];
    size_t count = 0;
    for (size_t at = 0; at < size; count++) {
        const size_t bytes = count == SLICES_MAX - 1 || size - at < slice_bytes ? size - at : slice_bytes;
        slices[count] = grpc_slice_from_copied_buffer((const char *)data + at, bytes);
        at += bytes;
    }
    struct wire_message m = {.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = size};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    return m;
}

/* Reads every byte that the request points to; sanitizers watch. */
static void use(const struct inference_request *r, size_t message_bytes) {
    volatile uint8_t sum = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < r->pieces_count; i++) {
        for (size_t k = 0; k < r->pieces[i].bytes; k++)
            sum = (uint8_t)(sum + ((const uint8_t *)r->pieces[i].data)[k]);
        bytes += r->pieces[i].bytes;
    }
    if (!r->pieces)
        for (size_t k = 0; k < r->bytes; k++)
            sum = (uint8_t)(sum + ((const uint8_t *)r->data)[k]);
    if ((r->pieces && bytes != r->bytes) || r->bytes > 2 * message_bytes || r->bytes == 0 ||
        r->outputs_count < 1 || r->outputs_count > INFERENCE_OUTPUTS ||
        !(r->window_s >= 0 && r->hop_s <= r->window_s))
        abort();
}

static void read_infer(const struct wire_message *m) {
    struct wire_parts parts;
    struct inference_request r;
    struct status st = {0};
    ProtobufCMessage *message =
        wire_unpack_parts(m, &inference__model_infer_request__descriptor, INFERENCE_RAW_FIELD, &parts, &st);
    if (message &&
        inference_request_init(&r, (const Inference__ModelInferRequest *)message, &parts, &st) == 0) {
        use(&r, m->bytes);
        inference_request_free(&r);
    } else if (st.code == STATUS_OK || !st.message[0]) {
        abort(); /* a refusal says why */
    }
    if (message) {
        wire_parts_free(&parts);
        protobuf_c_message_free_unpacked(message, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ProtobufCMessageDescriptor *const others[] = {
        &inference__model_metadata_request__descriptor, &inference__model_statistics_request__descriptor,
        &inference__repository_index_request__descriptor,
        &inference__repository_model_load_request__descriptor,
        &inference__repository_model_unload_request__descriptor};
    static bool started;
    if (!started) {
        grpc_init();
        started = true;
    }
    if (size == 0)
        return 0;
    const size_t kind = data[0] >> SLICE_BITS, slice_bytes = (data[0] & ((1u << SLICE_BITS) - 1)) + 1;
    struct wire_message m = make(data + 1, size - 1, slice_bytes * slice_bytes);
    if (kind < sizeof others / sizeof *others) {
        struct status st;
        ProtobufCMessage *message = wire_unpack(&m, others[kind], &st);
        if (message)
            protobuf_c_message_free_unpacked(message, NULL);
    } else {
        read_infer(&m);
    }
    wire_message_free(&m);
    return 0;
}
