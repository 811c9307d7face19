/* The metrics of calls and of the process. */
#include "server/telemetry.h"

#include <ctype.h>
#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

enum { CODES = 17, CODE_UNKNOWN = 2, STATES = 4 };

static const char *const code_names[CODES] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

/* In the order of enum repository_state. */
static const char *const state_names[STATES] = {"loading", "ready", "unloading", "unavailable"};

/* ErrorInfo reasons that mean: turned away by a limit or by the server's state, whatever the audio was. */
static const char *const refusals[] = {
    "QUEUE_FULL", "TOO_MANY_CALLS", "TOO_MANY_STREAMS", "MESSAGE_TOO_LARGE", "UPLOAD_TIMEOUT",
    "DRAINING",   "STOPPING",       "UNAUTHENTICATED",  "MODEL_NOT_READY",
};
enum { REFUSALS = sizeof refusals / sizeof *refusals, REFUSAL_BYTES_MAX = 24 };

/* In the order of enum telemetry_end. */
static const char *const end_names[TELEMETRY_ENDS] = {"client", "drain", "lifetime", "idle",
                                                      "stall",  "error", "cancelled"};

/* NULL until it is first needed. */
typedef _Atomic(struct metrics_series *) series_slot;

struct method_series {
    char *name; /* as its label: without the first slash */
    struct metrics_series *in_flight;
    series_slot seconds, codes[CODES];
};

struct telemetry {
    struct metrics *metrics;
    struct metrics_family *requests, *seconds, *model_state, *stream_results;
    struct metrics_series *streams, *ended[TELEMETRY_ENDS], *stream_lag, *stream_audio;
    struct metrics_series *refused[REFUSALS];
    struct metrics_series *received, *ready, *log_dropped, *tls_expiry, *build;
    struct metrics_series *resident, *open_fds, *max_fds, *cpu;
    int methods_count;
    struct method_series methods[]; /* [methods_count + 1], the last one for what is unknown */
};

static struct metrics_family *add(struct metrics *m, enum metrics_kind kind, const char *name,
                                  const char *help, const char *labels) {
    return metrics_add(m, kind, name, help, labels, NULL, 0);
}

/* ---- the process ---- */

/* Reads a file of /proc, which is short; "" when it cannot. */
static void read_proc(const char *path, char *text, size_t bytes) {
    text[0] = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    text[fread(text, 1, bytes - 1, f)] = 0;
    fclose(f);
}

