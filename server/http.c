/* The HTTP address. One thread runs libwebsockets' loop; the listening socket is made here, so that its
 * address, its flags and who is let in when all places are taken are decided here too. */
#include "server/http.h"

#include <libwebsockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"

enum {
    BACKLOG = 1024,
    HEADER_BYTES_MAX = 4096, /* of one request, all its headers */
    PIECE_BYTES_MAX = 16384, /* of a body, written at once */
    HEAD_BYTES_MAX = 1024,   /* of an answer */
    ACCEPTS_MAX = 64,        /* before connections that are open get their turn */
    EVICT_IDLE_MS = 1000,
    NO_FDS_PAUSE_US = 20000,
};

/* A place for one connection. */
struct connection {
    struct lws *wsi;   /* NULL: free */
    int64_t active_ns; /* when it last came, asked or took a piece */
    struct text body;  /* of the answer; LWS_PRE bytes of room before it */
    size_t sent;
    bool answering, closes;
};

struct http {
    struct http_options options;
    struct lws_context *context;
    struct lws_vhost *vhost;
    int listener; /* libwebsockets closes it, once there is a vhost */
    pthread_t thread;
    atomic_bool stop;
    struct connection connections[HTTP_CONNECTIONS_MAX]; /* the thread's own */
};

/* ---- answers ---- */

struct answer {
    unsigned code;
    const char *type;
};

static const char plain[] = "text/plain; charset=utf-8";

/* The path's own answer; the body goes to `out`. */
static struct answer make_answer(struct http *h, const char *path, struct text *out) {
    if (strcmp(path, "/metrics") == 0) {
        metrics_write(h->options.metrics, out);
        return (struct answer){200, "text/plain; version=0.0.4; charset=utf-8"};
    }
    if (strcmp(path, "/healthz") == 0) {
        text_put(out, "ok\n");
        return (struct answer){200, plain};
    }
    if (strcmp(path, "/readyz") == 0) {
        const char *why = h->options.why_not_ready ? h->options.why_not_ready(h->options.arg) : NULL;
        text_printf(out, "%s\n", why ? why : "ok");
        return (struct answer){why ? 503 : 200, plain};
    }
    text_put(out, "not found: there are /metrics, /healthz and /readyz\n");
    return (struct answer){404, plain};
}

static void forget_answer(struct connection *c) {
    text_free(&c->body);
    c->sent = 0;
    c->answering = false;
}

static bool has_header(struct lws *wsi, enum lws_token_indexes token) {
    return lws_hdr_total_length(wsi, token) > 0;
}

static int write_head(struct lws *wsi, struct connection *c, struct answer a, size_t body_bytes) {
    unsigned char head[LWS_PRE + HEAD_BYTES_MAX], *p = head + LWS_PRE, *end = head + sizeof head - 1;
    static const char allow[] = "GET, HEAD", close_word[] = "close";
    if (lws_add_http_common_headers(wsi, a.code, a.type, body_bytes, &p, end))
        return -1;
    if (a.code == 405 && lws_add_http_header_by_token(wsi, WSI_TOKEN_HTTP_ALLOW, (const unsigned char *)allow,
                                                      sizeof allow - 1, &p, end))
        return -1;
    if (c->closes &&
        lws_add_http_header_by_token(wsi, WSI_TOKEN_CONNECTION, (const unsigned char *)close_word,
                                     sizeof close_word - 1, &p, end))
        return -1;
    return lws_finalize_write_http_header(wsi, head + LWS_PRE, &p, end);
}

/* HTTP/1.1 keeps a connection unless told otherwise. An older one is closed after its answer, even if it asks
 * not to be: it would have to be told. */
static bool is_current_version(struct lws *wsi) {
    char version[16];
    return lws_hdr_copy(wsi, version, sizeof version, WSI_TOKEN_HTTP) > 0 && strcmp(version, "HTTP/1.1") == 0;
}

/* A request's headers are complete: the head of the answer goes out, the body follows when the socket takes
 * it. */
