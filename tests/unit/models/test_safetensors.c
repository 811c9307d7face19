/* Tests of models/safetensors: what a header may say, and all that it must not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "build.h"

static const float values[] = {1, 2, 3, 4, 5, 6};

static void check_refused(const char *header, size_t data_bytes, const char *keyword) {
    struct bytes b = {0};
    struct memory m;
    struct status st = {0};
    build_safetensors(&b, header, values, data_bytes);
    if (memory_open(&m, safetensors_read, b.data, b.count, &st) == 0) {
        memory_free(&m);
        fail_msg("accepted: %s", header);
    }
    bytes_free(&b);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
}

static void test_read(void **state) {
    (void)state;
    struct bytes b = {0};
    struct memory m;
    struct status st = {0};
    build_safetensors(&b,
                      "{\"__metadata__\":{\"format\":\"pt\"},"
                      "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[4,20],\"extra\":null},"
                      "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                      "\"none\":{\"dtype\":\"I64\",\"shape\":[0,3],\"data_offsets\":[20,20]}}   ",
                      values, 20);
    assert_int_equal(memory_open(&m, safetensors_read, b.data, b.count, &st), 0);
    assert_int_equal(m.checkpoint.tensors_count, 3);
    const struct tensor *t = checkpoint_find(&m.checkpoint, "b");
    assert_non_null(t);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->elements, 4);
    assert_int_equal(t->dtype, TENSOR_F32);
    float read[4];
    assert_true(tensor_read_f32(t, read));
    assert_memory_equal(read, values + 1, sizeof read);
    t = checkpoint_find(&m.checkpoint, "none");
    assert_non_null(t);
    assert_int_equal(t->dtype, TENSOR_OTHER);
    assert_string_equal(t->dtype_name, "I64");
    assert_int_equal(t->elements, 0);
    assert_null(checkpoint_find(&m.checkpoint, "__metadata__"));
    memory_free(&m);
    bytes_free(&b);
}

#define ENTRY(name, dtype, shape, offsets)                                                                   \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"

static void test_entries_refused(void **state) {
    (void)state;
    check_refused("{" ENTRY("a", "F32", "1", "0,8") "}", 8, "8 bytes of data, shape and dtype need 4");
    check_refused("{" ENTRY("a", "F32", "2", "0,8") "}", 4, "beyond the end of the file");
    check_refused("{" ENTRY("a", "F32", "1", "8,4") "}", 8, "end before they begin");
    check_refused("{" ENTRY("a", "F32", "-1", "0,4") "}", 4, "shape");
    check_refused("{" ENTRY("a", "F32", "1.5", "0,6") "}", 6, "whole number");
    check_refused("{" ENTRY("a", "F32", "\"1\"", "0,4") "}", 4, "whole number");
    check_refused("{" ENTRY("a", "F32", "1e300", "0,4") "}", 4, "whole number");
    check_refused("{" ENTRY("a", "F32", "9007199254740993", "0,4") "}", 4, "2^53");
    check_refused("{" ENTRY("a", "F32", "1", "0,9007199254740993") "}", 4, "2^53");
    check_refused("{" ENTRY("a", "F32", "1", "0,4,8") "}", 8, "two numbers");
    check_refused("{" ENTRY("a", "F32", "4294967296,4294967296", "0,4") "}", 4, "overflows");
    check_refused("{" ENTRY("a", "F32", "1,1,1,1,1,1,1,1,1", "0,4") "}", 4, "dimensions");
    check_refused("{" ENTRY("a", "F33", "1", "0,4") "}", 4, "unknown dtype F33");
    check_refused("{" ENTRY("", "F32", "1", "0,4") "}", 4, "without a name");
    check_refused("{" ENTRY("a\\u0007", "F32", "1", "0,4") "}", 4, "control character");
    check_refused("{" ENTRY("a\\u0000b", "F32", "1", "0,4") "}", 4, "zero byte");
    check_refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing");
    check_refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape is missing");
    check_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets is missing");
    check_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
                  "twice");
    check_refused("{\"a\":7}", 0, "not an object");
    char longest[CHECKPOINT_NAME_BYTES_MAX + 96];
    memset(longest, 'n', sizeof longest);
    memcpy(longest, "{\"", 2);
    strcpy(longest + 2 + CHECKPOINT_NAME_BYTES_MAX,
           "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    check_refused(longest, 4, "the limit is 255");
}

static void test_layout_refused(void **state) {
    (void)state;
    check_refused("{" ENTRY("a", "F32", "1", "0,4") "," ENTRY("b", "F32", "1", "0,4") "}", 4, "overlap");
    check_refused("{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "F32", "1", "4,8") "}", 8, "overlap");
    check_refused("{" ENTRY("a", "F32", "1", "0,4") "," ENTRY("b", "F32", "1", "8,12") "}", 12, "gap");
    check_refused("{" ENTRY("a", "F32", "1", "4,8") "}", 8, "gap");
    check_refused("{" ENTRY("a", "F32", "1", "0,4") "}", 8, "belong to none");
    check_refused("{" ENTRY("a", "F32", "1", "0,4") "," ENTRY("a", "F32", "1", "4,8") "}", 8, "duplicate");
    check_refused("[]", 0, "not a JSON object");
    check_refused("{", 0, "not valid JSON");
    check_refused("", 0, "not valid JSON");
}

static void check_bytes_refused(const void *data, size_t bytes, const char *keyword) {
    struct memory m;
    struct status st = {0};
    assert_int_equal(memory_open(&m, safetensors_read, data, bytes, &st), -1);
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
}

static void test_header_length(void **state) {
    (void)state;
    check_bytes_refused("", 0, "too short");
    check_bytes_refused("\2\0\0\0\0\0\0", 7, "too short");
    check_bytes_refused("\3\0\0\0\0\0\0\0{}", 10, "beyond the end");
    check_bytes_refused("\377\377\377\377\377\377\377\377{}", 10, "limit");
    check_bytes_refused("\2\0\0\0\0\0\0\200{}", 10, "limit");
}

/* A header that is small in the file and huge as a tree. */
static void test_header_bomb(void **state) {
    (void)state;
    size_t n = 2 * (size_t)CHECKPOINT_JSON_VALUES_MAX + 16;
    char *header = malloc(n + 8);
    assert_non_null(header);
    strcpy(header, "{\"a\":[0");
    size_t at = strlen(header);
    while (at < n) {
        header[at++] = ',';
        header[at++] = '0';
    }
    strcpy(header + at, "]}");
    check_refused(header, 0, "JSON values");
    free(header);
}

