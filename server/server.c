/* `timbre serve`, from its options to its end. */
#include "server/server.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <grpc/grpc.h>
#include <grpc/support/log.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/internal.h"

enum { EXIT_DEVICE_LOST = 1, EXIT_NOT_STARTED = 3, STOP_POLL_MS = 20, GRPC_STOP_MS_MAX = 1000 };

/* Once a GPU is lost: how long answers that say so have to get out. */
enum { ABANDON_MS_MIN = 3 * SERVER_TICK_MS, ABANDON_MS_MAX = 1000 };

bool server_has_model(const struct server *s) {
    for (int i = 0; i < repository_count(s->repository); i++)
        if (repository_at(s->repository, i)->state == REPOSITORY_READY)
            return true;
    return false;
}

bool server_is_ready(const struct server *s) {
    return atomic_load(&s->phase) == SERVER_SERVING && server_has_model(s) && !atomic_load(&s->device_lost);
}

static const char *why_not_ready(void *arg) {
    static const char *const words[] = {[SERVER_STARTING] = "starting",
                                        [SERVER_SERVING] = NULL,
                                        [SERVER_LAME_DUCK] = "draining",
                                        [SERVER_DRAINING] = "draining",
                                        [SERVER_STOPPED] = "stopped"};
    const struct server *s = arg;
    const enum server_phase phase = atomic_load(&s->phase);
    if (phase == SERVER_SERVING && atomic_load(&s->device_lost))
        return "a GPU is lost";
    return phase == SERVER_SERVING && !atomic_load(&s->has_model) ? "no model is loaded" : words[phase];
}

/* glibc gives memory of this size back to the system after every request and takes it again for the next:
 * half of the time of a small call, if it is let. */
static void tune_malloc(void) {
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    mallopt(M_TOP_PAD, 8 << 20);
}

/* Signals come to main alone; threads made later inherit the mask. */
static sigset_t block_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return set;
}

static int start_telemetry(struct server *s, struct status *st) {
    const char *names[256];
    const int count = methods_count();
    for (int i = 0; i < count; i++)
        names[i] = methods_at(i)->path + 1;
    if (metrics_new(&s->metrics, st))
        return -1;
    return telemetry_new(&s->telemetry, s->metrics, names, count, st);
}

/* On a thread of the engine, which holds its callers back until this returns. What follows is done by the
 * completion-queue thread (loop.c), or by main, which the signal wakes. */
static void note_lost(void *arg, const struct status *why) {
    struct server *s = arg;
    if (atomic_load(&s->device_lost))
        return;
    s->lost_why = *why;
    atomic_store(&s->device_lost, true);
    kill(getpid(), SIGHUP);
}

static int start_engine(struct server *s, struct status *st) {
    struct engine_options o = s->options->engine;
    o.metrics = s->metrics;
    o.on_lost = note_lost;
    o.on_lost_arg = s;
    if (engine_new(&s->engine, &o, st))
        return -1;
    if (repository_new(&s->repository, s->engine, s->options, st))
        return -1;
    if (repository_count(s->repository) > 0 && repository_at(s->repository, 0)->model) {
        const struct model_info *i = model_get_info(engine_model_get(repository_at(s->repository, 0)->model));
        telemetry_set_build(s->telemetry, TIMBRE_VERSION, i->device, i->precision);
        if (i->device_note[0])
            log_write(LOG_INFO, "server", "serving on the CPU (%s): %s", i->device, i->device_note);
        if (i->precision_note[0])
            log_write(LOG_INFO, "server", "precision auto is fp32: %s", i->precision_note);
    }
    return 0;
}

static int start_network(struct server *s, struct status *st) {
    const struct server_options *o = s->options;
    if (o->token_file && auth_new(&s->auth, o->token_file, st))
        return -1;
    if (health_new(&s->health, s, st))
        return -1;
    const struct http_options http = {
        .address = o->http_address, .metrics = s->metrics, .why_not_ready = why_not_ready, .arg = s};
    if (o->http_address[0] && http_new(&s->http, &http, s->http_address, st))
        return -1;
    if (listen_start(s, st))
        return -1;
    if (pthread_create(&s->loop, NULL, loop_main, s))
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start the completion-queue thread");
    pthread_setname_np(s->loop, "timbre-grpc");
    s->loop_started = true;
    return 0;
}

