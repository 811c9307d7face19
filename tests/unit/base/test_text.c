/* Tests of base/text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "base/text.h"

static uint64_t next_random(uint64_t *seed) {
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t x = *seed ^ *seed >> 29;
    return x * UINT64_C(0xbf58476d1ce4e5b9) ^ x >> 32;
}

static void test_fixed_buffer_is_cut(void **state) {
    (void)state;
    char buffer[9];
    memset(buffer, 'z', sizeof buffer);
    struct text t;
    text_init(&t, buffer, 8);
    text_put(&t, "");
    assert_string_equal(buffer, "");
    text_put(&t, "abc");
    assert_false(t.failed);
    text_printf(&t, "%d", 12345678);
    assert_true(t.failed);
    assert_string_equal(buffer, "abc1234");
    text_put(&t, "more");
    assert_string_equal(buffer, "abc1234");
    assert_int_equal(buffer[8], 'z');
}

static void test_exact_fit(void **state) {
    (void)state;
    char buffer[4];
    struct text t;
    text_init(&t, buffer, sizeof buffer);
    text_put(&t, "abc");
    assert_false(t.failed);
    text_put(&t, "d");
    assert_true(t.failed);
    assert_string_equal(buffer, "abc");
}

static void test_growing(void **state) {
    (void)state;
    struct text t;
    text_init_growing(&t);
    assert_string_equal(t.data, "");
    text_put(&t, "");
    for (int i = 0; i < 10000; i++)
        text_printf(&t, "%05d", i);
    assert_false(t.failed);
    assert_int_equal(t.length, 50000);
    assert_int_equal(strlen(t.data), 50000);
    assert_memory_equal(t.data + 5 * 9999, "09999", 5);
    text_free(&t);
    text_init_growing(&t);
    char line[3000];
    memset(line, 'q', sizeof line - 1);
    line[sizeof line - 1] = 0;
    text_printf(&t, "<%s>", line); /* longer than the buffer inside text_printf */
    assert_int_equal(t.length, sizeof line + 1);
    text_free(&t);
    text_init_growing(&t);
    text_free(&t); /* never written to */
}

static void check_string(const char *in, const char *expected) {
    struct text t;
    text_init_growing(&t);
    text_put_json_string(&t, in);
    assert_string_equal(t.data, expected);
    text_free(&t);
}

static void test_json_strings(void **state) {
    (void)state;
    check_string("", "\"\"");
    check_string("a\"b\\c/", "\"a\\\"b\\\\c/\"");
    check_string("\n\t\x01\x1f\x7f", "\"\\u000a\\u0009\\u0001\\u001f\x7f\"");
    check_string("Gl\xc3\xbc"
                 "ck \xe6\x82\xb2 \xf0\x9f\x98\x80",
                 "\"Gl\xc3\xbc"
                 "ck \xe6\x82\xb2 \xf0\x9f\x98\x80\"");
    /* Not UTF-8: a lone continuation, overlong forms, a surrogate, beyond U+10FFFF, cut at the end. */
    check_string("\x80", "\"\xef\xbf\xbd\"");
    check_string("\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xe0\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xf4\x90\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("a\xe6\x82", "\"a\xef\xbf\xbd\xef\xbf\xbd\"");
}

static void test_random_bytes_give_valid_json(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 2000; round++) {
        char in[33] = {0};
        for (int i = 0; i < 32; i++)
            in[i] = (char)(1 + next_random(&seed) % 255);
        struct text t;
        text_init_growing(&t);
        text_put_json_string(&t, in);
        cJSON *parsed = cJSON_Parse(t.data);
        assert_non_null(parsed);
        assert_true(cJSON_IsString(parsed));
        cJSON_Delete(parsed);
        text_free(&t);
    }
}

static void check_float(float value) {
    char buffer[64];
    struct text t;
    text_init(&t, buffer, sizeof buffer);
    text_put_json_float(&t, value);
    assert_false(t.failed);
    float back = strtof(buffer, NULL);
    assert_memory_equal(&back, &value, sizeof value);
    back = (float)strtod(buffer, NULL); /* as a reader that knows only doubles would */
    assert_memory_equal(&back, &value, sizeof value);
}

static void test_floats_read_back(void **state) {
    (void)state;
    static const float special[] = {0.0f,        -0.0f,    1.0f,          0.1f,         -0.1f,
                                    FLT_MAX,     -FLT_MAX, FLT_MIN,       FLT_TRUE_MIN, 16777216.0f,
                                    16777217.0f, 1.0f / 3, 8589973504.0f, FLT_EPSILON};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        check_float(special[i]);
    uint64_t seed = 2;
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)next_random(&seed);
        float value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value))
            check_float(value);
        check_float((float)((double)bits / 4294967296.0)); /* and scores, 0..1 */
    }
}

static void test_doubles_read_back(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < 50000; i++) {
        uint64_t bits = i == 0 ? UINT64_C(1) << 63 : next_random(&seed);
        double value, back;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        char buffer[64];
        struct text t;
        text_init(&t, buffer, sizeof buffer);
        text_put_json_double(&t, value);
        back = strtod(buffer, NULL);
        assert_memory_equal(&back, &value, sizeof value);
    }
}

static void test_float_spelling(void **state) {
    (void)state;
    char buffer[128];
    struct text t;
    text_init(&t, buffer, sizeof buffer);
    const float values[] = {0.1f, -2.5f, 3.0f, -0.0f, NAN, INFINITY};
    text_put_json_floats(&t, values, 6);
    text_put_json_floats(&t, NULL, 3);
    text_put_json_floats(&t, values, 0);
    text_put_json_double(&t, 0.1);
    text_put_json_double(&t, -INFINITY);
    assert_string_equal(buffer, "[0.1,-2.5,3,-0.0,null,null][][]0.1null");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixed_buffer_is_cut),
        cmocka_unit_test(test_exact_fit),
        cmocka_unit_test(test_growing),
        cmocka_unit_test(test_json_strings),
        cmocka_unit_test(test_random_bytes_give_valid_json),
        cmocka_unit_test(test_floats_read_back),
        cmocka_unit_test(test_doubles_read_back),
        cmocka_unit_test(test_float_spelling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
