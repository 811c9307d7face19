/* Every allocation of a start (model, workspace, queues, threads' tables) and of a request fails in turn:
 * each time there is an error with a message, nothing crashes, and the next start is as good as new. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);

static atomic_long left = -1; /* allocations until the one that fails; negative: none fails */

static bool fails(void) {
    return atomic_load(&left) >= 0 && atomic_fetch_sub(&left, 1) == 0;
}

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    return fails() ? NULL : __real_aligned_alloc(alignment, n);
}

static float noise[4000];

static struct engine_model *model;

static int start(struct engine **e, const char *device, struct status *st) {
    const struct model_options mo = {.device = device, .threads = 2};
    struct engine_options o;
    engine_options_init(&o);
    o.audio.ffmpeg = "";
    if (engine_new(e, &o, st))
        return -1;
    if (engine_model_load(&model, *e, "base", TIMBRE_SOURCE_DIR "/tests/golden/base", &mo, st) == 0)
        return 0;
    engine_del(*e);
    *e = NULL;
    return -1;
}

static void check_start(const char *device) {
    long n = 0;
    for (;; n++) {
        struct engine *e = NULL;
        struct status st = {0};
        atomic_store(&left, n);
        int result = start(&e, device, &st);
        bool all_went_well = atomic_exchange(&left, -1) >= 0;
        if (result == 0) {
            engine_del(e);
            if (all_went_well)
                break;
            fail_msg("%s: allocation %ld failed and nobody noticed", device, n);
        }
        assert_null(e);
        assert_true(st.code != STATUS_OK && st.message[0] != 0);
        assert_true(n < 10000);
    }
    assert_true(n > 20);
}

static void test_start_on_ref(void **state) {
    (void)state;
    check_start("ref");
}

static void test_start_on_cpu(void **state) {
    (void)state;
    check_start("cpu");
}

static void test_check(void **state) {
    struct engine *e;
    struct status st;
    long n = 0;
    (void)state;
    assert_int_equal(start(&e, "cpu", &st), 0);
    for (;; n++) {
        char report[300] = "";
        st = (struct status){0};
        atomic_store(&left, n);
        int result = engine_model_check(model, report, sizeof report, &st);
        if (atomic_exchange(&left, -1) >= 0) {
            assert_int_equal(result, 0);
            break;
        }
        assert_true(result == -1 && st.code != STATUS_OK && st.message[0] != 0);
        assert_true(n < 10000);
    }
    assert_true(n > 20);
    engine_del(e);
}

/* One request; true when it was answered. */
static bool ask(struct queue *replies, bool given) {
    const struct engine_request_options o = {
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = 16000, .channels = 1},
        .model = model,
        .embedding = true,
        .replies = replies};
    struct engine_request *r;
    struct status st = {0};
    if (engine_open(&r, &o, &st))
        return false;
    const struct engine_piece pieces[] = {{noise, 1000}, {(const char *)noise + 1000, sizeof noise - 1000}};
    if ((given ? engine_give(r, pieces, 2, NULL, NULL, &st) : engine_feed(r, noise, sizeof noise, &st)) ||
        engine_finish(r, true, &st)) {
        assert_true(st.message[0] != 0);
        engine_close(r);
        return false;
    }
    assert_ptr_equal(queue_take(replies), r);
    const struct engine_result *result = engine_get_result(r);
    bool ok = result->outcome == ENGINE_OK;
    assert_true(ok || result->status.message[0] != 0);
    engine_close(r);
    return ok;
}

static void check_request(bool given) {
    struct engine *e;
    struct queue *replies;
    struct status st;
    long n = 0;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++)
        noise[i] = (float)(i * 7919 % 1000) * 1e-3f - 0.5f;
    assert_int_equal(queue_new(&replies, 4, &st), 0);
    assert_int_equal(start(&e, "cpu", &st), 0);
    for (;; n++) {
        atomic_store(&left, n);
        bool answered = ask(replies, given);
        bool all_went_well = atomic_exchange(&left, -1) >= 0;
        if (all_went_well) {
            assert_true(answered);
            break;
        }
        assert_true(ask(replies, given)); /* what failed once did no harm */
        assert_true(n < 1000);
    }
    assert_true(n > 3);
    engine_del(e);
    queue_del(replies);
}

static void test_request(void **state) {
    (void)state;
    check_request(false);
    check_request(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_start_on_ref),
                                       cmocka_unit_test(test_start_on_cpu), cmocka_unit_test(test_check),
                                       cmocka_unit_test(test_request)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
