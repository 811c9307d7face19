/* Tests of the client against a server whose answers are written in advance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <grpc/status.h>

#include "base/clock.h"
#include "helpers.h"
#include "proto/timbre/v1/timbre.pb-c.h"

/* One call against `answers`; the server's count of calls must be `attempts`. */
static struct timbre_status ask_once(const struct fake_answer *answers, int count,
                                     struct timbre_client_options o, int attempts) {
    struct fake_server *s = fake_server_new(answers, count, NULL);
    struct timbre_client *c = new_client(s, o);
    struct timbre_predict_request r = a_request();
    struct timbre_prediction *p;
    struct timbre_status st;
    int result = timbre_predict(c, &r, &p, &st);
    assert_int_equal(result == 0, st.code == 0);
    assert_int_equal(result == 0, p != NULL);
    assert_int_equal(st.attempts, attempts);
    timbre_prediction_free(p);
    timbre_client_del(c);
    assert_int_equal(fake_server_count_calls(s), attempts);
    fake_server_del(s);
    return st;
}

static void test_predict(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("abc", 2, 3);
    const struct fake_answer answer = answer_ok(&ok);
    struct fake_server *s = fake_server_new(&answer, 1, NULL);
    struct timbre_client *c =
        new_client(s, (struct timbre_client_options){.token = "secret", .user_agent = "me"});
    struct timbre_prediction *p;
    struct timbre_status st;
    const struct timbre_predict_request r = {.audio = audio,
                                             .audio_bytes = sizeof audio,
                                             .encoding = TIMBRE_ENCODING_MULAW,
                                             .sample_rate_hz = 8000,
                                             .channels = 2,
                                             .model = "m",
                                             .model_version = "3",
                                             .window_s = 4,
                                             .hop_s = 2,
                                             .top_k = 5,
                                             .embedding = true,
                                             .priority = TIMBRE_PRIORITY_BULK,
                                             .request_id = "abc",
                                             .traceparent = "00-1-2-3"};
    assert_int_equal(timbre_predict(c, &r, &p, &st), 0);
    assert_int_equal(st.attempts, 1);
    assert_string_equal(p->dominant->label, "anger");
    timbre_prediction_free(p);

    const struct fake_request *got = fake_server_get_request(s);
    assert_string_equal(got->path, "/timbre.v1.Timbre/Predict");
    assert_string_equal(got->authorization, "Bearer secret");
    assert_string_equal(got->traceparent, "00-1-2-3");
    assert_non_null(strstr(got->user_agent, "me "));
    assert_non_null(strstr(got->user_agent, "timbre-client/"));
    Timbre__V1__PredictRequest *m = timbre__v1__predict_request__unpack(NULL, got->bytes, got->message);
    assert_non_null(m);
    assert_int_equal(m->audio.len, sizeof audio);
    assert_memory_equal(m->audio.data, audio, sizeof audio);
    assert_int_equal(m->format->encoding, TIMBRE__V1__ENCODING__ENCODING_MULAW);
    assert_int_equal(m->format->sample_rate_hz, 8000);
    assert_int_equal(m->format->channels, 2);
    assert_string_equal(m->model, "m");
    assert_string_equal(m->model_version, "3");
    assert_true(m->windows->length_s == 4 && m->windows->hop_s == 2);
    assert_int_equal(m->top_k, 5);
    assert_true(m->embedding);
    assert_int_equal(m->priority, TIMBRE__V1__PRIORITY__PRIORITY_BULK);
    assert_string_equal(m->request_id, "abc");
    timbre__v1__predict_request__free_unpacked(m, NULL);

    /* Defaults are not sent, and the token can be changed. */
    assert_int_equal(timbre_client_set_token(c, "other", &st), 0);
    const struct timbre_predict_request plain = {.audio = NULL};
    assert_int_equal(timbre_predict(c, &plain, &p, NULL), 0);
    timbre_prediction_free(p);
    got = fake_server_get_request(s);
    assert_string_equal(got->authorization, "Bearer other");
    assert_string_equal(got->traceparent, "");
    assert_int_equal(got->bytes, 2); /* an empty audio field */
    assert_int_equal(timbre_client_set_token(c, NULL, &st), 0);
    assert_int_equal(timbre_predict(c, &plain, &p, NULL), 0);
    timbre_prediction_free(p);
    assert_string_equal(fake_server_get_request(s)->authorization, "");
    timbre_client_del(c);
    fake_server_del(s);
    free(ok.data);
}

