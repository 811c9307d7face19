#include "tests/unit/kernels/bed.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/tolerance.h"

#define CPU(isa)                                                                                             \
    { "cpu " isa, "cpu", isa, {.precision = KERNELS_FP32}, TOLERANCE_FP32, TOLERANCE_FP32_ACTIVATION }
#define REDUCED(isa, number, tolerance)                                                                      \
    { "cpu " isa " " #number, "cpu", isa, {.precision = (number)}, tolerance, TOLERANCE_BF16_ROUNDING }
#define CUDA(name, number, conv, attention, tolerance, activation_tolerance)                                 \
    {                                                                                                        \
        "cuda " name, "cuda", "", {.precision = (number), .conv_way = (conv), .attention_way = (attention)}, \
            tolerance, activation_tolerance                                                                  \
    }

const struct subject subjects[SUBJECTS] = {
    CPU("avx512"),
    CPU("avx2"),
    CPU("portable"),
    REDUCED("avx512bf16", KERNELS_BF16, TOLERANCE_BF16),
    REDUCED("avx512bf16", KERNELS_INT8, TOLERANCE_INT8),
    REDUCED("avx512vnni", KERNELS_INT8, TOLERANCE_INT8),
    CUDA("fp32 gemm fused", KERNELS_FP32, KERNELS_CONV_GEMM, KERNELS_ATTENTION_FUSED, TOLERANCE_FP32,
         TOLERANCE_FP32_ACTIVATION),
    CUDA("fp32 cudnn cublas", KERNELS_FP32, KERNELS_CONV_CUDNN, KERNELS_ATTENTION_CUBLAS, TOLERANCE_FP32,
         TOLERANCE_FP32_ACTIVATION),
    CUDA("bf16 gemm fused", KERNELS_BF16, KERNELS_CONV_GEMM, KERNELS_ATTENTION_FUSED, TOLERANCE_BF16,
         TOLERANCE_BF16_ROUNDING),
    CUDA("bf16 cudnn cublas", KERNELS_BF16, KERNELS_CONV_CUDNN, KERNELS_ATTENTION_CUBLAS, TOLERANCE_BF16,
         TOLERANCE_BF16_ROUNDING),
};

/* ---- devices
 * ------------------------------------------------------------------------------------------------ */

extern const struct kernels timbre_kernels_cuda; /* over the shim */

static bool on_gpu(void) {
    const char *given = getenv("TIMBRE_TEST_GPU");
    return given && strcmp(given, "1") == 0;
}

/* The shim's memory is scarcer: attention by cuBLAS keeps all scores of the longest clip. */
static struct kernels_limits usual_limits(enum effort effort) {
    return (struct kernels_limits){.samples_max = 60000,
                                   .tokens_max = effort == FULL ? 4096 : 1200,
                                   .clips_max = CLIPS,
                                   .hidden = 256,
                                   .channels_max = 3072,
                                   .heads = effort == FULL ? 32 : 5,
                                   .first_kernel = 40};
}

static const struct kernels *find_backend(const struct subject *s, bool gpu, struct status *st) {
    return strcmp(s->backend, "cuda") == 0 && !gpu ? &timbre_kernels_cuda : kernels_find(s->backend, st);
}

bool bed_init(struct bed *bed, const struct subject *s, int threads, bool graphs,
              const struct kernels_limits *limits) {
    const bool cuda = strcmp(s->backend, "cuda") == 0, gpu = on_gpu();
    const struct kernels_options for_ref = {.precision = KERNELS_FP32};
    struct kernels_options o = s->options;
    struct status st = {0};
    if (gpu && !cuda)
        return false;
    *bed = (struct bed){
        .subject = s, .int8 = o.precision == KERNELS_INT8, .effort = cuda && !gpu ? SMALL : FULL};
    bed->k = find_backend(s, gpu, &st);
    if (!bed->k)
        fail_msg("%s: %s", s->name, st.message);
    o.threads = threads;
    o.eager = !graphs;
    setenv("TIMBRE_CPU", s->isa, 1);
    if (!cuda && bed->k->probe(&o, &st)) {
        assert_int_equal(st.code, STATUS_UNAVAILABLE);
        print_message("skipped: %s\n", st.message);
        return false;
    }
    bed->limits = limits ? *limits : usual_limits(bed->effort);
    if (bed->k->device_new(&bed->d, &o, &st) || bed->k->reserve(bed->d, &bed->limits, &st))
        fail_msg("%s: %s", s->name, st.message);
    unsetenv("TIMBRE_CPU");
    assert_int_equal(kernels_ref.device_new(&bed->ref, &for_ref, &st), 0);
    bed->bf16 = bed->k->activation_bytes(bed->d) == 2;
    assert_true(bed->bf16 || o.precision != KERNELS_BF16);
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
        if (BED_TSAN && strcmp(subjects[s].backend, "cuda") != 0)
            continue;
        if (!bed_init(&bed, &subjects[s], threads[s % 3], false, NULL))
            continue;
        set_seed(1);
        body(&bed);
        bed_free(&bed);
    }
}

