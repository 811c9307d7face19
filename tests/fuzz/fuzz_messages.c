/* Every request message of the server but inference's: the first byte chooses the message, the second how it
 * is cut into slices. What is taken out of a message must lie within it. */
#include <stdint.h>
#include <stdlib.h>

#include <grpc/grpc.h>

#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/inference/grpc_service.pb-c.h"
#include "proto/timbre/v1/timbre.pb-c.h"
#include "server/wire.h"

enum { SLICES_MAX = 256 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const ProtobufCMessageDescriptor *choose(uint8_t by) {
    const ProtobufCMessageDescriptor *const all[] = {
        &timbre__v1__predict_request__descriptor,
        &timbre__v1__streaming_predict_request__descriptor,
        &timbre__v1__list_models_request__descriptor,
        &timbre__v1__get_model_request__descriptor,
        &grpc__health__v1__health_check_request__descriptor,
        &grpc__reflection__v1__server_reflection_request__descriptor,
        &inference__model_infer_request__descriptor,
        &inference__repository_model_load_request__descriptor,
    };
    return all[by % (sizeof all / sizeof *all)];
}

static struct wire_message make(const uint8_t *data, size_t bytes, size_t slice_bytes) {
    grpc_slice slices[SLICES_MAX];
    size_t count = 0;
    for (size_t at = 0; at < bytes; count++) {
        size_t n = count + 1 < SLICES_MAX && bytes - at > slice_bytes ? slice_bytes : bytes - at;
        slices[count] = grpc_slice_from_copied_buffer((const char *)data + at, n);
        at += n;
    }
    struct wire_message m = {.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = bytes};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static int started;
    struct wire_parts parts;
    struct status st;
    if (!started++)
        grpc_init();
    if (bytes < 2)
        return 0;
    struct wire_message m = make(data + 2, bytes - 2, (size_t)data[1] + 1);
    const ProtobufCMessageDescriptor *descriptor = choose(data[0]);
    ProtobufCMessage *whole = wire_unpack(&m, descriptor, &st);
    if (whole)
        protobuf_c_message_free_unpacked(whole, NULL);
    const uint32_t number = data[0] & 0x80 ? 7 : 1;
    ProtobufCMessage *rest = wire_unpack_parts(&m, descriptor, number, &parts, &st);
    if (rest) {
        for (int i = 0; i < parts.fields_count; i++) {
            uint8_t *copy = malloc(parts.fields[i].bytes + 1);
            if (!copy || !wire_field_copy(&parts.fields[i], 0, parts.fields[i].bytes, copy))
                abort();
            free(copy);
        }
        wire_parts_free(&parts);
        protobuf_c_message_free_unpacked(rest, NULL);
    }
    wire_message_free(&m);
    return 0;
}
