/* Several models in one engine: loading and unloading while others run, the limit, the known answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bed.h"

/* ---- a device that can compute wrongly ---- */

int __real_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);

static enum { RIGHT, WRONG_IN_COMPANY, WRONG_FOR_ALL, NOT_FINITE, BROKEN } device;

static atomic_int runs;

int __wrap_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    atomic_fetch_add(&runs, 1);
    int result = __real_model_worker_run(w, clips, count, st);
    /* The naive kernels' copy has a worker for one clip, which alone is as short as this. */
    const bool served = clips[0].count > 800 || count > 1;
    if (device == WRONG_IN_COMPANY && count > 1)
        clips[1].logits[0] += 1e-6f;
    if (device == NOT_FINITE && count > 1)
        clips[count - 1].logits[1] = (float)-INFINITY;
    if (device == WRONG_FOR_ALL && !served) {
        static int turn; /* of the two that run it, the first is the one that is served */
        clips[0].logits[0] += turn++ % 2 ? 0 : 3e-3f;
    }
    if (device == BROKEN)
        return status_set(st, STATUS_INTERNAL, "the device fell over");
    return result;
}

static struct engine *engine;
static struct queue *replies;

static int setup(void **state) {
    struct engine_options o;
    struct status st;
    (void)state;
    bed_options(&o);
    o.batch_s_max = 30;
    device = RIGHT;
    engine = bed_start(&o);
    return queue_new(&replies, 4096, &st);
}

static int teardown(void **state) {
    (void)state;
    engine_del(engine);
    queue_del(replies);
    return 0;
}

/* Each model answers with what it answers alone, whatever the others do. */
static void test_two_models(void **state) {
    const char *dirs[] = {BED_MODEL, TIMBRE_SOURCE_DIR "/tests/golden/hubert_base"};
    const struct model_options mo = {.threads = 1};
    struct engine_model *m[2];
    float alone[2][16];
    struct status st;
    (void)state;
    for (int i = 0; i < 2; i++) {
        if (engine_model_load(&m[i], engine, dirs[i], dirs[i], &mo, &st))
            fail_msg("%s", st.message);
        const struct engine_request_options o = bed_raw(m[i], replies);
        bed_send(&o, BED_RATE_HZ);
        struct engine_request *r = queue_take(replies);
        memcpy(alone[i], engine_get_result(r)->logits, 4 * sizeof(float));
        engine_close(r);
    }
    assert_memory_not_equal(alone[0], alone[1], 4 * sizeof(float));
    for (int i = 0; i < 60; i++) {
        struct engine_request_options o = bed_raw(m[i % 2], replies);
        o.user = alone[i % 2];
        bed_send(&o, BED_RATE_HZ);
    }
    for (int i = 0; i < 60; i++) {
        struct engine_request *r = queue_take(replies);
        assert_memory_equal(engine_get_result(r)->logits, engine_get_user(r), 4 * sizeof(float));
        engine_close(r);
    }
    engine_model_unload(m[0]);
    const struct engine_request_options o = bed_raw(m[1], replies);
    bed_send(&o, BED_RATE_HZ);
    bed_expect(replies, STATUS_OK);
}

/* ---- unloading ---- */

static void *unload(void *arg) {
    engine_model_unload(*(struct engine_model **)arg);
    *(struct engine_model **)arg = NULL;
    return NULL;
}

/* It waits for those who are open, in whatever state, and no longer. */
static void test_unload_waits(void **state) {
    struct engine_model *volatile m = bed_load(engine, "a");
    struct engine_request_options o = bed_raw(m, replies);
    pthread_t thread;
    (void)state;
    struct engine_request *unfinished = bed_open(&o, 1000), *answered = bed_send(&o, 1000);
    assert_ptr_equal(queue_take(replies), answered);
    assert_int_equal(pthread_create(&thread, NULL, unload, (void *)&m), 0);
    usleep(30000);
    assert_non_null(m);
    assert_int_equal(engine_get_result(answered)->outcome, ENGINE_OK);
    engine_close(answered);
    usleep(30000);
    assert_non_null(m);
    engine_close(unfinished);
    pthread_join(thread, NULL);
    assert_null(m);
}

static atomic_bool stop;

static void *keep_asking(void *arg) {
    struct queue *own;
    struct status st;
    assert_int_equal(queue_new(&own, 64, &st), 0);
    const struct engine_request_options o = bed_raw(arg, own);
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 8; i++)
            bed_send(&o, (size_t)(1000 + 700 * i));
        for (int i = 0; i < 8; i++)
            bed_expect(own, STATUS_OK);
    }
    queue_del(own);
    return NULL;
}

/* Models come and go under traffic on others and on themselves; the closing thread races with the unloading
 * one. */
