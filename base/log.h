/* log: lines on standard error, as text for people or as one JSON object a line. Thread-safe; a line is
 * written whole. No audio, no token and no file content is ever logged.
 *
 * A program that must not wait for whoever reads its standard error calls log_start: from then on lines go
 * through a bounded buffer to a thread that writes them, and what does not fit is dropped and counted. */
#ifndef TIMBRE_BASE_LOG_H
#define TIMBRE_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

enum {
    LOG_LINE_BYTES_MAX = 2048,      /* of a message, before it is escaped */
    LOG_FIELDS_MAX = 16,            /* of one line; further ones are left out */
    LOG_FIELD_BYTES_MAX = 256,      /* of a field's text, before it is escaped */
    LOG_BUFFER_BYTES_MAX = 1 << 20, /* of all lines that wait for the thread */
    LOG_STOP_MS_MAX = 2000,         /* log_stop waits so long for a reader that does not read */
};

/* Lines below `level` are dropped. Default: LOG_INFO, text. Any thread, any time. */
void log_init(enum log_level level, bool json);
/* Whether a line of that level would be written, for callers whose lines cost something to make. */
bool log_is_on(enum log_level level);

/* One line; `component` is a short constant such as "models". The text is cut at LOG_LINE_BYTES_MAX; control
 * characters become spaces, in JSON they are escaped. */
void log_write(enum log_level level, const char *component, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A fact beside the message. The key is a constant of lower case letters and _, and neither time, level,
 * component nor message. */
struct log_field {
    const char *key;
    const char *text; /* cut at LOG_FIELD_BYTES_MAX; NULL, and no number: the field is left out */
    double number;    /* rounded to a thousandth */
    bool is_number;
};
static inline struct log_field log_text(const char *key, const char *text) {
    return (struct log_field){.key = key, .text = text};
}
static inline struct log_field log_number(const char *key, double number) {
    return (struct log_field){.key = key, .number = number, .is_number = true};
}

/* As log_write, and `fields` [count]: in JSON keys of the object, in text " key=value" behind the message. */
void log_write_fields(enum log_level level, const char *component, const struct log_field *fields, int count,
                      const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Starts the thread; it blocks all signals. Nothing when it runs already. Error: RESOURCE_EXHAUSTED. */
int log_start(struct status *st);
/* Writes what waits and ends the thread; from then on callers write themselves again. When the reader does
 * not read for LOG_STOP_MS_MAX, what waits is dropped, and so is every line until log_start is called again.
 * Call both from one thread. */
void log_stop(void);

/* Lines lost since the program began: no room in the buffer (a line tells how many, as soon as there is room
 * again), or standard error did not take them. */
uint64_t log_count_dropped(void);

#endif
