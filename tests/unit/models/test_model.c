/* Models opened whole: labels, scores and dominant label by kind of output, the report, the worker's limits.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "models/model.h"

static struct model *open_golden(const char *name, const struct model_options *o) {
    char dir[256];
    struct model *m;
    struct status st;
    snprintf(dir, sizeof dir, "%s/tests/golden/%s", TIMBRE_SOURCE_DIR, name);
    if (model_new(&m, dir, o, &st))
        fail_msg("%s: %s", name, st.message);
    return m;
}

static const struct model_options on_ref = {.device = "ref"};

static void test_softmax(void **state) {
    const float logits[4] = {1.0f, 3.0f, -2.0f, 3.0f};
    float scores[4], total = 0;
    (void)state;
    struct model *m = open_golden("base", &on_ref);
    model_scores(m, logits, scores);
    for (int i = 0; i < 4; i++)
        total += scores[i];
    assert_float_equal(total, 1.0f, 1e-6);
    assert_float_equal(scores[0] / scores[2], 20.085537f, 1e-3);
    assert_int_equal(model_dominant(m, scores), 1); /* a tie goes to the lower index */
    model_del(m);
}

static void test_regression_has_no_dominant_label(void **state) {
    const float logits[3] = {1.5f, -0.25f, 0.5f};
    float scores[3];
    (void)state;
    struct model *m = open_golden("head_speech", &on_ref);
    model_scores(m, logits, scores);
    assert_memory_equal(logits, scores, sizeof scores); /* never squeezed into 0..1 */
    assert_int_equal(model_dominant(m, scores), -1);
    model_del(m);
}

static void test_sigmoid_and_override(void **state) {
    const float logits[4] = {0.0f, 2.0f, -2.0f, 1.0f};
    const struct model_options raw = {.device = "ref", .output = "none"};
    float scores[4];
    (void)state;
    struct model *m = open_golden("multi_label", &on_ref);
    model_scores(m, logits, scores);
    assert_float_equal(scores[0], 0.5f, 1e-7);
    assert_float_equal(scores[1] + scores[2], 1.0f, 1e-6);
    model_del(m);
    m = open_golden("multi_label", &raw);
    model_scores(m, logits, scores);
    assert_memory_equal(logits, scores, sizeof scores);
    assert_int_equal(model_dominant(m, scores), 1);
    model_del(m);
}

static void test_age_and_gender(void **state) {
    const float logits[4] = {7.0f, 1.0f, 2.0f, 0.0f};
    float scores[4];
    (void)state;
    struct model *m = open_golden("head_age_gender", &on_ref);
    assert_string_equal(model_get_info(m)->labels[0], "age");
    model_scores(m, logits, scores);
    assert_true(scores[0] == 7.0f);
    assert_float_equal(scores[1] + scores[2] + scores[3], 1.0f, 1e-6);
    assert_int_equal(model_dominant(m, scores), 2); /* of the genders, never age */
    model_del(m);
}

static void test_report_is_json(void **state) {
    struct text t;
    struct status st;
    cJSON *root;
    (void)state;
    struct model *m = open_golden("base", &on_ref);
    text_init_growing(&t);
    model_report_json(m, &t);
    assert_false(t.failed);
    assert_int_equal(json_parse(&root, t.data, t.length, "report", &st), 0);
    const cJSON *labels = cJSON_GetObjectItem(root, "labels");
    assert_int_equal(cJSON_GetArraySize(labels), model_get_info(m)->labels_count);
    assert_int_equal(strlen(cJSON_GetObjectItem(root, "digest")->valuestring), 64);
    cJSON_Delete(root);
    text_free(&t);
    model_del(m);
}

static void test_digest_is_that_of_sha256sum(void **state) {
    char command[512], line[128] = "";
    (void)state;
    struct model *m = open_golden("base", &on_ref);
    snprintf(command, sizeof command,
             "cd %s/tests/golden/base && sha256sum config.json model.safetensors preprocessor_config.json | "
             "sha256sum",
             TIMBRE_SOURCE_DIR);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    assert_non_null(fgets(line, sizeof line, p));
    pclose(p);
    line[64] = 0;
    assert_string_equal(line, model_get_info(m)->digest);
    model_del(m);
}

static void test_wrong_options_are_named(void **state) {
    struct model *m;
    struct status st;
    const struct {
        struct model_options o;
        const char *says;
    } cases[] = {
        {{.device = "tpu"}, "device tpu"},
        {{.device = "ref", .precision = "fp8"}, "precision fp8"},
        {{.device = "ref", .precision = "bf16"}, "fp32"},
        {{.device = "ref", .output = "argmax"}, "output argmax"},
        {{.device = "ref", .head_activation = "gelu"}, "head activation gelu"},
        {{.device = "ref", .head_activation = "tanh"}, "head activation tanh"},
        {{.device = "ref", .labels_path = "/no/such/file"}, "/no/such/file"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(model_new(&m, TIMBRE_SOURCE_DIR "/tests/golden/base", &cases[i].o, &st), -1);
        assert_null(m);
        if (!strstr(st.message, cases[i].says))
            fail_msg("\"%s\" does not say \"%s\"", st.message, cases[i].says);
    }
}

/* A list of names that is too short is a mistake, not something to fill up. */
static void test_given_labels_must_fit(void **state) {
    char path[] = "/tmp/timbre-labels-XXXXXX";
    const struct model_options o = {.device = "ref", .labels_path = path};
    struct model *m;
    struct status st;
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "one\ntwo\n", 8), 8);
    assert_int_equal(model_new(&m, TIMBRE_SOURCE_DIR "/tests/golden/base", &o, &st), -1);
    assert_non_null(strstr(st.message, "2 labels"));
    assert_int_equal(write(fd, "three\nfour\n", 11), 11);
    assert_int_equal(model_new(&m, TIMBRE_SOURCE_DIR "/tests/golden/base", &o, &st), 0);
    assert_string_equal(model_get_info(m)->labels[3], "four");
    model_del(m);
    close(fd);
    unlink(path);
}

static void test_worker_limits(void **state) {
    static float samples[4000], logits[4];
    struct model_worker *w;
    struct status st;
    (void)state;
    struct model *m = open_golden("base", &on_ref);
    assert_int_equal(model_worker_new(&w, m, 0, 100, 4, &st), -1);
    assert_int_equal(model_worker_new(&w, m, 0, 3200, 2, &st), 0);
    struct model_clip clip = {.samples = samples, .count = 399, .logits = logits};
    assert_int_equal(model_worker_run(w, &clip, 1, &st), -1);
    assert_non_null(strstr(st.message, "399"));
    clip.count = 3201;
    assert_int_equal(model_worker_run(w, &clip, 1, &st), -1);
    clip.count = 3200;
    assert_int_equal(model_worker_run(w, &clip, 1, &st), 0);
    assert_int_equal(model_count_slot(m, 399), 0);
    assert_int_equal(model_count_slot(m, 400), 640);
    assert_int_equal(model_count_slot(m, 641), 960);
    model_worker_del(w);
    model_del(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_regression_has_no_dominant_label),
        cmocka_unit_test(test_sigmoid_and_override),
        cmocka_unit_test(test_age_and_gender),
        cmocka_unit_test(test_report_is_json),
        cmocka_unit_test(test_digest_is_that_of_sha256sum),
        cmocka_unit_test(test_wrong_options_are_named),
        cmocka_unit_test(test_given_labels_must_fit),
        cmocka_unit_test(test_worker_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
