/* bench/engine: the engine alone, without a network, and with --server the same calls to a server in turns
 * with it.
 *
 * usage: bench_engine MODEL_DIR [OPTION]...
 *   --server ADDRESS        a server of the same model; engine and server take turns, round by round
 *   --cpu-mode NAME         as `timbre serve` has it; all: an engine of each, which take turns likewise
 *   --hog N                 each round once more while another process keeps processor N busy
 *   --concurrency N         calls in flight; default 64
 *   --calls N, --rounds N   calls of a round, and rounds; default 128 and 3
 *   --lengths A-B           seconds of the clips, spread evenly over A to B; default 1-10
 *   --threads N, --no-pin, --device NAME, --precision NAME, --max-batch-seconds S   as `timbre predict` has
 * them
 *   --json                  one JSON object instead of the table
 *
 * Clips are raw PCM16 of 16 kHz. A round is a fixed list of calls, kept in flight by a closed loop, and its
 * time is from the first call to the last answer: work that a batch has begun is never cut off, so a round is
 * as exact when a batch takes two seconds as when it takes one millisecond. Both ways get the same bytes
 * through the same loop, so what differs is the server. Every answer is compared bit for bit with the first
 * one of its clip, and some clips run alone before anything is timed; a difference ends the program with
 * status 1. */
#include <getopt.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/client.h"
#include "engine/engine.h"

enum {
    RATE_HZ = 16000,
    CLIPS_MAX = 256, /* different ones; longer lists begin again */
    CALLS_MAX = 1000000,
    ROUNDS_MAX = 1000,
    CONCURRENCY_MAX = 4096,
    ALONE_CLIPS = 4, /* run alone first, so that the batch is checked */
    WARM_CALLS = 16,
    WAYS_MAX = 3,
};

static const char *const cpu_modes[] = {
    [ENGINE_CPU_AUTO] = "auto", [ENGINE_CPU_LATENCY] = "latency", [ENGINE_CPU_THROUGHPUT] = "throughput"};
enum { CPU_MODES = sizeof cpu_modes / sizeof *cpu_modes };

struct arguments {
    const char *model_dir, *server;
    struct model_options model;
    double batch_s_max, shortest_s, longest_s;
    int concurrency, calls, rounds;
    int cpu_mode; /* CPU_MODES: all */
    int hog;      /* processor; -1: none */
    bool json;
};

struct clip {
    int16_t *samples;
    size_t bytes;
    double seconds;
    float *expected; /* [labels] logits of the first answer */
    bool answered;
};

struct bench;

struct call {
    struct bench *bench;
    const struct way *way;
    struct clip *clip;
    struct engine_request *request; /* of the engine's way */
    int64_t start_ns, end_ns;
    float *logits; /* [labels] */
    struct status status;
};

/* A way to get a call answered: `start` returns 0, and the call comes to bench->done when it is over. */
struct way {
    const char *name;
    int (*start)(struct call *c);
    struct engine *engine; /* NULL: not in an engine of ours */
    struct engine_model *model;
    struct figures {
        double *rates;     /* [rounds] audio seconds a second */
        double *latencies; /* [rounds * calls] ms, in the order of the calls */
    } quiet, disturbed;
};

struct bench {
    struct arguments arguments;
    pid_t hog; /* stopped but for the disturbed rounds; 0: none */
    struct timbre_client *client;
    struct queue *done; /* of struct call */
    struct call *calls; /* [calls] */
    struct clip clips[CLIPS_MAX];
    int clips_count, labels;
    struct way ways[WAYS_MAX];
    int ways_count;
};

/* ---- the two ways ---- */

static void engine_answered(void *arg) {
    struct call *c = arg;
    c->end_ns = clock_now_ns();
    queue_put(c->bench->done, c);
}

