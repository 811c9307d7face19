/* What the batcher hands out, and in which order. Requests here are bare: only what the batcher reads is set.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/batcher.h"

#define MS INT64_C(1000000)

/* Time that did not have to pass: tests of aging add to it. */
int64_t __real_clock_now_ns(void);

static int64_t skipped_ns;

int64_t __wrap_clock_now_ns(void) {
    return __real_clock_now_ns() + skipped_ns;
}

static struct batcher *batcher;
static struct batcher_lane lanes[3];
static struct batcher_batch batch;

static int make(void **state, int delay_us, int depth) {
    struct status st;
    (void)state;
    memset(lanes, 0, sizeof lanes);
    skipped_ns = 0;
    if (batcher_new(&batcher, depth, delay_us, &st))
        return -1;
    for (int i = 0; i < 3; i++)
        batcher_add_lane(batcher, &lanes[i], 1000, (struct batcher_workers){.count = 1, .devices = 1});
    return 0;
}

static int setup(void **state) {
    return make(state, 0, 8);
}

static int teardown(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++)
        batcher_remove_lane(batcher, &lanes[i]);
    batcher_del(batcher);
    return 0;
}

static struct engine_request *make_request(int lane, enum engine_class order, int items, int64_t slot) {
    struct engine_request *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->lane = &lanes[lane];
    r->options.order = order;
    r->items = calloc((size_t)items, sizeof *r->items);
    r->items_count = items;
    r->inside = true;
    r->door_us = 1000;
    for (int i = 0; i < items; i++)
        r->items[i] = (struct engine_item){.request = r, .slot = slot, .count = slot};
    return r;
}

static void free_request(struct engine_request *r) {
    free(r->items);
    free(r);
}

/* deadline_ms: from now; 0: none. */
static struct engine_request *put_at(struct engine_request *r, int64_t deadline_ms) {
    bool gone;
    if (deadline_ms)
        r->options.deadline_ns = clock_now_ns() + deadline_ms * MS;
    atomic_fetch_add(&r->lane->arriving, 1);
    r->arriving = true;
    batcher_put(batcher, r, &gone);
    assert_int_equal(gone, atomic_load(&r->cancelled));
    return r;
}

static struct engine_request *put(int lane, enum engine_class order, int items, int64_t slot) {
    return put_at(make_request(lane, order, items, slot), 0);
}

/* The one worker takes, and is done with it at once; its time does not count. */
static bool take_any(int most) {
    int64_t begin_ns;
    const bool more = batcher_take(batcher, 0, most, &batch);
    if (batch.count) {
        const int64_t used_ns = batch.lane->used_ns;
        (void)batcher_ran(batcher, 0, 0, &begin_ns);
        batch.lane->used_ns = used_ns;
    }
    return more;
}

static int take(int most) {
    assert_true(take_any(most));
    assert_null(batch.dead);
    return batch.count;
}

/* As if a batch of the lane had run: what it used, and the pace. */
static void ran(int lane, int64_t samples, int64_t busy_ns) {
    lanes[lane].used_ns += busy_ns;
    lanes[lane].pace[BATCHER_WIDE].ran_ns = clock_now_ns();
    door_pace_add(&lanes[lane].pace[BATCHER_WIDE].pace, (double)samples, (double)busy_ns);
}

/* Takes one item and checks whose it is. */
static void expect(struct engine_request *r) {
    assert_int_equal(take(1), 1);
    assert_ptr_equal(batch.items[0]->request, r);
}

static void test_budget_and_order_of_arrival(void **state) {
    struct engine_request *r[3];
    (void)state;
    for (int i = 0; i < 3; i++)
        r[i] = put(0, ENGINE_UNARY, 1, 400);
    assert_int_equal(take(16), 2);
    assert_ptr_equal(batch.items[0]->request, r[0]);
    assert_ptr_equal(batch.items[1]->request, r[1]);
    assert_int_equal(batch.requests, 2);
    assert_int_equal(batch.door_us, 2000);
    assert_int_equal(take(16), 1);
    assert_ptr_equal(batch.items[0]->request, r[2]);
    for (int i = 0; i < 3; i++)
        free_request(r[i]);
}

/* An item larger than the budget is still served: it can never block the queue. */
static void test_first_item_always_goes(void **state) {
    struct engine_request *big = put(0, ENGINE_UNARY, 1, 5000), *small = put(0, ENGINE_UNARY, 1, 10);
    (void)state;
    assert_int_equal(take(16), 1);
    assert_ptr_equal(batch.items[0]->request, big);
    assert_int_equal(take(16), 1);
    free_request(big);
    free_request(small);
}

