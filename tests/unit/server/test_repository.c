/* The repository over a real engine with tiny models: folders and versions, what a start refuses, and loading
 * and unloading while requests are open. The test's thread is the completion-queue thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <ftw.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/repository.h"

#define GOLDEN TIMBRE_SOURCE_DIR "/tests/golden/"

enum { PATH_BYTES = 512, WAIT_S = 60, RATE = 16000 };

static char root[64];
static struct engine *engine;
static struct repository *repository;
static struct server_options options;
static struct status st;

/* ---- a folder of models ---- */

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *f) {
    (void)s, (void)type, (void)f;
    return remove(path);
}

static void remove_tree(const char *path) {
    nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static const char *in_root(const char *name) {
    static char paths[8][PATH_BYTES];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH_BYTES, "%s/%s", root, name);
    return path;
}

static void make_folder(const char *name) {
    assert_int_equal(mkdir(in_root(name), 0700), 0);
}

/* `name` in the folder is the golden model `golden`. */
static void make_model(const char *name, const char *golden) {
    char target[PATH_BYTES];
    snprintf(target, sizeof target, GOLDEN "%s", golden);
    assert_int_equal(symlink(target, in_root(name)), 0);
}

static void make_broken(const char *name) {
    make_folder(name);
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/config.json", in_root(name));
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("{}", f);
    fclose(f);
}

/* ---- its life ---- */

static int setup(void **state) {
    (void)state;
    log_init(LOG_OFF, false);
    strcpy(root, "/tmp/timbre-test-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    memset(&options, 0, sizeof options);
    engine_options_init(&options.engine);
    options.engine.audio.ffmpeg = "";
    options.model.threads = 1;
    return engine_new(&engine, &options.engine, &st);
}

static int teardown(void **state) {
    (void)state;
    repository_del(repository);
    repository = NULL;
    engine_del(engine);
    remove_tree(root);
    return 0;
}

static void add_option(const char *name, const char *dir) {
    options.models[options.models_count++] = (struct server_model_option){.name = name, .dir = dir};
}

static void start(void) {
    if (repository_new(&repository, engine, &options, &st))
        fail_msg("%s", st.message);
}

static void assert_no_start(const char *words) {
    assert_int_equal(repository_new(&repository, engine, &options, &st), -1);
    assert_null(repository);
    if (!strstr(st.message, words))
        fail_msg("\"%s\" is not in: %s", words, st.message);
}

static struct repository_entry *find(const char *name, const char *version) {
    struct repository_entry *entry;
    if (repository_find(repository, name, version, &entry, &st))
        fail_msg("%s", st.message);
    return entry;
}

static void assert_not_found(const char *name, const char *version, enum status_code code,
                             const char *words) {
    struct repository_entry *entry;
    assert_int_equal(repository_find(repository, name, version, &entry, &st), -1);
    assert_int_equal(st.code, code);
    if (!strstr(st.message, words))
        fail_msg("\"%s\" is not in: %s", words, st.message);
}

/* ---- waiting for the repository's threads ---- */

struct waiter {
    sem_t done;
    struct status status;
};

static void on_done(void *arg, const struct status *status) {
    struct waiter *w = arg;
    w->status = *status;
    sem_post(&w->done);
}

static struct waiter *new_waiter(void) {
    struct waiter *w = calloc(1, sizeof *w);
    sem_init(&w->done, 0, 0);
    return w;
}

static bool is_done(struct waiter *w) {
    int value;
    sem_getvalue(&w->done, &value);
    return value > 0;
}

/* What it came to; frees it. */
static enum status_code wait_for(struct waiter *w) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    assert_int_equal(sem_timedwait(&w->done, &until), 0);
    repository_update(repository);
    st = w->status;
    sem_destroy(&w->done);
    free(w);
    return st.code;
}

static struct waiter *begin_load(const char *name) {
    struct waiter *w = new_waiter();
    if (repository_load(repository, name, on_done, w, &st))
        fail_msg("%s", st.message);
    return w;
}

