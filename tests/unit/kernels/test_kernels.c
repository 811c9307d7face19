/* Every operation of every backend against ref. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/bed.h"

/* A batch of clips of one layer that makes tokens of samples. */
static const struct batch_shape plain = {.levels = 1, .kernel = {1}, .stride = {1}};

static const int64_t token_counts[][CLIPS] = {
    {1}, {2}, {49}, {1, 1, 1}, {17, 1, 149, 5, 40, 64}, {300, 3, 257}, {530},
};
enum { TOKEN_COUNTS = sizeof token_counts / sizeof *token_counts };

static int count_clips(const int64_t *counts) {
    int n = 0;
    while (n < CLIPS && counts[n] > 0)
        n++;
    return n;
}

static void check_linear(struct bed *bed, int in, int out, int parts, int64_t rows,
                         enum kernels_activation act, bool bias, bool residual) {
    struct kernels_weight_spec s = {
        .kind = KERNELS_LINEAR, .in = in, .out = out, .parts = parts, .has_bias = bias};
    struct weights w;
    weights_init(&w, bed, &s);
    float *x = new_random(rows * in, 1), *r = new_random(rows * out, 1);
    float *y = new_floats(rows * out), *expected = new_floats(rows * out);
    float *in_place = new_copy(r, rows * out);
    kernels_ref.linear(bed->ref, expected, x, &w.ref, act, residual ? r : NULL, rows);
    bed->k->linear(bed->d, y, x, &w.mine, act, residual ? r : NULL, rows);
    assert_near(y, expected, rows * out, bed->subject->tolerance, "linear");
    bed->k->linear(bed->d, in_place, x, &w.mine, act, residual ? in_place : NULL, rows);
    assert_same_bits(in_place, y, rows * out, "linear onto its residual");
    if (!residual) {
        bed->k->head_linear(bed->d, y, x, &w.mine, act, rows);
        assert_near(y, expected, rows * out, bed->subject->tolerance, "head_linear");
    }
    free(x), free(r), free(y), free(expected), free(in_place);
    weights_free(&w, bed);
}

static void linear_body(struct bed *bed) {
    check_linear(bed, 1, 1, 1, 1, KERNELS_IDENTITY, false, false);
    check_linear(bed, 768, 768, 1, 49, KERNELS_IDENTITY, true, true);
    check_linear(bed, 256, 1536, 3, 200, KERNELS_GELU, true, false);
    check_linear(bed, 3072, 33, 1, 13, KERNELS_IDENTITY, true, true);
    check_linear(bed, 96, 72, 3, 0, KERNELS_IDENTITY, true, false);
    for (int i = 0; i < 12; i++) {
        int parts = random_int(1, 3);
        check_linear(bed, random_int(1, 600), parts * random_int(1, 90), parts, random_int(1, 70),
                     (enum kernels_activation)(i % 6), i % 3 != 0, i % 2 != 0);
    }
}

static void test_linear(void **state) {
    (void)state;
    for_each_bed(linear_body);
}

/* A matrix of one 1 leaves the activation alone. */
static void activation_body(struct bed *bed) {
    enum { N = 20001 };
    const float one = 1.0f;
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = 1, .out = 1, .parts = 1, .weight = {&one}};
    struct status st = {0};
    struct kernels_weight w;
    void *memory;
    assert_int_equal(bed->k->memory_new(bed->d, &memory, bed->k->weight_bytes(bed->d, &s), "a weight", &st),
                     0);
    bed->k->pack(bed->d, &w, &s, memory);
    float *x = new_floats(N), *y = new_floats(N), *expected = new_floats(N);
    for (int i = 0; i < N; i++)
        x[i] = (float)(i - N / 2) * 1e-3f;
    x[0] = -1e4f, x[1] = 1e4f, x[2] = -100.0f, x[3] = 100.0f, x[4] = 1e-20f, x[5] = -88.0f, x[6] = 88.0f;

    struct kernels_weight ref;
    void *ref_memory;
    assert_int_equal(kernels_ref.memory_new(bed->ref, &ref_memory, kernels_ref.weight_bytes(bed->ref, &s),
                                            "a weight", &st),
                     0);
    kernels_ref.pack(bed->ref, &ref, &s, ref_memory);
    for (int act = KERNELS_IDENTITY; act <= KERNELS_TANH; act++) {
        kernels_ref.linear(bed->ref, expected, x, &ref, (enum kernels_activation)act, NULL, N);
        bed->k->linear(bed->d, y, x, &w, (enum kernels_activation)act, NULL, N);
        assert_near(y, expected, N, bed->subject->activation_tolerance, "activation");
    }
    free(x), free(y), free(expected);
    bed->k->memory_del(bed->d, memory);
    kernels_ref.memory_del(bed->ref, ref_memory);
}

