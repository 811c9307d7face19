/* The engine with a real, tiny model: feeding in pieces, windows, the states of no answer, limits, cancel,
 * deadlines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/engine.h"

enum { RATE = 16000, REPLIES = 64 };

static struct engine *engine;
static struct engine_model *model;
static struct queue *replies;
static float speech[4 * RATE];

static int setup(void **state) {
    struct engine_options o;
    struct status st;
    unsigned seed = 7;
    (void)state;
    engine_options_init(&o);
    const struct model_options mo = {.threads = 2};
    o.audio.ffmpeg = "";
    if (queue_new(&replies, REPLIES, &st) || engine_new(&engine, &o, &st) ||
        engine_model_load(&model, engine, "base", TIMBRE_SOURCE_DIR "/tests/golden/base", &mo, &st)) {
        print_error("%s\n", st.message);
        return -1;
    }
    for (size_t i = 0; i < sizeof speech / sizeof *speech; i++) {
        seed = seed * 1664525u + 1013904223u;
        speech[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 2e-4f;
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    engine_del(engine);
    queue_del(replies);
    return 0;
}

static struct engine_request_options raw_options(void) {
    return (struct engine_request_options){
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = RATE, .channels = 1},
        .order = ENGINE_UNARY,
        .model = model,
        .replies = replies};
}

/* Opens, feeds in pieces of `piece` bytes, finishes, and waits for the reply. */
static struct engine_request *ask(const struct engine_request_options *o, const void *data, size_t bytes,
                                  size_t piece) {
    struct engine_request *r;
    struct status st;
    assert_int_equal(engine_open(&r, o, &st), 0);
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        assert_int_equal(engine_feed(r, (const char *)data + at, n, &st), 0);
    }
    assert_int_equal(engine_finish(r, false, &st), 0);
    struct engine_request *back = queue_take(replies);
    assert_ptr_equal(back, r);
    return back;
}

static void test_pieces_do_not_matter(void **state) {
    struct engine_request_options o = raw_options();
    const size_t pieces[] = {1 << 20, 4096, 997, 3};
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    float first[16];
    (void)state;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        struct engine_request *r = ask(&o, speech, RATE * sizeof *speech, pieces[i]);
        const struct engine_result *result = engine_get_result(r);
        assert_int_equal(result->outcome, ENGINE_OK);
        assert_int_equal(result->batch_size, 1);
        assert_true(result->dominant >= 0 && result->compute_ms > 0 && result->audio_s == 1.0);
        if (i == 0)
            memcpy(first, result->logits, (size_t)labels * sizeof *first);
        assert_memory_equal(first, result->logits, (size_t)labels * sizeof *first);
        engine_close(r);
    }
}

/* A window's scores are those of its samples sent alone; the clip's are the mean by length. */
static void test_windows_equal_clips(void **state) {
    struct engine_request_options o = raw_options(), whole = raw_options();
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    (void)state;
    o.window_s = 1.0;
    o.hop_s = 0.5;
    struct engine_request *r = ask(&o, speech, (size_t)(2.25 * RATE) * sizeof *speech, 1000);
    const struct engine_result *result = engine_get_result(r);
    assert_int_equal(result->windows_count, 4);
    double mean = 0, length = 0;
    for (int i = 0; i < result->windows_count; i++) {
        const struct engine_window *w = &result->windows[i];
        size_t first = (size_t)(w->start_s * RATE), count = (size_t)((w->end_s - w->start_s) * RATE);
        struct engine_request *alone = ask(&whole, speech + first, count * sizeof *speech, 1 << 20);
        assert_int_equal(w->outcome, ENGINE_OK);
        assert_memory_equal(w->scores, engine_get_result(alone)->scores, (size_t)labels * sizeof(float));
        mean += (double)w->scores[0] * (double)count;
        length += (double)count;
        engine_close(alone);
    }
    assert_true(result->scores[0] == (float)(mean / length));
    assert_float_equal(result->windows[3].end_s, 2.25, 1e-9);
    engine_close(r);
}