/* It leaves the door bit by bit, and as a request with its last item. */
static void test_windows_of_one_request_over_batches(void **state) {
    struct engine_request *r = put(0, ENGINE_UNARY, 5, 100);
    (void)state;
    assert_int_equal(take(3), 3);
    assert_ptr_equal(batch.items[2], &r->items[2]);
    assert_int_equal(batch.requests, 0);
    assert_int_equal(batch.door_us, 600);
    assert_int_equal(take(3), 2);
    assert_ptr_equal(batch.items[1], &r->items[4]);
    assert_int_equal(batch.requests, 1);
    assert_int_equal(batch.door_us, 400);
    assert_int_equal(r->door_us, 0);
    free_request(r);
}

static void test_class_then_deadline(void **state) {
    struct engine_request *bulk = put(0, ENGINE_BULK, 1, 10);
    struct engine_request *never = put(0, ENGINE_UNARY, 1, 10);
    struct engine_request *late = put_at(make_request(0, ENGINE_UNARY, 1, 10), 90000);
    struct engine_request *soon = put_at(make_request(0, ENGINE_UNARY, 1, 10), 50000);
    struct engine_request *live = put(0, ENGINE_LIVE, 1, 10);
    struct engine_request *order[] = {live, soon, late, never, bulk};
    (void)state;
    assert_int_equal(take(16), 5);
    for (int i = 0; i < 5; i++) {
        assert_ptr_equal(batch.items[i]->request, order[i]);
        free_request(order[i]);
    }
}

static void age(int64_t ms) {
    skipped_ns += ms * MS;
}

/* Bulk work that has waited long enough goes before fresh live work, even with a deadline. */
static void test_aging(void **state) {
    struct engine_request *bulk = put(0, ENGINE_BULK, 1, 10);
    (void)state;
    age(3 * ENGINE_AGING_MS + 10);
    struct engine_request *live = put_at(make_request(0, ENGINE_LIVE, 1, 10), 90000);
    expect(bulk);
    expect(live);
    free_request(bulk);
    free_request(live);
}

static void test_drops_cancelled_and_late(void **state) {
    struct engine_request *gone = put(0, ENGINE_UNARY, 3, 10);
    (void)state;
    expect(gone);
    struct engine_request *late = put_at(make_request(1, ENGINE_UNARY, 1, 10), 20);
    struct engine_request *well = put(0, ENGINE_UNARY, 1, 10);
    atomic_store(&gone->cancelled, true);
    batcher_suspect(batcher);
    age(25);
    /* All dead ones at once, together with what there is to run. */
    assert_true(take_any(1));
    assert_int_equal(batch.count, 1);
    assert_ptr_equal(batch.items[0]->request, well);
    struct engine_request *a = batch.dead, *b = a->next;
    assert_null(b->next);
    assert_true((a == gone && b == late) || (a == late && b == gone));
    assert_int_equal(gone->items_count - gone->next_item, 2);
    assert_true(gone->inside);
    batcher_close(batcher);
    assert_false(take_any(1));
    free_request(gone);
    free_request(late);
    free_request(well);
}

static void test_sweep(void **state) {
    enum { MANY = 1000 };
    struct engine_request *r[MANY];
    int64_t earliest_ns = INT64_MAX;
    (void)state;
    for (int i = 0; i < MANY; i++) {
        r[i] = make_request(i % 3, (enum engine_class)(i % 2), 1, 10);
        atomic_store(&r[i]->cancelled, i == 500);
        put_at(r[i], i == 7 ? 60000 : 0);
    }
    for (int i = 0; i < MANY; i++)
        atomic_store(&r[i]->cancelled, i % 10 != 7);
    int dead = 0;
    for (struct engine_request *d = batcher_sweep(batcher, clock_now_ns(), &earliest_ns); d; d = d->next)
        dead++;
    assert_int_equal(dead, 900);
    assert_int_equal(earliest_ns, r[7]->options.deadline_ns);
    assert_null(batcher_sweep(batcher, clock_now_ns(), &earliest_ns));
    int left = 0;
    while (left < 100)
        left += take(16);
    assert_int_equal(left, 100);
    for (int i = 0; i < MANY; i++)
        free_request(r[i]);
}

/* ---- lanes ---- */

