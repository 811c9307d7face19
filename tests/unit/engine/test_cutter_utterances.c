/* Where utterances and silences lie, by the rule of docs/streaming.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cutter_bed.h"

/* The stand-in for the voice-activity rule. */
int __wrap_vad_hop(int rate_hz);
int __wrap_vad_length(int rate_hz);
int __wrap_vad_new(struct vad **out, int rate_hz, int64_t first_sample, struct status *st);
void __wrap_vad_del(struct vad *v);
size_t __wrap_vad_bound(const struct vad *v, size_t count);
size_t __wrap_vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech);

static void expect_piece(const struct list *l, size_t i, double first_s, double end_s, bool final,
                         bool no_speech) {
    assert_true(i < l->count);
    const struct cutter_piece *p = &l->pieces[i];
    const double got_first_s = (double)p->first / 8000, got_end_s = (double)(p->first + p->count) / 8000;
    if (got_first_s - first_s > 1e-9 || first_s - got_first_s > 1e-9 || got_end_s - end_s > 1e-9 ||
        end_s - got_end_s > 1e-9)
        fail_msg("piece %zu is %g .. %g s, not %g .. %g", i, got_first_s, got_end_s, first_s, end_s);
    assert_int_equal(p->final, final);
    assert_int_equal(p->no_speech, no_speech);
}

/* Frames of 30 ms have speech (here) from 20 ms before a sound, which takes them over the threshold. */
static void test_utterances_by_the_rule(void **state) {
    struct cutter_options o = utterance_options;
    struct signal s = {.rate_hz = 8000};
    (void)state;
    vad_has_memory = false;
    chance = 5;
    signal_put(&s, 0, 2);
    signal_put(&s, 0.9, 1); /* 2 .. 3 */
    signal_put(&s, 0, 0.4); /* shorter than the hangover */
    signal_put(&s, 0.9, 1); /* 3.4 .. 4.4 */
    signal_put(&s, 0, 1.6);
    signal_put(&s, 0.9, 0.2); /* 6 .. 6.2: too little */
    signal_put(&s, 0, 3.8);
    signal_put(&s, 0.9, 0.01); /* 10: a click */
    signal_put(&s, 0, 0.99 + 24);
    signal_put(&s, 0.9, 20); /* 35 .. 55: too long */
    signal_put(&s, 0, 3);
    signal_put(&s, 0.9, 1); /* 58 .. 59, where it all ends */
    struct list l = list_cut(&s, &o, 1000);
    assert_int_equal(l.count, 6);
    expect_piece(&l, 0, 1.88, 4.52, true, false);
    expect_piece(&l, 1, 4.52, 19.52, true, true);
    expect_piece(&l, 2, 19.52, 34.52, true, true);
    expect_piece(&l, 3, 34.88, 49.88, true, false);
    expect_piece(&l, 4, 49.88, 55.12, true, false);
    expect_piece(&l, 5, 57.88, 59, true, false);
    assert_true(l.pieces[1].speech_s > 0.2 && l.pieces[1].speech_s < 0.3); /* what was dropped is told */
    list_free(&l);

    o.interim_every_s = 0.5;
    l = list_cut(&s, &o, 1000);
    expect_piece(&l, 0, 1.88, 2.38, false, false);
    expect_piece(&l, 1, 1.88, 2.88, false, false);
    expect_piece(&l, 2, 1.88, 3.88, false, false); /* at 3.38 nobody spoke */
    expect_piece(&l, 3, 1.88, 4.38, false, false);
    expect_piece(&l, 4, 1.88, 4.52, true, false);
    expect_piece(&l, 5, 4.52, 19.52, true, true);
    list_free(&l);
    free(s.samples);
}

/* A pause of 50 frames without speech ends an utterance, one of 49 does not. */
static void test_hangover_to_the_frame(void **state) {
    (void)state;
    vad_has_memory = false;
    for (int joined = 0; joined < 2; joined++) {
        struct signal s = {.rate_hz = 8000};
        signal_put(&s, 0, 2);
        signal_put(&s, 0.9, 1);
        signal_put(&s, 0, joined ? 0.51 : 0.52);
        signal_put(&s, 0.9, 1);
        signal_put(&s, 0, 2);
        struct list l = list_cut(&s, &utterance_options, 1000);
        assert_int_equal(l.count, joined ? 1 : 2);
        expect_piece(&l, 0, 1.88, joined ? 4.63 : 3.12, true, false);
        list_free(&l);
        free(s.samples);
    }
}

