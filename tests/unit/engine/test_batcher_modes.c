/* Wide and narrow workers at one batcher: which of them begin, and that the two kinds never run at once. */
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
#include "engine/batcher_internal.h"
#include "tests/unit/engine/batcher_bed.h"

#define MS INT64_C(1000000)

enum { FULL = 1000, PART = 400, DEPTH = 4096, NARROW = 2, WORKERS = 1 + NARROW };

/* Time that did not have to pass; only between calls, as who waits does so in real time. */
int64_t __real_clock_now_ns(void);

static atomic_int_least64_t skipped_ns;

int64_t __wrap_clock_now_ns(void) {
    return __real_clock_now_ns() + atomic_load(&skipped_ns);
}

static void let_pass(int64_t ns) {
    atomic_fetch_add(&skipped_ns, ns);
}

static struct batcher *batcher;
/* A wide worker and the narrow ones; the wide one alone, as a model with one thread has; narrow ones alone.
 */
static struct batcher_lane both, wide, narrow;

static int setup(void **state) {
    struct status st;
    (void)state;
    memset(&both, 0, sizeof both);
    memset(&wide, 0, sizeof wide);
    memset(&narrow, 0, sizeof narrow);
    atomic_store(&skipped_ns, 0);
    if (batcher_new(&batcher, DEPTH, 0, &st))
        return -1;
    batcher_add_lane(
        batcher, &both, FULL,
        (struct batcher_workers){.count = WORKERS, .devices = 1, .narrow = NARROW, .narrow_samples = PART});
    batcher_add_lane(batcher, &wide, FULL, (struct batcher_workers){.count = 1, .devices = 1});
    batcher_add_lane(
        batcher, &narrow, FULL,
        (struct batcher_workers){
            .first = 1, .count = NARROW, .devices = 1, .narrow = NARROW, .narrow_samples = PART});
    return 0;
}

static struct engine_request *put_items(struct batcher_lane *l, int items, int64_t slot, int64_t within_ns) {
    return batcher_bed_put(batcher, l, items, slot, within_ns);
}

static struct engine_request *put(struct batcher_lane *l, int64_t slot) {
    return put_items(l, 1, slot, 0);
}

/* Workers that come, each on a thread of its own, take one batch and are gone. */
static struct taker {
    int worker;
    bool comes;
    pthread_t thread;
    atomic_bool done;
    struct batcher_batch batch;
} takers[WORKERS];

static void *take_one(void *arg) {
    struct taker *t = arg;
    (void)batcher_take(batcher, t->worker, ENGINE_BATCH_CLIPS_MAX, &t->batch);
    atomic_store(&t->done, true);
    return NULL;
}

/* Whether everybody who came has taken, or will not before something changes. */
static bool is_settled(void) {
    bool settled = true;
    pthread_mutex_lock(&batcher->lock); /* who took has called others by then */
    for (int i = 0; i < WORKERS; i++) {
        const struct batcher_worker *w = &batcher->workers[i];
        if (takers[i].comes && !atomic_load(&takers[i].done) && !(w->waits && !w->called))
            settled = false;
    }
    pthread_mutex_unlock(&batcher->lock);
    return settled;
}

static void settle(void) {
    for (int i = 0; !is_settled(); i++) {
        assert_true(i < 50000);
        usleep(100);
    }
}

static void come(int worker) {
    struct taker *t = &takers[worker];
    assert_false(t->comes);
    *t = (struct taker){.worker = worker, .comes = true};
    assert_int_equal(pthread_create(&t->thread, NULL, take_one, t), 0);
    settle();
}

static void all_come(void) {
    for (int i = 0; i < WORKERS; i++)
        if (!takers[i].comes)
            come(i);
}

static bool has_taken(int worker) {
    settle();
    return takers[worker].comes && atomic_load(&takers[worker].done);
}

/* The items that the worker took, which must have. */
static int taken(int worker) {
    struct taker *t = &takers[worker];
    assert_true(has_taken(worker));
    pthread_join(t->thread, NULL);
    t->comes = false;
    return t->batch.count;
}

static int64_t ran(int worker) {
    int64_t begin_ns, samples = 0;
    for (int i = 0; i < takers[worker].batch.count; i++)
        samples += takers[worker].batch.items[i]->slot;
    return batcher_ran(batcher, worker, samples, &begin_ns);
}

static int count_waiting(void) {
    pthread_mutex_lock(&batcher->lock);
    const int count = batcher->count;
    pthread_mutex_unlock(&batcher->lock);
    return count;
}

