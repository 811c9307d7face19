#include "server/wire.h"

#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>

#include "base/text.h"

void wire_message_free(struct wire_message *m) {
    if (m->buffer)
        grpc_byte_buffer_destroy(m->buffer);
    m->buffer = NULL;
    m->bytes = 0;
}

void wire_release(void *buffer) {
    grpc_byte_buffer_destroy(buffer);
}

static int malformed(const ProtobufCMessageDescriptor *descriptor, struct status *st) {
    return status_set(st, STATUS_INVALID_ARGUMENT, "the request is not a %s message", descriptor->name);
}

/* ---- strings ---- */

static const char *find_bad_string(const ProtobufCMessage *m);

/* The name of the first string at `member` that is not UTF-8, or NULL. */
static const char *check_member(const ProtobufCFieldDescriptor *f, const void *member) {
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        const char *text = *(const char *const *)member;
        return text && !text_is_utf8(text, strlen(text)) ? f->name : NULL;
    }
    const ProtobufCMessage *inner = *(const ProtobufCMessage *const *)member;
    return inner ? find_bad_string(inner) : NULL;
}

static const char *find_bad_string(const ProtobufCMessage *m) {
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        const char *base = (const char *)m, *bad = NULL;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t count = *(const size_t *)(base + f->quantifier_offset);
            const char *members = *(const char *const *)(base + f->offset);
            for (size_t k = 0; k < count && !bad; k++)
                bad = check_member(f, members + k * sizeof(void *));
        } else if (!(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) ||
                   *(const uint32_t *)(base + f->quantifier_offset) == f->id) {
            bad = check_member(f, base + f->offset);
        }
        if (bad)
            return bad;
    }
    return NULL;
}

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data,
                                size_t bytes, struct status *st) {
    ProtobufCMessage *m = protobuf_c_message_unpack(descriptor, NULL, bytes, data);
    const char *bad = m ? find_bad_string(m) : NULL;
    if (bad) {
        status_set(st, STATUS_INVALID_ARGUMENT, "%s: %s is not UTF-8", descriptor->name, bad);
        protobuf_c_message_free_unpacked(m, NULL);
        return NULL;
    }
    if (!m)
        malformed(descriptor, st);
    return m;
}

ProtobufCMessage *wire_unpack(const struct wire_message *m, const ProtobufCMessageDescriptor *descriptor,
                              struct status *st) {
    const grpc_slice_buffer *slices = &m->buffer->data.raw.slice_buffer;
    if (slices->count == 1)
        return unpack(descriptor, GRPC_SLICE_START_PTR(slices->slices[0]), m->bytes, st);
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, m->buffer)) {
        malformed(descriptor, st);
        return NULL;
    }
    grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    ProtobufCMessage *message = unpack(descriptor, GRPC_SLICE_START_PTR(whole), GRPC_SLICE_LENGTH(whole), st);
    grpc_slice_unref(whole);
    return message;
}

/* ---- parts ---- */

/* A place in the slices. */
struct cursor {
    const grpc_slice_buffer *slices;
    size_t slice, at; /* at: within the slice */
    size_t left;      /* to the end of the message */
};

/* The bytes that lie together at the cursor, at most `most` > 0; moves behind them. At least one while any
 * are left. */
static struct engine_piece cursor_take(struct cursor *c, size_t most) {
    while (c->left && c->at == GRPC_SLICE_LENGTH(c->slices->slices[c->slice])) {
        c->slice++;
        c->at = 0;
    }
    if (!c->left)
        return (struct engine_piece){0};
    const grpc_slice *s = &c->slices->slices[c->slice];
    size_t here = GRPC_SLICE_LENGTH(*s) - c->at;
    struct engine_piece p = {.data = GRPC_SLICE_START_PTR(*s) + c->at, .bytes = here < most ? here : most};
    c->at += p.bytes;
    c->left -= p.bytes;
    return p;
}

/* The message without the large field, for protobuf-c. */
struct rest {
    uint8_t *data;
    size_t bytes, capacity;
};

static bool rest_put(struct rest *r, const void *data, size_t bytes) {
    if (bytes > r->capacity - r->bytes) {
        size_t capacity = 2 * r->capacity + bytes + 256;
        uint8_t *grown = realloc(r->data, capacity);
        if (!grown)
            return false;
        r->data = grown;
        r->capacity = capacity;
    }
    if (bytes)
        memcpy(r->data + r->bytes, data, bytes);
    r->bytes += bytes;
    return true;
}

