/* Whole models with their packed weights in a file: the same reports and bits, whatever becomes of the file.
 * The linker puts the __wrap_ functions in the place of the real ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "build.h"
#include "models/model.h"

static struct folder model_dir, cache_dir;

/* ---- what the code under test does ---- */

static char said[4 * LOG_LINE_BYTES_MAX]; /* all lines since it was emptied; some come from a thread */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int hashed;

void __wrap_log_write(enum log_level level, const char *component, const char *format, ...);
int __real_sha256_file(char *hex, const char *path, struct status *st);
int __wrap_sha256_file(char *hex, const char *path, struct status *st);
int64_t __real_file_clock_ns(void);
int64_t __wrap_file_clock_ns(void);

void __wrap_log_write(enum log_level level, const char *component, const char *format, ...) {
    va_list args;
    (void)level, (void)component;
    va_start(args, format);
    pthread_mutex_lock(&lock);
    const size_t n = strlen(said);
    vsnprintf(said + n, sizeof said - n, format, args);
    pthread_mutex_unlock(&lock);
    va_end(args);
}

int __wrap_sha256_file(char *hex, const char *path, struct status *st) {
    hashed++;
    return __real_sha256_file(hex, path, st);
}

/* The models' files were all made long ago. */
int64_t __wrap_file_clock_ns(void) {
    return __real_file_clock_ns() + INT64_C(60) * 1000000000;
}

/* ---- the bed ---- */

static int set_up(void **state) {
    (void)state;
    folder_init(&model_dir);
    folder_init(&cache_dir);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    folder_free(&model_dir);
    folder_free(&cache_dir);
    return 0;
}

static void check_said(const char *words) {
    if (!strstr(said, words))
        fail_msg("said \"%s\", and not \"%s\"", said, words);
}

/* ---- tests ---- */

struct answer {
    struct text report;
    float logits[8], embedding[64];
    bool read;
};

static void answer(struct answer *to, const char *dir, const struct model_options *o) {
    static float samples[8000];
    struct model *m;
    struct model_worker *w;
    struct status st;
    *to = (struct answer){0};
    for (int i = 0; i < 8000; i++)
        samples[i] = (float)(i * 7919 % 2003 - 1000) * 1e-4f;
    said[0] = 0;
    hashed = 0;
    if (model_new(&m, dir, o, &st))
        fail_msg("%s: %s", dir, st.message);
    to->read = hashed == 0;
    assert_true(model_get_info(m)->labels_count <= 8 && model_get_info(m)->hidden <= 64);
    text_init_growing(&to->report);
    model_report_json(m, &to->report);
    assert_int_equal(model_worker_new(&w, m, 0, 16000, 1, &st), 0);
    struct model_clip clip = {
        .samples = samples, .count = 8000, .logits = to->logits, .embedding = to->embedding};
    assert_int_equal(model_worker_run(w, &clip, 1, &st), 0);
    model_worker_del(w);
    model_del(m);
}

static void check_equal(const struct answer *a, const struct answer *b) {
    assert_string_equal(a->report.data, b->report.data);
    assert_memory_equal(a->logits, b->logits, sizeof a->logits);
    assert_memory_equal(a->embedding, b->embedding, sizeof a->embedding);
}

/* Kinds of weights, heads, containers and spellings. */
static const char *const goldens[] = {
    "base",        "large",         "hubert_batch_norm", "head_age_gender", "weighted_pre",
    "dtype_mixed", "torch_sharded", "names_plain",       "labels_short",    "safetensors_extra"};

static void check_models(const char *cpu, const char *precision) {
    struct model_options without = {.device = "cpu", .precision = precision, .threads = 2}, with = without;
    char probe[MODEL_DEVICE_NAME_BYTES];
    setenv("TIMBRE_CPU", cpu, 1);
    if (model_find_device(&without, probe, NULL)) {
        print_message("%s, %s: not here\n", cpu[0] ? cpu : "any", precision);
        unsetenv("TIMBRE_CPU");
        return;
    }
    with.packed_cache = cache_dir.path;
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++) {
        static struct answer plain, first, second;
        char dir[512];
        snprintf(dir, sizeof dir, "%s/tests/golden/%s", TIMBRE_SOURCE_DIR, goldens[i]);
        answer(&plain, dir, &without);
        answer(&first, dir, &with);
        assert_false(first.read);
        answer(&second, dir, &with);
        if (!second.read)
            fail_msg("%s: read anew: %s", dir, said);
        check_equal(&plain, &first);
        check_equal(&plain, &second);
        text_free(&plain.report);
        text_free(&first.report);
        text_free(&second.report);
    }
    unsetenv("TIMBRE_CPU");
}

static void test_models(void **state) {
    (void)state;
    check_models("", "fp32");
    check_models("portable", "fp32");
    check_models("", "bf16");
    check_models("", "int8");
}

