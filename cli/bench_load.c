/* The load: a closed loop, in which every call that is over begins the next one, or an open loop, in which
 * calls begin at their time whatever became of the others. A call's latency is counted from the time at which
 * it should have begun, so that a server which stalls cannot hide it by holding up the generator. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "cli/bench.h"

enum {
    TICK_MS = 10,
    LIVE_MS = 500,
    PAUSE_MS = 20,           /* in the closed loop, before a call follows one that was UNAVAILABLE */
    DRAIN_GRACE_MS = 1000,   /* beyond the deadline of the last call */
    DRAIN_MS_MAX = 60 * 1000 /* for calls without one */
};

struct load;

/* A place for one call at a time. */
struct slot {
    struct lane *lane;
    struct slot *next; /* in lane->idle */
    int64_t due_ns;    /* when the call should begin, or began */
};

/* A connection. Its calls are over on its client's thread. */
struct lane {
    struct load *load;
    struct timbre_client *client;
    struct slot *slots; /* [slots_count] */
    int slots_count;
    pthread_mutex_t mutex; /* for what follows */
    struct slot *idle;
    uint64_t random;
    struct bench_stats stats;
};

struct load {
    const struct bench_options *options;
    const struct bench_clips *clips;
    struct lane *lanes;       /* [options->connections] */
    int64_t begin_ns, end_ns; /* what is measured */
    atomic_bool stopped;      /* no more calls */
    atomic_long begun;        /* of those that count */
    atomic_int in_flight;
    atomic_int_least64_t over_ns; /* when the last one that counts was over */
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

void bench_sleep_until(int64_t ns) {
    const struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR && !interrupted)
        ;
}

void bench_catch_signal(void) {
    const struct sigaction act = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &act, NULL);
}

bool bench_is_interrupted(void) {
    return interrupted;
}

void bench_count_error(struct bench_errors *e, int code, const char *message) {
    code = code > 0 && code < BENCH_CODES ? code : TIMBRE_CODE_UNKNOWN;
    if (e->codes[code]++ == 0)
        snprintf(e->example[code], sizeof e->example[code], "%s", message);
}

void bench_merge_errors(struct bench_errors *to, const struct bench_errors *from) {
    for (int i = 0; i < BENCH_CODES; i++) {
        to->codes[i] += from->codes[i];
        if (!to->example[i][0])
            memcpy(to->example[i], from->example[i], sizeof to->example[i]);
    }
}

/* ---- one call ---- */

static void keep(void *arg) { /* clips stay until the process ends */
    (void)arg;
}

static void count(struct bench_stats *s, const struct timbre_prediction *p,
                  const struct timbre_status *status, int64_t latency_ns) {
    s->attempts += (uint64_t)status->attempts;
    if (!p) {
        s->failed++;
        bench_count_error(&s->errors, status->code, status->message);
        return;
    }
    histogram_add(&s->latency_ns, latency_ns);
    s->answers[p->answer >= 1 && p->answer <= 4 ? p->answer : 0]++;
    s->audio_s += p->duration_s;
    if (p->receipt.batch_size > 0) {
        s->batches++;
        s->batch_size += p->receipt.batch_size;
        s->queue_ms += p->receipt.queue_ms;
        s->compute_ms += p->receipt.compute_ms;
    }
}

static bool counts(const struct load *l, int64_t due_ns, int64_t now_ns) {
    const int64_t t = l->options->rate > 0 ? due_ns : now_ns;
    return t >= l->begin_ns && t < l->end_ns;
}

static void begin_call(struct slot *slot, int64_t due_ns);

static void on_result(struct timbre_prediction *p, const struct timbre_status *status, void *user) {
    struct slot *slot = user;
    struct lane *lane = slot->lane;
    struct load *l = lane->load;
    const int64_t now_ns = clock_now_ns();
    const bool again = l->options->rate == 0 && status->code != TIMBRE_CODE_UNAVAILABLE;
    pthread_mutex_lock(&lane->mutex);
    const bool given_up = status->code == TIMBRE_CODE_CANCELLED && atomic_load(&l->stopped); /* by us */
    if (counts(l, slot->due_ns, now_ns) && !given_up) {
        count(&lane->stats, p, status, now_ns - slot->due_ns);
        atomic_store_explicit(&l->over_ns, now_ns, memory_order_relaxed);
    }
    if (!again) {
        slot->due_ns = now_ns + (int64_t)PAUSE_MS * 1000000;
        slot->next = lane->idle;
        lane->idle = slot;
    }
    pthread_mutex_unlock(&lane->mutex);
    timbre_prediction_free(p);
    if (again)
        begin_call(slot, now_ns);
    atomic_fetch_sub(&l->in_flight, 1);
}

static const struct bench_clip *choose_clip(struct lane *lane) {
    const struct bench_clips *c = lane->load->clips;
    if (c->count == 1)
        return &c->clips[0];
    pthread_mutex_lock(&lane->mutex);
    const uint64_t random = bench_next_random(&lane->random);
    pthread_mutex_unlock(&lane->mutex);
    return &c->clips[random % (uint64_t)c->count];
}

