/* Tests of models/config: defaults, every field that counts, and every value that is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "build.h"
#include "models/config.h"

static struct folder folder;
static struct config config; /* a large struct: not on the stack */

static int set_up(void **state) {
    (void)state;
    folder_init(&folder);
    folder_write_text(&folder, "preprocessor_config.json", "{}");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    folder_free(&folder);
    return 0;
}

static void open_config(const char *text) {
    struct status st = {0};
    folder_write_text(&folder, "config.json", text);
    if (config_init(&config, folder.path, &st))
        fail_msg("%s: %s", text, st.message);
}

static void check_refused(const char *text, enum status_code code, const char *keyword) {
    struct status st = {0};
    folder_write_text(&folder, "config.json", text);
    if (config_init(&config, folder.path, &st) == 0)
        fail_msg("accepted: %s", text);
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
    if (code != st.code)
        fail_msg("\"%s\": %s", st.message, status_code_name(st.code));
    assert_int_equal(config.labels_count, 0);
    assert_int_equal(config.files_count, 0);
}

/* {"model_type": "hubert", <fields>} */
static void check_fields_refused(const char *fields, enum status_code code, const char *keyword) {
    char text[512];
    snprintf(text, sizeof text, "{\"model_type\":\"hubert\",%s}", fields);
    check_refused(text, code, keyword);
}

static void check_warned(const char *keyword) {
    for (int i = 0; i < config.warnings_count; i++)
        if (strstr(config.warnings[i], keyword))
            return;
    fail_msg("no warning holds \"%s\"", keyword);
}

static void test_defaults(void **state) {
    (void)state;
    open_config("{\"model_type\":\"wav2vec2\",\"hidden_size\":null,\"id2label\":null,\"num_labels\":null,"
                "\"torch_dtype\":\"float16\",\"dtype\":7,\"mask_time_prob\":{\"__float__\":\"Infinity\"}}");
    static const int kernel[] = {10, 3, 3, 3, 3, 2, 2}, stride[] = {5, 2, 2, 2, 2, 2, 2};
    assert_int_equal(config.family, CONFIG_WAV2VEC2);
    assert_int_equal(config.hidden, 768);
    assert_int_equal(config.layers, 12);
    assert_int_equal(config.heads, 12);
    assert_int_equal(config.intermediate, 3072);
    assert_int_equal(config.hidden_act, KERNELS_GELU);
    assert_int_equal(config.conv_act, KERNELS_GELU);
    assert_true(config.layer_norm_eps == 1e-5f);
    assert_int_equal(config.conv.levels, 7);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(config.conv_dim[i], 512);
        assert_int_equal(config.conv.kernel[i], kernel[i]);
        assert_int_equal(config.conv.stride[i], stride[i]);
    }
    assert_false(config.conv_layer_norm || config.conv_bias || config.stable_layer_norm ||
                 config.weighted_layer_sum);
    assert_true(config.feature_projection_norm);
    assert_int_equal(config.pos_conv_kernel, 128);
    assert_int_equal(config.pos_conv_groups, 16);
    assert_int_equal(config.pooling, KERNELS_POOL_MEAN);
    assert_string_equal(config.problem_type, "");
    assert_int_equal(config.labels_count, 0);
    assert_int_equal(config.sampling_rate, 16000);
    assert_true(config.normalize && config.has_preprocessor);
    assert_string_equal(config.licence, "");
    assert_int_equal(config.warnings_count, 0);
    assert_int_equal(config.files_count, 2);
    assert_string_equal(config.files[0], "config.json");
    assert_string_equal(config.files[1], "preprocessor_config.json");
    config_free(&config);
}

