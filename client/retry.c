#include "client/retry.h"

#include <grpc/status.h>

/* Doubles with every attempt up to the maximum; the second half of it is chance, so that callers who failed
 * together do not come again together. */
static int64_t backoff_ms(const struct retry_policy *p, int attempts, uint64_t random) {
    int64_t ms = p->backoff_initial_ms;
    for (int i = 1; i < attempts && ms < p->backoff_max_ms; i++)
        ms *= 2;
    if (ms > p->backoff_max_ms)
        ms = p->backoff_max_ms;
    return ms / 2 + (int64_t)(random % (uint64_t)(ms - ms / 2 + 1));
}

int64_t retry_wait_ms(const struct retry_policy *p, int attempts, const struct retry_answer *a,
                      int64_t left_ms, uint64_t random) {
    int64_t ms;
    if (attempts >= p->attempts_max)
        return -1;
    if (a->code != GRPC_STATUS_UNAVAILABLE && a->code != GRPC_STATUS_RESOURCE_EXHAUSTED)
        return -1;
    if (a->has_pushback) {
        if (a->pushback_ms < 0 || a->pushback_ms > RETRY_PUSHBACK_MS_MAX)
            return -1;
        ms = a->pushback_ms + (int64_t)(random % (uint64_t)(a->pushback_ms / 10 + 1)); /* not all at once */
    } else if (a->code == GRPC_STATUS_UNAVAILABLE) {
        ms = backoff_ms(p, attempts, random);
    } else {
        return -1; /* a limit of size: the same request will never pass */
    }
    return ms < left_ms ? ms : -1;
}

int64_t retry_parse_pushback(const char *text, size_t bytes) {
    int64_t ms = 0;
    if (bytes == 0 || bytes > 15)
        return -1;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        ms = ms * 10 + (text[i] - '0');
    }
    return ms;
}
