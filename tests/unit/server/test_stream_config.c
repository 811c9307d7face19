/* timbre.v1.StreamConfig, read: what every field becomes, and every refusal with the name of its field. The
 * ranges of numbers are in the engine's test_stream.c and test_summary.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/stream_config.h"

enum { LABELS = 3, CHANNELS = 2, SEGMENTS = 2 };

/* A config that is right, with what a test may change. */
static struct {
    Timbre__V1__StreamConfig message;
    Timbre__V1__AudioFormat format;
    Timbre__V1__ChannelConfig channels[ENGINE_STREAM_CHANNELS_MAX + 1],
        *channel_list[ENGINE_STREAM_CHANNELS_MAX + 1];
    Timbre__V1__Windows windows;
    Timbre__V1__Utterances utterances;
    Timbre__V1__StreamSummary summary;
    Timbre__V1__ChannelSummary summaries[CHANNELS], *summary_list[CHANNELS];
    Timbre__V1__Score scores[LABELS], *score_list[LABELS], trend[LABELS], *trend_list[LABELS];
    Timbre__V1__TimelineSegment segments[SUMMARY_SEGMENTS_MAX + 1], *segment_list[SUMMARY_SEGMENTS_MAX + 1];
    float smoothed[LABELS], means[LABELS];
} q;

static struct stream_config config;
static char field[STREAM_FIELD_BYTES];
static struct status status;

static void reset(void) {
    memset(&q, 0, sizeof q);
    timbre__v1__stream_config__init(&q.message);
    timbre__v1__audio_format__init(&q.format);
    timbre__v1__windows__init(&q.windows);
    timbre__v1__utterances__init(&q.utterances);
    timbre__v1__stream_summary__init(&q.summary);
    for (int i = 0; i <= ENGINE_STREAM_CHANNELS_MAX; i++) {
        timbre__v1__channel_config__init(&q.channels[i]);
        q.channel_list[i] = &q.channels[i];
    }
    q.format.encoding = TIMBRE__V1__ENCODING__ENCODING_MULAW;
    q.format.sample_rate_hz = 8000;
    q.format.channels = CHANNELS;
    q.message.format = &q.format;
    q.message.channels = q.channel_list;
}

static void use_windows(void) {
    q.message.analysis_case = TIMBRE__V1__STREAM_CONFIG__ANALYSIS_WINDOWS;
    q.message.windows = &q.windows;
}

static void use_utterances(void) {
    q.message.analysis_case = TIMBRE__V1__STREAM_CONFIG__ANALYSIS_UTTERANCES;
    q.message.utterances = &q.utterances;
}

/* A summary to go on from: of the first channel all there is, of the second nothing. */
static void use_summary(void) {
    for (int i = 0; i < CHANNELS; i++) {
        timbre__v1__channel_summary__init(&q.summaries[i]);
        q.summaries[i].channel = i;
        q.summary_list[i] = &q.summaries[i];
    }
    for (int i = 0; i < LABELS; i++) {
        timbre__v1__score__init(&q.scores[i]);
        timbre__v1__score__init(&q.trend[i]);
        q.scores[i].index = q.trend[i].index = i;
        q.scores[i].score = q.means[i] = 0.25f * (float)i;
        q.trend[i].score = -0.125f * (float)i;
        q.score_list[i] = &q.scores[i];
        q.trend_list[i] = &q.trend[i];
    }
    for (int i = 0; i <= SUMMARY_SEGMENTS_MAX; i++) {
        timbre__v1__timeline_segment__init(&q.segments[i]);
        q.segment_list[i] = &q.segments[i];
    }
    q.segments[1] = q.segments[0];
    q.segments[1].start_s = 5;
    q.segments[1].end_s = 10;
    q.segments[1].speech_s = 2;
    q.segments[1].scores = q.means;
    q.segments[1].n_scores = LABELS;
    Timbre__V1__ChannelSummary *c = &q.summaries[0];
    c->speech_s = 4;
    c->silence_s = 6;
    c->results = 5;
    c->no_speech_results = 2;
    c->forwards = 3;
    c->scores = q.score_list;
    c->trend = q.trend_list;
    c->n_scores = c->n_trend = LABELS;
    c->timeline = q.segment_list;
    c->n_timeline = SEGMENTS;
    q.summary.channels = q.summary_list;
    q.summary.n_channels = CHANNELS;
    q.summary.end_s = 10;
    q.summary.talk_over_s = 1;
    q.message.resume_summary = &q.summary;
}

static void accept(void) {
    if (stream_config_init(&config, &q.message, LABELS, field, &status))
        fail_msg("%s", status.message);
}

static void accept_and_reset(void) {
    accept();
    stream_config_free(&config);
    reset();
}

/* Refused with this field, a message that begins with it, and a sentence that holds `words`. */
static void refuse(const char *name, const char *words) {
    char begin[STREAM_FIELD_BYTES + 2];
    snprintf(begin, sizeof begin, "%s:", name);
    if (stream_config_init(&config, &q.message, LABELS, field, &status) != -1)
        fail_msg("%s was let in", name);
    assert_int_equal(status.code, STATUS_INVALID_ARGUMENT);
    assert_string_equal(field, name);
    if (strncmp(status.message, begin, strlen(begin)) != 0 || !strstr(status.message, words))
        fail_msg("\"%s\" is not in: %s", words, status.message);
    reset();
}