/* A batch is of one lane. */
static void test_one_lane_a_batch(void **state) {
    struct engine_request *a = put(0, ENGINE_UNARY, 1, 10), *b = put(1, ENGINE_UNARY, 1, 10),
                          *c = put(0, ENGINE_UNARY, 1, 10);
    (void)state;
    assert_int_equal(take(16) + take(16), 3);
    assert_int_equal(batch.items[0]->request->lane == &lanes[0] ? batch.count : 3 - batch.count, 2);
    free_request(a);
    free_request(b);
    free_request(c);
}

static void test_lanes_by_class(void **state) {
    struct engine_request *bulk = put(0, ENGINE_BULK, 1, 10), *live = put(1, ENGINE_LIVE, 1, 10),
                          *unary = put(2, ENGINE_UNARY, 1, 10);
    (void)state;
    ran(1, 10, 1000 * MS); /* what it used does not matter among classes */
    expect(live);
    expect(unary);
    expect(bulk);
    free_request(bulk);
    free_request(live);
    free_request(unary);
}

/* Two lanes that always have work share the device's time, not the number of batches; a third that comes
 * later gets its share from then on and nothing for the time before. */
static void test_lanes_share_the_time(void **state) {
    const int64_t cost[3] = {1 * MS, 10 * MS, 5 * MS};
    int64_t used[3] = {0}, used_then[3] = {0};
    struct engine_request *waiting[3] = {put(0, ENGINE_UNARY, 1, 10), put(1, ENGINE_UNARY, 1, 10), NULL};
    (void)state;
    for (int i = 0; i < 600; i++) {
        if (i == 300) {
            waiting[2] = put(2, ENGINE_UNARY, 1, 10);
            memcpy(used_then, used, sizeof used);
        }
        assert_int_equal(take(1), 1);
        const int lane = (int)(batch.lane - lanes);
        assert_ptr_equal(batch.items[0]->request, waiting[lane]);
        free_request(waiting[lane]);
        used[lane] += cost[lane];
        ran(lane, 10, cost[lane]);
        waiting[lane] = put(lane, ENGINE_UNARY, 1, 10);
    }
    assert_true(llabs(used_then[0] - used_then[1]) <= 11 * MS);
    for (int i = 0; i < 3; i++)
        assert_true(llabs(used[i] - used_then[i] - used[2]) <= 11 * MS);
    for (int i = 0; i < 3; i++)
        (void)take(16);
    for (int i = 0; i < 3; i++)
        free_request(waiting[i]);
}

/* A lane that has not been served for long gets its turn before the live work of another. */
static void test_lanes_do_not_starve(void **state) {
    struct engine_request *bulk = put(0, ENGINE_BULK, 1, 10);
    (void)state;
    ran(1, 10, 1 * MS);
    struct engine_request *live = put(1, ENGINE_LIVE, 1, 10);
    expect(live);
    free_request(live);
    age(3 * ENGINE_AGING_MS + 10);
    live = put(1, ENGINE_LIVE, 1, 10);
    expect(bulk);
    expect(live);
    free_request(live);
    free_request(bulk);
}

/* A flood in one lane makes its requests old, but not first: a fresh request of another lane does not wait
 * behind all of them. */
static void test_old_flood_does_not_bury_another_lane(void **state) {
    enum { FLOOD = 5 };
    struct engine_request *flood[FLOOD];
    (void)state;
    for (int i = 0; i < FLOOD; i++)
        flood[i] = put(0, ENGINE_UNARY, 1, 10);
    age(2 * ENGINE_AGING_MS + 10);
    expect(flood[0]);
    ran(0, 10, 1 * MS);
    struct engine_request *fresh = put(1, ENGINE_UNARY, 1, 10);
    expect(fresh);
    ran(1, 10, 1 * MS);
    assert_int_equal(take(16), FLOOD - 1);
    for (int i = 0; i < FLOOD; i++)
        free_request(flood[i]);
    free_request(fresh);
}

/* ---- deadlines at the measured rate ---- */

/* 10 samples a millisecond. */
static void set_pace(int lane) {
    ran(lane, 1000, 100 * MS);
}

static void test_drops_the_hopeless(void **state) {
    struct engine_request *first = put_at(make_request(0, ENGINE_UNARY, 4, 300), 80);
    (void)state;
    expect(first); /* nothing is known: it is tried */
    set_pace(0);
    struct engine_request *well = put_at(make_request(0, ENGINE_UNARY, 1, 500), 1000);
    assert_true(take_any(16)); /* 90 ms for the rest of the first one */
    assert_ptr_equal(batch.dead, first);
    assert_null(first->next);
    assert_true(first->needs_ns > 85 * MS && first->needs_ns < 95 * MS);
    assert_int_equal(batch.count, 1);
    assert_ptr_equal(batch.items[0]->request, well);
    free_request(first);
    free_request(well);
}