static void test_all_fields(void **state) {
    (void)state;
    open_config(
        "{\"model_type\":\"hubert\",\"hidden_size\":32,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"intermediate_size\":48,\"hidden_act\":\"relu\",\"feat_extract_activation\":\"gelu_new\","
        "\"layer_norm_eps\":1e-6,\"feat_extract_norm\":\"layer\",\"conv_bias\":true,\"conv_dim\":[8,16],"
        "\"conv_kernel\":[10,3],\"conv_stride\":[5,2],\"num_feat_extract_layers\":2,"
        "\"num_conv_pos_embeddings\":5,\"num_conv_pos_embedding_groups\":2,\"do_stable_layer_norm\":true,"
        "\"use_weighted_layer_sum\":true,\"feat_proj_layer_norm\":false,\"conv_pos_batch_norm\":true,"
        "\"pooling_mode\":\"max\",\"problem_type\":\"regression\",\"output_hidden_size\":7,"
        "\"add_adapter\":false,\"adapter_attn_dim\":null}");
    assert_int_equal(config.family, CONFIG_HUBERT);
    assert_int_equal(config.hidden, 32);
    assert_int_equal(config.layers, 2);
    assert_int_equal(config.heads, 4);
    assert_int_equal(config.intermediate, 48);
    assert_int_equal(config.hidden_act, KERNELS_RELU);
    assert_int_equal(config.conv_act, KERNELS_GELU_TANH);
    assert_true(config.layer_norm_eps == 1e-6f);
    assert_true(config.conv_layer_norm && config.conv_bias && config.stable_layer_norm &&
                config.weighted_layer_sum);
    assert_false(config.feature_projection_norm);
    assert_true(config.pos_conv_batch_norm);
    assert_int_equal(config.conv.levels, 2);
    assert_int_equal(config.conv_dim[1], 16);
    assert_int_equal(config.conv.kernel[0], 10);
    assert_int_equal(config.conv.stride[1], 2);
    assert_int_equal(config.pos_conv_kernel, 5);
    assert_int_equal(config.pos_conv_groups, 2);
    assert_int_equal(config.pooling, KERNELS_POOL_MAX);
    assert_true(config.regression);
    assert_false(config.multi_label);
    assert_string_equal(config.problem_type, "regression");
    assert_int_equal(config.warnings_count, 0);
    config_free(&config);
}

static void test_families(void **state) {
    (void)state;
    for (int f = CONFIG_WAV2VEC2; f <= CONFIG_UNISPEECH_SAT; f++) {
        char text[128];
        snprintf(text, sizeof text, "{\"model_type\":\"%s\",\"feat_proj_layer_norm\":false}",
                 config_family_name((enum config_family)f));
        open_config(text);
        assert_int_equal(config.family, f);
        assert_int_equal(config.feature_projection_norm,
                         f != CONFIG_HUBERT); /* only HuBERT reads this field */
        config_free(&config);
    }
    check_refused("{\"model_type\":\"wavlm\"}", STATUS_FAILED_PRECONDITION, "config.json: model_type: wavlm");
    check_refused("{}", STATUS_FAILED_PRECONDITION, "model_type is missing");
}

static void test_activations(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum kernels_activation act;
    } known[] = {{"gelu", KERNELS_GELU},          {"gelu_python", KERNELS_GELU},
                 {"gelu_new", KERNELS_GELU_TANH}, {"gelu_fast", KERNELS_GELU_TANH},
                 {"relu", KERNELS_RELU},          {"gelu_pytorch_tanh", KERNELS_GELU_TANH},
                 {"silu", KERNELS_SILU},          {"swish", KERNELS_SILU}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char text[128];
        snprintf(text, sizeof text, "{\"model_type\":\"hubert\",\"hidden_act\":\"%s\"}", known[i].name);
        open_config(text);
        assert_int_equal(config.hidden_act, known[i].act);
        config_free(&config);
    }
    check_fields_refused("\"hidden_act\":\"quick_gelu\"", STATUS_FAILED_PRECONDITION,
                         "hidden_act: quick_gelu");
    check_fields_refused("\"feat_extract_activation\":\"mish\"", STATUS_FAILED_PRECONDITION,
                         "feat_extract_activation: mish");
}

static void test_refused_features(void **state) {
    (void)state;
    const enum status_code code = STATUS_FAILED_PRECONDITION;
    check_fields_refused("\"add_adapter\":true", code, "add_adapter");
    check_fields_refused("\"adapter_attn_dim\":16", code, "adapter_attn_dim");
    check_fields_refused("\"quantization_config\":{}", code, "quantization_config");
    check_fields_refused("\"feat_extract_norm\":\"batch\"", code, "feat_extract_norm: batch");
    check_fields_refused("\"pooling_mode\":\"attention\"", code, "pooling_mode: attention");
    check_fields_refused("\"problem_type\":\"ranking\"", code, "problem_type: ranking");
}