static void test_activation(void **state) {
    (void)state;
    for_each_bed(activation_body);
}

static void check_conv(struct bed *bed, const struct batch_shape *shape, int level, int in, int out,
                       enum kernels_conv_norm norm, enum kernels_activation act, bool bias,
                       const struct batch *b, double offset) {
    struct kernels_weight_spec s = {.kind = KERNELS_CONV,
                                    .in = in,
                                    .out = out,
                                    .kernel = shape->kernel[level - 1],
                                    .stride = shape->stride[level - 1],
                                    .groups = 1,
                                    .norm = norm,
                                    .eps = 1e-5f,
                                    .has_bias = bias};
    struct weights w;
    weights_init(&w, bed, &s);
    const int64_t from = b->tape_rows[level - 1], to = b->tape_rows[level];
    float *x = new_random(from * in, 1), *y = new_floats(to * out), *expected = new_floats(to * out);
    float *stats = NULL, *ref_stats = NULL;
    for (int64_t i = 0; i < from * in; i++)
        x[i] += (float)offset;
    if (norm == KERNELS_NORM_GROUP) {
        stats = new_floats(b->clips * out * 2), ref_stats = new_floats(b->clips * out * 2);
        bed->k->group_stats(bed->d, stats, x, &w.mine, b);
        kernels_ref.group_stats(bed->ref, ref_stats, x, &w.ref, b);
        assert_near(stats, ref_stats, b->clips * out * 2, 2e-6, "group_stats");
    }
    const struct kernels_rows rows = {0, to};
    bed->k->conv(bed->d, y, x, &w.mine, act, stats, level, rows, b);
    kernels_ref.conv(bed->ref, expected, x, &w.ref, act, ref_stats, level, rows, b);
    const double tolerance = bed->subject->tolerance * (1 + 4 * fabs(offset));
    for (int c = 0; c < b->clips; c++) { /* rows between clips are undefined */
        int64_t first = b->offset[c] / b->step[level] * out;
        assert_near(y + first, expected + first, batch_rows(b, level, c) * out, tolerance, "conv");
    }

    /* Cut into segments, every row has the bits it had. */
    for (int64_t first = 0, count; first < to; first += count) {
        count = random_int(1, 40);
        count = count < to - first ? count : to - first;
        struct kernels_rows part = {first, count};
        float *cut = new_floats(count * out);
        float *input = new_copy(x + first * s.stride * in, ((count - 1) * s.stride + s.kernel) * in);
        bed->k->conv(bed->d, cut, input, &w.mine, act, stats, level, part, b);
        assert_same_bits(cut, y + first * out, count * out, "a segment of conv");
        free(cut), free(input);
    }
    free(x), free(y), free(expected), free(stats), free(ref_stats);
    weights_free(&w, bed);
}