static int start_in_engine(struct call *c) {
    const struct engine_request_options o = {
        .model = c->way->model,
        .format = {.encoding = AUDIO_PCM16, .rate_hz = RATE_HZ, .channels = 1},
        .order = ENGINE_UNARY,
        .wake = engine_answered,
        .wake_arg = c};
    const struct engine_piece piece = {.data = c->clip->samples, .bytes = c->clip->bytes};
    if (engine_open(&c->request, &o, &c->status) == 0 &&
        engine_give(c->request, &piece, 1, NULL, NULL, &c->status) == 0 &&
        engine_finish(c->request, false, &c->status) == 0)
        return 0;
    engine_close(c->request);
    c->request = NULL;
    return -1;
}

/* Takes what the engine answered; of the server's way that has happened in its callback. */
static void take_engine_answer(struct call *c) {
    if (!c->request)
        return;
    const struct engine_result *r = engine_get_result(c->request);
    if (r->outcome == ENGINE_OK)
        memcpy(c->logits, r->logits, (size_t)c->bench->labels * sizeof *c->logits);
    else if (r->outcome == ENGINE_ERROR)
        c->status = r->status;
    else
        status_set(&c->status, STATUS_INTERNAL, "answered %s", engine_outcome_name(r->outcome));
    engine_close(c->request);
    c->request = NULL;
}

static void server_answered(struct timbre_prediction *p, const struct timbre_status *st, void *user) {
    struct call *c = user;
    const size_t labels = (size_t)c->bench->labels;
    c->end_ns = clock_now_ns();
    if (!p)
        status_set(&c->status, (enum status_code)st->code, "%s", st->message);
    else if (p->answer != TIMBRE_ANSWER_OK || p->scores_count != labels)
        status_set(&c->status, STATUS_INTERNAL, "answered %s", timbre_answer_name(p->answer));
    else
        for (size_t i = 0; i < labels; i++)
            c->logits[i] = p->scores[i].logit;
    timbre_prediction_free(p);
    queue_put(c->bench->done, c);
}

static void keep(void *arg) {
    (void)arg; /* the clips outlive the client */
}

static int start_at_server(struct call *c) {
    const struct timbre_predict_request r = {.audio = c->clip->samples,
                                             .audio_bytes = c->clip->bytes,
                                             .release = keep,
                                             .encoding = TIMBRE_ENCODING_PCM16,
                                             .sample_rate_hz = RATE_HZ,
                                             .channels = 1,
                                             .deadline_ms = TIMBRE_NO_DEADLINE};
    struct timbre_status st;
    if (timbre_predict_start(c->bench->client, &r, server_answered, c, NULL, &st) == 0)
        return 0;
    return status_set(&c->status, (enum status_code)st.code, "%s", st.message);
}

/* ---- a round ---- */

/* The bits of the first answer to a clip are those of every other. */
static int check_answer(struct call *c) {
    const size_t bytes = (size_t)c->bench->labels * sizeof *c->logits;
    if (c->status.code != STATUS_OK)
        return -1;
    if (!c->clip->answered)
        memcpy(c->clip->expected, c->logits, bytes);
    c->clip->answered = true;
    if (memcmp(c->clip->expected, c->logits, bytes) == 0)
        return 0;
    return status_set(&c->status, STATUS_INTERNAL, "other bits than the first answer to this clip");
}

static int complain(const struct way *way, const struct call *c) {
    fprintf(stderr, "bench_engine: %s, clip of %.2f s: %s\n", way->name, c->clip->seconds, c->status.message);
    return 1;
}

/* Runs the first `count` calls; *elapsed_s and *audio_s may be NULL. Says on standard error what went wrong.
 */