static void test_no_answer_is_an_answer(void **state) {
    struct engine_request_options o = raw_options();
    static float silence[RATE];
    (void)state;
    struct engine_request *r = ask(&o, silence, sizeof silence, 1 << 20);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_NO_SPEECH);
    assert_null(engine_get_result(r)->scores);
    assert_int_equal(engine_get_result(r)->batch_size, 0);
    engine_close(r);
    r = ask(&o, speech, 100 * sizeof *speech, 1 << 20);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_TOO_SHORT);
    assert_non_null(strstr(engine_get_result(r)->status.message, "400"));
    engine_close(r);
    r = ask(&o, speech, 101, 1 << 20);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_ERROR);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_INVALID_ARGUMENT);
    engine_close(r);
}

static void test_cancel_and_deadline(void **state) {
    struct engine_request_options o = raw_options();
    struct engine_request *r;
    struct status st;
    (void)state;
    assert_int_equal(engine_open(&r, &o, &st), 0);
    assert_int_equal(engine_feed(r, speech, RATE * sizeof *speech, &st), 0);
    engine_cancel(r);
    assert_int_equal(engine_finish(r, false, &st), 0);
    assert_ptr_equal(queue_take(replies), r);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_CANCELLED);
    engine_close(r);
    o.deadline_ns = clock_now_ns() - 1;
    r = ask(&o, speech, RATE * sizeof *speech, 1 << 20);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_ERROR);
    assert_int_equal(engine_get_result(r)->status.code, STATUS_DEADLINE_EXCEEDED);
    engine_close(r);
}

static void test_refuses_bad_options(void **state) {
    struct engine_request_options o = raw_options();
    struct engine_request *r;
    struct status st;
    (void)state;
    o.window_s = 31;
    assert_int_equal(engine_open(&r, &o, &st), -1);
    assert_non_null(strstr(st.message, "window"));
    o.window_s = 1;
    o.hop_s = 2;
    assert_int_equal(engine_open(&r, &o, &st), -1);
    assert_non_null(strstr(st.message, "hop"));
}

/* Many at once: every request comes back once, with the bits it has alone. */
static void test_together_as_alone(void **state) {
    struct engine_request_options o = raw_options();
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    enum { MANY = 40 };
    float alone[MANY][16];
    struct status st;
    (void)state;
    for (int i = 0; i < MANY; i++) {
        struct engine_request *r =
            ask(&o, speech + 100 * i, (size_t)(800 + 700 * i) * sizeof *speech, 1 << 20);
        memcpy(alone[i], engine_get_result(r)->logits, (size_t)labels * sizeof(float));
        engine_close(r);
    }
    for (int i = 0; i < MANY; i++) {
        struct engine_request *r;
        o.user = alone[i];
        assert_int_equal(engine_open(&r, &o, &st), 0);
        assert_int_equal(engine_feed(r, speech + 100 * i, (size_t)(800 + 700 * i) * sizeof *speech, &st), 0);
        assert_int_equal(engine_finish(r, true, &st), 0);
    }
    int largest = 0;
    for (int i = 0; i < MANY; i++) {
        struct engine_request *r = queue_take(replies);
        assert_memory_equal(engine_get_result(r)->logits, engine_get_user(r), (size_t)labels * sizeof(float));
        if (engine_get_result(r)->batch_size > largest)
            largest = engine_get_result(r)->batch_size;
        engine_close(r);
    }
    assert_true(largest > 1); /* they did share batches */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_do_not_matter),   cmocka_unit_test(test_windows_equal_clips),
        cmocka_unit_test(test_no_answer_is_an_answer), cmocka_unit_test(test_cancel_and_deadline),
        cmocka_unit_test(test_refuses_bad_options),    cmocka_unit_test(test_together_as_alone)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
