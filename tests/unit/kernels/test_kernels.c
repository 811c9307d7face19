/* Every backend against ref: devices, and the operations on rows that know nothing of clips. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/blas.h"
#include "tests/unit/kernels/bed.h"

/* A library of matrix products that has no algorithm for anything, when told so. */
static bool no_plans;
int __real_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st);
int __wrap_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st);
int __wrap_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st) {
    if (!no_plans)
        return __real_blas_plan(b, s, plan, st);
    *plan = -1;
    return 0;
}

static void check_linear(struct bed *bed, int in, int out, int parts, int64_t rows,
                         enum kernels_activation act, bool bias, bool residual) {
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = in, .out = out, .parts = parts, .has_bias = bias};
    struct weights w;
    weights_init(&w, bed, &s);
    float *x = new_random(rows * in, 1), *r = new_random(rows * out, 1), *expected = new_floats(rows * out);
    void *dx = put_activations(bed, x, rows * in), *dr = put_activations(bed, r, rows * out);
    void *y = make_activations(bed, rows * out), *in_place = put_activations(bed, r, rows * out);
    kernels_ref.linear(bed->ref, expected, x, &w.ref, act, residual ? r : NULL, rows);
    bed->k->linear(bed->d, y, dx, &w.mine, act, residual ? dr : NULL, rows);
    check_activations(bed, y, expected, rows * out, 1, "linear");
    bed->k->linear(bed->d, in_place, dx, &w.mine, act, residual ? in_place : NULL, rows);
    check_same_activations(bed, in_place, y, rows * out, "linear onto its residual");
    free(x), free(r), free(expected);
    drop(bed, dx), drop(bed, dr), drop(bed, y), drop(bed, in_place);
    weights_free(&w, bed);
}

