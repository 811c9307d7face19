#include "tests/unit/server/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[FOLDER_PATH_BYTES / 2];
static FILE *capture;
static int real_stderr;

int folder_setup(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/timbre-test-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

int folder_teardown(void **state) {
    (void)state;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.')
            unlink(folder_path(e->d_name));
    if (dir)
        closedir(dir);
    return rmdir(folder);
}

const char *folder_path(const char *name) {
    static char paths[8][FOLDER_PATH_BYTES];
    static int next;
    char *path = paths[next++ % 8];
    assert_true(snprintf(path, FOLDER_PATH_BYTES, "%s/%s", folder, name) < FOLDER_PATH_BYTES);
    return path;
}

void folder_write_bytes(const char *name, const void *data, size_t bytes) {
    FILE *f = fopen(folder_path(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

void folder_write(const char *name, const char *text) {
    folder_write_bytes(name, text, strlen(text));
}

void folder_replace(const char *name, const char *text) {
    folder_write("new", text);
    assert_int_equal(rename(folder_path("new"), folder_path(name)), 0);
}

void folder_begin_log(void) {
    capture = tmpfile();
    assert_non_null(capture);
    real_stderr = dup(STDERR_FILENO);
    dup2(fileno(capture), STDERR_FILENO);
}

const char *folder_end_log(void) {
    static char text[65536];
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    rewind(capture);
    text[fread(text, 1, sizeof text - 1, capture)] = 0;
    fclose(capture);
    return text;
}
