/* Live streams with a real, tiny model: the same bits however the audio is cut and whichever way it came,
 * channels apart, ends of every kind, going on elsewhere, limits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "bed.h"
#include "stream_bed.h"

enum { RATE = BED_RATE_HZ, LINE_RATE = 8000, SECONDS = 40, COUNT = SECONDS * RATE };

static struct engine *engine;
static struct engine_model *model;
static struct queue *replies;
static float sound[COUNT];
static unsigned char codes[2 * SECONDS * LINE_RATE]; /* two channels of mu-law, made of noise and pauses */

static unsigned next_random(unsigned *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Bursts of a buzzing voice of changing pitch, with pauses of silence in between. */
static void make_sound(void) {
    unsigned seed = 3;
    double phase = 0;
    for (int i = 0; i < COUNT; i++) {
        const double t = (double)i / RATE, pitch_hz = 120 + 40 * sin(t * 3);
        const bool speaks = fmod(t, 4.0) < 2.6 && fmod(t, 16.0) < 13;
        phase += pitch_hz / RATE;
        double x = 0;
        for (int k = 1; k < 20; k++)
            x += sin(2 * M_PI * k * phase) / k;
        x *= 0.1 * (0.6 + 0.4 * sin(t * 25));
        sound[i] = (float)((speaks ? x : 0) + ((int)(next_random(&seed) % 2001) - 1000) * 1e-7);
    }
    for (int i = 0; i < SECONDS * LINE_RATE; i++) {
        const bool a = i / LINE_RATE % 5 < 3, b = i / LINE_RATE % 7 < 4;
        codes[2 * i] = a ? (unsigned char)next_random(&seed) : 0xff;
        codes[2 * i + 1] = b ? (unsigned char)next_random(&seed) : 0xff;
    }
}

static int setup(void **state) {
    struct engine_options o;
    struct status st;
    (void)state;
    make_sound();
    bed_options(&o);
    o.streams_max = 20;
    if (queue_new(&replies, 8, &st))
        return -1;
    engine = bed_start(&o);
    model = bed_load(engine, "base");
    return 0;
}

static void pause_ms(int ms) {
    const struct timespec t = {.tv_nsec = ms * 1000000L};
    nanosleep(&t, NULL);
}

static int teardown(void **state) {
    (void)state;
    for (int ms = 0; engine_count_streams(engine) && ms < 10000; ms++)
        pause_ms(1);
    if (engine_count_streams(engine))
        return -1; /* a test that failed left its own, and the engine would wait for it */
    engine_del(engine);
    queue_del(replies);
    return 0;
}

static struct engine_stream_options mono(void) {
    return (struct engine_stream_options){
        .model = model,
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = RATE, .channels = 1},
        .window_s = 2,
        .hop_s = 0.75,
    };
}

static struct engine_stream_options line(int channels) {
    return (struct engine_stream_options){
        .model = model,
        .format = {.encoding = AUDIO_MULAW, .rate_hz = LINE_RATE, .channels = channels},
        .window_s = 1.5,
        .hop_s = 0.5,
    };
}

static void run(struct stream_bed *b, struct engine_stream_options o, const void *data, size_t bytes,
                size_t most, unsigned seed) {
    stream_bed_open(b, &o);
    stream_bed_feed_all(b, data, bytes, most, seed);
    engine_stream_finish(b->stream);
    stream_bed_end(b);
}

static void run_well(struct stream_bed *b, struct engine_stream_options o, const void *data, size_t bytes,
                     size_t most, unsigned seed) {
    run(b, o, data, bytes, most, seed);
    if (b->end != ENGINE_STREAM_FINISHED || b->status.code != STATUS_OK)
        fail_msg("%d: %s", b->end, b->status.message);
    assert_true(b->count > 0);
}

/* ---- the same bits ---- */

