/* log: a line is made by its caller. It is written there, or handed to the thread of log_start through a ring
 * of bytes; callers hold the ring's lock only to copy a line. */
#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"

enum {
    /* Escaping makes a byte up to six; the rest is for time, level, component and keys. */
    LINE_BYTES_MAX = 6 * (LOG_LINE_BYTES_MAX + LOG_FIELDS_MAX * LOG_FIELD_BYTES_MAX) + 2048,
    POLL_MS = 100,
};

static atomic_int level_min = LOG_INFO;
static atomic_bool as_json;
static atomic_uint_fast64_t dropped;

void log_init(enum log_level level, bool json) {
    atomic_store_explicit(&level_min, (int)level, memory_order_relaxed);
    atomic_store_explicit(&as_json, json, memory_order_relaxed);
}

bool log_is_on(enum log_level level) {
    return (int)level >= atomic_load_explicit(&level_min, memory_order_relaxed) && level < LOG_OFF;
}

uint64_t log_count_dropped(void) {
    return atomic_load_explicit(&dropped, memory_order_relaxed);
}

/* ---- making a line ---- */

static void put_number(struct text *out, double value) {
    char digits[40];
    if (!isfinite(value)) {
        text_put(out, "null");
        return;
    }
    if (fabs(value) >= 1e15) {
        text_printf(out, "%.17g", value);
        return;
    }
    snprintf(digits, sizeof digits, "%.3f", value);
    char *end = digits + strlen(digits);
    while (end[-1] == '0')
        *--end = 0;
    if (end[-1] == '.')
        *--end = 0;
    text_put(out, strcmp(digits, "-0") == 0 ? "0" : digits);
}

static void put_field_text(struct text *out, const char *text, bool json) {
    char cut[LOG_FIELD_BYTES_MAX];
    bool plain = text[0] != 0;
    snprintf(cut, sizeof cut, "%s", text);
    for (const unsigned char *c = (unsigned char *)cut; *c; c++)
        plain = plain && *c > ' ' && *c < 0x7f && *c != '"' && *c != '\\' && *c != '=';
    if (plain && !json)
        text_put(out, cut);
    else
        text_put_json_string(out, cut);
}

static void put_field(struct text *out, const struct log_field *f, bool json) {
    if (!f->is_number && !f->text)
        return;
    text_printf(out, json ? ",\"%s\":" : " %s=", f->key);
    if (f->is_number)
        put_number(out, f->number);
    else
        put_field_text(out, f->text, json);
}

/* Writes the line with its end into `line` [bytes]; returns its length. `message` is changed. */
static size_t make_line(char *line, size_t bytes, enum log_level level, const char *component, char *message,
                        const struct log_field *fields, int count) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    const bool json = atomic_load_explicit(&as_json, memory_order_relaxed);
    char date[CLOCK_DATE_BYTES];
    struct text out;
    clock_format_date(date);
    text_init(&out, line, bytes - 2); /* room for what ends it, even if it was cut */
    if (json) {
        text_printf(&out, "{\"time\":\"%s\",\"level\":\"%s\",\"component\":\"%s\",\"message\":", date,
                    names[level], component);
        text_put_json_string(&out, message);
    } else {
        /* A name with a line break in it must not look like a line of its own. */
        for (char *c = message; *c; c++)
            *c = (unsigned char)*c < ' ' || *c == 0x7f ? ' ' : *c;
        text_printf(&out, "%s %-5s %s: %s", date, names[level], component, message);
    }
    for (int i = 0; i < count && i < LOG_FIELDS_MAX; i++)
        put_field(&out, &fields[i], json);
    if (json)
        line[out.length++] = '}';
    line[out.length++] = '\n';
    return out.length;
}

/* ---- the ring ---- */

/* What the thread works on. An allocation of its own, so that a thread that hangs in a write can be left
 * behind with it. All under `lock`. */