static void test_load_and_unload_under_traffic(void **state) {
    struct engine_model *steady = bed_load(engine, "steady");
    pthread_t asking, unloading;
    (void)state;
    atomic_store(&stop, false);
    assert_int_equal(pthread_create(&asking, NULL, keep_asking, steady), 0);
    for (int round = 0; round < 12; round++) {
        struct engine_model *m = bed_load(engine, "coming");
        const struct engine_request_options o = bed_raw(m, replies);
        for (int i = 0; i < 20; i++)
            bed_send(&o, 2000);
        struct engine_request *cancelled = bed_open(&o, 2000);
        assert_int_equal(engine_finish(cancelled, false, NULL), 0);
        engine_cancel(cancelled);
        assert_int_equal(pthread_create(&unloading, NULL, unload, &m), 0);
        for (int i = 0; i < 21; i++) {
            struct engine_request *r = queue_take(replies);
            if (r != cancelled)
                assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
            engine_close(r);
        }
        pthread_join(unloading, NULL);
    }
    atomic_store(&stop, true);
    pthread_join(asking, NULL);
}

static void test_limit(void **state) {
    struct engine_model *m[ENGINE_MODELS_MAX], *more;
    const struct model_options o = {.threads = 1};
    struct status st;
    (void)state;
    for (int i = 0; i < ENGINE_MODELS_MAX; i++)
        m[i] = bed_load(engine, "many");
    assert_int_equal(engine_model_load(&more, engine, "more", BED_MODEL, &o, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(st.message, "64 models are loaded, which is the limit");
    engine_model_unload(m[7]);
    /* a failed load gives its place back */
    for (int i = 0; i < 3; i++)
        assert_int_equal(engine_model_load(&more, engine, "more", "/nowhere", &o, &st), -1);
    more = bed_load(engine, "more");
    const struct engine_request_options ro = bed_raw(more, replies);
    bed_send(&ro, 1000);
    bed_expect(replies, STATUS_OK);
}

/* ---- the known answer ---- */

static void test_check(void **state) {
    struct engine_model *m = bed_load(engine, "base");
    char report[300];
    struct status st = {0};
    (void)state;
    if (engine_model_check(m, report, sizeof report, &st))
        fail_msg("%s", st.message);
    print_message("%s\n", report);
    assert_non_null(strstr(report, "bit for bit"));
    assert_non_null(strstr(report, "720 samples as the naive kernels within"));
}

static void test_check_is_not_held_up(void **state) {
    struct engine_model *busy = bed_load(engine, "busy"), *m = bed_load(engine, "base");
    char report[300];
    struct status st = {0};
    pthread_t asking;
    (void)state;
    atomic_store(&stop, false);
    assert_int_equal(pthread_create(&asking, NULL, keep_asking, busy), 0);
    for (int i = 0; i < 5; i++)
        if (engine_model_check(m, report, sizeof report, &st))
            fail_msg("%s", st.message);
    atomic_store(&stop, true);
    pthread_join(asking, NULL);
}

static void expect_wrong(struct engine_model *m, enum status_code code, const char *part) {
    char report[300];
    struct status st = {0};
    assert_int_equal(engine_model_check(m, report, sizeof report, &st), -1);
    assert_int_equal(st.code, code);
    if (!strstr(st.message, part))
        fail_msg("%s", st.message);
}

static void test_check_finds_wrong_machines(void **state) {
    struct engine_model *m = bed_load(engine, "base");
    (void)state;
    device = WRONG_IN_COMPANY;
    expect_wrong(m, STATUS_INTERNAL, "between others");
    device = WRONG_FOR_ALL;
    expect_wrong(m, STATUS_INTERNAL, "by the naive kernels");
    device = NOT_FINITE;
    expect_wrong(m, STATUS_INTERNAL, "not finite");
    device = BROKEN;
    expect_wrong(m, STATUS_UNAVAILABLE, "the device fell over");
    device = RIGHT;
    char report[300];
    assert_int_equal(engine_model_check(m, report, sizeof report, NULL), 0);
}

/* A batch that fails takes its requests with it, and what of them still waits; the next is as good as ever.
 */
static void test_a_broken_batch(void **state) {
    struct engine_model *m = bed_load(engine, "base");
    struct engine_request_options o = bed_raw(m, replies);
    (void)state;
    device = BROKEN;
    o.window_s = 0.05; /* more windows than one batch takes */
    o.hop_s = 0.01;
    atomic_store(&runs, 0);
    bed_send(&o, BED_NOISE_SAMPLES);
    struct engine_request *r = queue_take(replies);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_UNAVAILABLE);
    assert_string_equal(engine_get_result(r)->status.message, "the device failed: the device fell over");
    engine_close(r);
    assert_int_equal(atomic_load(&runs), 1);
    device = RIGHT;
    bed_send(&o, BED_NOISE_SAMPLES);
    bed_expect(replies, STATUS_OK);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_two_models),
        WITH(test_unload_waits),
        WITH(test_load_and_unload_under_traffic),
        WITH(test_limit),
        WITH(test_check),
        WITH(test_check_is_not_held_up),
        WITH(test_check_finds_wrong_machines),
        WITH(test_a_broken_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