static int answer(struct http *h, struct lws *wsi, struct connection *c, const char *path) {
    const bool is_head = has_header(wsi, WSI_TOKEN_HEAD_URI), is_get = has_header(wsi, WSI_TOKEN_GET_URI);
    const bool has_body =
        has_header(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) || has_header(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING);
    struct answer a = {405, plain};
    char room[LWS_PRE + 1];
    forget_answer(c);
    c->active_ns = clock_now_ns();
    /* What a body holds is not read, so nothing after it can be. */
    c->closes = has_body || !(is_get || is_head) || !is_current_version(wsi);
    memset(room, ' ', LWS_PRE);
    room[LWS_PRE] = 0;
    text_init_growing(&c->body);
    text_put(&c->body, room);
    if (is_get || is_head)
        a = make_answer(h, path, &c->body);
    else
        text_put(&c->body, "only GET and HEAD\n");
    if (c->body.failed)
        return -1;
    const size_t bytes = c->body.length - LWS_PRE;
    if (write_head(wsi, c, a, bytes))
        return -1;
    c->sent = is_head ? bytes : 0;
    c->answering = true;
    lws_callback_on_writable(wsi);
    return 0;
}

/* A wish for websockets or HTTP/2, of which there is neither. */
static int refuse_upgrade(struct lws *wsi, struct connection *c) {
    static const char words[] = "no upgrades: ask in HTTP/1.1\n";
    unsigned char body[LWS_PRE + sizeof words];
    memcpy(body + LWS_PRE, words, sizeof words);
    c->closes = true;
    if (write_head(wsi, c, (struct answer){501, plain}, sizeof words - 1) ||
        lws_write(wsi, body + LWS_PRE, sizeof words - 1, LWS_WRITE_HTTP_FINAL) < 0)
        return -1;
    return 1; /* answered */
}

/* The next piece of a body; libwebsockets keeps what the socket did not take, and calls again when it has
 * gone. */
static int write_piece(struct lws *wsi, struct connection *c) {
    const size_t left = c->body.length - LWS_PRE - c->sent;
    const size_t bytes = left < PIECE_BYTES_MAX ? left : PIECE_BYTES_MAX;
    c->active_ns = clock_now_ns();
    if (bytes && lws_write(wsi, (unsigned char *)c->body.data + LWS_PRE + c->sent, bytes,
                           bytes == left ? LWS_WRITE_HTTP_FINAL : LWS_WRITE_HTTP) < 0)
        return -1;
    c->sent += bytes;
    if (bytes < left) {
        lws_callback_on_writable(wsi);
        return 0;
    }
    forget_answer(c);
    return lws_http_transaction_completed(wsi) || c->closes ? -1 : 0;
}

/* ---- connections ---- */

/* A free place. When there is none, the connection that has waited longest without asking makes room, if it
 * has for a while. NULL: nobody can go. */
static struct connection *find_place(struct http *h) {
    struct connection *oldest = NULL;
    for (int i = 0; i < HTTP_CONNECTIONS_MAX; i++) {
        struct connection *c = &h->connections[i];
        if (!c->wsi)
            return c;
        if (!c->answering && (!oldest || c->active_ns < oldest->active_ns))
            oldest = c;
    }
    if (!oldest || clock_elapsed_ms(oldest->active_ns) < EVICT_IDLE_MS)
        return NULL;
    lws_set_timeout(oldest->wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_SYNC);
    return oldest->wsi ? NULL : oldest;
}

static void accept_connections(struct http *h) {
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        int fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                usleep(NO_FDS_PAUSE_US); /* it stays readable: do not spin */
            return;
        }
        struct connection *c = find_place(h);
        if (!c) {
            close(fd);
            continue;
        }
        c->active_ns = clock_now_ns();
        lws_adopt_desc_t adopt = {
            .vh = h->vhost, .type = LWS_ADOPT_HTTP | LWS_ADOPT_SOCKET, .fd.sockfd = fd, .opaque = c};
        c->wsi = lws_adopt_descriptor_vhost_via_info(&adopt);
    }
}