enum { VARINT_BYTES_MAX = 10, WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

/* Reads a varint and keeps its bytes in `raw`. False: it ends early or is too long. */
static bool read_varint(struct cursor *c, uint64_t *value, uint8_t raw[VARINT_BYTES_MAX], size_t *raw_bytes) {
    *value = 0;
    for (*raw_bytes = 0; *raw_bytes < VARINT_BYTES_MAX;) {
        struct engine_piece p = cursor_take(c, 1);
        if (!p.bytes)
            return false;
        uint8_t byte = *(const uint8_t *)p.data;
        *value |= (uint64_t)(byte & 0x7f) << (7 * *raw_bytes);
        raw[(*raw_bytes)++] = byte;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

static bool copy_to_rest(struct cursor *c, uint64_t bytes, struct rest *rest) {
    if (bytes > c->left)
        return false;
    while (bytes) {
        struct engine_piece p = cursor_take(c, bytes);
        if (!rest_put(rest, p.data, p.bytes))
            return false;
        bytes -= p.bytes;
    }
    return true;
}

static bool take_field(struct cursor *c, uint64_t bytes, struct wire_parts *parts, size_t *pieces_count) {
    if (bytes > c->left || parts->fields_count == WIRE_FIELDS_MAX)
        return false;
    struct wire_field *f = &parts->fields[parts->fields_count++];
    *f = (struct wire_field){.pieces = parts->block + *pieces_count, .bytes = bytes};
    while (bytes) {
        struct engine_piece p = cursor_take(c, bytes);
        f->pieces[f->pieces_count++] = p;
        bytes -= p.bytes;
    }
    *pieces_count += f->pieces_count;
    return true;
}

/* Sends every field either to parts or to rest. */
static bool split(struct cursor *c, uint32_t number, struct wire_parts *parts, struct rest *rest) {
    size_t pieces_count = 0;
    while (c->left) {
        uint8_t tag_raw[VARINT_BYTES_MAX], raw[VARINT_BYTES_MAX];
        size_t tag_bytes, raw_bytes = 0;
        uint64_t tag, length = 0;
        if (!read_varint(c, &tag, tag_raw, &tag_bytes))
            return false;
        const unsigned type = tag & 7;
        if ((type == WIRE_BYTES || type == WIRE_VARINT) && !read_varint(c, &length, raw, &raw_bytes))
            return false;
        if (type == WIRE_BYTES && tag >> 3 == number) {
            if (!take_field(c, length, parts, &pieces_count))
                return false;
            continue;
        }
        if (type == WIRE_VARINT)
            length = 0;
        else if (type == WIRE_FIXED64 || type == WIRE_FIXED32)
            length = type == WIRE_FIXED64 ? 8 : 4;
        else if (type != WIRE_BYTES)
            return false;
        if (!rest_put(rest, tag_raw, tag_bytes) || !rest_put(rest, raw, raw_bytes) ||
            !copy_to_rest(c, length, rest))
            return false;
    }
    return true;
}

ProtobufCMessage *wire_unpack_parts(const struct wire_message *m,
                                    const ProtobufCMessageDescriptor *descriptor, uint32_t number,
                                    struct wire_parts *parts, struct status *st) {
    const grpc_slice_buffer *slices = &m->buffer->data.raw.slice_buffer;
    struct cursor c = {.slices = slices, .left = m->bytes};
    struct rest rest = {0};
    ProtobufCMessage *message = NULL;
    *parts = (struct wire_parts){0};
    parts->block = calloc(slices->count + WIRE_FIELDS_MAX, sizeof *parts->block);
    if (!parts->block)
        status_set_no_memory(st, slices->count * sizeof *parts->block, "a message");
    else if (!split(&c, number, parts, &rest))
        malformed(descriptor, st);
    else
        message = unpack(descriptor, rest.data, rest.bytes, st);
    free(rest.data);
    if (!message)
        wire_parts_free(parts);
    return message;
}

void wire_parts_free(struct wire_parts *p) {
    free(p->block);
    *p = (struct wire_parts){0};
}

bool wire_field_copy(const struct wire_field *f, size_t offset, size_t bytes, void *to) {
    if (offset > f->bytes || bytes > f->bytes - offset)
        return false;
    uint8_t *out = to;
    for (size_t i = 0; i < f->pieces_count && bytes; i++) {
        const struct engine_piece *p = &f->pieces[i];
        if (offset >= p->bytes) {
            offset -= p->bytes;
            continue;
        }
        size_t n = p->bytes - offset < bytes ? p->bytes - offset : bytes;
        memcpy(out, (const uint8_t *)p->data + offset, n);
        out += n;
        bytes -= n;
        offset = 0;
    }
    return true;
}
