/* The lists in front of the threads that prepare: order, limits, taking out of the middle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/clock.h"
#include "engine/batcher.h"
#include "engine/waiting.h"

static struct waiting *list;
static struct batcher_lane lane;
static struct engine_request requests[8];

static int setup(void **state) {
    struct status st;
    (void)state;
    memset(requests, 0, sizeof requests);
    return waiting_new(&list, 4, 1000, &st);
}

static int teardown(void **state) {
    (void)state;
    waiting_del(list);
    return 0;
}

static enum waiting_result put(int i, enum engine_class order, int64_t audio_us) {
    bool gone = false;
    requests[i].options.order = order;
    requests[i].lane = &lane;
    requests[i].door_us = audio_us;
    enum waiting_result result = waiting_put(list, &requests[i], &gone);
    assert_int_equal(gone, atomic_load(&requests[i].cancelled));
    return result;
}

static void expect(int i) {
    assert_ptr_equal(waiting_take(list), &requests[i]);
}

static void test_order(void **state) {
    (void)state;
    put(0, ENGINE_BULK, 1);
    put(1, ENGINE_UNARY, 1);
    put(2, ENGINE_BULK, 1);
    put(3, ENGINE_LIVE, 1);
    expect(3);
    expect(1);
    put(4, ENGINE_UNARY, 1);
    expect(4);
    /* what has waited long overtakes fresh live work */
    requests[0].waits_since_ns -= (int64_t)ENGINE_AGING_MS * 3 * 1000000;
    put(5, ENGINE_LIVE, 1);
    expect(0);
    expect(5);
    expect(2);
}

static void test_limits(void **state) {
    (void)state;
    assert_int_equal(put(0, ENGINE_UNARY, 5000), WAITING_OK); /* alone, of any length */
    assert_int_equal(put(1, ENGINE_UNARY, 1), WAITING_FULL);
    requests[2].patient = true;
    assert_int_equal(put(2, ENGINE_UNARY, 1), WAITING_OK);
    expect(0);
    expect(2);
    for (int i = 0; i < 4; i++)
        assert_int_equal(put(i, ENGINE_UNARY, 250), WAITING_OK);
    assert_int_equal(put(4, ENGINE_UNARY, 0), WAITING_FULL);
    expect(0);
    assert_int_equal(put(4, ENGINE_UNARY, 251), WAITING_FULL);
    assert_int_equal(put(4, ENGINE_UNARY, 250), WAITING_OK);
    waiting_close(list);
    assert_int_equal(put(5, ENGINE_UNARY, 0), WAITING_CLOSED);
    for (int i = 1; i < 5; i++)
        expect(i);
    assert_null(waiting_take(list));
}

static void test_sweep(void **state) {
    int64_t earliest_ns = INT64_MAX;
    const int64_t now_ns = clock_now_ns();
    (void)state;
    for (int i = 0; i < 4; i++) {
        requests[i].options.deadline_ns = now_ns + 1000 * (i + 1);
        put(i, i == 2 ? ENGINE_BULK : ENGINE_UNARY, 1);
    }
    atomic_store(&requests[3].cancelled, true);
    /* the last of its class, and the first by deadline */
    struct engine_request *dead = waiting_sweep(list, now_ns + 1500, &earliest_ns);
    assert_true(dead == &requests[3] && dead->next == &requests[0] && !dead->next->next);
    assert_int_equal(earliest_ns, now_ns + 2000);
    put(4, ENGINE_UNARY, 1); /* behind what was taken out at the end */
    expect(1);
    expect(4);
    expect(2);
    assert_null(waiting_sweep(list, now_ns + 1500, &earliest_ns));
    atomic_store(&requests[5].cancelled, true);
    put(5, ENGINE_UNARY, 1);
    assert_ptr_equal(waiting_sweep(list, now_ns, &earliest_ns), &requests[5]);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {WITH(test_order), WITH(test_limits), WITH(test_sweep)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
