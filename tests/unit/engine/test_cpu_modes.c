/* An engine whose model has several threads on the processor: which workers it makes, that bits do not depend
 * on who runs what, and that those with all threads and those with a part never run at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/metrics.h"
#include "bed.h"

enum { THREADS = 3, MADE_MAX = 64, CLIPS = 16, LABELS_MAX = 16 };

/* ---- who is made, and who runs ---- */

int __real_model_worker_new(struct model_worker **w, const struct model *m, int device, int64_t samples_max,
                            int clips_max, struct status *st);
int __real_model_worker_new_part(struct model_worker **w, const struct model *m, int part, int parts,
                                 struct model_worker *lender, int64_t samples_max, int clips_max,
                                 struct status *st);
int __real_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);

static struct {
    const struct model_worker *worker;
    int part, parts; /* parts 0: all threads */
    int64_t samples_max;
    atomic_int runs;
} made[MADE_MAX];
static int made_count, parts_max;

static int note(const struct model_worker *w, int part, int parts, int64_t samples_max) {
    assert_true(made_count < MADE_MAX);
    made[made_count].worker = w;
    made[made_count].part = part;
    made[made_count].parts = parts;
    made[made_count].samples_max = samples_max;
    atomic_store(&made[made_count++].runs, 0);
    return 0;
}

int __wrap_model_worker_new(struct model_worker **w, const struct model *m, int device, int64_t samples_max,
                            int clips_max, struct status *st) {
    if (__real_model_worker_new(w, m, device, samples_max, clips_max, st))
        return -1;
    return clips_max > 1 ? note(*w, 0, 0, samples_max) : 0; /* not that of the naive kernels */
}

int __wrap_model_worker_new_part(struct model_worker **w, const struct model *m, int part, int parts,
                                 struct model_worker *lender, int64_t samples_max, int clips_max,
                                 struct status *st) {
    if (part == parts_max)
        return status_set_no_memory(st, 12345, "activations");
    return __real_model_worker_new_part(w, m, part, parts, lender, samples_max, clips_max, st) ||
           note(*w, part, parts, samples_max);
}

static atomic_int running[2]; /* with all threads; with a part */
static atomic_bool together;
static atomic_int wrong = -1; /* the worker that computes otherwise */

int __wrap_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    int i = 0;
    while (i < made_count && made[i].worker != w)
        i++;
    if (i == made_count)
        return __real_model_worker_run(w, clips, count, st);
    const bool part = made[i].parts > 0;
    atomic_fetch_add(&running[part], 1);
    if (atomic_load(&running[!part]) || (!part && atomic_load(&running[0]) > 1))
        atomic_store(&together, true);
    usleep(500); /* so that others come meanwhile */
    const int result = __real_model_worker_run(w, clips, count, st);
    if (atomic_load(&running[!part]))
        atomic_store(&together, true);
    atomic_fetch_sub(&running[part], 1);
    atomic_fetch_add(&made[i].runs, 1);
    for (int k = 0; k < count && i == atomic_load(&wrong); k++)
        clips[k].logits[1] += 1e-6f;
    return result;
}

/* ---- the engine ---- */

static struct engine *engine;
static struct engine_model *model;
static struct queue *replies;
static struct metrics *metrics;

static void start(enum engine_cpu_mode mode) {
    struct engine_options o;
    struct status st;
    made_count = 0;
    parts_max = -1;
    atomic_store(&wrong, -1);
    atomic_store(&together, false);
    bed_options(&o);
    o.batch_s_max = 40;
    o.cpu_mode = mode;
    assert_int_equal(metrics_new(&metrics, &st), 0);
    assert_int_equal(queue_new(&replies, 4096, &st), 0);
    o.metrics = metrics;
    engine = bed_start(&o);
}

static int load(const char *name, int threads, bool pin, struct status *st) {
    const struct model_options o = {.device = "cpu", .threads = threads, .pin = pin};
    return engine_model_load(&model, engine, name, BED_MODEL, &o, st);
}