/* Lengths around those where the header of the audio takes a byte more. */
static void test_sizes(void **state) {
    (void)state;
    const size_t sizes[] = {1, 127, 128, 129, 16383, 16384, 65536, 2097151, 2097152, 5000000};
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answer = answer_ok(&ok);
    struct fake_server *s = fake_server_new(&answer, 1, NULL);
    struct timbre_client *c = new_client(s, (struct timbre_client_options){0});
    unsigned char *bytes = malloc(5000000);
    for (size_t i = 0; i < 5000000; i++)
        bytes[i] = (unsigned char)(i * 7);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct timbre_prediction *p;
        struct timbre_status st;
        const struct timbre_predict_request r = {.audio = bytes, .audio_bytes = sizes[i], .model = "m"};
        int result = timbre_predict(c, &r, &p, &st);
        if (sizes[i] > 4 << 20) { /* what a gRPC server takes if not told otherwise */
            assert_int_equal(result, -1);
            assert_int_equal(st.code, TIMBRE_CODE_RESOURCE_EXHAUSTED);
            continue;
        }
        assert_int_equal(result, 0);
        timbre_prediction_free(p);
        const struct fake_request *got = fake_server_get_request(s);
        Timbre__V1__PredictRequest *m = timbre__v1__predict_request__unpack(NULL, got->bytes, got->message);
        assert_int_equal(m->audio.len, sizes[i]);
        assert_memory_equal(m->audio.data, bytes, sizes[i]);
        assert_string_equal(m->model, "m");
        timbre__v1__predict_request__free_unpacked(m, NULL);
    }
    free(bytes);
    timbre_client_del(c);
    fake_server_del(s);
    free(ok.data);
}

static void test_models_and_health(void **state) {
    (void)state;
    struct bytes b[] = {messages_make_models(3), messages_make_model(), messages_make_health(1),
                        messages_make_health(0)};
    const struct fake_answer answers[] = {answer_ok(&b[0]),
                                          answer_ok(&b[1]),
                                          answer_ok(&b[2]),
                                          answer_ok(&b[3]),
                                          {.code = 5, .message = "no such"}};
    struct fake_server *s = fake_server_new(answers, 5, NULL);
    struct timbre_client *c = new_client(s, (struct timbre_client_options){0});
    struct timbre_models *m;
    struct timbre_status st;
    bool serving = false;
    assert_int_equal(timbre_list_models(c, 0, &m, &st), 0);
    assert_int_equal(m->count, 3);
    timbre_models_free(m);
    assert_string_equal(fake_server_get_request(s)->path, "/timbre.v1.Timbre/ListModels");
    assert_int_equal(timbre_get_model(c, "base", "2", 5000, &m, &st), 0);
    assert_string_equal(m->models[0].labels[0], "anger");
    timbre_models_free(m);
    const struct fake_request *got = fake_server_get_request(s);
    assert_string_equal(got->path, "/timbre.v1.Timbre/GetModel");
    assert_memory_equal(got->message,
                        "\x0a\x04"
                        "base\x12\x01"
                        "2",
                        got->bytes);
    assert_int_equal(timbre_check_health(c, NULL, 0, &serving, &st), 0);
    assert_true(serving);
    assert_string_equal(fake_server_get_request(s)->path, "/grpc.health.v1.Health/Check");
    assert_int_equal(timbre_check_health(c, "timbre.v1.Timbre", 0, &serving, &st), 0);
    assert_false(serving);
    assert_int_equal(timbre_get_model(c, "none", NULL, 0, &m, &st), -1);
    assert_null(m);
    assert_int_equal(st.code, TIMBRE_CODE_NOT_FOUND);
    assert_string_equal(st.message, "no such");
    assert_int_equal(timbre_list_models(c, -2, &m, &st), -1);
    assert_int_equal(st.code, TIMBRE_CODE_INVALID_ARGUMENT);
    timbre_client_del(c);
    fake_server_del(s);
    for (size_t i = 0; i < sizeof b / sizeof *b; i++)
        free(b[i].data);
}

/* ---- retries ---- */

