/* timbre.v1 messages from the events of a stream, with the shipped model's labels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/stream_answer.h"

enum { LABELS = 7, CHANNELS = 2 };

static struct model *model;
static const float scores[LABELS] = {0.1f, 0.3f, 0.05f, 0.3f, 0.2f, 0.0f, 0.05f};
static const float logits[LABELS] = {1, 2, 3, 4, 5, 6, 7};
static const float smoothed[LABELS] = {0.2f, 0.2f, 0.1f, 0.1f, 0.1f, 0.2f, 0.1f};
static const struct stream_channel channels[CHANNELS] = {{"left", "customer"}, {"1", ""}};
static struct stream_answer_options options;

static int open_model(void **state) {
    (void)state;
    const struct model_options o = {.threads = 1};
    struct status st;
    if (model_new(&model, TIMBRE_SOURCE_DIR "/models/default", &o, &st))
        return -1;
    options = (struct stream_answer_options){.model = model,
                                             .model_name = "m",
                                             .model_version = "2",
                                             .request_id = "id",
                                             .channels = channels,
                                             .end = TIMBRE__V1__STREAM_END__STREAM_END_DRAIN};
    return 0;
}

static int close_model(void **state) {
    (void)state;
    model_del(model);
    return 0;
}

/* The message as a client unpacks it. */
static Timbre__V1__StreamingPredictResponse *send(const struct engine_stream_event *e) {
    static uint8_t packed[1 << 16];
    struct stream_answer *a = stream_answer_new(e, &options);
    assert_non_null(a);
    const Timbre__V1__StreamingPredictResponse *r = stream_answer_get(a);
    assert_true(timbre__v1__streaming_predict_response__get_packed_size(r) <= sizeof packed);
    const size_t bytes = timbre__v1__streaming_predict_response__pack(r, packed);
    stream_answer_free(a);
    Timbre__V1__StreamingPredictResponse *back =
        timbre__v1__streaming_predict_response__unpack(NULL, bytes, packed);
    assert_non_null(back);
    return back;
}

static void drop(Timbre__V1__StreamingPredictResponse *r) {
    timbre__v1__streaming_predict_response__free_unpacked(r, NULL);
}

static void assert_scores(Timbre__V1__Score *const *list, size_t count, const float *expected,
                          const float *expected_logits) {
    assert_int_equal(count, LABELS);
    for (int i = 0; i < LABELS; i++) {
        assert_int_equal(list[i]->index, i);
        assert_string_equal(list[i]->label, model_get_info(model)->labels[i]);
        assert_true(list[i]->score == expected[i]);
        assert_true(list[i]->logit == (expected_logits ? expected_logits[i] : 0));
    }
}

static void test_a_result(void **state) {
    (void)state;
    float embedding[4096] = {0.5f, -0.5f};
    const int hidden = model_get_info(model)->hidden;
    assert_true(hidden <= 4096);
    const struct engine_stream_event e = {.kind = ENGINE_STREAM_RESULT,
                                          .channel = 0,
                                          .start_s = 2.5,
                                          .end_s = 12.5,
                                          .speech_s = 7.25,
                                          .final = true,
                                          .outcome = ENGINE_OK,
                                          .message = "",
                                          .scores = scores,
                                          .logits = logits,
                                          .smoothed = smoothed,
                                          .embedding = embedding,
                                          .dominant = 1,
                                          .batch_size = 3,
                                          .queue_ms = 1.5,
                                          .compute_ms = 2.5,
                                          .audio_s = 10,
                                          .lag_ms = 20,
                                          .resume_offset_ms = 4000};
    Timbre__V1__StreamingPredictResponse *r = send(&e);
    assert_int_equal(r->response_case, TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_RESULT);
    const Timbre__V1__StreamResult *m = r->result;
    assert_int_equal(m->channel, 0);
    assert_string_equal(m->channel_name, "left");
    assert_string_equal(m->role, "customer");
    assert_true(m->start_s == 2.5 && m->end_s == 12.5 && m->speech_s == 7.25);
    assert_true(m->final);
    assert_int_equal(m->status, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK);
    assert_string_equal(m->message, "");
    assert_scores(m->scores, m->n_scores, scores, logits);
    assert_scores(m->smoothed, m->n_smoothed, smoothed, NULL);
    assert_int_equal(m->resume_offset_ms, 4000);
    assert_int_equal(m->n_embedding, hidden);
    assert_memory_equal(m->embedding, embedding, (size_t)hidden * sizeof *embedding);
    assert_int_equal(m->dominant->index, 1);
    assert_true(m->dominant->score == scores[1] && m->dominant->logit == logits[1]);
    assert_string_equal(m->receipt->model, "m");
    assert_string_equal(m->receipt->model_version, "2");
    assert_string_equal(m->receipt->digest, model_get_info(model)->digest);
    assert_int_equal(m->receipt->batch_size, 3);
    assert_true(m->receipt->queue_ms == 1.5 && m->receipt->compute_ms == 2.5 && m->receipt->audio_s == 10);
    drop(r);
}