static void linear_body(struct bed *bed) {
    static const struct {
        enum effort effort;
        int in, out, parts, rows;
        enum kernels_activation act;
        bool bias, residual;
    } cases[] = {
        {SMALL, 1, 1, 1, 1, KERNELS_IDENTITY, false, false},
        {SMALL, 16, 24, 3, 5, KERNELS_GELU, true, true}, /* sizes that a library of matrix products takes */
        {SMALL, 7, 9, 1, 3, KERNELS_SILU, true, true},   /* and that it does not */
        {SMALL, 96, 72, 3, 0, KERNELS_IDENTITY, true, false},
        {SMALL, 256, 768, 3, 70, KERNELS_IDENTITY, true, false},
        {SMALL, 64, 256, 1, 33, KERNELS_GELU, true, false},
        {SMALL, 64, 40, 1, 17, KERNELS_GELU_TANH, true, false},
        {SMALL, 256, 64, 1, 40, KERNELS_IDENTITY, true, true},
        {SMALL, 100, 36, 1, 21, KERNELS_RELU, false, true}, /* multiples of 4 */
        {SMALL, 64, 30, 2, 20, KERNELS_GELU, true, false},
        {SMALL, 31, 64, 1, 20, KERNELS_GELU, true, false},
        {FULL, 768, 768, 1, 49, KERNELS_IDENTITY, true, true},
        {FULL, 256, 1536, 3, 200, KERNELS_GELU, true, false},
        {FULL, 3072, 33, 1, 13, KERNELS_IDENTITY, true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (cases[i].effort <= bed->effort)
            check_linear(bed, cases[i].in, cases[i].out, cases[i].parts, cases[i].rows, cases[i].act,
                         cases[i].bias, cases[i].residual);
    for (int i = 0; i < 12; i++) {
        const int parts = random_int(1, 3), most = bed->effort == FULL ? 600 : 60;
        check_linear(bed, random_int(1, most), parts * random_int(1, most / 6), parts, random_int(1, 70),
                     (enum kernels_activation)(i % 6), i % 3 != 0, i % 2 != 0);
    }
}

static void test_linear(void **state) {
    (void)state;
    for_each_bed(linear_body);
}

static void plain_body(struct bed *bed) {
    if (!bed->k->on_host)
        linear_body(bed);
}

static void test_linear_without_library(void **state) {
    (void)state;
    no_plans = true;
    for_each_bed(plain_body);
    no_plans = false;
}

/* fp32 at every precision: its numbers are not rounded, and neither is what ref sees. */
static void check_head_linear(struct bed *bed, int in, int out, int rows, enum kernels_activation act,
                              bool bias) {
    float *numbers = new_random((int64_t)out * in, 1 / sqrt(in)), *biases = new_random(out, 0.5);
    const struct kernels_weight_spec s = {.kind = KERNELS_LINEAR,
                                          .in = in,
                                          .out = out,
                                          .parts = 1,
                                          .has_bias = bias,
                                          .is_head = true,
                                          .weight = {numbers},
                                          .bias = {bias ? biases : NULL}};
    struct weights w = {0};
    weights_pack(&w, bed, &s);
    float *x = new_random((int64_t)rows * in, 1), *expected = new_floats((int64_t)rows * out);
    void *dx = put_floats(bed, x, (int64_t)rows * in), *y = make_floats(bed, (int64_t)rows * out);
    kernels_ref.head_linear(bed->ref, expected, x, &w.ref, act, rows);
    bed->k->head_linear(bed->d, y, dx, &w.mine, act, rows);
    check_floats(bed, y, expected, (int64_t)rows * out, 1, "head_linear");
    free(x), free(expected), free(numbers), free(biases);
    drop(bed, dx), drop(bed, y);
    weights_free(&w, bed);
}

static void head_linear_body(struct bed *bed) {
    check_head_linear(bed, 1, 1, 1, KERNELS_IDENTITY, false);
    check_head_linear(bed, 33, 7, 3, KERNELS_TANH, true);
    check_head_linear(bed, 256, 256, 4, KERNELS_IDENTITY, true);
    check_head_linear(bed, 130, 20, CLIPS, KERNELS_RELU, true);
    if (bed->effort == FULL)
        check_head_linear(bed, 1024, 1024, CLIPS, KERNELS_TANH, true);
}

static void test_head_linear(void **state) {
    (void)state;
    for_each_bed(head_linear_body);
}

/* The identity matrix leaves the activation alone. */
static void check_activation(struct bed *bed, enum kernels_activation act, int size, int rows) {
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = size, .out = size, .parts = 1};
    struct weights w = {0};
    const int n = size * rows;
    float *identity = new_floats(size * size), *x = new_floats(n), *expected = new_floats(n);
    for (int i = 0; i < size * size; i++)
        identity[i] = i % (size + 1) == 0;
    s.weight[0] = identity;
    weights_pack(&w, bed, &s);
    for (int i = 0; i < n; i++)
        x[i] = (float)(i - n / 2) * 20.0f / (float)n;
    x[0] = -1e4f, x[1] = 1e4f, x[2] = -100.0f, x[3] = 100.0f, x[4] = 1e-20f, x[5] = -88.0f, x[6] = 88.0f;
    void *dx = put_activations(bed, x, n), *y = make_activations(bed, n);
    for (int i = 0; i < n; i++) /* a product with 0 is 0, and sums of zeros and one number are that number */
        kernels_ref.linear(bed->ref, expected + i, x + i,
                           &(struct kernels_weight){.in = 1, .out = 1, .packed = w.ref.packed}, act, NULL, 1);
    bed->k->linear(bed->d, y, dx, &w.mine, act, NULL, rows);
    float *taken = take_activations(bed, y, n);
    for (int i = 0; i < n; i++)
        if (!(fabs((double)taken[i] - expected[i]) <=
              bed->subject->activation_tolerance * (1 + fabs((double)expected[i]))))
            fail_msg("%s: activation %d of %.9g is %.9g, expected %.9g", bed->subject->name, (int)act, x[i],
                     taken[i], expected[i]);
    free(identity), free(x), free(expected), free(taken);
    drop(bed, dx), drop(bed, y);
    weights_free(&w, bed);
}

static void activation_body(struct bed *bed) {
    const int rows = bed->int8 ? (int)bed->limits.tokens_max : bed->effort == FULL ? 20001 : 1001;
    for (int act = KERNELS_IDENTITY; act <= KERNELS_TANH; act++) {
        check_activation(bed, (enum kernels_activation)act, 1, rows);
        if (bed->int8) /* numbers of one row are rounded together */
            continue;
        check_activation(bed, (enum kernels_activation)act, 3, rows / 3);
        check_activation(bed, (enum kernels_activation)act, 8, rows / 8);
    }
}

static void test_activation(void **state) {
    (void)state;
    for_each_bed(activation_body);
}

/* Rows of any size, and on one side of zero. */
static void check_range(struct bed *bed, double size, double middle) {
    enum { IN = 70, OUT = 33, ROWS = 5 };
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = IN, .out = OUT, .parts = 1};
    struct weights w = {0};
    weights_init(&w, bed, &s);
    float *x = new_random(ROWS * IN, 1), *expected = new_floats(ROWS * OUT);
    for (int i = 0; i < ROWS * IN; i++)
        x[i] = (float)(size * (middle + x[i]));
    void *dx = put_activations(bed, x, ROWS * IN), *y = make_activations(bed, ROWS * OUT);
    kernels_ref.linear(bed->ref, expected, x, &w.ref, KERNELS_IDENTITY, NULL, ROWS);
    bed->k->linear(bed->d, y, dx, &w.mine, KERNELS_IDENTITY, NULL, ROWS);
    float *taken = take_activations(bed, y, ROWS * OUT);
    for (int i = 0; i < ROWS * OUT && size > 0; i++) {
        taken[i] = (float)(taken[i] / size / (1 + fabs(middle)));
        expected[i] = (float)(expected[i] / size / (1 + fabs(middle)));
    }
    if (size < 1e-30) /* no number of int8's is so small */
        for (int i = 0; i < ROWS * OUT; i++)
            assert_true(isfinite(taken[i]) && fabs((double)taken[i]) < 100);
    else
        assert_near(bed, taken, expected, ROWS * OUT, 1, "a range");
    free(x), free(expected), free(taken);
    drop(bed, dx), drop(bed, y);
    weights_free(&w, bed);
}