static void test_unavailable_then_ok(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer down = {.code = GRPC_STATUS_UNAVAILABLE, .message = "draining"};
    const struct fake_answer answers[] = {down, down, answer_ok(&ok)};
    const struct timbre_client_options quick = {.backoff_initial_ms = 10};
    struct timbre_status st = ask_once(answers, 3, quick, 3);
    assert_int_equal(st.code, TIMBRE_CODE_OK);
    assert_string_equal(st.message, "");
    st = ask_once(&down, 1, quick, 4);
    assert_int_equal(st.code, TIMBRE_CODE_UNAVAILABLE);
    assert_string_equal(st.message, "draining");
    st = ask_once(answers, 3, (struct timbre_client_options){.attempts_max = 1}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_UNAVAILABLE);
    free(ok.data);
}

static void test_pushback(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0), details = messages_make_details("QUEUE_FULL", 150);
    struct fake_answer full = {
        .code = GRPC_STATUS_RESOURCE_EXHAUSTED, .message = "queue-depth", .pushback = "150"};
    full.details = details.data;
    full.details_bytes = details.count;
    struct fake_answer answers[] = {full, answer_ok(&ok)};
    int64_t start_ns = clock_now_ns();
    struct timbre_status st = ask_once(answers, 2, (struct timbre_client_options){0}, 2);
    assert_int_equal(st.code, TIMBRE_CODE_OK);
    assert_true(clock_elapsed_ms(start_ns) >= 150);

    /* Not asked to come again, asked not to, or too late: once. */
    answers[0].pushback = NULL;
    st = ask_once(answers, 2, (struct timbre_client_options){0}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_RESOURCE_EXHAUSTED);
    assert_string_equal(st.reason, "QUEUE_FULL");
    assert_int_equal(st.retry_after_ms, 150); /* of RetryInfo */
    answers[0].pushback = "-1";
    ask_once(answers, 2, (struct timbre_client_options){0}, 1);
    answers[0].pushback = "soon";
    ask_once(answers, 2, (struct timbre_client_options){0}, 1);
    answers[0].pushback = "10000";
    start_ns = clock_now_ns();
    st = ask_once(answers, 2, (struct timbre_client_options){.deadline_ms = 5000}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_RESOURCE_EXHAUSTED);
    assert_int_equal(st.retry_after_ms, 10000);
    assert_true(clock_elapsed_ms(start_ns) < 4000);
    free(ok.data);
    free(details.data);
}

static void test_no_retry(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0);
    for (int code = 1; code <= 16; code++) {
        if (code == GRPC_STATUS_UNAVAILABLE)
            continue;
        const struct fake_answer answers[] = {{.code = code, .message = "no"}, answer_ok(&ok)};
        struct timbre_status st = ask_once(answers, 2, (struct timbre_client_options){0}, 1);
        assert_int_equal(st.code, code);
        assert_string_equal(st.message, "no");
    }
    free(ok.data);
}

static void test_deadline(void **state) {
    (void)state;
    const struct fake_answer never = {.delay_ms = -1, .code = 1};
    int64_t start_ns = clock_now_ns();
    struct timbre_status st = ask_once(&never, 1, (struct timbre_client_options){.deadline_ms = 200}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_DEADLINE_EXCEEDED);
    assert_true(clock_elapsed_ms(start_ns) >= 190 && clock_elapsed_ms(start_ns) < 5000);
    /* Attempts together do not take longer than the deadline of the call. */
    const struct fake_answer slow = {.code = GRPC_STATUS_UNAVAILABLE, .delay_ms = 100, .message = "slow"};
    start_ns = clock_now_ns();
    struct fake_server *s = fake_server_new(&slow, 1, NULL);
    struct timbre_client *c = new_client(
        s,
        (struct timbre_client_options){.attempts_max = 1000, .backoff_initial_ms = 50, .backoff_max_ms = 50});
    struct timbre_predict_request r = a_request();
    struct timbre_prediction *p;
    r.deadline_ms = 600;
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_true(st.code == TIMBRE_CODE_DEADLINE_EXCEEDED || st.code == TIMBRE_CODE_UNAVAILABLE);
    assert_in_range(st.attempts, 2, 6);
    assert_true(clock_elapsed_ms(start_ns) < 3000);
    timbre_client_del(c);
    fake_server_del(s);
}

