/* Tests of server/http: answers to the letter, however requests are cut; addresses, signals, files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/server/http_client.h"

/* ---- answers ---- */

static void test_paths(void **state) {
    struct http_fixture *f = *state;
    http_assert_alive(f);
    struct text metrics;
    text_init_growing(&metrics);
    metrics_write(f->metrics, &metrics);
    char head[300];
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nserver: timbre\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"
             "content-length: %zu\r\n\r\n",
             metrics.length);
    http_ask(f, "GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_memory_equal(f->answer, head, strlen(head));
    assert_string_equal(f->answer + strlen(head), metrics.data);
    http_ask(f, "HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_string_equal(f->answer, head);
    text_free(&metrics);

    http_ask(f, "GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 200 "));
    atomic_store(&f->why, "draining");
    http_ask(f, "GET /readyz?a=b HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 503 "));
    assert_non_null(strstr(f->answer, "\r\n\r\ndraining\n"));
    http_ask(f, "HEAD /readyz HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 503 "));
    assert_null(strstr(f->answer, "draining"));
    http_ask(f, "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"); /* alive all the same */
    assert_non_null(strstr(f->answer, "HTTP/1.1 200 "));

    static const char *const others[] = {"/", "/metrics/", "/metricsx", "/metric", "/Metrics", "/etc/passwd"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nConnection: close\r\n\r\n", others[i]);
        assert_non_null(strstr(http_ask(f, request), "HTTP/1.1 404 "));
    }
}

static void test_methods(void **state) {
    struct http_fixture *f = *state;
    static const char *const known[] = {"POST", "PUT", "DELETE", "PATCH", "OPTIONS"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", known[i]);
        http_ask(f, request);
        assert_non_null(strstr(f->answer, "HTTP/1.1 405 "));
        assert_non_null(strstr(f->answer, "\r\nallow: GET, HEAD\r\n"));
    }
    static const char *const unknown[] = {"TRACE", "BREW", "CONNECT", "GETT", "\x01", "G\xff"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\n\r\n", unknown[i]);
        http_ask(f, request);
        assert_null(strstr(f->answer, " 200 "));
    }
    http_assert_alive(f);
}

/* A request after a body that was not read is never taken for one of its own. */
static void test_bodies(void **state) {
    struct http_fixture *f = *state;
    char request[300];
    snprintf(request, sizeof request, "GET /nothing HTTP/1.1\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(GET_HEALTH), GET_HEALTH);
    http_ask(f, request);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);
    assert_non_null(strstr(f->answer, "\r\nconnection: close\r\n"));
    http_ask(f, "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello" GET_HEALTH);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);
    http_ask(f, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" GET_HEALTH);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);
    http_ask(f, "GET /healthz HTTP/1.1\r\nContent-Length: -5\r\n\r\n" GET_HEALTH);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);

    const size_t bytes = 3000000;
    char *body = calloc(1, bytes);
    int fd = http_dial(f->address);
    snprintf(request, sizeof request, "POST / HTTP/1.1\r\nContent-Length: %zu\r\n\r\n", bytes);
    assert_true(http_tell(fd, request, strlen(request)));
    http_tell(fd, body, bytes);
    http_hear(f, fd, SIZE_MAX);
    close(fd);
    free(body);
    http_assert_alive(f);
}

