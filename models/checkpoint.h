/* checkpoint: the weights in a model folder, found and mapped, whatever container they are in.
 *
 * Looked for in this order: model.safetensors, model.safetensors.index.json with its shards,
 * pytorch_model.bin, pytorch_model.bin.index.json with its shards. Nothing in a file is trusted or executed.
 */
#ifndef TIMBRE_MODELS_CHECKPOINT_H
#define TIMBRE_MODELS_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/sha256.h"
#include "base/status.h"

enum {
    CHECKPOINT_TENSORS_MAX = 16384,
    CHECKPOINT_FILES_MAX = 256,
    CHECKPOINT_RANK_MAX = 8,
    CHECKPOINT_NAME_BYTES_MAX = 256,
};

enum tensor_dtype {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_OTHER, /* integers and the like: listed, never used as a weight */
};

/* One tensor as it lies in its file. */
struct tensor {
    const char *name; /* as in the file; owned by the checkpoint */
    enum tensor_dtype dtype;
    char dtype_name[16]; /* as the file says it, such as "I64" */
    int rank;
    int64_t shape[CHECKPOINT_RANK_MAX];
    int64_t elements;          /* product of the shape */
    const unsigned char *data; /* little-endian, row-major, contiguous; not necessarily aligned */
    uint64_t bytes;
    int file;  /* index into files */
    bool used; /* set by whoever reads it; what stays false is listed in the load report */
};

struct checkpoint_file {
    char *name; /* within the folder */
    struct file_map map;
};

struct checkpoint {
    char *dir;
    const char *format; /* "safetensors", "safetensors, sharded", "torch", "torch, sharded" */
    struct checkpoint_file *files;
    int files_count;
    struct tensor *tensors; /* sorted by name */
    int tensors_count;
};

/* Opens what is there. Errors: NOT_FOUND (no weights in the folder), INVALID_ARGUMENT (damaged or hostile:
 * file, tensor and reason named), FAILED_PRECONDITION (a container or pickle that this program refuses:
 * named), RESOURCE_EXHAUSTED (a limit: named). On failure nothing is left to free. */
int checkpoint_init(struct checkpoint *c, const char *dir, struct status *st);
void checkpoint_free(struct checkpoint *c);

/* By its full name; NULL when there is none. */
struct tensor *checkpoint_find(const struct checkpoint *c, const char *name);

/* Copies the tensor to `to` [elements] as fp32: F16 and BF16 widen exactly. Returns false when it holds a NaN
 * or an infinity (everything is copied all the same). The dtype must not be TENSOR_OTHER. */
bool tensor_read_f32(const struct tensor *t, float *to);

/* Of a TENSOR_F32: whether it holds neither NaN nor infinity. For reading it in place; any alignment. */
bool tensor_is_finite_f32(const struct tensor *t);

/* Lets the tensor's pages leave the resident set; it may still be read again. */
void checkpoint_release(const struct checkpoint *c, const struct tensor *t);

/* For the readers: adds one tensor. `name` is copied. Checks rank, name, overflow and that `bytes` lies in
 * the file and is what dtype and shape need. Errors as above, with the file's name before them. */
struct checkpoint_builder;
int checkpoint_add(struct checkpoint_builder *b, const char *name, size_t name_bytes, const char *dtype_name,
                   int rank, const int64_t *shape, uint64_t offset, uint64_t bytes, struct status *st);

/* The readers, each in a file of its own: `m` is the whole file, `file` its name for messages. They call
 * checkpoint_add for each tensor; nothing else of theirs outlives the call. */
int safetensors_read(struct checkpoint_builder *b, const struct file_map *m, const char *file,
                     struct status *st);
int torch_read(struct checkpoint_builder *b, const struct file_map *m, const char *file, struct status *st);

#endif
