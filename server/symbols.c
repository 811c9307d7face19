/* Which file of a descriptor set declares what. The set is small and questions are rare, so a question walks
 * it. */
#include "server/symbols.h"

#include <stdlib.h>
#include <string.h>

#include "proto/google/protobuf/descriptor.pb-c.h"

struct symbols {
    Google__Protobuf__FileDescriptorSet *set;
    int count;
    struct {
        const uint8_t *data;
        size_t bytes;
        uint64_t imports;
    } files[SYMBOLS_FILES_MAX];
};

/* ---- reading ---- */

/* A base-128 number at `at`; false when it is cut or too long. */
static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 63 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* Where the files lie: a set is nothing but its field 1, again and again. */
static bool split(struct symbols *s, const uint8_t *at, size_t bytes) {
    const uint8_t *end = at + bytes;
    while (at < end) {
        uint64_t tag, length;
        if (!read_varint(&at, end, &tag) || tag != (1 << 3 | 2) || !read_varint(&at, end, &length) ||
            length > (uint64_t)(end - at) || s->count == SYMBOLS_FILES_MAX)
            return false;
        s->files[s->count].data = at;
        s->files[s->count++].bytes = length;
        at += length;
    }
    return true;
}

/* Files come after what they import, as protoc writes them. */
static bool link_imports(struct symbols *s) {
    for (int i = 0; i < s->count; i++) {
        const Google__Protobuf__FileDescriptorProto *f = s->set->file[i];
        s->files[i].imports = (uint64_t)1 << i;
        for (size_t k = 0; k < f->n_dependency; k++) {
            int of = symbols_find_file(s, f->dependency[k]);
            if (of < 0 || of >= i)
                return false;
            s->files[i].imports |= s->files[of].imports;
        }
    }
    return true;
}

int symbols_new(struct symbols **out, const void *set, size_t bytes, struct status *st) {
    struct symbols *s = calloc(1, sizeof *s);
    if (!s)
        return status_set_no_memory(st, sizeof *s, "the descriptors");
    if (!split(s, set, bytes) ||
        !(s->set = google__protobuf__file_descriptor_set__unpack(NULL, bytes, set)) ||
        s->set->n_file != (size_t)s->count || !link_imports(s)) {
        symbols_del(s);
        return status_set(st, STATUS_INTERNAL, "the descriptor set of %zu bytes cannot be read", bytes);
    }
    *out = s;
    return 0;
}

void symbols_del(struct symbols *s) {
    if (!s)
        return;
    if (s->set)
        google__protobuf__file_descriptor_set__free_unpacked(s->set, NULL);
    free(s);
}

/* ---- names ---- */

/* When `name` goes on with "<part>." or is `part`: what is left of it, "" in the second case; else NULL. */
static const char *step(const char *name, const char *part) {
    size_t length = part ? strlen(part) : 0;
    if (length == 0 || strncmp(name, part, length) != 0)
        return NULL;
    if (name[length] == '.' && name[length + 1])
        return name + length + 1;
    return name[length] ? NULL : name + length;
}

static bool is(const char *name, const char *part) {
    return part && strcmp(name, part) == 0;
}

/* In a scope: the enum or one of its values. */
static bool in_enum(const Google__Protobuf__EnumDescriptorProto *e, const char *name) {
    if (is(name, e->name))
        return true;
    for (size_t i = 0; i < e->n_value; i++)
        if (is(name, e->value[i]->name))
            return true;
    return false;
}

static bool in_service(const Google__Protobuf__ServiceDescriptorProto *service, const char *name) {
    const char *rest = step(name, service->name);
    if (!rest)
        return false;
    if (!*rest)
        return true;
    for (size_t i = 0; i < service->n_method; i++)
        if (is(rest, service->method[i]->name))
            return true;
    return false;
}

/* `only_messages`: fields, oneofs, enums and extensions do not count. */
static bool in_message(const Google__Protobuf__DescriptorProto *m, const char *name, bool only_messages) {
    const char *rest = step(name, m->name);
    if (!rest)
        return false;
    if (!*rest)
        return true;
    for (size_t i = 0; i < m->n_nested_type; i++)
        if (in_message(m->nested_type[i], rest, only_messages))
            return true;
    if (only_messages)
        return false;
    for (size_t i = 0; i < m->n_field; i++)
        if (is(rest, m->field[i]->name))
            return true;
    for (size_t i = 0; i < m->n_oneof_decl; i++)
        if (is(rest, m->oneof_decl[i]->name))
            return true;
    for (size_t i = 0; i < m->n_enum_type; i++)
        if (in_enum(m->enum_type[i], rest))
            return true;
    for (size_t i = 0; i < m->n_extension; i++)
        if (is(rest, m->extension[i]->name))
            return true;
    return false;
}

static bool in_file(const Google__Protobuf__FileDescriptorProto *f, const char *name, bool only_messages) {
    const char *rest = f->package && *f->package ? step(name, f->package) : name;
    if (!rest || !*rest)
        return false;
    for (size_t i = 0; i < f->n_message_type; i++)
        if (in_message(f->message_type[i], rest, only_messages))
            return true;
    if (only_messages)
        return false;
    for (size_t i = 0; i < f->n_service; i++)
        if (in_service(f->service[i], rest))
            return true;
    for (size_t i = 0; i < f->n_enum_type; i++)
        if (in_enum(f->enum_type[i], rest))
            return true;
    for (size_t i = 0; i < f->n_extension; i++)
        if (is(rest, f->extension[i]->name))
            return true;
    return false;
}

int symbols_find_file(const struct symbols *s, const char *name) {
    for (int i = 0; i < s->count; i++)
        if (is(name, s->set->file[i]->name))
            return i;
    return -1;
}

int symbols_find(const struct symbols *s, const char *full_name) {
    for (int i = 0; i < s->count; i++)
        if (in_file(s->set->file[i], full_name, false))
            return i;
    return -1;
}

bool symbols_has_message(const struct symbols *s, const char *full_name) {
    for (int i = 0; i < s->count; i++)
        if (in_file(s->set->file[i], full_name, true))
            return true;
    return false;
}

const void *symbols_get_file(const struct symbols *s, int file, size_t *bytes) {
    *bytes = s->files[file].bytes;
    return s->files[file].data;
}

uint64_t symbols_get_imports(const struct symbols *s, int file) {
    return s->files[file].imports;
}
