/* bed: what the tests of the operations stand on: every backend under test with ref beside it, weights packed
 * for both, numbers in the memory of both, and comparisons.
 *
 * The cuda backend is the one over the shim, which is linked in; with TIMBRE_TEST_GPU=1 in the environment it
 * is the module that kernels_find("cuda") loads, on a real GPU, and the only backend under test. */
#ifndef TIMBRE_TESTS_UNIT_KERNELS_BED_H
#define TIMBRE_TESTS_UNIT_KERNELS_BED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { CLIPS = 6 };

/* How much work a case is: the shim runs every thread of a GPU one after another. */
enum effort { SMALL, FULL };

/* Whether this is a build with the thread sanitizer. */
#if defined(__SANITIZE_THREAD__)
#define BED_TSAN 1
#elif defined(__has_feature)
#define BED_TSAN __has_feature(thread_sanitizer)
#else
#define BED_TSAN 0
#endif

/* A backend under test. `isa` goes to TIMBRE_CPU. */
struct subject {
    const char *name, *backend, *isa;
    struct kernels_options options;
    double tolerance, activation_tolerance;
};
enum { SUBJECTS = 10 };
extern const struct subject subjects[SUBJECTS];

/* One backend's device, and ref's beside it. */
struct bed {
    const struct subject *subject;
    const struct kernels *k;
    struct kernels_device *d, *ref;
    struct kernels_limits limits;
    enum effort effort; /* cases of more are left out */
    bool bf16, int8;    /* what activations are; whether matrix products are in int8 */
};

/* `threads` is for the cpu, `graphs` for cuda; limits NULL: enough for the tests of single operations. False
 * when the subject is not tested here. */
bool bed_init(struct bed *bed, const struct subject *s, int threads, bool graphs,
              const struct kernels_limits *limits);
void bed_free(struct bed *bed);

/* Runs `body` over every subject, without CUDA graphs, so that operations may be called in any order; the
 * cpu's each with another number of threads, and not with the thread sanitizer: test_invariance.c does more
 * with threads. */
void for_each_bed(void (*body)(struct bed *bed));

/* Random numbers, from here on. */
void set_seed(uint32_t seed);
int random_int(int from, int to);

/* n floats of the host, no more, so that a sanitizer sees a read or write beyond them: random ones of mean 0
 * and variance scale^2; ones that nobody expects; those of another array. */
float *new_random(int64_t n, double scale);
float *new_floats(int64_t n);
float *new_copy(const float *from, int64_t n);

/* The numbers as activations hold them: rounded when the device's are bf16. ref must get these. */
void round_activations(const struct bed *bed, float *x, int64_t n);

/* Memory of the device under test for n elements and no more, to be given back by drop. put_* fills it with
 * the numbers at x, make_* with one that nobody expects; put_activations rounds x itself too. */
void *put_activations(struct bed *bed, float *x, int64_t n);
void *put_floats(struct bed *bed, const float *x, int64_t n);
void *make_activations(struct bed *bed, int64_t n);
void *make_floats(struct bed *bed, int64_t n);
void drop(struct bed *bed, void *device);

/* Element i of activations on the device. */
void *activation_at(const struct bed *bed, void *device, int64_t i);

/* Waits, and copies to new memory of the host. */
float *take_activations(struct bed *bed, const void *device, int64_t n);
float *take_floats(struct bed *bed, const void *device, int64_t n);
/* Waits. An error fails the test. */
void bed_finish(struct bed *bed);

/* Compare. `expected` is ref's. Those with `floats` are for results that are fp32 at every precision.
 * `scale`: how much more than usual rounding may do. check_* wait and look at the device's memory. */
void assert_near(const struct bed *bed, const float *y, const float *expected, int64_t n, double scale,
                 const char *what);
void assert_near_floats(const struct bed *bed, const float *y, const float *expected, int64_t n, double scale,
                        const char *what);
void assert_same_bits(const struct bed *bed, const float *y, const float *expected, int64_t n,
                      const char *what);
void check_activations(struct bed *bed, const void *y, const float *expected, int64_t n, double scale,
                       const char *what);
void check_floats(struct bed *bed, const void *y, const float *expected, int64_t n, double scale,
                  const char *what);
void check_same_activations(struct bed *bed, const void *y, const void *expected, int64_t n,
                            const char *what);

/* A weight packed for the device under test and for ref, of numbers that activations can hold. */
struct weights {
    struct kernels_weight mine, ref;
    void *memory, *ref_memory;
    float *numbers[8];
    int count;
};

/* Fills in what `s` points to with random numbers, and packs. */
void weights_init(struct weights *w, struct bed *bed, struct kernels_weight_spec *s);
/* Packs the numbers that `s` points to. */
void weights_pack(struct weights *w, struct bed *bed, const struct kernels_weight_spec *s);
void weights_free(struct weights *w, struct bed *bed);

/* Plans a batch; its memory is `a`. */
void batch_new(struct batch *b, struct arena *a, const struct batch_shape *s, int clips,
               const int64_t *samples);

/* begin, of a batch that is within the limits. */
struct kernels_extent bed_begin(struct bed *bed, const struct batch *b);
/* What begin says of a batch. */
struct kernels_extent extent_of(struct bed *bed, const struct batch *b);

/* Samples of the tape that a batch of this extent has. */
int64_t count_tape_samples(const struct batch_shape *s, const struct batch *b, struct kernels_extent e);

#endif
