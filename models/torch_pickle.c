/* A pickle machine that can only make what a state dict is made of: numbers, texts, tuples, lists,
 * dictionaries, storages and tensors. A global outside a short list is refused by name; nothing is ever
 * called. (Opcodes: Python's Lib/pickletools.py. Layout of tensors: torch/_utils.py, _rebuild_tensor_v2.) */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "models/builder.h"
#include "models/torch_machine.h"

enum global_kind { GLOBAL_ORDERED_DICT, GLOBAL_REBUILD_TENSOR, GLOBAL_REBUILD_PARAMETER, GLOBAL_STORAGE };

static const struct {
    const char *module, *name;
    enum global_kind kind;
    const char *dtype;
    unsigned bytes; /* of an element */
} globals[] = {
    {"collections", "OrderedDict", GLOBAL_ORDERED_DICT, NULL, 0},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_REBUILD_TENSOR, NULL, 0},
    {"torch._utils", "_rebuild_parameter", GLOBAL_REBUILD_PARAMETER, NULL, 0},
    {"torch", "FloatStorage", GLOBAL_STORAGE, "F32", 4},
    {"torch", "HalfStorage", GLOBAL_STORAGE, "F16", 2},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, "BF16", 2},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, "F64", 8},
    {"torch", "LongStorage", GLOBAL_STORAGE, "I64", 8},
    {"torch", "IntStorage", GLOBAL_STORAGE, "I32", 4},
    {"torch", "ShortStorage", GLOBAL_STORAGE, "I16", 2},
    {"torch", "CharStorage", GLOBAL_STORAGE, "I8", 1},
    {"torch", "ByteStorage", GLOBAL_STORAGE, "U8", 1},
    {"torch", "BoolStorage", GLOBAL_STORAGE, "BOOL", 1},
};
enum { GLOBALS = sizeof globals / sizeof *globals };

/* ---- reading the code ---- */

static const unsigned char *take(struct machine *m, uint64_t n) {
    if (!check_range_u64(m->at, n, m->bytes)) {
        machine_damaged(m, "it ends early (truncated?)");
        return NULL;
    }
    const unsigned char *p = m->code + m->at;
    m->at += n;
    return p;
}

/* A little-endian number of `bytes` bytes. */
static int take_number(struct machine *m, unsigned bytes, uint64_t *value) {
    const unsigned char *p = take(m, bytes);
    if (!p)
        return -1;
    *value = 0;
    for (unsigned i = bytes; i-- > 0;)
        *value = *value << 8 | p[i];
    return 0;
}

static int push_number(struct machine *m, unsigned bytes) {
    uint64_t u;
    if (take_number(m, bytes, &u))
        return -1;
    return machine_push(
        m, (struct value){.kind = VALUE_INT, .integer = bytes == 4 ? (int32_t)(uint32_t)u : (int64_t)u});
}

/* Two's complement of any length; what torch.save needs fits 64 bits. */
static int push_long(struct machine *m) {
    uint64_t n, u = 0;
    if (take_number(m, 1, &n))
        return -1;
    if (n > 8)
        return machine_over_limit(m, "bytes in a number", 8);
    if (n && take_number(m, (unsigned)n, &u))
        return -1;
    if (n && n < 8 && u >> (8 * n - 1))
        u |= UINT64_MAX << (8 * n);
    int64_t value;
    memcpy(&value, &u, sizeof value);
    return machine_push(m, (struct value){.kind = VALUE_INT, .integer = value});
}

static int push_text(struct machine *m, unsigned length_bytes) {
    uint64_t n;
    if (take_number(m, length_bytes, &n))
        return -1;
    if (n > TORCH_STRING_BYTES_MAX)
        return machine_over_limit(m, "bytes in a text", TORCH_STRING_BYTES_MAX);
    struct value v = {.kind = VALUE_TEXT, .bytes = (uint32_t)n, .offset = (uint32_t)m->at};
    return take(m, n) ? machine_push(m, v) : -1;
}

static bool is_text(const struct machine *m, struct value v, const char *text) {
    return v.kind == VALUE_TEXT && v.bytes == strlen(text) && memcmp(m->code + v.offset, text, v.bytes) == 0;
}

/* ---- globals and calls ---- */

