/* Tests of models/weights: prefixes, spellings, the weight norm, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "build.h"
#include "models/weights.h"

#define PROBE "feature_extractor.conv_layers.0.conv.weight"

static void open_tensors(struct memory *m, const struct build_tensor *t, int count) {
    struct bytes b = {0};
    struct status st = {0};
    build_tensors(&b, t, count);
    if (memory_open(m, safetensors_read, b.data, b.count, &st))
        fail_msg("%s", st.message);
    bytes_free(&b);
}

static void check_prefix(const char *name, const char *prefix) {
    struct memory m;
    struct weights w;
    struct status st = {0};
    open_tensors(&m, &(struct build_tensor){.name = name, .dtype = "F32", .rank = 1, .shape = {1}}, 1);
    int rc = weights_init(&w, &m.checkpoint, &st);
    assert_int_equal(rc, prefix ? 0 : -1);
    if (prefix)
        assert_string_equal(w.prefix, prefix);
    else
        assert_int_equal(st.code, STATUS_FAILED_PRECONDITION);
    weights_free(&w);
    memory_free(&m);
}

static void test_prefix(void **state) {
    (void)state;
    check_prefix("wav2vec2." PROBE, "wav2vec2.");
    check_prefix("hubert." PROBE, "hubert.");
    check_prefix("unispeech_sat." PROBE, "unispeech_sat.");
    check_prefix("model." PROBE, "model.");
    check_prefix(PROBE, "");
    check_prefix("wavlm." PROBE, NULL); /* another forward pass */
    check_prefix("x" PROBE, NULL);
    check_prefix("something.else", NULL);
    struct memory m;
    struct weights w;
    struct status st = {0};
    const struct build_tensor two[] = {{"hubert." PROBE, "F32", 1, {1}, 0}, {PROBE, "F32", 1, {1}, 0}};
    open_tensors(&m, two, 2);
    assert_int_equal(weights_init(&w, &m.checkpoint, &st), -1);
    assert_non_null(strstr(st.message, "two backbones"));
    memory_free(&m);
}

static const struct build_tensor tensors[] = {
    {"hubert." PROBE, "F32", 3, {2, 1, 3}, 1},
    {"hubert.a.weight", "F16", 1, {3}, 1},
    {"hubert.a.bias", "BF16", 1, {3}, 2},
    {"hubert.norm.gamma", "F32", 1, {3}, 3},
    {"hubert.norm.beta", "F32", 1, {3}, 4},
    {"hubert.b.LayerNorm.gamma", "F32", 1, {3}, 5},
    {"hubert.b.LayerNorm.bias", "F32", 1, {3}, 6},
    {"hubert.whole", "I64", 1, {3}, 0},
    {"hubert.nan", "F32", 1, {1}, NAN},
    {"classifier.weight", "F32", 2, {2, 3}, 7},
};

struct fixture {
    struct memory memory;
    struct weights weights;
    struct status status;
};

static void fixture_init(struct fixture *f) {
    memset(f, 0, sizeof *f);
    open_tensors(&f->memory, tensors, sizeof tensors / sizeof *tensors);
    assert_int_equal(weights_init(&f->weights, &f->memory.checkpoint, &f->status), 0);
}

static void fixture_free(struct fixture *f) {
    weights_free(&f->weights);
    memory_free(&f->memory);
}

static void check_values(struct fixture *f, const char *name, float first) {
    const float *p = weights_get(&f->weights, name, 1, (int64_t[]){3});
    if (!p)
        fail_msg("%s: %s", name, f->status.message);
    for (int i = 0; i < 3; i++)
        assert_true(p[i] == first + (float)i / 8);
    assert_true(weights_has(&f->weights, name));
}

static void test_get(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f);
    check_values(&f, "a.weight", 1);
    check_values(&f, "a.bias", 2);
    check_values(&f, "norm.weight", 3);
    check_values(&f, "norm.bias", 4);
    check_values(&f, "b.layer_norm.weight", 5);
    check_values(&f, "b.layer_norm.bias", 6);
    assert_int_equal(f.weights.parameters, 18);
    check_values(&f, "a.weight", 1); /* again: counted once */
    assert_int_equal(f.weights.parameters, 18);
    const float *p = weights_get(&f.weights, "/classifier.weight", 2, (int64_t[]){2, 3});
    assert_non_null(p);
    assert_true(p[0] == 7);
    assert_false(weights_has(&f.weights, "classifier.weight"));
    assert_false(weights_has(&f.weights, "/a.weight"));
    assert_true(checkpoint_find(&f.memory.checkpoint, "hubert.norm.gamma")->used);
    assert_false(checkpoint_find(&f.memory.checkpoint, "hubert.whole")->used);
    const struct tensor *t = weights_find(&f.weights, "whole");
    assert_non_null(t);
    assert_false(t->used);
    assert_false(f.weights.failed);
    fixture_free(&f);
}