static void test_bad_values(void **state) {
    (void)state;
    const enum status_code code = STATUS_INVALID_ARGUMENT;
    check_fields_refused("\"hidden_size\":\"768\"", code, "config.json: hidden_size");
    check_fields_refused("\"hidden_size\":0", code, "hidden_size");
    check_fields_refused("\"hidden_size\":8193", code, "hidden_size");
    check_fields_refused("\"hidden_size\":1e300", code, "hidden_size");
    check_fields_refused("\"hidden_size\":768,\"hidden_size\":32", code, "hidden_size is there twice");
    check_fields_refused("\"num_hidden_layers\":129", code, "num_hidden_layers");
    check_fields_refused("\"num_attention_heads\":7", code, "not a multiple of num_attention_heads 7");
    check_fields_refused("\"num_conv_pos_embedding_groups\":7", code, "num_conv_pos_embedding_groups 7");
    check_fields_refused("\"layer_norm_eps\":-1", code, "layer_norm_eps");
    check_fields_refused("\"layer_norm_eps\":0", code, "layer_norm_eps");
    check_fields_refused("\"conv_bias\":1", code, "conv_bias");
    check_fields_refused("\"conv_dim\":[]", code, "conv_dim is empty");
    check_fields_refused("\"conv_dim\":512", code, "conv_dim is not a list");
    check_fields_refused("\"conv_dim\":[512,0,512,512,512,512,512]", code, "conv_dim");
    check_fields_refused("\"conv_dim\":[512,1.5,512,512,512,512,512]", code, "conv_dim");
    check_fields_refused("\"conv_dim\":[512]", code, "1, 7 and 7 entries");
    check_fields_refused("\"conv_kernel\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", code, "limit of 16");
    check_fields_refused("\"conv_stride\":[1024,1024,2,2,2,2,2]", code, "conv_stride: its product");
    check_fields_refused("\"hidden_act\":7", code, "hidden_act is not a string");
    check_fields_refused("\"sampling_rate\":1", code, "sampling_rate");
    check_refused("[]", code, "config.json: not a JSON object");
    check_refused("{", code, "config.json: not valid JSON");
    check_refused("", code, "config.json: not valid JSON");
    folder_remove(&folder, "config.json");
    struct status st = {0};
    assert_int_equal(config_init(&config, folder.path, &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
}

static void test_labels(void **state) {
    (void)state;
    open_config(
        "{\"model_type\":\"hubert\",\"id2label\":{\"2\":\"sad\",\"0\":\"angry\",\"3\":7},\"label2id\":null}");
    assert_int_equal(config.labels_count, 4);
    assert_string_equal(config.labels[0], "angry");
    assert_null(config.labels[1]);
    assert_string_equal(config.labels[2], "sad");
    assert_string_equal(config.labels[3], "7");
    config_free(&config);
    const enum status_code code = STATUS_INVALID_ARGUMENT;
    check_fields_refused("\"id2label\":[\"a\"]", code, "id2label is not an object");
    check_fields_refused("\"id2label\":{\"x\":\"a\"}", code, "\"x\" is not the number of a label");
    check_fields_refused("\"id2label\":{\"-1\":\"a\"}", code, "\"-1\" is not the number of a label");
    check_fields_refused("\"id2label\":{\"01\":\"a\"}", code, "\"01\" is not the number of a label");
    check_fields_refused("\"id2label\":{\"0\":\"a\",\"0\":\"b\"}", code, "label 0 is there twice");
    check_fields_refused("\"id2label\":{\"0\":[]}", code, "label 0 is neither");
    check_fields_refused("\"id2label\":{\"0\":\"a\\nb\"}", code, "control character");
    check_fields_refused("\"id2label\":{\"4096\":\"a\"}", code, "limit of 4096");
    check_fields_refused("\"id2label\":{\"0\":\"\"}", code, "empty");
}

static void check_label_file(const char *text, const char *first, const char *last) {
    struct status st = {0};
    char path[128];
    folder_write_text(&folder, "labels", text);
    snprintf(path, sizeof path, "%s/labels", folder.path);
    if (config_read_labels(&config, path, &st))
        fail_msg("%s: %s", text, st.message);
    assert_string_equal(config.labels[0], first);
    assert_string_equal(config.labels[config.labels_count - 1], last);
}

static void test_label_files(void **state) {
    (void)state;
    open_config("{\"model_type\":\"hubert\",\"id2label\":{\"0\":\"old\"}}");
    check_label_file("angry\nsad\r\nvery happy \n\n", "angry", "very happy");
    assert_int_equal(config.labels_count, 3);
    check_label_file("\xef\xbb\xbf[\"x\", \"y\"]", "x", "y");
    check_label_file(" {\"0\": \"p\", \"5\": \"q\"}\n", "p", "q");
    assert_int_equal(config.labels_count, 6);
    static const char *const bad[] = {"",   "\n\n",          "a\n\nb",       "[1,",
                                      "[]", "{\"a\":\"b\"}", "[\"a\",null]", "a\tb\n"};
    char path[128];
    snprintf(path, sizeof path, "%s/labels", folder.path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct status st = {0};
        folder_write_text(&folder, "labels", bad[i]);
        if (config_read_labels(&config, path, &st) == 0)
            fail_msg("accepted: %s", bad[i]);
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
        assert_int_equal(config.labels_count, 6); /* the old ones stay */
        assert_string_equal(config.labels[5], "q");
    }
    struct status st = {0};
    assert_int_equal(config_read_labels(&config, "/nowhere/labels", &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    config_free(&config);
}

static void test_preprocessor(void **state) {
    (void)state;
    const char *plain = "{\"model_type\":\"hubert\",\"sampling_rate\":16000}";
    folder_write_text(&folder, "preprocessor_config.json",
                      "{\"do_normalize\":false,\"sampling_rate\":8000,\"feature_size\":1,"
                      "\"feature_extractor_type\":\"Wav2Vec2FeatureExtractor\",\"padding_value\":0.0}");
    open_config(plain);
    assert_false(config.normalize);
    assert_int_equal(config.sampling_rate, 8000);
    check_warned("sampling_rate is 8000, config.json says 16000");
    config_free(&config);

    folder_write_text(&folder, "preprocessor_config.json",
                      "{\"feature_extractor_type\":\"WhisperFeatureExtractor\"}");
    check_refused(plain, STATUS_FAILED_PRECONDITION, "feature_extractor_type: WhisperFeatureExtractor");
    folder_write_text(&folder, "preprocessor_config.json", "{\"feature_size\":80}");
    check_refused(plain, STATUS_FAILED_PRECONDITION, "feature_size");
    folder_write_text(&folder, "preprocessor_config.json", "{\"do_normalize\":\"yes\"}");
    check_refused(plain, STATUS_INVALID_ARGUMENT, "preprocessor_config.json: do_normalize");
    folder_write_text(&folder, "preprocessor_config.json", "nonsense");
    check_refused(plain, STATUS_INVALID_ARGUMENT, "preprocessor_config.json: not valid JSON");
    folder_remove(&folder, "preprocessor_config.json");

    folder_write_text(&folder, "processor_config.json", "{\"feature_extractor\":{\"do_normalize\":false}}");
    open_config(plain);
    assert_false(config.normalize);
    assert_true(config.has_preprocessor);
    assert_string_equal(config.files[1], "processor_config.json");
    config_free(&config);
    folder_write_text(&folder, "processor_config.json", "{\"processor_class\":\"Wav2Vec2Processor\"}");
    open_config(plain);
    assert_true(config.normalize);
    assert_false(config.has_preprocessor);
    check_warned("preprocessor_config.json is missing");
    config_free(&config);
}

static void check_licence(const char *readme, const char *licence) {
    folder_write_text(&folder, "README.md", readme);
    open_config("{\"model_type\":\"hubert\"}");
    assert_string_equal(config.licence, licence);
    config_free(&config);
}

static void test_licence(void **state) {
    (void)state;
    check_licence("---\nlanguage: en\nlicense: cc-by-nc-sa-4.0\ntags:\n- x\n---\n# Model\n",
                  "cc-by-nc-sa-4.0");
    check_licence("---\r\nlicense: \"mit\"\r\n---\r\n", "mit");
    check_licence("---\nlicense:\n---\n", "");
    check_licence("---\nlanguage: en\n---\nlicense: mit\n", "");
    check_licence("# Model\nlicense: mit\n", "");
    check_licence("---\nlicense_name: x\nlicense: a\033[2Jb", "a?[2Jb");
    check_licence("", "");
    char longer[256];
    memset(longer, 'x', sizeof longer);
    memcpy(longer, "---\nlicense: ", 13);
    longer[255] = 0;
    folder_write_text(&folder, "README.md", longer);
    open_config("{\"model_type\":\"hubert\"}");
    assert_int_equal(strlen(config.licence), sizeof config.licence - 1);
    config_free(&config);
}

static void test_warnings(void **state) {
    (void)state;
    open_config("{\"model_type\":\"hubert\",\"num_feat_extract_layers\":9}");
    check_warned("num_feat_extract_layers is 9");
    for (int i = 0; i < 2 * CONFIG_WARNINGS_MAX; i++)
        config_warn(&config, "number %d", i);
    assert_int_equal(config.warnings_count, CONFIG_WARNINGS_MAX);
    config_free(&config);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_defaults),         TEST(test_all_fields), TEST(test_families), TEST(test_activations),
        TEST(test_refused_features), TEST(test_bad_values), TEST(test_labels),   TEST(test_label_files),
        TEST(test_preprocessor),     TEST(test_licence),    TEST(test_warnings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
