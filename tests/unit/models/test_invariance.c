/* The promise: a clip's bits depend on the clip alone. Every kind of model, every code path of this machine,
 * clips in any company, any order, on any number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "models/model.h"

enum { CLIPS = 20, LABELS_MAX = 16, HIDDEN_MAX = 64, SAMPLES_MAX = 20000 };

static const char *const models[] = {"base",       "large",       "layer_post", "hubert_batch_norm",
                                     "stack_gaps", "weighted_pre"};

static float noise[SAMPLES_MAX + CLIPS * 37];
static int64_t lengths[CLIPS];

struct answers {
    float logits[CLIPS][LABELS_MAX], embedding[CLIPS][HIDDEN_MAX];
};

static int setup(void **state) {
    unsigned seed = 3;
    (void)state;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++) {
        seed = seed * 1664525u + 1013904223u;
        noise[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 1e-4f;
    }
    for (int i = 0; i < CLIPS; i++) {
        seed = seed * 1664525u + 1013904223u;
        lengths[i] = 400 + (int64_t)(seed >> 8) % (i % 4 ? 3000 : SAMPLES_MAX - 400);
    }
    return 0;
}

/* Runs the clips in `order`, `together` at a time. */
static void run(const struct model *m, struct answers *to, const int *order, int together) {
    struct model_worker *w;
    struct status st;
    memset(to, 0, sizeof *to);
    assert_int_equal(model_worker_new(&w, m, 0, (int64_t)CLIPS * SAMPLES_MAX, CLIPS, &st), 0);
    for (int first = 0; first < CLIPS; first += together) {
        struct model_clip clips[CLIPS];
        int count = 0;
        for (int i = first; i < first + together && i < CLIPS; i++) {
            int c = order[i];
            clips[count++] = (struct model_clip){.samples = noise + 37 * c,
                                                 .count = lengths[c],
                                                 .logits = to->logits[c],
                                                 .embedding = to->embedding[c]};
        }
        assert_int_equal(model_worker_run(w, clips, count, &st), 0);
    }
    model_worker_del(w);
}

static struct model *open_model(const char *name, int threads) {
    char dir[256];
    struct model *m;
    struct status st;
    struct model_options o = {.device = "cpu", .threads = threads};
    snprintf(dir, sizeof dir, "%s/tests/golden/%s", TIMBRE_SOURCE_DIR, name);
    if (model_new(&m, dir, &o, &st))
        fail_msg("%s: %s", name, st.message);
    assert_true(model_get_info(m)->labels_count <= LABELS_MAX && model_get_info(m)->hidden <= HIDDEN_MAX);
    return m;
}

static void check_model(const char *name) {
    static struct answers alone, other;
    int order[CLIPS], reversed[CLIPS], shuffled[CLIPS];
    for (int i = 0; i < CLIPS; i++) {
        order[i] = i;
        reversed[i] = CLIPS - 1 - i;
        shuffled[i] = i * 7 % CLIPS;
    }
    for (int threads = 1; threads <= 3; threads++) {
        struct model *m = open_model(name, threads);
        run(m, threads == 1 ? &alone : &other, order, 1);
        if (threads > 1)
            assert_memory_equal(&alone, &other, sizeof alone);
        run(m, &other, order, CLIPS);
        assert_memory_equal(&alone, &other, sizeof alone);
        run(m, &other, reversed, CLIPS);
        assert_memory_equal(&alone, &other, sizeof alone);
        run(m, &other, shuffled, 7);
        assert_memory_equal(&alone, &other, sizeof alone);
        model_del(m);
    }
}

static void check_path(const char *cpu) {
    setenv("TIMBRE_CPU", cpu, 1);
    struct model *m;
    struct status st;
    struct model_options o = {.device = "cpu", .threads = 1};
    if (model_new(&m, TIMBRE_SOURCE_DIR "/tests/golden/base", &o, &st)) {
        print_message("SKIPPED %s: %s\n", cpu, st.message);
        skip();
    }
    model_del(m);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        check_model(models[i]);
}

static void test_avx512(void **state) {
    (void)state;
    check_path("avx512");
}

static void test_avx2(void **state) {
    (void)state;
    check_path("avx2");
}

static void test_portable(void **state) {
    (void)state;
    check_path("portable");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_avx512), cmocka_unit_test(test_avx2),
                                       cmocka_unit_test(test_portable)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