static int push_global(struct machine *m, const unsigned char *module, size_t module_bytes,
                       const unsigned char *name, size_t name_bytes) {
    for (uint32_t i = 0; i < GLOBALS; i++)
        if (strlen(globals[i].module) == module_bytes &&
            memcmp(globals[i].module, module, module_bytes) == 0 && strlen(globals[i].name) == name_bytes &&
            memcmp(globals[i].name, name, name_bytes) == 0)
            return machine_push(m, (struct value){.kind = VALUE_GLOBAL, .index = i});
    char shown_module[CHECKPOINT_SHOWN_BYTES], shown_name[CHECKPOINT_SHOWN_BYTES];
    return status_set(m->st, STATUS_FAILED_PRECONDITION,
                      "%s: pickle wants %s.%s, which this program never runs", m->zip->file,
                      checkpoint_show(shown_module, (const char *)module, module_bytes),
                      checkpoint_show(shown_name, (const char *)name, name_bytes));
}

/* Two lines: module, name. */
static int take_global(struct machine *m) {
    const unsigned char *line[2];
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        line[i] = m->code + m->at;
        uint64_t rest = m->bytes - m->at;
        const unsigned char *end =
            memchr(line[i], '\n', rest < TORCH_GLOBAL_BYTES_MAX ? rest : TORCH_GLOBAL_BYTES_MAX);
        if (!end)
            return machine_damaged(m, "the name of a global does not end");
        bytes[i] = (size_t)(end - line[i]);
        m->at += bytes[i] + 1;
    }
    return push_global(m, line[0], bytes[0], line[1], bytes[1]);
}

static int stack_global(struct machine *m) {
    const struct value *v = machine_pop(m, 2);
    if (!v)
        return -1;
    if (v[0].kind != VALUE_TEXT || v[1].kind != VALUE_TEXT)
        return machine_damaged(m, "the name of a global is not a text");
    return push_global(m, m->code + v[0].offset, v[0].bytes, m->code + v[1].offset, v[1].bytes);
}

/* ("storage", type, key, device, elements) becomes a storage; its bytes must be in the archive. */
static int load_storage(struct machine *m) {
    struct value item[5];
    char shown[CHECKPOINT_SHOWN_BYTES];
    const struct value *v = machine_pop(m, 1);
    if (!v)
        return -1;
    if (machine_tuple_items(m, *v, 5, item) != 5 || !is_text(m, item[0], "storage") ||
        item[1].kind != VALUE_GLOBAL || globals[item[1].index].kind != GLOBAL_STORAGE ||
        item[2].kind != VALUE_TEXT || item[4].kind != VALUE_INT)
        return machine_damaged(m, "a storage is not described as torch does");
    const char *key = (const char *)m->code + item[2].offset;
    struct storage s = {.global = item[1].index, .elements = item[4].integer};
    s.entry = torch_zip_find(m->zip, "data/", key, item[2].bytes);
    if (!s.entry)
        return status_set(m->st, STATUS_INVALID_ARGUMENT, "%s: storage data/%s is missing in the archive",
                          m->zip->file, checkpoint_show(shown, key, item[2].bytes));
    uint64_t bytes;
    if (s.elements < 0 || !check_mul_u64((uint64_t)s.elements, globals[s.global].bytes, &bytes) ||
        bytes > s.entry->bytes)
        return status_set(m->st, STATUS_INVALID_ARGUMENT,
                          "%s: storage data/%s holds fewer than its %lld elements", m->zip->file,
                          checkpoint_show(shown, key, item[2].bytes), (long long)s.elements);
    struct value result = {.kind = VALUE_STORAGE, .index = m->storages.count};
    return machine_pool_add(m, &m->storages, &s) ? -1 : machine_push(m, result);
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks[, metadata]) */
static int rebuild_tensor(struct machine *m, struct value args) {
    struct value arg[7], size[CHECKPOINT_RANK_MAX], stride[CHECKPOINT_RANK_MAX];
    int n = machine_tuple_items(m, args, 7, arg);
    if (n < 6 || arg[0].kind != VALUE_STORAGE || arg[1].kind != VALUE_INT)
        return machine_damaged(m, "a tensor is not described as torch does");
    struct rebuilt t = {.storage = arg[0].index, .contiguous = true, .offset = arg[1].integer};
    t.rank = machine_tuple_items(m, arg[2], CHECKPOINT_RANK_MAX, size);
    if (t.rank < 0 || machine_tuple_items(m, arg[3], CHECKPOINT_RANK_MAX, stride) != t.rank)
        return machine_damaged(m, "a tensor's size and stride do not agree, or it has too many dimensions");
    uint64_t elements = 1;
    for (int i = t.rank - 1; i >= 0; i--) {
        if (size[i].kind != VALUE_INT || stride[i].kind != VALUE_INT || size[i].integer < 0)
            return machine_damaged(m, "a tensor's size or stride is not a number");
        t.shape[i] = size[i].integer;
        if (t.shape[i] != 1 && (uint64_t)stride[i].integer != elements)
            t.contiguous = false;
        if (!check_mul_u64(elements, (uint64_t)t.shape[i], &elements))
            return machine_damaged(m, "a tensor's size overflows");
    }
    if (elements == 0)
        t.contiguous = true;
    const struct storage *s = machine_pool_at(&m->storages, t.storage);
    if (t.offset < 0 ||
        (t.contiguous && !check_range_u64((uint64_t)t.offset, elements, (uint64_t)s->elements)))
        return machine_damaged(m, "a tensor lies outside its storage");
    t.elements = (int64_t)elements;
    struct value result = {.kind = VALUE_TENSOR, .index = m->tensors.count};
    return machine_pool_add(m, &m->tensors, &t) ? -1 : machine_push(m, result);
}

