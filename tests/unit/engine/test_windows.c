/* Where windows lie: every sample is covered, windows come as a stream could give them. And which of them
 * have speech: a request and a stream say the same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "audio/vad.h"
#include "bed.h"
#include "engine/cutter.h"
#include "engine/windows.h"

static void test_known_cases(void **state) {
    int64_t first, length;
    (void)state;
    assert_int_equal(windows_count(0, 10, 5), 0);
    assert_int_equal(windows_count(1, 10, 5), 1);
    assert_int_equal(windows_count(10, 10, 5), 1);
    assert_int_equal(windows_count(11, 10, 5), 2);
    assert_int_equal(windows_count(15, 10, 5), 2);
    assert_int_equal(windows_count(16, 10, 5), 3);
    assert_int_equal(windows_count(20, 10, 10), 2);
    assert_int_equal(windows_count(21, 10, 10), 3);
    windows_get(16, 10, 5, 2, &first, &length);
    assert_int_equal(first, 10);
    assert_int_equal(length, 6);
}

/* Every window but the last is full, steps by hop, and the last ends where the clip ends. */
static void test_properties(void **state) {
    (void)state;
    for (int64_t window = 1; window <= 12; window++)
        for (int64_t hop = 1; hop <= window; hop++)
            for (int64_t n = 1; n <= 60; n++) {
                int64_t count = windows_count(n, window, hop), first = 0, length = 0;
                for (int64_t k = 0; k < count; k++) {
                    windows_get(n, window, hop, k, &first, &length);
                    assert_int_equal(first, k * hop);
                    assert_true(length >= 1 && length <= window);
                    if (k + 1 < count)
                        assert_int_equal(length, window);
                }
                assert_int_equal(first + length, n);
            }
}

/* A longer clip keeps the full windows of a shorter one: what a stream has given stays true. */
static void test_prefix(void **state) {
    (void)state;
    for (int64_t n = 1; n < 80; n++) {
        int64_t first, length, first_longer, length_longer;
        for (int64_t k = 0; k < windows_count(n, 10, 4); k++) {
            windows_get(n, 10, 4, k, &first, &length);
            windows_get(n + 13, 10, 4, k, &first_longer, &length_longer);
            assert_int_equal(first, first_longer);
            if (length == 10)
                assert_int_equal(length_longer, 10);
        }
    }
}

/* ---- windows without speech ---- */

enum { CALL_S = 40, CALL_SAMPLES = CALL_S * BED_RATE_HZ };

static float call[CALL_SAMPLES];

