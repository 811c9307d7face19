/* Tests of base/arena and base/check. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/arena.h"
#include "base/check.h"

struct parts {
    char *text;
    double *numbers;
    int32_t *tail;
};

static void take_parts(struct arena *a, struct parts *p) {
    p->text = arena_alloc(a, 3, 1);
    p->numbers = arena_alloc(a, 100, sizeof *p->numbers);
    p->tail = arena_alloc(a, 1, sizeof *p->tail);
}

static void test_count_then_take(void **state) {
    (void)state;
    struct arena a;
    struct parts p;
    struct status st;
    arena_init_counting(&a);
    take_parts(&a, &p);
    assert_false(a.failed);
    assert_null(p.text);
    size_t bytes = a.used;
    assert_int_equal(arena_init(&a, bytes, "parts", &st), 0);
    take_parts(&a, &p);
    assert_false(a.failed);
    assert_int_equal(a.used, bytes);
    assert_int_equal((uintptr_t)p.text % ARENA_ALIGN_BYTES, 0);
    assert_int_equal((uintptr_t)p.numbers % ARENA_ALIGN_BYTES, 0);
    assert_true((char *)p.numbers >= p.text + 3);
    assert_true((char *)p.tail >= (char *)(p.numbers + 100));
    memset(p.text, 1, 3);
    memset(p.numbers, 2, 800);
    *p.tail = 3;
    assert_int_equal(p.text[2], 1);
    assert_null(arena_alloc(&a, 1, 1)); /* it is full now */
    assert_true(a.failed);
    arena_free(&a);
    arena_free(&a); /* all zero */
}

static void test_nothing_at_all(void **state) {
    (void)state;
    struct arena a;
    struct status st;
    assert_int_equal(arena_init(&a, 0, "nothing", &st), 0);
    assert_null(arena_alloc(&a, 1, 1));
    assert_true(a.failed);
    arena_free(&a);
}

static void test_overflow_is_a_failure(void **state) {
    (void)state;
    struct arena a;
    arena_init_counting(&a);
    assert_null(arena_alloc(&a, SIZE_MAX / 2, 3));
    assert_true(a.failed);
    arena_init_counting(&a);
    arena_alloc(&a, SIZE_MAX - 63, 1); /* fits by itself once rounded, or not: the sum must not wrap */
    arena_alloc(&a, SIZE_MAX - 63, 1);
    assert_true(a.failed);
}

static void test_no_memory(void **state) {
    (void)state;
    struct arena a;
    struct status st;
    assert_int_equal(arena_init(&a, SIZE_MAX - 5, "the sky", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "the sky"));
    arena_free(&a);
}

static void test_checked_arithmetic(void **state) {
    (void)state;
    uint64_t r = 7;
    assert_false(check_add_u64(UINT64_MAX, 1, &r));
    assert_false(check_mul_u64(UINT64_MAX / 2 + 1, 2, &r));
    assert_int_equal(r, 7); /* untouched by failures */
    assert_true(check_add_u64(UINT64_MAX - 1, 1, &r));
    assert_true(r == UINT64_MAX);
    assert_true(check_mul_u64(UINT64_MAX / 2, 2, &r));
    assert_true(r == UINT64_MAX - 1);
    size_t s = 7;
    assert_false(check_add_size(SIZE_MAX, SIZE_MAX, &s));
    assert_false(check_mul_size(SIZE_MAX, SIZE_MAX, &s));
    assert_int_equal(s, 7);
    assert_true(check_add_size(3, 4, &s) && s == 7);
    assert_true(check_mul_size(3, 4, &s) && s == 12);
}

static void test_ranges(void **state) {
    (void)state;
    assert_true(check_range_u64(0, 10, 10));
    assert_true(check_range_u64(10, 0, 10));
    assert_false(check_range_u64(11, 0, 10));
    assert_false(check_range_u64(1, 10, 10));
    assert_false(check_range_u64(UINT64_MAX, 2, 10));
    assert_false(check_range_u64(2, UINT64_MAX, 10));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count_then_take),       cmocka_unit_test(test_nothing_at_all),
        cmocka_unit_test(test_overflow_is_a_failure), cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_checked_arithmetic),    cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
