/* Tests of server/http with peers that behave badly, and with many of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/server/http_client.h"

static void test_garbage(void **state) {
    struct http_fixture *f = *state;
    unsigned seed = 1;
    char junk[5000];
    for (int round = 0; round < 200; round++) {
        int fd = http_dial(f->address);
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (char)rand_r(&seed);
        if (round % 2) /* it begins well */
            memcpy(junk, GET_METRICS, strlen(GET_METRICS) - (size_t)round % 30);
        http_tell(fd, junk, sizeof junk - (size_t)round * 20);
        shutdown(fd, SHUT_WR);
        http_hear(f, fd, SIZE_MAX);
        close(fd);
    }
    http_assert_alive(f);
}

static void test_long_headers(void **state) {
    struct http_fixture *f = *state;
    static const char *const heads[] = {
        "GET /", "GET /healthz HTTP/1.1\r\nCookie: ", "GET /healthz HTTP/1.1\r\nX-A: "};
    char junk[65536];
    memset(junk, 'a', sizeof junk);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        int fd = http_dial(f->address);
        assert_true(http_tell(fd, heads[i], strlen(heads[i])));
        http_tell(fd, junk, sizeof junk);
        http_hear(f, fd, SIZE_MAX);
        assert_null(strstr(f->answer, " 200 "));
        close(fd);
    }
    http_assert_alive(f);
}

static void set_small_window(int fd) {
    const int bytes = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

static void test_slow_reader(void **state) {
    struct http_fixture *f = *state;
    enum { REQUESTS = 10 };
    int fd = http_dial(f->address);
    set_small_window(fd);
    for (int i = 0; i < REQUESTS; i++)
        assert_true(http_tell(fd, GET_METRICS, strlen(GET_METRICS)));
    const char *last = "GET /last HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_true(http_tell(fd, last, strlen(last)));
    size_t got = 0;
    for (ssize_t n = 1; n > 0; got += (size_t)n) {
        n = recv(fd, f->answer + got, 1500, 0);
        assert_true(n >= 0);
        usleep(500);
    }
    f->answer[got] = 0;
    assert_int_equal(count_words(f->answer, "\na_total{x=\"999\"} 999\n"), REQUESTS);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 404 "), 1);
    close(fd);
}

/* Those who do not read cost others nothing, and are gone after a while; so are those who leave in the
 * middle. */
static void test_vanishing(void **state) {
    struct http_fixture *f = *state;
    enum { PEERS = 100 };
    const int fds_before = count_fds();
    int peers[PEERS];
    for (int i = 0; i < PEERS; i++) {
        peers[i] = http_dial(f->address);
        set_small_window(peers[i]);
        for (int k = 0; k < 20; k++)
            http_tell(peers[i], GET_METRICS, strlen(GET_METRICS));
    }
    http_assert_alive(f);
    for (int i = 0; i < PEERS; i += 2) {
        const struct linger reset = {.l_onoff = i % 4 == 0};
        setsockopt(peers[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(peers[i]);
    }
    http_assert_alive(f);
    const int64_t begin_ns = clock_now_ns();
    while (count_fds() > fds_before + PEERS / 2 && clock_elapsed_ms(begin_ns) < HTTP_WAIT_MS)
        usleep(20000); /* the server's ends of all, of which half still do not read */
    assert_int_equal(count_fds(), fds_before + PEERS / 2);
    for (int i = 1; i < PEERS; i += 2)
        close(peers[i]);
    http_assert_alive(f);
}

/* ms until the server closes a connection on which `begin` was sent and then, every 100 ms, `drip`. */
static double measure_patience_ms(struct http_fixture *f, const char *begin, const char *drip) {
    int fd = http_dial(f->address);
    const int64_t begin_ns = clock_now_ns();
    char heard[1000];
    assert_true(http_tell(fd, begin, strlen(begin)));
    while (clock_elapsed_ms(begin_ns) < HTTP_WAIT_MS) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) && recv(fd, heard, sizeof heard, 0) <= 0)
            break;
        if (*drip && !http_tell(fd, drip, strlen(drip)))
            break;
    }
    close(fd);
    return clock_elapsed_ms(begin_ns);
}

