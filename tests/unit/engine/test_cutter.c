/* Where windows lie: as windows.h says; and that windows and utterances are the same, bit for bit, however
 * the samples were cut and wherever a stream was gone on with, in bounded memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cutter_bed.h"
#include "engine/cutter_internal.h"
#include "engine/windows.h"

/* The stand-in for the rule. */
int __wrap_vad_hop(int rate_hz);
int __wrap_vad_length(int rate_hz);
int __wrap_vad_new(struct vad **out, int rate_hz, int64_t first_sample, struct status *st);
void __wrap_vad_del(struct vad *v);
size_t __wrap_vad_bound(const struct vad *v, size_t count);
size_t __wrap_vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech);

/* ---- memory that runs out ---- */

void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);

static long left = -1; /* allocations until the one that fails; negative: none fails */

static bool fails(void) {
    return left >= 0 && left-- == 0;
}

/* Zeroed, so that what is found in it later was put there. */
void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_calloc(n, 1);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}

/* ---- windows ---- */

/* What windows.h and the whole signal's frames say. */
static void expect_windows(const struct signal *s, const struct cutter_options *o, int64_t begin,
                           const struct list *whole, const struct list *l) {
    size_t n = 0;
    for (int64_t k = 0; k < windows_count(s->count, o->window, o->hop); k++) {
        int64_t first, count;
        windows_get(s->count, o->window, o->hop, k, &first, &count);
        if (first < begin || first + count <= o->had_end)
            continue;
        assert_true(n < l->count);
        const struct cutter_piece *p = &l->pieces[n++];
        const double speech_s =
            cutter_measure_speech_s(whole->speech, whole->frames_count, o->rate_hz, first, count);
        assert_int_equal(p->first, first);
        assert_int_equal(p->count, count);
        assert_true(p->final);
        assert_true(p->speech_s == speech_s);
        assert_int_equal(p->no_speech, o->speech_s_min > 0 && speech_s < o->speech_s_min);
        if (p->samples)
            assert_memory_equal(p->samples, s->samples + first, (size_t)count * sizeof *s->samples);
    }
    assert_int_equal(n, l->count);
}

static void test_windows_are_those_of_a_file(void **state) {
    static const int rates_hz[] = {8000, 11025, 16000};
    (void)state;
    vad_has_memory = true;
    for (chance = 1; chance <= 60; chance++) {
        const uint64_t begin = chance;
        const int rate_hz = rates_hz[chance % 3];
        struct signal s = signal_make_call(rate_hz, chance_s(0.01, 20));
        struct cutter_options o = chance_windows(rate_hz);
        struct list whole = list_cut(&s, &o, 1 + chance_to(3000));
        expect_windows(&s, &o, 0, &whole, &whole);
        o.had_end = chance_to(s.count + 2 * rate_hz);
        struct list rest = list_cut(&s, &o, 1 + chance_to(30000));
        expect_windows(&s, &o, 0, &whole, &rest);
        /* A stream that is joined late, with nothing had. */
        o.had_end = 0;
        o.first_sample = rate_hz * (1 + chance_to(8));
        struct list late = list_cut(&s, &o, 1 + chance_to(30000));
        expect_windows(&s, &o, o.first_sample + (int64_t)VAD_MEMORY_S * rate_hz, &whole, &late);
        list_free(&whole);
        list_free(&rest);
        list_free(&late);
        free(s.samples);
        chance = begin;
    }
}

/* A window is there with its last sample, and not before; the rest at the end; nothing when nothing is left.
 */
static void test_windows_come_at_once(void **state) {
    const struct cutter_options o = {.rate_hz = 8000, .window = 4000, .hop = 1000, .speech_s_min = 0.2};
    struct cutter_piece piece;
    struct cutter *c;
    struct status st;
    (void)state;
    assert_int_equal(cutter_new(&c, &o, &st), 0);
    const float loud = 0.9f;
    for (int64_t n = 1; n <= 7000; n++) {
        assert_int_equal(cutter_feed(c, &loud, 1, &st), 0);
        const bool due = n >= 4000 && n % 1000 == 0;
        assert_int_equal(cutter_next(c, &piece), due);
        if (due) {
            assert_int_equal(piece.first, n - 4000);
            assert_int_equal(piece.count, 4000);
            assert_false(cutter_next(c, &piece));
        }
    }
    assert_int_equal(cutter_finish(c, &st), 0);
    assert_false(cutter_next(c, &piece)); /* the last one ended with the signal */
    assert_int_equal(cutter_feed(c, &loud, 1, &st), -1);
    cutter_del(c);
}
/* ---- the same bits, however it was cut ---- */