/* ---- tests ---- */

static int setup(void **state) {
    (void)state;
    reset();
    return 0;
}

static void test_defaults(void **state) {
    (void)state;
    accept();
    const struct engine_stream_options *o = &config.options;
    assert_int_equal(o->format.encoding, AUDIO_MULAW);
    assert_int_equal(o->format.rate_hz, 8000);
    assert_int_equal(o->format.channels, CHANNELS);
    assert_false(o->utterances || o->embedding);
    assert_true(o->window_s == 0 && o->hop_s == 0 && o->speech_s_min == 0 && o->smoothing_s == 0);
    assert_int_equal(o->resume_offset_ms, 0);
    assert_null(o->before);
    assert_string_equal(config.channels[0].name, "0");
    assert_string_equal(config.channels[1].name, "1");
    assert_string_equal(config.channels[1].role, "");
    assert_false(o->channels[0].excluded);
    assert_null(o->channels[0].smoothed);
    stream_config_free(&config);
}

static void test_format(void **state) {
    (void)state;
    static const enum audio_encoding expected[] = {[TIMBRE__V1__ENCODING__ENCODING_PCM16] = AUDIO_PCM16,
                                                   [TIMBRE__V1__ENCODING__ENCODING_FLOAT32] = AUDIO_FLOAT32,
                                                   [TIMBRE__V1__ENCODING__ENCODING_MULAW] = AUDIO_MULAW,
                                                   [TIMBRE__V1__ENCODING__ENCODING_ALAW] = AUDIO_ALAW};
    for (int i = TIMBRE__V1__ENCODING__ENCODING_PCM16; i <= TIMBRE__V1__ENCODING__ENCODING_ALAW; i++) {
        q.format.encoding = (Timbre__V1__Encoding)i;
        q.format.sample_rate_hz = q.format.channels = 0;
        accept();
        assert_int_equal(config.options.format.encoding, expected[i]);
        assert_int_equal(config.options.format.rate_hz, 16000);
        assert_int_equal(config.options.format.channels, 1);
        stream_config_free(&config);
    }
    reset();
    q.message.format = NULL;
    refuse("format", "needs one");
    q.format.encoding = TIMBRE__V1__ENCODING__ENCODING_FILE;
    refuse("format.encoding", "raw encoding");
    q.format.encoding = TIMBRE__V1__ENCODING__ENCODING_UNSPECIFIED;
    refuse("format.encoding", "raw encoding");
    q.format.encoding = (Timbre__V1__Encoding)99;
    refuse("format.encoding", "99 is none");
    q.format.encoding = (Timbre__V1__Encoding)-1;
    refuse("format.encoding", "-1 is none");
    q.format.sample_rate_hz = 7999;
    refuse("format.sample_rate_hz", "7999 is not in 8000..48000");
    q.format.sample_rate_hz = 48001;
    refuse("format.sample_rate_hz", "48001");
    q.format.channels = 9;
    refuse("format.channels", "9 is not in 1..8");
    q.format.channels = -1;
    refuse("format.channels", "-1 is not in 1..8");
    q.format.sample_rate_hz = 48000;
    q.format.channels = 8;
    accept_and_reset();
}

static void test_channels(void **state) {
    (void)state;
    char name[STREAM_NAME_BYTES + 1];
    memset(name, 'n', sizeof name);
    name[STREAM_NAME_BYTES - 1] = 0; /* the longest */
    q.message.n_channels = 2;
    q.channels[0].name = name;
    q.channels[0].role = (char *)"customer";
    q.channels[1].exclude = true;
    q.channels[0].resume_end_s = 12.5;
    q.channels[0].resume_smoothed = q.smoothed;
    q.channels[0].n_resume_smoothed = LABELS;
    accept();
    assert_string_equal(config.channels[0].name, name);
    assert_string_equal(config.channels[0].role, "customer");
    assert_string_equal(config.channels[1].name, "1");
    assert_false(config.options.channels[0].excluded);
    assert_true(config.options.channels[1].excluded);
    assert_true(config.options.channels[0].had_s == 12.5);
    assert_ptr_equal(config.options.channels[0].smoothed, q.smoothed);
    assert_null(config.options.channels[1].smoothed);
    stream_config_free(&config);
    reset();
    q.message.n_channels = 1;
    refuse("channels", "1 of them, but format.channels is 2");
    q.message.n_channels = ENGINE_STREAM_CHANNELS_MAX + 1;
    refuse("channels", "9 of them");
    name[STREAM_NAME_BYTES - 1] = 'n';
    name[STREAM_NAME_BYTES] = 0;
    q.message.n_channels = 2;
    q.channels[1].name = name;
    refuse("channels[1].name", "65 bytes, more than 64");
    q.message.n_channels = 2;
    q.channels[1].role = name;
    refuse("channels[1].role", "65 bytes");
}