static int run_calls(struct bench *b, const struct way *way, int count, int in_flight_max, double *elapsed_s,
                     double *audio_s) {
    const int64_t start_ns = clock_now_ns();
    int64_t end_ns = start_ns;
    int started = 0, in_flight = 0, failed = 0;
    double audio = 0;
    while (in_flight || (started < count && !failed)) {
        if (started < count && !failed && in_flight < in_flight_max) {
            struct call *c = &b->calls[started++];
            status_clear(&c->status);
            c->way = way;
            c->start_ns = clock_now_ns();
            if (way->start(c) == 0)
                in_flight++;
            else
                failed += complain(way, c);
            continue;
        }
        struct call *c = queue_take(b->done);
        in_flight--;
        take_engine_answer(c);
        if (check_answer(c))
            failed += complain(way, c);
        audio += c->clip->seconds;
        end_ns = c->end_ns > end_ns ? c->end_ns : end_ns;
    }
    if (elapsed_s)
        *elapsed_s = (double)(end_ns - start_ns) * 1e-9;
    if (audio_s)
        *audio_s = audio;
    return failed ? -1 : 0;
}

/* All ways in turn, each first once. */
static int run_round(struct bench *b, int round, bool disturbed) {
    const struct arguments *a = &b->arguments;
    for (int w = 0; w < b->ways_count; w++) {
        struct way *way = &b->ways[(w + round) % b->ways_count];
        struct figures *f = disturbed ? &way->disturbed : &way->quiet;
        double elapsed_s, audio_s;
        if (run_calls(b, way, a->calls, a->concurrency, &elapsed_s, &audio_s))
            return -1;
        f->rates[round] = audio_s / elapsed_s;
        for (int i = 0; i < a->calls; i++)
            f->latencies[round * a->calls + i] = (double)(b->calls[i].end_ns - b->calls[i].start_ns) * 1e-6;
    }
    return 0;
}

static int run_rounds(struct bench *b) {
    const struct arguments *a = &b->arguments;
    const int alone = a->calls < ALONE_CLIPS ? a->calls : ALONE_CLIPS;
    const int warm = a->calls < WARM_CALLS ? a->calls : WARM_CALLS;
    if (run_calls(b, &b->ways[0], alone, 1, NULL, NULL))
        return -1;
    for (int w = 0; w < b->ways_count; w++)
        if (run_calls(b, &b->ways[w], warm, a->concurrency, NULL, NULL))
            return -1;
    for (int r = 0; r < a->rounds; r++) {
        if (run_round(b, r, false))
            return -1;
        if (!b->hog)
            continue;
        kill(b->hog, SIGCONT);
        const int result = run_round(b, r, true);
        kill(b->hog, SIGSTOP);
        if (result)
            return -1;
    }
    return 0;
}

/* ---- figures ---- */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which `share` of them lie; `values` get sorted. */
static double find_quantile(double *values, int count, double share) {
    qsort(values, (size_t)count, sizeof *values, compare);
    int at = (int)ceil(share * count) - 1;
    return values[at < 0 ? 0 : at];
}

/* The middle of second / first, or second - first. */
static double find_median_gap(const double *first, const double *second, int count, bool ratio) {
    double *gaps = calloc((size_t)count, sizeof *gaps), median = NAN;
    if (gaps) {
        for (int i = 0; i < count; i++)
            gaps[i] = ratio ? second[i] / first[i] : second[i] - first[i];
        median = find_quantile(gaps, count, 0.5);
    }
    free(gaps);
    return median;
}

static void print_figures(const char *name, struct figures *f, const struct arguments *a, double clip_s) {
    const int count = a->rounds * a->calls;
    const double p50 = find_quantile(f->latencies, count, 0.5),
                 p99 = find_quantile(f->latencies, count, 0.99);
    if (a->json) {
        printf(",\"%s\":{\"rounds_audio_s_per_s\":[", name);
        for (int r = 0; r < a->rounds; r++)
            printf("%s%.6g", r ? "," : "", f->rates[r]);
    }
    const double rate = find_quantile(f->rates, a->rounds, 0.5);
    if (a->json)
        printf("],\"audio_s_per_s\":%.6g,\"calls_per_s\":%.6g,\"p50_ms\":%.6g,\"p99_ms\":%.6g}", rate,
               rate / clip_s, p50, p99);
    else
        printf("%-21s %14.2f %12.1f %10.3f %10.3f\n", name, rate, rate / clip_s, p50, p99);
}