/* int8: least numbers that lie half way between two bytes, and their neighbours. */
static void check_halves(struct bed *bed, int halves) {
    enum { IN = 2, NEAR = 8 };
    float identity[IN * IN] = {1, 0, 0, 1};
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = IN, .out = IN, .parts = 1, .weight = {identity}};
    struct weights w = {0};
    weights_pack(&w, bed, &s);
    for (int64_t half = 0; half < halves; half++) {
        float x[(2 * NEAR + 1) * IN];
        const int64_t rows = 2 * NEAR + 1;
        const double part = (double)(half + 0.5) / 254.99; /* of the range, below 0 */
        float low = (float)(part / (part - 1));
        for (int i = 0; i < NEAR; i++)
            low = nextafterf(low, -2);
        for (int64_t i = 0; i < rows; i++, low = nextafterf(low, 0)) {
            x[i * IN] = 1;
            x[i * IN + 1] = low;
        }
        void *dx = put_activations(bed, x, rows * IN), *y = make_activations(bed, rows * IN);
        bed->k->linear(bed->d, y, dx, &w.mine, KERNELS_IDENTITY, NULL, rows);
        check_activations(bed, y, x, rows * IN, 1, "half a byte");
        drop(bed, dx), drop(bed, y);
    }
    weights_free(&w, bed);
}

static void range_body(struct bed *bed) {
    static const double sizes[] = {0, 1e-39, 1e-36, 1e-20, 1, 1e20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int middle = -5; middle <= 5; middle += 5)
            check_range(bed, sizes[i], middle);
    check_halves(bed, bed->int8 ? 127 : 1);
}

static void test_range(void **state) {
    (void)state;
    for_each_bed(range_body);
}

/* What is no number makes all of its row none, whatever the activation, and nothing of the other rows. */
static void check_no_number(struct bed *bed, enum kernels_activation act, int in, int out) {
    enum { ROWS = 3, BAD = 1 };
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = in, .out = out, .parts = 1};
    struct weights w = {0};
    weights_init(&w, bed, &s);
    float *x = new_random((int64_t)ROWS * in, 1);
    void *good = put_activations(bed, x, (int64_t)ROWS * in);
    x[BAD * in + random_int(0, in - 1)] = NAN;
    void *bad = put_activations(bed, x, (int64_t)ROWS * in);
    void *y = make_activations(bed, (int64_t)ROWS * out), *z = make_activations(bed, (int64_t)ROWS * out);
    bed->k->linear(bed->d, y, good, &w.mine, act, NULL, ROWS);
    bed->k->linear(bed->d, z, bad, &w.mine, act, NULL, ROWS);
    float *expected = take_activations(bed, y, (int64_t)ROWS * out);
    float *taken = take_activations(bed, z, (int64_t)ROWS * out);
    for (int i = 0; i < ROWS * out; i++)
        if (i / out == BAD ? !isnan(taken[i]) : taken[i] != expected[i])
            fail_msg("%s: activation %d: row %d has %g beside a NaN in row %d", bed->subject->name, (int)act,
                     i / out, taken[i], BAD);
    free(x), free(expected), free(taken);
    drop(bed, good), drop(bed, bad), drop(bed, y), drop(bed, z);
    weights_free(&w, bed);
}

