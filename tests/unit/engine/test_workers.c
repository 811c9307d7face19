/* An engine whose models have several workers, as on GPUs: bits do not depend on who runs what, a device that
 * computes otherwise is found, and what becomes of everybody when a batch or the device is lost. The workers
 * here are the processor's, told to be those of two devices. */
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

#include "base/clock.h"
#include "base/metrics.h"
#include "bed.h"

enum { DEVICES = 2, WORKERS = 4, MODELS = 4 };

/* ---- the processor as two devices ---- */

const struct model_info *__real_model_get_info(const struct model *m);
int __real_model_worker_new(struct model_worker **w, const struct model *m, int device, int64_t samples_max,
                            int clips_max, struct status *st);
int __real_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);

static struct {
    const struct model *model;
    struct model_info info;
} seen[MODELS];
static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;

const struct model_info *__wrap_model_get_info(const struct model *m) {
    int i = 0;
    pthread_mutex_lock(&seen_lock);
    while (i < MODELS - 1 && seen[i].model && seen[i].model != m)
        i++;
    if (seen[i].model != m) {
        seen[i].model = m;
        seen[i].info = *__real_model_get_info(m);
        seen[i].info.devices_count = DEVICES;
        seen[i].info.workers_per_device = WORKERS / DEVICES;
    }
    pthread_mutex_unlock(&seen_lock);
    return &seen[i].info;
}

static struct {
    struct model_worker *worker;
    int device;
    atomic_int runs;
} made[64];
static int made_count, made_max;

int __wrap_model_worker_new(struct model_worker **w, const struct model *m, int device, int64_t samples_max,
                            int clips_max, struct status *st) {
    assert_in_range(device, 0, DEVICES - 1);
    if (made_count == made_max)
        return status_set_no_memory(st, 12345, "activations");
    const int result = __real_model_worker_new(w, m, 0, samples_max, clips_max, st);
    if (result == 0 && clips_max > 1) { /* not that of the naive kernels */
        made[made_count].worker = *w;
        atomic_store(&made[made_count].runs, 0);
        made[made_count++].device = device;
    }
    return result;
}

static int find_made(const struct model_worker *w) {
    for (int i = 0; i < made_count; i++)
        if (made[i].worker == w)
            return i;
    return -1;
}

/* ---- faults ---- */

static atomic_int wrong = -1; /* the worker that computes otherwise */
static atomic_int faults;     /* batches to come that fail */
static atomic_bool losing;    /* and the device with them */
static atomic_bool slow;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static atomic_int at_gate;

int __wrap_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    const int i = find_made(w);
    atomic_fetch_add(&at_gate, 1);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    if (i >= 0)
        atomic_fetch_add(&made[i].runs, 1);
    if (atomic_load(&slow))
        usleep(3000);
    const int result = __real_model_worker_run(w, clips, count, st);
    for (int k = 0; k < count && i >= 0 && i == atomic_load(&wrong); k++)
        clips[k].logits[1] += 1e-6f;
    if (atomic_load(&faults) > 0) {
        atomic_fetch_sub(&faults, 1);
        return status_set(st, STATUS_INVALID_ARGUMENT, "an illegal address");
    }
    return result;
}

bool __wrap_model_worker_is_lost(const struct model_worker *w) {
    (void)w;
    return atomic_load(&losing);
}

/* ---- the engine ---- */

static struct engine *engine;
static struct engine_model *model;
static struct queue *replies;
static struct metrics *metrics;
static struct engine_options options;
static atomic_int told;
static size_t replies_when_told;

static void on_lost(void *arg, const struct status *why) {
    assert_ptr_equal(arg, &told);
    assert_int_equal(why->code, STATUS_UNAVAILABLE);
    replies_when_told = queue_count(replies);
    atomic_fetch_add(&told, 1);
}