static void tell_ready(const struct server *s) {
    printf("ready grpc=%s", s->grpc_address);
    if (s->http)
        printf(" http=%s", s->http_address);
    printf("\n");
    fflush(stdout);
    log_write(LOG_INFO, "server", "ready grpc=%s http=%s", s->grpc_address,
              s->http ? s->http_address : "off");
}

static void poll_tls(struct server *s) {
    if (!s->tls)
        return;
    tls_poll(s->tls);
    telemetry_set_tls_expiry(s->telemetry, tls_get_expiry_s(s->tls));
}

/* Waits so long, at most a second, for any signal, then looks after files. True: SIGTERM or SIGINT. */
static bool wait_a_step(struct server *s, const sigset_t *set, int64_t left_ns) {
    const int64_t step_ns = left_ns < 1000000000 ? left_ns : 1000000000;
    const struct timespec step = {.tv_sec = step_ns / 1000000000, .tv_nsec = step_ns % 1000000000};
    const int signal_number = sigtimedwait(set, NULL, &step);
    if (signal_number == SIGTERM || signal_number == SIGINT)
        return true;
    if (s->auth)
        auth_poll(s->auth);
    poll_tls(s);
    return false;
}

/* Waits `wait_ms` for SIGTERM or SIGINT. True: a signal came. */
static bool wait_for_signal(struct server *s, const sigset_t *set, int64_t wait_ms) {
    const int64_t until_ns = clock_now_ns() + wait_ms * 1000000;
    for (int64_t left_ns; (left_ns = until_ns - clock_now_ns()) > 0;)
        if (wait_a_step(s, set, left_ns))
            return true;
    return false;
}

/* Until a signal comes (true), or a GPU is lost that is not made up for. */
static bool serve(struct server *s, const sigset_t *set) {
    while (!wait_a_step(s, set, INT64_MAX))
        if (s->options->on_gpu_fault == SERVER_GPU_FAULT_EXIT && atomic_load(&s->device_lost))
            return false;
    return true;
}

/* A GPU is lost, and nothing can be computed: whoever waits is told so, then the program ends, to be started
 * anew. Nothing is freed, as the driver may not answer any more. */
static void abandon(struct server *s) {
    const struct timespec tick = {.tv_nsec = SERVER_TICK_MS * 1000000};
    log_write(LOG_ERROR, "server", "%s; ending with status %d, to be started anew (on-gpu-fault)",
              s->lost_why.message, EXIT_DEVICE_LOST);
    atomic_store(&s->phase, SERVER_DRAINING);
    for (int ms = 0; ms < ABANDON_MS_MAX; ms += SERVER_TICK_MS) {
        if (ms >= ABANDON_MS_MIN && atomic_load(&s->running) == 0)
            break;
        nanosleep(&tick, NULL);
    }
    log_stop();
    _exit(EXIT_DEVICE_LOST);
}

/* From the first SIGTERM to the last call. True: a second signal asked to end at once. */
static bool drain(struct server *s, const sigset_t *set) {
    const struct server_options *o = s->options;
    atomic_store(&s->phase, SERVER_LAME_DUCK);
    log_write(LOG_INFO, "server",
              "draining: still serving for lame-duck-ms %d, then running calls have "
              "drain-timeout-ms %d",
              o->lame_duck_ms, o->drain_timeout_ms);
    if (wait_for_signal(s, set, o->lame_duck_ms))
        return true;
    atomic_store(&s->phase, SERVER_DRAINING);
    const int64_t until_ns = clock_now_ns() + (int64_t)o->drain_timeout_ms * 1000000;
    while (atomic_load(&s->phase) != SERVER_STOPPED) {
        if (wait_for_signal(s, set, STOP_POLL_MS))
            return true;
        if (clock_now_ns() > until_ns && !atomic_exchange(&s->cancel_all, true))
            log_write(LOG_WARN, "server", "drain-timeout-ms: %d calls are cancelled",
                      atomic_load(&s->running));
    }
    log_write(LOG_INFO, "server", "drained");
    return false;
}

