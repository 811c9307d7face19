/* retry: whether and when a call is sent again. Pure functions. */
#ifndef TIMBRE_CLIENT_RETRY_H
#define TIMBRE_CLIENT_RETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A server that asks for more is not waited for. */
enum { RETRY_PUSHBACK_MS_MAX = 3600 * 1000 };

struct retry_policy {
    int attempts_max; /* in all, at least 1 */
    int backoff_initial_ms, backoff_max_ms;
};

/* What the last attempt ended with. */
struct retry_answer {
    int code; /* of gRPC */
    bool has_pushback;
    int64_t pushback_ms; /* negative: the server asks not to come again */
};

/* Milliseconds to wait before the next attempt, or -1 for none. `attempts` were made; `left_ms` is what is
 * left of the deadline (INT64_MAX: no deadline); `random` is any number. */
int64_t retry_wait_ms(const struct retry_policy *p, int attempts, const struct retry_answer *a,
                      int64_t left_ms, uint64_t random);

/* The value of grpc-retry-pushback-ms (not zero-terminated): what is not a whole number means "do not come
 * again", -1. */
int64_t retry_parse_pushback(const char *text, size_t bytes);

#endif