void bed_finish(struct bed *bed) {
    struct status st = {0};
    if (bed->k->finish(bed->d, &st))
        fail_msg("%s: %s", bed->subject->name, st.message);
}

/* ---- numbers
 * ------------------------------------------------------------------------------------------------ */

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

/* To the nearest, ties to even. No number here is near the largest. */
static uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float of_bf16(uint16_t x) {
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

void round_activations(const struct bed *bed, float *x, int64_t n) {
    for (int64_t i = 0; bed->bf16 && i < n; i++)
        x[i] = of_bf16(to_bf16(x[i]));
}

/* ---- memory of the device
 * ----------------------------------------------------------------------------------- */

/* Where the device's memory is the host's, malloc gives exactly as much as is asked for. */
static void *memory_new(struct bed *bed, size_t bytes) {
    struct status st = {0};
    void *p = NULL;
    bytes = bytes ? bytes : 1;
    if (bed->k->on_host)
        p = malloc(bytes);
    else if (bed->k->memory_new(bed->d, &p, bytes, "a test", &st))
        fail_msg("%s: %s", bed->subject->name, st.message);
    assert_non_null(p);
    return p;
}

void drop(struct bed *bed, void *device) {
    if (bed->k->on_host)
        free(device);
    else
        bed->k->memory_del(bed->d, device);
}

static void *put(struct bed *bed, const void *x, size_t bytes) {
    void *p = memory_new(bed, bytes);
    bed->k->upload(bed->d, p, x, bytes);
    bed_finish(bed);
    return p;
}

void *put_floats(struct bed *bed, const float *x, int64_t n) {
    return put(bed, x, (size_t)n * sizeof *x);
}

void *put_activations(struct bed *bed, float *x, int64_t n) {
    if (!bed->bf16)
        return put_floats(bed, x, n);
    uint16_t *narrow = malloc(n ? (size_t)n * sizeof *narrow : 1);
    assert_non_null(narrow);
    round_activations(bed, x, n);
    for (int64_t i = 0; i < n; i++)
        narrow[i] = to_bf16(x[i]);
    void *p = put(bed, narrow, (size_t)n * sizeof *narrow);
    free(narrow);
    return p;
}

void *make_activations(struct bed *bed, int64_t n) {
    float *x = new_floats(n);
    void *p = put_activations(bed, x, n);
    free(x);
    return p;
}

void *make_floats(struct bed *bed, int64_t n) {
    float *x = new_floats(n);
    void *p = put_floats(bed, x, n);
    free(x);
    return p;
}

void *activation_at(const struct bed *bed, void *device, int64_t i) {
    return (char *)device + (size_t)i * (bed->bf16 ? 2 : 4);
}

float *take_floats(struct bed *bed, const void *device, int64_t n) {
    float *y = new_floats(n);
    bed->k->download(bed->d, y, device, (size_t)n * sizeof *y);
    bed_finish(bed);
    return y;
}

float *take_activations(struct bed *bed, const void *device, int64_t n) {
    if (!bed->bf16)
        return take_floats(bed, device, n);
    uint16_t *narrow = malloc(n ? (size_t)n * sizeof *narrow : 1);
    float *y = new_floats(n);
    assert_non_null(narrow);
    bed->k->download(bed->d, narrow, device, (size_t)n * sizeof *narrow);
    bed_finish(bed);
    for (int64_t i = 0; i < n; i++)
        y[i] = of_bf16(narrow[i]);
    free(narrow);
    return y;
}

/* ---- comparisons
 * -------------------------------------------------------------------------------------------- */

static void compare(const struct bed *bed, const float *y, const float *expected, int64_t n, double tolerance,
                    const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)y[i] - expected[i]) <= tolerance * (1 + fabs((double)expected[i]))))
            fail_msg("%s, %s: element %lld of %lld is %.9g, expected %.9g", bed->subject->name, what,
                     (long long)i, (long long)n, y[i], expected[i]);
}

void assert_near(const struct bed *bed, const float *y, const float *expected, int64_t n, double scale,
                 const char *what) {
    double errors = 0, squares = 0;
    compare(bed, y, expected, n, scale * bed->subject->tolerance, what);
    for (int64_t i = 0; i < n; i++) {
        errors += ((double)y[i] - expected[i]) * ((double)y[i] - expected[i]);
        squares += (double)expected[i] * expected[i];
    }
    const double limit = scale * (bed->int8 ? TOLERANCE_INT8_RMS : TOLERANCE_BF16_RMS);
    if ((bed->bf16 || bed->int8) && n >= 100 && errors > limit * limit * squares)
        fail_msg("%s, %s: the root of the mean square error is %.2g of that of the numbers",
                 bed->subject->name, what, sqrt(errors / squares));
}

