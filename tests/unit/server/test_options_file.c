/* Tests of server/options: the config file, what does not go together, and that table, help and sample file
 * agree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "tests/unit/server/options_bed.h"

#define SAMPLE TIMBRE_SOURCE_DIR "/deploy/timbre.conf"

/* ---- the file ---- */

static void test_file_syntax(void **state) {
    (void)state;
    const struct server_options *o =
        TAKE("--config", options_write_config("# comment\r\n\r\n\t queue-depth=5 \r\nthreads   =   7 # why\n"
                                              "token-file = /a b#c\t# comment\nmodels-dir = /x=y\n"
                                              "http-address =\nlog-level = warn"));
    assert_int_equal(o->engine.queue_depth, 5);
    assert_int_equal(o->model.threads, 7);
    assert_string_equal(o->token_file, "/a b#c");
    assert_string_equal(o->models_dir, "/x=y");
    assert_string_equal(o->http_address, "");
    assert_int_equal(o->log_level, LOG_WARN);
    TAKE("--config", options_write_config(""));
}

static void test_wrong_files(void **state) {
    (void)state;
    options_refuse_config("\nqueue-dept = 5\n",
                          ":2: no option is called queue-dept; did you mean queue-depth");
    options_refuse_config("foo = 5\n", ":1: no option is called foo");
    options_refuse_config("--threads = 5\n", ":1: no option is called --threads; did you mean threads");
    options_refuse_config("Security = 5\n", ":1: no option is called Security");
    options_refuse_config("= 5\n", ":1: no option is called ");
    options_refuse_config("threads\n", ":1: threads: not of the form option = value");
    options_refuse_config("threads = x\n", ":1: threads = x: not a whole number in 0..256");
    options_refuse_config("threads =\n", ":1: threads = : not a whole number in 0..256");
    options_refuse_config("threads = 1\n\nthreads = 2\n", ":3: threads: given twice");
    options_refuse_config("config = /x\n", ":1: config names this file, so it cannot stand in it");
    options_refuse_config("token-file = \"/x\"\n", ":1: token-file: values are written without quotes");
    options_refuse_config("[section]\n", ":1: [section]: not of the form option = value");
    options_refuse_config("thr\x1b = 5\n", ":1: no option is called thr?");
    folder_write_bytes("timbre.conf", "threads = 1\n\0\n", 14);
    options_refuse_some("holds zero bytes", "--config", folder_path("timbre.conf"));
    options_refuse_some("a folder, not a file", "--config", folder_path("."));
    char *big = malloc((1 << 20) + 2);
    memset(big, '#', (1 << 20) + 1);
    big[(1 << 20) + 1] = 0;
    folder_write("timbre.conf", big);
    free(big);
    options_refuse_some("more than the limit of a config file", "--config", folder_path("timbre.conf"));
}

/* ---- what does not go together ---- */

static void test_together(void **state) {
    (void)state;
    REFUSE("tls-cert without tls-key: TLS needs both", "--tls-cert", "c");
    REFUSE("tls-key without tls-cert: TLS needs both", "--tls-key", "k");
    REFUSE("tls-client-ca without tls-cert and tls-key: certificates of clients need TLS", "--tls-client-ca",
           "a");
    REFUSE("grpc-address and http-address are both localhost:5", "--grpc-address=localhost:5",
           "--http-address=localhost:5");
    REFUSE("max-receive-bytes is less than max-message-bytes, so a message could never come",
           "--max-receive-bytes=32m");
    TAKE("--grpc-address=localhost:0", "--http-address=localhost:0");
    TAKE("--tls-cert=c", "--tls-key=k", "--tls-client-ca=a");
    TAKE("--max-receive-bytes=64m");
    setenv("TIMBRE_TLS_KEY", "k", 1); /* from different sources too */
    TAKE("--tls-cert=c");
}

static int warn(const struct server_options *o, const char *part) {
    const char *warnings[OPTIONS_WARNINGS_MAX];
    int count = options_list_warnings(o, warnings), found = 0;
    for (int i = 0; i < count; i++)
        found += strstr(warnings[i], part) != NULL;
    assert_int_equal(count, found); /* and no other */
    return found;
}

static void test_warnings(void **state) {
    (void)state;
    assert_int_equal(warn(TAKE_NOTHING(), "x"), 0);
    static const char *const far[] = {"0.0.0.0:1", "[::]:1", "host:1", "10.0.0.1:1"};
    static const char *const near[] = {"127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/x"};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        assert_int_equal(warn(TAKE("--grpc-address", far[i]), "x"), 0);
        assert_int_equal(warn(TAKE("--grpc-address", far[i], "--token-file=t"), "tokens can be read"), 1);
        assert_int_equal(
            warn(TAKE("--grpc-address", far[i], "--token-file=t", "--tls-cert=c", "--tls-key=k"), "x"), 0);
        assert_int_equal(warn(TAKE("--grpc-address", far[i], "--model-control"), "anybody can unload"), 1);
    }
    for (size_t i = 0; i < sizeof near / sizeof *near; i++)
        assert_int_equal(warn(TAKE("--grpc-address", near[i], "--token-file=t", "--model-control"), "x"), 0);
    assert_int_equal(warn(TAKE("--open-health"), "open-health without token-file"), 1);
    assert_int_equal(warn(TAKE("--open-health", "--token-file=t"), "x"), 0);
}

