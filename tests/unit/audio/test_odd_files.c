/* Real files of many kinds, valid and broken, that other people wrote: $TIMBRE_DATA/odd, or
 * ../shared/data/odd beside the source. Its index.csv says how many samples each has at 16 kHz. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "audio/audio.h"
#include "base/clock.h"
#include "base/file.h"

enum {
    COLUMNS = 16,
    COLUMN_FILE = 0,
    COLUMN_SAMPLES = 12,
    COLUMN_SNDFILE_OPENS = 14,
    MEMORY_KB_MAX = 500 * 1000
};
#define TIME_MS_MAX 10000.0

static void odd_folder(char *path, size_t bytes) {
    const char *data = getenv("TIMBRE_DATA");
    snprintf(path, bytes, "%s/odd", data != NULL ? data : TIMBRE_SOURCE_DIR "/../shared/data");
}

/* Cuts a line of comma-separated values, some in double quotes, in place. */
static int cut_line(char *line, char *columns[COLUMNS]) {
    int count = 0;
    for (char *p = line; p != NULL && count < COLUMNS;) {
        bool quoted = *p == '"';
        p += quoted;
        columns[count++] = p;
        char *end = quoted ? strchr(p, '"') : strpbrk(p, ",\r\n");
        if (end == NULL)
            break;
        char *next = quoted ? strchr(end, ',') : *end == ',' ? end : NULL;
        *end = '\0';
        p = next != NULL ? next + 1 : NULL;
    }
    return count;
}

static long memory_kb(void) {
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    return own.ru_maxrss > children.ru_maxrss ? own.ru_maxrss : children.ru_maxrss;
}

/* Returns whether the file kept the rules. */
static bool check_file(const char *folder, char *columns[COLUMNS], bool with_ffmpeg) {
    char path[1024], *data = NULL;
    size_t bytes;
    struct status st = {0};
    struct audio_limits limits;
    struct audio_clip clip;
    audio_limits_init(&limits);
    if (!with_ffmpeg)
        limits.ffmpeg = "";
    snprintf(path, sizeof path, "%s/%s", folder, columns[COLUMN_FILE]);
    if (file_read(&data, &bytes, path, AUDIO_BYTES_MAX_DEFAULT, "max-file-bytes", &st) != 0)
        fail_msg("%s", st.message);
    int64_t start_ns = clock_now_ns();
    int result =
        audio_decode(&clip, data, bytes, &(struct audio_format){.encoding = AUDIO_FILE}, 16000, &limits, &st);
    double ms = clock_elapsed_ms(start_ns);
    free(data);
    double want = atof(columns[COLUMN_SAMPLES]), got = (double)clip.count;
    bool valid = strncmp(columns[COLUMN_FILE], "valid/", 6) == 0;
    bool read_by_sndfile = strcmp(columns[COLUMN_SNDFILE_OPENS], "yes") == 0;
    bool kept = ms < TIME_MS_MAX;
    if (valid && want > 0.0 && (with_ffmpeg || result == 0))
        kept = kept && result == 0 && fabs(got - want) <= fmax(2.0, with_ffmpeg ? 0.01 * want : 0.02 * want);
    else if (valid && read_by_sndfile)
        kept = kept && (result == 0 || !with_ffmpeg);
    if (result == 0)
        print_message("%-4s %-62.62s %8lld of %8.0f  %-10s %6.0f ms\n", kept ? "" : "BAD",
                      columns[COLUMN_FILE], (long long)clip.count, want, clip.decoder, ms);
    else
        print_message("%-4s %-62.62s %s: %s, %.0f ms\n", kept ? "" : "BAD", columns[COLUMN_FILE],
                      status_code_name(st.code), st.message, ms);
    kept = kept && (result == 0 || st.message[0] != '\0');
    audio_clip_free(&clip);
    return kept;
}

static void check_all(bool with_ffmpeg) {
    char folder[768], path[800], *index;
    size_t bytes;
    struct status st;
    odd_folder(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/index.csv", folder);
    if (file_kind(path) != 1) {
        print_message("SKIPPED: no %s; set TIMBRE_DATA to the folder that has odd/index.csv\n", path);
        skip();
    }
    assert_int_equal(file_read(&index, &bytes, path, 1 << 20, "test", &st), 0);
    int files = 0, bad = 0;
    char *rest = strchr(index, '\n'); /* past the heads of the columns */
    for (char *line = strtok_r(rest, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        char *columns[COLUMNS];
        if (cut_line(line, columns) <= COLUMN_SNDFILE_OPENS)
            fail_msg("a line of %s is too short: %s", path, line);
        files++;
        bad += !check_file(folder, columns, with_ffmpeg);
    }
    free(index);
    print_message("%d files, %d bad, at most %ld MB\n", files, bad, memory_kb() / 1000);
    assert_true(files > 0);
    assert_int_equal(bad, 0);
    assert_true(memory_kb() < MEMORY_KB_MAX);
}

static void test_with_ffmpeg(void **state) {
    (void)state;
    if (system("command -v ffmpeg >/dev/null 2>&1") != 0) {
        print_message("SKIPPED: there is no ffmpeg program\n");
        skip();
    }
    check_all(true);
}

static void test_without_ffmpeg(void **state) {
    (void)state;
    check_all(false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_with_ffmpeg),
        cmocka_unit_test(test_without_ffmpeg),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