static void test_chunks_do_not_matter(void **state) {
    (void)state;
    vad_has_memory = true;
    for (chance = 1; chance <= 30; chance++) {
        const uint64_t begin = chance;
        const int rate_hz = chance % 2 ? 8000 : 16000;
        struct signal s = signal_make_call(rate_hz, 45);
        const struct cutter_options o = chance % 3 ? chance_utterances(rate_hz) : chance_windows(rate_hz);
        struct list whole = list_cut(&s, &o, 2 * s.count), small = list_cut(&s, &o, 97),
                    large = list_cut(&s, &o, 50000);
        list_expect_same(&whole, 0, &small);
        list_expect_same(&whole, 0, &large);
        assert_int_equal(whole.frames_count, small.frames_count);
        assert_memory_equal(whole.speech, small.speech, (size_t)small.frames_count);
        list_free(&whole);
        list_free(&small);
        list_free(&large);
        free(s.samples);
        chance = begin;
    }
}

/* A cutter that goes on after any final piece, with the audio from the second that is needed, gives the rest.
 */
static void expect_restarts(const struct signal *s, const struct cutter_options *o) {
    struct list whole = list_cut(s, o, 8000);
    for (size_t i = 0; i < whole.count; i++) {
        if (!whole.pieces[i].final)
            continue;
        struct cutter_options rest_options = *o;
        rest_options.had_end = whole.pieces[i].first + whole.pieces[i].count;
        rest_options.first_sample = whole.needed[i] / o->rate_hz * o->rate_hz;
        const int64_t back = rest_options.had_end - whole.needed[i];
        assert_true(back <= (int64_t)VAD_MEMORY_S * o->rate_hz + (o->utterances ? 0 : o->window - o->hop));
        struct list rest = list_cut(s, &rest_options, 8000);
        list_expect_same(&whole, i + 1, &rest);
        list_free(&rest);
    }
    list_free(&whole);
}

/* What only repeats is repeated less where every access is checked. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { WINDOWS_ROUNDS = 1, UTTERANCES_ROUNDS = 3 };
#else
enum { WINDOWS_ROUNDS = 4, UTTERANCES_ROUNDS = 12 };
#endif

static void test_restart_windows(void **state) {
    (void)state;
    vad_has_memory = true;
    for (chance = 1; chance <= WINDOWS_ROUNDS; chance++) {
        const uint64_t begin = chance;
        const int rate_hz = chance == 3 ? 11025 : 8000;
        struct signal s = signal_make_call(rate_hz, 60);
        struct cutter_options o = chance_windows(rate_hz);
        o.window += rate_hz; /* not too many of them */
        o.hop = o.hop > rate_hz / 4 ? o.hop : rate_hz / 4;
        expect_restarts(&s, &o);
        free(s.samples);
        chance = begin;
    }
}

static void test_restart_utterances(void **state) {
    (void)state;
    vad_has_memory = true;
    for (chance = 1; chance <= UTTERANCES_ROUNDS; chance++) {
        const uint64_t begin = chance;
        const int rate_hz = chance % 8 == 3 ? 11025 : 8000;
        struct signal s = signal_make_call(rate_hz, 100);
        const struct cutter_options o = chance_utterances(rate_hz);
        expect_restarts(&s, &o);
        free(s.samples);
        chance = begin;
    }
}

/* Before the first final piece everything is needed. */
static void test_needed_at_first(void **state) {
    struct cutter_options o = utterance_options;
    struct cutter *c;
    struct status st;
    (void)state;
    o.first_sample = 3 * 8000;
    assert_int_equal(cutter_new(&c, &o, &st), 0);
    assert_int_equal(cutter_find_needed(c), 3 * 8000);
    cutter_del(c);
    o.had_end = 12 * 8000;
    assert_int_equal(cutter_new(&c, &o, &st), 0);
    assert_int_equal(cutter_find_needed(c), 4 * 8000);
    cutter_del(c);
}