/* ---- table, help, sample ---- */

static void test_table(void **state) {
    (void)state;
    assert_true(option_rows_count < 128);
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind == OPTION_GROUP)
            continue;
        assert_true(strlen(row->name) < OPTION_NAME_BYTES && strlen(row->help) < 300);
        assert_ptr_equal(option_find(row->name, strlen(row->name)), row); /* no name twice */
        assert_int_equal(option_is_switch(row), row->value == NULL);
        if (row->kind == OPTION_WHOLE || row->kind == OPTION_BYTES || row->kind == OPTION_NUMBER ||
            row->kind == OPTION_LEVEL)
            assert_true(row->lo < row->hi && row->initial >= row->lo && row->initial <= row->hi);
        if (row->kind == OPTION_WHOLE)
            assert_true(row->width == 8 || (row->width == 4 && row->hi <= INT32_MAX));
        if (row->kind == OPTION_WORD || row->kind == OPTION_CHOICE)
            assert_non_null(strstr(row->words, row->initial_text));
    }
}

static void test_help(void **state) {
    (void)state;
    FILE *f = fopen(folder_path("help"), "w+");
    assert_non_null(f);
    option_print_help(f);
    fclose(f);
    char *text;
    size_t bytes;
    assert_int_equal(file_read(&text, &bytes, folder_path("help"), 65536, "", NULL), 0);
    for (int i = 0; i < option_rows_count; i++) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "  --%s%s", option_rows[i].name, option_rows[i].value ? " " : "\x20");
        if (option_rows[i].kind != OPTION_GROUP && !strstr(text, wanted)) {
            snprintf(wanted, sizeof wanted, "  --%s\n", option_rows[i].name); /* a long switch */
            assert_non_null(strstr(text, wanted));
        }
    }
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 105);
    assert_non_null(strstr(text, "default 64m\n"));
    free(text);
}

static void test_help_is_printed(void **state) {
    (void)state;
    int out = dup(STDOUT_FILENO);
    fflush(stdout);
    assert_non_null(freopen("/dev/null", "w", stdout));
    static const char *const last[] = {"--help", "-h"};
    int results[3];
    for (int i = 0; i < 2; i++) {
        struct server_options o;
        char *argv[] = {(char *)"serve", (char *)"--threads", (char *)"nonsense", (char *)last[i]};
        results[i] = options_init(&o, 4, argv, "/shipped", NULL);
    }
    struct server_options o;
    struct status st = {0};
    char *argv[] = {(char *)"serve", (char *)"--token-file", (char *)"-h"}; /* a value */
    results[2] = options_init(&o, 3, argv, "/shipped", &st);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    assert_int_equal(results[0], 1);
    assert_int_equal(results[1], 1);
    assert_int_equal(results[2], 0);
    assert_string_equal(o.token_file, "-h");
    options_free(&o);
}

/* Takes the # away in front of every option of the sample; text is "# ...", options are "#option = ...". */
static char *uncomment(const char *sample) {
    char *text = calloc(1, strlen(sample) + 1), *to = text;
    assert_non_null(text);
    for (const char *line = sample; *line;) {
        size_t n = strcspn(line, "\n") + 1;
        const bool option = line[0] == '#' && line[1] >= 'a' && line[1] <= 'z';
        assert_true(option || line[0] == '\n' || strncmp(line, "# ", 2) == 0 || strncmp(line, "#\n", 2) == 0);
        memcpy(to, line + option, n - option);
        to += n - option;
        line += n;
    }
    return text;
}

/* The sample names every option once, with its default where it has one, and is right as it stands. */
static void test_sample(void **state) {
    (void)state;
    char *sample;
    size_t bytes;
    struct status st = {0};
    if (file_read(&sample, &bytes, SAMPLE, 1 << 20, "", &st))
        fail_msg("%s", st.message);
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        char value[64], wanted[256];
        if (row->kind == OPTION_GROUP || row->kind == OPTION_CONFIG)
            continue;
        option_default(row, value, sizeof value);
        if (option_is_switch(row))
            strcpy(value, "false");
        snprintf(wanted, sizeof wanted, "\n#%s = %s%s", row->name, value, value[0] ? "\n" : "");
        if (!strstr(sample, wanted))
            fail_msg("the sample lacks \"%s\"", wanted + 1);
    }
    TAKE("--config", SAMPLE);
    char *text = uncomment(sample);
    const struct server_options *o = TAKE("--config", options_write_config(text));
    assert_int_equal(o->models_count, 1);
    assert_non_null(o->tls_client_ca);
    free(text);
    free(sample);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        OPTIONS_TEST(test_file_syntax),     OPTIONS_TEST(test_wrong_files), OPTIONS_TEST(test_together),
        OPTIONS_TEST(test_warnings),        OPTIONS_TEST(test_table),       OPTIONS_TEST(test_help),
        OPTIONS_TEST(test_help_is_printed), OPTIONS_TEST(test_sample),
    };
    unsetenv("TIMBRE_CPU");
    unsetenv("FFMPEG_BIN");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
