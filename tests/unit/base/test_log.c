/* Tests of base/log and base/clock: what is on standard error is what was meant, line by line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "base/log.h"

enum { CAPTURE_BYTES_MAX = 1 << 20 };

static FILE *capture;
static int real_stderr;

static void start_capture(void) {
    capture = tmpfile();
    assert_non_null(capture);
    real_stderr = dup(STDERR_FILENO);
    dup2(fileno(capture), STDERR_FILENO);
}

/* What was written since start_capture; free it. */
static char *end_capture(void) {
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    char *text = calloc(1, CAPTURE_BYTES_MAX);
    assert_non_null(text);
    rewind(capture);
    assert_true(fread(text, 1, CAPTURE_BYTES_MAX - 1, capture) < CAPTURE_BYTES_MAX - 1);
    fclose(capture);
    return text;
}

static cJSON *parse_line(const char *line) {
    cJSON *root = cJSON_Parse(line);
    assert_non_null(root);
    return root;
}

static const char *field(const cJSON *root, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    assert_true(cJSON_IsString(item));
    return item->valuestring;
}

static void test_json_line(void **state) {
    (void)state;
    start_capture();
    log_init(LOG_INFO, true);
    log_write(LOG_WARN, "models", "a \"quoted\"\npath\\ %d", 5);
    log_write(LOG_DEBUG, "models", "dropped");
    char *text = end_capture();
    assert_int_equal(text[strlen(text) - 1], '\n');
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1); /* one line */
    cJSON *root = parse_line(text);
    assert_string_equal(field(root, "message"), "a \"quoted\"\npath\\ 5");
    assert_string_equal(field(root, "level"), "warn");
    assert_string_equal(field(root, "component"), "models");
    assert_int_equal(strlen(field(root, "time")), 24);
    cJSON_Delete(root);
    free(text);
}

/* The worst that escaping can do to the longest text. */
static void test_long_json_lines_stay_valid(void **state) {
    (void)state;
    static const char fill[] = {'x', '\x01', '"', '\xff', '\xc3'};
    for (size_t i = 0; i < sizeof fill; i++) {
        char message[2 * LOG_LINE_BYTES_MAX];
        memset(message, fill[i], sizeof message - 1);
        message[sizeof message - 1] = 0;
        start_capture();
        log_init(LOG_INFO, true);
        log_write(LOG_ERROR, "engine", "%s", message);
        char *text = end_capture();
        cJSON *root = parse_line(text);
        assert_true(strlen(field(root, "message")) >= LOG_LINE_BYTES_MAX - 1);
        cJSON_Delete(root);
        free(text);
    }
}

static void test_text_line(void **state) {
    (void)state;
    start_capture();
    log_init(LOG_INFO, false);
    log_write(LOG_INFO, "cli", "name\nwith a break\x1b[31m");
    char *text = end_capture();
    assert_int_equal(strlen(text) - 1, strcspn(text, "\n"));
    assert_non_null(strstr(text, " info  cli: name with a break [31m\n"));
    free(text);
}

static void test_levels(void **state) {
    (void)state;
    start_capture();
    log_init(LOG_OFF, false);
    log_write(LOG_ERROR, "cli", "nothing");
    log_init(LOG_ERROR, false);
    log_write(LOG_WARN, "cli", "nothing");
    log_write(LOG_OFF, "cli", "nothing");
    char *text = end_capture();
    assert_string_equal(text, "");
    free(text);
}

enum { THREADS = 4, LINES = 200 };

static void *write_lines(void *arg) {
    for (int i = 0; i < LINES; i++)
        log_write(LOG_INFO, "base", "thread %d line %d %0100d", *(int *)arg, i, 0);
    return NULL;
}

static void test_threads_do_not_mix(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    int numbers[THREADS], next[THREADS] = {0}, lines = 0;
    start_capture();
    log_init(LOG_INFO, true);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, write_lines, &numbers[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    char *text = end_capture(), *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        cJSON *root = parse_line(line);
        int thread, number;
        assert_int_equal(sscanf(field(root, "message"), "thread %d line %d", &thread, &number), 2);
        assert_in_range(thread, 0, THREADS - 1);
        assert_int_equal(number, next[thread]++);
        cJSON_Delete(root);
        lines++;
    }
    assert_int_equal(lines, THREADS * LINES);
    free(text);
}

static void test_clock(void **state) {
    (void)state;
    char date[CLOCK_DATE_BYTES];
    int y, mo, d, h, mi, s, ms;
    clock_format_date(date);
    assert_int_equal(strlen(date), 24);
    assert_int_equal(sscanf(date, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ", &y, &mo, &d, &h, &mi, &s, &ms), 7);
    int64_t last = clock_now_ns();
    for (int i = 0; i < 10000; i++) {
        int64_t now = clock_now_ns();
        assert_true(now >= last);
        last = now;
    }
    assert_true(clock_elapsed_ms(last - 5000000) >= 5.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_line),          cmocka_unit_test(test_long_json_lines_stay_valid),
        cmocka_unit_test(test_text_line),          cmocka_unit_test(test_levels),
        cmocka_unit_test(test_threads_do_not_mix), cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