static void test_server_that_is_not_there(void **state) {
    (void)state;
    struct timbre_client *c;
    struct timbre_status st;
    struct timbre_prediction *p;
    struct timbre_predict_request r = a_request();
    assert_int_equal(
        timbre_client_new(
            &c, &(struct timbre_client_options){.target = "127.0.0.1:1", .backoff_initial_ms = 10}, &st),
        0);
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_int_equal(st.code, TIMBRE_CODE_UNAVAILABLE);
    assert_int_equal(st.attempts, 4);
    assert_true(strlen(st.message) > 0);
    timbre_client_del(c);
}

/* The server comes while calls are waiting for it. */
static void test_server_that_comes_late(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answer = answer_ok(&ok);
    struct fake_server *s = fake_server_new(&answer, 1, NULL);
    struct timbre_client *c = new_client(
        s,
        (struct timbre_client_options){.attempts_max = 100, .backoff_initial_ms = 50, .backoff_max_ms = 100});
    struct timbre_predict_request r = a_request();
    struct timbre_prediction *p;
    struct timbre_status st;
    char address[64];
    for (int round = 0; round < 3; round++) { /* it restarts: the client finds it again */
        assert_int_equal(timbre_predict(c, &r, &p, &st), 0);
        timbre_prediction_free(p);
        snprintf(address, sizeof address, "%s", fake_server_address(s));
        fake_server_del(s);
        s = fake_server_new(&answer, 1, address);
    }
    timbre_client_del(c);
    fake_server_del(s);
    free(ok.data);
}

/* ---- replies that break the rules ---- */

static void test_bad_replies(void **state) {
    (void)state;
    const struct fake_answer garbage = {.reply = "\xff\xff\xff", .reply_bytes = 3};
    struct timbre_status st = ask_once(&garbage, 1, (struct timbre_client_options){0}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_INTERNAL);
    assert_non_null(strstr(st.message, "PredictResponse"));
    const struct fake_answer nothing = {.no_reply = true};
    st = ask_once(&nothing, 1, (struct timbre_client_options){0}, 1);
    assert_true(st.code == TIMBRE_CODE_INTERNAL || st.code == TIMBRE_CODE_UNIMPLEMENTED);
    const struct fake_answer details = {
        .code = 3, .message = "m", .details = "\x01\xff\x02garbage", .details_bytes = 10, .pushback = "~~"};
    st = ask_once(&details, 1, (struct timbre_client_options){0}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_INVALID_ARGUMENT);
    assert_string_equal(st.reason, "");
    const struct fake_answer strange = {.code = 99, .message = "strange"};
    st = ask_once(&strange, 1, (struct timbre_client_options){0}, 1);
    assert_true(st.code != 0);
    assert_string_equal(timbre_code_name(99), "UNKNOWN");
}

static void test_reply_too_large(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 500, 0);
    const struct fake_answer answer = answer_ok(&ok);
    struct timbre_status st =
        ask_once(&answer, 1, (struct timbre_client_options){.reply_bytes_max = 1000}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_RESOURCE_EXHAUSTED);
    st = ask_once(&answer, 1, (struct timbre_client_options){0}, 1);
    assert_int_equal(st.code, TIMBRE_CODE_OK);
    free(ok.data);
}

/* ---- wrong usage ---- */

static void expect_no_client(struct timbre_client_options o, const char *word) {
    struct timbre_client *c = (void *)&c;
    struct timbre_status st;
    assert_int_equal(timbre_client_new(&c, &o, &st), -1);
    assert_null(c);
    assert_int_equal(st.code, TIMBRE_CODE_INVALID_ARGUMENT);
    if (!strstr(st.message, word))
        fail_msg("\"%s\" does not name %s", st.message, word);
    assert_int_equal(timbre_client_new(&c, &o, NULL), -1);
}