static struct waiter *begin_unload(const char *name) {
    struct waiter *w = new_waiter();
    if (repository_unload(repository, name, on_done, w, &st))
        fail_msg("%s", st.message);
    return w;
}

/* ---- a request that stays open ---- */

static struct queue *replies;

static struct engine_request *open_request(struct engine_model *m) {
    const struct engine_request_options o = {
        .model = m,
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = RATE, .channels = 1},
        .replies = replies};
    struct engine_request *r;
    assert_int_equal(engine_open(&r, &o, &st), 0);
    return r;
}

static void finish_request(struct engine_request *r) {
    static float speech[RATE];
    for (int i = 0; i < RATE; i++)
        speech[i] = (float)(i % 100) * 0.002f;
    assert_int_equal(engine_feed(r, speech, sizeof speech, &st), 0);
    assert_int_equal(engine_finish(r, false, &st), 0);
    assert_ptr_equal(queue_take(replies), r);
    assert_int_equal(engine_get_result(r)->outcome, ENGINE_OK);
}

static int setup_with_replies(void **state) {
    return setup(state) || queue_new(&replies, 8, &st);
}

static int teardown_with_replies(void **state) {
    int failed = teardown(state);
    queue_del(replies);
    return failed;
}

/* ---- tests ---- */

static void test_named(void **state) {
    (void)state;
    add_option("zebra", GOLDEN "base");
    add_option(NULL, GOLDEN "large/"); /* by its folder */
    start();
    assert_int_equal(repository_count(repository), 2);
    assert_string_equal(repository_at(repository, 0)->name, "zebra"); /* the first model first */
    assert_string_equal(repository_at(repository, 1)->name, "large");
    assert_string_equal(find("", "")->name, "zebra");
    assert_string_equal(find("large", "")->version, "1");
    assert_int_equal(find("large", "1")->state, REPOSITORY_READY);
    assert_non_null(find("large", "1")->model);
    assert_not_found("larger", "", STATUS_NOT_FOUND, "zebra, large");
    assert_not_found("large", "2", STATUS_NOT_FOUND, "version \"2\"");
}

static void test_models_dir(void **state) {
    (void)state;
    options.models_dir = root;
    make_model("plain", "base");
    make_folder("versions");
    make_model("versions/1", "base");
    make_model("versions/2", "large");
    make_model("versions/10", "base");
    make_model("versions/03", "base"); /* not a version */
    make_folder("versions/3x");
    make_folder("lost+found");
    make_folder(".hidden");
    make_model(".hidden/1", "base");
    start();
    assert_int_equal(repository_count(repository), 4);
    assert_string_equal(find("", "")->name, "plain");
    assert_string_equal(find("versions", "")->version, "10");
    assert_string_equal(find("versions", "2")->version, "2");
    assert_string_equal(repository_at(repository, 1)->version, "1");
    assert_string_equal(repository_at(repository, 2)->version, "2");
    assert_string_equal(repository_at(repository, 3)->version, "10");
    assert_not_found("versions", "3", STATUS_NOT_FOUND, "3");
}

static void test_many_versions(void **state) {
    char name[32];
    (void)state;
    options.models_dir = root;
    make_folder("many");
    for (int i = 1; i <= REPOSITORY_VERSIONS_MAX + 2; i++) {
        snprintf(name, sizeof name, "many/%d", i);
        make_model(name, "base");
    }
    start();
    assert_int_equal(repository_count(repository), REPOSITORY_VERSIONS_MAX);
    assert_string_equal(repository_at(repository, 0)->version, "3"); /* the newest are taken */
}

