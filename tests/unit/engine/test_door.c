/* Who is let in: depth, seconds, the empty room, correction after decoding, waiting, closing; the rate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "engine/door.h"
#include "engine/engine.h"

#define S  INT64_C(1000000) /* microseconds */
#define NS INT64_C(1000000000)

/* Time that did not have to pass. */
int64_t __real_clock_now_ns(void);

static int64_t skipped_ns;

int64_t __wrap_clock_now_ns(void) {
    return __real_clock_now_ns() + skipped_ns;
}

static struct door *door;
static struct status st;

static int setup(void **state) {
    (void)state;
    memset(&st, 0, sizeof st);
    skipped_ns = 0;
    return door_new(&door, 3, 100, &st);
}

static int teardown(void **state) {
    (void)state;
    door_del(door);
    return 0;
}

static void enter(int64_t audio_us) {
    if (door_enter(door, audio_us, false, &st))
        fail_msg("%s", st.message);
}

static void refuse(int result, enum status_code code, const char *message) {
    assert_int_equal(result, -1);
    assert_int_equal(st.code, code);
    assert_string_equal(st.message, message);
}

static void test_depth(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(door_check(door, &st), 0);
        enter(1 * S);
    }
    refuse(door_check(door, &st), STATUS_RESOURCE_EXHAUSTED, "queue-depth: 3 requests are waiting");
    refuse(door_enter(door, 0, false, &st), STATUS_RESOURCE_EXHAUSTED, "queue-depth: 3 requests are waiting");
    door_leave(door, 1, 1 * S, false);
    enter(1 * S);
}

static void test_seconds(void **state) {
    (void)state;
    enter(60 * S);
    refuse(door_enter(door, 41 * S, false, &st), STATUS_RESOURCE_EXHAUSTED,
           "max-queued-seconds: 60.0 s of audio are waiting and this would add 41.0 s, the limit is 100");
    enter(40 * S);
    refuse(door_check(door, &st), STATUS_RESOURCE_EXHAUSTED,
           "max-queued-seconds: 100.0 s of audio are waiting, the limit is 100");
    /* windows leave one by one */
    door_leave(door, 0, 30 * S, false);
    assert_int_equal(door_check(door, &st), 0);
    enter(30 * S);
}

/* However long it is: else it could never be served. */
static void test_the_first_is_let_in(void **state) {
    (void)state;
    enter(5000 * S);
    refuse(door_enter(door, 0, false, &st), STATUS_RESOURCE_EXHAUSTED,
           "max-queued-seconds: 5000.0 s of audio are waiting, the limit is 100");
    door_leave(door, 1, 5000 * S, false);
    enter(5000 * S);
}

static void test_correction(void **state) {
    struct engine_load load;
    (void)state;
    enter(10 * S);
    enter(10 * S);
    enter(10 * S);
    /* the first that is ready may be of any length */
    assert_int_equal(door_correct(door, 10 * S, 300 * S, false, &st), 0);
    door_measure(door, &load);
    assert_true(load.queued_s == 320 && load.requests == 3);
    /* what grew no more */
    refuse(door_correct(door, 10 * S, 11 * S, false, &st), STATUS_RESOURCE_EXHAUSTED,
           "max-queued-seconds: 300.0 s of audio are waiting, and this turned out to be 11.0 s long; the "
           "limit is 100");
    door_leave(door, 1, 10 * S, false);
    /* what did not grow was let in with its length */
    assert_int_equal(door_correct(door, 10 * S, 10 * S, false, &st), 0);
    door_leave(door, 2, 310 * S, true);
    door_measure(door, &load);
    assert_true(load.queued_s == 0 && load.requests == 0);
    enter(10 * S);
    enter(10 * S);
    assert_int_equal(door_correct(door, 10 * S, 50 * S, false, &st), 0);
    assert_int_equal(door_correct(door, 10 * S, 50 * S, false, &st), 0);
}

static void *leave_later(void *arg) {
    const struct timespec t = {.tv_nsec = 30000000};
    const int64_t *audio_us = arg;
    nanosleep(&t, NULL);
    door_leave(door, 1, *audio_us, true);
    return NULL;
}