static void check_get_refused(const char *name, int rank, const int64_t *shape, const char *keyword) {
    struct fixture f;
    fixture_init(&f);
    assert_null(weights_get(&f.weights, name, rank, shape));
    assert_true(f.weights.failed);
    assert_int_equal(f.status.code, STATUS_FAILED_PRECONDITION);
    if (!strstr(f.status.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", f.status.message, keyword);
    /* The first error stays, and nothing is read any more. */
    assert_null(weights_get(&f.weights, "a.weight", 1, (int64_t[]){3}));
    assert_null(weights_find(&f.weights, "nowhere"));
    weights_fail(&f.weights, STATUS_INTERNAL, "later");
    assert_non_null(strstr(f.status.message, keyword));
    fixture_free(&f);
}

static void test_get_refused(void **state) {
    (void)state;
    check_get_refused("c.weight", 1, (int64_t[]){3}, "tensor hubert.c.weight is missing");
    check_get_refused("/c.weight", 1, (int64_t[]){3}, "tensor c.weight is missing");
    check_get_refused("a.weight", 1, (int64_t[]){4},
                      "hubert.a.weight has shape [3], the configuration needs [4]");
    check_get_refused("a.weight", 2, (int64_t[]){3, 1}, "the configuration needs [3, 1]");
    check_get_refused("whole", 1, (int64_t[]){3}, "hubert.whole has dtype I64");
    check_get_refused("nan", 1, (int64_t[]){1}, "hubert.nan is not finite");
}

/* Scratch is found again after a release, and running out of it is told. */
static void test_scratch(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < WEIGHTS_SCRATCH_MAX; i++)
            check_values(&f, "a.weight", 1);
        weights_release(&f.weights);
    }
    for (int i = 0; i < WEIGHTS_SCRATCH_MAX; i++)
        check_values(&f, "a.weight", 1);
    assert_null(weights_get(&f.weights, "a.weight", 1, (int64_t[]){3}));
    assert_int_equal(f.status.code, STATUS_INTERNAL);
    fixture_free(&f);
}

/* g and v of shapes [1, 1, K] and [out, in, K], or a plain weight. */
static void check_weight_norm(const char *g_name, const char *v_name, const char *dtype) {
    enum { OUT = 3, IN = 2, K = 4 };
    const struct build_tensor t[] = {{PROBE, "F32", 1, {1}, 0},
                                     {v_name, dtype, 3, {OUT, IN, K}, 1},
                                     {g_name ? g_name : "unused", dtype, 3, {1, 1, K}, 2}};
    struct memory m;
    struct weights w;
    struct status st = {0};
    open_tensors(&m, t, 3);
    assert_int_equal(weights_init(&w, &m.checkpoint, &st), 0);
    const float *p = weights_get_weight_norm(&w, "conv", OUT, IN, K);
    if (!p)
        fail_msg("%s", st.message);
    for (int k = 0; k < K; k++) {
        double sum = 0;
        for (int r = 0; r < OUT * IN; r++)
            sum += pow(1 + (r * K + k) / 8.0, 2);
        for (int r = 0; r < OUT * IN; r++) {
            double v = 1 + (r * K + k) / 8.0, expected = g_name ? (2 + k / 8.0) * v / sqrt(sum) : v;
            assert_true(fabs(p[r * K + k] - expected) <= 1e-7 * fabs(expected));
        }
    }
    weights_free(&w);
    memory_free(&m);
}

static void test_weight_norm(void **state) {
    (void)state;
    check_weight_norm("conv.weight_g", "conv.weight_v", "F32");
    check_weight_norm("conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1",
                      "F32");
    check_weight_norm("conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1",
                      "F16");
    check_weight_norm(NULL, "conv.weight", "F32");
}

static void check_weight_norm_refused(const struct build_tensor *t, int count, const char *keyword) {
    struct memory m;
    struct weights w;
    struct status st = {0};
    open_tensors(&m, t, count);
    assert_int_equal(weights_init(&w, &m.checkpoint, &st), 0);
    assert_null(weights_get_weight_norm(&w, "conv", 2, 1, 3));
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
    weights_free(&w);
    memory_free(&m);
}

static void test_weight_norm_refused(void **state) {
    (void)state;
    const struct build_tensor zero[] = {{PROBE, "F32", 1, {1}, 0},
                                        {"conv.weight_v", "I64", 3, {2, 1, 3}, 0},
                                        {"conv.weight_g", "F32", 3, {1, 1, 3}, 1}};
    check_weight_norm_refused(zero, 1, "tensor conv.weight is missing");
    check_weight_norm_refused(zero, 2, "tensor conv.weight_g is missing");
    check_weight_norm_refused(zero, 3, "dtype I64");
    const struct build_tensor shape[] = {{PROBE, "F32", 1, {1}, 0},
                                         {"conv.weight_v", "F32", 3, {2, 1, 3}, 1},
                                         {"conv.weight_g", "F32", 3, {2, 1, 1}, 1}};
    check_weight_norm_refused(shape, 3,
                              "conv.weight_g has shape [2, 1, 1], the configuration needs [1, 1, 3]");
    /* v = 0, 0.125, 0.25: for the first of the three the norm is zero. */
    const struct build_tensor flat[] = {{PROBE, "F32", 1, {1}, 0},
                                        {"conv.weight_v", "F32", 3, {1, 1, 3}, 0},
                                        {"conv.weight_g", "F32", 3, {1, 1, 3}, 1}};
    struct memory m;
    struct weights w;
    struct status st = {0};
    open_tensors(&m, flat, 3);
    assert_int_equal(weights_init(&w, &m.checkpoint, &st), 0);
    assert_null(weights_get_weight_norm(&w, "conv", 1, 1, 3));
    assert_non_null(strstr(st.message, "conv.weight_v has a norm of zero"));
    weights_free(&w);
    memory_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix),      cmocka_unit_test(test_get),
        cmocka_unit_test(test_get_refused), cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_weight_norm), cmocka_unit_test(test_weight_norm_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
