/* Tests of client/stream_reply: what a server says on a stream, well-meant and not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/stream_reply.h"

struct packed {
    uint8_t *data;
    size_t count;
};

static struct packed pack(Timbre__V1__StreamResult *result, Timbre__V1__StreamSummary *summary) {
    Timbre__V1__StreamingPredictResponse m = TIMBRE__V1__STREAMING_PREDICT_RESPONSE__INIT;
    if (result) {
        m.response_case = TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_RESULT;
        m.result = result;
    } else if (summary) {
        m.response_case = TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_SUMMARY;
        m.summary = summary;
    }
    struct packed p = {.count = timbre__v1__streaming_predict_response__get_packed_size(&m)};
    p.data = malloc(p.count + 1);
    timbre__v1__streaming_predict_response__pack(&m, p.data);
    return p;
}

static Timbre__V1__Score *make_scores(Timbre__V1__Score scores[2], Timbre__V1__Score *list[2]) {
    static char joy[] = "joy", other[] = "other";
    for (int i = 0; i < 2; i++) {
        timbre__v1__score__init(&scores[i]);
        scores[i].index = i;
        scores[i].label = i ? other : joy;
        scores[i].score = i ? 0.25f : 0.75f;
        scores[i].logit = (float)i;
        list[i] = &scores[i];
    }
    return &scores[0];
}

static void test_result(void **state) {
    (void)state;
    static char name[] = "left", role[] = "customer", model[] = "m";
    Timbre__V1__StreamResult m = TIMBRE__V1__STREAM_RESULT__INIT;
    Timbre__V1__Receipt receipt = TIMBRE__V1__RECEIPT__INIT;
    Timbre__V1__Score scores[2], *list[2];
    float embedding[3] = {1, 2, 3};
    m.dominant = make_scores(scores, list);
    m.channel = 1;
    m.channel_name = name;
    m.role = role;
    m.start_s = 1.5;
    m.end_s = 3.25;
    m.speech_s = 1;
    m.status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK;
    m.n_scores = m.n_smoothed = 2;
    m.scores = m.smoothed = list;
    m.final = true;
    m.n_embedding = 3;
    m.embedding = embedding;
    m.resume_offset_ms = 1000;
    receipt.model = model;
    receipt.batch_size = 4;
    m.receipt = &receipt;
    struct packed p = pack(&m, NULL);
    struct stream_reply r;
    assert_int_equal(stream_reply_parse(&r, p.data, p.count, NULL), 0);
    free(p.data); /* nothing points there */
    const struct timbre_stream_result *x = &r.result;
    assert_false(r.is_summary);
    assert_int_equal(x->channel, 1);
    assert_string_equal(x->channel_name, "left");
    assert_string_equal(x->role, "customer");
    assert_true(x->start_s == 1.5 && x->end_s == 3.25 && x->speech_s == 1 && x->final);
    assert_int_equal(x->answer, TIMBRE_ANSWER_OK);
    assert_string_equal(x->message, "");
    assert_int_equal(x->scores_count, 2);
    assert_string_equal(x->scores[1].label, "other");
    assert_true(x->scores[1].score == 0.25f && x->scores[1].logit == 1);
    assert_int_equal(x->smoothed_count, 2);
    assert_string_equal(x->dominant->label, "joy");
    assert_int_equal(x->embedding_count, 3);
    assert_true(x->embedding[2] == 3);
    assert_string_equal(x->receipt.model, "m");
    assert_string_equal(x->receipt.digest, "");
    assert_int_equal(x->receipt.batch_size, 4);
    assert_int_equal(x->resume_offset_ms, 1000);
    assert_true(isnan(x->lag_ms));
    stream_reply_free(&r);
    /* Scores of what is not OK are none. */
    m.status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH;
    p = pack(&m, NULL);
    assert_int_equal(stream_reply_parse(&r, p.data, p.count, NULL), 0);
    assert_int_equal(r.result.scores_count, 0);
    assert_null(r.result.dominant);
    assert_int_equal(r.result.smoothed_count, 2);
    stream_reply_free(&r);
    free(p.data);
}

