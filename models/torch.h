/* torch: reading what torch.save writes, without running any of it. Internal to models/.
 *
 * The file is a zip archive of stored entries: <prefix>data.pkl, a pickle of the object, and
 * <prefix>data/<key>, the bytes of each storage. torch_zip.c finds the entries, torch_pickle.c interprets the
 * pickle with a closed list of globals. */
#ifndef TIMBRE_MODELS_TORCH_H
#define TIMBRE_MODELS_TORCH_H

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "models/checkpoint.h"

enum {
    TORCH_ENTRIES_MAX = CHECKPOINT_TENSORS_MAX + 256,
    TORCH_PICKLE_BYTES_MAX = 64 << 20,
    TORCH_STACK_MAX = 1 << 16,
    TORCH_NESTING_MAX = 64, /* marks open at once */
    TORCH_MEMO_MAX = 1 << 20,
    TORCH_OBJECTS_MAX = 1 << 18, /* tuples, lists, dictionaries */
    TORCH_ITEMS_MAX = 1 << 20,   /* within all of them */
    TORCH_STRING_BYTES_MAX = 1 << 20,
    TORCH_GLOBAL_BYTES_MAX = 256,
};

/* One stored entry; everything checked to lie within the file. */
struct torch_entry {
    const char *name; /* in the map, not zero-terminated */
    size_t name_bytes;
    uint64_t offset, bytes; /* of its data in the file */
};

struct torch_zip {
    const struct file_map *map;
    const char *file;            /* for messages */
    struct torch_entry *entries; /* sorted by name */
    int count, capacity;
    const char *prefix; /* of data.pkl, such as "archive/" */
    size_t prefix_bytes;
};

/* Reads the archive's directory and finds data.pkl. Errors: INVALID_ARGUMENT (damaged), FAILED_PRECONDITION
 * (an older format, compressed or big-endian), RESOURCE_EXHAUSTED. On failure nothing is left to free. */
int torch_zip_init(struct torch_zip *z, const struct file_map *m, const char *file, struct status *st);
void torch_zip_free(struct torch_zip *z);

/* The entry <prefix><folder><name>; NULL when there is none. */
const struct torch_entry *torch_zip_find(const struct torch_zip *z, const char *folder, const char *name,
                                         size_t name_bytes);

/* Interprets data.pkl and adds each tensor of the state dict to `b`. Errors: INVALID_ARGUMENT (damaged),
 * FAILED_PRECONDITION (it wants code to be run, or is not a plain state dict), RESOURCE_EXHAUSTED (a limit).
 */
int torch_pickle_read(struct checkpoint_builder *b, const struct torch_zip *z, struct status *st);

#endif
