/* Tests of base/log and base/clock: what is on standard error is what was meant, line by line, whether
 * callers write it or the thread of log_start. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <poll.h>
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
    log_write(LOG_INFO, "cli", "name\nwith a break\x1b[31m\x7f");
    char *text = end_capture();
    assert_int_equal(strlen(text) - 1, strcspn(text, "\n"));
    assert_non_null(strstr(text, " info  cli: name with a break [31m \n"));
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

/* ---- fields ---- */

static void write_all_kinds(void) {
    const struct log_field fields[] = {log_text("method", "Predict"),    log_number("ms", 12.34567),
                                       log_number("bytes", 67108864),    log_number("late", -0.0001),
                                       log_number("odd", NAN),           log_number("huge", 1e300),
                                       log_text("none", NULL),           log_text("empty", ""),
                                       log_text("name", "a \"b\"=c\nd"), log_text("bytes_odd", "\xff\x1b"),
                                       log_text("sum", "1+1=2"),         log_text("slash", "a\\b")};
    log_write_fields(LOG_INFO, "server", fields, sizeof fields / sizeof *fields, "call %d", 7);
}

static void test_fields_in_json(void **state) {
    (void)state;
    start_capture();
    log_init(LOG_INFO, true);
    write_all_kinds();
    char *text = end_capture();
    cJSON *root = parse_line(text);
    assert_string_equal(field(root, "message"), "call 7");
    assert_string_equal(field(root, "method"), "Predict");
    assert_non_null(strstr(text, "\"ms\":12.346,\"bytes\":67108864,\"late\":0,\"odd\":null,"));
    assert_true(cJSON_GetObjectItemCaseSensitive(root, "huge")->valuedouble == 1e300);
    assert_null(cJSON_GetObjectItemCaseSensitive(root, "none"));
    assert_string_equal(field(root, "empty"), "");
    assert_string_equal(field(root, "name"), "a \"b\"=c\nd");
    assert_string_equal(field(root, "bytes_odd"), "\xef\xbf\xbd\x1b");
    cJSON_Delete(root);
    free(text);
}

static void test_fields_in_text(void **state) {
    (void)state;
    start_capture();
    log_init(LOG_INFO, false);
    write_all_kinds();
    char *text = end_capture();
    assert_non_null(
        strstr(text, " info  server: call 7 method=Predict ms=12.346 bytes=67108864 late=0 odd=null"));
    assert_non_null(strstr(text, " empty=\"\" name=\"a \\\"b\\\"=c\\u000ad\" "
                                 "bytes_odd=\"\xef\xbf\xbd\\u001b\" sum=\"1+1=2\" slash=\"a\\\\b\"\n"));
    assert_null(strstr(text, "none="));
    assert_int_equal(strlen(text) - 1, strcspn(text, "\n"));
    free(text);
}

/* The longest message with the most and longest fields, each byte of which escapes to six. */
static void test_most_fields_stay_valid(void **state) {
    (void)state;
    char message[2 * LOG_LINE_BYTES_MAX];
    memset(message, '\x01', sizeof message - 1);
    message[sizeof message - 1] = 0;
    struct log_field fields[LOG_FIELDS_MAX + 1];
    char keys[LOG_FIELDS_MAX + 1][40];
    for (int i = 0; i <= LOG_FIELDS_MAX; i++) {
        snprintf(keys[i], sizeof keys[i], "a_key_of_some_length_%d", i);
        fields[i] = log_text(keys[i], message);
    }
    for (int json = 0; json < 2; json++) {
        start_capture();
        log_init(LOG_INFO, json);
        log_write_fields(LOG_INFO, "server", fields, LOG_FIELDS_MAX + 1, "%s", message);
        char *text = end_capture();
        assert_int_equal(strlen(text) - 1, strcspn(text, "\n"));
        assert_non_null(strstr(text, "a_key_of_some_length_15"));
        assert_null(strstr(text, "a_key_of_some_length_16"));
        if (json) {
            cJSON *root = parse_line(text);
            assert_int_equal(strlen(field(root, "message")), LOG_LINE_BYTES_MAX - 1);
            assert_int_equal(strlen(field(root, keys[LOG_FIELDS_MAX - 1])), LOG_FIELD_BYTES_MAX - 1);
            cJSON_Delete(root);
        }
        free(text);
    }
}

