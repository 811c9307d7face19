/* Tests of client/reply and client/pool: what a server sent, well-meant and not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "client/pool.h"
#include "client/reply.h"
#include "messages.h"

static void test_prediction(void **state) {
    (void)state;
    struct timbre_status st = {.code = 0};
    struct bytes b = messages_make_prediction("r1", 3, 4);
    struct timbre_prediction *p = reply_parse_prediction(b.data, b.count, &st);
    free(b.data); /* nothing points there */
    assert_non_null(p);
    assert_int_equal(p->answer, TIMBRE_ANSWER_OK);
    assert_string_equal(p->message, "");
    assert_string_equal(p->request_id, "r1");
    assert_true(p->duration_s == 3);
    assert_int_equal(p->scores_count, 3);
    assert_string_equal(p->scores[1].label, "joy");
    assert_int_equal(p->scores[1].index, 1);
    assert_true(p->scores[2].score == 0.1f && p->scores[2].logit == 0.1f * 10);
    assert_string_equal(p->dominant->label, "anger");
    assert_int_equal(p->embedding_count, 4);
    assert_true(p->embedding[3] == 3);
    assert_int_equal(p->windows_count, 3);
    assert_int_equal(p->windows[1].answer, TIMBRE_ANSWER_NO_SPEECH);
    assert_int_equal(p->windows[1].scores_count, 0);
    assert_true(p->windows[2].start_s == 2 && p->windows[2].end_s == 4);
    assert_string_equal(p->windows[2].scores[0].label, "anger");
    assert_string_equal(p->receipt.digest, "d1");
    assert_string_equal(p->receipt.model_version, "");
    assert_int_equal(p->receipt.batch_size, 5);
    timbre_prediction_free(p);
    timbre_prediction_free(NULL);
}

static void expect_refusal(const void *bytes, size_t count, const char *word) {
    struct timbre_status st = {.code = 0};
    assert_null(reply_parse_prediction(bytes, count, &st));
    assert_int_equal(st.code, TIMBRE_CODE_INTERNAL);
    assert_non_null(strstr(st.message, word));
    assert_null(reply_parse_prediction(bytes, count, NULL));
}

/* What client.h promises holds whatever the server says. */
static void test_broken_promises(void **state) {
    (void)state;
    expect_refusal(NULL, 0, "what became");
    expect_refusal("\x08\x01", 2, "without scores");
    expect_refusal("\x08\x02\x3a\x02\x18\x01", 6,
                   "window 0"); /* no speech, but a window that is OK, without scores */
    expect_refusal("\x08", 1, "not a timbre.v1.PredictResponse");
    expect_refusal("\x12\xff\xff\xff\xff\x0f", 6, "not a");
    struct timbre_status st = {.code = 0};
    /* Scores of an answer that has none are dropped. */
    static const char silent[] = "\x08\x02\x22\x05\x12\x03joy\x2a\x05\x12\x03joy";
    struct timbre_prediction *p = reply_parse_prediction(silent, sizeof silent - 1, &st);
    assert_non_null(p);
    assert_int_equal(p->answer, TIMBRE_ANSWER_NO_SPEECH);
    assert_int_equal(p->scores_count, 0);
    assert_null(p->dominant);
    assert_string_equal(p->receipt.model, "");
    timbre_prediction_free(p);
}

static void test_cut_and_damaged(void **state) {
    (void)state;
    struct bytes b = messages_make_prediction("r1", 3, 4);
    struct timbre_status st;
    for (size_t n = 0; n < b.count; n++) {
        uint8_t *cut = malloc(n + 1); /* its own block, so that a sanitizer sees a byte too far */
        memcpy(cut, b.data, n);
        timbre_prediction_free(reply_parse_prediction(cut, n, &st));
        timbre_models_free(reply_parse_models(cut, n, &st));
        timbre_models_free(reply_parse_model(cut, n, &st));
        reply_parse_details(cut, n, &st);
        free(cut);
    }
    srand(1);
    for (int i = 0; i < 20000; i++) {
        size_t at = (size_t)rand() % b.count;
        uint8_t before = b.data[at];
        b.data[at] = (uint8_t)rand();
        timbre_prediction_free(reply_parse_prediction(b.data, b.count, &st));
        b.data[at] = before;
    }
    free(b.data);
}

