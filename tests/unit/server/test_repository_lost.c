/* The repository when the device of its models is lost: they are loaded anew, as many as there are, and what
 * cannot be loaded says why. The test's thread is the completion-queue thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/metrics.h"
#include "server/repository.h"

#define MODEL TIMBRE_SOURCE_DIR "/tests/golden/base"

enum { MODELS = REPOSITORY_JOBS_MAX + 4, WAIT_MS = 60000, SAMPLES = 4000 };

/* ---- a device that can be lost, and tells what it is loaded for ---- */

int __real_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);
int __real_model_new(struct model **m, const char *dir, const struct model_options *o, struct status *st);

static atomic_bool lost;
static atomic_int loads_on_cpu;

int __wrap_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    if (atomic_load(&lost))
        return status_set(st, STATUS_INTERNAL, "an illegal address");
    return __real_model_worker_run(w, clips, count, st);
}

bool __wrap_model_worker_is_lost(const struct model_worker *w) {
    (void)w;
    return atomic_load(&lost);
}

int __wrap_model_new(struct model **m, const char *dir, const struct model_options *o, struct status *st) {
    if (o->device && strcmp(o->device, "cpu") == 0 && o->precision && strcmp(o->precision, "fp32") == 0)
        atomic_fetch_add(&loads_on_cpu, 1);
    return __real_model_new(m, dir, o, st);
}

/* ---- its life ---- */

static char names[MODELS][8];
static struct engine *engine;
static struct repository *repository;
static struct server_options options;
static struct metrics *metrics;
static struct queue *replies;
static struct status st;
static char missing[64];

static int setup(void **state) {
    (void)state;
    log_init(LOG_OFF, false);
    atomic_store(&lost, false);
    atomic_store(&loads_on_cpu, 0);
    memset(&options, 0, sizeof options);
    engine_options_init(&options.engine);
    options.engine.batch_s_max = 30;
    options.engine.audio.ffmpeg = "";
    options.model = (struct model_options){.threads = 1, .precision = "fp32"};
    strcpy(missing, "/tmp/timbre-test-XXXXXX");
    if (!mkdtemp(missing) || rmdir(missing) || symlink(MODEL, missing))
        return -1;
    for (int i = 0; i < MODELS; i++) {
        snprintf(names[i], sizeof names[i], "m%d", i);
        options.models[options.models_count++] =
            (struct server_model_option){.name = names[i], .dir = i == 1 ? missing : MODEL};
    }
    if (metrics_new(&metrics, &st))
        return -1;
    options.engine.metrics = metrics;
    return queue_new(&replies, 16, &st) || engine_new(&engine, &options.engine, &st) ||
           repository_new(&repository, engine, &options, &st);
}

static int teardown(void **state) {
    (void)state;
    repository_del(repository);
    engine_del(engine);
    queue_del(replies);
    metrics_del(metrics);
    unlink(missing);
    return 0;
}

static struct engine_request *ask(const char *name) {
    static float noise[SAMPLES];
    struct repository_entry *entry;
    struct engine_request *r;
    for (int i = 0; i < SAMPLES; i++)
        noise[i] = (float)(i * 7919 % 1000 - 500) * 1e-3f;
    if (repository_find(repository, name, "", &entry, &st))
        return NULL;
    const struct engine_request_options o = {
        .model = entry->model,
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = 16000, .channels = 1},
        .order = ENGINE_UNARY,
        .replies = replies};
    assert_int_equal(engine_open(&r, &o, &st), 0);
    assert_int_equal(engine_feed(r, noise, sizeof noise, &st), 0);
    if (engine_finish(r, false, &st)) {
        engine_close(r);
        return NULL;
    }
    return queue_take(replies);
}

static void assert_answered(const char *name) {
    struct engine_request *r = ask(name);
    if (!r)
        fail_msg("%s: %s", name, st.message);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
    engine_close(r);
}

static int count_state(enum repository_state state) {
    int count = 0;
    for (int i = 0; i < repository_count(repository); i++)
        count += repository_at(repository, i)->state == state;
    return count;
}

/* Until no model is loading, and what was retired is gone. */
static void wait_until_loaded(void) {
    for (int ms = 0; ms < WAIT_MS && count_state(REPOSITORY_LOADING); ms++) {
        usleep(1000);
        (void)repository_update(repository);
    }
    assert_int_equal(count_state(REPOSITORY_LOADING), 0);
}

static double read_weight_bytes(const char *name) {
    char series[80];
    struct text t;
    snprintf(series, sizeof series, "timbre_weight_bytes{model=\"%s\"} ", name);
    text_init_growing(&t);
    metrics_write(metrics, &t);
    const char *at = strstr(t.data, series);
    const double value = at ? atof(at + strlen(series)) : -1;
    text_free(&t);
    return value;
}

static void lose(void) {
    atomic_store(&lost, true);
    struct engine_request *r = ask("m0");
    assert_int_equal(engine_get_result(r)->status.code, STATUS_UNAVAILABLE);
    engine_close(r);
    /* the others share the device */
    assert_null(ask("m3"));
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    atomic_store(&lost, false);
}

static void test_all_move(void **state) {
    (void)state;
    assert_answered("m0");
    const double bytes = read_weight_bytes("m0");
    lose();
    repository_move_to_cpu(repository);
    assert_int_equal(count_state(REPOSITORY_READY), 0);
    assert_int_equal(count_state(REPOSITORY_LOADING), MODELS);
    assert_null(ask("m0"));
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    wait_until_loaded();
    assert_int_equal(count_state(REPOSITORY_READY), MODELS);
    assert_int_equal(atomic_load(&loads_on_cpu), MODELS);
    for (int i = 0; i < MODELS; i++)
        assert_answered(names[i]);
    for (int ms = 0; ms < WAIT_MS && read_weight_bytes("m0") != bytes; ms++)
        usleep(1000);
    assert_true(read_weight_bytes("m0") == bytes); /* the old one is gone */
}

static void test_one_cannot(void **state) {
    (void)state;
    lose();
    assert_int_equal(unlink(missing), 0);
    repository_move_to_cpu(repository);
    wait_until_loaded();
    assert_int_equal(count_state(REPOSITORY_READY), MODELS - 1);
    assert_null(ask("m1"));
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    if (!strstr(st.message, missing))
        fail_msg("%s", st.message);
    for (int ms = 0; ms < WAIT_MS && read_weight_bytes("m1") != 0; ms++)
        usleep(1000);
    assert_true(read_weight_bytes("m1") == 0);
    assert_answered("m2");
}

/* The server ends in the middle of it. */
static void test_end(void **state) {
    (void)state;
    lose();
    repository_move_to_cpu(repository);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {WITH(test_all_move), WITH(test_one_cannot), WITH(test_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