struct ring {
    pthread_cond_t filled;
    pthread_t thread;
    char *data; /* [LOG_BUFFER_BYTES_MAX] whole lines, one after the other; it wraps */
    size_t begin, used;
    bool dropping;       /* from a line without room until half of the ring is free, so that gaps are few */
    uint64_t unreported; /* lines dropped for want of room that no line has told of yet */
    bool stopping;
    int64_t stop_ns;                       /* when stopping: until then the thread tries */
    char piece[PIPE_BUF + LINE_BYTES_MAX]; /* the thread's own: what it is writing */
};

/* Where lines go. STALLED: nowhere, since whoever should read does not. */
enum mode { DIRECT, RING, STALLED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum mode mode;
static struct ring *current; /* when mode is RING */

static void count_dropped(uint64_t lines) {
    atomic_fetch_add_explicit(&dropped, lines, memory_order_relaxed);
}

static void append(struct ring *r, const char *line, size_t n) {
    size_t end = (r->begin + r->used) % LOG_BUFFER_BYTES_MAX;
    size_t first = n < LOG_BUFFER_BYTES_MAX - end ? n : LOG_BUFFER_BYTES_MAX - end;
    memcpy(r->data + end, line, first);
    memcpy(r->data, line + first, n - first);
    r->used += n;
}

static void append_report(struct ring *r) {
    char line[512], message[80];
    snprintf(message, sizeof message, "%llu log lines were dropped", (unsigned long long)r->unreported);
    size_t n = make_line(line, sizeof line, LOG_WARN, "log", message, NULL, 0);
    if (n > LOG_BUFFER_BYTES_MAX - r->used)
        return;
    append(r, line, n);
    r->unreported = 0;
}

/* Takes the line or drops it. */
static void put(struct ring *r, const char *line, size_t n) {
    if (r->dropping && r->used <= LOG_BUFFER_BYTES_MAX / 2)
        r->dropping = false;
    if (!r->dropping && r->unreported)
        append_report(r);
    if (r->dropping || n > LOG_BUFFER_BYTES_MAX - r->used) {
        r->dropping = true;
        r->unreported++;
        count_dropped(1);
        return;
    }
    append(r, line, n);
    pthread_cond_signal(&r->filled);
}

/* Moves whole lines to r->piece, as many as a pipe takes in one write, but at least one. */
static size_t take(struct ring *r) {
    size_t n = 0, end = 0;
    while (n < r->used && (n < PIPE_BUF || end == 0)) {
        r->piece[n] = r->data[(r->begin + n) % LOG_BUFFER_BYTES_MAX];
        if (r->piece[n++] == '\n')
            end = n;
    }
    r->begin = (r->begin + end) % LOG_BUFFER_BYTES_MAX;
    r->used -= end;
    return end;
}

static uint64_t count_lines(const char *piece, size_t n) {
    uint64_t lines = 0;
    for (size_t i = 0; i < n; i++)
        lines += piece[i] == '\n';
    return lines;
}

/* ---- the thread ---- */

static bool stop_is_due(const struct ring *r) {
    pthread_mutex_lock(&lock);
    bool due = r->stopping && clock_now_ns() >= r->stop_ns;
    pthread_mutex_unlock(&lock);
    return due;
}

/* False when standard error does not take all of it; then the rest is lost. */
static bool write_piece(const struct ring *r, size_t n) {
    for (const char *piece = r->piece; n;) {
        struct pollfd fd = {.fd = STDERR_FILENO, .events = POLLOUT};
        if (poll(&fd, 1, POLL_MS) <= 0) {
            if (stop_is_due(r))
                return false;
            continue;
        }
        /* A pipe that is ready takes so much without waiting. */
        ssize_t written = write(STDERR_FILENO, piece, n < PIPE_BUF ? n : PIPE_BUF);
        if (written < 0 && errno != EINTR && errno != EAGAIN)
            return false;
        if (written > 0) {
            piece += written;
            n -= (size_t)written;
        }
    }
    return true;
}

/* Under the lock: waits for a line. False when there will be none any more, or no time for them. */
static bool wait_for_lines(struct ring *r) {
    while (!r->used) {
        if (r->unreported)
            append_report(r);
        else if (r->stopping)
            return false;
        else
            pthread_cond_wait(&r->filled, &lock);
    }
    return !r->stopping || clock_now_ns() < r->stop_ns;
}

static void *write_lines(void *arg) {
    struct ring *r = arg;
    pthread_mutex_lock(&lock);
    while (wait_for_lines(r)) {
        size_t n = take(r);
        pthread_mutex_unlock(&lock);
        if (!write_piece(r, n))
            count_dropped(count_lines(r->piece, n));
        pthread_mutex_lock(&lock);
    }
    /* What is left is lost, and so would be all that follows. */
    const bool stalled = r->used != 0;
    while (r->used)
        count_dropped(count_lines(r->piece, take(r)));
    if (current == r) {
        current = NULL;
        mode = stalled ? STALLED : DIRECT;
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void ring_free(struct ring *r) {
    if (!r)
        return;
    pthread_cond_destroy(&r->filled);
    free(r->data);
    free(r);
}

static struct ring *ring_new(void) {
    struct ring *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    pthread_cond_init(&r->filled, NULL);
    r->data = malloc(LOG_BUFFER_BYTES_MAX);
    if (r->data)
        return r;
    ring_free(r);
    return NULL;
}

int log_start(struct status *st) {
    pthread_mutex_lock(&lock);
    struct ring *r = current;
    pthread_mutex_unlock(&lock);
    if (r)
        return 0;
    r = ring_new();
    if (!r)
        return status_set_no_memory(st, LOG_BUFFER_BYTES_MAX, "the log");
    sigset_t all, before;
    sigfillset(&all); /* signals are for others; SIGPIPE too: a closed reader is no reason to end */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&r->thread, NULL, write_lines, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        ring_free(r);
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "no thread for the log: %s", strerror(error));
    }
    pthread_setname_np(r->thread, "timbre-log");
    pthread_mutex_lock(&lock);
    current = r;
    mode = RING;
    pthread_mutex_unlock(&lock);
    return 0;
}

void log_stop(void) {
    pthread_mutex_lock(&lock);
    struct ring *r = current;
    if (r) {
        r->stopping = true;
        r->stop_ns = clock_now_ns() + (int64_t)LOG_STOP_MS_MAX * 1000000;
        pthread_cond_signal(&r->filled);
    }
    pthread_mutex_unlock(&lock);
    if (!r)
        return;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOG_STOP_MS_MAX / 1000 + 1;
    if (pthread_timedjoin_np(r->thread, NULL, &until) == 0) {
        ring_free(r);
        return;
    }
    /* It hangs in a write: another process filled the pipe meanwhile. */
    pthread_detach(r->thread);
    pthread_mutex_lock(&lock);
    if (current == r) {
        current = NULL;
        mode = STALLED;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- for callers ---- */

static void write_line(const char *line, size_t n) {
    pthread_mutex_lock(&lock);
    const enum mode now = mode;
    if (now == RING)
        put(current, line, n);
    pthread_mutex_unlock(&lock);
    /* One call, so that lines of several threads do not mix. */
    if (now == STALLED || (now == DIRECT && write(STDERR_FILENO, line, n) < 0))
        count_dropped(1);
}

static void write_message(enum log_level level, const char *component, const struct log_field *fields,
                          int count, const char *format, va_list args) {
    char message[LOG_LINE_BYTES_MAX], line[LINE_BYTES_MAX];
    vsnprintf(message, sizeof message, format, args);
    write_line(line, make_line(line, sizeof line, level, component, message, fields, count));
}

void log_write(enum log_level level, const char *component, const char *format, ...) {
    if (!log_is_on(level))
        return;
    va_list args;
    va_start(args, format);
    write_message(level, component, NULL, 0, format, args);
    va_end(args);
}

void log_write_fields(enum log_level level, const char *component, const struct log_field *fields, int count,
                      const char *format, ...) {
    if (!log_is_on(level))
        return;
    va_list args;
    va_start(args, format);
    write_message(level, component, fields, count, format, args);
    va_end(args);
}