/* Until nothing waits. */
static void drain(void) {
    do {
        all_come();
        for (int i = 0; i < WORKERS; i++)
            if (has_taken(i) && taken(i))
                (void)ran(i);
    } while (count_waiting());
    for (int i = 0; i < WORKERS; i++)
        if (has_taken(i) && taken(i))
            (void)ran(i);
    all_come();
}

/* Who still waits goes without anything. After a test that failed somebody may stay for ever. */
static int teardown(void **state) {
    (void)state;
    batcher_close(batcher);
    for (int i = 0; i < WORKERS; i++) {
        struct taker *t = &takers[i];
        for (int k = 0; k < 1000 && t->comes && !atomic_load(&t->done); k++)
            usleep(1000);
        if (t->comes && !atomic_load(&t->done))
            return -1;
        if (t->comes)
            pthread_join(t->thread, NULL);
        const bool late = t->comes && t->batch.count > 0;
        t->comes = false;
        if (late)
            return -1;
    }
    batcher_remove_lane(batcher, &both);
    batcher_remove_lane(batcher, &wide);
    batcher_remove_lane(batcher, &narrow);
    batcher_del(batcher);
    return 0;
}

/* So many samples take a wide worker so long, and a narrow one twice. */
static void set_pace(struct batcher_lane *l, int64_t samples, int64_t busy_ns) {
    for (int kind = 0; kind < BATCHER_KINDS; kind++) {
        l->pace[kind] = (struct batcher_pace){.ran_ns = clock_now_ns()};
        door_pace_add(&l->pace[kind].pace, (double)samples, (double)(busy_ns * (1 + kind)));
    }
}

/* ---- which kind ---- */

/* What comes alone, or with one other, is a wide worker's, whoever is there. */
static void test_little_is_wide(void **state) {
    struct engine_request *r[3];
    (void)state;
    all_come();
    r[0] = put(&both, 10);
    assert_int_equal(taken(0), 1);
    r[1] = put(&both, 10);
    r[2] = put(&both, 10);
    assert_false(has_taken(1) || has_taken(2));
    (void)ran(0);
    come(0);
    assert_int_equal(taken(0), 2);
    assert_false(has_taken(1) || has_taken(2));
    (void)ran(0);
    for (int i = 0; i < 3; i++)
        batcher_bed_drop(r[i]);
}

/* Enough for all of them goes to the narrow ones, each its own batch; not before the wide one is over. */
static void test_much_is_narrow(void **state) {
    struct engine_request *r[6];
    (void)state;
    all_come();
    r[0] = put(&both, 100);
    assert_int_equal(taken(0), 1);
    for (int i = 1; i < 6; i++)
        r[i] = put(&both, 100);
    assert_false(has_taken(1) || has_taken(2));
    (void)ran(0);
    assert_int_equal(taken(1), 2); /* its part, in whole items */
    assert_int_equal(taken(2), 1);
    come(0);
    assert_false(has_taken(0)); /* 2 wait, and the narrow ones run */
    (void)ran(1);
    (void)ran(2);
    drain();
    for (int i = 0; i < 6; i++)
        batcher_bed_drop(r[i]);
}

/* The windows of one request are enough, too. */
static void test_windows_are_many(void **state) {
    struct engine_request *r;
    (void)state;
    all_come();
    r = put_items(&both, 2 * NARROW, 100, 0);
    assert_int_equal(taken(1) + taken(2), 3); /* 2 of 4, then 1 of 2 */
    assert_false(has_taken(0));
    (void)ran(1);
    (void)ran(2);
    drain();
    batcher_bed_drop(r);
}

/* A narrow worker's batch is small, however much waits. */
static void test_narrow_batches_are_small(void **state) {
    struct engine_request *r = put_items(&both, 100, 50, 0);
    (void)state;
    come(1);
    assert_int_equal(taken(1), PART / 50);
    come(2);
    assert_int_equal(taken(2), PART / 50);
    (void)ran(1);
    (void)ran(2);
    drain();
    batcher_bed_drop(r);
}

