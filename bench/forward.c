/* bench/forward: the whole forward pass of a model, in one run with the peak it is measured against.
 *
 * usage: bench_forward MODEL_DIR [--precision NAME,...] [--threads N] [--rounds N] [--device NAME] [--json]
 *        bench_forward MODEL_DIR [--precision NAME] [--threads N] [--device NAME] --requests
 *
 * Columns: 1, 3 and 10 s alone, 8 clips of 3 s, and 16 clips of 1 to 10 s together (about 70 s of audio).
 * Before anything is timed, the mixed batch is checked to give each clip the bits it gets alone. Peaks,
 * columns and precisions take turns, so that a machine that changes its speed changes all of them; the best
 * of the rounds is printed beside the median. A precision is compared with its own peak, and its logits with
 * those of the first one named.
 *
 * With --requests it answers lines of standard input, so that bench/peers.py can let it take turns with other
 * programs. The first line out is an object that says what it runs; each answer is a list of numbers:
 *
 *   peak                 GF/s of the precision, now
 *   peak ISA             of fp32 by avx512, avx2 or portable instructions
 *   time RUNS COLUMN     milliseconds of each run
 *   logits FILE          of a clip: float32 samples at the model's rate */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/peak.h"
#include "models/model_internal.h"

enum {
    CLIPS_MAX = 16,
    WORKLOADS = 5,
    ROUNDS_MAX = 200,
    SUBJECTS_MAX = 3,
    SAMPLES_MAX = 90 * 16000, /* of a batch */
    LINE_BYTES_MAX = 4096,    /* of a request */
};

struct workload {
    const char *name;
    int clips;
    double seconds[CLIPS_MAX];
    double audio_s, gflop;
    struct model_clip clip[CLIPS_MAX];
};

static struct workload workloads[WORKLOADS] = {
    {.name = "1 s", .clips = 1, .seconds = {1}},
    {.name = "3 s", .clips = 1, .seconds = {3}},
    {.name = "10 s", .clips = 1, .seconds = {10}},
    {.name = "8 x 3 s", .clips = 8, .seconds = {3, 3, 3, 3, 3, 3, 3, 3}},
    {.name = "16 mixed",
     .clips = 16,
     .seconds = {1.0, 9.3, 2.4, 6.1, 3.7, 1.6, 8.2, 4.9, 2.0, 5.5, 3.1, 10.0, 1.3, 6.8, 2.7, 1.1}},
};

/* A precision that is timed. */
struct subject {
    const char *precision;
    struct model *model;
    struct model_worker *worker;
    double peak[ROUNDS_MAX], ms[WORKLOADS][ROUNDS_MAX];
};

struct bench {
    struct subject subjects[SUBJECTS_MAX];
    int subjects_count;
    int threads, rounds, labels;
    bool json;
    float *noise, *logits;
};

/* Multiplications and additions of a clip, counted as two each: what the layers need, whatever a kernel does.
 */
static double count_flop(const struct config *c, int64_t samples) {
    double flop = 0;
    for (int l = 0; l < c->conv.levels; l++)
        flop += 2.0 * (double)batch_count_rows(&c->conv, l + 1, samples) * c->conv_dim[l] *
                c->conv.kernel[l] * (l ? c->conv_dim[l - 1] : 1);
    double t = (double)batch_count_rows(&c->conv, c->conv.levels, samples), h = c->hidden;
    flop += 2 * t * c->conv_dim[c->conv.levels - 1] * h;
    flop += 2 * t * h * (h / c->pos_conv_groups) * c->pos_conv_kernel;
    flop += c->layers * (2 * t * h * h * 4 + 2 * t * h * c->intermediate * 2 + 4 * t * t * h);
    return flop;
}