static void no_number_body(struct bed *bed) {
    for (int act = KERNELS_IDENTITY; act <= KERNELS_TANH; act++) {
        check_no_number(bed, (enum kernels_activation)act, 70, 33);
        check_no_number(bed, (enum kernels_activation)act, 8, 64);
    }
}

static void test_no_number(void **state) {
    (void)state;
    for_each_bed(no_number_body);
}

/* A weight that the precision cannot hold becomes the nearest one that it can: a row of one 1 picks it out.
 */
static void rounding_body(struct bed *bed) {
    enum { IN = 8, OUT = 1000 };
    if (bed->int8)
        return;
    float *numbers = new_random(IN * OUT, 1), *expected = new_floats(OUT), x[IN] = {0, 0, 0, 1};
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = IN, .out = OUT, .parts = 1, .weight = {numbers}};
    struct weights w = {0};
    weights_pack(&w, bed, &s);
    void *dx = put_activations(bed, x, IN), *y = make_activations(bed, OUT);
    bed->k->linear(bed->d, y, dx, &w.mine, KERNELS_IDENTITY, NULL, 1);
    for (int i = 0; i < OUT; i++)
        expected[i] = numbers[i * IN + 3];
    round_activations(bed, expected, OUT);
    float *taken = take_activations(bed, y, OUT);
    assert_same_bits(bed, taken, expected, OUT, "a weight, rounded");
    free(numbers), free(expected), free(taken);
    drop(bed, dx), drop(bed, y);
    weights_free(&w, bed);
}

static void test_rounding(void **state) {
    (void)state;
    for_each_bed(rounding_body);
}

static void check_layer_norm(struct bed *bed, int channels, int64_t rows, double offset) {
    struct kernels_weight_spec s = {
        .kind = KERNELS_LAYER_NORM, .in = channels, .out = channels, .eps = 1e-5f, .has_bias = true};
    struct weights w;
    const int64_t n = rows * channels;
    weights_init(&w, bed, &s);
    float *x = new_random(n, 2), *expected = new_floats(n);
    for (int64_t i = 0; i < n; i++)
        x[i] += (float)offset;
    void *dx = put_activations(bed, x, n), *y = make_activations(bed, n);
    kernels_ref.layer_norm(bed->ref, expected, x, &w.ref, rows);
    bed->k->layer_norm(bed->d, y, dx, &w.mine, rows);
    check_activations(bed, y, expected, n, bed->bf16 ? 1 : 1 + fabs(offset), "layer_norm");
    bed->k->layer_norm(bed->d, dx, dx, &w.mine, rows);
    check_same_activations(bed, dx, y, n, "layer_norm in place");
    free(x), free(expected);
    drop(bed, dx), drop(bed, y);
    weights_free(&w, bed);
}

static void layer_norm_body(struct bed *bed) {
    check_layer_norm(bed, 1, 2, 0);
    check_layer_norm(bed, 40, 5, 0);
    static const int usual[] = {256, 512, 640, 768, 1104, 1280, 1536, 2048, 2056};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        check_layer_norm(bed, usual[i], 9, 0);
    check_layer_norm(bed, 1024, 3, 5);
    if (bed->effort == FULL)
        check_layer_norm(bed, 768, 149, 0);
    for (int i = 0; i < 8; i++)
        check_layer_norm(bed, random_int(2, 150), random_int(1, bed->effort == FULL ? 80 : 9), 0);
}

static void test_layer_norm(void **state) {
    (void)state;
    for_each_bed(layer_norm_body);
}

/* Rows behind each other of a sum of layers. */
static void accumulate_body(struct bed *bed) {
    const int channels[] = {1, 7, 64, 130}, rows = bed->effort == FULL ? 300 : 9;
    for (int i = 0; i < 4; i++) {
        const int n = rows * channels[i];
        float *x = new_random(n, 1), *expected = new_floats(n);
        void *dx = put_activations(bed, x, n), *y = make_activations(bed, n);
        for (int step = 0; step < 3; step++) {
            const float weight = 0.3f + 0.5f * (float)step;
            kernels_ref.accumulate(bed->ref, expected, x, weight, step == 0, rows, channels[i]);
            bed->k->accumulate(bed->d, y, dx, weight, step == 0, rows, channels[i]);
        }
        check_activations(bed, y, expected, n, 1, "accumulate");
        free(x), free(expected);
        drop(bed, dx), drop(bed, y);
    }
}

static void test_accumulate(void **state) {
    (void)state;
    for_each_bed(accumulate_body);
}

/* ---- devices
 * ------------------------------------------------------------------------------------------------ */

