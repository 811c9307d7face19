/* bed: what the tests of the operations stand on: every backend under test with ref beside it, weights packed
 * for both, random numbers that are the same in every run, and comparisons. */
#ifndef TIMBRE_TESTS_UNIT_KERNELS_BED_H
#define TIMBRE_TESTS_UNIT_KERNELS_BED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { CLIPS = 6, TOKENS_MAX = 4096, HIDDEN_MAX = 256 };

/* A backend under test. `isa` goes to TIMBRE_CPU. */
struct subject {
    const struct kernels *kernels;
    const char *isa;
    double tolerance, activation_tolerance;
};
enum { SUBJECTS = 3 };
extern const struct subject subjects[SUBJECTS];

/* One backend's device, and ref's beside it. */
struct bed {
    const struct subject *subject;
    const struct kernels *k;
    struct kernels_device *d, *ref;
};

/* False when this machine cannot run the subject. */
bool bed_init(struct bed *bed, const struct subject *s, int threads);
void bed_free(struct bed *bed);

/* Runs `body` over every subject, each with another number of threads: ref takes most of the time, and that
 * the number of threads changes nothing is tested in test_invariance.c. */
void for_each_bed(void (*body)(struct bed *bed));

/* Random numbers, from here on. */
void set_seed(uint32_t seed);
int random_int(int from, int to);

/* n floats, no more, so that a sanitizer sees a read or write beyond them: random ones of mean 0 and variance
 * scale^2; ones that nobody expects; those of another array. */
float *new_random(int64_t n, double scale);
float *new_floats(int64_t n);
float *new_copy(const float *from, int64_t n);

void assert_near(const float *y, const float *expected, int64_t n, double tolerance, const char *what);
void assert_same_bits(const float *y, const float *expected, int64_t n, const char *what);

/* A weight packed for the device under test and for ref. */
struct weights {
    struct kernels_weight mine, ref;
    void *memory, *ref_memory;
    float *numbers[8];
    int count;
};

/* Fills in what `s` points to with random numbers, and packs. */
void weights_init(struct weights *w, struct bed *bed, struct kernels_weight_spec *s);
void weights_free(struct weights *w, struct bed *bed);

/* Plans a batch; its memory is `a`. */
void batch_new(struct batch *b, struct arena *a, const struct batch_shape *s, int clips,
               const int64_t *samples);

#endif