static void must_load(const char *name, int threads, bool pin) {
    struct status st;
    if (load(name, threads, pin, &st))
        fail_msg("%s", st.message);
}

static void stop(void) {
    engine_del(engine);
    queue_del(replies);
    metrics_del(metrics);
    assert_false(atomic_load(&together));
}

static double read_metric(const char *name) {
    struct text t;
    text_init_growing(&t);
    metrics_write(metrics, &t);
    const char *at = strstr(t.data, name);
    const double value = at ? atof(at + strlen(name)) : -1;
    text_free(&t);
    return value;
}

/* ---- which workers ---- */

static void expect_workers(int wide, int parts) {
    assert_int_equal(made_count, wide + parts);
    for (int i = 0; i < made_count; i++) {
        assert_int_equal(made[i].parts, i < wide ? 0 : parts);
        assert_int_equal(made[i].part, i < wide ? 0 : i - wide);
        /* A whole clip fits any of them. */
        assert_true(made[i].samples_max >= (i < wide ? 40 : 30) * BED_RATE_HZ);
        assert_true(made[i].samples_max <= (i < wide ? 41 : 31) * BED_RATE_HZ);
    }
}

static void test_workers_of_a_mode(void **state) {
    (void)state;
    start(ENGINE_CPU_AUTO);
    must_load("three", THREADS, false);
    expect_workers(1, THREADS);
    made_count = 0;
    must_load("one", 1, true);
    expect_workers(1, 0);
    stop();
    start(ENGINE_CPU_LATENCY);
    must_load("three", THREADS, false);
    expect_workers(1, 0);
    stop();
    start(ENGINE_CPU_THROUGHPUT);
    must_load("three", THREADS, true);
    expect_workers(0, THREADS);
    made_count = 0;
    must_load("one", 1, true);
    expect_workers(1, 0);
    stop();
}

/* With more threads than workers may be, each has several. */
static void test_many_threads(void **state) {
    (void)state;
    start(ENGINE_CPU_THROUGHPUT);
    must_load("many", 40, false);
    expect_workers(0, 32);
    const struct engine_request_options o = bed_raw(model, replies);
    bed_send(&o, BED_RATE_HZ);
    bed_expect(replies, STATUS_OK);
    stop();
}