/* A file that is damaged, or cannot be, costs time and nothing else. */
static void test_model_with_damaged_file(void **state) {
    const char *dir = TIMBRE_SOURCE_DIR "/tests/golden/base";
    struct model_options o = {.device = "cpu", .threads = 1};
    static struct answer plain, damaged;
    (void)state;
    answer(&plain, dir, &o);
    o.packed_cache = cache_dir.path;
    answer(&damaged, dir, &o);
    text_free(&damaged.report);
    char *data;
    size_t bytes;
    assert_int_equal(file_read(&data, &bytes, folder_find_path(&cache_dir), SIZE_MAX, "", NULL), 0);
    data[bytes - 1000] ^= 1;
    folder_write(&cache_dir, folder_find_name(&cache_dir), data, bytes);
    free(data);
    answer(&damaged, dir, &o);
    assert_false(damaged.read);
    check_equal(&plain, &damaged);
    text_free(&damaged.report);
    answer(&damaged, dir, &o);
    assert_true(damaged.read);
    check_equal(&plain, &damaged);
    text_free(&damaged.report);
    o.packed_cache = "/dev/null/none";
    answer(&damaged, dir, &o);
    check_equal(&plain, &damaged);
    text_free(&damaged.report);
    text_free(&plain.report);
}

static void copy_golden(const char *name) {
    static const char *const files[] = {"config.json", "model.safetensors", "preprocessor_config.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char command[512];
        snprintf(command, sizeof command, "cp %s/tests/golden/%s/%s %s/", TIMBRE_SOURCE_DIR, name, files[i],
                 model_dir.path);
        assert_int_equal(system(command), 0);
    }
}

/* Other weights in a file of the same size, name and time: what answers are those of the new ones. */
static void test_model_that_was_trained_on(void **state) {
    const struct model_options without = {.device = "cpu", .threads = 1};
    struct model_options with = without;
    static struct answer old, plain, first, second;
    char path[512], *data;
    size_t bytes;
    (void)state;
    with.packed_cache = cache_dir.path;
    copy_golden("base");
    folder_touch(&model_dir, "model.safetensors", 1000000000);
    answer(&old, model_dir.path, &with);
    snprintf(path, sizeof path, "%s/model.safetensors", model_dir.path);
    assert_int_equal(file_read(&data, &bytes, path, 1 << 20, "", NULL), 0);
    for (size_t i = bytes / 2; i < bytes; i += 4)
        data[i / 4 * 4 + 2] ^= 1; /* of the fractions */
    folder_write(&model_dir, "model.safetensors", data, bytes);
    free(data);
    folder_touch(&model_dir, "model.safetensors", 1000000000);
    answer(&plain, model_dir.path, &without);
    answer(&first, model_dir.path, &with);
    answer(&second, model_dir.path, &with);
    assert_false(first.read);
    assert_true(second.read);
    check_equal(&plain, &first);
    check_equal(&plain, &second);
    assert_memory_not_equal(old.logits, plain.logits, sizeof old.logits);
    text_free(&old.report);
    text_free(&plain.report);
    text_free(&first.report);
    text_free(&second.report);
}

/* The layout of the weights is compared too, whatever the files say. */
static void test_model_of_another_layout(void **state) {
    const struct model_options o = {.device = "cpu", .threads = 1, .packed_cache = cache_dir.path};
    static struct answer a;
    char path[512], *data;
    size_t bytes;
    (void)state;
    copy_golden("base");
    answer(&a, model_dir.path, &o);
    text_free(&a.report);
    snprintf(path, sizeof path, "%s/config.json", model_dir.path);
    assert_int_equal(file_read(&data, &bytes, path, 1 << 20, "", NULL), 0);
    char *eps = strstr(data, "\"layer_norm_eps\": 1e-05");
    assert_non_null(eps);
    eps[strlen("\"layer_norm_eps\": ")] = '2';
    folder_write(&model_dir, "config.json", data, bytes);
    free(data);
    struct model *m;
    said[0] = 0;
    assert_int_equal(model_new(&m, model_dir.path, &o, NULL), 0);
    model_del(m);
    check_said("for another model");
}

static void test_device_without(void **state) {
    const struct model_options o = {.device = "ref", .packed_cache = cache_dir.path};
    struct model *m;
    struct status st;
    (void)state;
    assert_int_equal(model_new(&m, TIMBRE_SOURCE_DIR "/tests/golden/base", &o, &st), 0);
    model_del(m);
    check_said("no packed cache");
    assert_string_equal(folder_find_name(&cache_dir), "");
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_models),
        TEST(test_model_with_damaged_file),
        TEST(test_model_that_was_trained_on),
        TEST(test_model_of_another_layout),
        TEST(test_device_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
