/* wire: a received message, and taking large byte fields out of it without copying them. */
#ifndef TIMBRE_SERVER_WIRE_H
#define TIMBRE_SERVER_WIRE_H

#include <grpc/byte_buffer.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

#include "base/status.h"
#include "engine/engine.h"

enum { WIRE_FIELDS_MAX = 16 }; /* occurrences of the field that is taken out */

/* Bytes as they came, in gRPC's slices. */
struct wire_message {
    grpc_byte_buffer *buffer; /* NULL: nothing */
    size_t bytes;
};
void wire_message_free(struct wire_message *m);
/* For engine_give: frees a message on any thread. `arg` is a grpc_byte_buffer. */
void wire_release(void *buffer);

/* Unpacks a message of `descriptor`; free with protobuf_c_message_free_unpacked. Strings that are not UTF-8
 * are an error too (at every depth). Error: INVALID_ARGUMENT. */
ProtobufCMessage *wire_unpack(const struct wire_message *m, const ProtobufCMessageDescriptor *descriptor,
                              struct status *st);

/* The same, but the top-level length-delimited field `number` is left out; where its bytes lie is told in
 * `fields` (in the order of occurrence). They point into the message's slices and live as long as its buffer.
 */
struct wire_field {
    struct engine_piece *pieces; /* [pieces_count] */
    size_t pieces_count, bytes;
};
struct wire_parts {
    struct wire_field fields[WIRE_FIELDS_MAX];
    int fields_count;
    struct engine_piece *block; /* owns all pieces */
};
void wire_parts_free(struct wire_parts *p);
ProtobufCMessage *wire_unpack_parts(const struct wire_message *m,
                                    const ProtobufCMessageDescriptor *descriptor, uint32_t number,
                                    struct wire_parts *parts, struct status *st);
/* Copies bytes [offset, offset + bytes) of a field to `to`. False when it is shorter. */
bool wire_field_copy(const struct wire_field *f, size_t offset, size_t bytes, void *to);

#endif
