/* Tests of server/telemetry. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "server/telemetry.h"

static const char *const methods[] = {"/timbre.v1.Timbre/Predict", "/grpc.health.v1.Health/Check"};
enum { METHODS = 2, TEXT_BYTES_MAX = 1 << 16 };

struct fixture {
    struct metrics *m;
    struct telemetry *t;
    char text[TEXT_BYTES_MAX];
};

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct status st;
    *state = f;
    return !f || metrics_new(&f->m, &st) || telemetry_new(&f->t, f->m, methods, METHODS, &st);
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    telemetry_del(f->t);
    metrics_del(f->m);
    free(f);
    return 0;
}

/* The value of a series, by what stands before it on its line; fails when it is not there. */
static double get(struct fixture *f, const char *series) {
    struct text t;
    text_init(&t, f->text, sizeof f->text);
    metrics_write(f->m, &t);
    assert_false(t.failed);
    char line[300];
    snprintf(line, sizeof line, "\n%s ", series);
    const char *at = strstr(f->text, line);
    if (!at)
        fail_msg("no %s in\n%s", series, f->text);
    assert_null(strstr(at + 1, line));
    return strtod(at + strlen(line), NULL);
}

static bool has(struct fixture *f, const char *words) {
    struct text t;
    text_init(&t, f->text, sizeof f->text);
    metrics_write(f->m, &t);
    return strstr(f->text, words) != NULL;
}

static void assert_value(struct fixture *f, const char *series, double value) {
    const double is = get(f, series);
    if (is != value)
        fail_msg("%s is %g, not %g", series, is, value);
}

static void test_calls(void **state) {
    struct fixture *f = *state;
    /* Before the first call the counters stand there, so that the first error is an increase. */
    assert_value(f, "timbre_requests_total{method=\"timbre.v1.Timbre/Predict\",code=\"OK\"}", 0);
    assert_value(f, "timbre_requests_total{method=\"timbre.v1.Timbre/Predict\",code=\"UNAVAILABLE\"}", 0);
    assert_value(f, "timbre_requests_in_flight{method=\"timbre.v1.Timbre/Predict\"}", 0);
    for (int i = 0; i < 3; i++)
        telemetry_begin_call(f->t, 0);
    telemetry_begin_call(f->t, 1);
    telemetry_count_call(f->t, 0, 0, 0.003);
    telemetry_count_call(f->t, 0, 8, 3);
    assert_value(f, "timbre_requests_in_flight{method=\"timbre.v1.Timbre/Predict\"}", 1);
    assert_value(f, "timbre_requests_in_flight{method=\"grpc.health.v1.Health/Check\"}", 1);
    telemetry_count_call(f->t, 0, 0, 0.3);
    telemetry_count_call(f->t, 1, 5, 0.3);
    assert_value(f, "timbre_requests_total{method=\"timbre.v1.Timbre/Predict\",code=\"OK\"}", 2);
    assert_value(f, "timbre_requests_total{method=\"timbre.v1.Timbre/Predict\",code=\"RESOURCE_EXHAUSTED\"}",
                 1);
    assert_value(f, "timbre_requests_total{method=\"grpc.health.v1.Health/Check\",code=\"NOT_FOUND\"}", 1);
    assert_value(f, "timbre_request_seconds_bucket{method=\"timbre.v1.Timbre/Predict\",le=\"0.005\"}", 1);
    assert_value(f, "timbre_request_seconds_count{method=\"timbre.v1.Timbre/Predict\"}", 3);
    assert_value(f, "timbre_requests_in_flight{method=\"timbre.v1.Timbre/Predict\"}", 0);
}

static void test_odd_calls(void **state) {
    struct fixture *f = *state;
    const int odd_methods[] = {-1, METHODS, 1 << 30, -(1 << 30)}, odd_codes[] = {-1, 17, 1 << 30, 2};
    for (int i = 0; i < 4; i++) {
        telemetry_begin_call(f->t, odd_methods[i]);
        telemetry_count_call(f->t, odd_methods[i], odd_codes[i], 1);
    }
    assert_value(f, "timbre_requests_total{method=\"unknown\",code=\"UNKNOWN\"}", 4);
    assert_value(f, "timbre_requests_in_flight{method=\"unknown\"}", 0);
}

/* The names are those of the standard, one for each number. */
static void test_codes(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};
    for (int code = 0; code < 17; code++)
        for (int i = 0; i <= code; i++)
            telemetry_count_call(f->t, 0, code, 0);
    for (int code = 0; code < 17; code++) {
        char series[200];
        snprintf(series, sizeof series,
                 "timbre_requests_total{method=\"timbre.v1.Timbre/Predict\",code=\"%s\"}", names[code]);
        assert_value(f, series, code + 1);
    }
}

