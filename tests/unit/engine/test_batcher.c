/* What the batcher hands out, and in which order. Requests here are bare: only what the batcher reads is set.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/batcher.h"
#include "engine/request.h"

enum { ITEMS_MAX = 16 };

static struct engine_request *make_request(enum engine_class order, int items, int64_t slot) {
    struct engine_request *r = calloc(1, sizeof *r);
    r->options.order = order;
    r->items = calloc((size_t)items, sizeof *r->items);
    r->items_count = items;
    atomic_store(&r->items_left, items);
    for (int i = 0; i < items; i++)
        r->items[i] = (struct engine_item){.request = r, .slot = slot, .count = slot};
    return r;
}

static void free_request(struct engine_request *r) {
    free(r->items);
    free(r);
}

static struct batcher *make_batcher(int depth) {
    struct batcher *b;
    struct status st;
    assert_int_equal(batcher_new(&b, depth, 0, &st), 0);
    return b;
}

static int take(struct batcher *b, int64_t budget, int most, struct engine_item **items) {
    struct engine_request *dropped;
    int count, dropped_items;
    assert_true(batcher_take(b, budget, most, items, &count, &dropped, &dropped_items));
    assert_null(dropped);
    return count;
}

static void test_budget_and_order_of_arrival(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct engine_request *r[3];
    struct batcher *b = make_batcher(8);
    (void)state;
    for (int i = 0; i < 3; i++) {
        r[i] = make_request(ENGINE_UNARY, 1, 400);
        assert_true(batcher_put(b, r[i]));
    }
    assert_int_equal(take(b, 1000, ITEMS_MAX, items), 2);
    assert_ptr_equal(items[0]->request, r[0]);
    assert_ptr_equal(items[1]->request, r[1]);
    assert_int_equal(take(b, 1000, ITEMS_MAX, items), 1);
    assert_ptr_equal(items[0]->request, r[2]);
    batcher_del(b);
    for (int i = 0; i < 3; i++)
        free_request(r[i]);
}

/* An item larger than the budget is still served: it can never block the queue. */
static void test_first_item_always_goes(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct engine_request *big = make_request(ENGINE_UNARY, 1, 5000),
                          *small = make_request(ENGINE_UNARY, 1, 10);
    struct batcher *b = make_batcher(8);
    (void)state;
    batcher_put(b, big);
    batcher_put(b, small);
    assert_int_equal(take(b, 1000, ITEMS_MAX, items), 1);
    assert_ptr_equal(items[0]->request, big);
    assert_int_equal(take(b, 1000, ITEMS_MAX, items), 1);
    batcher_del(b);
    free_request(big);
    free_request(small);
}

static void test_windows_of_one_request_over_batches(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct engine_request *r = make_request(ENGINE_UNARY, 5, 100);
    struct batcher *b = make_batcher(8);
    (void)state;
    batcher_put(b, r);
    assert_int_equal(take(b, 1000, 3, items), 3);
    assert_ptr_equal(items[2], &r->items[2]);
    assert_int_equal(take(b, 1000, 3, items), 2);
    assert_ptr_equal(items[1], &r->items[4]);
    batcher_del(b);
    free_request(r);
}

static void test_class_then_deadline(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct batcher *b = make_batcher(8);
    struct engine_request *bulk = make_request(ENGINE_BULK, 1, 10), *late = make_request(ENGINE_UNARY, 1, 10);
    struct engine_request *soon = make_request(ENGINE_UNARY, 1, 10), *live = make_request(ENGINE_LIVE, 1, 10);
    (void)state;
    late->options.deadline_ns = clock_now_ns() + 90000000000;
    soon->options.deadline_ns = clock_now_ns() + 50000000000;
    batcher_put(b, bulk);
    batcher_put(b, late);
    batcher_put(b, soon);
    batcher_put(b, live);
    assert_int_equal(take(b, 1000, ITEMS_MAX, items), 4);
    assert_ptr_equal(items[0]->request, live);
    assert_ptr_equal(items[1]->request, soon);
    assert_ptr_equal(items[2]->request, late);
    assert_ptr_equal(items[3]->request, bulk);
    batcher_del(b);
    free_request(bulk);
    free_request(late);
    free_request(soon);
    free_request(live);
}

/* Bulk work that has waited long enough goes before fresh live work's next of kin. */
static void test_aging(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct batcher *b = make_batcher(8);
    struct engine_request *bulk = make_request(ENGINE_BULK, 1, 10),
                          *unary = make_request(ENGINE_UNARY, 1, 10);
    (void)state;
    batcher_put(b, bulk);
    batcher_put(b, unary);
    bulk->ready_ns -= (int64_t)ENGINE_AGING_MS * 1000000 * 2;
    assert_int_equal(take(b, 10, 1, items), 1);
    assert_ptr_equal(items[0]->request, bulk);
    assert_int_equal(take(b, 10, 1, items), 1);
    batcher_del(b);
    free_request(bulk);
    free_request(unary);
}

/* Not even live work with deadlines holds it up for ever. */
static void test_aging_beats_deadlines(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct batcher *b = make_batcher(8);
    struct engine_request *bulk = make_request(ENGINE_BULK, 1, 10), *live = make_request(ENGINE_LIVE, 1, 10);
    (void)state;
    live->options.deadline_ns = clock_now_ns() + 90000000000;
    batcher_put(b, bulk);
    batcher_put(b, live);
    bulk->ready_ns -= (int64_t)ENGINE_AGING_MS * 1000000 * 3;
    assert_int_equal(take(b, 10, 1, items), 1);
    assert_ptr_equal(items[0]->request, bulk);
    assert_int_equal(take(b, 10, 1, items), 1);
    batcher_del(b);
    free_request(bulk);
    free_request(live);
}

static void test_drops_cancelled_and_late(void **state) {
    struct engine_item *items[ITEMS_MAX];
    struct engine_request *dropped, *gone = make_request(ENGINE_UNARY, 3, 10),
                                    *late = make_request(ENGINE_UNARY, 1, 10);
    struct batcher *b = make_batcher(8);
    int count, dropped_items;
    (void)state;
    batcher_put(b, gone);
    batcher_put(b, late);
    assert_int_equal(take(b, 10, 1, items), 1);
    atomic_store(&gone->cancelled, true);
    late->options.deadline_ns = clock_now_ns() - 1;
    assert_true(batcher_take(b, 10, 1, items, &count, &dropped, &dropped_items));
    assert_ptr_equal(dropped, gone);
    assert_int_equal(dropped_items, 2);
    assert_int_equal(count, 0);
    assert_true(batcher_take(b, 10, 1, items, &count, &dropped, &dropped_items));
    assert_ptr_equal(dropped, late);
    assert_int_equal(dropped_items, 1);
    batcher_close(b);
    assert_false(batcher_take(b, 10, 1, items, &count, &dropped, &dropped_items));
    assert_false(batcher_put(b, late));
    batcher_del(b);
    free_request(gone);
    free_request(late);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_budget_and_order_of_arrival),
                                       cmocka_unit_test(test_first_item_always_goes),
                                       cmocka_unit_test(test_windows_of_one_request_over_batches),
                                       cmocka_unit_test(test_class_then_deadline),
                                       cmocka_unit_test(test_aging),
                                       cmocka_unit_test(test_aging_beats_deadlines),
                                       cmocka_unit_test(test_drops_cancelled_and_late)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