static void conv_body(struct bed *bed) {
    const struct batch_shape shape = {.levels = 3, .kernel = {10, 3, 2}, .stride = {5, 2, 2}};
    const struct batch_shape odd = {.levels = 2, .kernel = {7, 5}, .stride = {3, 1}};
    const struct batch_shape wide = {.levels = 1, .kernel = {40}, .stride = {11}};
    const int64_t samples[] = {900, 40, 4001, 333};
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &shape, 4, samples);
    check_conv(bed, &shape, 1, 1, 64, KERNELS_NORM_GROUP, KERNELS_GELU, false, &b, 0);
    check_conv(bed, &shape, 1, 1, 97, KERNELS_NORM_GROUP, KERNELS_RELU, true, &b, 0);
    check_conv(bed, &shape, 1, 1, 33, KERNELS_NORM_GROUP, KERNELS_GELU, true, &b, 20);
    check_conv(bed, &shape, 1, 1, 32, KERNELS_NORM_LAYER, KERNELS_GELU, true, &b, 0);
    check_conv(bed, &shape, 1, 1, 5, KERNELS_NORM_NONE, KERNELS_TANH, true, &b, 0);
    check_conv(bed, &shape, 2, 64, 130, KERNELS_NORM_NONE, KERNELS_GELU, false, &b, 0);
    check_conv(bed, &shape, 2, 192, 200, KERNELS_NORM_LAYER, KERNELS_GELU, true, &b, 0);
    check_conv(bed, &shape, 3, 19, 6, KERNELS_NORM_LAYER, KERNELS_SILU, true, &b, 0);
    arena_free(&a);
    batch_new(&b, &a, &odd, 4, samples);
    check_conv(bed, &odd, 2, 3, 7, KERNELS_NORM_NONE, KERNELS_GELU_TANH, true, &b, 0);
    check_conv(bed, &odd, 1, 1, 70, KERNELS_NORM_GROUP, KERNELS_IDENTITY, true, &b, 0);
    arena_free(&a);
    batch_new(&b, &a, &wide, 3,
              (int64_t[]){900, 73, 4001}); /* a clip of one row has no variance to speak of */
    check_conv(bed, &wide, 1, 1, 20, KERNELS_NORM_GROUP, KERNELS_GELU, true, &b, 0);
    arena_free(&a);
}

static void test_conv(void **state) {
    (void)state;
    for_each_bed(conv_body);
}

static void input_norm_body(struct bed *bed) {
    const struct batch_shape shape = {.levels = 2, .kernel = {10, 3}, .stride = {5, 2}};
    const int64_t samples[] = {20, 25, 1001, 50000};
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &shape, 4, samples);
    const int64_t n = b.tape_rows[0];
    float *x = new_random(n, 0.1), *y = new_floats(n), *expected = new_floats(n);
    for (int64_t i = b.offset[2]; i < n; i++)
        x[i] += 3.0f;
    for (int64_t i = 0; i < b.offset[1]; i++)
        x[i] = 0.25f; /* no variance at all */
    kernels_ref.input_norm(bed->ref, expected, x, &b);
    bed->k->input_norm(bed->d, y, x, &b);
    assert_near(y, expected, n, bed->subject->tolerance, "input_norm");
    bed->k->input_norm(bed->d, x, x, &b);
    assert_same_bits(x, y, n, "input_norm in place");
    free(x), free(y), free(expected);
    arena_free(&a);
}

static void test_input_norm(void **state) {
    (void)state;
    for_each_bed(input_norm_body);
}

static void check_layer_norm(struct bed *bed, int channels, int64_t rows, double offset) {
    struct kernels_weight_spec s = {
        .kind = KERNELS_LAYER_NORM, .in = channels, .out = channels, .eps = 1e-5f, .has_bias = true};
    struct weights w;
    weights_init(&w, bed, &s);
    float *x = new_random(rows * channels, 2), *y = new_floats(rows * channels),
          *expected = new_floats(rows * channels);
    for (int64_t i = 0; i < rows * channels; i++)
        x[i] += (float)offset;
    kernels_ref.layer_norm(bed->ref, expected, x, &w.ref, rows);
    bed->k->layer_norm(bed->d, y, x, &w.mine, rows);
    assert_near(y, expected, rows * channels, bed->subject->tolerance * (1 + fabs(offset)), "layer_norm");
    float *in_place = new_copy(x, rows * channels);
    bed->k->layer_norm(bed->d, in_place, in_place, &w.mine, rows);
    assert_same_bits(in_place, y, rows * channels, "layer_norm in place");
    free(x), free(y), free(expected), free(in_place);
    weights_free(&w, bed);
}