static void test_equals_upload(void **state) {
    struct engine_request_options o = bed_raw(model, replies);
    const struct engine_stream_options so = mono();
    (void)state;
    for (int round = 0; round < 2; round++) {
        const double speech_s_min = round ? 0.5 : 0;
        struct engine_stream_options each = so;
        struct stream_bed b;
        struct engine_request *r;
        struct status st;
        each.speech_s_min = speech_s_min;
        o.window_s = so.window_s;
        o.hop_s = so.hop_s;
        o.speech_s_min = speech_s_min;
        assert_int_equal(engine_open(&r, &o, &st), 0);
        assert_int_equal(engine_feed(r, sound, sizeof sound, &st), 0);
        assert_int_equal(engine_finish(r, false, &st), 0);
        assert_ptr_equal(queue_take(replies), r);
        const struct engine_result *result = engine_get_result(r);
        run_well(&b, each, sound, sizeof sound, 70000, 5);
        assert_int_equal(b.count, result->windows_count);
        int none = 0;
        for (int i = 0; i < b.count; i++) {
            const struct engine_window *w = &result->windows[i];
            assert_true(w->start_s == b.results[i].start_s && w->end_s == b.results[i].end_s);
            assert_int_equal(w->outcome, b.results[i].outcome);
            none += w->outcome == ENGINE_NO_SPEECH;
            if (w->scores)
                assert_memory_equal(w->scores, b.results[i].scores, (size_t)b.labels * sizeof(float));
        }
        assert_true(none > 0);
        assert_true(b.channels[0].forwards == b.count - none);
        engine_close(r);
        stream_bed_close(&b);
    }
}

static void test_chunks_do_not_matter(void **state) {
    const size_t most[] = {1, 7, 333, 9999};
    struct stream_bed whole, b;
    struct engine_stream_options windows = line(2), utterances = line(2);
    (void)state;
    windows.window_s = 0.5;
    windows.hop_s = 0.25;
    windows.smoothing_s = 3;
    utterances.utterances = true;
    utterances.interim_every_s = 0.5;
    const struct engine_stream_options kinds[] = {windows, utterances};
    for (int k = 0; k < 2; k++) {
        const size_t bytes = k ? sizeof codes : 4 * LINE_RATE; /* each chunk is a turn */
        run_well(&whole, kinds[k], codes, bytes, 0, 0);
        for (size_t i = k ? 2 : 0; i < sizeof most / sizeof *most; i++) {
            run_well(&b, kinds[k], codes, bytes, most[i], (unsigned)i);
            stream_bed_assert_equal(&whole, 0, &b, 0);
            stream_bed_assert_equal(&whole, 1, &b, 1);
            stream_bed_close(&b);
        }
        stream_bed_close(&whole);
    }
}

static void test_channels_are_apart(void **state) {
    static unsigned char left[SECONDS * LINE_RATE], changed[sizeof codes];
    struct stream_bed both, one, other;
    unsigned seed = 9;
    (void)state;
    for (size_t i = 0; i < sizeof left; i++) {
        left[i] = codes[2 * i];
        changed[2 * i] = codes[2 * i];
        changed[2 * i + 1] = (unsigned char)next_random(&seed);
    }
    run_well(&both, line(2), codes, sizeof codes, 4000, 1);
    run_well(&one, line(1), left, sizeof left, 3001, 2);
    stream_bed_assert_equal(&both, 0, &one, 0);
    struct engine_stream_options excluding = line(2);
    excluding.channels[1].excluded = true;
    run_well(&other, excluding, changed, sizeof changed, 999, 3);
    stream_bed_assert_equal(&both, 0, &other, 0);
    assert_true(other.channels[1].excluded);
    assert_true(other.channels[1].forwards == 0 && other.channels[1].results == 0);
    for (int i = 0; i < other.count; i++)
        assert_int_equal(other.results[i].channel, 0);
    assert_true(both.channels[1].forwards > 0 && both.talk_over_s >= 0);
    stream_bed_close(&both);
    stream_bed_close(&one);
    stream_bed_close(&other);
}

