/* Tests of client/stream_buffer: audio that is kept, and when it was given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "client/stream_buffer.h"

static unsigned char byte_at(int64_t p) {
    return (unsigned char)((uint64_t)p * UINT64_C(0x9E3779B97F4A7C15) >> 56);
}

static int add(struct stream_buffer *b, size_t bytes) {
    unsigned char *data = malloc(bytes ? bytes : 1);
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(b->end + (int64_t)i);
    const int result = stream_buffer_add(b, data, bytes);
    free(data);
    return result;
}

static void expect_kept(const struct stream_buffer *b) {
    const size_t bytes = (size_t)(b->end - b->begin);
    unsigned char *data = malloc(bytes ? bytes : 1);
    stream_buffer_read(b, b->begin, data, bytes);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(data[i], byte_at(b->begin + (int64_t)i));
    assert_int_equal(stream_buffer_count_free(b), b->bytes_max - bytes);
    free(data);
}

/* Against what it should hold, over any sequence of adds and drops. */
static void test_random(void **state) {
    (void)state;
    srand(1);
    for (int round = 0; round < 50; round++) {
        const size_t most = (size_t)1 << rand() % 18;
        struct stream_buffer b;
        stream_buffer_init(&b, (int64_t)rand() * 1000, most);
        for (int i = 0; i < 60; i++) {
            size_t bytes = (size_t)rand() % (most + 1);
            if (bytes > stream_buffer_count_free(&b))
                bytes = stream_buffer_count_free(&b);
            assert_int_equal(add(&b, bytes), 0);
            expect_kept(&b);
            assert_true(b.capacity <= most);
            if (rand() % 2)
                stream_buffer_drop(&b, b.begin + rand() % (b.end - b.begin + 1));
            stream_buffer_drop(&b, b.begin - 5); /* gone already */
            expect_kept(&b);
        }
        stream_buffer_free(&b);
        assert_int_equal(stream_buffer_count_free(&b), most);
        assert_null(b.ring);
    }
}

/* What is dropped is no longer in memory. */
static void test_overwritten(void **state) {
    (void)state;
    struct stream_buffer b;
    stream_buffer_init(&b, 0, 100000);
    add(&b, 30000);
    stream_buffer_drop(&b, 20000);
    for (size_t i = 0; i < 20000; i++)
        assert_int_equal(b.ring[i], 0);
    add(&b, 15000); /* around the end of the ring */
    expect_kept(&b);
    assert_int_equal(b.capacity, 32768);
    stream_buffer_drop(&b, b.end);
    for (size_t i = 0; i < b.capacity; i++)
        assert_int_equal(b.ring[i], 0);
    stream_buffer_free(&b);
}

static void test_times(void **state) {
    (void)state;
    struct stream_times *t = malloc(sizeof *t);
    stream_times_init(t, 1000, 320);
    assert_int_equal(stream_times_find(t, 1000), -1);
    assert_int_equal(stream_times_find(t, 1001), -1);
    stream_times_add(t, 1320, 1); /* a mark each */
    stream_times_add(t, 1640, 2);
    stream_times_add(t, 1700, 3); /* two become one */
    stream_times_add(t, 1960, 4);
    stream_times_add(t, 9000, 5); /* much at once */
    const struct {
        int64_t position, at_ns;
    } expected[] = {{1000, -1}, {1001, 1}, {1320, 1}, {1321, 2}, {1640, 2},
                    {1641, 4},  {1960, 4}, {1961, 5}, {9000, 5}, {9001, -1}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        assert_int_equal(stream_times_find(t, expected[i].position), expected[i].at_ns);
    stream_times_drop(t, 1500);
    assert_int_equal(stream_times_find(t, 1320), -1);
    assert_int_equal(stream_times_find(t, 1321), 2);
    stream_times_drop(t, 9000);
    assert_int_equal(stream_times_find(t, 9000), -1);
    stream_times_add(t, 9100, 6);
    assert_int_equal(stream_times_find(t, 9000), -1);
    assert_int_equal(stream_times_find(t, 9001), 6);
    free(t);
}

/* However much is given without a drop: the times of all of it are known, of the older parts less exactly,
 * and never too early. */
static void test_times_are_bounded(void **state) {
    (void)state;
    enum { MARKS = 100000 };
    struct stream_times *t = malloc(sizeof *t);
    stream_times_init(t, 0, 10);
    for (int i = 1; i <= MARKS; i++) {
        stream_times_add(t, 10 * i, i);
        if (i % 7 == 0)
            stream_times_drop(t, i); /* a tenth of it */
        assert_true(t->count <= STREAM_MARKS_MAX);
    }
    for (int i = MARKS / 10 + 2000; i <= MARKS; i++) {
        const int64_t at = stream_times_find(t, 10 * i);
        assert_true(at >= i && at - i <= 2 * (MARKS - i) + 2);
    }
    free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_overwritten),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_times_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