static void test_summary(void **state) {
    (void)state;
    static char name[] = "left", id[] = "r1";
    Timbre__V1__StreamSummary m = TIMBRE__V1__STREAM_SUMMARY__INIT;
    Timbre__V1__ChannelSummary channels[2], *list[2] = {&channels[0], &channels[1]};
    Timbre__V1__TimelineSegment segments[3], *segment_list[3];
    Timbre__V1__Score scores[2], *score_list[2];
    float weights[2] = {0.5f, 0.25f};
    for (int i = 0; i < 3; i++) {
        timbre__v1__timeline_segment__init(&segments[i]);
        segments[i].start_s = 5 * i;
        segments[i].end_s = 5 * i + 5;
        segments[i].speech_s = i;
        segments[i].n_scores = i ? 2 : 0;
        segments[i].scores = weights;
        segment_list[i] = &segments[i];
    }
    timbre__v1__channel_summary__init(&channels[0]);
    channels[0].excluded = true;
    timbre__v1__channel_summary__init(&channels[1]);
    channels[1].channel = 1;
    channels[1].channel_name = name;
    channels[1].dominant = make_scores(scores, score_list);
    channels[1].n_scores = channels[1].n_trend = 2;
    channels[1].scores = channels[1].trend = score_list;
    channels[1].speech_s = 7;
    channels[1].silence_s = 8;
    channels[1].no_speech_share = 0.5;
    channels[1].results = 4;
    channels[1].no_speech_results = 2;
    channels[1].forwards = 3;
    channels[1].n_timeline = 3;
    channels[1].timeline = segment_list;
    m.final = true;
    m.end = TIMBRE__V1__STREAM_END__STREAM_END_LIFETIME;
    m.n_channels = 2;
    m.channels = list;
    m.talk_over_s = 1;
    m.start_s = 2;
    m.end_s = 15;
    m.resume_offset_ms = 14000;
    m.request_id = id;
    struct packed p = pack(NULL, &m);
    struct stream_reply r;
    assert_int_equal(stream_reply_parse(&r, p.data, p.count, NULL), 0);
    free(p.data);
    const struct timbre_stream_summary *x = &r.summary;
    assert_true(r.is_summary && r.message && x->final);
    assert_int_equal(x->end, TIMBRE_STREAM_LIFETIME);
    assert_int_equal(x->channels_count, 2);
    assert_true(x->talk_over_s == 1 && x->start_s == 2 && x->end_s == 15);
    assert_int_equal(x->resume_offset_ms, 14000);
    assert_string_equal(x->request_id, "r1");
    assert_true(x->channels[0].excluded);
    assert_int_equal(x->channels[0].scores_count, 0);
    const struct timbre_channel_summary *c = &x->channels[1];
    assert_string_equal(c->channel_name, "left");
    assert_true(c->speech_s == 7 && c->silence_s == 8 && c->no_speech_share == 0.5);
    assert_true(c->results == 4 && c->no_speech_results == 2 && c->forwards == 3);
    assert_string_equal(c->dominant->label, "joy");
    assert_int_equal(c->trend_count, 2);
    assert_int_equal(c->timeline_count, 3);
    assert_int_equal(c->timeline[0].scores_count, 0);
    assert_true(c->timeline[2].scores[1] == 0.25f && c->timeline[2].speech_s == 2);
    stream_reply_free(&r);
}

static void expect_refusal(Timbre__V1__StreamResult *result, Timbre__V1__StreamSummary *summary,
                           const char *word) {
    struct timbre_status st = {.code = 0};
    struct stream_reply r;
    struct packed p = pack(result, summary);
    assert_int_equal(stream_reply_parse(&r, p.data, p.count, &st), -1);
    stream_reply_free(&r);
    assert_int_equal(st.code, TIMBRE_CODE_INTERNAL);
    assert_non_null(strstr(st.message, word));
    free(p.data);
}

