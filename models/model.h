/* model: a loaded model and its workers. All that the engine needs to know of models.
 *
 * Three structs: the model's config and const weights (struct model: read-only after model_new, shared by all
 * threads) and the mutable workspace (struct model_worker: one owner at a time, sized once for the largest
 * batch). */
#ifndef TIMBRE_MODELS_MODEL_H
#define TIMBRE_MODELS_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/sha256.h"
#include "base/status.h"
#include "base/text.h"

struct model;
struct model_worker;

struct model_options {
    const char *device;         /* "auto" (a GPU when there is one that can be used, else the CPU), "cpu",
                                   "cuda", "ref"; NULL: auto */
    const char *precision;      /* "fp32", "bf16", "int8", "auto" (the fastest that keeps to 1 % of fp32: bf16
                                   where the device is made for it, else fp32); NULL: fp32 */
    const char *devices;        /* which GPUs: "all", or indexes such as "0,1"; NULL: "0" */
    const char *cuda_conv;      /* "auto", "cudnn", "gemm"; NULL: auto */
    const char *cuda_attention; /* "auto", "fused", "cublas"; NULL: auto */
    bool cuda_eager;            /* no CUDA graphs: starts faster, small batches run slower */
    int64_t gpu_memory_max_bytes; /* of each GPU's memory, for all models; 0: no limit of ours */
    int threads;                  /* 0: one a processor */
    bool pin;                     /* keep each thread on its processor */
    const char *labels_path;      /* a file of labels to use instead of the model's own; NULL: none */
    const char *output;           /* "softmax", "sigmoid", "none", "auto"; NULL: auto */
    const char *packed_cache; /* where packed weights are kept for the next start: a folder, or "beside" for
                                 the model's own; NULL or "": nowhere */
    bool packed_cache_verify; /* trust SHA-256 alone, not that unchanged stamps mean unchanged files */
    const char *head_activation; /* between dense and output of a dense/output head: "none", "tanh", "relu";
                                    NULL: none */
};

enum { MODEL_DEVICES_MAX = 16 };

/* The device that these options would choose here, such as "cpu-avx512". Errors: those of model_new for the
 * device. */
enum { MODEL_DEVICE_NAME_BYTES = 64 };
int model_find_device(const struct model_options *o, char *name, struct status *st);

struct model_file {
    char name[64];
    char sha256[SHA256_HEX_BYTES];
};

/* The load report: what is known of a loaded model. Lives as long as the model. */
struct model_info {
    const char *dir, *family, *head, *format; /* "wav2vec2", "projector + classifier", "safetensors" */
    int hidden, layers, heads;
    const char *feature_norm, *layer_order; /* "group" or "layer"; "post-norm" or "pre-norm" */
    bool weighted_layer_sum;
    int64_t parameters;
    int tensors_used, tensors_unused;
    const char *const *unused; /* [tensors_unused] names, sorted */
    int labels_count;
    const char *const *labels; /* [labels_count] */
    int sampling_rate_hz;
    bool normalize;
    const char *output;  /* "softmax", "sigmoid", "none", "softmax of gender" */
    const char *licence; /* "" when the folder does not say */
    const char *device, *precision;
    const char *precision_note; /* why "auto" took fp32, in one sentence; "" otherwise */
    const char *device_note;    /* why "auto" took the CPU, in one sentence; "" otherwise */
    int devices_count;          /* GPUs it is loaded on; 1 on the CPU */
    int workers_per_device; /* that keep the device busy: 2 on a GPU, so that one's audio is copied while the
                               other computes */
    int64_t weight_bytes;   /* of packed weights, on each device */
    int64_t min_samples;    /* fewer give no frame */
    double frame_s;         /* time between two frames */
    char digest[SHA256_HEX_BYTES]; /* SHA-256 of the lines "<sha256>  <name>\n" of `files`, sorted by name */
    struct model_file files[16];
    int files_count; /* of more files than fit, the first 16 are listed; all are in the digest */
    const char *const *warnings;
    int warnings_count;
};

/* Loads a folder completely and strictly: what returns here answers exactly as transformers would. Errors:
 * those of checkpoint_init and config_init; FAILED_PRECONDITION (head unknown; a tensor missing, of another
 * shape, not finite: named), UNAVAILABLE (device or precision not to be had), RESOURCE_EXHAUSTED. */
int model_new(struct model **m, const char *dir, const struct model_options *o, struct status *st);
void model_del(struct model *m); /* NULL is fine; its workers must be gone */
const struct model_info *model_get_info(const struct model *m);

/* The report for people and, as one JSON object without a line end, for programs. */
void model_report_text(const struct model *m, struct text *out);
void model_report_json(const struct model *m, struct text *out);

/* A worker on device `device` (0..devices_count - 1) for batches of up to `samples_max` samples (as
 * batch_slot_samples counts them) and `clips_max` clips. Any number of them may run at once. Errors:
 * RESOURCE_EXHAUSTED naming the bytes, INVALID_ARGUMENT, UNAVAILABLE (the device failed). The options'
 * threads belong to the worker. */
int model_worker_new(struct model_worker **w, const struct model *m, int device, int64_t samples_max,
                     int clips_max, struct status *st);
/* One of `parts` workers on the CPU that have its threads between them: number `part`, counted from 0. With
 * `pin` each thread is where it is in a worker that has all of them. parts: 1..model_count_threads. Its
 * memory is that of `lender`, as far as that goes: a worker of all threads, which must never run at the same
 * time as one of these, and is not deleted while they run. NULL: it has its own. */
int model_worker_new_part(struct model_worker **w, const struct model *m, int part, int parts,
                          struct model_worker *lender, int64_t samples_max, int clips_max, struct status *st);
int model_count_threads(const struct model *m); /* of a worker that has all; 1 on a GPU */
void model_worker_del(struct model_worker *w);  /* NULL is fine */
/* After an error of model_worker_run: the device will not work again in this process. */
bool model_worker_is_lost(const struct model_worker *w);

/* Its memory: activations on the device, and tables on the host. */
int64_t model_worker_get_bytes(const struct model_worker *w);

/* Samples that a clip of `count` samples takes of a worker's samples_max; 0 when it is too short for one
 * frame. */
int64_t model_count_slot(const struct model *m, int64_t count);

struct model_clip {
    const float *samples; /* [count] mono at the model's rate */
    int64_t count;        /* at least min_samples */
    float *logits;        /* [labels_count], written */
    float *embedding; /* [hidden], written: the pooled hidden states that the head sees; NULL: not wanted */
};

/* Runs one batch. The bits of a clip's results do not depend on the other clips, their order or the threads.
 * Errors: INVALID_ARGUMENT (over the worker's size, too short), UNAVAILABLE or INTERNAL (the device failed).
 */
int model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);

/* scores [labels_count] from logits by the model's output rule; both may be the same. */
void model_scores(const struct model *m, const float *logits, float *scores);
/* Index of the label to show first, or -1 for a regression, which has none. The lowest index wins a tie. */
int model_dominant(const struct model *m, const float *scores);

#endif