static int reduce(struct machine *m) {
    struct value arg[3];
    const struct value *top = machine_pop(m, 2);
    if (!top)
        return -1;
    struct value function = top[0], args = top[1];
    if (function.kind != VALUE_GLOBAL || args.kind != VALUE_TUPLE)
        return machine_damaged(m, "a call of something that is not a function");
    switch (globals[function.index].kind) {
    case GLOBAL_ORDERED_DICT:
        if (machine_tuple_items(m, args, 0, arg) != 0)
            return machine_damaged(m, "an OrderedDict is made with arguments");
        return machine_push_object(m, VALUE_DICT, NULL, 0);
    case GLOBAL_REBUILD_TENSOR:
        return rebuild_tensor(m, args);
    case GLOBAL_REBUILD_PARAMETER: /* (tensor, requires_grad, backward_hooks): the tensor */
        if (machine_tuple_items(m, args, 3, arg) != 3 || arg[0].kind != VALUE_TENSOR)
            return machine_damaged(m, "a parameter is not described as torch does");
        return machine_push(m, arg[0]);
    case GLOBAL_STORAGE:
        break;
    }
    return machine_damaged(m, "a storage type is called");
}

/* Sets attributes; a state dict has `_metadata`, which nobody needs. */
static int build(struct machine *m) {
    const struct value *v = machine_pop(m, 2);
    if (!v)
        return -1;
    if (v[0].kind != VALUE_DICT)
        return machine_damaged(m, "attributes of something that is not a dictionary");
    m->stack.count++; /* the dictionary stays */
    return 0;
}

/* ---- containers and memo ---- */

static int push_tuple(struct machine *m, uint32_t n) {
    const struct value *v = machine_pop(m, n);
    struct value copy[3];
    if (!v)
        return -1;
    for (uint32_t i = 0; i < n; i++)
        copy[i] = v[i];
    return machine_push_object(m, VALUE_TUPLE, copy, n);
}

static int push_tuple_to_mark(struct machine *m) {
    const struct value *v = NULL;
    int64_t n = machine_pop_to_mark(m, &v);
    return n < 0 ? -1 : machine_push_object(m, VALUE_TUPLE, v, (uint32_t)n);
}

/* Adds `n` values, those popped before, to the container that is now on top. */
static int add_to(struct machine *m, enum value_kind kind, const struct value *values, int64_t n) {
    if (n < 0)
        return -1;
    const struct value *to = m->stack.count ? machine_pool_at(&m->stack, m->stack.count - 1) : NULL;
    if (!to || to->kind != kind || (kind == VALUE_DICT && n % 2))
        return machine_damaged(m, "items for something that cannot hold them");
    return machine_object_add(m, to->index, values, (uint32_t)n);
}

static int add_popped(struct machine *m, enum value_kind kind, uint32_t n) {
    const struct value *v = machine_pop(m, n);
    return v ? add_to(m, kind, v, n) : -1;
}

static int add_to_mark(struct machine *m, enum value_kind kind) {
    const struct value *v = NULL;
    int64_t n = machine_pop_to_mark(m, &v);
    return add_to(m, kind, v, n);
}