static void test_refused(void **state) {
    struct fixture *f = *state;
    telemetry_count_refused(f->t, "QUEUE_FULL");
    telemetry_count_refused(f->t, "QUEUE_FULL");
    telemetry_count_refused(f->t, "DRAINING");
    telemetry_count_refused(f->t, "BAD_AUDIO");
    telemetry_count_refused(f->t, "");
    telemetry_count_refused(f->t, NULL);
    telemetry_count_received(f->t, 1000);
    telemetry_count_received(f->t, 24);
    assert_value(f, "timbre_refused_total{reason=\"queue_full\"}", 2);
    assert_value(f, "timbre_refused_total{reason=\"draining\"}", 1);
    assert_value(f, "timbre_refused_total{reason=\"unauthenticated\"}", 0);
    assert_value(f, "timbre_refused_total{reason=\"message_too_large\"}", 0);
    assert_false(has(f, "bad_audio"));
    assert_value(f, "timbre_received_bytes_total", 1024);
}

static void test_streams(void **state) {
    struct fixture *f = *state;
    static const char *const ends[] = {"client", "drain", "lifetime", "idle", "stall", "error", "cancelled"};
    char series[100];
    struct telemetry_stream one, two;
    assert_value(f, "timbre_streams", 0);
    telemetry_begin_stream(f->t, &one, "a");
    telemetry_begin_stream(f->t, &two, "b");
    assert_value(f, "timbre_streams", 2);
    telemetry_count_result(f->t, &one, ENGINE_OK, 0.015);
    telemetry_count_result(f->t, &one, ENGINE_OK, 0.4);
    telemetry_count_result(f->t, &one, ENGINE_NO_SPEECH, 0.001);
    telemetry_count_result(f->t, &two, ENGINE_ERROR, 0.001);
    telemetry_count_stream_audio(f->t, 1.5);
    telemetry_count_stream_audio(f->t, 2);
    assert_value(f, "timbre_stream_results_total{model=\"a\",status=\"ok\"}", 2);
    assert_value(f, "timbre_stream_results_total{model=\"a\",status=\"no_speech\"}", 1);
    assert_value(f, "timbre_stream_results_total{model=\"a\",status=\"error\"}", 0);
    assert_value(f, "timbre_stream_results_total{model=\"b\",status=\"error\"}", 1);
    assert_value(f, "timbre_stream_lag_seconds_count", 4);
    assert_value(f, "timbre_stream_lag_seconds_bucket{le=\"0.02\"}", 3);
    assert_value(f, "timbre_stream_audio_seconds_total", 3.5);
    for (int i = 0; i < TELEMETRY_ENDS; i++) { /* each adds to its own, which stands at 0 from the start */
        snprintf(series, sizeof series, "timbre_streams_ended_total{end=\"%s\"}", ends[i]);
        assert_value(f, series, 0);
        telemetry_begin_stream(f->t, &one, "a");
        telemetry_end_stream(f->t, (enum telemetry_end)i);
        assert_value(f, series, 1);
    }
    telemetry_end_stream(f->t, TELEMETRY_END_IDLE);
    assert_value(f, "timbre_streams", 1);
    assert_value(f, "timbre_streams_ended_total{end=\"idle\"}", 2);
}

