/* clock: monotonic time for durations and deadlines; it never goes back and has no date. */
#ifndef TIMBRE_BASE_CLOCK_H
#define TIMBRE_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_now_ns(void);
double clock_elapsed_ms(int64_t since_ns);
/* The date now as "2026-01-31T23:59:59.123Z"; `text` takes at least CLOCK_DATE_BYTES. */
enum { CLOCK_DATE_BYTES = 32 };
void clock_format_date(char *text);

#endif
