/* Summaries: means, the timeline that doubles, the trend, talk-over; and that one which goes on from
 * another's report tells the same as one that was never interrupted. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/summary.h"

enum { LABELS = 3 };

static uint64_t seed;

static int random_to(int n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (unsigned)n);
}

static struct summary *start(int channels, const bool *excluded, double start_s,
                             const struct summary_report *before) {
    struct summary *s;
    struct status st;
    if (summary_new(&s, channels, excluded, LABELS, start_s, before, &st))
        fail_msg("%s", st.message);
    return s;
}

/* `count` frames with the same decision. */
static void add_frames(struct summary *s, int channel, int64_t first, int count, bool speech) {
    unsigned char decisions[1000];
    assert_true(count <= 1000);
    memset(decisions, speech, (size_t)count);
    summary_add_frames(s, channel, first, (size_t)count, decisions);
}

static void expect_near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance))
        fail_msg("%.17g is not %.17g", a, b);
}

/* ---- results ---- */

static void test_means(void **state) {
    static const float a[LABELS] = {1, 0, 0}, b[LABELS] = {0, 0.5f, 0.5f}, bad[LABELS] = {0, NAN, 1};
    (void)state;
    struct summary *s = start(1, NULL, 0, NULL);
    assert_null(summary_get(s)->channels[0].scores);
    summary_add_result(s, 0, 0, 2, 3, a, false);
    summary_add_result(s, 0, 10, 12, 1, b, false);
    summary_add_result(s, 0, 12, 14, 0, NULL, true);
    summary_add_result(s, 0, 14, 16, 1, NULL, false); /* too short */
    summary_add_result(s, 0, 14, 16, 1, bad, false);
    summary_count_forward(s, 0);
    summary_count_forward(s, 0);
    const struct summary_channel *c = &summary_get(s)->channels[0];
    assert_int_equal(c->results, 5);
    assert_int_equal(c->no_speech_results, 1);
    assert_int_equal(c->forwards, 2);
    expect_near((double)c->scores[0], 0.75, 1e-7);
    expect_near((double)c->scores[1], 0.125, 1e-7);
    assert_int_equal(c->timeline_count, 3);
    assert_true(c->timeline[0].scores && !c->timeline[1].scores && c->timeline[2].scores);
    expect_near(c->timeline[0].speech_s, 3, 0);
    expect_near(c->timeline[1].speech_s, 0, 0);
    expect_near(c->timeline[2].start_s, 10, 0);
    expect_near(c->timeline[2].end_s, 15, 0);
    expect_near((double)c->timeline[2].scores[1], 0.5, 1e-7);
    summary_del(s);
    /* Without any speech there are means all the same. */
    s = start(1, NULL, 0, NULL);
    summary_add_result(s, 0, 0, 2, 0, a, false);
    c = &summary_get(s)->channels[0];
    expect_near((double)c->scores[0], 1, 0);
    assert_true(c->timeline[0].speech_s > 0 && c->timeline[0].speech_s < 0.1);
    summary_del(s);
}

static void test_timeline_doubles(void **state) {
    (void)state;
    struct summary *s = start(2, NULL, 100, NULL);
    for (int i = 0; i < 5000; i++) { /* 2 s each */
        const float scores[LABELS] = {(float)i, 1, 0};
        summary_add_result(s, 0, 100 + 2 * i, 102 + 2 * i, 1 + i % 3, scores, false);
        const struct summary_channel *c = &summary_get(s)->channels[0];
        double weight = 0, sum = 0;
        assert_true(c->timeline_count <= SUMMARY_SEGMENTS_MAX);
        for (int k = 0; k < c->timeline_count; k++) {
            const struct summary_segment *t = &c->timeline[k];
            const double length_s = c->timeline[0].end_s - c->timeline[0].start_s;
            expect_near(t->start_s, 100 + k * length_s, 0);
            expect_near(t->end_s, 100 + (k + 1) * length_s, 0);
            weight += t->speech_s;
            if (!t->scores)
                continue;
            expect_near((double)t->scores[1], 1, 1e-6);
            /* Means of what lies in it. */
            assert_true((double)t->scores[0] * 2 + 101 >= t->start_s - 1e-3 &&
                        (double)t->scores[0] * 2 + 101 <= t->end_s + 1e-3);
            sum += t->speech_s * (double)t->scores[0];
        }
        expect_near(sum / weight, (double)c->scores[0], 1e-6 * (1 + i));
    }
    const struct summary_report *r = summary_get(s);
    assert_int_equal(r->channels[0].timeline_count, 32); /* 10,000 s by 320 */
    expect_near(r->channels[0].timeline[1].start_s, 420, 0);
    assert_int_equal(r->channels[1].timeline_count, 0);
    /* Far away: it goes on doubling; what has no place is left out. */
    const float one[LABELS] = {1, 1, 1};
    summary_add_result(s, 1, 5e8, 5e8 + 1, 1, one, false);
    summary_add_result(s, 1, INFINITY, INFINITY, 1, one, false);
    r = summary_get(s);
    assert_int_equal(r->channels[0].timeline_count, 1);
    assert_true(r->channels[1].timeline_count <= SUMMARY_SEGMENTS_MAX);
    assert_int_equal(r->channels[1].results, 2);
    summary_del(s);
}