static void test_cpu_devices(void **state) {
    struct status st = {0};
    struct kernels_device *d = NULL;
    struct kernels_options o = {.precision = KERNELS_INT8};
    (void)state;
    assert_ptr_equal(kernels_find("cpu", &st), &kernels_cpu);
    assert_ptr_equal(kernels_find("ref", &st), &kernels_ref);
    assert_null(kernels_find("abacus", &st));
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(st.message, "abacus"));
    setenv("TIMBRE_CPU", "portable", 1);
    for (; o.precision >= KERNELS_BF16; o.precision--) {
        assert_int_equal(kernels_cpu.device_new(&d, &o, &st), -1);
        assert_int_equal(st.code, STATUS_UNAVAILABLE);
        assert_non_null(strstr(st.message, o.precision == KERNELS_INT8 ? "int8" : "bf16"));
        assert_null(d);
    }

    o.precision = KERNELS_FP32;
    setenv("TIMBRE_CPU", "abacus", 1);
    assert_int_equal(kernels_cpu.probe(&o, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_non_null(strstr(st.message, "abacus"));
    setenv("TIMBRE_CPU", "portable", 1);
    assert_int_equal(kernels_cpu.device_new(&d, &o, &st), 0);
    assert_string_equal(kernels_cpu.device_name(d), "cpu-portable");
    kernels_cpu.device_del(d);
    kernels_cpu.device_del(NULL);
    unsetenv("TIMBRE_CPU");
}

/* Of every backend. */
static void device_body(struct bed *bed) {
    const struct kernels *k = bed->k;
    struct kernels_options o = bed->subject->options;
    struct kernels_device *d = NULL;
    struct status st = {0};
    void *p = NULL;
    assert_int_equal(k->abi, KERNELS_ABI);
    assert_string_equal(k->name, bed->subject->backend);
    assert_true(k->count_devices() >= 1);
    assert_int_equal(strncmp(k->device_name(bed->d), k->name, strlen(k->name)), 0);
    assert_true(k->segment_rows(bed->d) >= 1);
    assert_true(k->spare_rows(bed->d) >= 0);
    assert_false(k->is_lost(bed->d));

    if (!k->on_host) {
        o.precision = KERNELS_INT8;
        assert_int_equal(k->device_new(&d, &o, &st), -1);
        assert_int_equal(st.code, STATUS_UNAVAILABLE);
        assert_non_null(strstr(st.message, "int8"));
        assert_null(d);
    }

    assert_int_equal(k->memory_new(bed->d, &p, SIZE_MAX - 10, "everything", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "everything"));
    assert_int_equal(k->host_new(bed->d, &p, SIZE_MAX - 10, "everything", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(k->memory_new(bed->d, &p, 5 << 20, "some", &st), 0);
    assert_int_equal((uintptr_t)p % ARENA_ALIGN_BYTES, 0);
    k->memory_del(bed->d, p);
    assert_int_equal(k->host_new(bed->d, &p, 5 << 20, "some", &st), 0);
    memset(p, 1, 5 << 20);
    k->host_del(bed->d, p);
    k->memory_del(bed->d, NULL);
    k->host_del(bed->d, NULL);
    k->device_del(NULL);
    bed_finish(bed);
}

static void test_devices(void **state) {
    (void)state;
    for_each_bed(device_body);
}

/* A GPU that is not there, and a limit of memory that is. */
static void gpu_body(struct bed *bed) {
    const struct kernels *k = bed->k;
    struct kernels_options o = bed->subject->options;
    struct kernels_device *d = NULL;
    struct status st = {0};
    void *p = NULL;
    if (k->on_host)
        return;
    o.device_index = k->count_devices();
    assert_int_equal(k->probe(&o, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_int_equal(k->device_new(&d, &o, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_null(d);
    o.device_index = 0;
    o.memory_bytes_max = (size_t)256 << 20;
    assert_int_equal(k->device_new(&d, &o, &st), 0);
    assert_int_equal(k->memory_new(d, &p, (size_t)300 << 20, "a lot", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "a lot"));
    k->device_del(d);
}

static void test_gpus(void **state) {
    (void)state;
    for_each_bed(gpu_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_devices), cmocka_unit_test(test_devices),
        cmocka_unit_test(test_gpus),        cmocka_unit_test(test_activation),
        cmocka_unit_test(test_linear),      cmocka_unit_test(test_linear_without_library),
        cmocka_unit_test(test_head_linear), cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_layer_norm),  cmocka_unit_test(test_accumulate),
        cmocka_unit_test(test_range),       cmocka_unit_test(test_no_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