static void test_upgrades(void **state) {
    struct http_fixture *f = *state;
    http_ask(f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    assert_non_null(strstr(f->answer, " 501 "));
    http_ask(f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n");
    assert_non_null(strstr(f->answer, " 501 "));
    http_ask(f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_null(strstr(f->answer, " 200 "));
    http_assert_alive(f);
}

static void test_versions(void **state) {
    struct http_fixture *f = *state;
    http_ask(f, "GET /healthz HTTP/1.0\r\n\r\n");
    assert_non_null(strstr(f->answer, " 200 OK\r\n"));
    http_ask(f, "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" GET_HEALTH);
    assert_non_null(strstr(f->answer, "\r\nconnection: close\r\n"));
    assert_int_equal(count_words(f->answer, "\r\n\r\nok\n"), 1);
}

/* ---- how requests are cut ---- */

static void test_pieces(void **state) {
    struct http_fixture *f = *state;
    int fd = http_dial(f->address);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < strlen(GET_HEALTH); i++) {
            assert_true(http_tell(fd, &GET_HEALTH[i], 1));
            if (i % 8 == 0)
                usleep(2000);
        }
        http_hear(f, fd, strlen(OK_HEALTH));
        assert_string_equal(f->answer, OK_HEALTH);
    }
    close(fd);
}

static void test_pipelined(void **state) {
    struct http_fixture *f = *state;
    enum { REQUESTS = 200 };
    struct text all;
    text_init_growing(&all);
    for (int i = 0; i < REQUESTS; i++)
        text_put(&all, i % 10 ? GET_HEALTH : GET_METRICS);
    text_put(&all, "GET /last HTTP/1.1\r\nConnection: close\r\n\r\n");
    http_ask(f, all.data);
    text_free(&all);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 200 OK\r\n"), REQUESTS);
    assert_int_equal(count_words(f->answer, "\na_total{x=\"999\"} 999\n"), REQUESTS / 10);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 404 "), 1);
}

/* One small answer does not wait for the reader's system to acknowledge its head. */
static void test_kept_connection(void **state) {
    struct http_fixture *f = *state;
    enum { REQUESTS = 200 };
    int fd = http_dial(f->address);
    const int64_t begin_ns = clock_now_ns();
    for (int i = 0; i < REQUESTS; i++) {
        assert_true(http_tell(fd, GET_HEALTH, strlen(GET_HEALTH)));
        http_hear(f, fd, strlen(OK_HEALTH));
        assert_string_equal(f->answer, OK_HEALTH);
    }
    assert_true(clock_elapsed_ms(begin_ns) < REQUESTS * 20);
    close(fd);
}

/* ---- addresses and life ---- */

static void test_addresses(void **state) {
    struct http_fixture *f = *state;
    struct http *h;
    struct status st;
    char bound[HTTP_ADDRESS_BYTES];
    static const char *const bad[] = {
        "",       "127.0.0.1",       "127.0.0.1:",   "127.0.0.1:x",     "127.0.0.1:-1",
        ":8080",  "127.0.0.1:65536", "::1:0",        "[::1]",           "[]:0",
        "[::1]0", "127.0.0.1:0x1",   "127.0.0.1: 1", "127.0.0.1:000001"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct http_options o = {.address = bad[i]};
        if (http_new(&h, &o, bound, &st) != -1 || st.code != STATUS_INVALID_ARGUMENT || h)
            fail_msg("\"%s\" was taken", bad[i]);
    }
    char long_host[2 * HTTP_ADDRESS_BYTES];
    memset(long_host, 'a', sizeof long_host);
    strcpy(long_host + sizeof long_host - 5, ":123");
    struct http_options o = {.address = long_host};
    assert_int_equal(http_new(&h, &o, bound, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);

    o.address = f->address; /* taken by this test's own server */
    assert_int_equal(http_new(&h, &o, bound, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);
    assert_non_null(strstr(st.message, f->address));
    assert_non_null(strstr(st.message, strerror(EADDRINUSE)));
    o.address = "256.0.0.1:0";
    assert_int_equal(http_new(&h, &o, bound, &st), -1);
    assert_int_equal(st.code, STATUS_UNAVAILABLE);

    static const struct {
        const char *address, *bound;
    } good[] = {
        {"127.0.0.1:0", "127.0.0.1:"}, {"0.0.0.0:0", "0.0.0.0:"}, {"[::1]:0", "[::1]:"}, {"[::]:0", "[::]:"}};
    const int v6 = socket(AF_INET6, SOCK_STREAM, 0);
    for (size_t i = 0; i < sizeof good / sizeof *good && (i < 2 || v6 >= 0); i++) {
        o = (struct http_options){.address = good[i].address};
        assert_int_equal(http_new(&h, &o, bound, &st), 0);
        assert_memory_equal(bound, good[i].bound, strlen(good[i].bound));
        assert_true(atoi(strrchr(bound, ':') + 1) > 0);
        char kept[HTTP_ADDRESS_BYTES];
        memcpy(kept, f->address, sizeof kept);
        memcpy(f->address, bound, sizeof bound);
        http_assert_alive(f);
        if (i == 3) { /* this one takes IPv4 too */
            snprintf(f->address, sizeof f->address, "127.0.0.1%s", strrchr(bound, ':'));
            http_assert_alive(f);
        }
        memcpy(f->address, kept, sizeof kept);
        http_del(h);
    }
    close(v6);
    http_del(NULL);
}

static atomic_int signals;

static void count_signal(int signal) {
    (void)signal;
    atomic_fetch_add(&signals, 1);
}

/* Handlers stay what they were, and the thread takes no signal from those who wait for it. */
static void test_signals(void **state) {
    struct http_fixture *f = *state;
    struct sigaction mine = {.sa_handler = count_signal}, before, is;
    static const int numbers[] = {SIGPIPE, SIGTERM, SIGINT, SIGHUP};
    for (int i = 0; i < 4; i++) {
        struct http *h;
        struct status st;
        char bound[HTTP_ADDRESS_BYTES];
        const struct http_options o = {.address = "127.0.0.1:0"};
        sigaction(numbers[i], &mine, &before);
        assert_int_equal(http_new(&h, &o, bound, &st), 0);
        sigaction(numbers[i], NULL, &is);
        assert_true(is.sa_handler == count_signal);
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, numbers[i]);
        pthread_sigmask(SIG_BLOCK, &one, NULL);
        kill(getpid(), numbers[i]);
        usleep(20000);
        assert_int_equal(atomic_load(&signals), i);
        pthread_sigmask(SIG_UNBLOCK, &one, NULL);
        assert_int_equal(atomic_load(&signals), i + 1);
        http_del(h);
        sigaction(numbers[i], &before, NULL);
    }
    http_assert_alive(f);
}

/* Nothing that it opens goes to children. */
static void test_files(void **state) {
    (void)state;
    struct http *h;
    struct status st;
    char bound[HTTP_ADDRESS_BYTES];
    bool was_open[64];
    for (int fd = 0; fd < 64; fd++)
        was_open[fd] = fcntl(fd, F_GETFD) >= 0;
    const int before = count_fds();
    const struct http_options o = {.address = "127.0.0.1:0"};
    assert_int_equal(http_new(&h, &o, bound, &st), 0);
    assert_true(count_fds() > before);
    for (int fd = 0; fd < 64; fd++)
        if (!was_open[fd] && fcntl(fd, F_GETFD) >= 0)
            assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    http_del(h);
    assert_int_equal(count_fds(), before);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, http_set_up_impatient, http_tear_down_state)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_paths),     TEST(test_methods),           TEST(test_bodies),
        TEST(test_upgrades),  TEST(test_versions),          TEST(test_pieces),
        TEST(test_pipelined), TEST(test_kept_connection),   TEST(test_addresses),
        TEST(test_signals),   cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