static int push_mark(struct machine *m) {
    if (m->marks == TORCH_NESTING_MAX)
        return machine_over_limit(m, "nested marks", TORCH_NESTING_MAX);
    m->marks++;
    return machine_push(m, (struct value){.kind = VALUE_MARK});
}

static int memo_put(struct machine *m, uint64_t index) {
    const struct value unset = {.kind = VALUE_MARK};
    if (index >= TORCH_MEMO_MAX || index > m->bytes) /* each entry was a byte of code at least */
        return machine_over_limit(m, "memo entries", TORCH_MEMO_MAX);
    if (m->stack.count == 0)
        return machine_damaged(m, "the stack is empty");
    struct value v = *(const struct value *)machine_pool_at(&m->stack, m->stack.count - 1);
    if (v.kind == VALUE_MARK)
        return machine_damaged(m, "a mark in the place of a value");
    while (m->memo.count <= index)
        if (machine_pool_add(m, &m->memo, &unset))
            return -1;
    *(struct value *)machine_pool_at(&m->memo, (uint32_t)index) = v;
    return 0;
}

static int memo_get(struct machine *m, unsigned bytes) {
    uint64_t index;
    if (take_number(m, bytes, &index))
        return -1;
    const struct value *v = index < m->memo.count ? machine_pool_at(&m->memo, (uint32_t)index) : NULL;
    if (!v || v->kind == VALUE_MARK)
        return machine_damaged(m, "a memo entry that is not there");
    return machine_push(m, *v);
}

static int memo_put_numbered(struct machine *m, unsigned bytes) {
    uint64_t index;
    return take_number(m, bytes, &index) ? -1 : memo_put(m, index);
}

/* ---- the machine ---- */

static int step(struct machine *m, unsigned char op) {
    switch (op) {
    case '}':
        return machine_push_object(m, VALUE_DICT, NULL, 0);
    case ']':
        return machine_push_object(m, VALUE_LIST, NULL, 0);
    case ')':
        return machine_push_object(m, VALUE_TUPLE, NULL, 0);
    case 0x85:
    case 0x86:
    case 0x87:
        return push_tuple(m, op - 0x84u);
    case 't':
        return push_tuple_to_mark(m);
    case '(':
        return push_mark(m);
    case 's':
        return add_popped(m, VALUE_DICT, 2);
    case 'u':
        return add_to_mark(m, VALUE_DICT);
    case 'a':
        return add_popped(m, VALUE_LIST, 1);
    case 'e':
        return add_to_mark(m, VALUE_LIST);
    case 'N':
        return machine_push(m, (struct value){.kind = VALUE_NONE});
    case 0x88:
    case 0x89:
        return machine_push(m, (struct value){.kind = VALUE_BOOL, .integer = op == 0x88});
    case 'J':
        return push_number(m, 4);
    case 'K':
        return push_number(m, 1);
    case 'M':
        return push_number(m, 2);
    case 0x8a:
        return push_long(m);
    case 'G':
        return take(m, 8) ? machine_push(m, (struct value){.kind = VALUE_FLOAT}) : -1;
    case 'X':
        return push_text(m, 4);
    case 0x8c:
        return push_text(m, 1);
    case 'q':
        return memo_put_numbered(m, 1);
    case 'r':
        return memo_put_numbered(m, 4);
    case 0x94:
        return memo_put(m, m->memo.count);
    case 'h':
        return memo_get(m, 1);
    case 'j':
        return memo_get(m, 4);
    case 'c':
        return take_global(m);
    case 0x93:
        return stack_global(m);
    case 'Q':
        return load_storage(m);
    case 'R':
        return reduce(m);
    case 'b':
        return build(m);
    case 0x80: /* protocol: what matters of it shows in the opcodes */
        return take(m, 1) ? 0 : -1;
    case 0x95: /* frame: a hint for reading ahead */
        return take(m, 8) ? 0 : -1;
    }
    return status_set(
        m->st, STATUS_FAILED_PRECONDITION,
        "%s: pickle opcode 0x%02x at byte %llu, which torch.save() does not make for a state dict",
        m->zip->file, op, (unsigned long long)m->at - 1);
}

static int run(struct machine *m) {
    const unsigned char *op;
    while ((op = take(m, 1))) {
        if (*op == '.')
            return 0;
        if (step(m, *op))
            return -1;
    }
    return -1;
}

