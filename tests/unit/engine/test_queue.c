/* The engine while its device is held: what waits, who is refused and with which words, cancels and deadlines
 * that are told at once, release of given audio, transcoding apart from the rest. */
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

/* ---- the device, which a test can hold ---- */

int __real_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st);

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static atomic_int at_gate;

int __wrap_model_worker_run(struct model_worker *w, struct model_clip *clips, int count, struct status *st) {
    atomic_fetch_add(&at_gate, 1);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return __real_model_worker_run(w, clips, count, st);
}

static struct engine_options options;
static struct engine *engine;
static struct engine_model *model;
static struct queue *replies;
static struct engine_request_options raw, file;
static struct status st;

static void wait_until(bool (*is_so)(void)) {
    for (int i = 0; i < 20000 && !is_so(); i++)
        usleep(1000);
    assert_true(is_so());
}

static bool worker_is_held(void) {
    return atomic_load(&at_gate) == 1;
}

static bool one_waits(void) {
    struct engine_load load;
    engine_measure(engine, &load);
    return load.requests == 1;
}

static bool nobody_waits(void) {
    struct engine_load load;
    engine_measure(engine, &load);
    return load.requests == 0;
}

/* Starts, and holds the device with a first clip of 1 s. */
static void start_held(void) {
    engine = bed_start(&options);
    model = bed_load(engine, "base");
    raw = bed_raw(model, replies);
    file = raw;
    file.format = (struct audio_format){.encoding = AUDIO_FILE};
    pthread_mutex_lock(&gate);
    atomic_store(&at_gate, 0);
    bed_send(&raw, BED_RATE_HZ);
    wait_until(worker_is_held);
}

static void release_device(void) {
    pthread_mutex_unlock(&gate);
    bed_expect(replies, STATUS_OK); /* the first clip */
}

static int setup(void **state) {
    (void)state;
    bed_options(&options);
    options.batch_s_max = 30;
    memset(&st, 0, sizeof st);
    return queue_new(&replies, 4096, &st);
}

static int teardown(void **state) {
    (void)state;
    engine_del(engine);
    queue_del(replies);
    engine = NULL;
    return 0;
}

