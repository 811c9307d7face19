/* timbre.v1 messages from the engine's results, with the shipped model's labels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/answer.h"

enum { LABELS = 7 };

static struct model *model;
static const float scores[LABELS] = {0.1f, 0.3f, 0.05f, 0.3f, 0.2f, 0.0f, 0.05f};
static const float logits[LABELS] = {1, 2, 3, 4, 5, 6, 7};

static int open_model(void **state) {
    (void)state;
    const struct model_options o = {.threads = 1};
    struct status st;
    return model_new(&model, TIMBRE_SOURCE_DIR "/models/default", &o, &st);
}

static int close_model(void **state) {
    (void)state;
    model_del(model);
    return 0;
}

static struct engine_result ok_result(void) {
    return (struct engine_result){.outcome = ENGINE_OK,
                                  .duration_s = 2.5,
                                  .scores = scores,
                                  .logits = logits,
                                  .dominant = 1,
                                  .batch_size = 3,
                                  .queue_ms = 1,
                                  .compute_ms = 2,
                                  .audio_s = 2.5};
}

static const struct answer_options named = {.model_name = "m", .model_version = "2", .request_id = "id"};

static void test_all_labels_in_the_models_order(void **state) {
    (void)state;
    struct engine_result r = ok_result();
    struct answer *a = answer_new(&r, model, &named);
    const Timbre__V1__PredictResponse *p = answer_get(a);
    assert_int_equal(p->status, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK);
    assert_int_equal(p->n_scores, LABELS);
    for (int i = 0; i < LABELS; i++) {
        assert_int_equal(p->scores[i]->index, i);
        assert_string_equal(p->scores[i]->label, model_get_info(model)->labels[i]);
        assert_memory_equal(&p->scores[i]->score, &scores[i], sizeof(float));
        assert_memory_equal(&p->scores[i]->logit, &logits[i], sizeof(float));
    }
    assert_int_equal(p->dominant->index, 1);
    assert_string_equal(p->request_id, "id");
    assert_string_equal(p->receipt->model_version, "2");
    assert_int_equal(p->receipt->batch_size, 3);
    assert_int_equal(p->n_embedding, 0);
    assert_int_equal(p->n_windows, 0);
    answer_free(a);
}

static void test_top_k_is_sorted_and_ties_keep_their_order(void **state) {
    (void)state;
    static const int expected[LABELS] = {1, 3, 4, 0, 2, 6, 5};
    struct engine_result r = ok_result();
    for (int k = 1; k <= LABELS + 1; k++) {
        struct answer_options o = named;
        o.top_k = k;
        struct answer *a = answer_new(&r, model, &o);
        const Timbre__V1__PredictResponse *p = answer_get(a);
        assert_int_equal(p->n_scores, k < LABELS ? k : LABELS);
        for (size_t i = 0; i < p->n_scores; i++)
            assert_int_equal(p->scores[i]->index, expected[i]);
        answer_free(a);
    }
}

static void test_windows(void **state) {
    (void)state;
    struct engine_window windows[] = {
        {.start_s = 0, .end_s = 1, .outcome = ENGINE_OK, .logits = logits, .scores = scores},
        {.start_s = 0.5, .end_s = 1.5, .outcome = ENGINE_NO_SPEECH},
    };
    struct engine_result r = ok_result();
    struct answer_options o = named;
    r.windows = windows;
    r.windows_count = 2;
    o.top_k = 2;
    struct answer *a = answer_new(&r, model, &o);
    const Timbre__V1__PredictResponse *p = answer_get(a);
    assert_int_equal(p->n_windows, 2);
    assert_int_equal(p->windows[0]->n_scores, 2);
    assert_int_equal(p->windows[0]->scores[0]->index, 1);
    assert_int_equal(p->windows[1]->status, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH);
    assert_int_equal(p->windows[1]->n_scores, 0);
    assert_true(p->windows[1]->end_s == 1.5);
    uint8_t packed[4096];
    assert_true(timbre__v1__predict_response__get_packed_size(p) <= sizeof packed);
    size_t bytes = timbre__v1__predict_response__pack(p, packed);
    Timbre__V1__PredictResponse *back = timbre__v1__predict_response__unpack(NULL, bytes, packed);
    assert_int_equal(back->n_windows, 2);
    timbre__v1__predict_response__free_unpacked(back, NULL);
    answer_free(a);
}

static void test_no_scores_without_an_answer(void **state) {
    (void)state;
    struct engine_result r = {.outcome = ENGINE_NO_SPEECH, .dominant = -1, .duration_s = 1};
    strcpy(r.status.message, "silence");
    struct answer *a = answer_new(&r, model, &named);
    const Timbre__V1__PredictResponse *p = answer_get(a);
    assert_int_equal(p->status, TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH);
    assert_int_equal(p->n_scores, 0);
    assert_null(p->dominant);
    assert_string_equal(p->message, "silence");
    answer_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_labels_in_the_models_order),
        cmocka_unit_test(test_top_k_is_sorted_and_ties_keep_their_order),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_no_scores_without_an_answer),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