static void print_way(struct way *way, const struct arguments *a, double clip_s, bool with_hog) {
    char name[64];
    const double kept =
        with_hog ? find_median_gap(way->quiet.rates, way->disturbed.rates, a->rounds, true) : NAN;
    print_figures(way->name, &way->quiet, a, clip_s);
    if (!with_hog)
        return;
    snprintf(name, sizeof name, "%s%s", way->name, a->json ? "_disturbed" : ", disturbed");
    print_figures(name, &way->disturbed, a, clip_s);
    printf(a->json ? ",\"%s_kept\":%.6g" : "%s keeps %.3f of its rate, median of rounds\n", way->name, kept);
}

static void print_results(struct bench *b) {
    const struct arguments *a = &b->arguments;
    const struct model_info *info = model_get_info(engine_model_get(b->ways[0].model));
    double audio_s = 0;
    for (int i = 0; i < a->calls; i++)
        audio_s += b->calls[i].clip->seconds;
    double ratio = NAN, gap_ms = NAN;
    if (a->server) { /* before the figures get sorted */
        const struct figures *engine = &b->ways[0].quiet, *server = &b->ways[1].quiet;
        ratio = find_median_gap(engine->rates, server->rates, a->rounds, true);
        gap_ms = find_median_gap(engine->latencies, server->latencies, a->rounds * a->calls, false);
    }
    if (a->json)
        printf("{\"device\":\"%s\",\"precision\":\"%s\",\"concurrency\":%d,\"calls\":%d,\"rounds\":%d,"
               "\"round_audio_s\":%.6g",
               info->device, info->precision, a->concurrency, a->calls, a->rounds, audio_s);
    else
        printf("%s, %s, %s: %d in flight, %d rounds of %d clips of %g to %g s (%.1f s); every answer had the "
               "bits of "
               "the first\n%-21s %14s %12s %10s %10s\n",
               a->model_dir, info->device, info->precision, a->concurrency, a->rounds, a->calls,
               a->shortest_s, a->longest_s, audio_s, "", "audio s / s", "calls / s", "p50 ms", "p99 ms");
    for (int w = 0; w < b->ways_count; w++)
        print_way(&b->ways[w], a, audio_s / a->calls, b->hog != 0);
    if (a->server && a->json)
        printf(",\"ratio\":%.6g,\"gap_ms\":%.6g", ratio, gap_ms);
    else if (a->server)
        printf("server / engine, median of rounds: %.4f; latency of the same call, median: %+.3f ms\n", ratio,
               gap_ms);
    printf(a->json ? "}\n" : "");
}

/* ---- start ---- */

static int make_clips(struct bench *b) {
    const struct arguments *a = &b->arguments;
    unsigned noise = 1;
    b->clips_count = a->calls < CLIPS_MAX ? a->calls : CLIPS_MAX;
    for (int i = 0; i < b->clips_count; i++) {
        /* Multiples of the golden ratio fill an interval evenly however many there are. */
        const double at = fmod((i + 0.5) * 0.6180339887498949, 1.0);
        const size_t count = (size_t)((a->shortest_s + (a->longest_s - a->shortest_s) * at) * RATE_HZ);
        struct clip *clip = &b->clips[i];
        clip->samples = calloc(count, sizeof *clip->samples);
        clip->expected = calloc((size_t)b->labels, sizeof *clip->expected);
        if (!clip->samples || !clip->expected)
            return -1;
        for (size_t s = 0; s < count; s++) {
            noise = noise * 1664525u + 1013904223u;
            clip->samples[s] = (int16_t)((int)(noise >> 16) % 6001 - 3000);
        }
        clip->bytes = count * sizeof *clip->samples;
        clip->seconds = (double)count / RATE_HZ;
    }
    return 0;
}