static void refuse(struct engine_request *r, const char *message) {
    assert_int_equal(engine_finish(r, false, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(st.message, message);
    engine_close(r);
}

/* ---- the door ---- */

static void test_depth(void **state) {
    struct engine_load load;
    (void)state;
    options.queue_depth = 4;
    start_held();
    for (int i = 0; i < 4; i++) {
        assert_int_equal(engine_check_room(engine, &st), 0);
        bed_send(&raw, BED_RATE_HZ);
    }
    assert_int_equal(engine_check_room(engine, &st), -1);
    assert_string_equal(st.message, "queue-depth: 4 requests are waiting");
    refuse(bed_open(&raw, BED_RATE_HZ), "queue-depth: 4 requests are waiting");
    engine_measure(engine, &load);
    assert_int_equal(load.requests, 4);
    assert_int_equal(load.requests_max, 4);
    assert_true(load.queued_s == 4 && load.running_s == 1 && load.rate == 0);
    assert_int_equal(engine_retry_after_ms(engine), 1000); /* nothing is known yet */
    release_device();
    for (int i = 0; i < 4; i++)
        bed_expect(replies, STATUS_OK);
    engine_measure(engine, &load);
    assert_true(load.requests == 0 && load.queued_s == 0 && load.running_s == 0 && load.rate > 0);
    assert_int_equal(engine_retry_after_ms(engine), 10);
}

static void test_seconds(void **state) {
    (void)state;
    options.queued_s_max = 5;
    start_held();
    bed_send(&raw, 3 * BED_RATE_HZ);
    refuse(bed_open(&raw, 3 * BED_RATE_HZ),
           "max-queued-seconds: 3.0 s of audio are waiting and this would add 3.0 s, the limit is 5");
    bed_send(&raw, 2 * BED_RATE_HZ);
    assert_int_equal(engine_check_room(engine, &st), -1);
    assert_string_equal(st.message, "max-queued-seconds: 5.0 s of audio are waiting, the limit is 5");
    release_device();
    bed_expect(replies, STATUS_OK);
    bed_expect(replies, STATUS_OK);
    wait_until(nobody_waits);
    /* longer than the limit, but nobody is there */
    pthread_mutex_lock(&gate);
    options.queued_s_max = 5;
    raw.format.rate_hz = 8000;
    bed_send(&raw, BED_NOISE_SAMPLES); /* 8 s */
    pthread_mutex_unlock(&gate);
    bed_expect(replies, STATUS_OK);
}

/* A file counts by its bytes, and by its length once that is known; then it may be one too many. */
static void test_a_file_that_is_longer_than_it_looked(void **state) {
    enum { WAV_BYTES = 44 + 32000 }; /* 4 s of 8 bit at 8 kHz, which looks like 1 s */
    unsigned char *wav = calloc(1, WAV_BYTES);
    const unsigned char header[] =
        "RIFF\x24\x7d\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\x7d\0";
    struct engine_load load;
    (void)state;
    memcpy(wav, header, 44);
    for (int i = 44; i < WAV_BYTES; i++)
        wav[i] = (unsigned char)(i * 37 % 251);
    options.queued_s_max = 6;
    start_held();
    for (int i = 0; i < 2; i++) {
        struct engine_request *r;
        assert_int_equal(engine_open(&r, &file, &st), 0);
        assert_int_equal(engine_feed(r, wav, WAV_BYTES, &st), 0);
        assert_int_equal(engine_finish(r, false, &st), 0);
        for (int k = 0; i == 0 && k < 5000; k++) {
            engine_measure(engine, &load);
            if (load.queued_s == 4)
                break;
            usleep(1000);
        }
    }
    assert_true(load.queued_s == 4);
    struct engine_request *r = queue_take(replies);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(engine_get_result(r)->status.message,
                        "max-queued-seconds: 4.0 s of audio are waiting, and this turned out to be 4.0 s "
                        "long; the limit is 6");
    engine_close(r);
    engine_measure(engine, &load);
    assert_true(load.requests == 1 && load.queued_s == 4);
    release_device();
    bed_expect(replies, STATUS_OK);
    free(wav);
}

/* One that waits for room gets it when somebody goes. */
static void *finish_patiently(void *arg) {
    struct status own;
    assert_int_equal(engine_finish(arg, true, &own), 0);
    return NULL;
}

static void test_patience(void **state) {
    pthread_t thread;
    (void)state;
    options.queue_depth = 1;
    start_held();
    bed_send(&raw, BED_RATE_HZ);
    assert_int_equal(pthread_create(&thread, NULL, finish_patiently, bed_open(&raw, BED_RATE_HZ)), 0);
    usleep(20000);
    refuse(bed_open(&raw, BED_RATE_HZ), "queue-depth: 1 requests are waiting");
    release_device();
    pthread_join(thread, NULL);
    bed_expect(replies, STATUS_OK);
    bed_expect(replies, STATUS_OK);
}

/* ---- who leaves is told at once, though the device is held ---- */

enum { MANY = 1000 };

static void check_many(bool by_deadline) {
    struct engine_request *r[MANY];
    start_held();
    const int64_t start_ns = clock_now_ns();
    if (by_deadline)
        raw.deadline_ns = start_ns + 300 * 1000000;
    for (int i = 0; i < MANY; i++)
        r[i] = bed_send(&raw, 1000);
    raw.deadline_ns = 0;
    bed_send(&raw, 1000);
    for (int i = 0; i < MANY && !by_deadline; i++)
        engine_cancel(r[i]);
    const int64_t cancelled_ns = by_deadline ? start_ns + 300 * 1000000 : clock_now_ns();
    for (int i = 0; i < MANY; i++)
        bed_expect(replies, by_deadline ? STATUS_DEADLINE_EXCEEDED : STATUS_CANCELLED);
    print_message("%d replies %.1f ms after they left\n", MANY, clock_elapsed_ms(cancelled_ns));
    assert_true(clock_elapsed_ms(cancelled_ns) < 5000);
    wait_until(one_waits);
    release_device();
    bed_expect(replies, STATUS_OK);
}

static void test_thousand_cancels(void **state) {
    (void)state;
    check_many(false);
}

static void test_thousand_deadlines(void **state) {
    (void)state;
    check_many(true);
}

/* ---- given audio ---- */

static atomic_int released;

static void count_release(void *arg) {
    atomic_fetch_add((atomic_int *)arg, 1);
}

static struct engine_request *give(const struct engine_request_options *o, const void *data, size_t bytes,
                                   size_t pieces) {
    struct engine_piece table[8];
    struct engine_request *r;
    assert_int_equal(engine_open(&r, o, &st), 0);
    for (size_t i = 0; i < pieces; i++)
        table[i] = (struct engine_piece){.data = (const char *)data + bytes * i / pieces,
                                         .bytes = bytes * (i + 1) / pieces - bytes * i / pieces};
    if (engine_give(r, table, pieces, count_release, &released, &st))
        fail_msg("%s", st.message);
    return r;
}

/* Once on every way a request can go, and no later than its close. */
static void test_release(void **state) {
    const size_t bytes = BED_RATE_HZ * sizeof *bed_noise;
    float logits[2][16];
    (void)state;
    options.audio.bytes_max = 1 << 20;
    start_held();
    const size_t labels = (size_t)model_get_info(engine_model_get(model))->labels_count;
    int expected = 0;
    atomic_store(&released, 0);
    /* never finished */
    engine_close(give(&raw, bed_noise, bytes, 1));
    assert_int_equal(atomic_load(&released), ++expected);
    /* cancelled, late, not decodable */
    struct engine_request *r = give(&raw, bed_noise, bytes, 2);
    engine_cancel(r);
    assert_int_equal(engine_finish(r, false, &st), 0);
    assert_ptr_equal(bed_expect(replies, STATUS_CANCELLED), r);
    assert_int_equal(atomic_load(&released), ++expected);
    raw.deadline_ns = 1;
    assert_int_equal(engine_finish(give(&raw, bed_noise, bytes, 1), false, &st), 0);
    raw.deadline_ns = 0;
    bed_expect(replies, STATUS_DEADLINE_EXCEEDED);
    assert_int_equal(atomic_load(&released), ++expected);
    assert_int_equal(engine_finish(give(&raw, bed_noise, 3, 1), false, &st), 0);
    bed_expect(replies, STATUS_INVALID_ARGUMENT);
    assert_int_equal(engine_finish(give(&raw, bed_noise, 0, 0), false, &st), 0);
    bed_expect(replies, STATUS_INVALID_ARGUMENT);
    assert_int_equal(atomic_load(&released), expected += 2);
    /* refused by engine_give: not released, and not taken */
    struct engine_piece much[] = {{bed_noise, 1 << 19}, {bed_noise, SIZE_MAX}};
    assert_int_equal(engine_open(&r, &raw, &st), 0);
    assert_int_equal(engine_give(r, much, 2, count_release, &released, &st), -1);
    assert_non_null(strstr(st.message, "max-file-bytes (1048576 bytes)"));
    engine_close(r);
    r = give(&raw, bed_noise, bytes, 1);
    assert_int_equal(engine_give(r, much, 1, count_release, &released, &st), -1);
    assert_int_equal(engine_feed(r, bed_noise, 4, &st), -1);
    engine_close(r);
    assert_int_equal(atomic_load(&released), ++expected);
    /* in one piece and in seven, and released before the device was free */
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(engine_finish(give(&raw, bed_noise, bytes, i ? 7 : 1), false, &st), 0);
        expected++;
    }
    for (int i = 0; i < 5000 && atomic_load(&released) < expected; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&released), expected);
    release_device();
    for (int i = 0; i < 2; i++) {
        r = queue_take(replies);
        memcpy(logits[i], engine_get_result(r)->logits, labels * sizeof **logits);
        engine_close(r);
    }
    assert_memory_equal(logits[0], logits[1], labels * sizeof **logits);
    assert_int_equal(atomic_load(&released), expected);
}