static void test_streams_share_nothing(void **state) {
    enum { STREAMS = 8 };
    struct stream_bed alone, beds[STREAMS];
    const size_t chunk = 1600;
    (void)state;
    run_well(&alone, line(2), codes, sizeof codes, 0, 0);
    for (int i = 0; i < STREAMS; i++) {
        struct engine_stream_options o = line(2);
        stream_bed_open(&beds[i], &o);
    }
    for (size_t at = 0; at < sizeof codes; at += chunk)
        for (int i = 0; i < STREAMS; i++)
            stream_bed_feed(&beds[i], codes + at, sizeof codes - at < chunk ? sizeof codes - at : chunk);
    for (int i = 0; i < STREAMS; i++)
        engine_stream_finish(beds[i].stream);
    for (int i = 0; i < STREAMS; i++) {
        stream_bed_end(&beds[i]);
        stream_bed_assert_equal(&alone, 0, &beds[i], 0);
        stream_bed_assert_equal(&alone, 1, &beds[i], 1);
        stream_bed_close(&beds[i]);
    }
    stream_bed_close(&alone);
}

/* ---- going on elsewhere ---- */

/* Goes on after result `had` of `whole`, or after the whole of a stream that was stopped (had = count), and
 * checks that both parts are what `whole` is. */
static void go_on(const struct stream_bed *part, int had, struct engine_stream_options o,
                  const struct stream_bed *whole) {
    struct stream_bed rest;
    const int64_t offset_ms =
        had < part->count ? part->results[had - 1].resume_offset_ms : part->resume_offset_ms;
    const size_t skipped = (size_t)(offset_ms / 1000) * (size_t)o.format.rate_hz * (size_t)o.format.channels;
    float smoothed[2][STREAM_BED_LABELS_MAX];
    o.resume_offset_ms = offset_ms;
    for (int i = 0; i < had; i++) {
        const struct stream_bed_result *r = &part->results[i];
        if (!r->final)
            continue;
        o.channels[r->channel].had_s = r->end_s;
        if (r->has_smoothed) {
            memcpy(smoothed[r->channel], r->smoothed, sizeof r->smoothed);
            o.channels[r->channel].smoothed = smoothed[r->channel];
        }
    }
    run(&rest, o, codes + skipped, sizeof codes - skipped, 5000, 4);
    assert_int_equal(rest.end, ENGINE_STREAM_FINISHED);
    struct stream_bed joined = {.results = calloc(STREAM_BED_RESULTS_MAX, sizeof *joined.results)};
    assert_non_null(joined.results);
    memcpy(joined.results, part->results, (size_t)had * sizeof *joined.results);
    memcpy(joined.results + had, rest.results, (size_t)rest.count * sizeof *joined.results);
    joined.count = had + rest.count;
    stream_bed_assert_equal(whole, 0, &joined, 0);
    stream_bed_assert_equal(whole, 1, &joined, 1);
    free(joined.results);
    stream_bed_close(&rest);
}

/* What only repeats is repeated less where every access is checked. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { RESUMES = 3, STOPS = 2, CLOSES = 60 };
#else
enum { RESUMES = 25, STOPS = 6, CLOSES = 200 };
#endif

static void check_resume(struct engine_stream_options o) {
    struct stream_bed whole, part;
    const double at_s[6] = {21.7, 33.3, 0.5, 7.3, 12, 39.9};
    run_well(&whole, o, codes, sizeof codes, 3000, 1);
    int offsets = 0;
    for (int had = 1; had < whole.count; had += 1 + whole.count / RESUMES) {
        go_on(&whole, had, o, &whole);
        offsets += whole.results[had - 1].resume_offset_ms > 0;
    }
    assert_true(offsets > 0);
    for (size_t i = 0; i < STOPS; i++) {
        stream_bed_open(&part, &o);
        stream_bed_feed_all(&part, codes, (size_t)(at_s[i] * LINE_RATE) * 2, 1000, 8);
        engine_stream_stop(part.stream);
        stream_bed_end(&part);
        assert_int_equal(part.end, ENGINE_STREAM_STOPPED);
        go_on(&part, part.count, o, &whole);
        stream_bed_close(&part);
    }
    stream_bed_close(&whole);
}

static void test_goes_on_windows(void **state) {
    struct engine_stream_options o = line(2);
    (void)state;
    o.smoothing_s = 4;
    check_resume(o);
    o.speech_s_min = 0.4;
    o.window_s = 3;
    o.hop_s = 1.3;
    check_resume(o);
}

static void test_goes_on_utterances(void **state) {
    struct engine_stream_options o = line(2);
    (void)state;
    o.utterances = true;
    o.interim_every_s = 1;
    o.length_s_max = 4;
    check_resume(o);
}

/* ---- ends ---- */