/* Two at a time, for long: then the narrow workers have one each, and that ends when there is less. */
static void test_steady_load(void **state) {
    enum { ROUNDS_MAX = 20 };
    struct engine_request *r[ROUNDS_MAX + 3];
    int n = 0;
    (void)state;
    all_come();
    r[n++] = put(&both, 10);
    while (has_taken(0) && n < ROUNDS_MAX) {
        assert_int_equal(taken(0), 1);
        r[n++] = put(&both, 10); /* waits while the other runs */
        let_pass(100 * MS);
        (void)ran(0);
        come(0);
    }
    print_message("narrow after %d batches\n", n - 1);
    assert_true(n > 5 && n < ROUNDS_MAX && has_taken(1));
    drain();
    r[n++] = put(&both, 10); /* still remembered */
    assert_true(has_taken(1) && !has_taken(0));
    assert_int_equal(taken(1), 1);
    (void)ran(1);
    let_pass(2000 * MS);
    r[n++] = put(&both, 10);
    assert_true(has_taken(0));
    assert_int_equal(taken(0), 1);
    (void)ran(0);
    for (int i = 0; i < n; i++)
        batcher_bed_drop(r[i]);
}

/* ---- beside narrow workers that run ---- */

/* What comes then waits for a wide worker only if that would be sooner. */
static void test_who_is_sooner(void **state) {
    struct engine_request *r[3];
    (void)state;
    set_pace(&narrow, 100, 100 * MS);
    set_pace(&both, 100, 100 * MS);
    r[0] = put(&narrow, 400);
    come(1);
    assert_int_equal(taken(1), 1); /* 800 ms */
    come(0);
    come(2);
    r[1] = put(&both, 100); /* narrow 200 ms, wide 800 + 100 */
    assert_int_equal(taken(2), 1);
    let_pass(200 * MS);
    (void)ran(2);
    come(2);
    let_pass(550 * MS);
    set_pace(&narrow, 100, 100 * MS);
    set_pace(&both, 100, 100 * MS);
    r[2] = put(&both, 100); /* narrow 200 ms, wide at most 50 + 100 */
    assert_false(has_taken(0) || has_taken(2));
    (void)ran(1);
    assert_int_equal(taken(0), 1);
    assert_false(has_taken(2));
    (void)ran(0);
    for (int i = 0; i < 3; i++)
        batcher_bed_drop(r[i]);
}

/* Who could never have been done in time by a narrow worker gets a wide one. */
static void test_a_close_deadline(void **state) {
    struct engine_request *many = put_items(&both, 4 * NARROW, 100, 0), *soon;
    (void)state;
    set_pace(&both, 100, 100 * MS);
    soon = put_items(&both, 1, 100, 180 * MS);
    come(1);
    come(2);
    assert_false(has_taken(1) || has_taken(2));
    come(0);
    assert_true(has_taken(0));
    assert_int_equal(taken(0), 1); /* company would make it late */
    assert_ptr_equal(takers[0].batch.items[0]->request, soon);
    assert_false(has_taken(1) || has_taken(2));
    (void)ran(0);
    assert_true(has_taken(1) && has_taken(2));
    drain();
    batcher_bed_drop(many);
    batcher_bed_drop(soon);
}

/* Who has waited too long for the narrow ones, or is too late for either kind, is dropped. */
static void test_a_missed_deadline(void **state) {
    struct engine_request *many = put_items(&both, 4 * NARROW, 100, 0), *late[2];
    (void)state;
    late[0] = put_items(&both, 1, 100, 300 * MS); /* 200 ms are needed */
    let_pass(150 * MS);
    late[1] = put_items(&both, 1, 100, 60 * MS); /* 100 ms are needed at best */
    set_pace(&both, 100, 100 * MS);
    come(1);
    assert_true(has_taken(1));
    assert_int_equal(taken(1), PART / 100);
    assert_ptr_equal(takers[1].batch.items[0]->request, many);
    assert_true(takers[1].batch.dead == late[0] || takers[1].batch.dead == late[1]);
    assert_non_null(takers[1].batch.dead->next);
    assert_null(takers[1].batch.dead->next->next);
    (void)ran(1);
    drain();
    batcher_bed_drop(many);
    batcher_bed_drop(late[0]);
    batcher_bed_drop(late[1]);
}

/* ---- several lanes ---- */

/* A lane that has no narrow workers has its turn while another's work would never end. */
static void test_a_wide_lane_has_its_turn(void **state) {
    struct engine_request *flood = put_items(&both, 200, 50, 0), *alone;
    int rounds = 0;
    (void)state;
    all_come();
    assert_true(has_taken(1) && has_taken(2) && !has_taken(0));
    alone = put(&wide, 10);
    for (; !has_taken(0) && rounds < 10; rounds++) {
        let_pass(10 * MS);
        for (int i = 1; i < WORKERS; i++)
            if (has_taken(i)) {
                assert_true(taken(i) > 0);
                (void)ran(i);
            }
        all_come();
    }
    assert_true(rounds < 10 && !has_taken(1) && !has_taken(2));
    assert_int_equal(taken(0), 1);
    assert_ptr_equal(takers[0].batch.items[0]->request, alone);
    (void)ran(0);
    assert_true(has_taken(1) && has_taken(2));
    drain();
    batcher_bed_drop(flood);
    batcher_bed_drop(alone);
}

