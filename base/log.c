#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"

static enum log_level level_min = LOG_INFO;
static bool as_json;

void log_init(enum log_level level, bool json) {
    level_min = level;
    as_json = json;
}

void log_write(enum log_level level, const char *component, const char *format, ...) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (level < level_min || level >= LOG_OFF)
        return;
    char text[LOG_LINE_BYTES_MAX], date[CLOCK_DATE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    clock_format_date(date);

    char line[6 * LOG_LINE_BYTES_MAX + 256]; /* escaping makes a byte up to six */
    struct text out;
    text_init(&out, line, sizeof line - 1);
    if (as_json) {
        text_printf(&out, "{\"time\":\"%s\",\"level\":\"%s\",\"component\":\"%s\",\"message\":", date,
                    names[level], component);
        text_put_json_string(&out, text);
        text_printf(&out, "}");
    } else {
        /* A name with a line break in it must not look like a line of its own. */
        for (char *c = text; *c; c++)
            *c = (unsigned char)*c < ' ' ? ' ' : *c;
        text_printf(&out, "%s %-5s %s: %s", date, names[level], component, text);
    }
    size_t n = strlen(line);
    line[n++] = '\n';
    /* One call, so that lines of several threads do not mix. */
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written;
}
