/* Tests of base/json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

static cJSON *parse(const char *text) {
    cJSON *root;
    struct status st;
    assert_int_equal(json_parse(&root, text, strlen(text), "test.json", &st), 0);
    return root;
}

static void check_refused(const char *text, size_t bytes, const char *keyword) {
    /* Its own block without a zero behind it, so that a sanitizer sees every byte read too far. */
    char *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    memcpy(copy, text, bytes);
    cJSON *root;
    struct status st = {0};
    assert_int_equal(json_parse(&root, copy, bytes, "test.json", &st), -1);
    assert_null(root);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_memory_equal(st.message, "test.json: ", 11);
    assert_non_null(strstr(st.message, keyword));
    free(copy);
}

static void test_white_space_around(void **state) {
    (void)state;
    cJSON_Delete(parse(" \r\n\t{\"a\": 1} \n\t "));
    cJSON_Delete(parse("null"));
}

static void test_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",          " ",   "{",      "}",    "{\"a\":}", "[1,]",
                                      "{\"a\" 1}", "tru", "\"open", "\"\\", "\"\\u12",  "{\"a\":1,}",
                                      "[1 2]",     "nul", "\xff",   "'a'",  "{a:1}",    "\"\\ud800\"",
                                      "+1",        "[",   "-"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_refused(bad[i], strlen(bad[i]), "not valid JSON");
    check_refused("{} {}", 5, "more text");
    check_refused("{}\0", 3, "more text");
    check_refused("{\"a\": 1}x", 9, "at byte 8");
}

static void test_depth_limit(void **state) {
    (void)state;
    char deep[2 * JSON_DEPTH_MAX + 2];
    memset(deep, '[', JSON_DEPTH_MAX);
    memset(deep + JSON_DEPTH_MAX, ']', JSON_DEPTH_MAX);
    deep[2 * JSON_DEPTH_MAX] = 0;
    cJSON_Delete(parse(deep));
    memset(deep, '[', JSON_DEPTH_MAX + 1);
    memset(deep + JSON_DEPTH_MAX + 1, ']', JSON_DEPTH_MAX + 1);
    check_refused(deep, sizeof deep, "deeper than the limit of 64");
    /* Brackets in strings do not count, escaped quotes do not end a string. */
    cJSON *root =
        parse("[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"{{{{\"]");
    cJSON_Delete(root);
}

static void test_deep_bomb(void **state) {
    (void)state;
    enum { BYTES = 10 * 1000 * 1000 };
    char *bomb = malloc(BYTES);
    assert_non_null(bomb);
    memset(bomb, '[', BYTES);
    check_refused(bomb, BYTES, "deeper");
    for (int i = 0; i + 5 <= BYTES; i += 5)
        memcpy(bomb + i, "{\"a\":", 5);
    check_refused(bomb, BYTES, "deeper");
    free(bomb);
}

static void test_size_limit(void **state) {
    (void)state;
    cJSON *root;
    struct status st;
    assert_int_equal(json_parse(&root, "{}", (size_t)JSON_BYTES_MAX + 1, "big.json", &st),
                     -1); /* not even read */
    assert_non_null(strstr(st.message, "100000000"));
}

static void test_integers(void **state) {
    (void)state;
    struct status st;
    int64_t v = 42;
    cJSON *o = parse("{\"a\": 7, \"b\": 7.5, \"c\": \"7\", \"d\": null, \"e\": 1e300, \"f\": -3, \"g\": 7.0, "
                     "\"h\": true}");
    assert_int_equal(json_get_int(o, "absent", 0, 9, &v, "x", &st), 0);
    assert_int_equal(json_get_int(o, "d", 0, 9, &v, "x", &st), 0);
    assert_int_equal(v, 42);
    for (const char *key = "bceh"; *key; key++) {
        assert_int_equal(json_get_int(o, (char[]){*key, 0}, 0, 9, &v, "x", &st), -1);
        assert_non_null(strstr(st.message, "whole number"));
    }
    assert_int_equal(json_get_int(o, "f", 0, 9, &v, "x.json", &st), -1);
    assert_string_equal(st.message, "x.json: f is -3, which is not in 0..9");
    assert_int_equal(v, 42);
    assert_int_equal(json_get_int(o, "a", 7, 7, &v, "x", &st), 0);
    assert_int_equal(v, 7);
    assert_int_equal(json_get_int(o, "f", -3, 9, &v, "x", &st), 0);
    assert_int_equal(v, -3);
    assert_int_equal(json_get_int(o, "g", 0, 9, &v, "x", &st), 0);
    assert_int_equal(v, 7);
    cJSON_Delete(o);
}

static void test_other_types(void **state) {
    (void)state;
    struct status st;
    double d = 0.5;
    bool b = true;
    const char *s = "kept";
    cJSON *o = parse(
        "{\"num\": 2.5, \"inf\": 1e999, \"yes\": true, \"no\": false, \"text\": \"t\", \"none\": null}");
    assert_int_equal(json_get_double(o, "none", 0, 9, &d, "x", &st), 0);
    assert_int_equal(json_get_double(o, "inf", -1e308, 1e308, &d, "x", &st), -1);
    assert_int_equal(json_get_double(o, "text", 0, 9, &d, "x", &st), -1);
    assert_int_equal(json_get_double(o, "num", 0, 2, &d, "x", &st), -1);
    assert_true(d == 0.5);
    assert_int_equal(json_get_double(o, "num", 0, 9, &d, "x", &st), 0);
    assert_true(d == 2.5);
    assert_int_equal(json_get_bool(o, "num", &b, "x", &st), -1);
    assert_int_equal(json_get_bool(o, "none", &b, "x", &st), 0);
    assert_true(b);
    assert_int_equal(json_get_bool(o, "no", &b, "x", &st), 0);
    assert_false(b);
    assert_int_equal(json_get_string(o, "yes", &s, "x", &st), -1);
    assert_int_equal(json_get_string(o, "none", &s, "x", &st), 0);
    assert_string_equal(s, "kept");
    assert_int_equal(json_get_string(o, "text", &s, "x", &st), 0);
    assert_string_equal(s, "t");
    cJSON_Delete(o);
}

/* Every prefix and many one-byte changes of a real header: an answer or a refusal, never a read outside. */
static void test_damaged_text(void **state) {
    (void)state;
    static const char text[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\\u00fc\\n\":{\"dtype\":\"F32\",\"shape\":[2,3],"
        "\"data_offsets\":[0,24]},\"b\":[1e-5,-0.25,true,false,null]}";
    for (size_t n = 0; n < sizeof text - 1; n++)
        check_refused(text, n, "test.json");
    for (size_t at = 0; at < sizeof text - 1; at++) {
        for (int byte = 0; byte < 256; byte++) {
            char *copy = malloc(sizeof text - 1);
            assert_non_null(copy);
            memcpy(copy, text, sizeof text - 1);
            copy[at] = (char)byte;
            cJSON *root;
            struct status st;
            if (json_parse(&root, copy, sizeof text - 1, "x", &st) == 0)
                cJSON_Delete(root);
            free(copy);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_white_space_around), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_depth_limit),        cmocka_unit_test(test_deep_bomb),
        cmocka_unit_test(test_size_limit),         cmocka_unit_test(test_integers),
        cmocka_unit_test(test_other_types),        cmocka_unit_test(test_damaged_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