static void test_trend(void **state) {
    static const float early[LABELS] = {0.2f, 0.8f, 0}, middle[LABELS] = {1, 0, 0},
                       late[LABELS] = {0.5f, 0.25f, 0.25f};
    (void)state;
    struct summary *s = start(1, NULL, 0, NULL);
    for (int i = 0; i < 30; i++) { /* a minute */
        add_frames(s, 0, 200 * i, 200, true);
        summary_add_result(s, 0, 2 * i, 2 * i + 2, 2, i < 10 ? early : i < 20 ? middle : late, false);
        if (i == 1)
            assert_null(summary_get(s)->channels[0].trend);
    }
    const float *trend = summary_get(s)->channels[0].trend;
    assert_non_null(trend);
    expect_near((double)trend[0], 0.3, 1e-6);
    expect_near((double)trend[1], -0.55, 1e-6);
    expect_near((double)trend[2], 0.25, 1e-6);
    /* Where the first third is silent there is none. */
    summary_del(s);
    s = start(1, NULL, 0, NULL);
    for (int i = 0; i < 30; i++)
        add_frames(s, 0, 200 * i, 200, true);
    summary_add_result(s, 0, 50, 60, 5, late, false);
    assert_null(summary_get(s)->channels[0].trend);
    summary_del(s);
}

/* ---- frames ---- */

static void test_talk_over(void **state) {
    static const bool excluded[] = {false, true, false};
    (void)state;
    struct summary *s = start(3, excluded, 0, NULL);
    add_frames(s, 0, 0, 500, true);
    add_frames(s, 1, 0, 900, true); /* excluded: nothing of it is counted */
    expect_near(summary_get(s)->end_s, 0, 0);
    add_frames(s, 2, 0, 100, false);
    add_frames(s, 2, 100, 200, true);
    const struct summary_report *r = summary_get(s);
    expect_near(r->end_s, 3, 0);
    expect_near(r->talk_over_s, 2, 1e-9);
    expect_near(r->channels[0].speech_s, 3, 1e-9);
    expect_near(r->channels[2].silence_s, 1, 1e-9);
    assert_true(r->channels[1].excluded && r->channels[1].speech_s == 0 && r->channels[1].results == 0);
    add_frames(s, 2, 300, 200, true);
    add_frames(s, 0, 400, 100, false); /* had already: the first decision counts */
    r = summary_get(s);
    expect_near(r->talk_over_s, 4, 1e-9);
    expect_near(r->end_s, 5, 0);
    summary_del(s);
}

/* Channels in pieces of any size, one ahead of the other, count as those that come frame by frame. */
static void test_frames_in_pieces(void **state) {
    static unsigned char speech[3][20000];
    (void)state;
    seed = 3;
    int64_t talk_over = 0, spoken[3] = {0};
    for (int n = 0; n < 20000; n++) {
        int speaking = 0;
        for (int c = 0; c < 3; c++) {
            speech[c][n] = (unsigned char)(random_to(50) ? (n ? speech[c][n - 1] : 0) : random_to(2));
            spoken[c] += speech[c][n];
            speaking += speech[c][n];
        }
        talk_over += speaking >= 2;
    }
    struct summary *s = start(3, NULL, 0, NULL);
    for (int at[3] = {0}; at[0] + at[1] + at[2] < 60000;) {
        const int c = random_to(3), least = at[0] < at[1] ? at[0] : at[1];
        int n = random_to(2500);
        n = n < 20000 - at[c] ? n : 20000 - at[c];
        if (at[c] + n > (least < at[2] ? least : at[2]) + 6000) /* up to 60 s ahead */
            continue;
        summary_add_frames(s, c, at[c], (size_t)n, speech[c] + at[c]);
        at[c] += n;
    }
    const struct summary_report *r = summary_get(s);
    expect_near(r->talk_over_s, (double)talk_over * 0.01, 1e-9);
    for (int c = 0; c < 3; c++) {
        expect_near(r->channels[c].speech_s, (double)spoken[c] * 0.01, 1e-9);
        expect_near(r->channels[c].speech_s + r->channels[c].silence_s, 200, 1e-9);
    }
    expect_near(r->end_s, 200, 0);
    summary_del(s);
}

