#include "models/torch_machine.h"

#include <stdlib.h>
#include <string.h>

int machine_damaged(struct machine *m, const char *what) {
    return status_set(m->st, STATUS_INVALID_ARGUMENT, "%s: damaged pickle at byte %llu: %s", m->zip->file,
                      (unsigned long long)m->at, what);
}

int machine_over_limit(struct machine *m, const char *what, long long max) {
    return status_set(m->st, STATUS_RESOURCE_EXHAUSTED, "%s: pickle: more %s than the limit of %lld",
                      m->zip->file, what, max);
}

static int machine_pool_reserve(struct machine *m, struct pool *p, uint32_t count) {
    if (count <= p->capacity)
        return 0;
    uint32_t capacity = p->capacity ? p->capacity * 2 : 64;
    if (capacity < count)
        capacity = count;
    unsigned char *bigger = realloc(p->data, capacity * p->size);
    if (!bigger)
        return status_set_no_memory(m->st, capacity * p->size, p->what);
    p->data = bigger;
    p->capacity = capacity;
    return 0;
}

int machine_pool_add(struct machine *m, struct pool *p, const void *element) {
    if (p->count >= p->max)
        return machine_over_limit(m, p->what, p->max);
    if (machine_pool_reserve(m, p, p->count + 1))
        return -1;
    memcpy(p->data + p->count++ * p->size, element, p->size);
    return 0;
}

void *machine_pool_at(const struct pool *p, uint32_t i) {
    return p->data + i * p->size;
}

int machine_push(struct machine *m, struct value v) {
    return machine_pool_add(m, &m->stack, &v);
}

const struct value *machine_pop(struct machine *m, uint32_t n) {
    if (m->stack.count < n) {
        machine_damaged(m, "the stack is empty");
        return NULL;
    }
    const struct value *v = machine_pool_at(&m->stack, m->stack.count - n);
    for (uint32_t i = 0; i < n; i++)
        if (v[i].kind == VALUE_MARK) {
            machine_damaged(m, "a mark in the place of a value");
            return NULL;
        }
    m->stack.count -= n;
    return v; /* the places are free, but nothing was written there yet */
}

int64_t machine_pop_to_mark(struct machine *m, const struct value **first) {
    for (uint32_t i = m->stack.count; i-- > 0;) {
        const struct value *v = machine_pool_at(&m->stack, i);
        if (v->kind != VALUE_MARK)
            continue;
        int64_t n = (int64_t)m->stack.count - i - 1;
        *first = v + 1;
        m->stack.count = i;
        m->marks--;
        return n;
    }
    return machine_damaged(m, "a mark is missing");
}

int machine_object_add(struct machine *m, uint32_t object, const struct value *values, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        struct item item = {.value = values[i]};
        uint32_t at = m->items.count;
        if (machine_pool_add(m, &m->items, &item))
            return -1;
        struct object *o = machine_pool_at(&m->objects, object);
        if (o->count++ == 0)
            o->first = at;
        else
            ((struct item *)machine_pool_at(&m->items, o->last))->next = at;
        o->last = at;
    }
    return 0;
}

int machine_push_object(struct machine *m, enum value_kind kind, const struct value *values, uint32_t n) {
    struct object empty = {0};
    struct value v = {.kind = kind, .index = m->objects.count};
    if (machine_pool_add(m, &m->objects, &empty) || machine_object_add(m, v.index, values, n))
        return -1;
    return machine_push(m, v);
}

int machine_tuple_items(const struct machine *m, struct value tuple, int max, struct value *items) {
    if (tuple.kind != VALUE_TUPLE)
        return -1;
    const struct object *o = machine_pool_at(&m->objects, tuple.index);
    if (o->count > (uint32_t)max)
        return -1;
    uint32_t at = o->first;
    for (uint32_t i = 0; i < o->count; i++) {
        const struct item *item = machine_pool_at(&m->items, at);
        items[i] = item->value;
        at = item->next;
    }
    return (int)o->count;
}