/* A silence is told only when nothing can begin in it any more. */
static void test_where_silences_end(void **state) {
    struct signal s = {.rate_hz = 8000};
    (void)state;
    vad_has_memory = false;
    signal_put(&s, 0, 2);
    signal_put(&s, 0.9, 1);   /* to 3.12 */
    signal_put(&s, 0, 15.15); /* the silence would be to 18.12 */
    signal_put(&s, 0.9, 1);   /* 18.15 .. 19.15 */
    signal_put(&s, 0, 15.17); /* 19.27 .. 34.27, and the signal ends soon after that */
    struct list l = list_cut(&s, &utterance_options, 1000);
    assert_int_equal(l.count, 3);
    expect_piece(&l, 0, 1.88, 3.12, true, false);
    expect_piece(&l, 1, 18.03, 19.27, true, false);
    expect_piece(&l, 2, 19.27, 34.27, true, true);
    list_free(&l);
    free(s.samples);
}

/* Gone on with in the midst of speech, and, against the advice, without what is needed of the audio before.
 */
static void test_begins_where_it_is_told(void **state) {
    struct cutter_options o = utterance_options;
    struct signal s = {.rate_hz = 8000};
    (void)state;
    vad_has_memory = false;
    o.first_sample = o.had_end = 5 * 8000;
    signal_put(&s, 0.9, 10);
    struct list l = list_cut(&s, &o, 1000);
    assert_int_equal(l.count, 1);
    expect_piece(&l, 0, 5, 10, true, false);
    list_free(&l);
    o.had_end = 3 * 8000;
    l = list_cut(&s, &o, 1000);
    expect_piece(&l, 0, 5, 10, true, false);
    list_free(&l);
    /* Nothing was had: from where the decisions are sure. */
    signal_put(&s, 0.9, 10);
    o.had_end = 0;
    l = list_cut(&s, &o, 1000);
    expect_piece(&l, 0, 5 + VAD_MEMORY_S, 20, true, false);
    list_free(&l);
    free(s.samples);
}

/* Order, sizes, and that no longer stretch of speech is lost. */
static void test_utterances_in_general(void **state) {
    (void)state;
    vad_has_memory = true;
    for (chance = 1; chance <= 25; chance++) {
        const uint64_t begin = chance;
        struct signal s = signal_make_call(8000, 120);
        const struct cutter_options o = chance_utterances(8000);
        struct list l = list_cut(&s, &o, 4000);
        int64_t end = 0, last = 0;
        size_t at = 0;
        for (size_t i = 0; i < l.count; i++) {
            const struct cutter_piece *p = &l.pieces[i];
            assert_true(p->first >= end && p->first + p->count >= last);
            assert_true(p->first + p->count <= s.count);
            last = p->first + p->count;
            end = p->final ? last : end;
            if (p->no_speech) {
                assert_int_equal(p->count, (int64_t)(CUTTER_SILENCE_S * 8000));
                continue;
            }
            assert_true((double)p->count <= o.length_s_max * 8000 + 80);
            assert_true(p->speech_s >= o.length_s_min - 0.01);
            assert_memory_equal(p->samples, s.samples + p->first, (size_t)p->count * sizeof(float));
        }
        /* A run of speech with twice the least is in utterances: what is dropped at length_s_max, or left
         * behind it, is less than the least. */
        for (int64_t run = 0, n = 0; n < l.frames_count; n++) {
            run = l.speech[n] ? run + 1 : 0;
            for (; at < l.count && (!l.pieces[at].final || l.pieces[at].first + l.pieces[at].count <= n * 80);
                 at++)
                run = l.speech[n];
            if ((double)run * 0.01 < 2 * o.length_s_min + 0.2)
                continue;
            if (at == l.count || l.pieces[at].no_speech || l.pieces[at].first > n * 80)
                fail_msg("seed %llu: speech at %g s is in none", (unsigned long long)begin, (double)n * 0.01);
        }
        list_free(&l);
        free(s.samples);
        chance = begin;
    }
}
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utterances_by_the_rule), cmocka_unit_test(test_hangover_to_the_frame),
        cmocka_unit_test(test_where_silences_end),     cmocka_unit_test(test_begins_where_it_is_told),
        cmocka_unit_test(test_utterances_in_general),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