/* ---- the thread ---- */

static void start_thread(void) {
    struct status st = {0};
    assert_int_equal(log_start(&st), 0);
    assert_int_equal(log_start(&st), 0); /* it runs: nothing to do */
}

static void test_thread_writes_everything(void **state) {
    (void)state;
    uint64_t dropped = log_count_dropped();
    start_capture();
    log_init(LOG_INFO, false);
    log_write(LOG_INFO, "base", "before");
    for (int round = 0; round < 2; round++) {
        start_thread();
        for (int i = 0; i < 1000; i++)
            log_write(LOG_INFO, "base", "line %d.%d", round, i);
        log_stop();
        log_stop();
        log_write(LOG_INFO, "base", "between");
    }
    char *text = end_capture(), *at = text;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 1000; i++) {
            char wanted[32];
            snprintf(wanted, sizeof wanted, " line %d.%d\n", round, i);
            at = strstr(at, wanted);
            assert_non_null(at);
        }
    assert_non_null(strstr(at, " between\n"));
    assert_int_equal(log_count_dropped(), dropped);
    free(text);
}

/* Standard error as a pipe; what nobody reads piles up in it. */
static int pipe_read;

static void start_pipe(void) {
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    pipe_read = ends[0];
    real_stderr = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
}

static void end_pipe(void) {
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    if (pipe_read >= 0)
        close(pipe_read);
}

/* Reads until nothing comes for a while; free the text. */
static char *read_pipe(void) {
    char *text = calloc(1, 2 * LOG_BUFFER_BYTES_MAX);
    size_t used = 0;
    struct pollfd fd = {.fd = pipe_read, .events = POLLIN};
    assert_non_null(text);
    while (poll(&fd, 1, 400) > 0) {
        ssize_t n = read(pipe_read, text + used, 2 * LOG_BUFFER_BYTES_MAX - 1 - used);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    return text;
}

enum { FLOOD_LINES = 20000 };

static double flood(void) {
    int64_t begin = clock_now_ns();
    for (int i = 0; i < FLOOD_LINES; i++)
        log_write(LOG_INFO, "base", "number %d %0100d", i, 0);
    return clock_elapsed_ms(begin);
}

/* Callers are not held up, memory is bounded, and the reader is told in the right place what it missed. */
static void test_stalled_reader(void **state) {
    (void)state;
    uint64_t dropped = log_count_dropped();
    start_pipe();
    log_init(LOG_INFO, false);
    start_thread();
    flood();
    uint64_t lost = log_count_dropped() - dropped;
    assert_in_range(lost, 1000, FLOOD_LINES - 1000);
    char *text = read_pipe(), *rest = NULL;
    log_write(LOG_INFO, "base", "number %d", FLOOD_LINES);
    char *more = read_pipe();
    log_stop();
    int expected = 0;
    unsigned long long told = 0;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const char *number = strstr(line, " number ");
        if (number)
            assert_int_equal(atoi(number + 8), expected++);
        else
            assert_int_equal(sscanf(strstr(line, " log: "), " log: %llu log lines were dropped", &told), 1);
    }
    assert_int_equal(told, lost);
    assert_int_equal(expected + (int)lost, FLOOD_LINES);
    assert_non_null(strstr(more, " number 20000\n"));
    assert_int_equal(log_count_dropped() - dropped, lost);
    free(text);
    free(more);
    end_pipe();
}