static void test_starts_refused(void **state) {
    (void)state;
    assert_no_start("--model");
    add_option("a", "/nowhere/at/all");
    assert_no_start("/nowhere/at/all");
    options.models[0] = (struct server_model_option){NULL, "/nowhere/at/all"};
    assert_no_start("/nowhere/at/all");
    options.models[0] = (struct server_model_option){"../a", GOLDEN "base"};
    assert_no_start("\"../a\" cannot be");
    options.models[0] = (struct server_model_option){"a", GOLDEN "base"};
    add_option("a", GOLDEN "large");
    assert_no_start("two models are called a");
    options.models_count = 1;
    options.models_dir = root;
    make_model("a", "base");
    assert_no_start("two models are called a");
    options.models_count = 0;
    make_broken("b");
    assert_no_start("model b version 1");
    remove_tree(in_root("b"));
    make_folder("white space");
    make_model("white space/1", "base");
    assert_no_start("white space");
    options.models_dir = "/nowhere/at/all";
    assert_no_start("--models-dir: /nowhere/at/all");
}

static void test_nothing_at_first(void **state) {
    (void)state;
    options.models_dir = root;
    options.model_control = true;
    start();
    assert_int_equal(repository_count(repository), 0);
    assert_not_found("", "", STATUS_NOT_FOUND, "there is: none");
    make_model("late", "base");
    struct waiter *w = begin_load("late");
    assert_not_found("late", "", STATUS_UNAVAILABLE, "being loaded");
    assert_int_equal(wait_for(w), STATUS_OK);
    assert_int_equal(find("late", "")->state, REPOSITORY_READY);
    assert_string_equal(find("", "")->name, "late");
    assert_int_equal(repository_count(repository), 1);
}

