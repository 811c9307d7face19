/* Tests of client/retry and client/timers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <grpc/status.h>

#include "client/retry.h"
#include "client/timers.h"

static const struct retry_policy policy = {
    .attempts_max = 4, .backoff_initial_ms = 100, .backoff_max_ms = 350};

static int64_t wait_ms(int attempts, struct retry_answer a, int64_t left_ms, uint64_t random) {
    return retry_wait_ms(&policy, attempts, &a, left_ms, random);
}

static void test_backoff(void **state) {
    (void)state;
    const int64_t most[] = {100, 200, 350};
    for (int attempts = 1; attempts <= 3; attempts++) {
        int64_t lowest = INT64_MAX, highest = -1;
        for (uint64_t random = 0; random < 1000; random++) {
            int64_t ms =
                wait_ms(attempts, (struct retry_answer){.code = GRPC_STATUS_UNAVAILABLE}, INT64_MAX, random);
            lowest = ms < lowest ? ms : lowest;
            highest = ms > highest ? ms : highest;
        }
        assert_int_equal(lowest, most[attempts - 1] / 2);
        assert_int_equal(highest, most[attempts - 1]);
    }
    assert_int_equal(wait_ms(4, (struct retry_answer){.code = GRPC_STATUS_UNAVAILABLE}, INT64_MAX, 0), -1);
    assert_int_equal(wait_ms(400, (struct retry_answer){.code = GRPC_STATUS_UNAVAILABLE}, INT64_MAX, 0), -1);
}

static void test_codes(void **state) {
    (void)state;
    for (int code = 0; code <= 20; code++) {
        int64_t ms = wait_ms(1, (struct retry_answer){.code = code}, INT64_MAX, 7);
        assert_int_equal(ms >= 0, code == GRPC_STATUS_UNAVAILABLE);
        ms = wait_ms(1, (struct retry_answer){.code = code, .has_pushback = true, .pushback_ms = 10},
                     INT64_MAX, 0);
        assert_int_equal(ms,
                         code == GRPC_STATUS_UNAVAILABLE || code == GRPC_STATUS_RESOURCE_EXHAUSTED ? 10 : -1);
    }
}

static void test_pushback(void **state) {
    (void)state;
    struct retry_answer a = {
        .code = GRPC_STATUS_RESOURCE_EXHAUSTED, .has_pushback = true, .pushback_ms = 1000};
    for (uint64_t random = 0; random < 500; random++) {
        int64_t ms = wait_ms(1, a, INT64_MAX, random);
        assert_in_range(ms, 1000, 1100); /* never earlier than asked */
    }
    a.pushback_ms = 0;
    assert_int_equal(wait_ms(1, a, INT64_MAX, 12345), 0);
    a.pushback_ms = -1;
    assert_int_equal(wait_ms(1, a, INT64_MAX, 0), -1);
    a.code = GRPC_STATUS_UNAVAILABLE;
    assert_int_equal(wait_ms(1, a, INT64_MAX, 0), -1);
    a.pushback_ms = RETRY_PUSHBACK_MS_MAX + 1;
    assert_int_equal(wait_ms(1, a, INT64_MAX, 0), -1);
}

static void test_deadline(void **state) {
    (void)state;
    struct retry_answer a = {
        .code = GRPC_STATUS_RESOURCE_EXHAUSTED, .has_pushback = true, .pushback_ms = 1000};
    assert_int_equal(wait_ms(1, a, 1000, 0), -1);
    assert_int_equal(wait_ms(1, a, 1001, 0), 1000);
    assert_int_equal(wait_ms(1, a, -5, 0), -1);
    a = (struct retry_answer){.code = GRPC_STATUS_UNAVAILABLE};
    assert_int_equal(wait_ms(1, a, 20, 0), -1);
    assert_int_equal(wait_ms(1, a, 0, 0), -1);
}

static void test_smallest_backoff(void **state) {
    (void)state;
    const struct retry_policy least = {.attempts_max = 9, .backoff_initial_ms = 1, .backoff_max_ms = 1};
    const struct retry_answer a = {.code = GRPC_STATUS_UNAVAILABLE};
    for (uint64_t random = 0; random < 10; random++)
        assert_in_range(retry_wait_ms(&least, 5, &a, INT64_MAX, random), 0, 1);
    const struct retry_policy turned = {.attempts_max = 9, .backoff_initial_ms = 100, .backoff_max_ms = 10};
    assert_in_range(retry_wait_ms(&turned, 1, &a, INT64_MAX, 5), 5, 10);
}

static int64_t parse(const char *text) {
    return retry_parse_pushback(text, strlen(text));
}

static void test_parse_pushback(void **state) {
    (void)state;
    assert_int_equal(parse("0"), 0);
    assert_int_equal(parse("250"), 250);
    assert_int_equal(parse("000000000000007"), 7);
    assert_int_equal(parse("999999999999999"), 999999999999999);
    const char *const wrong[] = {
        "", "-1", "-250", "+1", " 1", "1 ", "1.5", "abc", "0x10", "1e3", "9999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(parse(wrong[i]), -1);
    assert_int_equal(retry_parse_pushback("12345", 2), 12);
}

static void test_timers(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    static struct timer timers[COUNT];
    struct timers t = {0};
    srand(1);
    assert_null(timers_first(&t));
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < COUNT; i++) {
            timers[i] = (struct timer){.at_ns = rand() % 500};
            assert_int_equal(timers_add(&t, &timers[i]), 0);
        }
        int removed = 0;
        for (int i = 0; i < COUNT; i += 1 + rand() % 5, removed++) {
            timers_remove(&t, &timers[i]);
            assert_int_equal(timers[i].place, 0);
        }
        int64_t last = -1;
        int left = 0;
        for (struct timer *first; (first = timers_first(&t)); left++) {
            assert_true(first->at_ns >= last);
            last = first->at_ns;
            timers_remove(&t, first);
        }
        assert_int_equal(left + removed, COUNT);
        for (int i = 0; i < COUNT; i++)
            assert_int_equal(timers[i].place, 0);
    }
    timers_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backoff),          cmocka_unit_test(test_codes),
        cmocka_unit_test(test_pushback),         cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_smallest_backoff), cmocka_unit_test(test_parse_pushback),
        cmocka_unit_test(test_timers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
