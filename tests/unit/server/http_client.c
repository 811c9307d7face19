/* A server/http under test, and a client of it that knows nothing but sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/unit/server/http_client.h"

static const char *why_not_ready(void *arg) {
    struct http_fixture *f = arg;
    return atomic_load(&f->why);
}

int http_set_up(struct http_fixture **out, int idle_s) {
    struct http_fixture *f = *out = calloc(1, sizeof *f);
    struct status st;
    log_init(LOG_OFF, false);
    if (!f || metrics_new(&f->metrics, &st))
        return -1;
    struct metrics_family *a = metrics_add(f->metrics, METRICS_COUNTER, "a_total", "A.", "x", NULL, 0);
    for (int i = 0; i < HTTP_SERIES; i++) {
        char name[20];
        snprintf(name, sizeof name, "%d", i);
        metrics_count(metrics_get(a, name), i);
    }
    const struct http_options o = {.address = "127.0.0.1:0",
                                   .metrics = f->metrics,
                                   .why_not_ready = why_not_ready,
                                   .arg = f,
                                   .idle_s = idle_s};
    return http_new(&f->http, &o, f->address, &st);
}

void http_tear_down(struct http_fixture *f) {
    http_del(f->http);
    metrics_del(f->metrics);
    free(f);
}

int http_set_up_impatient(void **state) {
    return http_set_up((struct http_fixture **)state, 1);
}

int http_tear_down_state(void **state) {
    http_tear_down(*state);
    return 0;
}

int http_dial(const char *address) {
    const struct timeval wait = {.tv_sec = HTTP_WAIT_MS / 1000};
    int port = atoi(strrchr(address, ':') + 1), fd;
    if (address[0] == '[') {
        struct sockaddr_in6 a = {
            .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
        fd = socket(AF_INET6, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    } else {
        struct sockaddr_in a = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
        fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    return fd;
}

bool http_tell(int fd, const void *data, size_t bytes) {
    for (size_t sent = 0; sent < bytes;) {
        ssize_t n = send(fd, (const char *)data + sent, bytes - sent, MSG_NOSIGNAL);
        if (n < 0)
            return false;
        sent += (size_t)n;
    }
    return true;
}

size_t http_hear(struct http_fixture *f, int fd, size_t bytes) {
    size_t got = 0;
    bytes = bytes < HTTP_ANSWER_BYTES_MAX - 1 ? bytes : HTTP_ANSWER_BYTES_MAX - 1;
    while (got < bytes) {
        ssize_t n = recv(fd, f->answer + got, bytes - got, 0);
        if (n < 0 && errno == EAGAIN)
            fail_msg("nothing came for %d ms", HTTP_WAIT_MS);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    f->answer[got] = 0;
    return got;
}

const char *http_ask(struct http_fixture *f, const char *request) {
    int fd = http_dial(f->address);
    assert_true(http_tell(fd, request, strlen(request)));
    http_hear(f, fd, SIZE_MAX);
    close(fd);
    return f->answer;
}

int count_words(const char *text, const char *words) {
    int count = 0;
    for (; (text = strstr(text, words)); text += strlen(words))
        count++;
    return count;
}

void http_assert_alive(struct http_fixture *f) {
    int fd = http_dial(f->address);
    assert_true(http_tell(fd, GET_HEALTH, strlen(GET_HEALTH)));
    http_hear(f, fd, strlen(OK_HEALTH));
    assert_string_equal(f->answer, OK_HEALTH);
    close(fd);
}

int count_fds(void) {
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}