static int make_calls(struct bench *b) {
    const struct arguments *a = &b->arguments;
    const size_t calls = (size_t)a->calls, rounds = (size_t)a->rounds;
    float *logits = calloc(calls, (size_t)b->labels * sizeof *logits);
    b->calls = calloc(calls, sizeof *b->calls);
    if (!b->calls || !logits)
        return -1;
    for (int i = 0; i < a->calls; i++)
        b->calls[i] = (struct call){.bench = b,
                                    .clip = &b->clips[i % b->clips_count],
                                    .logits = logits + (size_t)i * (size_t)b->labels};
    for (int w = 0; w < b->ways_count; w++) {
        struct figures *const both[] = {&b->ways[w].quiet, &b->ways[w].disturbed};
        for (int i = 0; i < 2; i++) {
            both[i]->rates = calloc(rounds, sizeof(double));
            both[i]->latencies = calloc(rounds * calls, sizeof(double));
            if (!both[i]->rates || !both[i]->latencies)
                return -1;
        }
    }
    return 0;
}

static int start_engine(struct bench *b, const char *name, int cpu_mode, struct status *st) {
    const struct arguments *a = &b->arguments;
    struct way *way = &b->ways[b->ways_count++];
    struct engine_options o;
    engine_options_init(&o);
    o.batch_s_max = a->batch_s_max;
    o.cpu_mode = (enum engine_cpu_mode)cpu_mode;
    o.queue_depth = a->concurrency;
    o.queued_s_max = a->concurrency * a->longest_s + 1;
    *way = (struct way){.name = name, .start = start_in_engine};
    if (engine_new(&way->engine, &o, st) ||
        engine_model_load(&way->model, way->engine, "bench", a->model_dir, &a->model, st))
        return -1;
    b->labels = model_get_info(engine_model_get(way->model))->labels_count;
    return 0;
}

static int start(struct bench *b, struct status *st) {
    const struct arguments *a = &b->arguments;
    if (queue_new(&b->done, (size_t)a->concurrency, st))
        return -1;
    for (int mode = 0; mode < CPU_MODES && a->cpu_mode == CPU_MODES; mode++)
        if (start_engine(b, cpu_modes[mode], mode, st))
            return -1;
    if (a->cpu_mode < CPU_MODES && start_engine(b, "engine", a->cpu_mode, st))
        return -1;
    if (a->server) {
        struct timbre_status why;
        const struct timbre_client_options c = {.target = a->server, .attempts_max = 1};
        b->ways[b->ways_count++] = (struct way){.name = "server", .start = start_at_server};
        if (timbre_client_new(&b->client, &c, &why))
            return status_set(st, STATUS_UNAVAILABLE, "%s", why.message);
    }
    if (make_clips(b) || make_calls(b))
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "out of memory for %d calls", a->calls);
    return 0;
}

/* Another process that does nothing but take one processor; it waits until it is told. Before there are
 * threads. */