static void write_file(char *path, const char *text) {
    strcpy(path, "/tmp/timbre-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void test_options(void **state) {
    (void)state;
    char empty[40], text[40], token[40], pem[40];
    write_file(empty, "\nsecond line\n");
    write_file(text, "hello");
    write_file(pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    write_file(token, "from-a-file\r\nsecond line\n");
    const char *t = "localhost:1";
    expect_no_client((struct timbre_client_options){0}, "target");
    expect_no_client((struct timbre_client_options){.target = ""}, "target");
    expect_no_client((struct timbre_client_options){.target = t, .deadline_ms = -2}, "deadline_ms");
    expect_no_client((struct timbre_client_options){.target = t, .attempts_max = -1}, "attempts_max");
    expect_no_client((struct timbre_client_options){.target = t, .attempts_max = 1001}, "attempts_max");
    expect_no_client((struct timbre_client_options){.target = t, .backoff_initial_ms = -1},
                     "backoff_initial_ms");
    expect_no_client((struct timbre_client_options){.target = t, .backoff_max_ms = -1}, "backoff_max_ms");
    expect_no_client((struct timbre_client_options){.target = t, .reply_bytes_max = 1LL << 31},
                     "reply_bytes_max");
    expect_no_client((struct timbre_client_options){.target = t, .keepalive_ms = -1}, "keepalive_ms");
    expect_no_client((struct timbre_client_options){.target = t, .token = "a", .token_file = token}, "token");
    expect_no_client((struct timbre_client_options){.target = t, .token = "a b"}, "token");
    expect_no_client((struct timbre_client_options){.target = t, .token = "a\n"}, "token");
    expect_no_client((struct timbre_client_options){.target = t, .token_file = "/no/such"}, "/no/such");
    expect_no_client((struct timbre_client_options){.target = t, .token_file = empty}, empty);
    expect_no_client((struct timbre_client_options){.target = t, .tls_ca = "/no/such"}, "/no/such");
    expect_no_client((struct timbre_client_options){.target = t, .tls_ca = text}, text);
    expect_no_client((struct timbre_client_options){.target = t, .tls_cert = text}, "tls_key");
    expect_no_client((struct timbre_client_options){.target = t, .tls_key = text}, "tls_cert");
    expect_no_client((struct timbre_client_options){.target = t, .tls_ca = pem}, "PEM");

    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answer = answer_ok(&ok);
    struct fake_server *s = fake_server_new(&answer, 1, NULL);
    struct timbre_client *c =
        new_client(s, (struct timbre_client_options){.token_file = token,
                                                     .round_robin = true,
                                                     .keepalive_ms = 10000,
                                                     .deadline_ms = TIMBRE_NO_DEADLINE});
    struct timbre_predict_request r = a_request();
    struct timbre_prediction *p;
    struct timbre_status st;
    assert_int_equal(timbre_predict(c, &r, &p, NULL), 0);
    timbre_prediction_free(p);
    assert_string_equal(fake_server_get_request(s)->authorization, "Bearer from-a-file");
    assert_int_equal(timbre_client_set_token(c, "\x80", &st), -1);
    r.traceparent = "a\nb";
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_non_null(strstr(st.message, "traceparent"));
    r = (struct timbre_predict_request){.audio_bytes = 5};
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_non_null(strstr(st.message, "audio"));
    r = (struct timbre_predict_request){.audio = audio, .audio_bytes = SIZE_MAX};
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_int_equal(st.code, TIMBRE_CODE_RESOURCE_EXHAUSTED);
    r = (struct timbre_predict_request){.deadline_ms = -2};
    assert_int_equal(timbre_predict(c, &r, &p, &st), -1);
    assert_int_equal(st.attempts, 0);
    timbre_client_del(c);
    timbre_client_del(NULL);
    fake_server_del(s);
    free(ok.data);
    unlink(empty);
    unlink(text);
    unlink(pem);
    unlink(token);
}

static void test_names(void **state) {
    (void)state;
    assert_string_equal(timbre_code_name(0), "OK");
    assert_string_equal(timbre_code_name(14), "UNAVAILABLE");
    assert_string_equal(timbre_code_name(16), "UNAUTHENTICATED");
    assert_string_equal(timbre_code_name(-1), "UNKNOWN");
    assert_string_equal(timbre_answer_name(TIMBRE_ANSWER_NO_SPEECH), "no_speech");
    assert_string_equal(timbre_answer_name(0), "unknown");
    assert_string_equal(timbre_answer_name(5), "unknown");
    assert_true(strlen(timbre_client_version()) >= 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_predict),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_models_and_health),
        cmocka_unit_test(test_unavailable_then_ok),
        cmocka_unit_test(test_pushback),
        cmocka_unit_test(test_no_retry),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_server_that_is_not_there),
        cmocka_unit_test(test_server_that_comes_late),
        cmocka_unit_test(test_bad_replies),
        cmocka_unit_test(test_reply_too_large),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