/* Steady noise, over which something like vowels is heard now and then; two seconds of nothing at last. */
static void make_call(void) {
    unsigned seed = 3;
    double phase = 0;
    for (int i = 0; i < CALL_SAMPLES; i++) {
        const double t = (double)i / BED_RATE_HZ;
        const bool speaks = fmod(t, 9.0) > 4.0 && fmod(t, 0.8) < 0.6;
        seed = seed * 1664525u + 1013904223u;
        call[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 5e-6f;
        phase = fmod(phase + (120 + 20 * sin(3 * t)) / BED_RATE_HZ, 1.0);
        for (int h = 1; speaks && h <= 20; h++)
            call[i] += (float)(0.1 / h * sin(2 * 3.14159265358979 * h * phase));
        if (t > CALL_S - 2)
            call[i] = 0;
    }
}

/* What a stream would give, fed in pieces, from `first_sample` on. */
static int cut_call(const struct cutter_options *o, struct cutter_piece *pieces, int most) {
    struct cutter *c;
    struct status st;
    int count = 0;
    assert_int_equal(cutter_new(&c, o, &st), 0);
    for (int64_t at = o->first_sample; at < CALL_SAMPLES; at += 777) {
        const int64_t n = CALL_SAMPLES - at < 777 ? CALL_SAMPLES - at : 777;
        assert_int_equal(cutter_feed(c, call + at, (size_t)n, &st), 0);
        for (; count < most && cutter_next(c, &pieces[count]); count++)
            pieces[count].samples = NULL;
    }
    assert_int_equal(cutter_finish(c, &st), 0);
    for (; count < most && cutter_next(c, &pieces[count]); count++)
        pieces[count].samples = NULL;
    assert_true(count < most);
    cutter_del(c);
    return count;
}

static void test_windows_without_speech(void **state) {
    const struct cutter_options cutter = {.rate_hz = BED_RATE_HZ,
                                          .window = BED_RATE_HZ * 3 / 2,
                                          .hop = BED_RATE_HZ * 7 / 10,
                                          .speech_s_min = 0.4};
    struct cutter_piece pieces[100];
    struct engine_options eo;
    struct queue *replies;
    struct engine_request *r;
    struct status st;
    int without = 0, with = 0;
    (void)state;
    make_call();
    const int count = cut_call(&cutter, pieces, 100);
    bed_options(&eo);
    assert_int_equal(queue_new(&replies, 4, &st), 0);
    struct engine *e = bed_start(&eo);
    struct engine_request_options o = bed_raw(bed_load(e, "base"), replies);
    o.window_s = 1.5;
    o.hop_s = 0.7;
    for (int round = 0; round < 2; round++) {
        o.speech_s_min = round ? 0.4 : 0;
        assert_int_equal(engine_open(&r, &o, &st), 0);
        assert_int_equal(engine_feed(r, call, sizeof call, &st), 0);
        assert_int_equal(engine_finish(r, true, &st), 0);
        assert_ptr_equal(queue_take(replies), r);
        const struct engine_result *result = engine_get_result(r);
        assert_int_equal(result->windows_count, count);
        for (int i = 0; i < count; i++) {
            const struct engine_window *w = &result->windows[i];
            assert_true(w->start_s == (double)pieces[i].first / BED_RATE_HZ);
            /* The noise is no silence by the level rule alone. */
            const bool no_speech = w->start_s > CALL_S - 2 || (round && pieces[i].no_speech);
            assert_int_equal(w->outcome, no_speech ? ENGINE_NO_SPEECH : ENGINE_OK);
            without += round && no_speech;
            with += round && !no_speech;
        }
        engine_close(r);
    }
    assert_true(without > 5 && with > 5);
    engine_del(e);
    queue_del(replies);
}

static void test_least_speech_is_checked(void **state) {
    static const struct {
        double window_s, speech_s_min;
        bool good;
    } cases[] = {{2, 0, true},   {2, 2, true},    {0, 0, true},   {2, 2.01, false},
                 {2, -1, false}, {0, 0.5, false}, {2, NAN, false}};
    struct engine_options eo;
    struct queue *replies;
    struct status st;
    (void)state;
    bed_options(&eo);
    assert_int_equal(queue_new(&replies, 4, &st), 0);
    struct engine *e = bed_start(&eo);
    struct engine_request_options o = bed_raw(bed_load(e, "base"), replies);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_request *r;
        o.window_s = cases[i].window_s;
        o.speech_s_min = cases[i].speech_s_min;
        assert_int_equal(engine_open(&r, &o, &st), cases[i].good ? 0 : -1);
        if (!cases[i].good) {
            assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
            assert_non_null(strstr(st.message, "min-speech"));
        }
        engine_close(r);
    }
    engine_del(e);
    queue_del(replies);
}

/* The voice-activity rule itself: gone on with after any piece, the rest is the same bit for bit. */
static void test_restart_by_the_real_rule(void **state) {
    const struct cutter_options modes[] = {
        {.rate_hz = BED_RATE_HZ, .window = 2 * BED_RATE_HZ, .hop = BED_RATE_HZ / 2},
        {.rate_hz = BED_RATE_HZ,
         .utterances = true,
         .length_s_min = 0.2,
         .length_s_max = 1.5,
         .hangover_s = 0.3,
         .interim_every_s = 0.25},
    };
    struct cutter_piece whole[200], rest[200];
    (void)state;
    make_call();
    for (size_t m = 0; m < 2; m++) {
        const int count = cut_call(&modes[m], whole, 200);
        double speech_s = 0;
        for (int i = 0; i < count; i++) {
            struct cutter_options o = modes[m];
            speech_s += whole[i].speech_s;
            if (!whole[i].final)
                continue;
            o.had_end = whole[i].first + whole[i].count;
            const int64_t begin = o.had_end - (o.utterances ? 0 : o.window - o.hop);
            const int64_t needed_s = begin / BED_RATE_HZ - VAD_MEMORY_S;
            o.first_sample = needed_s > 0 ? needed_s * BED_RATE_HZ : 0;
            assert_int_equal(cut_call(&o, rest, 200), count - i - 1);
            for (int k = i + 1; k < count; k++) {
                const struct cutter_piece *a = &whole[k], *b = &rest[k - i - 1];
                assert_true(a->first == b->first && a->count == b->count && a->final == b->final &&
                            a->no_speech == b->no_speech && a->speech_s == b->speech_s);
            }
        }
        assert_true(count > 10 && speech_s > 5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_cases),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_windows_without_speech),
        cmocka_unit_test(test_least_speech_is_checked),
        cmocka_unit_test(test_restart_by_the_real_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