/* After the loop has ended, or when the start failed; in the reverse order of the start. */
static void free_server(struct server *s) {
    if (s->loop_started)
        pthread_join(s->loop, NULL);
    http_del(s->http);
    health_del(s->health);
    if (s->grpc) {
        if (!s->loop_started) { /* nothing was ever served */
            grpc_server_shutdown_and_notify(s->grpc, s->cq, NULL);
            grpc_server_cancel_all_calls(s->grpc);
        }
        grpc_server_destroy(s->grpc);
        grpc_completion_queue_shutdown(s->cq);
        while (grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
               GRPC_QUEUE_SHUTDOWN)
            ;
        grpc_completion_queue_destroy(s->cq);
    }
    repository_del(s->repository);
    engine_del(s->engine);
    auth_del(s->auth);
    telemetry_del(s->telemetry);
    metrics_del(s->metrics);
}

/* What gRPC itself has to say. */
static void log_grpc(gpr_log_func_args *args) {
    static const enum log_level levels[] = {[GPR_LOG_SEVERITY_DEBUG] = LOG_DEBUG,
                                            [GPR_LOG_SEVERITY_INFO] = LOG_DEBUG,
                                            [GPR_LOG_SEVERITY_ERROR] = LOG_WARN};
    log_write(levels[args->severity], "grpc", "%s", args->message);
}

/* gRPC ends on threads of its own, which may not find the program gone. */
static void stop_grpc(void) {
    const struct timespec step = {.tv_nsec = 1000000};
    grpc_shutdown();
    for (int i = 0; i < GRPC_STOP_MS_MAX && grpc_is_initialized(); i++)
        nanosleep(&step, NULL);
}

static void log_warnings(const struct server_options *o) {
    const char *warnings[OPTIONS_WARNINGS_MAX];
    const int count = options_list_warnings(o, warnings);
    for (int i = 0; i < count; i++)
        log_write(LOG_WARN, "options", "%s", warnings[i]);
}

static int run(const struct server_options *o) {
    static struct server s;
    struct status st = {0};
    const sigset_t signals = block_signals();
    bool at_once = false;
    s.options = o;
    if (getrandom(&s.instance, sizeof s.instance, 0) != sizeof s.instance)
        s.instance = (uint64_t)clock_now_ns();
    tune_malloc();
    log_init(o->log_level, o->log_json);
    log_warnings(o);
    gpr_set_log_function(log_grpc);
    grpc_init();
    int result =
        log_start(&st) || start_telemetry(&s, &st) || start_engine(&s, &st) || start_network(&s, &st);
    if (result) {
        fprintf(stderr, "timbre serve: %s\n", st.message);
    } else {
        poll_tls(&s);
        atomic_store(&s.has_model, true);
        atomic_store(&s.phase, SERVER_SERVING);
        tell_ready(&s);
        if (!serve(&s, &signals))
            abandon(&s);
        at_once = drain(&s, &signals);
    }
    if (at_once) { /* whatever still runs is lost; that was asked for */
        log_write(LOG_WARN, "server", "a second signal: ending at once");
        log_stop();
        _exit(0);
    }
    free_server(&s);
    stop_grpc();
    tls_del(s.tls); /* a handshake may have been under way until now */
    log_stop();
    return result ? EXIT_NOT_STARTED : 0;
}

int server_main(int argc, char **argv, const char *shipped_model) {
    struct server_options o;
    struct status st = {0};
    int result = options_init(&o, argc, argv, shipped_model, &st);
    if (result > 0)
        return 0;
    if (result < 0) {
        fprintf(stderr, "timbre serve: %s\n", st.message);
        return EXIT_NOT_STARTED;
    }
    result = run(&o);
    options_free(&o);
    return result;
}
