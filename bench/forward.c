/* bench/forward: the whole forward pass of a model, in one run with the FMA peak it is measured against.
 *
 * usage: bench_forward MODEL_DIR [--threads N] [--rounds N] [--device NAME] [--json]
 *
 * Columns: 1, 3 and 10 s alone, 8 clips of 3 s, and 16 clips of 1 to 10 s together (about 70 s of audio).
 * Before anything is timed, the mixed batch is checked to give each clip the bits it gets alone. Peak and
 * workloads take turns, so that a machine that changes its speed changes both; the best of the rounds is
 * printed beside the median. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/peak.h"
#include "models/model_internal.h"

enum { CLIPS_MAX = 16, WORKLOADS = 5, ROUNDS_MAX = 200 };

struct workload {
    const char *name;
    int clips;
    double seconds[CLIPS_MAX];
    double audio_s, gflop;
    double ms[ROUNDS_MAX];
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

static void make_clips(struct model_clip *clips, const struct workload *w, float *noise, float *logits,
                       int labels, int rate) {
    for (int i = 0; i < w->clips; i++)
        clips[i] = (struct model_clip){.samples = noise + 1000 * i,
                                       .count = (int64_t)(w->seconds[i] * rate),
                                       .logits = logits + i * labels};
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

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_results(double *peak, int rounds, bool json) {
    qsort(peak, (size_t)rounds, sizeof *peak, compare);
    double best_peak = peak[rounds - 1], median_peak = peak[rounds / 2];
    if (!json) {
        printf("FMA peak: best %.0f, median %.0f GF/s\n", best_peak, median_peak);
        printf("%-9s %8s %9s %9s %10s %8s %8s %12s\n", "", "audio s", "best ms", "median ms", "GF/s best",
               "% peak", "% median", "ms / audio s");
    } else {
        printf("{\"peak_best\":%g,\"peak_median\":%g", best_peak, median_peak);
    }
    for (int i = 0; i < WORKLOADS; i++) {
        struct workload *w = &workloads[i];
        qsort(w->ms, (size_t)rounds, sizeof *w->ms, compare);
        double best = w->ms[0], median = w->ms[rounds / 2];
        if (json)
            printf(",\"%s\":{\"audio_s\":%g,\"gflop\":%g,\"best_ms\":%g,\"median_ms\":%g}", w->name,
                   w->audio_s, w->gflop, best, median);
        else
            printf("%-9s %8.1f %9.2f %9.2f %10.1f %8.1f %8.1f %12.2f\n", w->name, w->audio_s, best, median,
                   w->gflop / best * 1e3, 100 * w->gflop / best * 1e3 / best_peak,
                   100 * w->gflop / median * 1e3 / median_peak, median / w->audio_s);
    }
    printf(json ? "}\n" : "");
}

static int run(const struct model *m, struct model_worker *worker, int threads, int rounds, bool json) {
    const int rate = m->config.sampling_rate, labels = m->head.labels;
    const size_t most = (size_t)(10 * rate + 1000 * CLIPS_MAX);
    static struct model_clip clips[WORKLOADS][CLIPS_MAX];
    static double peak[ROUNDS_MAX];
    float *noise = malloc(most * sizeof *noise),
          *logits = calloc((size_t)(CLIPS_MAX * labels), sizeof *logits);
    struct status st = {0};
    if (!noise || !logits)
        return 3;
    unsigned seed = 1;
    for (size_t i = 0; i < most; i++) {
        seed = seed * 1664525u + 1013904223u;
        noise[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 1e-4f;
    }
    for (int i = 0; i < WORKLOADS; i++) {
        struct workload *w = &workloads[i];
        make_clips(clips[i], w, noise, logits, labels, rate);
        for (int c = 0; c < w->clips; c++) {
            w->audio_s += w->seconds[c];
            w->gflop += count_flop(&m->config, clips[i][c].count) * 1e-9;
        }
    }
    struct model_clip *mixed = clips[WORKLOADS - 1];
    if (model_worker_run(worker, mixed, CLIPS_MAX, &st) ||
        !check_invariance(worker, mixed, CLIPS_MAX, labels)) {
        fprintf(stderr, "the batch changes a clip's bits: %s\n", st.message);
        return 1;
    }
    for (int r = 0; r < rounds; r++) {
        peak[r] = peak_measure_gflops(threads);
        for (int i = 0; i < WORKLOADS; i++) {
            int64_t start = clock_now_ns();
            if (model_worker_run(worker, clips[i], workloads[i].clips, &st))
                return 1;
            workloads[i].ms[r] = clock_elapsed_ms(start);
        }
    }
    print_results(peak, rounds, json);
    free(noise);
    free(logits);
    return 0;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"rounds", required_argument, NULL, 'r'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"json", no_argument, NULL, 'j'},
                                            {NULL, 0, NULL, 0}};
    struct model_options o = {.pin = true};
    struct status st = {0};
    struct model *m;
    struct model_worker *worker;
    int rounds = 15;
    bool json = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 't')
            o.threads = atoi(optarg);
        else if (option == 'r')
            rounds = atoi(optarg);
        else if (option == 'd')
            o.device = optarg;
        else if (option == 'j')
            json = true;
        else
            return 2;
    }
    if (optind + 1 != argc || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr,
                "usage: bench_forward MODEL_DIR [--threads N] [--rounds 1..%d] [--device NAME] [--json]\n",
                ROUNDS_MAX);
        return 2;
    }
    if (model_new(&m, argv[optind], &o, &st) || model_worker_new(&worker, m, 0, 90 * 16000, CLIPS_MAX, &st)) {
        fprintf(stderr, "bench_forward: %s\n", st.message);
        return 3;
    }
    if (!json)
        printf("%s, %s, fp32\n", argv[optind], model_get_info(m)->device);
    int result = run(m, worker, o.threads, rounds, json);
    model_worker_del(worker);
    model_del(m);
    return result;
}