static void test_names_for_load(void **state) {
    static const char *const names[] = {"",      ".",    "..",  "../base", "a/b",
                                        "base/", ".git", "a b", "a\nb",    "\xc3\xa9"};
    char longer[REPOSITORY_NAME_BYTES + 1] = "";
    (void)state;
    options.models_dir = TIMBRE_SOURCE_DIR "/tests/golden/clips"; /* no models */
    options.model_control = true;
    start();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(repository_load(repository, names[i], on_done, NULL, &st), -1);
        assert_int_equal(st.code, STATUS_NOT_FOUND);
    }
    memset(longer, 'x', REPOSITORY_NAME_BYTES);
    assert_int_equal(repository_load(repository, longer, on_done, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    assert_int_equal(repository_unload(repository, "x", on_done, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
}

static void test_reload_with_a_request_open(void **state) {
    (void)state;
    add_option("m", GOLDEN "base");
    start();
    struct engine_model *old = find("m", "")->model;
    struct engine_request *r = open_request(old);
    struct waiter *w = begin_load("m");
    assert_ptr_equal(find("m", "")->model, old); /* served meanwhile */
    assert_int_equal(repository_load(repository, "m", on_done, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_int_equal(repository_unload(repository, "m", on_done, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_int_equal(wait_for(w), STATUS_OK); /* although the old one cannot go yet */
    assert_ptr_not_equal(find("m", "")->model, old);
    assert_int_equal(repository_count(repository), 1);
    finish_request(r);
    engine_close(r);
    r = open_request(find("m", "")->model);
    finish_request(r);
    engine_close(r);
}

static void test_reload_takes_new_versions(void **state) {
    (void)state;
    options.models_dir = root;
    make_folder("m");
    make_model("m/1", "base");
    start();
    make_model("m/2", "large");
    assert_int_equal(wait_for(begin_load("m")), STATUS_OK);
    assert_int_equal(repository_count(repository), 2);
    assert_string_equal(find("m", "")->version, "2");
    remove_tree(in_root("m/1"));
    assert_int_equal(wait_for(begin_load("m")), STATUS_OK);
    assert_int_equal(repository_count(repository), 1);
    assert_not_found("m", "1", STATUS_NOT_FOUND, "1");
}

static void test_failed_load_leaves_what_is_served(void **state) {
    (void)state;
    options.models_dir = root;
    make_model("m", "base");
    start();
    struct engine_model *model = find("m", "")->model;
    remove_tree(in_root("m"));
    assert_int_equal(wait_for(begin_load("m")), STATUS_NOT_FOUND);
    assert_non_null(strstr(st.message, "model m"));
    assert_ptr_equal(find("m", "")->model, model);
    make_broken("m");
    assert_int_not_equal(wait_for(begin_load("m")), STATUS_OK);
    assert_ptr_equal(find("m", "")->model, model);
    struct engine_request *r = open_request(model);
    finish_request(r);
    engine_close(r);
}

static void test_failed_load_of_a_new_one(void **state) {
    (void)state;
    options.models_dir = root;
    options.model_control = true;
    start();
    assert_int_equal(wait_for(begin_load("gone")), STATUS_NOT_FOUND);
    assert_int_equal(repository_count(repository), 0);
    make_broken("bad");
    assert_int_not_equal(wait_for(begin_load("bad")), STATUS_OK);
    assert_int_equal(repository_count(repository), 1);
    assert_int_equal(repository_at(repository, 0)->state, REPOSITORY_UNAVAILABLE);
    assert_string_equal(repository_at(repository, 0)->reason, st.message);
    assert_not_found("bad", "", STATUS_UNAVAILABLE, "bad");
    remove_tree(in_root("bad"));
    make_model("bad", "base");
    assert_int_equal(wait_for(begin_load("bad")), STATUS_OK);
    assert_int_equal(repository_count(repository), 1);
    assert_string_equal(find("bad", "")->reason, "");
}

static void test_unload(void **state) {
    (void)state;
    add_option("m", GOLDEN "base");
    add_option("other", GOLDEN "large");
    start();
    struct engine_request *r = open_request(find("m", "")->model);
    struct waiter *w = begin_unload("m");
    assert_not_found("m", "", STATUS_UNAVAILABLE, "unloaded");
    assert_int_equal(repository_at(repository, 0)->state, REPOSITORY_UNLOADING);
    const struct timespec moment = {.tv_nsec = 50000000};
    nanosleep(&moment, NULL);
    assert_false(is_done(w)); /* the open request is waited for */
    finish_request(r);
    engine_close(r);
    assert_int_equal(wait_for(w), STATUS_OK);
    assert_int_equal(repository_at(repository, 0)->state, REPOSITORY_UNAVAILABLE);
    assert_string_equal(repository_at(repository, 0)->reason, "unloaded");
    assert_null(repository_at(repository, 0)->model);
    assert_not_found("m", "", STATUS_UNAVAILABLE, "unloaded");
    assert_not_found("", "", STATUS_UNAVAILABLE, "unloaded"); /* the first model stays the first */
    find("other", "");
    assert_int_equal(wait_for(begin_unload("m")), STATUS_OK); /* again: nothing to do */
    assert_int_equal(wait_for(begin_load("m")), STATUS_OK);
    assert_string_equal(find("", "")->name, "m");
}

static void test_too_many_jobs(void **state) {
    struct waiter *waiters[REPOSITORY_JOBS_MAX] = {0};
    int count = 0;
    (void)state;
    add_option("m", GOLDEN "base");
    start();
    struct engine_request *r =
        open_request(find("m", "")->model); /* the first unload waits, the others behind it */
    while (count < REPOSITORY_JOBS_MAX) {
        waiters[count++] = begin_unload("m");
        if (count < REPOSITORY_JOBS_MAX)
            assert_int_equal(wait_for(begin_load("m")), STATUS_OK); /* loads do not wait for unloads */
    }
    assert_int_equal(repository_load(repository, "m", on_done, NULL, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    finish_request(r);
    engine_close(r);
    for (int i = 0; i < count; i++)
        assert_int_equal(wait_for(waiters[i]), STATUS_OK);
    assert_int_equal(wait_for(begin_load("m")), STATUS_OK);
}

static void test_end_with_jobs_waiting(void **state) {
    struct waiter *waiters[6];
    (void)state;
    add_option("a", GOLDEN "base");
    add_option("b", GOLDEN "base");
    add_option("c", GOLDEN "large");
    start();
    waiters[0] = begin_load("a");
    waiters[1] = begin_load("b");
    waiters[2] = begin_load("c");
    repository_del(repository);
    repository = NULL;
    for (int i = 0; i < 3; i++) {
        assert_true(is_done(waiters[i])); /* each is told, whether it was loaded or not */
        sem_destroy(&waiters[i]->done);
        free(waiters[i]);
    }
}

static void test_statistics(void **state) {
    (void)state;
    add_option("m", GOLDEN "base");
    start();
    struct repository_entry *e = find("m", "");
    struct engine_request *r = open_request(e->model);
    finish_request(r);
    repository_count_answer(repository, e->model, engine_get_result(r), 5000000);
    engine_close(r);
    assert_int_equal(e->statistics.success_count, 1);
    assert_int_equal(e->statistics.success_ns, 5000000);
    assert_int_equal(e->statistics.inference_count, 1);
    assert_int_equal(e->statistics.execution_count, 1);
    assert_true(e->statistics.compute_ns > 0 && e->statistics.last_inference_ms > 1600000000000);
    struct engine_result half = {.outcome = ENGINE_OK,
                                 .batch_size = 2}; /* two clips of one batch, and two of another */
    for (int i = 0; i < 4; i++)
        repository_count_answer(repository, e->model, &half, 1);
    assert_int_equal(e->statistics.inference_count, 5);
    assert_int_equal(e->statistics.execution_count, 3);
    struct engine_result silence = {.outcome = ENGINE_NO_SPEECH};
    repository_count_answer(repository, e->model, &silence, 1);
    assert_int_equal(e->statistics.success_count, 6);
    assert_int_equal(e->statistics.inference_count, 5);
    struct engine_result late = {.outcome = ENGINE_ERROR, .status = {.code = STATUS_DEADLINE_EXCEEDED}};
    repository_count_answer(repository, e->model, &late, 7);
    assert_int_equal(e->statistics.cancel_count, 1);
    repository_count_failure(repository, e->model, STATUS_RESOURCE_EXHAUSTED, 9);
    assert_int_equal(e->statistics.fail_count, 1);
    assert_int_equal(e->statistics.fail_ns, 9);

    /* An answer of a model that was replaced counts nowhere, and one that is being unloaded still does. */
    struct engine_model *old = e->model;
    r = open_request(old);
    assert_int_equal(wait_for(begin_load("m")), STATUS_OK);
    repository_count_answer(repository, old, &half, 1);
    e = find("m", "");
    assert_int_equal(e->statistics.success_count, 0);
    engine_close(r);
    old = e->model;
    r = open_request(old);
    struct waiter *w = begin_unload("m");
    repository_count_answer(repository, old, &half, 1);
    assert_int_equal(repository_at(repository, 0)->statistics.success_count, 1);
    engine_close(r);
    assert_int_equal(wait_for(w), STATUS_OK);
    repository_count_answer(repository, old, &half, 1); /* freed: another may have its address now */
    assert_int_equal(repository_at(repository, 0)->statistics.success_count, 1);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
#define TEST_WITH_REPLIES(function)                                                                          \
    cmocka_unit_test_setup_teardown(function, setup_with_replies, teardown_with_replies)
    const struct CMUnitTest tests[] = {
        TEST(test_named),
        TEST(test_models_dir),
        TEST(test_many_versions),
        TEST(test_starts_refused),
        TEST(test_nothing_at_first),
        TEST(test_names_for_load),
        TEST_WITH_REPLIES(test_reload_with_a_request_open),
        TEST(test_reload_takes_new_versions),
        TEST_WITH_REPLIES(test_failed_load_leaves_what_is_served),
        TEST(test_failed_load_of_a_new_one),
        TEST_WITH_REPLIES(test_unload),
        TEST_WITH_REPLIES(test_too_many_jobs),
        TEST(test_end_with_jobs_waiting),
        TEST_WITH_REPLIES(test_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
