/* builder: what the readers of the containers share with checkpoint.c. Internal to models/. */
#ifndef TIMBRE_MODELS_BUILDER_H
#define TIMBRE_MODELS_BUILDER_H

#include <stdbool.h>
#include <stddef.h>

#include "models/checkpoint.h"

enum {
    CHECKPOINT_JSON_VALUES_MAX =
        32 * CHECKPOINT_TENSORS_MAX, /* in a header or an index; bounds the parser's memory */
    CHECKPOINT_SHOWN_BYTES = 96,     /* of a foreign text in a message */
};

/* A checkpoint while tensors are added to it. */
struct checkpoint_builder {
    struct checkpoint *checkpoint;
    int file;     /* the file that checkpoint_add is for, index into checkpoint->files */
    int capacity; /* of checkpoint->tensors */
};

/* Sorts by name after the last checkpoint_add. Error: INVALID_ARGUMENT, a name that is there twice. */
int checkpoint_sort(struct checkpoint *c, struct status *st);

void checkpoint_free_tensors(struct checkpoint *c);

/* Refuses JSON that would become more than CHECKPOINT_JSON_VALUES_MAX values, or whose strings hold an
 * escaped zero byte (which would cut them). Error: INVALID_ARGUMENT, with `where`. */
int checkpoint_check_json(const char *data, size_t bytes, const char *where, struct status *st);

/* A foreign text for a message: cut to CHECKPOINT_SHOWN_BYTES, control characters replaced. Returns `to`. */
const char *checkpoint_show(char *to, const char *text, size_t bytes);

#endif