static void test_idle(void **state) {
    struct http_fixture *f = *state;
    static const struct {
        const char *begin, *drip;
    } cases[] = {{"", ""}, {"GET /met", ""}, {GET_HEALTH, ""}, {"GET /healthz HTTP/1.1\r\n", "X-A: b\r\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const double ms = measure_patience_ms(f, cases[i].begin, cases[i].drip);
        if (ms < 500 || ms > 4000)
            fail_msg("case %zu: %g ms", i, ms);
    }
}

static int count_open(const int *peers, int count) {
    int open = 0;
    for (int i = 0; i < count; i++) {
        struct pollfd p = {.fd = peers[i], .events = POLLIN};
        open += poll(&p, 1, 0) == 0; /* else there is an end to read */
    }
    return open;
}

/* More connections than there are places: those over the limit are closed at once, and later those that have
 * asked for nothing make room for one that does. */
static void test_many_connections(void **state) {
    (void)state;
    enum { PEERS = 1000 };
    struct http_fixture *f;
    const struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
    int peers[PEERS];
    setrlimit(RLIMIT_NOFILE, &limit);
    const int fds_before = count_fds();
    assert_int_equal(http_set_up(&f, 0), 0);
    const int fds_listening = count_fds();

    int64_t begin_ns = clock_now_ns();
    for (int i = 0; i < PEERS; i++)
        peers[i] = http_dial(f->address);
    const double dialled_ms = clock_elapsed_ms(begin_ns);
    begin_ns = clock_now_ns();
    while (count_open(peers, PEERS) > HTTP_CONNECTIONS_MAX && clock_elapsed_ms(begin_ns) < HTTP_WAIT_MS)
        usleep(10000);
    assert_int_equal(count_open(peers, PEERS), HTTP_CONNECTIONS_MAX);
    if (dialled_ms < 500) /* the first ones were not idle for long when the last one came */
        assert_int_equal(count_open(peers, HTTP_CONNECTIONS_MAX), HTTP_CONNECTIONS_MAX);
    usleep(1200000);
    for (int i = 0; i < 10; i++)
        http_assert_alive(f);
    assert_true(count_open(peers, PEERS) < HTTP_CONNECTIONS_MAX);
    assert_true(count_open(peers, PEERS) >= HTTP_CONNECTIONS_MAX - 10);

    for (int i = 0; i < PEERS; i += 2)
        close(peers[i]);
    for (int i = 1; i < PEERS; i += 2)
        shutdown(peers[i], SHUT_WR);
    begin_ns = clock_now_ns();
    while (count_fds() > fds_listening + PEERS / 2 && clock_elapsed_ms(begin_ns) < HTTP_WAIT_MS)
        usleep(10000);
    assert_int_equal(count_fds(), fds_listening + PEERS / 2);
    for (int i = 1; i < PEERS; i += 2)
        close(peers[i]);
    http_tear_down(f);
    assert_int_equal(count_fds(), fds_before);
}

static void test_stop_under_load(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct http_fixture *f;
        assert_int_equal(http_set_up(&f, 0), 0);
        int peers[20];
        for (int i = 0; i < 20; i++) {
            peers[i] = http_dial(f->address);
            set_small_window(peers[i]);
            for (int k = 0; k < 5; k++)
                http_tell(peers[i], GET_METRICS, strlen(GET_METRICS));
        }
        const int64_t begin_ns = clock_now_ns();
        http_tear_down(f);
        assert_true(clock_elapsed_ms(begin_ns) < 1000);
        for (int i = 0; i < 20; i++)
            close(peers[i]);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, http_set_up_impatient, http_tear_down_state)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_garbage),
        TEST(test_long_headers),
        TEST(test_slow_reader),
        TEST(test_vanishing),
        TEST(test_idle),
        cmocka_unit_test(test_many_connections),
        cmocka_unit_test(test_stop_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
