#include "tests/unit/kernels/bed.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/tolerance.h"

const struct subject subjects[SUBJECTS] = {
    {&kernels_cpu, "avx512", TOLERANCE_FP32, TOLERANCE_FP32_ACTIVATION},
    {&kernels_cpu, "avx2", TOLERANCE_FP32, TOLERANCE_FP32_ACTIVATION},
    {&kernels_cpu, "portable", TOLERANCE_FP32, TOLERANCE_FP32_ACTIVATION},
};

bool bed_init(struct bed *bed, const struct subject *s, int threads) {
    const struct kernels_options o = {.precision = KERNELS_FP32, .threads = threads};
    struct status st = {0};
    *bed = (struct bed){.subject = s, .k = s->kernels};
    setenv("TIMBRE_CPU", s->isa, 1);
    if (s->kernels->probe(&o, &st)) {
        assert_int_equal(st.code, STATUS_UNAVAILABLE);
        print_message("skipped: %s\n", st.message);
        return false;
    }
    assert_int_equal(s->kernels->device_new(&bed->d, &o, &st), 0);
    assert_int_equal(kernels_ref.device_new(&bed->ref, &o, &st), 0);
    assert_int_equal(s->kernels->reserve(bed->d, TOKENS_MAX, CLIPS, HIDDEN_MAX, HIDDEN_MAX, &st), 0);
    unsetenv("TIMBRE_CPU");
    return true;
}

void bed_free(struct bed *bed) {
    bed->k->device_del(bed->d);
    kernels_ref.device_del(bed->ref);
}

void for_each_bed(void (*body)(struct bed *bed)) {
    static const int threads[] = {2, 3, 1};
    for (int s = 0; s < SUBJECTS; s++) {
        struct bed bed;
        if (!bed_init(&bed, &subjects[s], threads[s % 3]))
            continue;
        body(&bed);
        bed_free(&bed);
    }
}

static uint32_t state = 1;

void set_seed(uint32_t seed) {
    state = seed;
}

static uint32_t random_bits(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

int random_int(int from, int to) {
    return from + (int)(random_bits() % (uint32_t)(to - from + 1));
}

/* Of mean 0 and variance scale^2. */
static float random_float(double scale) {
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)random_bits() / (1 << 24) - 0.5;
    return (float)(sum * 1.7320508 * scale);
}

float *new_random(int64_t n, double scale) {
    float *p = new_floats(n);
    for (int64_t i = 0; i < n; i++)
        p[i] = random_float(scale);
    return p;
}

float *new_floats(int64_t n) {
    float *p = malloc(n ? (size_t)n * sizeof *p : 1);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = 12345.0f;
    return p;
}

float *new_copy(const float *from, int64_t n) {
    float *p = new_floats(n);
    memcpy(p, from, (size_t)n * sizeof *p);
    return p;
}

void assert_near(const float *y, const float *expected, int64_t n, double tolerance, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)y[i] - expected[i]) <= tolerance * (1 + fabs((double)expected[i]))))
            fail_msg("%s: element %lld of %lld is %.9g, expected %.9g", what, (long long)i, (long long)n,
                     y[i], expected[i]);
}

void assert_same_bits(const float *y, const float *expected, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&y[i], &expected[i], sizeof *y) != 0)
            fail_msg("%s: element %lld of %lld is %.9g, expected the bits of %.9g", what, (long long)i,
                     (long long)n, y[i], expected[i]);
}

static const float *add_numbers(struct weights *w, int64_t n, double scale, double mean) {
    float *p = new_random(n, scale);
    for (int64_t i = 0; i < n; i++)
        p[i] += (float)mean;
    return w->numbers[w->count++] = p;
}

void weights_init(struct weights *w, struct bed *bed, struct kernels_weight_spec *s) {
    struct status st = {0};
    memset(w, 0, sizeof *w);
    if (s->parts == 0)
        s->parts = 1;
    const bool conv = s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV;
    const int64_t row = s->kind == KERNELS_LAYER_NORM ? 1
                        : conv                        ? (int64_t)s->in / s->groups * s->kernel
                                                      : s->in;
    for (int i = 0; i < s->parts; i++) {
        double scale = s->kind == KERNELS_LAYER_NORM ? 0.2 : 1 / sqrt((double)row);
        s->weight[i] = add_numbers(w, s->out / s->parts * row, scale, s->kind == KERNELS_LAYER_NORM);
        s->bias[i] = s->has_bias ? add_numbers(w, s->out / s->parts, 0.5, 0) : NULL;
    }
    if (conv && s->norm != KERNELS_NORM_NONE) {
        s->norm_weight = add_numbers(w, s->out, 0.2, 1);
        s->norm_bias = add_numbers(w, s->out, 0.2, 0);
    }
    if (s->has_input_affine) {
        s->input_scale = add_numbers(w, s->in, 0.2, 1);
        s->input_shift = add_numbers(w, s->in, 0.2, 0);
    }
    assert_int_equal(bed->k->memory_new(bed->d, &w->memory, bed->k->weight_bytes(bed->d, s), "a weight", &st),
                     0);
    assert_int_equal(kernels_ref.memory_new(bed->ref, &w->ref_memory, kernels_ref.weight_bytes(bed->ref, s),
                                            "a weight", &st),
                     0);
    bed->k->pack(bed->d, &w->mine, s, w->memory);
    kernels_ref.pack(bed->ref, &w->ref, s, w->ref_memory);
}

void weights_free(struct weights *w, struct bed *bed) {
    bed->k->memory_del(bed->d, w->memory);
    kernels_ref.memory_del(bed->ref, w->ref_memory);
    for (int i = 0; i < w->count; i++)
        free(w->numbers[i]);
}

void batch_new(struct batch *b, struct arena *a, const struct batch_shape *s, int clips,
               const int64_t *samples) {
    struct status st = {0};
    struct arena counting;
    arena_init_counting(&counting);
    batch_init(b, s, clips, &counting);
    assert_int_equal(arena_init(a, counting.used, "a batch", &st), 0);
    batch_init(b, s, clips, a);
    batch_plan(b, s, clips, samples);
}
