/* Fuzzing the requests of reflection and health, and the set of descriptors: the first byte says which of
 * them the rest is. A name that is found lies in a file that can be sent. */
#include <stdlib.h>
#include <string.h>

#include <grpc/grpc.h>

#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "server/symbols.h"
#include "server/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

extern const char timbre_descriptors_begin[], timbre_descriptors_end[];

static void look_up(const struct symbols *s, const char *name) {
    const int found[] = {symbols_find(s, name), symbols_find_file(s, name)};
    for (int i = 0; i < 2; i++) {
        size_t bytes = 0;
        if (found[i] < 0)
            continue;
        if (!symbols_get_file(s, found[i], &bytes) || !(symbols_get_imports(s, found[i]) >> found[i] & 1))
            abort();
    }
    if (symbols_has_message(s, name) && found[0] < 0)
        abort();
}

static ProtobufCMessage *unpack(const uint8_t *data, size_t size, const ProtobufCMessageDescriptor *type) {
    struct status st = {0};
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)data, size);
    struct wire_message m = {.buffer = grpc_raw_byte_buffer_create(&slice, 1), .bytes = size};
    grpc_slice_unref(slice);
    ProtobufCMessage *message = wire_unpack(&m, type, &st);
    if (!message && st.code != STATUS_INVALID_ARGUMENT)
        abort();
    wire_message_free(&m);
    return message;
}

static void ask(const struct symbols *s, const uint8_t *data, size_t size) {
    Grpc__Reflection__V1__ServerReflectionRequest *q =
        (Grpc__Reflection__V1__ServerReflectionRequest *)unpack(
            data, size, &grpc__reflection__v1__server_reflection_request__descriptor);
    if (!q)
        return;
    if (q->message_request_case ==
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL)
        look_up(s, q->file_containing_symbol);
    if (q->message_request_case ==
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION)
        look_up(s, q->file_containing_extension->containing_type);
    grpc__reflection__v1__server_reflection_request__free_unpacked(q, NULL);
}

static void read_set(const uint8_t *data, size_t size) {
    struct status st = {0};
    struct symbols *s = NULL;
    if (symbols_new(&s, data, size, &st) == 0) {
        look_up(s, "a");
        look_up(s, "timbre.v1.Timbre.Predict");
    } else if (st.code == STATUS_OK || !st.message[0]) {
        abort();
    }
    symbols_del(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct symbols *own;
    if (!own && symbols_new(&own, timbre_descriptors_begin,
                            (size_t)(timbre_descriptors_end - timbre_descriptors_begin), NULL))
        abort();
    if (size == 0)
        return 0;
    if (data[0] % 4 == 0) {
        ask(own, data + 1, size - 1);
    } else if (data[0] % 4 == 1) {
        read_set(data + 1, size - 1);
    } else if (data[0] % 4 == 2) {
        char name[512] = "";
        memcpy(name, data + 1, size - 1 < sizeof name - 1 ? size - 1 : sizeof name - 1);
        look_up(own, name);
    } else {
        ProtobufCMessage *m = unpack(data + 1, size - 1, &grpc__health__v1__health_check_request__descriptor);
        if (m)
            protobuf_c_message_free_unpacked(m, NULL);
    }
    return 0;
}
