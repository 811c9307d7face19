/* lab: what the lines of the GPU's kernel laboratory stand on. */
#ifndef TIMBRE_BENCH_GPU_LAB_H
#define TIMBRE_BENCH_GPU_LAB_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { LAB_SETS_MAX = 64, LAB_BLOCK = 1 << 20 };

struct lab {
    const struct kernels *k;
    struct kernels_options options;
    struct kernels_device *device, *ref; /* device: without graphs; it owns all memory */
    struct kernels_limits limits;
    bool bf16, tiny;
    size_t element_bytes;
    const char *only;
    double budget_s; /* of timing, for each way of a line */
    double
        cold_bytes; /* what calls in turn touch together at least, so that none finds its numbers in the L2 */
    float *block;   /* [LAB_BLOCK] random numbers, as activations can hold them; arrays are this, repeated */
    int lines, failed;
};

/* Numbers on the device, `sets` times behind each other. */
struct lab_array {
    char *device;
    int64_t count;
    size_t bytes; /* of one set */
};

/* One operation, to be called again and again, with another set of arrays and weights each time. */
struct lab_call {
    const char *name;
    void (*run)(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set);
    double flop, bytes; /* of one call: what it must compute, and must read and write at least */
    int sets;
    struct lab_array x, y, residual, stats;
    struct kernels_weight w[LAB_SETS_MAX], ref_w;
    void *weights, *ref_weights;
    enum kernels_activation act;
    bool has_residual, has_stats;
    const struct batch *batch;
    int64_t rows;
    int level, channels, heads;
    double error; /* the largest, from ref, as a part of (1 + |ref|); negative: not verified yet */
};

bool lab_wants(const struct lab *lab, const char *name);

/* How many sets are needed so that together they are over cold_bytes. */
int lab_count_sets(const struct lab *lab, double bytes);
/* Numbers to be read, of the activations' type or fp32; or room for results, full of NaNs so that what is not
 * written is found. */
enum lab_content { LAB_NUMBERS, LAB_NUMBERS_FP32, LAB_RESULTS, LAB_RESULTS_FP32 };
void lab_array_init(struct lab *lab, struct lab_array *a, int64_t count, enum lab_content content, int sets);
void lab_array_free(struct lab *lab, struct lab_array *a);
void *lab_at(const struct lab_array *a, int set);
/* Random weights for every set, and ref's of the first. */
void lab_weights_init(struct lab *lab, struct lab_call *c, struct kernels_weight_spec *s);

/* numbers first .. first + count of an array as it was made, as fp32. */
float *lab_copy(const struct lab *lab, int64_t first, int64_t count);
/* Runs the call once on set 0, in a batch, and gives back y[first ..] as fp32; free it. */
float *lab_run_once(struct lab *lab, struct lab_call *c, bool fp32, int64_t first, int64_t count);
/* Notes how far y is from ref's. */
void lab_compare(struct lab_call *c, const float *y, const float *expected, int64_t n);

/* Prints the line if the call is right, times it, and frees what it holds. */
void lab_finish(struct lab *lab, struct lab_call *c);

/* All lines. */
void lab_run_lines(struct lab *lab);

#endif