/* Unless the load has stopped. */
static void begin_call(struct slot *slot, int64_t due_ns) {
    struct lane *lane = slot->lane;
    struct load *l = lane->load;
    const struct bench_options *o = l->options;
    struct timbre_status status;
    if (due_ns >= l->end_ns)
        atomic_store(&l->stopped, true);
    if (o->requests && due_ns >= l->begin_ns && atomic_fetch_add(&l->begun, 1) >= o->requests)
        atomic_store(&l->stopped, true);
    if (atomic_load(&l->stopped))
        return;
    const struct bench_clip *clip = choose_clip(lane);
    const struct timbre_predict_request r = {.audio = clip->audio,
                                             .audio_bytes = clip->bytes,
                                             .release = keep,
                                             .encoding = o->encoding,
                                             .sample_rate_hz = o->encoding ? o->rate_hz : 0,
                                             .channels = o->encoding ? o->channels : 0,
                                             .model = o->model,
                                             .priority = o->priority};
    slot->due_ns = due_ns;
    atomic_fetch_add(&l->in_flight, 1);
    if (timbre_predict_start(lane->client, &r, on_result, slot, NULL, &status)) {
        atomic_store(&l->stopped, true);
        atomic_fetch_sub(&l->in_flight, 1);
        if (status.code != TIMBRE_CODE_CANCELLED) /* by the client's end */
            fprintf(stderr, "timbre bench: %s\n", status.message);
    }
}

/* ---- the loops ---- */

static struct slot *take_idle(struct lane *lane, int64_t due_before_ns) {
    pthread_mutex_lock(&lane->mutex);
    struct slot *slot = lane->idle;
    if (slot && slot->due_ns <= due_before_ns)
        lane->idle = slot->next;
    else
        slot = NULL;
    pthread_mutex_unlock(&lane->mutex);
    return slot;
}

static void merge(struct bench_stats *to, const struct bench_stats *from) {
    histogram_merge(&to->latency_ns, &from->latency_ns);
    to->failed += from->failed;
    bench_merge_errors(&to->errors, &from->errors);
    for (int i = 0; i < 5; i++)
        to->answers[i] += from->answers[i];
    to->attempts += from->attempts;
    to->batches += from->batches;
    to->audio_s += from->audio_s;
    to->batch_size += from->batch_size;
    to->queue_ms += from->queue_ms;
    to->compute_ms += from->compute_ms;
}

static void gather(struct load *l, struct bench_stats *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < l->options->connections; i++) {
        pthread_mutex_lock(&l->lanes[i].mutex);
        merge(s, &l->lanes[i].stats);
        pthread_mutex_unlock(&l->lanes[i].mutex);
    }
}

static void show(struct load *l, int64_t *shown_ns, struct bench_stats *s) {
    const int64_t now_ns = clock_now_ns();
    if (now_ns - *shown_ns < (int64_t)LIVE_MS * 1000000)
        return;
    *shown_ns = now_ns;
    gather(l, s);
    bench_show_live(s, (double)(now_ns - l->begin_ns) * 1e-9, atomic_load(&l->in_flight));
}

static bool is_over(struct load *l, int64_t now_ns) {
    if (interrupted || now_ns >= l->end_ns)
        atomic_store(&l->stopped, true);
    return atomic_load(&l->stopped);
}

static void run_closed(struct load *l, struct bench_stats *scratch) {
    int64_t shown_ns = l->begin_ns, now_ns;
    while (!is_over(l, now_ns = clock_now_ns())) {
        for (int i = 0; i < l->options->connections; i++)
            for (struct slot *slot; (slot = take_idle(&l->lanes[i], now_ns));)
                begin_call(slot, now_ns);
        bench_sleep_until(now_ns + (int64_t)TICK_MS * 1000000);
        show(l, &shown_ns, scratch);
    }
}

/* The time from one call to the next. */
static double interval_ns(const struct bench_options *o, uint64_t *random) {
    const double chance = ((double)(bench_next_random(random) >> 11) + 0.5) / (double)(1ull << 53);
    return (o->constant ? 1 : -log(chance)) * 1e9 / o->rate;
}

static struct slot *take_any(struct load *l, int *lane) {
    for (int i = 0; i < l->options->connections; i++) {
        *lane = (*lane + 1) % l->options->connections;
        struct slot *slot = take_idle(&l->lanes[*lane], INT64_MAX);
        if (slot)
            return slot;
    }
    return NULL;
}