/* Seconds since 1970 at which the process began; negative when that is not known. */
static double read_start_s(void) {
    char text[1024];
    unsigned long long ticks;
    struct timespec now, up;
    read_proc("/proc/self/stat", text, sizeof text);
    const char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    if (!rest ||
        sscanf(rest,
               ") %*c" /* then fields 4 to 21 */
               "%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s %llu",
               &ticks) != 1 ||
        clock_gettime(CLOCK_REALTIME, &now) != 0 || clock_gettime(CLOCK_BOOTTIME, &up) != 0)
        return -1;
    const double boot_s = (double)(now.tv_sec - up.tv_sec) + (double)(now.tv_nsec - up.tv_nsec) * 1e-9;
    return boot_s + (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

static int count_open_fds(void) {
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return -1;
    int count = -1; /* d's own */
    for (const struct dirent *e; (e = readdir(d));)
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

static void measure(void *arg) {
    struct telemetry *t = arg;
    char text[256];
    unsigned long long pages;
    read_proc("/proc/self/statm", text, sizeof text);
    if (sscanf(text, "%*u %llu", &pages) == 1)
        metrics_set(t->resident, (double)pages * (double)sysconf(_SC_PAGESIZE));
    const int fds = count_open_fds();
    if (fds >= 0)
        metrics_set(t->open_fds, fds);
    struct timespec cpu;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
        metrics_set(t->cpu, (double)cpu.tv_sec + (double)cpu.tv_nsec * 1e-9);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        metrics_set(t->max_fds, (double)limit.rlim_cur);
    metrics_set(t->log_dropped, (double)log_count_dropped());
}

static void add_process(struct telemetry *t, struct metrics *m) {
    t->resident = metrics_get(add(m, METRICS_GAUGE, "process_resident_memory_bytes", "Resident memory.", ""));
    t->open_fds = metrics_get(add(m, METRICS_GAUGE, "process_open_fds", "Open file descriptors.", ""));
    t->max_fds = metrics_get(add(m, METRICS_GAUGE, "process_max_fds", "Limit of open file descriptors.", ""));
    t->cpu = metrics_get(
        add(m, METRICS_COUNTER, "process_cpu_seconds_total", "Processor time, user and system.", ""));
    const double start_s = read_start_s();
    if (start_s >= 0)
        metrics_set(metrics_get(add(m, METRICS_GAUGE, "process_start_time_seconds",
                                    "When the process began, in seconds since 1970.", "")),
                    start_s);
    t->log_dropped = metrics_get(add(m, METRICS_COUNTER, "timbre_log_lines_dropped_total",
                                     "Log lines lost to a reader that is too slow.", ""));
}

/* ---- calls ---- */

static void add_calls(struct telemetry *t, struct metrics *m) {
    t->requests = add(m, METRICS_COUNTER, "timbre_requests_total", "Calls that ended, by gRPC status code.",
                      "method,code");
    t->seconds =
        metrics_add(m, METRICS_HISTOGRAM, "timbre_request_seconds", "From the arrival of a call to its end.",
                    "method", metrics_seconds_bounds, METRICS_SECONDS_BOUNDS);
    struct metrics_family *in_flight = add(m, METRICS_GAUGE, "timbre_requests_in_flight",
                                           "Calls that are open, streams included.", "method");
    for (int i = 0; i <= t->methods_count; i++)
        t->methods[i].in_flight = metrics_get(in_flight, t->methods[i].name);
    struct metrics_family *refused =
        add(m, METRICS_COUNTER, "timbre_refused_total",
            "Calls turned away by a limit or by the state of the server, by reason.", "reason");
    for (int i = 0; i < REFUSALS; i++) {
        char reason[REFUSAL_BYTES_MAX] = "";
        for (int c = 0; refusals[i][c] && c < REFUSAL_BYTES_MAX - 1; c++)
            reason[c] = (char)tolower(refusals[i][c]);
        t->refused[i] = metrics_get(refused, reason);
    }
    t->received = metrics_get(
        add(m, METRICS_COUNTER, "timbre_received_bytes_total", "Bytes of messages received.", ""));
}

static void add_streams(struct telemetry *t, struct metrics *m) {
    t->streams = metrics_get(add(m, METRICS_GAUGE, "timbre_streams", "Live streams that are open.", ""));
    struct metrics_family *ended =
        add(m, METRICS_COUNTER, "timbre_streams_ended_total", "Live streams that ended, by why.", "end");
    for (int i = 0; i < TELEMETRY_ENDS; i++)
        t->ended[i] = metrics_get(ended, end_names[i]);
    t->stream_results = add(m, METRICS_COUNTER, "timbre_stream_results_total",
                            "Results of live streams, interim ones included.", "model,status");
    t->stream_lag =
        metrics_get(metrics_add(m, METRICS_HISTOGRAM, "timbre_stream_lag_seconds",
                                "From the last byte that a result of a live stream needs to the result.", "",
                                metrics_seconds_bounds, METRICS_SECONDS_BOUNDS));
    t->stream_audio = metrics_get(add(m, METRICS_COUNTER, "timbre_stream_audio_seconds_total",
                                      "Audio of live streams, of each channel that is analysed.", ""));
}

static struct metrics_series *get_code(struct telemetry *t, struct method_series *method, int code) {
    struct metrics_series *s = atomic_load(&method->codes[code]);
    if (!s) { /* two threads at once get the same one */
        s = metrics_get(t->requests, method->name, code_names[code]);
        atomic_store(&method->codes[code], s);
    }
    return s;
}

static struct method_series *find_method(struct telemetry *t, int method) {
    return &t->methods[method >= 0 && method < t->methods_count ? method : t->methods_count];
}

/* A counter that appears with its first event cannot show that event as an increase, so the codes that matter
 * stand at 0 from the start. */
static void make_codes_early(struct telemetry *t) {
    static const int codes[] = {STATUS_OK,
                                STATUS_CANCELLED,
                                STATUS_INVALID_ARGUMENT,
                                STATUS_DEADLINE_EXCEEDED,
                                STATUS_RESOURCE_EXHAUSTED,
                                STATUS_INTERNAL,
                                STATUS_UNAVAILABLE,
                                STATUS_UNAUTHENTICATED};
    for (int i = 0; i < t->methods_count; i++)
        for (size_t c = 0; c < sizeof codes / sizeof *codes; c++)
            get_code(t, &t->methods[i], codes[c]);
}

int telemetry_new(struct telemetry **out, struct metrics *m, const char *const *methods, int methods_count,
                  struct status *st) {
    *out = NULL;
    if (methods_count < 0 || methods_count > TELEMETRY_METHODS_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "TELEMETRY_METHODS_MAX: %d methods, at most %d",
                          methods_count, TELEMETRY_METHODS_MAX);
    const size_t bytes =
        sizeof(struct telemetry) + ((size_t)methods_count + 1) * sizeof(struct method_series);
    struct telemetry *t = calloc(1, bytes);
    if (!t)
        return status_set_no_memory(st, bytes, "telemetry");
    t->metrics = m;
    t->methods_count = methods_count;
    for (int i = 0; i <= methods_count; i++) {
        const char *path = i < methods_count ? methods[i] : "unknown";
        t->methods[i].name = strdup(path + (*path == '/'));
        if (!t->methods[i].name) {
            telemetry_del(t);
            return status_set_no_memory(st, strlen(path) + 1, "telemetry");
        }
    }
    add_calls(t, m);
    add_streams(t, m);
    make_codes_early(t);
    t->ready =
        metrics_get(add(m, METRICS_GAUGE, "timbre_ready", "1 when it serves and a model is ready.", ""));
    t->model_state = add(m, METRICS_GAUGE, "timbre_model_state",
                         "1 for the state that a model's version is in.", "model,version,state");
    add_process(t, m);
    metrics_on_write(m, measure, t);
    *out = t;
    return 0;
}

void telemetry_del(struct telemetry *t) {
    if (!t)
        return;
    for (int i = 0; i <= t->methods_count; i++)
        free(t->methods[i].name);
    free(t);
}

void telemetry_begin_call(struct telemetry *t, int method) {
    if (t)
        metrics_count(find_method(t, method)->in_flight, 1);
}

void telemetry_count_call(struct telemetry *t, int method, int code, double seconds) {
    if (!t)
        return;
    struct method_series *s = find_method(t, method);
    metrics_count(s->in_flight, -1);
    metrics_count(get_code(t, s, code >= 0 && code < CODES ? code : CODE_UNKNOWN), 1);
    struct metrics_series *times = atomic_load(&s->seconds);
    if (!times) {
        times = metrics_get(t->seconds, s->name);
        atomic_store(&s->seconds, times);
    }
    metrics_observe(times, seconds);
}

void telemetry_count_refused(struct telemetry *t, const char *reason) {
    for (int i = 0; t && reason && i < REFUSALS; i++)
        if (strcmp(refusals[i], reason) == 0)
            metrics_count(t->refused[i], 1);
}

void telemetry_count_received(struct telemetry *t, size_t bytes) {
    if (t)
        metrics_count(t->received, (double)bytes);
}

/* ---- streams ---- */

void telemetry_begin_stream(struct telemetry *t, struct telemetry_stream *s, const char *model) {
    if (!t)
        return;
    for (int i = 0; i < TELEMETRY_OUTCOMES; i++)
        s->results[i] = metrics_get(t->stream_results, model, engine_outcome_name((enum engine_outcome)i));
    metrics_count(t->streams, 1);
}

void telemetry_end_stream(struct telemetry *t, enum telemetry_end end) {
    if (!t)
        return;
    metrics_count(t->streams, -1);
    metrics_count(t->ended[end], 1);
}

void telemetry_count_result(struct telemetry *t, const struct telemetry_stream *s,
                            enum engine_outcome outcome, double lag_s) {
    if (!t)
        return;
    metrics_count(s->results[outcome], 1);
    metrics_observe(t->stream_lag, lag_s);
}

void telemetry_count_stream_audio(struct telemetry *t, double seconds) {
    if (t)
        metrics_count(t->stream_audio, seconds);
}

/* ---- states ---- */

void telemetry_set_ready(struct telemetry *t, bool ready) {
    if (t)
        metrics_set(t->ready, ready);
}

void telemetry_set_build(struct telemetry *t, const char *version, const char *device,
                         const char *precision) {
    if (!t)
        return;
    struct metrics_series *build =
        metrics_get(add(t->metrics, METRICS_GAUGE, "timbre_build_info",
                        "1 for what runs, as labels; 0 for what did.", "version,device,precision"),
                    version, device, precision);
    if (build != t->build)
        metrics_set(t->build, 0);
    metrics_set(build, 1);
    t->build = build;
}

void telemetry_set_model(struct telemetry *t, const char *model, const char *version, int state) {
    for (int i = 0; t && i < STATES; i++)
        metrics_set(metrics_get(t->model_state, model, version, state_names[i]), i == state);
}

void telemetry_set_tls_expiry(struct telemetry *t, double expiry_s) {
    if (!t)
        return;
    if (!t->tls_expiry)
        t->tls_expiry = metrics_get(add(t->metrics, METRICS_GAUGE, "timbre_tls_certificate_expiry_seconds",
                                        "When the certificate ends, in seconds since 1970.", ""));
    metrics_set(t->tls_expiry, expiry_s);
}
