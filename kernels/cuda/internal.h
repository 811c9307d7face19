/* internal: what a device of the cuda backend is made of, for its host code alone.
 *
 * A GPU computes one batch at a time: begin takes the GPU's turn, end gives it away, and a batch's kernels
 * wait for those of the batch before it, whoever's it is. Only copies overlap. So a second worker has its
 * audio on the device by the time the first is through, and both compute as fast as one alone. */
#ifndef TIMBRE_KERNELS_CUDA_INTERNAL_H
#define TIMBRE_KERNELS_CUDA_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/dnn.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/kernels.h"

enum {
    CUDA_GPUS_MAX = 64,
    CUDA_SEGMENT_ROWS = 4096,    /* of the last level: bounds the memory of the convolution stack */
    CUDA_GRAPH_ROWS_MAX = 4096,  /* larger batches keep the GPU busy without graphs, and get no bucket */
    CUDA_BUCKETS_MAX = 96,       /* see bucket sizes in graphs.c */
    CUDA_SCORES_KEYS_MAX = 2048, /* attention by cuBLAS; longer clips go through the fused kernel */
    CUDA_DNN_STRIDE_MAX = 4,     /* convolutions beyond these go through GEMM */
    CUDA_DNN_KERNEL_MAX = 16,
    CUDA_SM_MIN = 80, /* bf16 tensor cores and cp.async */
};

/* What the workers on one GPU share. */
struct cuda_gpu {
    pthread_mutex_t turn;        /* held from begin to end */
    struct kernels_device *last; /* whose batch was put in last; guarded by turn */
    pthread_mutex_t memory;      /* guards the list of allocations */
    struct cuda_allocation *allocations;
    size_t bytes;    /* of those */
    atomic_int lost; /* the error after which nothing works any more; 0: none */
};

enum cuda_mode {
    CUDA_EAGER,  /* operations go to the stream as they are called */
    CUDA_RECORD, /* they go into a graph */
    CUDA_REPLAY, /* they are in a graph already: they are only compared with it */
};

struct cuda_bucket {
    int64_t rows;
    struct gpu_graph *graph; /* NULL: not recorded yet */
    uint64_t signature;      /* of the operations in it */
};

struct kernels_device {
    struct kernels_options options;
    struct gpu_info info;
    char name[16];
    enum cuda_type type;
    struct cuda_gpu *gpu;
    struct gpu_stream *stream;
    struct gpu_event *done; /* of its last batch */
    struct blas *blas;
    struct dnn *dnn; /* with KERNELS_CONV_CUDNN */
    void *workspace; /* blas */

    struct kernels_limits limits;
    struct cuda_launch launch; /* of the current batch */
    struct cuda_counts most;   /* that the limits allow */
    void *tables_host, *tables_device;
    size_t tables_bytes;

    void *scratch;
    double *norm_partial, *norm_stats, *moments_partial, *moments;
    void *scores; /* with KERNELS_ATTENTION_CUBLAS */

    enum cuda_mode mode;
    bool in_batch, has_plans;
    uint64_t signature;
    struct cuda_bucket buckets[CUDA_BUCKETS_MAX];
    int buckets_count;
    struct cuda_bucket *bucket; /* of the current batch, unless eager */
    bool launch_waits;          /* a graph was recorded and not yet launched */
    bool was_read;              /* somebody asked for results of the batch, so it was not to warm up */

    int error;             /* the first since the last finish */
    struct status failure; /* or one with words of its own; code 0: none */
};

/* ---- shared.c ---- */

struct cuda_gpu *cuda_gpu_find(int index); /* 0..CUDA_GPUS_MAX - 1; lives for ever */
/* Faults for tests: TIMBRE_CUDA_FAULT is "batch:N", the N-th batch of the process ends with an illegal
 * address, or "memory:N", the N-th allocation fails. Whether `kind`, of which *count were before, is due now.
 */
bool cuda_is_fault_due(const char *kind, atomic_int *count);

