/* http: the HTTP address, on a thread of its own (libwebsockets): GET /metrics, /healthz (the process lives),
 * /readyz (200 when it serves, 503 with a word why when not), HEAD likewise. Anything else is 404, other
 * methods 405. Bounded connections, header sizes and idle time. */
#ifndef TIMBRE_SERVER_HTTP_H
#define TIMBRE_SERVER_HTTP_H

#include <stddef.h>

#include "base/metrics.h"
#include "base/status.h"

struct http;
enum { HTTP_CONNECTIONS_MAX = 256, HTTP_IDLE_S_MAX = 30, HTTP_ADDRESS_BYTES = 300 };

struct http_options {
    const char *address; /* HOST:PORT or [IPV6]:PORT; port 0 takes a free one; [::] is IPv4 too */
    struct metrics *metrics;
    /* NULL when it is ready; else a word for /readyz such as "starting" or "draining". Any thread. */
    const char *(*why_not_ready)(void *arg);
    void *arg;
    int idle_s; /* how long a connection may ask for nothing; 0: HTTP_IDLE_S_MAX */
};

/* Listens and serves until http_del. The address it got is copied to `bound`. Errors: INVALID_ARGUMENT (not
 * an address), UNAVAILABLE (cannot listen there: why), RESOURCE_EXHAUSTED. Signals and their handlers are
 * left alone. */
int http_new(struct http **h, const struct http_options *o, char bound[HTTP_ADDRESS_BYTES],
             struct status *st);
void http_del(struct http *h); /* NULL is fine */

#endif