/* Batches so far were small and slow for their size: that says little about a large one. */
static void test_does_not_judge_beyond_what_it_saw(void **state) {
    (void)state;
    ran(0, 10, 20 * MS);
    struct engine_request *large = put_at(make_request(0, ENGINE_UNARY, 1, 1000), 500);
    expect(large);
    struct engine_request *late = put_at(make_request(0, ENGINE_UNARY, 1, 1000), 10);
    ran(0, 10, 20 * MS);
    assert_true(take_any(16));
    assert_ptr_equal(batch.dead, late);
    free_request(large);
    free_request(late);
}

/* A pace measured long ago is not believed, so that one slow batch does not close a model for ever. */
static void test_tries_again(void **state) {
    (void)state;
    set_pace(0);
    lanes[0].pace[BATCHER_WIDE].ran_ns -= 1001 * MS;
    struct engine_request *r = put_at(make_request(0, ENGINE_UNARY, 1, 500), 40);
    expect(r);
    free_request(r);
}

/* Company that would make a member late waits for the next batch. */
static void test_company_does_not_make_late(void **state) {
    struct engine_request *urgent = put_at(make_request(0, ENGINE_UNARY, 1, 300), 50),
                          *other = put(0, ENGINE_UNARY, 1, 300);
    (void)state;
    set_pace(0);
    assert_int_equal(take(16), 1);
    assert_ptr_equal(batch.items[0]->request, urgent);
    assert_int_equal(take(16), 1);
    assert_ptr_equal(batch.items[0]->request, other);
    free_request(urgent);
    free_request(other);
}

/* A live window does not wait for the end of a long batch, though no deadline asks for that. */
static void test_live_batches_are_short(void **state) {
    struct engine_request *r[5];
    (void)state;
    set_pace(0);
    for (int i = 0; i < 5; i++)
        r[i] = put(0, i < 4 ? ENGINE_LIVE : ENGINE_UNARY, 1, 100); /* 10 ms each */
    assert_int_equal(take(16), 3);
    assert_int_equal(take(16), 2); /* company of another class is as welcome */
    for (int i = 0; i < 5; i++)
        free_request(r[i]);
    struct engine_request *large = put(0, ENGINE_LIVE, 1, 900), *next = put(0, ENGINE_LIVE, 1, 100);
    assert_int_equal(take(16), 1); /* the first always goes */
    assert_int_equal(take(16), 1);
    free_request(large);
    free_request(next);
}

/* ---- waiting for company ---- */

static void *put_later(void *arg) {
    usleep(20000);
    for (struct engine_request **r = arg; *r; r++) {
        bool gone;
        batcher_put(batcher, *r, &gone);
    }
    return NULL;
}

static void expect_arriving(struct engine_request *r) {
    atomic_fetch_add(&r->lane->arriving, 1);
    r->arriving = true;
}

static int setup_patient(void **state) {
    return make(state, 10 * 1000 * 1000, 8);
}

/* Alone it runs at once; what is on its way is waited for, until the batch is full or nothing comes any more.
 */
static void test_waits_for_who_is_on_the_way(void **state) {
    struct engine_request *a = put(0, ENGINE_UNARY, 1, 10), *more[] = {NULL, NULL, NULL};
    pthread_t thread;
    (void)state;
    int64_t start_ns = clock_now_ns();
    expect(a);
    for (int i = 0; i < 2; i++)
        expect_arriving(more[i] = make_request(0, ENGINE_UNARY, 1, 10));
    struct engine_request *b = put(0, ENGINE_UNARY, 1, 10);
    assert_int_equal(pthread_create(&thread, NULL, put_later, more), 0);
    assert_int_equal(take(16), 3);
    assert_true(clock_elapsed_ms(start_ns) < 5000);
    pthread_join(thread, NULL);
    free_request(a);
    free_request(b);
    free_request(more[0]);
    free_request(more[1]);
}

static void test_does_not_wait_when_full(void **state) {
    struct engine_request *a = put(0, ENGINE_UNARY, 1, 600), *b = put(0, ENGINE_UNARY, 1, 400);
    (void)state;
    atomic_store(&lanes[0].arriving, 1);
    int64_t start_ns = clock_now_ns();
    assert_int_equal(take(16), 2);
    assert_true(clock_elapsed_ms(start_ns) < 5000);
    free_request(a);
    free_request(b);
}

static void *expect_less_later(void *arg) {
    usleep(20000);
    batcher_expect_less(batcher, arg);
    return NULL;
}

