/* weights: strict reading of a checkpoint's tensors by role, with the spellings that real checkpoints use.
 *
 * The first error is kept and later calls do nothing, so that a loader reads like a list and is checked once.
 * Every tensor read is marked used; what is left is listed. */
#ifndef TIMBRE_MODELS_WEIGHTS_H
#define TIMBRE_MODELS_WEIGHTS_H

#include <stdbool.h>

#include "base/status.h"
#include "models/checkpoint.h"

enum {
    WEIGHTS_SCRATCH_MAX = 16, /* conversions held at once */
    WEIGHTS_READ_MAX = 32,    /* tensors whose pages are given back early; more are given back with the map */
};

struct weights {
    struct checkpoint *checkpoint;
    char prefix[64];   /* of the backbone: "wav2vec2.", "hubert.", "model.", "" ... */
    struct status *st; /* where the first error goes */
    bool failed;
    bool check_only; /* tensors are found, checked but for their values, and marked; pointers are NULL */
    float *scratch[WEIGHTS_SCRATCH_MAX]; /* conversions, grown as needed, valid until weights_release */
    size_t scratch_floats[WEIGHTS_SCRATCH_MAX];
    int scratch_used;
    const struct tensor *read[WEIGHTS_READ_MAX]; /* since the last weights_release */
    int read_count;
    int64_t parameters; /* elements of the tensors read so far */
};

/* Finds the backbone's prefix by `feature_extractor.conv_layers.0.conv.weight`. Error: FAILED_PRECONDITION
 * when no known prefix fits, naming the tensor looked for, or when more than one does. */
int weights_init(struct weights *w, struct checkpoint *c, struct status *st);
void weights_free(struct weights *w);

/* The tensor `<prefix><name>` (or exactly `name` when it begins with '/', which is left off: heads have no
 * prefix) as fp32 of exactly this shape: fatal if missing, of another shape or dtype, or not finite. The
 * `*.LayerNorm.gamma/beta` and `gamma/beta` spellings of weight/bias are tried too. NULL after an error. The
 * pointer is valid until weights_release; it may point into the mapped file. */
const float *weights_get(struct weights *w, const char *name, int rank, const int64_t *shape);

/* The positional convolution's kernel [out, in/groups, kernel], weight norm folded: W[o,i,k] = g[k] v[o,i,k]
 * / |v[.,.,k]| (Salimans and Kingma 2016, over dim 2), sums in double. Spellings: weight_g/weight_v,
 * parametrizations.weight.original0/original1, or a plain weight. `name` is the convolution without
 * ".weight". */
const float *weights_get_weight_norm(struct weights *w, const char *name, int64_t out, int64_t in_per_group,
                                     int64_t kernel);

/* True when the tensor is there, under any of its spellings; marks nothing. */
bool weights_has(const struct weights *w, const char *name);

/* Shape of a tensor that must be there, for counts that only the file knows (labels). NULL after an error. */
const struct tensor *weights_find(struct weights *w, const char *name);

/* Gives back scratch and the resident pages of what was read since the last call. */
void weights_release(struct weights *w);

/* Records an error as the first one, if there is none yet. */
void weights_fail(struct weights *w, enum status_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