/* Keeps the first error; 0 is none. */
void cuda_note(struct kernels_device *d, int error);
void cuda_fail(struct kernels_device *d, enum status_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Device memory, all zero. */
int cuda_memory_new(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st);
void cuda_memory_del(struct kernels_device *d, void *p);

/* ---- plan.c: which rows belong to which clip, for the device ---- */

/* Takes the tables' memory and scratch. */
int cuda_plan_reserve(struct kernels_device *d, struct status *st);
/* Lays out the tables of a batch and sends them. */
void cuda_plan_batch(struct kernels_device *d, const struct batch *b);
/* For operations over clips outside of a batch: so many, of which nothing else is known. */
void cuda_plan_clips(struct kernels_device *d, int64_t clips);
/* Counts of a bucket of so many rows: as much of everything as could be in it. */
struct cuda_counts cuda_plan_count_bucket(const struct kernels_device *d, const struct batch *b,
                                          int64_t rows);

/* ---- graphs.c ---- */

void cuda_graphs_init(struct kernels_device *d);
void cuda_graphs_free(struct kernels_device *d);
/* Chooses the mode of a batch, and with a bucket the grid. */
void cuda_graphs_begin(struct kernels_device *d, const struct batch *b);
void cuda_graphs_end(struct kernels_device *d);
/* Runs what was recorded; nobody having asked for its results, it need not. */
void cuda_graphs_launch(struct kernels_device *d);
/* All that tells one call of an operation from another and is fixed in a graph. What is not there is zero. */
struct cuda_call {
    int operation;
    const void *y, *x, *w, *more; /* more: a residual, statistics */
    int64_t first, count;
    int channels, act;
    float number;
};
/* Whether an operation is to be put into the stream: false when it is in a graph already or the device has
 * failed. */
bool cuda_graphs_enter(struct kernels_device *d, const struct cuda_call *call);

/* ---- weights.c ---- */

/* The parts of a packed weight, in device memory. Matrices are of the activations' type unless it says fp32;
 * everything else is fp32. */
struct cuda_weight {
    void *matrix; /* LINEAR [out, in], a head's fp32; CONV [out, kernel, in], with in = 1 fp32 [kernel, out];
                     POS_CONV [groups, kernel, in / groups, out / groups]; LAYER_NORM fp32 [out] */
    float *bias;  /* [out], zeros where there is none */
    void *bias_typed;                 /* the same, of the activations' type, for cuBLAS and cuDNN */
    float *norm_weight, *norm_bias;   /* [out]; NULL without a norm */
    float *input_scale, *input_shift; /* [in]; NULL without an affine */
};
struct cuda_weight cuda_weight_of(const struct kernels_device *d, const struct kernels_weight *w);
size_t cuda_weight_bytes(const struct kernels_device *d, const struct kernels_weight_spec *s);
void cuda_pack(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
               void *memory);

/* ---- ops.c: the operations of kernels.h ---- */

void cuda_op_input_norm(struct kernels_device *d, float *y, const float *x, const struct batch *b);
void cuda_op_group_stats(struct kernels_device *d, float *stats, const float *x,
                         const struct kernels_weight *w, const struct batch *b);
void cuda_op_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                  enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                  const struct batch *b);
void cuda_op_compact(struct kernels_device *d, void *y, const void *x, int channels, struct kernels_rows rows,
                     const struct batch *b);
void cuda_op_layer_norm(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                        int64_t rows);
void cuda_op_linear(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                    enum kernels_activation act, const void *residual, int64_t rows);
void cuda_op_pos_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                      enum kernels_activation act, const struct batch *b);
void cuda_op_attention(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                       float scale, const struct batch *b);
void cuda_op_accumulate(struct kernels_device *d, void *y, const void *x, float weight, bool first,
                        int64_t rows, int channels);
void cuda_op_pool(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
                  const struct batch *b);
void cuda_op_head_linear(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                         enum kernels_activation act, int64_t rows);

#endif