static int handle_listener(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                           size_t len) {
    (void)user, (void)in, (void)len;
    if (reason == LWS_CALLBACK_RAW_RX_FILE)
        accept_connections(lws_context_user(lws_get_context(wsi)));
    return 0;
}

static int handle_http(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len) {
    (void)user, (void)len;
    struct connection *c = wsi ? lws_get_opaque_user_data(wsi) : NULL;
    if (!c) /* the context's or the listener's */
        return 0;
    switch (reason) {
    case LWS_CALLBACK_HTTP:
        return answer(lws_context_user(lws_get_context(wsi)), wsi, c, in);
    case LWS_CALLBACK_HTTP_WRITEABLE:
        return c->answering ? write_piece(wsi, c) : 0;
    case LWS_CALLBACK_HTTP_BODY:
    case LWS_CALLBACK_HTTP_BODY_COMPLETION:
        return 0;
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
        return refuse_upgrade(wsi, c);
    case LWS_CALLBACK_WSI_DESTROY:
        forget_answer(c);
        c->wsi = NULL;
        return 0;
    case LWS_CALLBACK_RAW_ADOPT: /* what CONNECT makes of a connection */
        return -1;
    default:
        return 0;
    }
}

static const struct lws_protocols protocols[] = {
    {.name = "http", .callback = handle_http},
    {.name = "listener", .callback = handle_listener},
    {0},
};

/* ---- starting ---- */

/* Splits HOST:PORT or [HOST]:PORT. */
static int split_address(const char *address, char host[HTTP_ADDRESS_BYTES], const char **port,
                         struct status *st) {
    const char *colon = strrchr(address, ':');
    const bool is_bracketed = address[0] == '[' && colon && colon > address + 1 && colon[-1] == ']';
    const char *begin = address + is_bracketed, *end = colon ? colon - is_bracketed : address;
    const size_t bytes = (size_t)(end - begin);
    const bool is_ambiguous = !is_bracketed && colon && memchr(address, ':', bytes);
    if (!colon || bytes == 0 || bytes >= HTTP_ADDRESS_BYTES || is_ambiguous || !colon[1] ||
        strlen(colon + 1) > 5 || colon[1 + strspn(colon + 1, "0123456789")] || atoi(colon + 1) > 65535)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "http-address \"%s\": give HOST:PORT or [IPV6]:PORT, such as 127.0.0.1:8080",
                          address);
    memcpy(host, begin, bytes);
    host[bytes] = 0;
    *port = colon + 1;
    return 0;
}

/* -1 and errno when it cannot listen there. */
static int open_listener(const struct addrinfo *a) {
    const int yes = 1, no = 0;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    /* Connections inherit it: a body must not wait until the reader has acknowledged the head. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    const int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int tell_bound(int fd, char bound[HTTP_ADDRESS_BYTES]) {
    struct sockaddr_storage a = {0};
    socklen_t bytes = sizeof a;
    char host[NI_MAXHOST > 200 ? 200 : NI_MAXHOST], port[8];
    if (getsockname(fd, (struct sockaddr *)&a, &bytes) ||
        getnameinfo((struct sockaddr *)&a, bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return -1;
    snprintf(bound, HTTP_ADDRESS_BYTES, a.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    return 0;
}

static int listen_at(struct http *h, const char *address, char bound[HTTP_ADDRESS_BYTES], struct status *st) {
    char host[HTTP_ADDRESS_BYTES];
    const char *port = "";
    if (split_address(address, host, &port, st))
        return -1;
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    const int failed = getaddrinfo(host, port, &hints, &list);
    if (failed)
        return status_set(st, STATUS_UNAVAILABLE, "http-address \"%s\": %s", address, gai_strerror(failed));
    for (const struct addrinfo *a = list; a && h->listener < 0; a = a->ai_next)
        h->listener = open_listener(a);
    const int why = errno;
    freeaddrinfo(list);
    if (h->listener < 0)
        return status_set(st, STATUS_UNAVAILABLE, "http-address \"%s\": cannot listen there: %s", address,
                          strerror(why));
    return tell_bound(h->listener, bound)
               ? status_set(st, STATUS_UNAVAILABLE, "http-address \"%s\": its port cannot be told", address)
               : 0;
}

static void emit_log(int level, const char *line) {
    (void)level; /* what peers do wrong is no business of an operator */
    log_write(LOG_DEBUG, "http", "%.*s", (int)strcspn(line, "\n"), line);
}

