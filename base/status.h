/* status: why a call failed, in a form that can travel to a caller.
 *
 * Convention of the whole project: a function that can fail returns 0 for success and -1 for failure, and
 * takes a `struct status *` last. On failure it fills that struct; on success it leaves it alone. The message
 * is one sentence that names the file, tensor, field or limit concerned, and never ends with a newline. */
#ifndef TIMBRE_BASE_STATUS_H
#define TIMBRE_BASE_STATUS_H

#include <stdarg.h>

/* The names and meanings are those of gRPC, so that a code maps to the wire one to one. */
enum status_code {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_INVALID_ARGUMENT = 3, /* what came in is wrong and will be wrong again */
    STATUS_DEADLINE_EXCEEDED = 4,
    STATUS_NOT_FOUND = 5,
    STATUS_PERMISSION_DENIED = 7,
    STATUS_RESOURCE_EXHAUSTED = 8,  /* a limit; the message names it */
    STATUS_FAILED_PRECONDITION = 9, /* for example a model that this program cannot run exactly */
    STATUS_UNIMPLEMENTED = 12,
    STATUS_INTERNAL = 13,
    STATUS_UNAVAILABLE = 14, /* not now; try again, perhaps elsewhere */
    STATUS_UNAUTHENTICATED = 16,
};

enum { STATUS_MESSAGE_BYTES_MAX = 512 };

struct status {
    enum status_code code;
    char message[STATUS_MESSAGE_BYTES_MAX]; /* zero-terminated; cut, never overflowed */
};

/* Sets code and message; returns -1, so that a failing function can end in `return status_set(...)`.
 * `st` may be NULL, then only the -1 is left. */
int status_set(struct status *st, enum status_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<text>: " before the message already there; returns -1. */
int status_prefix(struct status *st, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "out of memory: <bytes> bytes for <what>", STATUS_RESOURCE_EXHAUSTED; returns -1. */
int status_set_no_memory(struct status *st, unsigned long long bytes, const char *what);

void status_clear(struct status *st);

/* "INVALID_ARGUMENT" and so on; never NULL. */
const char *status_code_name(enum status_code code);

#endif
