/* Tests of server/auth and server/watch: who is let in, which files are refused, and what a reload changes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/auth.h"
#include "server/watch.h"
#include "tests/unit/server/folder.h"

/* SHA-256 of "first-token", "second-token" and of nothing. */
#define FIRST  "55b4b48f529c3d2daa027cbffa6cfb6a03690424550f22109e39917406c8243b"
#define SECOND "7a35833597e6687c599a0988b7a53b9b6a7ec18b88ca2a8e60f3265c8be6d527"
#define EMPTY  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static struct auth *make(const char *text) {
    struct auth *a = NULL;
    struct status st = {0};
    folder_write("tokens", text);
    if (auth_new(&a, folder_path("tokens"), &st))
        fail_msg("%s", st.message);
    return a;
}

/* The message with which a file is refused; good until the next call. */
static const char *refuse(const void *data, size_t bytes) {
    static struct status st;
    struct auth *a;
    folder_write_bytes("tokens", data, bytes);
    assert_int_equal(auth_new(&a, folder_path("tokens"), &st), -1);
    assert_null(a);
    return st.message;
}

static void expect_name(struct auth *a, const char *header, const char *wanted) {
    char name[AUTH_NAME_BYTES];
    struct status st = {0};
    if (auth_check(a, header, strlen(header), name, &st))
        fail_msg("%s: %s", header, st.message);
    assert_string_equal(name, wanted);
}

static void expect_refusal(struct auth *a, const char *header, size_t bytes, const char *why) {
    char name[AUTH_NAME_BYTES] = "x";
    struct status st = {0};
    assert_int_equal(auth_check(a, header, bytes, name, &st), -1);
    assert_int_equal(st.code, STATUS_UNAUTHENTICATED);
    assert_string_equal(name, "");
    assert_non_null(strstr(st.message, why));
    assert_null(strstr(st.message, "token-x")); /* whatever it was is not repeated */
}