/* ---- ffmpeg apart from the rest ---- */

/* With every transcode thread hanging and their half of the room full, raw audio goes as if nothing were. */
static void test_slow_files_wait_for_each_other(void **state) {
    char program[64];
    (void)state;
    if (!bed_make_hanging_program(program)) {
        print_message("SKIPPED: no hanging program for this processor\n");
        skip();
    }
    options.audio.ffmpeg = program;
    options.audio.decode_ms_max = 3000;
    options.queue_depth = 16;
    start_held();
    release_device();
    void *mp4 = bed_make_mp4(32000);
    atomic_store(&released, 0);
    const int64_t start_ns = clock_now_ns();
    struct engine_request *slow[10];
    /* two hang, eight may wait: the last is refused, the others are still there */
    for (int i = 0; i < 10; i++) {
        assert_int_equal(engine_finish(slow[i] = give(&file, mp4, 32000, 2), false, &st), 0);
        usleep(20000);
    }
    assert_int_equal(atomic_load(&released), 10); /* of pieces there is a copy */
    for (int i = 0; i < 20; i++) {
        bed_send(&raw, BED_RATE_HZ);
        bed_expect(replies, STATUS_OK);
    }
    assert_true(clock_elapsed_ms(start_ns) < 2500);
    struct engine_request *ninth = give(&file, mp4, 32000, 1);
    assert_int_equal(engine_finish(ninth, false, &st), 0);
    struct engine_request *back = queue_take(replies);
    assert_ptr_equal(back, ninth);
    assert_int_equal(engine_get_result(back)->status.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(engine_get_result(back)->status.message, "wait for ffmpeg"));
    engine_close(back);
    /* who waits for ffmpeg can leave without it */
    for (int i = 2; i < 10; i++)
        engine_cancel(slow[i]);
    for (int i = 2; i < 10; i++)
        bed_expect(replies, STATUS_CANCELLED);
    assert_true(clock_elapsed_ms(start_ns) < 2900);
    bed_expect(replies, STATUS_DEADLINE_EXCEEDED); /* decode-timeout-ms */
    bed_expect(replies, STATUS_DEADLINE_EXCEEDED);
    free(mp4);
    unlink(program);
}

