/* Tests of base/queue. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "base/queue.h"

static struct queue *make(size_t depth) {
    struct queue *q;
    struct status st;
    assert_int_equal(queue_new(&q, depth, &st), 0);
    return q;
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void test_order_and_limit(void **state) {
    (void)state;
    int items[3];
    struct queue *q = make(2);
    assert_true(queue_try_put(q, &items[0]));
    assert_true(queue_try_put(q, &items[1]));
    assert_false(queue_try_put(q, &items[2]));
    assert_int_equal(queue_count(q), 2);
    assert_ptr_equal(queue_take(q), &items[0]);
    assert_true(queue_put(q, &items[2]));
    assert_ptr_equal(queue_take(q), &items[1]);
    assert_ptr_equal(queue_take(q), &items[2]);
    assert_null(queue_take_until(q, 0));
    queue_del(q);
    queue_del(NULL);
}

static void test_bad_depth(void **state) {
    (void)state;
    struct queue *q;
    struct status st;
    assert_int_equal(queue_new(&q, 0, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(queue_new(&q, SIZE_MAX / 2, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_null(q);
}

static void test_timeout(void **state) {
    (void)state;
    int item;
    struct queue *q = make(1);
    int64_t start = clock_now_ns();
    assert_null(queue_take_until(q, start + 30 * 1000000));
    double waited_ms = clock_elapsed_ms(start);
    assert_true(waited_ms >= 29.9 && waited_ms < 2000);
    assert_null(queue_take_until(q, -1));
    assert_null(queue_take_until(q, clock_now_ns() - 1));
    assert_true(queue_try_put(q, &item));
    assert_ptr_equal(queue_take_until(q, 0), &item); /* what is there is given, late or not */
    queue_del(q);
}

static void test_close_drains(void **state) {
    (void)state;
    int items[2];
    struct queue *q = make(4);
    assert_true(queue_put(q, &items[0]));
    assert_true(queue_put(q, &items[1]));
    queue_close(q);
    queue_close(q);
    assert_false(queue_put(q, &items[0]));
    assert_false(queue_try_put(q, &items[0]));
    assert_ptr_equal(queue_take(q), &items[0]);
    assert_ptr_equal(queue_take_until(q, 0), &items[1]);
    assert_null(queue_take(q));
    assert_null(queue_take_until(q, clock_now_ns() + 60 * INT64_C(1000000000))); /* at once */
    queue_del(q);
}

static void *put_one(void *q) {
    static int item;
    return queue_put(q, &item) ? &item : NULL;
}

static void *take_one(void *q) {
    return queue_take(q);
}

static void test_close_wakes_those_who_wait(void **state) {
    (void)state;
    int item;
    void *result;
    pthread_t thread;
    struct queue *full = make(1), *empty = make(1);
    assert_true(queue_put(full, &item));
    pthread_create(&thread, NULL, put_one, full);
    sleep_ms(20);
    queue_close(full);
    pthread_join(thread, &result);
    assert_null(result);
    pthread_create(&thread, NULL, take_one, empty);
    sleep_ms(20);
    queue_close(empty);
    pthread_join(thread, &result);
    assert_null(result);
    queue_del(full);
    queue_del(empty);
}

static void test_put_waits_for_room(void **state) {
    (void)state;
    int item;
    void *result;
    pthread_t thread;
    struct queue *q = make(1);
    assert_true(queue_put(q, &item));
    pthread_create(&thread, NULL, put_one, q);
    sleep_ms(20);
    assert_ptr_equal(queue_take(q), &item);
    pthread_join(thread, &result);
    assert_non_null(result);
    assert_ptr_equal(queue_take(q), result);
    queue_del(q);
}

/* Many threads: every item arrives exactly once, and those of one sender in the order sent. */
enum { SENDERS = 4, TAKERS = 3, EACH = 5000 };

struct item {
    int sender, number;
};

static struct item items[SENDERS][EACH];
static unsigned char arrived[SENDERS][EACH];
static struct queue *shared;

static void *send_all(void *arg) {
    struct item *mine = arg;
    for (int i = 0; i < EACH; i++)
        if (!queue_put(shared, &mine[i]))
            return NULL;
    return mine;
}

/* Takes until the queue is closed and empty; with `arg` by short deadlines. NULL when all came in order. */
static void *take_all(void *arg) {
    int last[SENDERS] = {-1, -1, -1, -1};
    for (;;) {
        struct item *it = arg ? queue_take_until(shared, clock_now_ns() + 20000) : queue_take(shared);
        if (!it && arg)
            it = queue_take(shared);
        if (!it)
            return NULL;
        if (it->number <= last[it->sender])
            return it;
        last[it->sender] = it->number;
        arrived[it->sender][it->number]++;
    }
}

static void test_many_threads(void **state) {
    (void)state;
    pthread_t senders[SENDERS], takers[TAKERS];
    void *result;
    shared = make(7);
    for (int s = 0; s < SENDERS; s++)
        for (int i = 0; i < EACH; i++)
            items[s][i] = (struct item){.sender = s, .number = i};
    for (int i = 0; i < TAKERS; i++)
        pthread_create(&takers[i], NULL, take_all, i == 0 ? &shared : NULL);
    for (int s = 0; s < SENDERS; s++)
        pthread_create(&senders[s], NULL, send_all, items[s]);
    for (int s = 0; s < SENDERS; s++) {
        pthread_join(senders[s], &result);
        assert_ptr_equal(result, items[s]);
    }
    queue_close(shared);
    for (int i = 0; i < TAKERS; i++) {
        pthread_join(takers[i], &result);
        assert_null(result);
    }
    for (int s = 0; s < SENDERS; s++)
        for (int i = 0; i < EACH; i++)
            assert_int_equal(arrived[s][i], 1);
    queue_del(shared);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_limit),
        cmocka_unit_test(test_bad_depth),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_close_drains),
        cmocka_unit_test(test_close_wakes_those_who_wait),
        cmocka_unit_test(test_put_waits_for_room),
        cmocka_unit_test(test_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
