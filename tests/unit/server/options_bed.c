#include "tests/unit/server/options_bed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARGUMENTS_MAX = 200 };

static int run(struct server_options *o, struct status *st, va_list list) {
    static char *argv[ARGUMENTS_MAX];
    int argc = 0;
    argv[argc++] = (char *)"serve";
    for (char *a; (a = va_arg(list, char *));)
        argv[argc++] = a;
    argv[argc] = NULL;
    *st = (struct status){0};
    return options_init(o, argc, argv, "/shipped", st);
}

const struct server_options *options_take(const char *first, ...) {
    static struct server_options o;
    struct status st;
    va_list list;
    (void)first;
    options_free(&o);
    va_start(list, first);
    if (run(&o, &st, list))
        fail_msg("%s", st.message);
    va_end(list);
    return &o;
}

void options_refuse(const char *wanted, ...) {
    struct server_options o;
    struct status st;
    va_list list;
    va_start(list, wanted);
    assert_int_equal(run(&o, &st, list), -1);
    va_end(list);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_string_equal(st.message, wanted);
    assert_null(o.memory);
}

void options_refuse_some(const char *part, const char *flag, const char *value) {
    struct server_options o;
    struct status st = {0};
    char *argv[] = {(char *)"serve", (char *)flag, (char *)value};
    int result = options_init(&o, 3, argv, "/shipped", &st);
    if (result == 0 || !strstr(st.message, part))
        fail_msg("%s %s: %d \"%s\"", flag, value, result, st.message);
}

const char *options_write_config(const char *text) {
    folder_write("timbre.conf", text);
    return folder_path("timbre.conf");
}

void options_refuse_config(const char *text, const char *wanted) {
    char message[STATUS_MESSAGE_BYTES_MAX];
    const char *path = options_write_config(text);
    snprintf(message, sizeof message, "%s%s", path, wanted);
    REFUSE(message, "--config", path);
}

int options_teardown(void **state) {
    extern char **environ;
    for (char **e = environ; *e;) { /* whatever a test has set */
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        if (strncmp(name, "TIMBRE_", 7) == 0 || strcmp(name, "FFMPEG_BIN") == 0)
            unsetenv(name);
        else
            e++;
    }
    TAKE_NOTHING();
    return folder_teardown(state);
}