/* The gap is told before the lines that follow it, also when the reader catches up only in part. */
static void test_gap_is_told_in_its_place(void **state) {
    (void)state;
    start_pipe();
    log_init(LOG_INFO, false);
    start_thread();
    uint64_t dropped = log_count_dropped();
    flood();
    int early = 0;
    char *text = calloc(1, 3 * LOG_BUFFER_BYTES_MAX);
    assert_non_null(text);
    size_t used = 0;
    while (used < LOG_BUFFER_BYTES_MAX * 3 / 4) { /* more than half of the buffer is free then */
        if (used > LOG_BUFFER_BYTES_MAX / 4 && !early++)
            log_write(LOG_INFO, "base", "too early"); /* there is room, but one gap is better than many */
        ssize_t n = read(pipe_read, text + used, 4096);
        if (n > 0)
            used += (size_t)n;
        else
            usleep(1000);
    }
    uint64_t lost = log_count_dropped() - dropped;
    log_write(LOG_INFO, "base", "after the gap");
    char *more = read_pipe();
    log_stop();
    strcat(text, more);
    char wanted[64];
    snprintf(wanted, sizeof wanted, " %llu log lines were dropped\n", (unsigned long long)lost);
    char *gap = strstr(text, wanted);
    assert_non_null(gap);
    assert_non_null(strstr(gap, " after the gap\n"));
    assert_null(strstr(gap, " number "));
    assert_null(strstr(text, "too early"));
    free(text);
    free(more);
    end_pipe();
}

static void test_stop_does_not_wait_for_ever(void **state) {
    (void)state;
    start_pipe();
    log_init(LOG_INFO, false);
    start_thread();
    flood();
    uint64_t dropped = log_count_dropped();
    int64_t begin = clock_now_ns();
    log_stop();
    assert_true(clock_elapsed_ms(begin) < LOG_STOP_MS_MAX + 1500);
    assert_true(log_count_dropped() - dropped > 1000);
    dropped = log_count_dropped();
    log_write(LOG_INFO, "base", "nobody reads this either, so it must not wait");
    assert_int_equal(log_count_dropped(), dropped + 1);
    free(read_pipe());
    start_thread(); /* and it can be started again */
    log_write(LOG_INFO, "base", "here again");
    log_stop();
    log_write(LOG_INFO, "base", "and here");
    char *text = read_pipe();
    assert_non_null(strstr(text, " here again\n"));
    assert_non_null(strstr(text, " and here\n"));
    free(text);
    end_pipe();
}

/* A reader that went away costs lines, not the process: SIGPIPE would end it. */
static void test_reader_goes_away(void **state) {
    (void)state;
    uint64_t dropped = log_count_dropped();
    start_pipe();
    log_init(LOG_INFO, false);
    start_thread();
    close(pipe_read);
    pipe_read = -1;
    for (int i = 0; i < 10; i++)
        log_write(LOG_INFO, "base", "lost");
    log_stop();
    assert_int_equal(log_count_dropped() - dropped, 10);
    end_pipe();
}

static void *write_lines_and_levels(void *arg) {
    write_lines(arg);
    log_init(LOG_INFO, true);
    return NULL;
}

static void test_threads_through_the_thread(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    int numbers[THREADS], next[THREADS] = {0}, lines = 0;
    start_capture();
    log_init(LOG_INFO, true);
    start_thread();
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, write_lines_and_levels, &numbers[i]);
    }
    usleep(1000);
    log_stop(); /* some lines go through the buffer, some do not; none is lost */
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    char *text = end_capture(), *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        cJSON *root = parse_line(line);
        int thread, number;
        assert_int_equal(sscanf(field(root, "message"), "thread %d line %d", &thread, &number), 2);
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
        cmocka_unit_test(test_json_line),
        cmocka_unit_test(test_long_json_lines_stay_valid),
        cmocka_unit_test(test_text_line),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_threads_do_not_mix),
        cmocka_unit_test(test_fields_in_json),
        cmocka_unit_test(test_fields_in_text),
        cmocka_unit_test(test_most_fields_stay_valid),
        cmocka_unit_test(test_thread_writes_everything),
        cmocka_unit_test(test_stalled_reader),
        cmocka_unit_test(test_gap_is_told_in_its_place),
        cmocka_unit_test(test_stop_does_not_wait_for_ever),
        cmocka_unit_test(test_reader_goes_away),
        cmocka_unit_test(test_threads_through_the_thread),
        cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