static void test_does_not_wait_for_who_went_elsewhere(void **state) {
    struct engine_request *a = put(0, ENGINE_UNARY, 1, 10);
    pthread_t thread;
    (void)state;
    atomic_store(&lanes[0].arriving, 1);
    int64_t start_ns = clock_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, expect_less_later, &lanes[0]), 0);
    expect(a);
    assert_true(clock_elapsed_ms(start_ns) < 5000);
    pthread_join(thread, NULL);
    free_request(a);
}

/* Work of another lane is reason enough not to wait. */
static void test_does_not_wait_beside_other_work(void **state) {
    struct engine_request *a = put(0, ENGINE_LIVE, 1, 10), *b = put(1, ENGINE_BULK, 1, 10);
    (void)state;
    atomic_store(&lanes[0].arriving, 1);
    int64_t start_ns = clock_now_ns();
    expect(a);
    expect(b);
    assert_true(clock_elapsed_ms(start_ns) < 5000);
    free_request(a);
    free_request(b);
}

static int setup_delay(void **state) {
    return make(state, 30000, 8);
}

static void test_waits_no_longer_than_the_delay(void **state) {
    struct engine_request *a = put(0, ENGINE_UNARY, 1, 10);
    (void)state;
    atomic_store(&lanes[0].arriving, 1);
    int64_t start_ns = clock_now_ns();
    expect(a);
    assert_true(clock_elapsed_ms(start_ns) > 25 && clock_elapsed_ms(start_ns) < 5000);
    free_request(a);
}

/* ---- many ---- */

enum { DEEP = 8000 };

static int setup_deep(void **state) {
    return make(state, 0, DEEP);
}

/* All that wait come out once, in order, and choosing among thousands is cheap. */
static void test_deep(void **state) {
    struct engine_request **r = calloc(DEEP, sizeof *r);
    uint32_t seed = 3;
    (void)state;
    for (int i = 0; i < DEEP; i++) {
        seed = seed * 1664525u + 1013904223u;
        r[i] = put_at(make_request(0, (enum engine_class)(seed >> 30 & 1), 1, 10),
                      1000000 + (int64_t)(seed >> 16 & 1023) * 1000);
    }
    int64_t start_ns = clock_now_ns(), last_deadline_ns = 0;
    int seen = 0, last_order = 0;
    while (seen < DEEP) {
        assert_int_equal(take(64), 64);
        for (int i = 0; i < 64; i++, seen++) {
            const struct engine_request *x = batch.items[i]->request;
            if ((int)x->options.order != last_order)
                last_deadline_ns = 0;
            assert_true((int)x->options.order >= last_order);
            assert_true(x->options.deadline_ns + 999 * MS >= last_deadline_ns); /* put at different times */
            last_order = (int)x->options.order;
            last_deadline_ns = x->options.deadline_ns;
        }
    }
    print_message("%.3f us a request\n", clock_elapsed_ms(start_ns) * 1e3 / DEEP);
    assert_true(clock_elapsed_ms(start_ns) < 5000); /* 64 million comparisons would not be */
    for (int i = 0; i < DEEP; i++)
        free_request(r[i]);
    free(r);
}

#define WITH(set_up, test) cmocka_unit_test_setup_teardown(test, set_up, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(setup, test_budget_and_order_of_arrival),
        WITH(setup, test_first_item_always_goes),
        WITH(setup, test_windows_of_one_request_over_batches),
        WITH(setup, test_class_then_deadline),
        WITH(setup, test_aging),
        WITH(setup, test_drops_cancelled_and_late),
        WITH(setup_deep, test_sweep),
        WITH(setup, test_one_lane_a_batch),
        WITH(setup, test_lanes_by_class),
        WITH(setup, test_lanes_share_the_time),
        WITH(setup, test_lanes_do_not_starve),
        WITH(setup, test_old_flood_does_not_bury_another_lane),
        WITH(setup, test_drops_the_hopeless),
        WITH(setup, test_does_not_judge_beyond_what_it_saw),
        WITH(setup, test_tries_again),
        WITH(setup, test_company_does_not_make_late),
        WITH(setup, test_live_batches_are_short),
        WITH(setup_patient, test_waits_for_who_is_on_the_way),
        WITH(setup_patient, test_does_not_wait_when_full),
        WITH(setup_patient, test_does_not_wait_for_who_went_elsewhere),
        WITH(setup_patient, test_does_not_wait_beside_other_work),
        WITH(setup_delay, test_waits_no_longer_than_the_delay),
        WITH(setup_deep, test_deep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