static void test_channels_that_go_on(void **state) {
    (void)state;
    q.message.n_channels = 2;
    q.channels[0].resume_smoothed = q.smoothed;
    q.channels[0].n_resume_smoothed = LABELS - 1;
    refuse("channels[0].resume_smoothed", "2 scores, but the model has 3 labels");
}

/* Numbers go to the engine as they are, 0 as its default; their ranges are its business. */
static void test_numbers(void **state) {
    (void)state;
    const struct engine_stream_options *o = &config.options;
    use_windows();
    q.windows = (Timbre__V1__Windows){.length_s = 4, .hop_s = 0.1, .speech_s_min = NAN};
    accept();
    assert_true(o->window_s == 4 && o->hop_s == 0.1 && isnan(o->speech_s_min) && !o->utterances);
    reset();
    use_utterances();
    q.utterances.length_s_min = 0.05;
    q.utterances.length_s_max = 30;
    q.utterances.hangover_s = -1;
    q.utterances.interim_every_s = 0.25;
    accept();
    assert_true(o->utterances && o->length_s_min == 0.05 && o->length_s_max == 30 && o->hangover_s == -1 &&
                o->interim_every_s == 0.25);
    reset();
    q.message.smoothing_s = 8;
    q.message.summary_every_s = 1;
    q.message.embedding = true;
    q.message.resume_offset_ms = 61001;
    accept();
    assert_true(o->smoothing_s == 8 && o->summary_every_s == 1 && o->embedding);
    assert_int_equal(o->resume_offset_ms, 61001);
}

static void test_a_summary_to_go_on_from(void **state) {
    (void)state;
    use_summary();
    accept();
    const struct summary_report *b = config.options.before;
    assert_ptr_equal(b, &config.before);
    assert_int_equal(b->channels_count, CHANNELS);
    assert_true(b->talk_over_s == 1 && b->start_s == 0 && b->end_s == 10);
    const struct summary_channel *c = &b->channels[0];
    assert_true(c->speech_s == 4 && c->silence_s == 6);
    assert_int_equal(c->results, 5);
    assert_int_equal(c->no_speech_results, 2);
    assert_int_equal(c->forwards, 3);
    for (int i = 0; i < LABELS; i++) {
        assert_true(c->scores[i] == 0.25f * (float)i);
        assert_true(c->trend[i] == -0.125f * (float)i);
    }
    assert_int_equal(c->timeline_count, SEGMENTS);
    assert_null(c->timeline[0].scores);
    assert_true(c->timeline[1].start_s == 5 && c->timeline[1].end_s == 10 && c->timeline[1].speech_s == 2);
    assert_memory_equal(c->timeline[1].scores, q.means, sizeof q.means);
    assert_null(b->channels[1].scores);
    assert_int_equal(b->channels[1].timeline_count, 0);
    stream_config_free(&config);
    assert_null(config.block.base);
}

/* Of a channel that is left out nothing counts, whatever stands there. */
static void test_an_excluded_channel_has_no_past(void **state) {
    (void)state;
    use_summary();
    q.message.n_channels = CHANNELS;
    q.channels[0].exclude = q.summaries[0].excluded = true;
    accept();
    assert_true(config.before.channels[0].excluded);
    assert_null(config.before.channels[0].scores);
    assert_int_equal(config.before.channels[0].results, 0);
    stream_config_free(&config);
}

/* Changes one thing of the summary and has it refused. */
#define WRONG(change, name, words)                                                                           \
    do {                                                                                                     \
        use_summary();                                                                                       \
        change;                                                                                              \
        refuse("resume_summary." name, words);                                                               \
    } while (0)

static void test_summaries_that_are_wrong(void **state) {
    (void)state;
    WRONG(q.summary.n_channels = 1, "channels", "1 of them, but format.channels is 2");
    WRONG(q.summary.n_channels = 0, "channels", "0 of them");
    WRONG(q.summaries[1].channel = 0, "channels[1].channel", "0, in the place of 1");
    WRONG(q.summaries[0].n_scores = 2, "channels[0].scores", "2 scores, but the model has 3 labels");
    WRONG(q.scores[1].index = 2, "channels[0].scores", "score 1 has the index 2");
    WRONG(q.summaries[0].n_trend = 2, "channels[0].trend", "2 scores");
    WRONG(q.summaries[0].n_timeline = 49, "channels[0].timeline", "49 segments, more than 48");
    WRONG(q.segments[1].n_scores = 1, "channels[0].timeline[1].scores",
          "1 scores, but the model has 3 labels");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults, setup),
        cmocka_unit_test_setup(test_format, setup),
        cmocka_unit_test_setup(test_channels, setup),
        cmocka_unit_test_setup(test_channels_that_go_on, setup),
        cmocka_unit_test_setup(test_numbers, setup),
        cmocka_unit_test_setup(test_a_summary_to_go_on_from, setup),
        cmocka_unit_test_setup(test_an_excluded_channel_has_no_past, setup),
        cmocka_unit_test_setup(test_summaries_that_are_wrong, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