static void test_odd_bytes(void **state) {
    struct engine_stream_options o = line(2);
    struct stream_bed b;
    (void)state;
    run(&b, o, codes, 5 * 2 * LINE_RATE + 1, 777, 1);
    assert_int_equal(b.end, ENGINE_STREAM_FAILED);
    assert_int_equal(b.status.code, STATUS_INVALID_ARGUMENT);
    assert_true(b.count > 0 && b.summaries == 1);
    stream_bed_close(&b);
}

static void test_not_finite(void **state) {
    static float bad[4 * RATE];
    struct engine_stream_options o = mono();
    struct stream_bed b;
    (void)state;
    memcpy(bad, sound, sizeof bad);
    bad[3 * RATE] = NAN;
    run(&b, o, bad, sizeof bad, 5000, 1);
    assert_int_equal(b.end, ENGINE_STREAM_FAILED);
    assert_int_equal(b.status.code, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(b.status.message, "3.0"));
    assert_int_equal(b.count, 2); /* what was complete before it */
    stream_bed_close(&b);
}

static void test_empty(void **state) {
    struct engine_stream_options o = mono();
    struct stream_bed b;
    (void)state;
    stream_bed_open(&b, &o);
    stream_bed_feed(&b, NULL, 0);
    engine_stream_finish(b.stream);
    stream_bed_end(&b);
    assert_int_equal(b.end, ENGINE_STREAM_FINISHED);
    assert_int_equal(b.count, 0);
    assert_int_equal(b.summaries, 1);
    stream_bed_close(&b);
}

static void test_summaries(void **state) {
    struct engine_stream_options o = mono();
    struct stream_bed b;
    (void)state;
    o.summary_every_s = 5;
    stream_bed_open(&b, &o);
    stream_bed_feed_all(&b, sound, sizeof sound, 4000, 3);
    assert_in_range(b.summaries, SECONDS / 5 - 1, SECONDS / 5);
    const int before = b.summaries;
    engine_stream_summarise(b.stream);
    stream_bed_feed(&b, NULL, 0);
    while (b.summaries == before)
        stream_bed_take(&b, false);
    assert_int_equal(b.summaries, before + 1);
    engine_stream_finish(b.stream);
    stream_bed_end(&b);
    assert_true(b.end_s > SECONDS - 0.1 && b.end_s <= SECONDS);
    const struct summary_channel *c = &b.channels[0];
    assert_true(c->speech_s > SECONDS / 4.0 && c->silence_s > SECONDS / 4.0);
    assert_true(fabs(c->speech_s + c->silence_s - b.end_s) < 0.05);
    stream_bed_close(&b);
}

/* ---- limits ---- */

/* Options that are right but for one number; the message begins with the field's name in StreamConfig. */
static void expect_refused(const struct engine_stream_options *o, const char *field) {
    struct engine_stream *s;
    struct status st;
    if (engine_stream_open(&s, o, &st) == 0)
        fail_msg("%s was let in", field);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    if (strncmp(st.message, field, strlen(field)) != 0 || st.message[strlen(field)] != ':')
        fail_msg("%s: %s", field, st.message);
}