static void test_tokens(void **state) {
    (void)state;
    struct auth *a = make("# who may call\n\n  alice " FIRST "  # her laptop\r\nbob\t" SECOND "\n"
                          "nobody " EMPTY);
    expect_name(a, "Bearer first-token", "alice");
    expect_name(a, "bearer second-token", "bob");
    expect_name(a, "BEARER   second-token", "bob");
    expect_refusal(a, NULL, 0, "no token");
    expect_refusal(a, "Bearer first-token", 17, "not known");
    static const char *const wrong[][2] = {{"", "not of the form"},
                                           {"Bearer", "not of the form"},
                                           {"first-token", "not of the form"},
                                           {"Basic Zmlyc3QtdG9rZW4=", "not of the form"},
                                           {"Bearer\tfirst-token", "not of the form"},
                                           {"Bearer ", "empty"},
                                           {"Bearer    ", "empty"},
                                           {"Bearer first-token ", "not printable"},
                                           {"Bearer first-token\n", "not printable"},
                                           {"Bearer f\xc3\xbcrst-token", "not printable"},
                                           {"Bearer First-token", "not known"},
                                           {"Bearer first-token-x", "not known"},
                                           {"Bearer " FIRST, "not known"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect_refusal(a, wrong[i][0], strlen(wrong[i][0]), wrong[i][1]);
    expect_refusal(a, "Bearer first-token\0", 19, "not printable");
    expect_refusal(a, "Bearer \0irst-token", 18, "not printable");
    auth_del(a);
    auth_del(NULL);
}

static void test_long_tokens(void **state) {
    (void)state;
    char header[7 + AUTH_TOKEN_BYTES_MAX + 1] = "Bearer ", hex[SHA256_HEX_BYTES], text[128];
    memset(header + 7, 'x', AUTH_TOKEN_BYTES_MAX + 1);
    assert_int_equal(sha256_memory(hex, header + 7, AUTH_TOKEN_BYTES_MAX, NULL), 0);
    snprintf(text, sizeof text, "long %s\n", hex);
    struct auth *a = make(text);
    char name[AUTH_NAME_BYTES];
    assert_int_equal(auth_check(a, header, sizeof header - 1, name, NULL), 0);
    assert_string_equal(name, "long");
    expect_refusal(a, header, sizeof header, "more than 4096 bytes");
    auth_del(a);
}

static void expect_message(const char *text, const char *wanted) {
    const char *message = refuse(text, strlen(text));
    if (!strstr(message, wanted))
        fail_msg("\"%s\" is not in \"%s\"", wanted, message);
    assert_non_null(strstr(message, "tokens:"));
    assert_null(strstr(message, "s3cr3t"));
}

static void test_wrong_files(void **state) {
    (void)state;
    expect_message("s3cr3t\n", "tokens:1: not a name and the SHA-256");
    expect_message("# x\nalice s3cr3t\n", "tokens:2: not a name and the SHA-256");
    expect_message("alice s3cr3t\n", "`printf %s TOKEN | sha256sum`");
    expect_message("alice " FIRST " s3cr3t\n", "tokens:1: not a name");
    expect_message("alice " FIRST "0\n", "tokens:1: not a name");
    expect_message("alice x" FIRST "\n", "tokens:1: not a name");
    expect_message("a g000000000000000000000000000000000000000000000000000000000000000\n",
                   "tokens:1: not a name");
    expect_message("a 0g00000000000000000000000000000000000000000000000000000000000000\n",
                   "tokens:1: not a name");
    expect_message(FIRST "\n", "tokens:1: not a name");
    expect_message(FIRST "  -\n", "tokens:1: not a name");
    expect_message("a\x01 " FIRST "\n", "tokens:1: the name is not of 1 to 63");
    expect_message("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa " FIRST "\n",
                   "tokens:1: the name is not of 1 to 63");
    expect_message("alice " FIRST "\nbob " SECOND "\n\ncarol " FIRST "\n",
                   "tokens:4: the same hash as in line 1");
    expect_message("", "no token in it");
    expect_message("# nothing\n", "no token in it");
    assert_non_null(strstr(refuse("alice " FIRST "\n\0s3cr3t", 78), "zero bytes"));
    struct auth *a;
    struct status st = {0};
    assert_int_equal(auth_new(&a, folder_path("missing"), &st), -1);
    assert_non_null(strstr(st.message, "missing: No such file"));
    assert_int_equal(auth_new(&a, folder_path("."), &st), -1);
    char *path = malloc(8192);
    memset(path, 'p', 8191);
    path[8191] = 0;
    assert_int_equal(auth_new(&a, path, &st), -1);
    free(path);
    auth_del(make("same " FIRST "\nsame " SECOND "\n")); /* while a token is being replaced */
}

static void test_most_tokens(void **state) {
    (void)state;
    static char text[(AUTH_TOKENS_MAX + 1) * 100];
    char *at = text;
    for (int i = 0; i <= AUTH_TOKENS_MAX; i++) {
        char token[32], hex[SHA256_HEX_BYTES];
        snprintf(token, sizeof token, "token-%d", i);
        assert_int_equal(sha256_memory(hex, token, strlen(token), NULL), 0);
        at += sprintf(at, "name-%d %s\n", i, hex);
    }
    expect_message(text, "tokens:4097: more than 4096 tokens");
    *strstr(text, "name-4096 ") = 0;
    struct auth *a = make(text);
    expect_name(a, "Bearer token-0", "name-0");
    expect_name(a, "Bearer token-2048", "name-2048");
    expect_name(a, "Bearer token-4095", "name-4095");
    expect_refusal(a, "Bearer token-4096", 17, "not known");
    auth_del(a);
    static char big[WATCH_BYTES_MAX + 1];
    memset(big, '#', sizeof big);
    assert_non_null(strstr(refuse(big, sizeof big), "more than"));
}

static void test_reload(void **state) {
    (void)state;
    struct auth *a = make("alice " FIRST "\n");
    folder_begin_log();
    auth_poll(a); /* nothing changed */
    assert_string_equal(folder_end_log(), "");
    folder_begin_log();
    folder_write("tokens", "bob " SECOND "\n"); /* the same size, and perhaps the same time */
    auth_poll(a);
    expect_name(a, "Bearer second-token", "bob");
    expect_refusal(a, "Bearer first-token", 18, "not known");
    folder_replace("tokens", "alice " FIRST "\nbob " SECOND "\n");
    auth_poll(a);
    expect_name(a, "Bearer first-token", "alice");
    const char *log = folder_end_log();
    assert_non_null(strstr(log, "1 tokens read"));
    assert_non_null(strstr(log, "2 tokens read"));
    assert_null(strstr(log, "first-token"));
    auth_del(a);
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++)
        n++;
    return n;
}

static void test_broken_reload_keeps_the_old(void **state) {
    (void)state;
    struct auth *a = make("alice " FIRST "\n");
    folder_begin_log();
    folder_write("tokens", "alice s3cr3t\n");
    for (int i = 0; i < 3; i++)
        auth_poll(a);
    expect_name(a, "Bearer first-token", "alice");
    unlink(folder_path("tokens"));
    for (int i = 0; i < 3; i++)
        auth_poll(a);
    expect_name(a, "Bearer first-token", "alice");
    assert_int_equal(mkdir(folder_path("tokens"), 0700), 0); /* there, and cannot be read */
    for (int i = 0; i < 3; i++)
        auth_poll(a);
    expect_name(a, "Bearer first-token", "alice");
    rmdir(folder_path("tokens"));
    folder_write("tokens", "");
    for (int i = 0; i < 3; i++)
        auth_poll(a);
    expect_name(a, "Bearer first-token", "alice");
    const char *log = folder_end_log();
    assert_int_equal(count(log, "\n"), 4); /* each is told once */
    assert_int_equal(count(log, "the tokens read before stay valid"), 4);
    assert_int_equal(count(log, "a folder, not a file"), 1);
    assert_int_equal(count(log, "tokens:1: not a name"), 1);
    assert_int_equal(count(log, "No such file"), 1);
    assert_int_equal(count(log, "no token in it"), 1);
    assert_null(strstr(log, "s3cr3t"));
    folder_begin_log();
    folder_write("tokens", "bob " SECOND "\n");
    auth_poll(a);
    expect_name(a, "Bearer second-token", "bob");
    assert_int_equal(count(folder_end_log(), "1 tokens read"), 1);
    auth_del(a);
}

/* Kubernetes mounts secrets as links to a folder that is swapped. */
static void test_link_that_is_turned(void **state) {
    (void)state;
    folder_write("one", "alice " FIRST "\n");
    folder_write("two", "bob " SECOND "\n");
    struct auth *a = NULL;
    assert_int_equal(symlink(folder_path("one"), folder_path("link")), 0);
    assert_int_equal(auth_new(&a, folder_path("link"), NULL), 0);
    expect_name(a, "Bearer first-token", "alice");
    assert_int_equal(symlink(folder_path("two"), folder_path("link2")), 0);
    assert_int_equal(rename(folder_path("link2"), folder_path("link")), 0);
    folder_begin_log();
    auth_poll(a);
    folder_end_log();
    expect_name(a, "Bearer second-token", "bob");
    auth_del(a);
}

/* Once a file's times are old, looking at it is all that a poll does. */
static void test_watch_settles(void **state) {
    (void)state;
    char *data;
    size_t bytes;
    bool fresh;
    struct watch w = {.path = folder_path("f")};
    folder_write("f", "text");
    assert_int_equal(watch_read(&w, &data, &bytes, &fresh, NULL), 0);
    assert_true(fresh && bytes == 4);
    watch_free_secret(data, bytes);
    assert_true(watch_changed(&w)); /* too new to tell */
    assert_int_equal(watch_read(&w, &data, &bytes, &fresh, NULL), 0);
    assert_false(fresh);
    watch_free_secret(data, bytes);
    usleep(3100000);
    assert_true(watch_changed(&w));
    assert_int_equal(watch_read(&w, &data, &bytes, &fresh, NULL), 0);
    watch_free_secret(data, bytes);
    assert_false(watch_changed(&w));
    assert_int_equal(chmod(folder_path("f"), 0600), 0); /* also rights, which decide whether it can be read */
    assert_true(watch_changed(&w));
}

/* ---- threads ---- */

static atomic_bool ended;

static void *check_for_ever(void *arg) {
    char name[AUTH_NAME_BYTES];
    while (!atomic_load(&ended)) {
        struct status st = {0};
        if (auth_check(arg, "Bearer first-token", 18, name, &st) || strcmp(name, "alice") != 0)
            return (void *)"the token that stands in both files was refused";
        if (auth_check(arg, "Bearer second-token", 19, name, &st) == 0 && strcmp(name, "bob") != 0)
            return (void *)"another name";
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    struct auth *a = make("alice " FIRST "\n");
    pthread_t threads[3];
    atomic_store(&ended, false);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, check_for_ever, a), 0);
    folder_begin_log();
    for (int i = 0; i < 200; i++) {
        folder_replace("tokens", i % 3 == 0   ? "alice " FIRST "\nbob " SECOND "\n"
                                 : i % 3 == 1 ? "alice " FIRST "\n"
                                              : "broken");
        auth_poll(a);
        usleep(500);
    }
    folder_end_log();
    atomic_store(&ended, true);
    for (int i = 0; i < 3; i++) {
        void *problem;
        pthread_join(threads[i], &problem);
        if (problem)
            fail_msg("%s", (char *)problem);
    }
    auth_del(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tokens, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_long_tokens, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_files, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_most_tokens, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_reload, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_broken_reload_keeps_the_old, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_link_that_is_turned, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_watch_settles, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_threads, folder_setup, folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