static void layer_norm_body(struct bed *bed) {
    check_layer_norm(bed, 768, 149, 0);
    check_layer_norm(bed, 1024, 3, 5);
    check_layer_norm(bed, 1, 2, 0);
    for (int i = 0; i < 8; i++)
        check_layer_norm(bed, random_int(2, 150), random_int(1, 80), 0);
}

static void test_layer_norm(void **state) {
    (void)state;
    for_each_bed(layer_norm_body);
}

static void check_pos_conv(struct bed *bed, const int64_t *counts, int channels, int groups, int kernel,
                           enum kernels_activation act, bool affine) {
    struct kernels_weight_spec s = {.kind = KERNELS_POS_CONV,
                                    .in = channels,
                                    .out = channels,
                                    .kernel = kernel,
                                    .stride = 1,
                                    .groups = groups,
                                    .has_bias = true,
                                    .has_input_affine = affine};
    struct weights w;
    struct batch b;
    struct arena a;
    weights_init(&w, bed, &s);
    batch_new(&b, &a, &plain, count_clips(counts), counts);
    const int64_t n = batch_tokens(&b) * channels;
    float *x = new_random(n, 1), *y = new_floats(n), *expected = new_floats(n);
    kernels_ref.pos_conv(bed->ref, expected, x, &w.ref, act, &b);
    bed->k->pos_conv(bed->d, y, x, &w.mine, act, &b);
    assert_near(y, expected, n, bed->subject->tolerance, "pos_conv");
    free(x), free(y), free(expected);
    arena_free(&a);
    weights_free(&w, bed);
}

static void pos_conv_body(struct bed *bed) {
    check_pos_conv(bed, token_counts[0], 32, 4, 128, KERNELS_GELU,
                   false); /* one token, kernel longer than the clip */
    check_pos_conv(bed, token_counts[4], 96, 2, 16, KERNELS_GELU, true);
    check_pos_conv(bed, token_counts[4], 24, 8, 19, KERNELS_IDENTITY, false);
    check_pos_conv(bed, token_counts[2], 70, 1, 5, KERNELS_GELU, true);
    check_pos_conv(bed, token_counts[5], 34, 2, 300, KERNELS_RELU, true);
    check_pos_conv(bed, token_counts[3], 5, 5, 1, KERNELS_GELU, false);
    check_pos_conv(bed, token_counts[1], 256, 2, 3, KERNELS_GELU, false);
}

static void test_pos_conv(void **state) {
    (void)state;
    for_each_bed(pos_conv_body);
}

static void check_attention(struct bed *bed, const int64_t *counts, int heads, int head_dim, double spread) {
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &plain, count_clips(counts), counts);
    const int64_t n = batch_tokens(&b) * heads * head_dim;
    float *qkv = new_random(3 * n, spread), *y = new_floats(n), *expected = new_floats(n);
    const float scale = 1.0f / sqrtf((float)head_dim);
    kernels_ref.attention(bed->ref, expected, qkv, heads, head_dim, scale, &b);
    bed->k->attention(bed->d, y, qkv, heads, head_dim, scale, &b);
    /* Scores grow with the square of the spread, and so does their rounding, which a softmax hands on. */
    assert_near(y, expected, n, bed->subject->tolerance * spread * spread * spread, "attention");
    free(qkv), free(y), free(expected);
    arena_free(&a);
}

static void attention_body(struct bed *bed) {
    for (int i = 0; i < TOKEN_COUNTS; i++)
        check_attention(bed, token_counts[i], 2, 64, 1);
    check_attention(bed, token_counts[4], 3, 8, 1);
    check_attention(bed, token_counts[5], 2, 24, 1);
    check_attention(bed, token_counts[4], 2, 80, 6); /* scores far apart */
    check_attention(bed, token_counts[4], 5, 1, 1);
    check_attention(bed, token_counts[4], 16, 16, 1);
    check_attention(bed, token_counts[3], 32, 4, 1);
    check_attention(bed, token_counts[5], 1, 256, 1);
    check_attention(bed, token_counts[5], 1, 255, 3);
}

static void test_attention(void **state) {
    (void)state;
    for_each_bed(attention_body);
}