static void expect_taken(struct engine_stream_options *o) {
    struct stream_bed b;
    stream_bed_open(&b, o);
    stream_bed_close(&b);
}

static void test_formats(void **state) {
    static const struct {
        const char *field;
        int encoding, rate_hz, channels;
    } rows[] = {
        {"format.encoding", AUDIO_FILE, 8000, 1},         {"format.sample_rate_hz", AUDIO_PCM16, 7999, 1},
        {"format.sample_rate_hz", AUDIO_PCM16, 48001, 1}, {"format.channels", AUDIO_PCM16, 8000, 9},
        {"format.channels", AUDIO_PCM16, 8000, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct engine_stream_options o = mono();
        o.wake = free;
        o.format =
            (struct audio_format){(enum audio_encoding)rows[i].encoding, rows[i].rate_hz, rows[i].channels};
        expect_refused(&o, rows[i].field);
    }
}

static void test_numbers(void **state) {
    struct engine_stream_options o = {0};
    const struct {
        const char *field;
        double *value;
        bool utterances;
        double right[2], wrong[4];
    } rows[] = {
        {"windows.length_s", &o.window_s, false, {0.05, 30}, {0.04, 30.1, -1, NAN}},
        {"windows.hop_s", &o.hop_s, false, {0.1, 4}, {0.009, 4.1, 0.099, NAN}},
        {"windows.speech_s_min", &o.speech_s_min, false, {0, 4}, {-0.1, 4.1, INFINITY, NAN}},
        {"utterances.length_s_min", &o.length_s_min, true, {0.05, 5}, {0.04, 5.1, -1, NAN}},
        {"utterances.length_s_max", &o.length_s_max, true, {1, 30}, {0.9, 30.1, -1, NAN}},
        {"utterances.hangover_s", &o.hangover_s, true, {0.1, 5}, {0.09, 5.1, -1, NAN}},
        {"utterances.interim_every_s", &o.interim_every_s, true, {0.25, 30}, {0.24, 30.1, -1, NAN}},
        {"smoothing_s", &o.smoothing_s, false, {0.01, 3600}, {0.001, 3601, -1, NAN}},
        {"summary_every_s", &o.summary_every_s, false, {1, 86400}, {0.9, 86401, -1, NAN}},
        {"channels[0].resume_end_s", &o.channels[0].had_s, false, {0, 1e6}, {-0.5, 1e9, INFINITY, NAN}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < 4; k++) {
            o = mono();
            o.utterances = rows[i].utterances;
            o.window_s = 4;
            o.hop_s = 0; /* half of it */
            o.wake = free;
            *rows[i].value = rows[i].wrong[k];
            expect_refused(&o, rows[i].field);
            *rows[i].value = rows[i].right[k % 2];
            expect_taken(&o);
        }
    o = mono();
    o.wake = free;
    o.utterances = true;
    o.length_s_min = 3;
    o.length_s_max = 2;
    expect_refused(&o, "utterances.length_s_min");
}

static void test_offsets(void **state) {
    static const int64_t wrong[] = {1500, -1000, INT64_MAX / 1000 * 1000};
    float smoothed[STREAM_BED_LABELS_MAX] = {0};
    struct engine_stream_options o = mono();
    (void)state;
    o.wake = free;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        o.resume_offset_ms = wrong[i];
        expect_refused(&o, "resume_offset_ms");
    }
    o.resume_offset_ms = 0;
    o.channels[0].smoothed = smoothed;
    smoothed[1] = NAN;
    expect_refused(&o, "channels[0].resume_smoothed");
    o = mono();
    o.wake = free;
    o.channels[0].excluded = true;
    expect_refused(&o, "channels");
}

static void wait_for_streams(int count) {
    for (int ms = 0; engine_count_streams(engine) != count; ms++) {
        if (ms > 100000) /* a test before has left its own */
            fail_msg("%d streams are open, not %d", engine_count_streams(engine), count);
        pause_ms(1);
    }
}

static void test_streams_max(void **state) {
    struct stream_bed beds[20];
    struct engine_stream_options o = mono();
    struct engine_stream *s;
    struct status st;
    (void)state;
    wait_for_streams(0);
    for (int i = 0; i < 20; i++)
        stream_bed_open(&beds[i], &o);
    assert_int_equal(engine_stream_open(&s, &o, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "max-streams"));
    for (int i = 0; i < 20; i++)
        stream_bed_close(&beds[i]);
    wait_for_streams(0);
}

/* An owner who takes nothing stops the stream, not the memory. */
static void test_events_are_bounded(void **state) {
    struct engine_stream_options o = mono();
    struct stream_bed b;
    struct engine_load load;
    const struct engine_piece piece = {sound, sizeof sound};
    struct status st;
    (void)state;
    o.window_s = 0.2;
    o.hop_s = 0.1;
    stream_bed_open(&b, &o);
    assert_int_equal(engine_stream_feed(b.stream, &piece, 1, NULL, NULL, &st), 0);
    for (int quiet = 0; quiet < 50;) { /* until nothing has moved for a while */
        pause_ms(2);
        engine_measure(engine, &load);
        quiet = load.requests == 0 && load.running_s == 0 ? quiet + 1 : 0;
    }
    assert_int_equal(engine_stream_feed(b.stream, &piece, 1, NULL, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    assert_int_equal(b.count, 0);
    engine_stream_stop(b.stream); /* so no more come while these are taken */
    stream_bed_end(&b);
    assert_int_equal(b.count, ENGINE_STREAM_EVENTS_MAX);
    stream_bed_close(&b);
}

/* Closed at any time, with forwards on their way; the audio is given back exactly once. */
static atomic_int given, released;
static void release(void *arg) {
    free(arg);
    atomic_fetch_add(&released, 1);
}

static void test_closed_at_any_time(void **state) {
    unsigned seed = 11;
    (void)state;
    for (int i = 0; i < CLOSES; i++) {
        struct engine_stream_options o = i % 2 ? line(2) : mono();
        struct stream_bed b;
        struct status st;
        o.utterances = i % 4 == 1;
        stream_bed_open(&b, &o);
        for (unsigned n = next_random(&seed) % 4; n > 0 && !b.ended; n--) {
            const size_t bytes = (1 + next_random(&seed) % 40) * 8000;
            void *copy = malloc(bytes);
            assert_non_null(copy);
            memcpy(copy, i % 2 ? (const void *)codes : (const void *)sound, bytes);
            const struct engine_piece pieces[] = {{copy, bytes / 3},
                                                  {(char *)copy + bytes / 3, bytes - bytes / 3}};
            assert_int_equal(engine_stream_feed(b.stream, pieces, 2, release, copy, &st), 0);
            atomic_fetch_add(&given, 1);
            if (n > 1)
                stream_bed_take(&b, true);
        }
        if (i % 3 == 0)
            engine_stream_finish(b.stream);
        if (i % 5 == 0)
            engine_stream_stop(b.stream);
        if (i % 7 == 0)
            pause_ms(3);
        stream_bed_close(&b);
        if (i % 10 == 9)
            wait_for_streams(0);
    }
    wait_for_streams(0);
    assert_int_equal(atomic_load(&released), atomic_load(&given));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_upload),
        cmocka_unit_test(test_chunks_do_not_matter),
        cmocka_unit_test(test_channels_are_apart),
        cmocka_unit_test(test_streams_share_nothing),
        cmocka_unit_test(test_goes_on_windows),
        cmocka_unit_test(test_goes_on_utterances),
        cmocka_unit_test(test_odd_bytes),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_summaries),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_streams_max),
        cmocka_unit_test(test_events_are_bounded),
        cmocka_unit_test(test_closed_at_any_time),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