static int make_context(struct http *h, struct status *st) {
    const int idle_s = h->options.idle_s > 0 ? h->options.idle_s : HTTP_IDLE_S_MAX;
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN_SERVER,
        .protocols = protocols,
        .gid = (gid_t)-1,
        .uid = (uid_t)-1,
        .server_string = "timbre",
        .user = h,
        .options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_NO_LWS_SYSTEM_STATES,
        .max_http_header_data = HEADER_BYTES_MAX,
        .max_http_header_pool = HTTP_CONNECTIONS_MAX,
        .fd_limit_per_thread = HTTP_CONNECTIONS_MAX + 16, /* the listener and the library's own */
        .keepalive_timeout = idle_s,
        .timeout_secs = (unsigned)idle_s,
        .timeout_secs_ah_idle = (unsigned)idle_s,
    };
    lws_set_log_level(LLL_ERR | LLL_WARN, emit_log);
    struct sigaction pipe;
    sigaction(SIGPIPE, NULL, &pipe);
    h->context = lws_create_context(&info);
    sigaction(SIGPIPE, &pipe, NULL); /* which the library ignores for the whole process */
    h->vhost = h->context ? lws_create_vhost(h->context, &info) : NULL;
    if (!h->vhost)
        return status_set(st, STATUS_UNAVAILABLE, "http-address: the HTTP library does not start");
    const lws_adopt_desc_t adopt = {.vh = h->vhost,
                                    .type = LWS_ADOPT_RAW_FILE_DESC,
                                    .fd.filefd = h->listener,
                                    .vh_prot_name = "listener"};
    return lws_adopt_descriptor_vhost_via_info(&adopt)
               ? 0
               : status_set(st, STATUS_UNAVAILABLE,
                            "http-address: the HTTP library does not take the socket");
}

static void *serve(void *arg) {
    struct http *h = arg;
    while (!atomic_load(&h->stop) && lws_service(h->context, 0) >= 0)
        ;
    if (!atomic_load(&h->stop))
        log_write(LOG_ERROR, "http", "the HTTP address is not served any more");
    return NULL;
}

/* All signals stay with the threads that wait for them. */
static int start_thread(struct http *h, struct status *st) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    const int failed = pthread_create(&h->thread, NULL, serve, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start the HTTP thread: %s",
                          strerror(failed));
    pthread_setname_np(h->thread, "timbre-http");
    return 0;
}

int http_new(struct http **out, const struct http_options *o, char bound[HTTP_ADDRESS_BYTES],
             struct status *st) {
    *out = NULL;
    struct http *h = calloc(1, sizeof *h);
    if (!h)
        return status_set_no_memory(st, sizeof *h, "the HTTP address");
    h->options = *o;
    h->listener = -1;
    if (listen_at(h, o->address, bound, st) == 0 && make_context(h, st) == 0 && start_thread(h, st) == 0) {
        *out = h;
        return 0;
    }
    if (h->context)
        lws_context_destroy(h->context);
    if (!h->vhost && h->listener >= 0) /* nobody else owns it yet */
        close(h->listener);
    free(h);
    return -1;
}

void http_del(struct http *h) {
    if (!h)
        return;
    atomic_store(&h->stop, true);
    lws_cancel_service(h->context);
    pthread_join(h->thread, NULL);
    lws_context_destroy(h->context);
    free(h);
}
