/* Several workers at one batcher: who takes, when a second batch is taken beside one that runs, whose time
 * counts. */
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
#include "tests/unit/engine/batcher_bed.h"

#define MS INT64_C(1000000)

enum { FULL = 1000, DEPTH = 4096 };

/* Time that did not have to pass; only between calls, as who waits does so in real time. */
int64_t __real_clock_now_ns(void);

static atomic_int_least64_t skipped_ns;

int64_t __wrap_clock_now_ns(void) {
    return __real_clock_now_ns() + atomic_load(&skipped_ns);
}

static struct batcher *batcher;
/* Two devices with two workers each; one device with two; the processor's one. */
static struct batcher_lane wide, pair, single;

static void add(struct batcher_lane *l, int count, int devices, bool share) {
    batcher_add_lane(batcher, l, FULL,
                     (struct batcher_workers){.count = count, .devices = devices, .share = share});
}

static int make(int delay_us) {
    struct status st;
    memset(&wide, 0, sizeof wide);
    memset(&pair, 0, sizeof pair);
    memset(&single, 0, sizeof single);
    atomic_store(&skipped_ns, 0);
    if (batcher_new(&batcher, DEPTH, delay_us, &st))
        return -1;
    add(&wide, 4, 2, true);
    add(&pair, 2, 1, true);
    add(&single, 1, 1, false);
    return 0;
}

static int setup(void **state) {
    (void)state;
    return make(0);
}

static int setup_patient(void **state) {
    (void)state;
    return make(10 * 1000 * 1000);
}

static int teardown(void **state) {
    (void)state;
    batcher_remove_lane(batcher, &wide);
    batcher_remove_lane(batcher, &pair);
    batcher_remove_lane(batcher, &single);
    batcher_del(batcher);
    return 0;
}

static struct engine_request *put(struct batcher_lane *l, int items, int64_t slot) {
    return batcher_bed_put(batcher, l, items, slot, 0);
}

/* A worker that takes one batch, on a thread of its own. */
struct taker {
    int worker;
    pthread_t thread;
    atomic_bool done;
    bool more;
    struct batcher_batch batch;
};

static void *take_one(void *arg) {
    struct taker *t = arg;
    t->more = batcher_take(batcher, t->worker, ENGINE_BATCH_CLIPS_MAX, &t->batch);
    atomic_store(&t->done, true);
    return NULL;
}

static void start(struct taker *t, int worker) {
    *t = (struct taker){.worker = worker};
    assert_int_equal(pthread_create(&t->thread, NULL, take_one, t), 0);
    usleep(20000); /* it waits by now */
}

static bool is_done(const struct taker *t) {
    return atomic_load(&t->done);
}

static void expect_batch(struct taker *t, const struct batcher_lane *l, int count) {
    pthread_join(t->thread, NULL);
    assert_true(t->more);
    assert_ptr_equal(t->batch.lane, l);
    assert_int_equal(t->batch.count, count);
}

/* Takes what there is, which must not need waiting. */
static void take_now(int worker, const struct batcher_lane *l, int count) {
    struct taker t;
    start(&t, worker);
    for (int i = 0; i < 5000 && !is_done(&t); i++)
        usleep(1000);
    assert_true(is_done(&t));
    expect_batch(&t, l, count);
}

static int64_t ran(int worker, int64_t samples, int64_t *begin_ns) {
    int64_t begin;
    const int64_t busy_ns = batcher_ran(batcher, worker, samples, &begin);
    if (begin_ns)
        *begin_ns = begin;
    return busy_ns;
}

/* So many samples of the lane take so long. */
static void set_pace(struct batcher_lane *l, int64_t samples, int64_t busy_ns) {
    l->pace[BATCHER_WIDE].ran_ns = clock_now_ns();
    door_pace_add(&l->pace[BATCHER_WIDE].pace, (double)samples, (double)busy_ns);
}

/* One that comes alone does not wait for anything, and the first device gets it. */
static void test_a_lone_request(void **state) {
    struct taker t[4];
    (void)state;
    for (int i = 3; i >= 0; i--)
        start(&t[i], i);
    struct engine_request *r = put(&wide, 1, 10);
    expect_batch(&t[0], &wide, 1);
    usleep(20000);
    for (int i = 1; i < 4; i++)
        assert_false(is_done(&t[i]));
    batcher_close(batcher);
    for (int i = 1; i < 4; i++) {
        pthread_join(t[i].thread, NULL);
        assert_false(t[i].more);
    }
    (void)ran(0, 10, NULL);
    batcher_bed_drop(r);
}

/* Beside a batch that runs for long, the other worker of its device lets work come together until that is a
 * batch; the other device's workers do not wait. */
static void test_a_second_batch_when_it_is_full(void **state) {
    struct engine_request *r[5];
    struct taker second;
    (void)state;
    set_pace(&pair, 1, 1000 * MS);
    r[0] = put(&pair, 1, 600);
    take_now(0, &pair, 1);
    start(&second, 1);
    for (int i = 1; i < 4; i++)
        r[i] = put(&pair, 1, 300);
    usleep(30000);
    assert_false(is_done(&second));
    r[4] = put(&pair, 1, 100);
    expect_batch(&second, &pair, 4);
    (void)ran(0, 0, NULL);
    (void)ran(1, 0, NULL);
    for (int i = 0; i < 5; i++)
        batcher_bed_drop(r[i]);
}