/* ---- the result ---- */

static int add_tensor(struct checkpoint_builder *b, const struct machine *m, struct value key,
                      struct value value) {
    const char *name = (const char *)m->code + key.offset;
    const struct rebuilt *t = machine_pool_at(&m->tensors, value.index);
    const struct storage *s = machine_pool_at(&m->storages, t->storage);
    const unsigned size = globals[s->global].bytes;
    char shown[CHECKPOINT_SHOWN_BYTES];
    if (!t->contiguous)
        return status_set(m->st, STATUS_FAILED_PRECONDITION,
                          "%s: tensor %s is not contiguous; save it again after .contiguous()", m->zip->file,
                          checkpoint_show(shown, name, key.bytes));
    return checkpoint_add(b, name, key.bytes, globals[s->global].dtype, t->rank, t->shape,
                          s->entry->offset + (uint64_t)t->offset * size, (uint64_t)t->elements * size, m->st);
}

static int add_tensors(struct checkpoint_builder *b, struct machine *m) {
    const struct value *top = m->stack.count == 1 ? machine_pool_at(&m->stack, 0) : NULL;
    if (!top || top->kind != VALUE_DICT)
        return status_set(m->st, STATUS_FAILED_PRECONDITION,
                          "%s: holds something else than a state dict (a dictionary "
                          "of tensors)",
                          m->zip->file);
    const struct object *o = machine_pool_at(&m->objects, top->index);
    uint32_t at = o->first, tensors = 0;
    struct value inner = {.kind = VALUE_NONE};
    for (uint32_t i = 0; i < o->count; i += 2) {
        const struct item *key = machine_pool_at(&m->items, at),
                          *value = machine_pool_at(&m->items, key->next);
        at = value->next;
        if (key->value.kind == VALUE_TEXT && value->value.kind == VALUE_DICT && inner.kind == VALUE_NONE)
            inner = key->value;
        if (key->value.kind != VALUE_TEXT || value->value.kind != VALUE_TENSOR)
            continue;
        tensors++;
        if (add_tensor(b, m, key->value, value->value))
            return -1;
    }
    char shown[CHECKPOINT_SHOWN_BYTES];
    if (tensors == 0 && inner.kind == VALUE_TEXT)
        return status_set(m->st, STATUS_FAILED_PRECONDITION,
                          "%s: not a plain state dict: no tensors at its top, but a "
                          "dictionary \"%s\"; save that one alone",
                          m->zip->file,
                          checkpoint_show(shown, (const char *)m->code + inner.offset, inner.bytes));
    return 0;
}

static struct pool pool_of(size_t size, uint32_t max, const char *what) {
    return (struct pool){.size = size, .max = max, .what = what};
}

int torch_pickle_read(struct checkpoint_builder *b, const struct torch_zip *z, struct status *st) {
    const struct torch_entry *e = torch_zip_find(z, "", "data.pkl", strlen("data.pkl"));
    if (!e)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a torch checkpoint: it holds no data.pkl",
                          z->file);
    if (e->bytes > TORCH_PICKLE_BYTES_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "%s: a pickle of %llu bytes is more than the limit of %d", z->file,
                          (unsigned long long)e->bytes, TORCH_PICKLE_BYTES_MAX);
    struct machine m = {.zip = z,
                        .st = st,
                        .code = z->map->data + e->offset,
                        .bytes = e->bytes,
                        .stack = pool_of(sizeof(struct value), TORCH_STACK_MAX, "values on its stack"),
                        .memo = pool_of(sizeof(struct value), TORCH_MEMO_MAX, "memo entries"),
                        .objects = pool_of(sizeof(struct object), TORCH_OBJECTS_MAX, "objects"),
                        .items = pool_of(sizeof(struct item), TORCH_ITEMS_MAX, "items"),
                        .storages = pool_of(sizeof(struct storage), CHECKPOINT_TENSORS_MAX, "storages"),
                        .tensors = pool_of(sizeof(struct rebuilt), CHECKPOINT_TENSORS_MAX, "tensors")};
    int rc = run(&m) || add_tensors(b, &m) ? -1 : 0;
    free(m.stack.data);
    free(m.memo.data);
    free(m.objects.data);
    free(m.items.data);
    free(m.storages.data);
    free(m.tensors.data);
    return rc;
}