static void test_no_ffmpeg(void **state) {
    (void)state;
    options.audio.ffmpeg = "/nowhere/ffmpeg";
    start_held();
    release_device();
    void *mp4 = bed_make_mp4(1000);
    assert_int_equal(engine_finish(give(&file, mp4, 1000, 3), false, &st), 0);
    struct engine_request *r = queue_take(replies);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(engine_get_result(r)->status.message, "MP4"));
    engine_close(r);
    free(mp4);
}

/* ---- deadlines at the measured rate ---- */

/* What cannot be done in time is not begun. */
static void test_hopeless(void **state) {
    (void)state;
    start_held();
    usleep(400000); /* 1 s of audio takes 0.4 s of the device */
    release_device();
    raw.deadline_ns = clock_now_ns() + 200 * 1000000;
    bed_send(&raw, 4 * BED_RATE_HZ);
    struct engine_request *r = queue_take(replies);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_DEADLINE_EXCEEDED);
    assert_non_null(strstr(engine_get_result(r)->status.message, "cannot be done before its deadline"));
    engine_close(r);
}

/* ---- wakes ---- */

static atomic_int wakes;

static void count_wake(void *arg) {
    atomic_fetch_add((atomic_int *)arg, 1);
}

/* Requests that are done together and share a wake are told once; without a queue each is. */
static void test_wakes(void **state) {
    (void)state;
    start_held();
    raw.wake = count_wake;
    raw.wake_arg = &wakes;
    atomic_store(&wakes, 0);
    for (int i = 0; i < 20; i++)
        bed_send(&raw, 1000);
    usleep(50000); /* until they are prepared */
    release_device();
    for (int i = 0; i < 20; i++)
        bed_expect(replies, STATUS_OK);
    engine_model_unload(model);
    model = NULL;
    for (int i = 0; i < 1000 && atomic_load(&wakes) == 0; i++)
        usleep(1000);
    assert_true(atomic_load(&wakes) >= 1 && atomic_load(&wakes) < 20);
}

static struct engine_request *handed[20];
static atomic_int handed_count;

