/* http_client: a server/http under test, and a client of it that knows nothing but sockets. */
#ifndef TIMBRE_TESTS_UNIT_SERVER_HTTP_CLIENT_H
#define TIMBRE_TESTS_UNIT_SERVER_HTTP_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "server/http.h"

enum { HTTP_ANSWER_BYTES_MAX = 1 << 20, HTTP_WAIT_MS = 10000, HTTP_SERIES = 1000 };

#define GET_HEALTH  "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
#define GET_METRICS "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
#define OK_HEALTH                                                                                            \
    "HTTP/1.1 200 OK\r\nserver: timbre\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: "       \
    "3\r\n\r\nok\n"

struct http_fixture {
    struct metrics *metrics;
    struct http *http;
    char address[HTTP_ADDRESS_BYTES];
    _Atomic(const char *) why;
    char answer[HTTP_ANSWER_BYTES_MAX];
};

/* A server with HTTP_SERIES counters, a_total{x="0"} 0 and so on; `idle_s` as in http_options. */
int http_set_up(struct http_fixture **f, int idle_s);
void http_tear_down(struct http_fixture *f);
/* For cmocka: one with an idle_s of 1. */
int http_set_up_impatient(void **state);
int http_tear_down_state(void **state);

int http_dial(const char *address); /* a connection, with HTTP_WAIT_MS for every read and write */
bool http_tell(int fd, const void *data, size_t bytes); /* false when the other side has closed */
/* Reads `bytes`, or to the end when there are less; what came is in f->answer. */
size_t http_hear(struct http_fixture *f, int fd, size_t bytes);
/* Sends `request` and reads until the server closes. */
const char *http_ask(struct http_fixture *f, const char *request);
void http_assert_alive(struct http_fixture *f); /* it answers */

int count_words(const char *text, const char *words);
int count_fds(void); /* open files, and the same few more every time */

#endif