/* Further ahead than is kept: each channel's own time is told all the same, talk-over as far as it is known.
 */
static void test_channel_far_ahead(void **state) {
    (void)state;
    struct summary *s = start(2, NULL, 0, NULL);
    for (int i = 0; i < 20; i++)
        add_frames(s, 0, 1000 * i, 1000, true); /* 200 s */
    const struct summary_report *r = summary_get(s);
    expect_near(r->end_s, 140, 0);
    expect_near(r->channels[0].speech_s, 140, 1e-9);
    for (int i = 0; i < 20; i++)
        add_frames(s, 1, 1000 * i, 1000, i % 2 == 0);
    r = summary_get(s);
    expect_near(r->end_s, 200, 0);
    expect_near(r->channels[0].speech_s, 200, 1e-9);
    expect_near(r->channels[1].speech_s, 100, 1e-9);
    expect_near(r->channels[1].silence_s, 100, 1e-9);
    expect_near(r->talk_over_s, 30, 1e-9);
    /* A gap takes no time. */
    add_frames(s, 0, INT64_C(1) << 50, 10, true);
    add_frames(s, 1, INT64_C(1) << 50, 10, true);
    r = summary_get(s);
    expect_near(r->channels[0].speech_s, 200.1, 1e-9);
    expect_near(r->talk_over_s, 30.1, 1e-9);
    summary_del(s);
}

/* ---- going on ---- */

static void expect_scores(const float *a, const float *b) {
    assert_int_equal(a == NULL, b == NULL);
    for (int i = 0; a && i < LABELS; i++)
        expect_near((double)a[i], (double)b[i], 1e-6);
}

static void expect_reports(const struct summary_report *a, const struct summary_report *b) {
    assert_int_equal(a->channels_count, b->channels_count);
    expect_near(a->start_s, b->start_s, 0);
    expect_near(a->end_s, b->end_s, 0);
    expect_near(a->talk_over_s, b->talk_over_s, 1e-9);
    for (int i = 0; i < a->channels_count; i++) {
        const struct summary_channel *x = &a->channels[i], *y = &b->channels[i];
        assert_int_equal(x->excluded, y->excluded);
        expect_near(x->speech_s, y->speech_s, 1e-9);
        expect_near(x->silence_s, y->silence_s, 1e-9);
        assert_int_equal(x->results, y->results);
        assert_int_equal(x->no_speech_results, y->no_speech_results);
        assert_int_equal(x->forwards, y->forwards);
        expect_scores(x->scores, y->scores);
        expect_scores(x->trend, y->trend);
        assert_int_equal(x->timeline_count, y->timeline_count);
        for (int k = 0; k < x->timeline_count; k++) {
            expect_near(x->timeline[k].start_s, y->timeline[k].start_s, 0);
            expect_near(x->timeline[k].end_s, y->timeline[k].end_s, 0);
            expect_near(x->timeline[k].speech_s, y->timeline[k].speech_s, 1e-9);
            expect_scores(x->timeline[k].scores, y->timeline[k].scores);
        }
    }
}

/* A second of a made-up stream. Frames of one channel may be ahead of the other's. */
static void add_second(struct summary *s, int second) {
    for (int c = 0; c < 2; c++) {
        const int lead = c == 0 ? 30 : 0;
        add_frames(s, c, 100 * second + (second ? lead : 0), 100 + (second ? 0 : lead), random_to(3) > 0);
        if (random_to(2))
            summary_count_forward(s, c);
        const float scores[LABELS] = {(float)random_to(1000) * 1e-3f, (float)second * 1e-3f, 0.5f};
        const int kind = random_to(8);
        if (kind < 6)
            summary_add_result(s, c, second - 2, second, kind * 0.3, kind ? scores : NULL, kind == 0);
    }
}

