/* core: what the commands of timbre_core share. Each prints one JSON object a line and returns the exit
 * status. */
#ifndef TIMBRE_BENCH_GPU_CORE_H
#define TIMBRE_BENCH_GPU_CORE_H

#include "base/text.h"
#include "bench/gpu/clips.h"
#include "models/model.h"

enum { CORE_CLIPS_MAX = 1024 };

struct core_options {
    struct model_options model;
    int clips, rounds, workers;
    int batch;        /* predict: clips run together; 0: as many as a worker takes */
    bool is_reversed; /* predict: the last clip first */
    uint32_t seed;    /* of clips that are made */
    double longest_s; /* of them */
    double budget_s;  /* time: of each workload */
    double worker_s;  /* audio that a worker takes; 0: enough */
    const char *jobs; /* predict: a file of jobs, "-" standard input; NULL: the arguments are one */
    char *
        *arguments; /* those that are no options, the model's folder first but with --jobs; NULL ends them */
};

/* Logits and embeddings of models on clips. */
int core_predict(const struct core_options *o);
/* Whether a clip's bits depend on its company. */
int core_invariance(const struct core_options *o);
/* How far the device is from the CPU in fp32. */
int core_agree(const struct core_options *o);
/* Whether batches allocate. */
int core_memory(const struct core_options *o);
/* The time that workloads take. */
int core_time(const struct core_options *o);

/* Prints why something failed as one JSON object with "status": "error"; returns 1. `w` may be NULL. */
int core_print_error(const char *model, const struct status *st, const struct model_worker *w);
/* "device", "precision" of a model, behind a "{". */
void core_put_device(struct text *out, const struct model *m);
/* Prints and frees. */
void core_print(struct text *out);

/* A worker for `clips` clips of `samples` samples together, or of what the options say. */
int core_worker_new(struct model_worker **w, const struct model *m, const struct core_options *o,
                    int64_t samples, int clips, struct status *st);

/* Results of many clips: logits and embedding of each behind each other. */
struct core_results {
    int clips, width, labels; /* width: floats a clip */
    float *values;            /* [clips, width] */
};
int core_results_init(struct core_results *r, const struct model *m, int clips, struct status *st);
void core_results_free(struct core_results *r);

/* Runs the clips order[0 .. count) (NULL: 0 .. count) as one batch; their results go to their places in r. */
int core_run_batch(struct model_worker *w, const struct clips *c, const int *order, int count,
                   struct core_results *r, struct status *st);

#endif
