/* Tests of server/http, by sockets alone: what goes in and comes out is written here to the letter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/http.h"

enum { ANSWER_BYTES_MAX = 1 << 20, IDLE_S = 1, WAIT_MS = 10000, SERIES = 1000 };

#define GET_HEALTH  "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
#define GET_METRICS "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
#define OK_HEALTH                                                                                            \
    "HTTP/1.1 200 OK\r\nserver: timbre\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: "       \
    "3\r\n\r\nok\n"

struct fixture {
    struct metrics *metrics;
    struct http *http;
    char address[HTTP_ADDRESS_BYTES];
    _Atomic(const char *) why;
    char answer[ANSWER_BYTES_MAX];
};

static const char *why_not_ready(void *arg) {
    struct fixture *f = arg;
    return atomic_load(&f->why);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct status st;
    *state = f;
    log_init(LOG_OFF, false);
    if (!f || metrics_new(&f->metrics, &st))
        return -1;
    struct metrics_family *a = metrics_add(f->metrics, METRICS_COUNTER, "a_total", "A.", "x", NULL, 0);
    for (int i = 0; i < SERIES; i++) {
        char name[20];
        snprintf(name, sizeof name, "%d", i);
        metrics_count(metrics_get(a, name), i);
    }
    const struct http_options o = {.address = "127.0.0.1:0",
                                   .metrics = f->metrics,
                                   .why_not_ready = why_not_ready,
                                   .arg = f,
                                   .idle_s = IDLE_S};
    return http_new(&f->http, &o, f->address, &st);
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    http_del(f->http);
    metrics_del(f->metrics);
    free(f);
    return 0;
}

/* ---- a client ---- */