static void test_a_narrow_lane(void **state) {
    struct engine_request *r = put(&narrow, 10);
    (void)state;
    come(0);
    assert_false(has_taken(0));
    come(2);
    assert_int_equal(taken(2), 1);
    (void)ran(2);
    batcher_bed_drop(r);
}

/* Two narrow workers beside each other: the device was busy as long as either, and each lane used its part.
 */
static void test_time(void **state) {
    struct engine_request *a = put(&narrow, 100), *b = put(&narrow, 100);
    (void)state;
    come(1);
    assert_int_equal(taken(1), 1);
    let_pass(1000 * MS);
    come(2);
    assert_int_equal(taken(2), 1);
    let_pass(1000 * MS);
    const int64_t first_ns = ran(1);
    let_pass(1000 * MS);
    const int64_t second_ns = ran(2);
    assert_true(llabs(first_ns - 2000 * MS) < 300 * MS);
    assert_true(llabs(second_ns - 1000 * MS) < 300 * MS);
    assert_true(llabs(narrow.used_ns - 2000 * MS) < 300 * MS);
    const struct door_pace *p = &narrow.pace[BATCHER_NARROW].pace;
    assert_true(p->work > 0 && narrow.pace[BATCHER_WIDE].pace.work == 0);
    assert_true(p->busy_ns / p->work > 19 * MS && p->busy_ns / p->work < 23 * MS);
    batcher_bed_drop(a);
    batcher_bed_drop(b);
}

/* ---- many ---- */

static atomic_int wide_run, narrow_run, batches_of[BATCHER_KINDS];
static atomic_bool together;

static void *work(void *arg) {
    const int worker = *(const int *)arg;
    atomic_int *own = worker == 0 ? &wide_run : &narrow_run, *other = worker == 0 ? &narrow_run : &wide_run;
    struct batcher_batch batch;
    unsigned seed = (unsigned)worker;
    while (batcher_take(batcher, worker, ENGINE_BATCH_CLIPS_MAX, &batch)) {
        int64_t slots = 0, begin_ns;
        assert_null(batch.dead);
        atomic_fetch_add(own, 1);
        if (atomic_load(other))
            atomic_store(&together, true);
        for (int i = 0; i < batch.count; i++)
            slots += batch.items[i]->slot;
        if (rand_r(&seed) % 4 == 0)
            usleep((useconds_t)(rand_r(&seed) % 300));
        if (atomic_load(other))
            atomic_store(&together, true);
        atomic_fetch_sub(own, 1);
        (void)batcher_ran(batcher, worker, slots, &begin_ns);
        for (int i = 0; i < batch.count; i++)
            batch.items[i]->batch_size++;
        atomic_fetch_add(&batches_of[worker > 0], 1);
        atomic_fetch_add(&batcher_bed_items_run, batch.count);
    }
    return NULL;
}

/* Every item is run once, nobody sleeps over work, and the two kinds are never at it together. */
static void test_many(void **state) {
    struct batcher_lane *const lanes[] = {&both, &both, &both, &wide, &narrow};
    (void)state;
    batcher_bed_run_many(&(struct batcher_bed_many){.batcher = batcher,
                                                    .lanes = lanes,
                                                    .lanes_count = 5,
                                                    .slot_max = 300,
                                                    .requests = 10000,
                                                    .depth = DEPTH,
                                                    .workers = WORKERS,
                                                    .work = work});
    print_message("%d items in %d wide and %d narrow batches\n", atomic_load(&batcher_bed_items_run),
                  atomic_load(&batches_of[0]), atomic_load(&batches_of[1]));
    assert_false(atomic_load(&together));
    assert_true(atomic_load(&batches_of[BATCHER_WIDE]) && atomic_load(&batches_of[BATCHER_NARROW]));
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_little_is_wide),
        WITH(test_much_is_narrow),
        WITH(test_windows_are_many),
        WITH(test_narrow_batches_are_small),
        WITH(test_steady_load),
        WITH(test_who_is_sooner),
        WITH(test_a_close_deadline),
        WITH(test_a_missed_deadline),
        WITH(test_a_wide_lane_has_its_turn),
        WITH(test_a_narrow_lane),
        WITH(test_time),
        WITH(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