/* Half a million empty scores in a megabyte must not take fifty. */
static void test_unpacks_to_much(void **state) {
    (void)state;
    const size_t count = 1 << 20;
    struct timbre_status st = {.code = 0};
    uint8_t *bytes = malloc(count);
    for (size_t i = 0; i < count; i += 2)
        bytes[i] = 0x22, bytes[i + 1] = 0;
    assert_null(reply_parse_prediction(bytes, count, &st));
    assert_true(st.code == TIMBRE_CODE_INTERNAL || st.code == TIMBRE_CODE_RESOURCE_EXHAUSTED);
    free(bytes);
    struct bytes b = messages_make_prediction("", 1000, 1000); /* what is real passes */
    struct timbre_prediction *p = reply_parse_prediction(b.data, b.count, &st);
    assert_non_null(p);
    assert_int_equal(p->windows_count, 1000);
    timbre_prediction_free(p);
    free(b.data);
}

static void test_models(void **state) {
    (void)state;
    struct timbre_status st = {.code = 0};
    struct bytes b = messages_make_models(2);
    struct timbre_models *m = reply_parse_models(b.data, b.count, &st);
    free(b.data);
    assert_int_equal(m->count, 2);
    assert_int_equal(m->models[1].labels_count, 3);
    assert_string_equal(m->models[1].labels[2], "sadness");
    assert_string_equal(m->models[1].licence, "");
    assert_true(m->models[0].parameters == 5000000000);
    timbre_models_free(m);
    m = reply_parse_models(NULL, 0, &st);
    assert_int_equal(m->count, 0);
    timbre_models_free(m);
    b = messages_make_model();
    m = reply_parse_model(b.data, b.count, &st);
    free(b.data);
    assert_int_equal(m->count, 1);
    assert_string_equal(m->models[0].name, "base");
    timbre_models_free(m);
    assert_null(reply_parse_model("\x0a", 1, &st));
    assert_int_equal(st.code, TIMBRE_CODE_INTERNAL);
    timbre_models_free(NULL);
}

static void test_health(void **state) {
    (void)state;
    struct timbre_status st = {.code = 0};
    bool serving = false;
    assert_int_equal(reply_parse_health("\x08\x01", 2, &serving, &st), 0);
    assert_true(serving);
    assert_int_equal(reply_parse_health("\x08\x02", 2, &serving, &st), 0);
    assert_false(serving);
    assert_int_equal(reply_parse_health(NULL, 0, &serving, &st), 0);
    assert_false(serving);
    assert_int_equal(reply_parse_health("\x08", 1, &serving, &st), -1);
}

static void test_details(void **state) {
    (void)state;
    struct timbre_status st = {.retry_after_ms = -1};
    struct bytes b = messages_make_details("QUEUE_FULL", 2345);
    reply_parse_details(b.data, b.count, &st);
    assert_string_equal(st.reason, "QUEUE_FULL");
    assert_int_equal(st.retry_after_ms, 2345);
    st.retry_after_ms = 7; /* the trailer has said it */
    reply_parse_details(b.data, b.count, &st);
    assert_int_equal(st.retry_after_ms, 7);
    for (size_t n = 0; n < b.count; n++) {
        uint8_t *cut = malloc(n + 1);
        memcpy(cut, b.data, n);
        reply_parse_details(cut, n, &st);
        free(cut);
    }
    free(b.data);
    char long_reason[300];
    memset(long_reason, 'A', sizeof long_reason - 1);
    long_reason[sizeof long_reason - 1] = 0;
    b = messages_make_details(long_reason, -1);
    reply_parse_details(b.data, b.count, &st);
    assert_int_equal(strlen(st.reason), TIMBRE_REASON_BYTES - 1);
    free(b.data);
    reply_parse_details("garbage", 7, &st);
    reply_parse_details(NULL, 0, &st);
}

static void test_pool(void **state) {
    (void)state;
    struct pool p;
    pool_init(&p, 0);
    assert_null(pool_alloc(&p, SIZE_MAX, 2));
    assert_null(pool_alloc(&p, SIZE_MAX, 1));
    assert_null(pool_alloc(&p, 1, POOL_BYTES_MIN + 1));
    size_t taken = 0;
    for (unsigned char *a; (a = pool_alloc(&p, 1, 100)); taken += 100) {
        assert_int_equal((uintptr_t)a % 16, 0);
        memset(a, 1, 100);
    }
    assert_in_range(taken, POOL_BYTES_MIN / 2, POOL_BYTES_MIN);
    pool_free(&p);
    pool_free(&p);
    pool_init(&p, SIZE_MAX);
    assert_non_null(pool_alloc(&p, 1, 1 << 20));
    assert_null(pool_alloc(&p, 1, SIZE_MAX - 20)); /* with the block's own bytes too many */
    pool_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prediction),      cmocka_unit_test(test_broken_promises),
        cmocka_unit_test(test_cut_and_damaged), cmocka_unit_test(test_unpacks_to_much),
        cmocka_unit_test(test_models),          cmocka_unit_test(test_health),
        cmocka_unit_test(test_details),         cmocka_unit_test(test_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