static void rows_body(struct bed *bed) {
    const struct batch_shape shape = {.levels = 2, .kernel = {4, 3}, .stride = {2, 2}};
    const int64_t samples[] = {10, 403, 12, 999};
    const int channels[] = {1, 7, 64, 130};
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &shape, 4, samples);
    for (int i = 0; i < 4; i++) {
        const int c = channels[i];
        const int64_t from = b.tape_rows[2], n = batch_tokens(&b) * c;
        float *x = new_random(from * c, 1), *y = new_floats(n), *expected = new_floats(n);
        kernels_ref.compact(bed->ref, expected, x, c, (struct kernels_rows){0, from}, &b);
        bed->k->compact(bed->d, y, x, c, (struct kernels_rows){0, 11}, &b);
        bed->k->compact(bed->d, y, x + 11 * c, c, (struct kernels_rows){11, from - 11}, &b);
        assert_same_bits(y, expected, n, "compact");

        float *sum = new_floats(n), *expected_sum = new_floats(n);
        for (int step = 0; step < 3; step++) {
            kernels_ref.accumulate(bed->ref, expected_sum, y, 0.3f + (float)step, step == 0, batch_tokens(&b),
                                   c);
            bed->k->accumulate(bed->d, sum, y, 0.3f + (float)step, step == 0, batch_tokens(&b), c);
        }
        assert_near(sum, expected_sum, n, bed->subject->tolerance, "accumulate");

        float *pooled = new_floats(b.clips * c), *expected_pooled = new_floats(b.clips * c);
        for (int kind = KERNELS_POOL_MEAN; kind <= KERNELS_POOL_MAX; kind++) {
            kernels_ref.pool(bed->ref, expected_pooled, y, (enum kernels_pool)kind, c, &b);
            bed->k->pool(bed->d, pooled, y, (enum kernels_pool)kind, c, &b);
            assert_near(pooled, expected_pooled, b.clips * c, bed->subject->tolerance, "pool");
        }
        free(x), free(y), free(expected), free(sum), free(expected_sum), free(pooled), free(expected_pooled);
    }
    arena_free(&a);
}

static void test_rows(void **state) {
    (void)state;
    for_each_bed(rows_body);
}

static void test_devices(void **state) {
    struct status st = {0};
    struct kernels_device *d = NULL;
    struct kernels_options o = {.precision = KERNELS_BF16};
    (void)state;
    assert_ptr_equal(kernels_find("cpu"), &kernels_cpu);
    assert_ptr_equal(kernels_find("ref"), &kernels_ref);
    assert_null(kernels_find("abacus"));
    assert_int_equal(kernels_cpu.device_new(&d, &o, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_non_null(strstr(st.message, "bf16"));
    assert_null(d);

    o.precision = KERNELS_FP32;
    setenv("TIMBRE_CPU", "abacus", 1);
    assert_int_equal(kernels_cpu.probe(&o, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_non_null(strstr(st.message, "abacus"));
    setenv("TIMBRE_CPU", "portable", 1);
    assert_int_equal(kernels_cpu.device_new(&d, &o, &st), 0);
    assert_string_equal(kernels_cpu.device_name(d), "cpu-portable");
    assert_int_equal(kernels_cpu.activation_bytes(d), 4);
    assert_true(kernels_cpu.segment_rows(d) >= 1);
    void *p = NULL;
    assert_int_equal(kernels_cpu.memory_new(d, &p, SIZE_MAX - 10, "everything", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "everything"));
    assert_int_equal(kernels_cpu.memory_new(d, &p, 5 << 20, "some", &st), 0);
    assert_int_equal((uintptr_t)p % ARENA_ALIGN_BYTES, 0);
    kernels_cpu.memory_del(d, p);
    kernels_cpu.device_del(d);
    kernels_cpu.device_del(NULL);
    unsetenv("TIMBRE_CPU");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices),  cmocka_unit_test(test_activation), cmocka_unit_test(test_linear),
        cmocka_unit_test(test_conv),     cmocka_unit_test(test_input_norm), cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_pos_conv), cmocka_unit_test(test_attention),  cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