static void test_going_on(void **state) {
    (void)state;
    for (int seconds = 1; seconds < 1500; seconds = seconds * 2 + 7) {
        seed = (uint64_t)seconds;
        struct summary *whole = start(2, NULL, 0, NULL), *part = start(2, NULL, 0, NULL);
        for (int i = 0; i < seconds; i++) {
            const uint64_t now = seed;
            add_second(whole, i);
            seed = now;
            add_second(part, i);
            expect_reports(summary_get(part), summary_get(whole));
            if (random_to(20))
                continue;
            /* The next one takes what the report says, and is told again of frames that were counted. */
            struct summary *next = start(2, NULL, i, summary_get(part));
            expect_reports(summary_get(next), summary_get(whole));
            summary_del(part);
            part = next;
            add_frames(part, 0, 100 * i, 100, true);
            add_frames(part, 1, 100 * i, 100, true);
            /* What was ahead comes again too. */
            const uint64_t after = seed;
            seed = now;
            const bool speech = random_to(3) > 0;
            seed = after;
            add_frames(part, 0, 100 * (i + 1), 30, speech);
        }
        summary_del(whole);
        summary_del(part);
    }
}

static void expect_refused(const struct summary_report *before, const bool *excluded, const char *field) {
    struct summary *s;
    struct status st;
    assert_int_equal(summary_new(&s, 2, excluded, LABELS, 0, before, &st), -1);
    assert_null(s);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    if (strncmp(st.message, field, strlen(field)) != 0)
        fail_msg("%s, not about %s", st.message, field);
}

static void test_what_does_not_fit(void **state) {
    static const float good[LABELS] = {1, 0, 0}, bad[LABELS] = {1, INFINITY, 0}, odd[LABELS] = {NAN, 0, 0};
    static const bool excluded[] = {true, false};
    struct summary_segment timeline[SUMMARY_SEGMENTS_MAX] = {
        {0, 10, 2, good}, {10, 20, 0, NULL}, {0, 0, 0, NULL}, {30, 40, 1, good}};
    struct summary_report r = {.channels_count = 2, .end_s = 40};
    r.channels[1] = (struct summary_channel){
        .speech_s = 3, .results = 2, .scores = good, .timeline = timeline, .timeline_count = 4};
    const struct summary_report fits = r;
    struct summary *s;
    (void)state;
    summary_del(s = start(2, NULL, 0, &r));
    expect_refused(&r, excluded, "resume_summary.channels[0].excluded: ");
#define REFUSED(change, field)                                                                               \
    do {                                                                                                     \
        const struct summary_segment kept = timeline[3];                                                     \
        change;                                                                                              \
        expect_refused(&r, NULL, "resume_summary." field ": ");                                              \
        r = fits;                                                                                            \
        timeline[3] = kept;                                                                                  \
    } while (0)
    REFUSED(r.channels_count = 3, "channels");
    REFUSED(r.start_s = -1, "start_s");
    REFUSED(r.end_s = NAN, "end_s");
    REFUSED((r.start_s = 50), "end_s");
    REFUSED(r.talk_over_s = 1e300, "talk_over_s");
    REFUSED(r.channels[1].speech_s = -0.1, "channels[1].speech_s");
    REFUSED(r.channels[0].silence_s = INFINITY, "channels[0].silence_s");
    REFUSED(r.channels[1].results = -1, "channels[1].results");
    REFUSED(r.channels[1].no_speech_results = 3, "channels[1].no_speech_results");
    REFUSED(r.channels[1].forwards = INT64_MAX, "channels[1].forwards");
    REFUSED(r.channels[1].timeline_count = SUMMARY_SEGMENTS_MAX + 1, "channels[1].timeline");
    REFUSED(r.channels[1].scores = bad, "channels[1].scores");
    REFUSED(r.channels[1].scores = NULL, "channels[1].scores");
    REFUSED(r.channels[0].scores = good, "channels[0].scores");
    REFUSED(timeline[3].scores = odd, "channels[1].timeline[3].scores");
    REFUSED(timeline[3].scores = NULL, "channels[1].timeline[3].scores");
    REFUSED(timeline[3].speech_s = 0, "channels[1].timeline[3].scores");
    REFUSED(timeline[3].speech_s = NAN, "channels[1].timeline[3].speech_s");
    REFUSED(timeline[3].start_s = NAN, "channels[1].timeline[3].start_s");
    REFUSED(timeline[3].end_s = 50, "channels[1].timeline[3].end_s");
    REFUSED((timeline[3].start_s = 40, timeline[3].end_s = 50), "channels[1].timeline[3].start_s");
    summary_del(s = start(2, NULL, 0, &r));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_means),
        cmocka_unit_test(test_timeline_doubles),
        cmocka_unit_test(test_trend),
        cmocka_unit_test(test_talk_over),
        cmocka_unit_test(test_frames_in_pieces),
        cmocka_unit_test(test_channel_far_ahead),
        cmocka_unit_test(test_going_on),
        cmocka_unit_test(test_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
