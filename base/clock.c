#include "base/clock.h"

#include <stdio.h>
#include <time.h>

int64_t clock_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

double clock_elapsed_ms(int64_t since_ns) {
    return (double)(clock_now_ns() - since_ns) * 1e-6;
}

void clock_format_date(char *text) {
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(text, CLOCK_DATE_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, CLOCK_DATE_BYTES - n, ".%03dZ", (int)(t.tv_nsec / 1000000 % 1000));
}
