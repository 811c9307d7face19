/* log: lines on standard error, as text for people or as one JSON object a line. Thread-safe; a line is
 * written whole. No audio, no token and no file content is ever logged. */
#ifndef TIMBRE_BASE_LOG_H
#define TIMBRE_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

/* Lines below `level` are dropped. Default: LOG_INFO, text. Call before threads are started. */
void log_init(enum log_level level, bool json);

/* One line; `component` is a short constant such as "models". The text is cut at LOG_LINE_BYTES_MAX; control
 * characters become spaces, in JSON they are escaped. */
enum { LOG_LINE_BYTES_MAX = 2048 };
void log_write(enum log_level level, const char *component, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