static void take_over(void *arg) {
    (void)arg;
    atomic_fetch_add(&handed_count, 1);
}

static void test_wake_alone(void **state) {
    (void)state;
    start_held();
    struct engine_request_options o = raw;
    o.replies = NULL;
    o.wake = take_over;
    atomic_store(&handed_count, 0);
    for (int i = 0; i < 20; i++)
        handed[i] = bed_send(&o, 1000);
    release_device();
    for (int i = 0; i < 5000 && atomic_load(&handed_count) < 20; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&handed_count), 20);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(engine_get_result(handed[i])->outcome, ENGINE_OK);
        engine_close(handed[i]);
    }
    o.wake = NULL;
    struct engine_request *r;
    assert_int_equal(engine_open(&r, &o, &st), -1);
}

/* ---- metrics ---- */

static double read_metric(struct metrics *m, const char *series) {
    struct text t;
    text_init_growing(&t);
    metrics_write(m, &t);
    assert_false(t.failed);
    const char *at = strstr(t.data, series);
    if (!at)
        fail_msg("no %s in:\n%s", series, t.data);
    double value = atof(at + strlen(series));
    text_free(&t);
    return value;
}

static void test_metrics(void **state) {
    struct metrics *m;
    (void)state;
    assert_int_equal(metrics_new(&m, &st), 0);
    options.metrics = m;
    start_held();
    for (int i = 0; i < 3; i++)
        bed_send(&raw, 1000);
    struct engine_request *r = bed_send(&raw, 1000);
    assert_true(read_metric(m, "\ntimbre_queue_requests ") == 4);
    assert_true(read_metric(m, "\ntimbre_queue_audio_seconds ") == 4000.0 / BED_RATE_HZ);
    engine_cancel(r);
    bed_expect(replies, STATUS_CANCELLED);
    release_device();
    for (int i = 0; i < 3; i++)
        bed_expect(replies, STATUS_OK);
    assert_true(read_metric(m, "\ntimbre_queue_requests ") == 0);
    assert_true(read_metric(m, "\ntimbre_queue_audio_seconds ") == 0);
    assert_true(read_metric(m, "\ntimbre_dropped_total{reason=\"cancelled\"} ") == 1);
    assert_true(read_metric(m, "\ntimbre_dropped_total{reason=\"deadline\"} ") == 0);
    const double audio_s = read_metric(m, "\ntimbre_audio_seconds_total{model=\"base\"} ");
    assert_true(audio_s > 1.18749 && audio_s < 1.18751);
    /* 1000 samples take four steps of 320: 280 are wasted, three times; 16000 waste nothing */
    const double waste_s = read_metric(m, "\ntimbre_padding_waste_seconds_total{model=\"base\"} ");
    assert_true(waste_s > 0.05249 && waste_s < 0.05251);
    assert_true(read_metric(m, "\ntimbre_device_busy_seconds_total{device=\"0\"} ") > 0);
    assert_true(read_metric(m, "\ntimbre_queue_seconds_count{model=\"base\"} ") == 4);
    assert_true(read_metric(m, "\ntimbre_compute_seconds_count{model=\"base\"} ") >= 2);
    assert_true(read_metric(m, "\ntimbre_batch_clips_sum{model=\"base\"} ") == 4);
    assert_true(read_metric(m, "\ntimbre_batch_audio_seconds_sum{model=\"base\"} ") == audio_s);
    assert_true(read_metric(m, "\ntimbre_prepare_seconds_count{decoder=\"raw\"} ") >= 4);
    assert_true(read_metric(m, "\ntimbre_weight_bytes{model=\"base\"} ") > 1000);
    engine_del(engine);
    engine = NULL;
    metrics_del(m);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_depth),
        WITH(test_seconds),
        WITH(test_a_file_that_is_longer_than_it_looked),
        WITH(test_patience),
        WITH(test_thousand_cancels),
        WITH(test_thousand_deadlines),
        WITH(test_release),
        WITH(test_slow_files_wait_for_each_other),
        WITH(test_no_ffmpeg),
        WITH(test_hopeless),
        WITH(test_wakes),
        WITH(test_wake_alone),
        WITH(test_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