void assert_near_floats(const struct bed *bed, const float *y, const float *expected, int64_t n, double scale,
                        const char *what) {
    compare(bed, y, expected, n, scale * TOLERANCE_FP32, what);
}

void assert_same_bits(const struct bed *bed, const float *y, const float *expected, int64_t n,
                      const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&y[i], &expected[i], sizeof *y) != 0)
            fail_msg("%s, %s: element %lld of %lld is %.9g, expected the bits of %.9g", bed->subject->name,
                     what, (long long)i, (long long)n, y[i], expected[i]);
}

void check_activations(struct bed *bed, const void *y, const float *expected, int64_t n, double scale,
                       const char *what) {
    float *taken = take_activations(bed, y, n);
    assert_near(bed, taken, expected, n, scale, what);
    free(taken);
}

void check_floats(struct bed *bed, const void *y, const float *expected, int64_t n, double scale,
                  const char *what) {
    float *taken = take_floats(bed, y, n);
    assert_near_floats(bed, taken, expected, n, scale, what);
    free(taken);
}

void check_same_activations(struct bed *bed, const void *y, const void *expected, int64_t n,
                            const char *what) {
    float *a = take_activations(bed, y, n), *b = take_activations(bed, expected, n);
    assert_same_bits(bed, a, b, n, what);
    free(a), free(b);
}

/* ---- weights and batches
 * ------------------------------------------------------------------------------------ */

static const float *add_numbers(struct weights *w, struct bed *bed, int64_t n, double scale, double mean) {
    float *p = new_random(n, scale);
    for (int64_t i = 0; i < n; i++)
        p[i] += (float)mean;
    round_activations(bed, p, n);
    return w->numbers[w->count++] = p;
}

void weights_init(struct weights *w, struct bed *bed, struct kernels_weight_spec *s) {
    memset(w, 0, sizeof *w);
    if (s->parts == 0)
        s->parts = 1;
    const bool conv = s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV;
    const int64_t row = s->kind == KERNELS_LAYER_NORM ? 1
                        : conv                        ? (int64_t)s->in / s->groups * s->kernel
                                                      : s->in;
    for (int i = 0; i < s->parts; i++) {
        double scale = s->kind == KERNELS_LAYER_NORM ? 0.2 : 1 / sqrt((double)row);
        s->weight[i] = add_numbers(w, bed, s->out / s->parts * row, scale, s->kind == KERNELS_LAYER_NORM);
        s->bias[i] = s->has_bias ? add_numbers(w, bed, s->out / s->parts, 0.5, 0) : NULL;
    }
    if (conv && s->norm != KERNELS_NORM_NONE) {
        s->norm_weight = add_numbers(w, bed, s->out, 0.2, 1);
        s->norm_bias = add_numbers(w, bed, s->out, 0.2, 0);
    }
    if (s->has_input_affine) {
        s->input_scale = add_numbers(w, bed, s->in, 0.2, 1);
        s->input_shift = add_numbers(w, bed, s->in, 0.2, 0);
    }
    weights_pack(w, bed, s);
}

void weights_pack(struct weights *w, struct bed *bed, const struct kernels_weight_spec *s) {
    struct status st = {0};
    w->memory = NULL;
    if (bed->k->memory_new(bed->d, &w->memory, bed->k->weight_bytes(bed->d, s), "a weight", &st))
        fail_msg("%s: %s", bed->subject->name, st.message);
    assert_int_equal(kernels_ref.memory_new(bed->ref, &w->ref_memory, kernels_ref.weight_bytes(bed->ref, s),
                                            "a weight", &st),
                     0);
    bed->k->pack(bed->d, &w->mine, s, w->memory);
    bed_finish(bed);
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

struct kernels_extent bed_begin(struct bed *bed, const struct batch *b) {
    const int64_t rows = b->tape_rows[b->levels];
    assert_true(b->clips <= bed->limits.clips_max && b->tape_rows[0] <= bed->limits.samples_max &&
                rows <= bed->limits.tokens_max);
    const struct kernels_extent e = bed->k->begin(bed->d, b);
    assert_true(e.rows >= rows && e.rows <= bed->limits.tokens_max);
    assert_true(e.tokens >= batch_tokens(b) && e.tokens <= bed->limits.tokens_max);
    return e;
}

struct kernels_extent extent_of(struct bed *bed, const struct batch *b) {
    const struct kernels_extent e = bed_begin(bed, b);
    bed->k->end(bed->d);
    bed_finish(bed);
    return e;
}

int64_t count_tape_samples(const struct batch_shape *s, const struct batch *b, struct kernels_extent e) {
    int64_t rows = e.rows;
    for (int l = s->levels - 1; l >= 0; l--)
        rows = (rows - 1) * s->stride[l] + s->kernel[l];
    return rows > b->tape_rows[0] ? rows : b->tape_rows[0];
}