static void test_too_many_tensors(void **state) {
    (void)state;
    struct bytes header = {0}, b = {0};
    struct memory m;
    struct status st = {0};
    for (int i = 0; i <= CHECKPOINT_TENSORS_MAX; i++) {
        char entry[128];
        snprintf(entry, sizeof entry, "%c\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                 i ? ',' : '{', i);
        bytes_put_text(&header, entry);
    }
    bytes_put(&header, "}", 2);
    build_safetensors(&b, (const char *)header.data, NULL, 0);
    assert_int_equal(memory_open(&m, safetensors_read, b.data, b.count, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "16384"));
    bytes_free(&header);
    bytes_free(&b);
}

/* Cut anywhere, the file is refused. */
static void test_every_truncation(void **state) {
    (void)state;
    struct bytes b = {0};
    struct memory m;
    build_safetensors(&b, "{" ENTRY("a", "F32", "1", "0,4") "," ENTRY("b", "F16", "2", "4,8") "}", values, 8);
    for (size_t n = 0; n < b.count; n++) {
        struct status st = {0};
        assert_int_equal(memory_open(&m, safetensors_read, b.data, n, &st), -1);
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    }
    bytes_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_entries_refused),
        cmocka_unit_test(test_layout_refused),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_header_bomb),
        cmocka_unit_test(test_too_many_tensors),
        cmocka_unit_test(test_every_truncation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