static void test_states(void **state) {
    struct fixture *f = *state;
    assert_value(f, "timbre_ready", 0);
    telemetry_set_ready(f->t, true);
    assert_value(f, "timbre_ready", 1);
    telemetry_set_ready(f->t, false);
    assert_value(f, "timbre_ready", 0);
    assert_false(has(f, "timbre_build_info"));
    telemetry_set_build(f->t, "0.1.0", "cpu avx512", "f32");
    assert_value(f, "timbre_build_info{version=\"0.1.0\",device=\"cpu avx512\",precision=\"f32\"}", 1);
    telemetry_set_build(f->t, "0.1.0", "cpu avx512", "f32");
    assert_value(f, "timbre_build_info{version=\"0.1.0\",device=\"cpu avx512\",precision=\"f32\"}", 1);
    telemetry_set_build(f->t, "0.1.0", "other", "f32");
    assert_value(f, "timbre_build_info{version=\"0.1.0\",device=\"cpu avx512\",precision=\"f32\"}", 0);
    assert_value(f, "timbre_build_info{version=\"0.1.0\",device=\"other\",precision=\"f32\"}", 1);
    assert_false(has(f, "tls_certificate"));
    telemetry_set_tls_expiry(f->t, 1893456000);
    telemetry_set_tls_expiry(f->t, 1893456001);
    assert_value(f, "timbre_tls_certificate_expiry_seconds", 1893456001);
    assert_false(has(f, "timbre_model_state"));
    telemetry_set_model(f->t, "a", "1", 0);
    telemetry_set_model(f->t, "b", "1", 3);
    telemetry_set_model(f->t, "a", "1", 1);
    assert_value(f, "timbre_model_state{model=\"a\",version=\"1\",state=\"loading\"}", 0);
    assert_value(f, "timbre_model_state{model=\"a\",version=\"1\",state=\"ready\"}", 1);
    assert_value(f, "timbre_model_state{model=\"a\",version=\"1\",state=\"unloading\"}", 0);
    assert_value(f, "timbre_model_state{model=\"b\",version=\"1\",state=\"unavailable\"}", 1);
    telemetry_set_model(f->t, "a", "1", -1);
    assert_value(f, "timbre_model_state{model=\"a\",version=\"1\",state=\"ready\"}", 0);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void test_process(void **state) {
    struct fixture *f = *state;
    const double began = get(f, "process_start_time_seconds");
    assert_true(began < now_s() + 1 && began > now_s() - 600);

    const double fds = get(f, "process_open_fds");
    int more[3];
    for (int i = 0; i < 3; i++)
        more[i] = open("/dev/null", O_RDONLY);
    assert_value(f, "process_open_fds", fds + 3);
    for (int i = 0; i < 3; i++)
        close(more[i]);
    assert_true(get(f, "process_max_fds") >= fds);

    const size_t bytes = 64 << 20; /* a sanitizer takes several times that beside it */
    const double resident = get(f, "process_resident_memory_bytes");
    char *block = malloc(bytes);
    assert_non_null(block);
    memset(block, 1, bytes);
    assert_true(block[bytes / 2] == 1);
    const double grown = get(f, "process_resident_memory_bytes") - resident;
    assert_true(grown > 0.8 * (double)bytes && grown < 8 * (double)bytes);
    free(block);

    const double cpu = get(f, "process_cpu_seconds_total");
    struct timespec used, begin;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    while ((double)(used.tv_sec - begin.tv_sec) + (double)(used.tv_nsec - begin.tv_nsec) * 1e-9 < 0.2);
    const double more_cpu = get(f, "process_cpu_seconds_total") - cpu;
    assert_true(more_cpu >= 0.2 && more_cpu < 5);
}

static void test_null(void **state) {
    (void)state;
    telemetry_begin_call(NULL, 0);
    telemetry_count_call(NULL, 0, 0, 1);
    telemetry_count_refused(NULL, "QUEUE_FULL");
    telemetry_count_received(NULL, 1);
    telemetry_set_ready(NULL, true);
    telemetry_set_build(NULL, "", "", "");
    telemetry_set_model(NULL, "", "", 0);
    telemetry_set_tls_expiry(NULL, 0);
    struct telemetry_stream stream;
    telemetry_begin_stream(NULL, &stream, "a");
    telemetry_count_result(NULL, &stream, ENGINE_OK, 1);
    telemetry_count_stream_audio(NULL, 1);
    telemetry_end_stream(NULL, TELEMETRY_END_CLIENT);
    telemetry_del(NULL);
    struct telemetry *t; /* a server that counts nowhere */
    struct status st;
    assert_int_equal(telemetry_new(&t, NULL, methods, METHODS, &st), 0);
    telemetry_begin_call(t, 0);
    telemetry_count_call(t, 0, 0, 1);
    telemetry_set_model(t, "a", "1", 1);
    telemetry_set_tls_expiry(t, 1);
    telemetry_begin_stream(t, &stream, "a");
    telemetry_count_result(t, &stream, ENGINE_OK, 1);
    telemetry_end_stream(t, TELEMETRY_END_CLIENT);
    telemetry_del(t);
    assert_int_equal(telemetry_new(&t, NULL, methods, TELEMETRY_METHODS_MAX + 1, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_null(t);
}

enum { THREADS = 8, ROUNDS = 8000 };

static void *count(void *arg) {
    struct fixture *f = arg;
    for (int i = 0; i < ROUNDS; i++) {
        telemetry_begin_call(f->t, i % 3);
        telemetry_count_refused(f->t, "QUEUE_FULL");
        telemetry_count_received(f->t, 10);
        telemetry_count_call(f->t, i % 3, i % 17, 0.1);
    }
    return NULL;
}

static void test_many_threads(void **state) {
    struct fixture *f = *state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count, f), 0);
    for (int i = 0; i < 10; i++)
        has(f, "");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    double total = 0;
    assert_true(has(f, "timbre_requests_total"));
    for (const char *at = f->text; (at = strstr(at, "\ntimbre_requests_total{")); at++)
        total += strtod(strstr(at, "} ") + 2, NULL);
    assert_true(total == THREADS * ROUNDS);
    assert_value(f, "timbre_requests_in_flight{method=\"unknown\"}", 0);
    assert_value(f, "timbre_received_bytes_total", THREADS * ROUNDS * 10);
    assert_value(f, "timbre_refused_total{reason=\"queue_full\"}", THREADS * ROUNDS);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_calls),   TEST(test_odd_calls),    TEST(test_codes),
        TEST(test_refused), TEST(test_states),       TEST(test_process),
        TEST(test_null),    TEST(test_many_threads), TEST(test_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