static int setup(void **state) {
    struct status st;
    (void)state;
    memset(seen, 0, sizeof seen);
    made_count = 0;
    made_max = sizeof made / sizeof *made;
    atomic_store(&wrong, -1);
    atomic_store(&faults, 0);
    atomic_store(&losing, false);
    atomic_store(&slow, false);
    atomic_store(&told, 0);
    bed_options(&options);
    options.batch_s_max = 30;
    options.on_lost = on_lost;
    options.on_lost_arg = &told;
    if (metrics_new(&metrics, &st) || queue_new(&replies, 4096, &st))
        return -1;
    options.metrics = metrics;
    engine = bed_start(&options);
    model = bed_load(engine, "base");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    engine_del(engine);
    queue_del(replies);
    metrics_del(metrics);
    return 0;
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

static void test_one_worker_for_each(void **state) {
    (void)state;
    assert_int_equal(made_count, WORKERS);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(made[i].device, i % DEVICES);
}

enum { CLIPS = 24, ROUNDS = 30, LABELS_MAX = 16 };

static bool have_all_run(void) {
    for (int i = 0; i < WORKERS; i++)
        if (atomic_load(&made[i].runs) == 0)
            return false;
    return true;
}

/* Whoever runs it, in whatever company: the bits that it has alone. */
static void test_bits_do_not_depend_on_the_worker(void **state) {
    struct engine_request_options o = bed_raw(model, replies);
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    float alone[CLIPS][LABELS_MAX];
    (void)state;
    for (int i = 0; i < CLIPS; i++) {
        bed_send(&o, (size_t)(800 + 900 * i));
        struct engine_request *r = queue_take(replies);
        memcpy(alone[i], engine_get_result(r)->logits, (size_t)labels * sizeof(float));
        engine_close(r);
    }
    atomic_store(&slow, true); /* so that one is not enough */
    /* Which worker takes a batch is for the scheduler to say: on until each has had one. */
    for (int i = 0; i < CLIPS * ROUNDS || (!have_all_run() && i < 50 * CLIPS * ROUNDS); i++) {
        o.user = alone[i % CLIPS];
        bed_send(&o, (size_t)(800 + 900 * (i % CLIPS)));
        if (i >= 40) {
            struct engine_request *r = queue_take(replies);
            assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
            assert_memory_equal(engine_get_result(r)->logits, engine_get_user(r),
                                (size_t)labels * sizeof(float));
            assert_true(engine_get_result(r)->queue_ms >= 0 && engine_get_result(r)->compute_ms > 0);
            engine_close(r);
        }
    }
    for (int i = 0; i < 40; i++)
        engine_close(queue_take(replies));
    for (int i = 0; i < WORKERS; i++) {
        print_message("worker %d ran %d batches\n", i, atomic_load(&made[i].runs));
        assert_true(atomic_load(&made[i].runs) > 0);
    }
    assert_true(read_metric("timbre_device_busy_seconds_total{device=\"1\"} ") > 0);
}

/* The windows of one request, over all workers. */
static void test_windows_over_workers(void **state) {
    struct engine_request_options o = bed_raw(model, replies);
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    float first[LABELS_MAX];
    (void)state;
    o.window_s = 0.05;
    o.hop_s = 0.01;
    atomic_store(&slow, true);
    for (int i = 0; i < 20; i++)
        bed_send(&o, BED_NOISE_SAMPLES / 4);
    for (int i = 0; i < 20; i++) {
        struct engine_request *r = queue_take(replies);
        assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
        if (i == 0)
            memcpy(first, engine_get_result(r)->logits, (size_t)labels * sizeof(float));
        assert_memory_equal(first, engine_get_result(r)->logits, (size_t)labels * sizeof(float));
        engine_close(r);
    }
}

/* ---- the known answer ---- */

static void test_check_runs_on_all(void **state) {
    char report[300];
    struct status st;
    (void)state;
    if (engine_model_check(model, report, sizeof report, &st))
        fail_msg("%s", st.message);
    print_message("%s\n", report);
    assert_non_null(strstr(report, "bit for bit, on 4 workers of 2 devices; 720 samples"));
    for (int i = 0; i < WORKERS; i++)
        assert_true(atomic_load(&made[i].runs) >= 2);
    atomic_store(&wrong, 3);
    assert_int_equal(engine_model_check(model, report, sizeof report, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    if (!strstr(st.message, "by worker 0 (device 0) and ") || !strstr(st.message, "by worker 3 (device 1)"))
        fail_msg("%s", st.message);
}

/* ---- faults ---- */

static void hold(int batches) {
    pthread_mutex_lock(&gate);
    atomic_store(&at_gate, 0);
    const struct engine_request_options o = bed_raw(model, replies);
    for (int i = 0; i < batches; i++) {
        bed_send(&o, BED_RATE_HZ);
        for (int k = 0; k < 20000 && atomic_load(&at_gate) <= i; k++)
            usleep(1000);
    }
    assert_int_equal(atomic_load(&at_gate), batches);
}

/* One batch is lost and nothing else. */
static void test_a_failed_batch(void **state) {
    const struct engine_request_options o = bed_raw(model, replies);
    (void)state;
    atomic_store(&faults, 1);
    bed_send(&o, BED_RATE_HZ);
    struct engine_request *r = queue_take(replies);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_UNAVAILABLE);
    assert_string_equal(engine_get_result(r)->status.message, "the device failed: an illegal address");
    engine_close(r);
    assert_int_equal(atomic_load(&told), 0);
    assert_false(engine_model_is_lost(model));
    bed_send(&o, BED_RATE_HZ);
    bed_expect(replies, STATUS_OK);
    /* Either device may have been the one that took it. */
    assert_true(read_metric("timbre_device_faults_total{device=\"0\",kind=\"batch\"} ") +
                    read_metric("timbre_device_faults_total{device=\"1\",kind=\"batch\"} ") ==
                1);
    assert_true(read_metric("timbre_device_faults_total{device=\"0\",kind=\"lost\"} ") == 0);
    assert_true(read_metric("timbre_device_faults_total{device=\"1\",kind=\"lost\"} ") == 0);
}

/* Batches on both devices fail while others wait: told once and before anybody else, then all are refused; a
 * model that is loaded afterwards is as good as any. */
static void test_a_lost_device(void **state) {
    enum { WAITING = 30 };
    const struct engine_request_options o = bed_raw(model, replies);
    struct engine_model *other = bed_load(engine, "other");
    struct status st;
    (void)state;
    hold(2);
    for (int i = 0; i < WAITING; i++)
        bed_send(&o, 1000);
    struct engine_request_options elsewhere = o;
    elsewhere.model = other;
    struct engine_request *opened = bed_open(&elsewhere, 1000);
    bed_send(&elsewhere, 1000);
    atomic_store(&losing, true);
    atomic_store(&faults, 1000);
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < WAITING + 3; i++) {
        struct engine_request *r = queue_take(replies);
        assert_int_equal(engine_get_result(r)->status.code, STATUS_UNAVAILABLE);
        assert_string_equal(engine_get_result(r)->status.message,
                            "the device failed and is lost to this process: an illegal address");
        engine_close(r);
    }
    assert_int_equal(atomic_load(&told), 1);
    assert_int_equal(replies_when_told, 0);
    assert_true(engine_model_is_lost(model) && engine_model_is_lost(other));
    assert_int_equal(engine_finish(opened, false, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    engine_close(opened);
    struct engine_load load;
    engine_measure(engine, &load);
    assert_true(load.requests == 0 && load.queued_s == 0 && load.running_s == 0);
    assert_true(read_metric("timbre_dropped_total{reason=\"device\"} ") >= 1);
    assert_true(read_metric("kind=\"lost\"} ") >= 1);
    /* loaded anew */
    atomic_store(&losing, false);
    atomic_store(&faults, 0);
    engine_model_unload(model);
    engine_model_unload(other);
    model = bed_load(engine, "anew");
    const struct engine_request_options again = bed_raw(model, replies);
    bed_send(&again, 1000);
    bed_expect(replies, STATUS_OK);
    assert_int_equal(atomic_load(&told), 1);
}

static atomic_bool stop;

static void *keep_asking(void *arg) {
    struct queue *own;
    struct status st;
    (void)arg;
    assert_int_equal(queue_new(&own, 64, &st), 0);
    const struct engine_request_options o = bed_raw(model, own);
    while (!atomic_load(&stop)) {
        int sent = 0;
        for (int i = 0; i < 8; i++) {
            struct engine_request *r = bed_open(&o, (size_t)(1000 + 700 * i));
            if (engine_finish(r, i % 2 == 0, &st) == 0)
                sent++;
            else
                engine_close(r);
        }
        for (int i = 0; i < sent; i++)
            engine_close(queue_take(own));
    }
    queue_del(own);
    return NULL;
}

/* In the middle of traffic from all sides: everybody gets an answer. */
static void test_lost_under_traffic(void **state) {
    enum { ASKERS = 4 };
    pthread_t threads[ASKERS];
    (void)state;
    atomic_store(&stop, false);
    for (int i = 0; i < ASKERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, keep_asking, NULL), 0);
    usleep(50000);
    atomic_store(&losing, true);
    atomic_store(&faults, 1000000);
    for (int i = 0; i < 20000 && !engine_model_is_lost(model); i++)
        usleep(1000);
    assert_true(engine_model_is_lost(model));
    usleep(20000);
    atomic_store(&stop, true);
    for (int i = 0; i < ASKERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&told), 1);
    engine_model_unload(model);
}

/* ---- the workspace ---- */

/* What does not fit says which option to lower, and that a GPU's workers each need it. */
static void test_who_needs_memory(void **state) {
    const struct model_options o = {.threads = 1};
    struct engine_model *m;
    struct status st;
    (void)state;
    made_max = made_count + 2;
    assert_int_equal(engine_model_load(&m, engine, "large", BED_MODEL, &o, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(st.message, "max-batch-seconds 30, worker 3 of 4 (a GPU has 2, and each needs this): "
                                    "out of memory: 12345 bytes for activations");
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_one_worker_for_each),  WITH(test_bits_do_not_depend_on_the_worker),
        WITH(test_windows_over_workers), WITH(test_check_runs_on_all),
        WITH(test_a_failed_batch),       WITH(test_a_lost_device),
        WITH(test_lost_under_traffic),   WITH(test_who_needs_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