static void test_the_other_device_does_not_wait(void **state) {
    struct engine_request *a = put(&wide, 1, 600), *b;
    struct taker same, other;
    (void)state;
    set_pace(&wide, 1, 1000 * MS);
    take_now(0, &wide, 1);
    start(&same, 2); /* also on device 0 */
    start(&other, 3);
    b = put(&wide, 1, 10);
    expect_batch(&other, &wide, 1);
    assert_false(is_done(&same));
    batcher_close(batcher);
    pthread_join(same.thread, NULL);
    assert_false(same.more);
    (void)ran(0, 0, NULL);
    (void)ran(3, 0, NULL);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* ... or until the first is about to be over, or is. */
static void test_a_second_batch_in_time(void **state) {
    struct engine_request *a, *b;
    struct taker second;
    (void)state;
    set_pace(&pair, FULL, 200 * MS);
    a = put(&pair, 1, FULL);
    take_now(0, &pair, 1);
    const int64_t begin_ns = clock_now_ns();
    b = put(&pair, 1, 10);
    start(&second, 1);
    expect_batch(&second, &pair, 1);
    const double waited_ms = clock_elapsed_ms(begin_ns);
    assert_true(waited_ms > 100 && waited_ms < 5000);
    (void)ran(0, 0, NULL);
    (void)ran(1, 0, NULL);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

static void test_a_second_batch_when_the_first_is_over(void **state) {
    struct engine_request *a = put(&pair, 1, FULL), *b;
    struct taker second;
    (void)state;
    take_now(0, &pair, 1); /* nobody knows how long it takes */
    b = put(&pair, 1, 10);
    start(&second, 1);
    usleep(30000);
    assert_false(is_done(&second));
    (void)ran(0, FULL, NULL);
    expect_batch(&second, &pair, 1);
    (void)ran(1, 0, NULL);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* A worker that a model has not does not take for it. */
static void test_whose_lane_it_is(void **state) {
    struct engine_request *a, *b;
    struct taker first, third;
    (void)state;
    start(&third, 2);
    a = put(&single, 1, 10);
    b = put(&pair, 1, 10);
    usleep(30000);
    assert_false(is_done(&third));
    start(&first, 0);
    pthread_join(first.thread, NULL);
    assert_int_equal(first.batch.count, 1);
    (void)ran(0, 0, NULL);
    take_now(0, first.batch.lane == &single ? &pair : &single, 1);
    (void)ran(0, 0, NULL);
    batcher_close(batcher);
    pthread_join(third.thread, NULL);
    assert_false(third.more);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* What runs on the processor does not hold up a GPU's second worker. */
static void test_devices_of_two_kinds(void **state) {
    struct engine_request *a = put(&single, 1, 10), *b;
    (void)state;
    take_now(0, &single, 1);
    b = put(&pair, 1, 10);
    take_now(1, &pair, 1);
    (void)ran(0, 0, NULL);
    (void)ran(1, 0, NULL);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* Two devices that are free share what waits, but for crumbs. */
static void test_free_devices_share(void **state) {
    struct taker t[2];
    struct engine_request *r[8];
    (void)state;
    start(&t[1], 1);
    atomic_store(&wide.arriving, 1); /* so that nobody is called before all are here */
    for (int i = 0; i < 8; i++) {
        r[i] = calloc(1, sizeof **r);
        r[i]->lane = &wide;
        r[i]->options.order = ENGINE_UNARY;
        r[i]->items = calloc(1, sizeof *r[i]->items);
        r[i]->items_count = 1;
        r[i]->items[0] = (struct engine_item){.request = r[i], .slot = 100};
    }
    for (int i = 0; i < 8; i++) {
        bool gone;
        atomic_fetch_add(&wide.arriving, 1);
        batcher_put(batcher, r[i], &gone);
    }
    batcher_expect_less(batcher, &wide); /* calls worker 1: it alone is there */
    expect_batch(&t[1], &wide, 8);
    (void)ran(1, 0, NULL);
    for (int i = 0; i < 8; i++) {
        bool gone;
        r[i]->next_item = 0;
        atomic_fetch_add(&wide.arriving, 1);
        if (i == 0)
            atomic_fetch_add(&wide.arriving, 1);
        batcher_put(batcher, r[i], &gone);
    }
    start(&t[1], 1);
    start(&t[0], 0);
    batcher_expect_less(batcher, &wide);
    expect_batch(&t[0], &wide, 4);
    expect_batch(&t[1], &wide, 4);
    (void)ran(0, 0, NULL);
    (void)ran(1, 0, NULL);
    for (int i = 0; i < 8; i++)
        batcher_bed_drop(r[i]);
}

/* ---- time ---- */

static void let_pass(int64_t ns) {
    atomic_fetch_add(&skipped_ns, ns);
}

static void expect_ms(int64_t ns, int64_t ms) {
    if (llabs(ns - ms * MS) > 300 * MS) /* real time passes too */
        fail_msg("%lld ms instead of %lld", (long long)(ns / MS), (long long)ms);
}

/* Two batches of one device that overlap: the second one's time begins where the first one's ends. */
static void test_no_moment_counts_twice(void **state) {
    struct engine_request *a = put(&pair, 1, FULL), *b = put(&pair, 1, FULL);
    int64_t begin_ns;
    (void)state;
    take_now(0, &pair, 1);
    const int64_t start_ns = clock_now_ns();
    let_pass(1000 * MS);
    take_now(1, &pair, 1);
    let_pass(1000 * MS);
    expect_ms(ran(0, FULL, &begin_ns), 2000);
    expect_ms(begin_ns - start_ns, 0);
    let_pass(3000 * MS);
    expect_ms(ran(1, FULL, &begin_ns), 3000);
    expect_ms(begin_ns - start_ns, 2000);
    expect_ms(pair.used_ns, 5000);
    let_pass(1000 * MS); /* nothing runs */
    struct engine_request *c = put(&pair, 1, FULL);
    take_now(1, &pair, 1);
    let_pass(500 * MS);
    expect_ms(ran(1, FULL, &begin_ns), 500);
    expect_ms(begin_ns - start_ns, 6000);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
    batcher_bed_drop(c);
}

/* The later one ends first: all of the time is counted, and nothing begins before it was taken. */
static void test_overtaken(void **state) {
    struct engine_request *a = put(&pair, 1, FULL), *b = put(&pair, 1, FULL);
    int64_t begin_ns;
    (void)state;
    take_now(0, &pair, 1);
    const int64_t start_ns = clock_now_ns();
    let_pass(1000 * MS);
    take_now(1, &pair, 1);
    let_pass(1000 * MS);
    expect_ms(ran(1, FULL, &begin_ns), 2000);
    expect_ms(begin_ns - start_ns, 1000);
    let_pass(1000 * MS);
    expect_ms(ran(0, FULL, &begin_ns), 1000);
    expect_ms(pair.used_ns, 3000);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* Two devices at once: each one's time counts. */
static void test_time_of_two_devices(void **state) {
    struct engine_request *a = put(&wide, 1, FULL), *b = put(&wide, 1, FULL);
    (void)state;
    take_now(0, &wide, 1);
    take_now(1, &wide, 1);
    let_pass(1000 * MS);
    expect_ms(ran(0, FULL, NULL), 1000);
    expect_ms(ran(1, FULL, NULL), 1000);
    expect_ms(wide.used_ns, 2000);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* ---- many ---- */

static atomic_int batches;

static void *work(void *arg) {
    const int worker = *(const int *)arg;
    struct batcher_batch batch;
    unsigned seed = (unsigned)worker;
    while (batcher_take(batcher, worker, ENGINE_BATCH_CLIPS_MAX, &batch)) {
        int64_t slots = 0, begin_ns;
        assert_null(batch.dead);
        if (batch.lane->workers.count <= worker)
            abort();
        for (int i = 0; i < batch.count; i++)
            slots += batch.items[i]->slot;
        if (rand_r(&seed) % 4 == 0)
            usleep((useconds_t)(rand_r(&seed) % 300));
        (void)batcher_ran(batcher, worker, rand_r(&seed) % 8 ? slots : 0, &begin_ns);
        for (int i = 0; i < batch.count; i++)
            batch.items[i]->batch_size++;
        atomic_fetch_add(&batcher_bed_items_run, batch.count);
        atomic_fetch_add(&batches, 1);
    }
    return NULL;
}

/* Every item is run once, whoever takes it, and nobody sleeps over work. */
static void test_many(void **state) {
    struct batcher_lane *const lanes[] = {&wide, &pair, &single};
    (void)state;
    batcher_bed_run_many(&(struct batcher_bed_many){.batcher = batcher,
                                                    .lanes = lanes,
                                                    .lanes_count = 3,
                                                    .slot_max = 400,
                                                    .requests = 20000,
                                                    .depth = DEPTH,
                                                    .workers = 4,
                                                    .work = work});
    print_message("%d items in %d batches\n", atomic_load(&batcher_bed_items_run), atomic_load(&batches));
}

#define WITH(set_up, test) cmocka_unit_test_setup_teardown(test, set_up, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(setup, test_a_lone_request),
        WITH(setup, test_a_second_batch_when_it_is_full),
        WITH(setup, test_the_other_device_does_not_wait),
        WITH(setup, test_a_second_batch_in_time),
        WITH(setup, test_a_second_batch_when_the_first_is_over),
        WITH(setup, test_whose_lane_it_is),
        WITH(setup, test_devices_of_two_kinds),
        WITH(setup_patient, test_free_devices_share),
        WITH(setup, test_no_moment_counts_twice),
        WITH(setup, test_overtaken),
        WITH(setup, test_time_of_two_devices),
        WITH(setup, test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