static void test_broken_promises(void **state) {
    (void)state;
    const double bad_times[][2] = {{-1, 1}, {2, 1}, {NAN, 1}, {0, NAN}, {0, INFINITY}, {0, 1e12}};
    const int64_t bad_offsets[] = {-1000, 999, INT64_MAX, INT64_MAX / 1000 * 1000};
    const Timbre__V1__StreamResult good = {
        .base = PROTOBUF_C_MESSAGE_INIT(&timbre__v1__stream_result__descriptor),
        .channel_name = (char *)protobuf_c_empty_string,
        .role = (char *)protobuf_c_empty_string,
        .message = (char *)protobuf_c_empty_string,
        .status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH,
    };
    expect_refusal(NULL, NULL, "neither");
    for (size_t i = 0; i < sizeof bad_times / sizeof *bad_times; i++) {
        Timbre__V1__StreamResult m = good;
        Timbre__V1__StreamSummary s = TIMBRE__V1__STREAM_SUMMARY__INIT;
        m.start_s = s.start_s = bad_times[i][0];
        m.end_s = s.end_s = bad_times[i][1];
        expect_refusal(&m, NULL, "times");
        expect_refusal(NULL, &s, "times");
    }
    for (size_t i = 0; i < sizeof bad_offsets / sizeof *bad_offsets; i++) {
        Timbre__V1__StreamResult m = good;
        Timbre__V1__StreamSummary s = TIMBRE__V1__STREAM_SUMMARY__INIT;
        m.resume_offset_ms = s.resume_offset_ms = bad_offsets[i];
        expect_refusal(&m, NULL, "resume_offset_ms");
        expect_refusal(NULL, &s, "resume_offset_ms");
    }
    Timbre__V1__StreamResult m = good;
    m.channel = 8;
    expect_refusal(&m, NULL, "channel");
    m.channel = -1;
    expect_refusal(&m, NULL, "channel");
    m = good;
    m.status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_UNSPECIFIED;
    expect_refusal(&m, NULL, "does not say");
    m.status = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK;
    expect_refusal(&m, NULL, "without scores");

    Timbre__V1__StreamSummary s = TIMBRE__V1__STREAM_SUMMARY__INIT;
    Timbre__V1__ChannelSummary c = TIMBRE__V1__CHANNEL_SUMMARY__INIT, *list[9];
    for (int i = 0; i < 9; i++)
        list[i] = &c;
    s.channels = list;
    s.n_channels = 9;
    expect_refusal(NULL, &s, "too many");
    s.n_channels = 1;
    c.channel = 8;
    expect_refusal(NULL, &s, "channel");
    s = (Timbre__V1__StreamSummary)TIMBRE__V1__STREAM_SUMMARY__INIT;
    s.final = true;
    expect_refusal(NULL, &s, "what ended");
}

/* Cut anywhere, and with bytes changed: an answer or an error. */
static void test_noise(void **state) {
    (void)state;
    static char id[] = "id";
    Timbre__V1__StreamSummary s = TIMBRE__V1__STREAM_SUMMARY__INIT;
    Timbre__V1__ChannelSummary c = TIMBRE__V1__CHANNEL_SUMMARY__INIT, *list[2] = {&c, &c};
    Timbre__V1__Score scores[2], *score_list[2];
    c.dominant = make_scores(scores, score_list);
    c.n_scores = 2;
    c.scores = score_list;
    s.n_channels = 2;
    s.channels = list;
    s.request_id = id;
    struct packed p = pack(NULL, &s);
    srand(1);
    for (int i = 0; i < 20000; i++) {
        uint8_t *copy = malloc(p.count);
        const size_t count = (size_t)rand() % (p.count + 1);
        struct timbre_status st = {.code = 0};
        struct stream_reply r;
        memcpy(copy, p.data, p.count);
        for (int k = rand() % 4; k > 0; k--)
            copy[(size_t)rand() % p.count] = (uint8_t)rand();
        const int result = stream_reply_parse(&r, copy, count, &st);
        assert_int_equal(result ? st.code != 0 : st.code == 0, 1);
        stream_reply_free(&r);
        free(copy);
    }
    free(p.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_result),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_broken_promises),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
