/* torch_machine: the memory of the pickle machine: its stack, and the objects it makes. Internal to models/.
 *
 * Values refer to objects by index, so an object that holds itself costs nothing: nothing here walks into
 * depth. Every pool has a limit. A function that returns -1 (or NULL where it gives a pointer) has set the
 * machine's status. */
#ifndef TIMBRE_MODELS_TORCH_MACHINE_H
#define TIMBRE_MODELS_TORCH_MACHINE_H

#include <stdbool.h>

#include "models/torch.h"

enum value_kind {
    VALUE_MARK,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT, /* its number is never needed */
    VALUE_TEXT,
    VALUE_GLOBAL,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT,
    VALUE_STORAGE,
    VALUE_TENSOR,
};

struct value {
    enum value_kind kind;
    uint32_t bytes; /* TEXT */
    union {
        int64_t integer;
        uint32_t index;  /* GLOBAL: into globals; TUPLE, LIST, DICT: objects; STORAGE, TENSOR: theirs */
        uint32_t offset; /* TEXT: in the pickle */
    };
};

/* A list of items, linked, since many grow at once. A dictionary's are key, value, key, value. */
struct object {
    uint32_t first, last, count; /* indices into items */
};

struct item {
    struct value value;
    uint32_t next;
};

struct storage {
    uint32_t global; /* its type, index into globals */
    int64_t elements;
    const struct torch_entry *entry;
};

struct rebuilt {
    uint32_t storage;
    bool contiguous;
    int rank;
    int64_t offset, elements, shape[CHECKPOINT_RANK_MAX];
};

/* A growing array with a limit. */
struct pool {
    unsigned char *data;
    uint32_t count, capacity, max;
    size_t size;
    const char *what;
};

struct machine {
    const struct torch_zip *zip;
    struct status *st;
    const unsigned char *code;
    uint64_t bytes, at;
    int marks;
    struct pool stack, memo, objects, items, storages, tensors;
};

/* Sets "damaged pickle at byte N: what", INVALID_ARGUMENT; returns -1. */
int machine_damaged(struct machine *m, const char *what);
/* Sets "more <what> than the limit of <max>", RESOURCE_EXHAUSTED; returns -1. */
int machine_over_limit(struct machine *m, const char *what, long long max);
/* Copies one element of the pool's size to its end. */
int machine_pool_add(struct machine *m, struct pool *p, const void *element);
/* Pointers into a pool hold until something is added to it. */
void *machine_pool_at(const struct pool *p, uint32_t i);
int machine_push(struct machine *m, struct value v);
/* The n topmost values, or NULL when a mark or the stack's end is among them. */
const struct value *machine_pop(struct machine *m, uint32_t n);
/* All values above the topmost mark, which goes too; -1 when there is no mark. */
int64_t machine_pop_to_mark(struct machine *m, const struct value **first);
/* Adds n values to an object; a new object of these values is pushed by the other. */
int machine_object_add(struct machine *m, uint32_t object, const struct value *values, uint32_t n);
int machine_push_object(struct machine *m, enum value_kind kind, const struct value *values, uint32_t n);
/* The items of a tuple with at most `max` of them; -1 when it is none or has more. */
int machine_tuple_items(const struct machine *m, struct value tuple, int max, struct value *items);

#endif