static void test_who_needs_memory(void **state) {
    struct status st;
    (void)state;
    start(ENGINE_CPU_AUTO);
    parts_max = 1;
    assert_int_equal(load("large", THREADS, false, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(
        st.message, "worker 2 of 3 with a part of the threads (cpu-mode latency has none): out of memory: "
                    "12345 bytes for activations");
    stop();
}

/* ---- bits ---- */

static size_t samples_of(int clip) {
    return (size_t)(800 + 900 * clip);
}

static void expect_bits(struct engine_request *r, float alone[CLIPS][LABELS_MAX], size_t bytes) {
    const int clip = (int)(intptr_t)engine_get_user(r);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
    assert_memory_equal(engine_get_result(r)->logits, alone[clip], bytes);
    engine_close(r);
}

static bool have_all_run(void) {
    for (int i = 0; i < made_count; i++)
        if (atomic_load(&made[i].runs) == 0)
            return false;
    return true;
}

/* Bursts and single clips, until every worker has had some: the bits that each clip has alone, with all
 * threads. */
static void run_mode(enum engine_cpu_mode mode, bool pin, float alone[CLIPS][LABELS_MAX]) {
    start(mode);
    must_load("base", THREADS, pin);
    struct engine_request_options o = bed_raw(model, replies);
    const size_t bytes = (size_t)model_get_info(engine_model_get(model))->labels_count * sizeof(float);
    for (int i = 0; i < CLIPS && mode == ENGINE_CPU_LATENCY; i++) {
        bed_send(&o, samples_of(i));
        struct engine_request *r = queue_take(replies);
        memcpy(alone[i], engine_get_result(r)->logits, bytes);
        engine_close(r);
    }
    for (int round = 0; round < 5 || (!have_all_run() && round < 1000); round++) {
        const int burst = round % 3 ? 4 * CLIPS : 1;
        for (int i = 0; i < burst; i++) {
            o.user = (void *)(intptr_t)((round + i) % CLIPS);
            o.order = i % 3 ? ENGINE_UNARY : ENGINE_LIVE;
            bed_send(&o, samples_of((round + i) % CLIPS));
        }
        for (int i = 0; i < burst; i++)
            expect_bits(queue_take(replies), alone, bytes);
    }
    for (int i = 0; i < made_count; i++)
        print_message("%d of %d: %d batches\n", made[i].part, made[i].parts, atomic_load(&made[i].runs));
    assert_true(have_all_run());
    if (mode == ENGINE_CPU_AUTO) {
        assert_true(read_metric("timbre_cpu_batches_total{threads=\"all\"} ") >= 1);
        assert_true(read_metric("timbre_cpu_batches_total{threads=\"part\"} ") >= THREADS);
    } else {
        assert_true(read_metric("timbre_cpu_batches_total{threads=\"all\"} ") <= 0);
    }
    stop();
}

static void test_bits_do_not_depend_on_the_mode(void **state) {
    static float alone[CLIPS][LABELS_MAX];
    (void)state;
    run_mode(ENGINE_CPU_LATENCY, true, alone);
    run_mode(ENGINE_CPU_AUTO, true, alone);
    run_mode(ENGINE_CPU_AUTO, false, alone);
    run_mode(ENGINE_CPU_THROUGHPUT, true, alone);
}

/* Two models, whose workers have the same processors. */
static void test_models_do_not_run_together(void **state) {
    enum { CALLS = 200 };
    struct engine_request_options o[3];
    (void)state;
    start(ENGINE_CPU_AUTO);
    must_load("a", THREADS, true);
    o[0] = bed_raw(model, replies);
    must_load("b", 2, true);
    o[1] = bed_raw(model, replies);
    must_load("c", 1, true);
    o[2] = bed_raw(model, replies);
    for (int i = 0; i < CALLS; i++) {
        o[i % 3].order = i % 5 ? ENGINE_UNARY : ENGINE_LIVE;
        bed_send(&o[i % 3], samples_of(i % CLIPS));
        if (i >= 24)
            bed_expect(replies, STATUS_OK);
        if (i % 60 == 59)
            usleep(20000);
    }
    for (int i = 0; i < 24; i++)
        bed_expect(replies, STATUS_OK);
    stop();
}

/* ---- the known answer ---- */

static void test_check(void **state) {
    char report[300];
    struct status st;
    (void)state;
    for (int mode = ENGINE_CPU_AUTO; mode <= ENGINE_CPU_THROUGHPUT; mode++) {
        start((enum engine_cpu_mode)mode);
        must_load("base", THREADS, true);
        if (engine_model_check(model, report, sizeof report, &st))
            fail_msg("%s", st.message);
        assert_true(have_all_run());
        if (mode == ENGINE_CPU_LATENCY)
            assert_null(strstr(report, "workers"));
        else
            assert_non_null(strstr(report, mode == ENGINE_CPU_AUTO ? "on 4 workers of 1 device;"
                                                                   : "on 3 workers of 1 device;"));
        atomic_store(&wrong, made_count - 1);
        const int result = engine_model_check(model, report, sizeof report, &st);
        assert_int_equal(result, mode == ENGINE_CPU_LATENCY ? 0 : -1);
        if (result) {
            assert_int_equal(st.code, STATUS_INTERNAL);
            assert_non_null(strstr(st.message, mode == ENGINE_CPU_AUTO ? "by worker 3 " : "by worker 2 "));
        }
        stop();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workers_of_a_mode),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_who_needs_memory),
        cmocka_unit_test(test_bits_do_not_depend_on_the_mode),
        cmocka_unit_test(test_models_do_not_run_together),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
