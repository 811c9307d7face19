/* Tests of base/status. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/status.h"

static void test_set(void **state) {
    (void)state;
    struct status st = {0};
    assert_int_equal(status_set(&st, STATUS_NOT_FOUND, "%s: no tensor %d", "a.bin", 7), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    assert_string_equal(st.message, "a.bin: no tensor 7");
    assert_int_equal(status_set(NULL, STATUS_INTERNAL, "nobody reads this"), -1);
}

static void test_set_from_its_own_message(void **state) {
    (void)state;
    struct status st = {0};
    status_set(&st, STATUS_INTERNAL, "inner");
    status_set(&st, STATUS_UNAVAILABLE, "outer (%s)", st.message);
    assert_string_equal(st.message, "outer (inner)");
}

static void test_prefix(void **state) {
    (void)state;
    struct status st = {0};
    status_set(&st, STATUS_INVALID_ARGUMENT, "not a number");
    assert_int_equal(status_prefix(&st, "%s", "config.json"), -1);
    assert_string_equal(st.message, "config.json: not a number");
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(status_prefix(NULL, "x"), -1);
}

static void test_long_messages_are_cut(void **state) {
    (void)state;
    struct status st;
    char text[2 * STATUS_MESSAGE_BYTES_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    status_set(&st, STATUS_INTERNAL, "%s", text);
    assert_int_equal(strlen(st.message), STATUS_MESSAGE_BYTES_MAX - 1);
    status_prefix(&st, "prefix");
    assert_int_equal(strlen(st.message), STATUS_MESSAGE_BYTES_MAX - 1);
    assert_memory_equal(st.message, "prefix: xxx", 11);
    status_prefix(&st, "%s", text);
    assert_int_equal(strlen(st.message), STATUS_MESSAGE_BYTES_MAX - 1);
}

static void test_no_memory_and_clear(void **state) {
    (void)state;
    struct status st;
    assert_int_equal(status_set_no_memory(&st, 123, "weights"), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(st.message, "out of memory: 123 bytes for weights");
    status_clear(&st);
    assert_int_equal(st.code, STATUS_OK);
    assert_string_equal(st.message, "");
    status_clear(NULL);
}

static void test_names(void **state) {
    (void)state;
    assert_string_equal(status_code_name(STATUS_OK), "OK");
    assert_string_equal(status_code_name(STATUS_RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
    assert_string_equal(status_code_name(STATUS_PERMISSION_DENIED), "PERMISSION_DENIED");
    assert_string_equal(status_code_name(STATUS_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(status_code_name((enum status_code)99), "UNKNOWN");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_set_from_its_own_message),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_no_memory_and_clear),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
