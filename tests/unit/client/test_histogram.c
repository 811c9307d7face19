/* Tests of cli/histogram, which the load generator keeps its times in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cli/histogram.c" /* the program is no library */

static struct histogram h, other;

static int reset(void **state) {
    (void)state;
    memset(&h, 0, sizeof h);
    memset(&other, 0, sizeof other);
    return 0;
}

static void test_places(void **state) {
    (void)state;
    int last = -1;
    for (int64_t v = 0; v < 100000; v++) {
        int place = place_of(v);
        assert_true(place == last || place == last + 1);
        assert_true(highest_of(place) >= v);
        assert_true((double)(highest_of(place) - v) <= (double)v / 128);
        last = place;
    }
    for (int bit = 0; bit < 63; bit++) {
        int64_t v = (int64_t)1 << bit;
        assert_in_range(place_of(v), 0, HISTOGRAM_PLACES - 1);
        assert_int_equal(highest_of(place_of(v) - (v > 0)), v - 1);
    }
    assert_int_equal(place_of(INT64_MAX), HISTOGRAM_PLACES - 1);
    assert_int_equal(highest_of(HISTOGRAM_PLACES - 1), INT64_MAX);
}

static void test_quantiles(void **state) {
    (void)state;
    assert_int_equal(histogram_quantile(&h, 0.5), 0);
    histogram_add(&h, 12345678);
    assert_int_equal(histogram_quantile(&h, 0), 12345678);
    assert_int_equal(histogram_quantile(&h, 0.5), 12345678);
    assert_int_equal(histogram_quantile(&h, 1), 12345678);
    reset(NULL);
    for (int64_t v = 1; v <= 1000; v++)
        histogram_add(&h, v * 1000000);
    const double shares[] = {0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        double exact = shares[i] * 1e9, got = (double)histogram_quantile(&h, shares[i]);
        assert_true(got >= exact * 0.999 && got <= exact * 1.009);
    }
    assert_int_equal(h.min, 1000000);
    assert_int_equal(h.max, 1000000000);
    assert_true(h.sum == 500500e6);
    histogram_add(&h, -5);
    assert_int_equal(h.min, 0);
}

static void test_merge(void **state) {
    (void)state;
    static struct histogram all;
    memset(&all, 0, sizeof all);
    srand(3);
    for (int i = 0; i < 10000; i++) {
        int64_t v = (int64_t)rand() * rand();
        histogram_add(i % 3 ? &h : &other, v);
        histogram_add(&all, v);
    }
    histogram_merge(&h, &other);
    all.sum = h.sum; /* sums of doubles depend on their order */
    assert_memory_equal(&h, &all, sizeof h);
    static const struct histogram empty;
    histogram_merge(&h, &empty);
    assert_memory_equal(&h, &all, sizeof h);
    reset(NULL);
    histogram_merge(&h, &all);
    assert_int_equal(h.min, all.min);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_places, reset),
        cmocka_unit_test_setup(test_quantiles, reset),
        cmocka_unit_test_setup(test_merge, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