static int dial(const char *address) {
    const struct timeval wait = {.tv_sec = WAIT_MS / 1000};
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

/* False when the other side has closed. */
static bool tell(int fd, const void *data, size_t bytes) {
    for (size_t sent = 0; sent < bytes;) {
        ssize_t n = send(fd, (const char *)data + sent, bytes - sent, MSG_NOSIGNAL);
        if (n < 0)
            return false;
        sent += (size_t)n;
    }
    return true;
}

/* Reads `bytes`, or to the end when there are less; what came is in f->answer. */
static size_t hear(struct fixture *f, int fd, size_t bytes) {
    size_t got = 0;
    bytes = bytes < ANSWER_BYTES_MAX - 1 ? bytes : ANSWER_BYTES_MAX - 1;
    while (got < bytes) {
        ssize_t n = recv(fd, f->answer + got, bytes - got, 0);
        if (n < 0 && errno == EAGAIN)
            fail_msg("nothing came for %d ms", WAIT_MS);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    f->answer[got] = 0;
    return got;
}

/* Sends `request` and reads until the server closes. */
static const char *ask(struct fixture *f, const char *request) {
    int fd = dial(f->address);
    assert_true(tell(fd, request, strlen(request)));
    hear(f, fd, SIZE_MAX);
    close(fd);
    return f->answer;
}

static int count_words(const char *text, const char *words) {
    int count = 0;
    for (; (text = strstr(text, words)); text += strlen(words))
        count++;
    return count;
}

static void assert_alive(struct fixture *f) {
    int fd = dial(f->address);
    assert_true(tell(fd, GET_HEALTH, strlen(GET_HEALTH)));
    hear(f, fd, strlen(OK_HEALTH));
    assert_string_equal(f->answer, OK_HEALTH);
    close(fd);
}

static int count_fds(void) {
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

/* ---- answers ---- */

static void test_paths(void **state) {
    struct fixture *f = *state;
    assert_alive(f);
    struct text metrics;
    text_init_growing(&metrics);
    metrics_write(f->metrics, &metrics);
    char head[300];
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nserver: timbre\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"
             "content-length: %zu\r\n\r\n",
             metrics.length);
    ask(f, "GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_memory_equal(f->answer, head, strlen(head));
    assert_string_equal(f->answer + strlen(head), metrics.data);
    ask(f, "HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_string_equal(f->answer, head);
    text_free(&metrics);

    ask(f, "GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 200 "));
    atomic_store(&f->why, "draining");
    ask(f, "GET /readyz?a=b HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 503 "));
    assert_non_null(strstr(f->answer, "\r\n\r\ndraining\n"));
    ask(f, "HEAD /readyz HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(f->answer, "HTTP/1.1 503 "));
    assert_null(strstr(f->answer, "draining"));
    ask(f, "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"); /* alive all the same */
    assert_non_null(strstr(f->answer, "HTTP/1.1 200 "));

    static const char *const others[] = {"/", "/metrics/", "/metricsx", "/metric", "/Metrics", "/etc/passwd"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nConnection: close\r\n\r\n", others[i]);
        assert_non_null(strstr(ask(f, request), "HTTP/1.1 404 "));
    }
}

static void test_methods(void **state) {
    struct fixture *f = *state;
    static const char *const known[] = {"POST", "PUT", "DELETE", "PATCH", "OPTIONS"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", known[i]);
        ask(f, request);
        assert_non_null(strstr(f->answer, "HTTP/1.1 405 "));
        assert_non_null(strstr(f->answer, "\r\nallow: GET, HEAD\r\n"));
    }
    static const char *const unknown[] = {"TRACE", "BREW", "GETT", "\x01", "G\xff"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\n\r\n", unknown[i]);
        ask(f, request);
        assert_null(strstr(f->answer, " 200 "));
    }
    assert_alive(f);
}

/* A request after a body that was not read is never taken for one of its own. */
static void test_bodies(void **state) {
    struct fixture *f = *state;
    char request[300];
    snprintf(request, sizeof request, "GET /nothing HTTP/1.1\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(GET_HEALTH), GET_HEALTH);
    ask(f, request);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);
    ask(f, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" GET_HEALTH);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);
    ask(f, "GET /healthz HTTP/1.1\r\nContent-Length: -5\r\n\r\n" GET_HEALTH);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 "), 1);

    const size_t bytes = 3000000;
    char *body = calloc(1, bytes);
    int fd = dial(f->address);
    snprintf(request, sizeof request, "POST / HTTP/1.1\r\nContent-Length: %zu\r\n\r\n", bytes);
    assert_true(tell(fd, request, strlen(request)));
    tell(fd, body, bytes);
    hear(f, fd, SIZE_MAX);
    close(fd);
    free(body);
    assert_alive(f);
}

static void test_upgrades(void **state) {
    struct fixture *f = *state;
    ask(f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    assert_non_null(strstr(f->answer, " 501 "));
    ask(f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
           "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n");
    assert_non_null(strstr(f->answer, " 501 "));
    ask(f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_null(strstr(f->answer, " 200 "));
    assert_alive(f);
}

static void test_versions(void **state) {
    struct fixture *f = *state;
    ask(f, "GET /healthz HTTP/1.0\r\n\r\n");
    assert_non_null(strstr(f->answer, " 200 OK\r\n"));
    ask(f, "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_non_null(strstr(f->answer, "\r\nconnection: close\r\n"));
}

/* ---- how requests are cut ---- */

static void test_pieces(void **state) {
    struct fixture *f = *state;
    int fd = dial(f->address);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < strlen(GET_HEALTH); i++) {
            assert_true(tell(fd, &GET_HEALTH[i], 1));
            if (i % 8 == 0)
                usleep(2000);
        }
        hear(f, fd, strlen(OK_HEALTH));
        assert_string_equal(f->answer, OK_HEALTH);
    }
    close(fd);
}

static void test_pipelined(void **state) {
    struct fixture *f = *state;
    enum { REQUESTS = 200 };
    struct text all;
    text_init_growing(&all);
    for (int i = 0; i < REQUESTS; i++)
        text_put(&all, i % 10 ? GET_HEALTH : GET_METRICS);
    text_put(&all, "GET /last HTTP/1.1\r\nConnection: close\r\n\r\n");
    ask(f, all.data);
    text_free(&all);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 200 OK\r\n"), REQUESTS);
    assert_int_equal(count_words(f->answer, "\na_total{x=\"999\"} 999\n"), REQUESTS / 10);
    assert_int_equal(count_words(f->answer, "HTTP/1.1 404 "), 1);
}

/* One small answer does not wait for the reader's system to acknowledge its head. */
static void test_kept_connection(void **state) {
    struct fixture *f = *state;
    enum { REQUESTS = 200 };
    int fd = dial(f->address);
    const int64_t begin_ns = clock_now_ns();
    for (int i = 0; i < REQUESTS; i++) {
        assert_true(tell(fd, GET_HEALTH, strlen(GET_HEALTH)));
        hear(f, fd, strlen(OK_HEALTH));
        assert_string_equal(f->answer, OK_HEALTH);
    }
    assert_true(clock_elapsed_ms(begin_ns) < REQUESTS * 20);
    close(fd);
}

static void test_garbage(void **state) {
    struct fixture *f = *state;
    unsigned seed = 1;
    char junk[5000];
    for (int round = 0; round < 200; round++) {
        int fd = dial(f->address);
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (char)rand_r(&seed);
        if (round % 2) /* it begins well */
            memcpy(junk, GET_METRICS, strlen(GET_METRICS) - (size_t)round % 30);
        tell(fd, junk, sizeof junk - (size_t)round * 20);
        shutdown(fd, SHUT_WR);
        hear(f, fd, SIZE_MAX);
        close(fd);
    }
    assert_alive(f);
}

static void test_long_headers(void **state) {
    struct fixture *f = *state;
    static const char *const heads[] = {
        "GET /", "GET /healthz HTTP/1.1\r\nCookie: ", "GET /healthz HTTP/1.1\r\nX-A: "};
    char junk[65536];
    memset(junk, 'a', sizeof junk);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        int fd = dial(f->address);
        assert_true(tell(fd, heads[i], strlen(heads[i])));
        tell(fd, junk, sizeof junk);
        hear(f, fd, SIZE_MAX);
        assert_null(strstr(f->answer, " 200 "));
        close(fd);
    }
    assert_alive(f);
}

/* ---- peers that behave badly ---- */

static void set_small_window(int fd) {
    const int bytes = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

static void test_slow_reader(void **state) {
    struct fixture *f = *state;
    enum { REQUESTS = 10 };
    int fd = dial(f->address);
    set_small_window(fd);
    for (int i = 0; i < REQUESTS; i++)
        assert_true(tell(fd, GET_METRICS, strlen(GET_METRICS)));
    const char *last = "GET /last HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_true(tell(fd, last, strlen(last)));
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
    struct fixture *f = *state;
    enum { PEERS = 100 };
    const int fds_before = count_fds();
    int peers[PEERS];
    for (int i = 0; i < PEERS; i++) {
        peers[i] = dial(f->address);
        set_small_window(peers[i]);
        for (int k = 0; k < 20; k++)
            tell(peers[i], GET_METRICS, strlen(GET_METRICS));
    }
    assert_alive(f);
    for (int i = 0; i < PEERS; i += 2) {
        const struct linger reset = {.l_onoff = i % 4 == 0};
        setsockopt(peers[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(peers[i]);
    }
    assert_alive(f);
    const int64_t begin_ns = clock_now_ns();
    while (count_fds() > fds_before + PEERS / 2 && clock_elapsed_ms(begin_ns) < WAIT_MS)
        usleep(20000); /* the server's ends of all, of which half still do not read */
    assert_int_equal(count_fds(), fds_before + PEERS / 2);
    for (int i = 1; i < PEERS; i += 2)
        close(peers[i]);
    assert_alive(f);
}

/* ms until the server closes a connection on which `begin` was sent and then, every 100 ms, `drip`. */
static double measure_patience_ms(struct fixture *f, const char *begin, const char *drip) {
    int fd = dial(f->address);
    const int64_t begin_ns = clock_now_ns();
    char heard[1000];
    assert_true(tell(fd, begin, strlen(begin)));
    while (clock_elapsed_ms(begin_ns) < WAIT_MS) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) && recv(fd, heard, sizeof heard, 0) <= 0)
            break;
        if (*drip && !tell(fd, drip, strlen(drip)))
            break;
    }
    close(fd);
    return clock_elapsed_ms(begin_ns);
}

static void test_idle(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *begin, *drip;
    } cases[] = {{"", ""},
                 {"GET /met", ""},
                 {GET_HEALTH, ""},
                 {"GET /healthz HTTP/1.1\r\n", "X-A: b\r\n"},
                 {"CONNECT x:80 HTTP/1.1\r\n\r\n", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const double ms = measure_patience_ms(f, cases[i].begin, cases[i].drip);
        if (ms < 500 || ms > 4000)
            fail_msg("case %zu: %g ms", i, ms);
    }
}

/* More connections than there are places: those that ask for nothing make room for one that does. */
static void test_many_connections(void **state) {
    struct fixture *f = *state;
    enum { PEERS = 1000 };
    struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
    const int fds_before = count_fds();
    int peers[PEERS], open = 0;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < PEERS; i++)
        peers[i] = dial(f->address);
    usleep(100000);
    for (int i = 0; i < PEERS; i++) {
        struct pollfd p = {.fd = peers[i], .events = POLLIN};
        open += poll(&p, 1, 0) == 0; /* else it was closed */
    }
    assert_true(open <= HTTP_CONNECTIONS_MAX);
    assert_true(open >= HTTP_CONNECTIONS_MAX / 2);
    for (int i = 0; i < PEERS; i++)
        close(peers[i]);
    const int64_t begin_ns = clock_now_ns();
    while (count_fds() > fds_before && clock_elapsed_ms(begin_ns) < WAIT_MS)
        usleep(10000);
    assert_int_equal(count_fds(), fds_before);
    assert_alive(f);
}

static void test_full_house(void **state) {
    (void)state;
    struct fixture *f = calloc(1, sizeof *f);
    struct status st;
    assert_non_null(f);
    assert_int_equal(metrics_new(&f->metrics, &st), 0);
    const struct http_options o = {.address = "127.0.0.1:0", .metrics = f->metrics}; /* patient */
    assert_int_equal(http_new(&f->http, &o, f->address, &st), 0);
    int peers[HTTP_CONNECTIONS_MAX];
    for (int i = 0; i < HTTP_CONNECTIONS_MAX; i++)
        peers[i] = dial(f->address);
    usleep(1300000);
    for (int i = 0; i < 10; i++)
        assert_alive(f);
    /* The longest idle one left, the newest stays. */
    struct pollfd first = {.fd = peers[0], .events = POLLIN};
    struct pollfd last = {.fd = peers[HTTP_CONNECTIONS_MAX - 1], .events = POLLIN};
    assert_int_equal(poll(&first, 1, 1000), 1);
    assert_int_equal(poll(&last, 1, 0), 0);
    for (int i = 0; i < HTTP_CONNECTIONS_MAX; i++)
        close(peers[i]);
    const int64_t begin_ns = clock_now_ns();
    http_del(f->http);
    assert_true(clock_elapsed_ms(begin_ns) < 2000);
    metrics_del(f->metrics);
    free(f);
}

/* ---- addresses and life ---- */

static void test_addresses(void **state) {
    struct fixture *f = *state;
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
        assert_alive(f);
        if (i == 3) { /* this one takes IPv4 too */
            snprintf(f->address, sizeof f->address, "127.0.0.1%s", strrchr(bound, ':'));
            assert_alive(f);
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
    struct fixture *f = *state;
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
    assert_alive(f);
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

static void test_stop_under_load(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        void *s;
        assert_int_equal(set_up(&s), 0);
        struct fixture *f = s;
        int peers[20];
        for (int i = 0; i < 20; i++) {
            peers[i] = dial(f->address);
            set_small_window(peers[i]);
            for (int k = 0; k < 5; k++)
                tell(peers[i], GET_METRICS, strlen(GET_METRICS));
        }
        const int64_t begin_ns = clock_now_ns();
        tear_down(&s);
        assert_true(clock_elapsed_ms(begin_ns) < 1000);
        for (int i = 0; i < 20; i++)
            close(peers[i]);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_paths),
        TEST(test_methods),
        TEST(test_bodies),
        TEST(test_upgrades),
        TEST(test_versions),
        TEST(test_pieces),
        TEST(test_pipelined),
        TEST(test_kept_connection),
        TEST(test_garbage),
        TEST(test_long_headers),
        TEST(test_slow_reader),
        TEST(test_vanishing),
        TEST(test_idle),
        TEST(test_many_connections),
        cmocka_unit_test(test_full_house),
        TEST(test_addresses),
        TEST(test_signals),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_stop_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