static pid_t start_hog(int processor) {
    const pid_t pid = fork();
    if (pid != 0) {
        if (pid > 0)
            kill(pid, SIGSTOP);
        return pid;
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (sched_setaffinity(0, sizeof one, &one) != 0)
        _exit(1);
    for (volatile unsigned i = 0;; i++) {
    }
}

static void end_hog(pid_t pid) {
    kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

static bool in_range(const char *name, int n, int max) {
    if (n >= 1 && n <= max)
        return true;
    fprintf(stderr, "bench_engine: --%s is 1 to %d\n", name, max);
    return false;
}

static int find_cpu_mode(const char *name) {
    for (int i = 0; i < CPU_MODES; i++)
        if (strcmp(name, cpu_modes[i]) == 0)
            return i;
    return strcmp(name, "all") == 0 ? CPU_MODES : -1;
}

static bool parse(struct arguments *a, int argc, char **argv) {
    static const struct option options[] = {
        {"server", required_argument, NULL, 's'},  {"concurrency", required_argument, NULL, 'c'},
        {"calls", required_argument, NULL, 'n'},   {"rounds", required_argument, NULL, 'r'},
        {"lengths", required_argument, NULL, 'l'}, {"threads", required_argument, NULL, 't'},
        {"device", required_argument, NULL, 'd'},  {"max-batch-seconds", required_argument, NULL, 'b'},
        {"json", no_argument, NULL, 'j'},          {"cpu-mode", required_argument, NULL, 'm'},
        {"hog", required_argument, NULL, 'h'},     {"precision", required_argument, NULL, 'p'},
        {"no-pin", no_argument, NULL, 'f'},        {NULL, 0, NULL, 0}};
    *a = (struct arguments){.model = {.pin = true},
                            .batch_s_max = ENGINE_BATCH_S_MAX_DEFAULT,
                            .shortest_s = 1,
                            .longest_s = 10,
                            .concurrency = 64,
                            .calls = 128,
                            .rounds = 3,
                            .hog = -1};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 's':
            a->server = optarg;
            break;
        case 'c':
            a->concurrency = atoi(optarg);
            break;
        case 'n':
            a->calls = atoi(optarg);
            break;
        case 'r':
            a->rounds = atoi(optarg);
            break;
        case 't':
            a->model.threads = atoi(optarg);
            break;
        case 'd':
            a->model.device = optarg;
            break;
        case 'b':
            a->batch_s_max = atof(optarg);
            break;
        case 'j':
            a->json = true;
            break;
        case 'm':
            a->cpu_mode = find_cpu_mode(optarg);
            break;
        case 'h':
            a->hog = atoi(optarg);
            break;
        case 'p':
            a->model.precision = optarg;
            break;
        case 'f':
            a->model.pin = false;
            break;
        case 'l':
            if (sscanf(optarg, "%lf-%lf", &a->shortest_s, &a->longest_s) == 2)
                break;
            /* fall through */
        default:
            return false;
        }
    }
    if (optind + 1 != argc || a->cpu_mode < 0 || (a->cpu_mode == CPU_MODES && a->server))
        return false;
    a->model_dir = argv[optind];
    if (!(a->shortest_s >= 0.1 && a->longest_s >= a->shortest_s && a->longest_s <= ENGINE_WHOLE_S_MAX)) {
        fprintf(stderr, "bench_engine: --lengths lie in 0.1 to %g\n", ENGINE_WHOLE_S_MAX);
        return false;
    }
    return in_range("concurrency", a->concurrency, CONCURRENCY_MAX) &&
           in_range("calls", a->calls, CALLS_MAX) && in_range("rounds", a->rounds, ROUNDS_MAX);
}

int main(int argc, char **argv) {
    static struct bench bench;
    struct status st = {0};
    if (!parse(&bench.arguments, argc, argv)) {
        fprintf(stderr,
                "usage: bench_engine MODEL_DIR [--server ADDRESS | --cpu-mode NAME] [--hog PROCESSOR] "
                "[--concurrency N] [--calls N] [--rounds N] [--lengths A-B] [--threads N] [--no-pin] "
                "[--device NAME] [--precision NAME] [--max-batch-seconds S] [--json]\n");
        return 2;
    }
    if (bench.arguments.hog >= 0 && (bench.hog = start_hog(bench.arguments.hog)) < 0) {
        perror("bench_engine: --hog");
        return 3;
    }
    int result = 3;
    if (start(&bench, &st))
        fprintf(stderr, "bench_engine: %s\n", st.message);
    else
        result = run_rounds(&bench) ? 1 : 0;
    if (result == 0)
        print_results(&bench);
    timbre_client_del(bench.client);
    for (int w = 0; w < bench.ways_count; w++)
        engine_del(bench.ways[w].engine);
    if (bench.hog)
        end_hog(bench.hog);
    return result;
}