static void run_open(struct load *l, struct bench_result *r, struct bench_stats *scratch) {
    int64_t shown_ns = l->begin_ns, now_ns;
    uint64_t random = l->options->seed * 2 + 1;
    double due = (double)clock_now_ns();
    int lane = 0;
    while (!is_over(l, now_ns = clock_now_ns())) {
        if ((double)now_ns < due) {
            const int64_t tick_ns = now_ns + (int64_t)TICK_MS * 1000000;
            bench_sleep_until(due < (double)tick_ns ? (int64_t)due : tick_ns);
            show(l, &shown_ns, scratch);
            continue;
        }
        struct slot *slot = take_any(l, &lane);
        if (!slot) { /* a limit of memory: what waits here counts as latency */
            bench_sleep_until(now_ns + 100000);
            show(l, &shown_ns, scratch);
            continue;
        }
        const double late_ms = ((double)now_ns - due) * 1e-6;
        if (due >= (double)l->begin_ns && late_ms > r->late_ms_max)
            r->late_ms_max = late_ms;
        begin_call(slot, (int64_t)due);
        due += interval_ns(l->options, &random);
    }
    for (const double end = (double)(l->end_ns < now_ns ? l->end_ns : now_ns);
         due < end && !l->options->requests; due += interval_ns(l->options, &random))
        r->unsent++;
}

/* ---- the beginning and the end ---- */

int bench_connect(struct timbre_client **client, int *model_rate_hz, const struct bench_options *o) {
    struct timbre_models *models = NULL;
    struct timbre_status status;
    if (timbre_client_new(client, &o->server, &status))
        return cli_fail("bench", CLI_NOT_STARTED, "--server %s: %s", o->server.target, status.message);
    if (timbre_get_model(*client, o->model, NULL, 0, &models, &status) &&
        status.code != TIMBRE_CODE_UNIMPLEMENTED)
        return cli_fail("bench", CLI_NOT_STARTED, "--server %s: %s: %s", o->server.target,
                        timbre_code_name(status.code), status.message);
    *model_rate_hz = models ? models->models[0].sample_rate_hz : 0;
    timbre_models_free(models);
    return CLI_OK;
}

static int open_lane(struct load *l, int index) {
    struct lane *lane = &l->lanes[index];
    const struct bench_options *o = l->options;
    const int places = o->rate > 0 ? o->in_flight_max : o->concurrency;
    lane->load = l;
    lane->random = o->seed * 0x9e3779b97f4a7c15u + (uint64_t)index * 2 + 1;
    lane->slots_count = places / o->connections + (index < places % o->connections);
    lane->slots = calloc((size_t)lane->slots_count + 1, sizeof *lane->slots);
    if (!lane->slots)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    for (int i = 0; i < lane->slots_count; i++) {
        lane->slots[i] = (struct slot){.lane = lane, .next = lane->idle};
        lane->idle = &lane->slots[i];
    }
    int rate_hz;
    return bench_connect(&lane->client, &rate_hz, o);
}

static void drain(struct load *l) {
    const int deadline_ms = l->options->server.deadline_ms;
    const int64_t until_ns =
        clock_now_ns() + (int64_t)(deadline_ms > 0 ? deadline_ms + DRAIN_GRACE_MS : DRAIN_MS_MAX) * 1000000;
    while (atomic_load(&l->in_flight) > 0 && clock_now_ns() < until_ns && !interrupted)
        bench_sleep_until(clock_now_ns() + 1000000);
}

double bench_measure_cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static void measure(struct load *l, struct bench_result *r) {
    const struct bench_options *o = l->options;
    const int64_t now_ns = clock_now_ns();
    l->begin_ns = now_ns + (int64_t)(o->warmup_s * 1e9);
    l->end_ns = o->duration_s > 0 ? l->begin_ns + (int64_t)(o->duration_s * 1e9) : INT64_MAX;
    atomic_store(&l->over_ns, l->begin_ns);
    bench_catch_signal();
    const double cpu_before_s = bench_measure_cpu_s();
    if (o->rate > 0)
        run_open(l, r, &r->stats);
    else
        run_closed(l, &r->stats);
    const int64_t stopped_ns = clock_now_ns();
    r->cpu_s = (bench_measure_cpu_s() - cpu_before_s) *
               fmin(1, (double)(stopped_ns - l->begin_ns) / (double)(stopped_ns - now_ns));
    drain(l);
    const int64_t over_ns = o->requests ? atomic_load(&l->over_ns) : stopped_ns;
    r->elapsed_s = (double)((over_ns < l->end_ns ? over_ns : l->end_ns) - l->begin_ns) * 1e-9;
    r->elapsed_s = fmax(r->elapsed_s, 1e-9);
}

int bench_run(struct bench_result *r, const struct bench_options *o, const struct bench_clips *clips) {
    struct load l = {.options = o, .clips = clips};
    int result = CLI_OK;
    l.lanes = calloc((size_t)o->connections, sizeof *l.lanes);
    if (!l.lanes)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    for (int i = 0; i < o->connections; i++)
        pthread_mutex_init(&l.lanes[i].mutex, NULL);
    for (int i = 0; i < o->connections && result == CLI_OK; i++)
        result = open_lane(&l, i);
    if (result == CLI_OK)
        measure(&l, r);
    atomic_store(&l.stopped, true);
    for (int i = 0; i < o->connections; i++)
        timbre_client_del(l.lanes[i].client);
    gather(&l, &r->stats);
    for (int i = 0; i < o->connections; i++) {
        pthread_mutex_destroy(&l.lanes[i].mutex);
        free(l.lanes[i].slots);
    }
    free(l.lanes);
    bench_clear_live();
    return result;
}