/* ---- memory ---- */

/* Outside of what is held no sample is left: those of the signal are all loud. */
static void expect_clean(const struct cutter *c) {
    const size_t held = cutter_count_held(c);
    for (size_t i = 0; i < c->capacity; i++)
        if (i < c->at || i >= c->at + held)
            assert_false(c->block[i] >= 0.4f && c->block[i] <= 1.0f);
}

static void expect_bound(const struct cutter_options *o, double length_s, int64_t bound) {
    enum { CHUNK = 1000 };
    struct cutter *c;
    struct status st;
    struct cutter_piece piece;
    float chunk[CHUNK];
    size_t most = 0, most_capacity = 0, most_frames = 0;
    assert_int_equal(cutter_new(&c, o, &st), 0);
    bool speech = true;
    for (int64_t n = 0, change = 0; (double)n < length_s * o->rate_hz; n += CHUNK) {
        if (n >= change) {
            speech = !speech;
            change = n + (int64_t)(chance_s(0.1, chance_to(5) ? 3 : 60) * o->rate_hz);
        }
        for (int i = 0; i < CHUNK; i++)
            chunk[i] = speech ? 0.8f : i % 8 == 0 ? 0.45f : 0;
        assert_int_equal(cutter_feed(c, chunk, CHUNK, &st), 0);
        most = cutter_count_held(c) > most ? cutter_count_held(c) : most;
        int64_t first;
        const unsigned char *frames;
        (void)cutter_take_frames(c, &first, &frames);
        while (cutter_next(c, &piece))
            ;
        most_capacity = c->capacity > most_capacity ? c->capacity : most_capacity;
        most_frames = c->speech_capacity > most_frames ? c->speech_capacity : most_frames;
        if (chance_to(40) == 0)
            expect_clean(c);
    }
    assert_true((int64_t)most <= bound + CHUNK);
    assert_true((int64_t)most_capacity <= (bound + CHUNK) * 5 / 4 + 1);
    assert_true(most_frames <= 100 * 60);
    assert_int_equal(cutter_finish(c, &st), 0);
    while (cutter_next(c, &piece))
        ;
    expect_clean(c);
    cutter_del(c);
}

static void test_memory_is_bounded(void **state) {
    struct cutter_options o = utterance_options;
    (void)state;
    vad_has_memory = false;
    chance = 11;
    /* The longest utterance, and what shows that it is over. */
    o.length_s_max = 4;
    o.hangover_s = 5;
    expect_bound(&o, 1800, (int64_t)(4.1 * 8000));
    o.hangover_s = 0.1;
    o.length_s_min = 3;
    expect_bound(&o, 1800, (int64_t)(4.1 * 8000));
    const struct cutter_options windows = {.rate_hz = 8000, .window = 10000, .hop = 3000};
    expect_bound(&windows, 1800, 10000);
}

static void test_memory_runs_out(void **state) {
    struct signal s = {.rate_hz = 8000};
    struct status st = {0};
    (void)state;
    signal_put(&s, 0.9, 3);
    long n = 0;
    for (bool done = false; !done; n++) {
        struct cutter *c;
        left = n;
        int result = cutter_new(&c, &utterance_options, &st);
        for (int64_t at = 0; result == 0 && at < s.count; at += 2000)
            result = cutter_feed(c, s.samples + at, 2000, &st);
        done = left >= 0;
        left = -1;
        assert_int_equal(result, done ? 0 : -1);
        if (!done)
            assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
        cutter_del(c);
    }
    assert_true(n > 5);
    free(s.samples);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows_are_those_of_a_file), cmocka_unit_test(test_windows_come_at_once),
        cmocka_unit_test(test_chunks_do_not_matter),        cmocka_unit_test(test_restart_windows),
        cmocka_unit_test(test_restart_utterances),          cmocka_unit_test(test_needed_at_first),
        cmocka_unit_test(test_memory_is_bounded),           cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
