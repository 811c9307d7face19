#include "base/status.h"

#include <stdio.h>
#include <string.h>

#include "base/text.h"

int status_set(struct status *st, enum status_code code, const char *format, ...) {
    if (!st)
        return -1;
    char text[STATUS_MESSAGE_BYTES_MAX]; /* the arguments may point into st->message */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    st->code = code;
    memcpy(st->message, text, sizeof text);
    return -1;
}

int status_prefix(struct status *st, const char *format, ...) {
    if (!st)
        return -1;
    char text[STATUS_MESSAGE_BYTES_MAX] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    struct text joined;
    char buffer[STATUS_MESSAGE_BYTES_MAX];
    text_init(&joined, buffer, sizeof buffer);
    text_put(&joined, text);
    text_put(&joined, ": ");
    text_put(&joined, st->message);
    memcpy(st->message, buffer, sizeof buffer);
    return -1;
}

int status_set_no_memory(struct status *st, unsigned long long bytes, const char *what) {
    return status_set(st, STATUS_RESOURCE_EXHAUSTED, "out of memory: %llu bytes for %s", bytes, what);
}

void status_clear(struct status *st) {
    if (st) {
        st->code = STATUS_OK;
        st->message[0] = 0;
    }
}

const char *status_code_name(enum status_code code) {
    switch (code) {
    case STATUS_OK:
        return "OK";
    case STATUS_CANCELLED:
        return "CANCELLED";
    case STATUS_INVALID_ARGUMENT:
        return "INVALID_ARGUMENT";
    case STATUS_DEADLINE_EXCEEDED:
        return "DEADLINE_EXCEEDED";
    case STATUS_NOT_FOUND:
        return "NOT_FOUND";
    case STATUS_PERMISSION_DENIED:
        return "PERMISSION_DENIED";
    case STATUS_RESOURCE_EXHAUSTED:
        return "RESOURCE_EXHAUSTED";
    case STATUS_FAILED_PRECONDITION:
        return "FAILED_PRECONDITION";
    case STATUS_UNIMPLEMENTED:
        return "UNIMPLEMENTED";
    case STATUS_INTERNAL:
        return "INTERNAL";
    case STATUS_UNAVAILABLE:
        return "UNAVAILABLE";
    case STATUS_UNAUTHENTICATED:
        return "UNAUTHENTICATED";
    }
    return "UNKNOWN";
}