static void test_a_result_without_scores(void **state) {
    (void)state;
    static const struct {
        enum engine_outcome outcome;
        Timbre__V1__AnswerStatus status;
    } cases[] = {{ENGINE_NO_SPEECH, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH},
                 {ENGINE_TOO_SHORT, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_TOO_SHORT},
                 {ENGINE_ERROR, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_ERROR}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct engine_stream_event e = {.kind = ENGINE_STREAM_RESULT,
                                              .channel = 1,
                                              .outcome = cases[i].outcome,
                                              .message = "why",
                                              .dominant = -1};
        Timbre__V1__StreamingPredictResponse *r = send(&e);
        assert_int_equal(r->result->status, cases[i].status);
        assert_string_equal(r->result->message, "why");
        assert_string_equal(r->result->channel_name, "1");
        assert_false(r->result->final);
        assert_int_equal(r->result->n_scores + r->result->n_smoothed + r->result->n_embedding, 0);
        assert_null(r->result->dominant);
        drop(r);
    }
}

static const struct summary_segment timeline[] = {
    {0}, {.start_s = 5, .end_s = 10, .speech_s = 2, .scores = smoothed}};
static const struct summary_report report = {.channels_count = CHANNELS,
                                             .channels = {{.speech_s = 4,
                                                           .silence_s = 6,
                                                           .results = 4,
                                                           .no_speech_results = 1,
                                                           .forwards = 5,
                                                           .scores = scores,
                                                           .trend = smoothed,
                                                           .timeline = timeline,
                                                           .timeline_count = 2},
                                                          {.excluded = true}},
                                             .talk_over_s = 0.5,
                                             .start_s = 1,
                                             .end_s = 11};

static void test_a_summary(void **state) {
    (void)state;
    const struct engine_stream_event e = {
        .kind = ENGINE_STREAM_SUMMARY, .summary = &report, .last = true, .resume_offset_ms = 9000};
    Timbre__V1__StreamingPredictResponse *r = send(&e);
    assert_int_equal(r->response_case, TIMBRE__V1__STREAMING_PREDICT_RESPONSE__RESPONSE_SUMMARY);
    const Timbre__V1__StreamSummary *m = r->summary;
    assert_true(m->final);
    assert_int_equal(m->end, TIMBRE__V1__STREAM_END__STREAM_END_DRAIN);
    assert_int_equal(m->resume_offset_ms, 9000);
    assert_string_equal(m->request_id, "id");
    assert_true(m->talk_over_s == 0.5 && m->start_s == 1 && m->end_s == 11);
    assert_int_equal(m->n_channels, CHANNELS);
    const Timbre__V1__ChannelSummary *c = m->channels[0];
    assert_int_equal(c->channel, 0);
    assert_string_equal(c->channel_name, "left");
    assert_string_equal(c->role, "customer");
    assert_scores(c->scores, c->n_scores, scores, NULL);
    assert_scores(c->trend, c->n_trend, smoothed, NULL);
    assert_int_equal(c->dominant->index, 1);
    assert_true(c->speech_s == 4 && c->silence_s == 6 && c->no_speech_share == 0.25);
    assert_int_equal(c->results, 4);
    assert_int_equal(c->no_speech_results, 1);
    assert_int_equal(c->forwards, 5);
    assert_int_equal(c->n_timeline, 2);
    assert_int_equal(c->timeline[0]->n_scores, 0);
    assert_true(c->timeline[1]->start_s == 5 && c->timeline[1]->end_s == 10);
    assert_true(c->timeline[1]->speech_s == 2);
    assert_memory_equal(c->timeline[1]->scores, smoothed, sizeof smoothed);
    c = m->channels[1];
    assert_int_equal(c->channel, 1);
    assert_true(c->excluded);
    assert_string_equal(c->channel_name, "1");
    assert_int_equal(c->n_scores + c->n_timeline, 0);
    drop(r);
}

static void test_a_rolling_summary_tells_no_end(void **state) {
    (void)state;
    static const struct summary_report empty = {.channels_count = 1};
    const struct engine_stream_event e = {.kind = ENGINE_STREAM_SUMMARY, .summary = &empty};
    Timbre__V1__StreamingPredictResponse *r = send(&e);
    assert_false(r->summary->final);
    assert_int_equal(r->summary->end, TIMBRE__V1__STREAM_END__STREAM_END_UNSPECIFIED);
    assert_int_equal(r->summary->n_channels, 1);
    assert_null(r->summary->channels[0]->dominant);
    assert_true(r->summary->channels[0]->no_speech_share == 0);
    drop(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_result),
        cmocka_unit_test(test_a_result_without_scores),
        cmocka_unit_test(test_a_summary),
        cmocka_unit_test(test_a_rolling_summary_tells_no_end),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
