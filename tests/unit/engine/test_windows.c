/* Where windows lie: every sample is covered, windows come as a stream could give them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/windows.h"

static void test_known_cases(void **state) {
    int64_t first, length;
    (void)state;
    assert_int_equal(windows_count(0, 10, 5), 0);
    assert_int_equal(windows_count(1, 10, 5), 1);
    assert_int_equal(windows_count(10, 10, 5), 1);
    assert_int_equal(windows_count(11, 10, 5), 2);
    assert_int_equal(windows_count(15, 10, 5), 2);
    assert_int_equal(windows_count(16, 10, 5), 3);
    assert_int_equal(windows_count(20, 10, 10), 2);
    assert_int_equal(windows_count(21, 10, 10), 3);
    windows_get(16, 10, 5, 2, &first, &length);
    assert_int_equal(first, 10);
    assert_int_equal(length, 6);
}

/* Every window but the last is full, steps by hop, and the last ends where the clip ends. */
static void test_properties(void **state) {
    (void)state;
    for (int64_t window = 1; window <= 12; window++)
        for (int64_t hop = 1; hop <= window; hop++)
            for (int64_t n = 1; n <= 60; n++) {
                int64_t count = windows_count(n, window, hop), first = 0, length = 0;
                for (int64_t k = 0; k < count; k++) {
                    windows_get(n, window, hop, k, &first, &length);
                    assert_int_equal(first, k * hop);
                    assert_true(length >= 1 && length <= window);
                    if (k + 1 < count)
                        assert_int_equal(length, window);
                }
                assert_int_equal(first + length, n);
            }
}

/* A longer clip keeps the full windows of a shorter one: what a stream has given stays true. */
static void test_prefix(void **state) {
    (void)state;
    for (int64_t n = 1; n < 80; n++) {
        int64_t first, length, first_longer, length_longer;
        for (int64_t k = 0; k < windows_count(n, 10, 4); k++) {
            windows_get(n, 10, 4, k, &first, &length);
            windows_get(n + 13, 10, 4, k, &first_longer, &length_longer);
            assert_int_equal(first, first_longer);
            if (length == 10)
                assert_int_equal(length_longer, 10);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_cases), cmocka_unit_test(test_properties),
                                       cmocka_unit_test(test_prefix)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