/* All workloads read the same noise and write the same logits. */
static int make_clips(struct bench *b) {
    const struct model *m = b->subjects[0].model;
    const int rate = m->config.sampling_rate;
    const size_t most = (size_t)(10 * rate + 1000 * CLIPS_MAX);
    unsigned seed = 1;
    b->labels = m->head.labels;
    b->noise = malloc(most * sizeof *b->noise);
    b->logits = calloc((size_t)(CLIPS_MAX * b->labels), sizeof *b->logits);
    if (!b->noise || !b->logits)
        return -1;
    for (size_t i = 0; i < most; i++) {
        seed = seed * 1664525u + 1013904223u;
        b->noise[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 1e-4f;
    }
    for (int i = 0; i < WORKLOADS; i++) {
        struct workload *w = &workloads[i];
        for (int c = 0; c < w->clips; c++) {
            w->clip[c] = (struct model_clip){.samples = b->noise + 1000 * c,
                                             .count = (int64_t)(w->seconds[c] * rate),
                                             .logits = b->logits + c * b->labels};
            w->audio_s += w->seconds[c];
            w->gflop += count_flop(&m->config, w->clip[c].count) * 1e-9;
        }
    }
    return 0;
}

/* True when every clip of the batch has the bits it has alone. */
static bool check_invariance(struct model_worker *w, const struct model_clip *clips, int count, int labels) {
    float *alone = malloc((size_t)labels * sizeof *alone);
    bool same = alone != NULL;
    for (int i = 0; same && i < count; i++) {
        struct model_clip clip = clips[i];
        struct status st;
        clip.logits = alone;
        same = model_worker_run(w, &clip, 1, &st) == 0 &&
               memcmp(alone, clips[i].logits, (size_t)labels * sizeof *alone) == 0;
    }
    free(alone);
    return same;
}

/* sqrt(sum of (x - y)^2 / sum of y^2) */
static double find_relative_rms(const float *x, const float *y, int n) {
    double gap = 0, size = 0;
    for (int i = 0; i < n; i++) {
        gap += pow((double)x[i] - (double)y[i], 2);
        size += pow(y[i], 2);
    }
    return sqrt(gap / size);
}

/* Also warms all precisions up. */
static int check(struct bench *b) {
    struct workload *mixed = &workloads[WORKLOADS - 1];
    const int n = mixed->clips * b->labels;
    float *first = malloc((size_t)n * sizeof *first);
    int result = first ? 0 : 3;
    for (int i = 0; i < b->subjects_count && !result; i++) {
        struct subject *s = &b->subjects[i];
        struct status st = {0};
        if (model_worker_run(s->worker, mixed->clip, mixed->clips, &st) ||
            !check_invariance(s->worker, mixed->clip, mixed->clips, b->labels)) {
            fprintf(stderr, "%s: the batch changes a clip's bits: %s\n", s->precision, st.message);
            result = 1;
        } else if (i == 0) {
            memcpy(first, b->logits, (size_t)n * sizeof *first);
        } else if (!b->json) {
            printf("%s: relative RMS of the logits against %s %.1e\n", s->precision, b->subjects[0].precision,
                   find_relative_rms(b->logits, first, n));
        }
    }
    free(first);
    return result;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_results(struct subject *s, int rounds, bool json) {
    qsort(s->peak, (size_t)rounds, sizeof *s->peak, compare);
    double best_peak = s->peak[rounds - 1], median_peak = s->peak[rounds / 2];
    if (!json) {
        printf("\n%s peak: best %.0f, median %.0f, lowest %.0f GF/s\n", s->precision, best_peak, median_peak,
               s->peak[0]);
        printf("%-9s %8s %9s %9s %10s %8s %8s %12s\n", "", "audio s", "best ms", "median ms", "GF/s best",
               "% peak", "% median", "ms / audio s");
    } else {
        printf("\"%s\":{\"peak_best\":%g,\"peak_median\":%g,\"peak_lowest\":%g", s->precision, best_peak,
               median_peak, s->peak[0]);
    }
    for (int i = 0; i < WORKLOADS; i++) {
        const struct workload *w = &workloads[i];
        qsort(s->ms[i], (size_t)rounds, sizeof *s->ms[i], compare);
        double best = s->ms[i][0], median = s->ms[i][rounds / 2];
        if (json)
            printf(",\"%s\":{\"audio_s\":%g,\"gflop\":%g,\"best_ms\":%g,\"median_ms\":%g}", w->name,
                   w->audio_s, w->gflop, best, median);
        else
            printf("%-9s %8.1f %9.2f %9.2f %10.1f %8.1f %8.1f %12.2f\n", w->name, w->audio_s, best, median,
                   w->gflop / best * 1e3, 100 * w->gflop / best * 1e3 / best_peak,
                   100 * w->gflop / median * 1e3 / median_peak, median / w->audio_s);
    }
    printf(json ? "}" : "");
}

/* Milliseconds of one run, below 0 when it failed. */
static double time_run(struct subject *s, struct workload *w) {
    struct status st;
    int64_t start = clock_now_ns();
    if (model_worker_run(s->worker, w->clip, w->clips, &st)) {
        fprintf(stderr, "%s, %s: %s\n", s->precision, w->name, st.message);
        return -1;
    }
    return clock_elapsed_ms(start);
}

static int run_rounds(struct bench *b) {
    int result = check(b);
    if (result)
        return result;
    for (int r = 0; r < b->rounds; r++) {
        for (int k = 0; k < b->subjects_count; k++) {
            struct subject *s = &b->subjects[k];
            s->peak[r] = peak_measure_precision_gflops(s->precision, b->threads);
        }
        for (int i = 0; i < WORKLOADS; i++)
            for (int k = 0; k < b->subjects_count; k++) {
                struct subject *s = &b->subjects[k];
                s->ms[i][r] = time_run(s, &workloads[i]);
                if (s->ms[i][r] < 0)
                    return 1;
            }
    }
    for (int k = 0; k < b->subjects_count; k++) {
        printf(b->json ? k ? "," : "{" : "");
        print_results(&b->subjects[k], b->rounds, b->json);
    }
    printf(b->json ? "}\n" : "");
    return 0;
}

/* ---- requests */

static int answer_time(struct subject *s, int runs, const char *column) {
    for (int i = 0; i < WORKLOADS; i++) {
        if (strcmp(column, workloads[i].name) != 0)
            continue;
        for (int r = 0; r < runs; r++) {
            double ms = time_run(s, &workloads[i]);
            if (ms < 0)
                return -1;
            printf("%s%.4f", r ? "," : "", ms);
        }
        return 0;
    }
    fprintf(stderr, "no such column: %s\n", column);
    return -1;
}

static int answer_logits(struct bench *b, const char *path) {
    struct status st = {.message = "cannot be read"};
    FILE *f = fopen(path, "rb");
    float *samples = malloc(SAMPLES_MAX * sizeof *samples);
    struct model_clip clip = {.samples = samples, .logits = b->logits};
    if (f && samples)
        clip.count = (int64_t)fread(samples, sizeof *samples, SAMPLES_MAX, f);
    int result = clip.count ? model_worker_run(b->subjects[0].worker, &clip, 1, &st) : -1;
    for (int i = 0; i < b->labels && !result; i++)
        printf("%s%.9g", i ? "," : "", b->logits[i]);
    if (result)
        fprintf(stderr, "%s: %s\n", path, st.message);
    free(samples);
    if (f)
        fclose(f);
    return result;
}

static int answer_requests(struct bench *b) {
    struct subject *s = &b->subjects[0];
    const struct model_info *info = model_get_info(s->model);
    char line[LINE_BYTES_MAX], word[LINE_BYTES_MAX];
    int result = check(b), runs;
    if (result)
        return result;
    printf("{\"device\":\"%s\",\"precision\":\"%s\",\"gflop\":{", info->device, info->precision);
    for (int i = 0; i < WORKLOADS; i++)
        printf("%s\"%s\":%g", i ? "," : "", workloads[i].name, workloads[i].gflop);
    printf("}}\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("[");
        if (strcmp(line, "peak\n") == 0)
            printf("%.2f", peak_measure_precision_gflops(s->precision, b->threads));
        else if (sscanf(line, "peak %[^\n]", word) == 1)
            printf("%.2f", peak_measure_isa_gflops(word, b->threads));
        else if (sscanf(line, "time %d %[^\n]", &runs, word) == 2)
            result = answer_time(s, runs, word);
        else if (sscanf(line, "logits %[^\n]", word) == 1)
            result = answer_logits(b, word);
        else
            result = -1;
        if (result) {
            fprintf(stderr, "could not answer: %s", line);
            return 2;
        }
        printf("]\n");
        fflush(stdout);
    }
    return 0;
}

/* ---- main */

/* Loads a model for each name of `precisions`, which is cut into them; NULL: the one that auto takes. */
static int load(struct bench *b, const char *dir, struct model_options o, char *precisions) {
    struct status st = {0};
    char *rest = NULL, *name = precisions ? strtok_r(precisions, ",", &rest) : NULL;
    do {
        struct subject *s = &b->subjects[b->subjects_count];
        if (b->subjects_count == SUBJECTS_MAX) {
            fprintf(stderr, "bench_forward: more than %d precisions\n", SUBJECTS_MAX);
            return 2;
        }
        o.precision = name;
        b->subjects_count++;
        if (model_new(&s->model, dir, &o, &st) ||
            model_worker_new(&s->worker, s->model, 0, SAMPLES_MAX, CLIPS_MAX, &st)) {
            fprintf(stderr, "bench_forward: %s\n", st.message);
            return 3;
        }
        s->precision = model_get_info(s->model)->precision;
        name = precisions ? strtok_r(NULL, ",", &rest) : NULL;
    } while (name);
    return make_clips(b) ? 3 : 0;
}

static void bench_free(struct bench *b) {
    for (int i = 0; i < b->subjects_count; i++) {
        model_worker_del(b->subjects[i].worker);
        model_del(b->subjects[i].model);
    }
    free(b->noise);
    free(b->logits);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"rounds", required_argument, NULL, 'r'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"precision", required_argument, NULL, 'p'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"requests", no_argument, NULL, 'q'},
                                            {NULL, 0, NULL, 0}};
    static struct bench b = {.rounds = 15};
    struct model_options o = {.pin = true};
    char *precisions = NULL;
    bool requests = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 't')
            b.threads = o.threads = atoi(optarg);
        else if (option == 'r')
            b.rounds = atoi(optarg);
        else if (option == 'd')
            o.device = optarg;
        else if (option == 'p')
            precisions = optarg;
        else if (option == 'j')
            b.json = true;
        else if (option == 'q')
            requests = b.json = true;
        else
            return 2;
    }
    if (optind + 1 != argc || b.rounds < 1 || b.rounds > ROUNDS_MAX) {
        fprintf(stderr,
                "usage: bench_forward MODEL_DIR [--precision NAME,...] [--threads N] [--rounds 1..%d] "
                "[--device NAME] [--json | --requests]\n",
                ROUNDS_MAX);
        return 2;
    }
    int result = load(&b, argv[optind], o, precisions);
    if (!result && !b.json)
        printf("%s, %s\n", argv[optind], model_get_info(b.subjects[0].model)->device);
    if (!result)
        result = requests ? answer_requests(&b) : run_rounds(&b);
    bench_free(&b);
    return result;
}