static void test_waits_for_room(void **state) {
    int64_t audio_us = 90 * S;
    pthread_t thread;
    (void)state;
    enter(90 * S);
    assert_int_equal(door_correct(door, 90 * S, 90 * S, false, &st), 0);
    assert_int_equal(pthread_create(&thread, NULL, leave_later, &audio_us), 0);
    assert_int_equal(door_enter(door, 20 * S, true, &st), 0);
    pthread_join(thread, NULL);
    enter(50 * S);
    assert_int_equal(door_correct(door, 50 * S, 90 * S, false, &st), 0);
    assert_int_equal(pthread_create(&thread, NULL, leave_later, &audio_us), 0);
    assert_int_equal(door_correct(door, 20 * S, 30 * S, true, &st), 0);
    pthread_join(thread, NULL);
}

static void *close_later(void *arg) {
    const struct timespec t = {.tv_nsec = 30000000};
    nanosleep(&t, NULL);
    door_close(door);
    return arg;
}

static void test_closes(void **state) {
    pthread_t thread;
    (void)state;
    enter(100 * S);
    assert_int_equal(pthread_create(&thread, NULL, close_later, NULL), 0);
    refuse(door_enter(door, 1 * S, true, &st), STATUS_UNAVAILABLE, "the engine is stopping");
    refuse(door_check(door, &st), STATUS_UNAVAILABLE, "the engine is stopping");
    pthread_join(thread, NULL);
}

/* One batch that takes so long. */
static void run_batch(int64_t audio_us, int64_t ns) {
    door_begin_batch(door, audio_us);
    skipped_ns += ns;
    door_end_batch(door, audio_us, true);
}

static void expect_rate(double rate) {
    struct engine_load load;
    door_measure(door, &load);
    if (fabs(load.rate - rate) > 1e-2 * rate) /* real time passes too */
        fail_msg("the rate is %g", load.rate);
}

/* Audio by busy time; what is old counts less and less. */
static void test_rate(void **state) {
    struct engine_load load;
    (void)state;
    door_measure(door, &load);
    assert_true(load.rate == 0);
    door_begin_batch(door, 30 * S);
    door_measure(door, &load);
    assert_true(load.running_s == 30);
    skipped_ns += 3 * NS;
    door_end_batch(door, 30 * S, true);
    door_measure(door, &load);
    assert_true(load.running_s == 0);
    expect_rate(10);
    skipped_ns += 1000 * NS; /* idle time is not counted */
    for (int i = 0; i < 20; i++)
        run_batch(50 * S, NS);
    expect_rate(50);
    door_measure(door, &load);
    assert_int_equal(load.requests_max, 3);
    assert_true(load.queued_s_max == 100);
}

/* Two workers' batches overlap: the time in which any runs counts once, so that the rate is that of both
 * together, on one device or on two. */
static void test_rate_of_several(void **state) {
    struct engine_load load;
    (void)state;
    door_begin_batch(door, 20 * S);
    for (int i = 0; i < 50; i++) {
        skipped_ns += NS / 2;
        door_begin_batch(door, 20 * S);
        door_measure(door, &load);
        assert_true(load.running_s == 40);
        skipped_ns += NS / 2;
        door_end_batch(door, 20 * S, true);
    }
    expect_rate(20); /* one ends every second */
    skipped_ns += NS / 2;
    door_end_batch(door, 20 * S, true);
    door_measure(door, &load);
    assert_true(load.running_s == 0);
    /* one that failed says nothing of the rate, and its time is nobody's */
    const double rate = load.rate;
    door_begin_batch(door, 20 * S);
    skipped_ns += NS;
    door_end_batch(door, 20 * S, false);
    expect_rate(rate);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_depth),      WITH(test_seconds),        WITH(test_the_first_is_let_in),
        WITH(test_correction), WITH(test_waits_for_room), WITH(test_closes),
        WITH(test_rate),       WITH(test_rate_of_several)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
