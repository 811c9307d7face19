/* bench/kernels: the kernel laboratory. Each operation is compared with ref first, then timed against the
 * peak of its precision measured in the same run.
 *
 * usage: bench_kernels [--precision NAME] [--threads N] [--rounds N] [--only NAME] [--no-verify] [--cpu-time]
 *
 * --cpu-time counts the processor time of the one thread instead of the clock's: for a machine that others
 * use too.
 *
 * Weights are cold: WEIGHTS matrices take turns, as the layers of a model do. Peak and kernel alternate, so
 * that a machine that changes its speed changes both; the table gives the best of the rounds, and the median
 * of the ratios. GF/s counts what the layer needs, so a kernel that skips zeros may look better than it is.
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "bench/peak.h"
#include "kernels/kernels.h"

enum { WEIGHTS = 12, ROUNDS_MAX = 1000, CLIPS_MAX = 16, HIDDEN = 768 };

static struct {
    int threads, rounds;
    enum kernels_precision precision;
    const char *only;
    bool verify, cpu_time;
} options = {.rounds = 15, .verify = true};

static const char *const precisions[] = {"fp32", "bf16", "int8"};
static struct kernels_device *device, *ref;

/* One line of the table. */
struct line {
    const char *name;
    double flop;                      /* of one call */
    void (*run)(void *arg, int turn); /* turn: which weight */
    void *arg;
};

static void fail(const char *what, const struct status *st) {
    fprintf(stderr, "bench_kernels: %s: %s\n", what, st->message);
    exit(3);
}

static float *new_numbers(int64_t n, double scale) {
    static uint32_t seed = 1;
    struct status st;
    void *p;
    if (kernels_cpu.memory_new(device, &p, (size_t)n * sizeof(float), "numbers", &st))
        fail("memory", &st);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ((float *)p)[i] = (float)(((double)(seed >> 8) / (1 << 24) - 0.5) * 3.4641 * scale);
    }
    return p;
}

static double measure_peak(void) {
    return peak_measure_precision_gflops(precisions[options.precision], options.threads);
}

/* The numbers as the device's activations hold them; x is rounded too, so that ref gets the same. */
static void *new_activations(float *x, int64_t n) {
    const size_t bytes = kernels_cpu.activation_bytes(device);
    struct status st;
    void *p;
    if (kernels_cpu.memory_new(device, &p, (size_t)n * bytes, "activations", &st))
        fail("memory", &st);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        if (bytes == sizeof(uint16_t)) { /* bf16: to the nearest, ties to even */
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
            memcpy(&x[i], &bits, sizeof bits);
            ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
        } else {
            ((float *)p)[i] = x[i];
        }
    }
    return p;
}

static void *new_random(int64_t n) {
    float *x = new_numbers(n, 1);
    void *p = new_activations(x, n);
    kernels_cpu.memory_del(device, x);
    return p;
}

static int64_t now_ns(void) {
    struct timespec t;
    if (!options.cpu_time)
        return clock_now_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static double elapsed_ms(int64_t since_ns) {
    return (double)(now_ns() - since_ns) * 1e-6;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void time_line(const struct line *l) {
    static double ms[ROUNDS_MAX], ratio[ROUNDS_MAX];
    double peak_best = 0;
    int turn = 0, calls = 1;
    for (int i = 0; i < WEIGHTS; i++)
        l->run(l->arg, turn++ % WEIGHTS);
    int64_t start = now_ns();
    l->run(l->arg, turn++ % WEIGHTS);
    double once = elapsed_ms(start);
    if (once < 10)
        calls = once > 0.1 ? (int)(10 / once) : 100;
    for (int r = 0; r < options.rounds; r++) {
        double peak = measure_peak();
        start = now_ns();
        for (int i = 0; i < calls; i++)
            l->run(l->arg, turn++ % WEIGHTS);
        ms[r] = elapsed_ms(start) / calls;
        ratio[r] = l->flop / ms[r] * 1e-6 / peak;
        peak_best = peak > peak_best ? peak : peak_best;
    }
    qsort(ms, (size_t)options.rounds, sizeof *ms, compare);
    qsort(ratio, (size_t)options.rounds, sizeof *ratio, compare);
    printf("%-34s %9.4f %9.4f %8.1f %8.1f %8.1f\n", l->name, ms[0], ms[options.rounds / 2],
           l->flop / ms[0] * 1e-6, 100 * l->flop / ms[0] * 1e-6 / peak_best, 100 * ratio[options.rounds / 2]);
    fflush(stdout);
}

static bool is_wanted(const char *name) {
    return !options.only || strstr(name, options.only);
}

/* Compares elements [first, first + n) of y with ref's. */
static void verify(const char *name, const void *y, int64_t first, const float *expected, int64_t n) {
    static const double most[] = {1e-5, 3.0 / 256, 0.1};
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        float v = 0;
        if (kernels_cpu.activation_bytes(device) == sizeof(uint16_t)) {
            const uint32_t bits = (uint32_t)((const uint16_t *)y)[first + i] << 16;
            memcpy(&v, &bits, sizeof v);
        } else {
            v = ((const float *)y)[first + i];
        }
        double error = fabs((double)v - expected[i]) / (1 + fabs((double)expected[i]));
        if (!(error <= worst))
            worst = error;
    }
    if (!(worst <= most[options.precision])) {
        fprintf(stderr, "bench_kernels: %s: %g from ref\n", name, worst);
        exit(1);
    }
}

/* A weight of each kind, WEIGHTS times, and ref's copy of the first. */
struct weights {
    struct kernels_weight w[WEIGHTS], ref;
    void *memory, *ref_memory;
};

static void weights_init(struct weights *w, struct kernels_weight_spec s) {
    const bool conv = s.kind != KERNELS_LINEAR && s.kind != KERNELS_LAYER_NORM;
    const int64_t row = s.kind == KERNELS_LAYER_NORM ? 1 : conv ? (int64_t)s.in / s.groups * s.kernel : s.in;
    struct status st;
    float *numbers = new_numbers(s.out * row, 1 / sqrt((double)row)), *vector = new_numbers(s.out, 1);
    s.parts = 1;
    s.weight[0] = numbers;
    s.bias[0] = s.has_bias ? vector : NULL;
    s.norm_weight = s.norm_bias = s.norm == KERNELS_NORM_NONE ? NULL : vector;
    s.eps = 1e-5f;
    const size_t bytes = kernels_cpu.weight_bytes(device, &s);
    if (kernels_cpu.memory_new(device, &w->memory, bytes * WEIGHTS, "weights", &st) ||
        kernels_ref.memory_new(ref, &w->ref_memory, kernels_ref.weight_bytes(ref, &s), "a weight", &st))
        fail("memory", &st);
    for (int i = 0; i < WEIGHTS; i++)
        kernels_cpu.pack(device, &w->w[i], &s, (char *)w->memory + (size_t)i * bytes);
    kernels_ref.pack(ref, &w->ref, &s, w->ref_memory);
    kernels_cpu.memory_del(device, numbers);
    kernels_cpu.memory_del(device, vector);
}

static void weights_free(struct weights *w) {
    kernels_cpu.memory_del(device, w->memory);
    kernels_ref.memory_del(ref, w->ref_memory);
}

struct call {
    struct weights *w;
    void *y, *x;
    float *stats;
    const void *residual;
    enum kernels_activation act;
    int64_t rows;
    int level, heads;
    struct batch *batch;
};

static void run_linear(void *arg, int turn) {
    struct call *c = arg;
    kernels_cpu.linear(device, c->y, c->x, &c->w->w[turn], c->act, c->residual, c->rows);
}

static void bench_linear(const char *name, int in, int out, int64_t rows, enum kernels_activation act,
                         bool residual) {
    char text[64];
    struct weights w;
    snprintf(text, sizeof text, "linear %s %d>%d M=%lld", name, in, out, (long long)rows);
    if (!is_wanted(text))
        return;
    weights_init(
        &w, (struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = in, .out = out, .has_bias = true});
    float *x = new_numbers(rows * in, 1), *other = new_numbers(rows * out, 1);
    void *added = new_activations(other, rows * out);
    struct call c = {
        .w = &w, .y = new_random(rows * out), .x = new_activations(x, rows * in), .act = act, .rows = rows};
    c.residual = residual ? added : NULL;
    if (options.verify) {
        enum { SOME = 8 };
        float *expected = new_numbers(SOME * out, 1);
        int64_t first = rows > SOME ? rows - SOME : 0, count = rows - first;
        run_linear(&c, 0);
        kernels_ref.linear(ref, expected, x + first * in, &w.ref, act, residual ? other + first * out : NULL,
                           count);
        verify(text, c.y, first * out, expected, count * out);
        kernels_cpu.memory_del(device, expected);
    }
    time_line(&(struct line){text, 2.0 * (double)rows * in * out, run_linear, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.y);
    kernels_cpu.memory_del(device, x), kernels_cpu.memory_del(device, other);
    kernels_cpu.memory_del(device, added);
    weights_free(&w);
}

static const struct batch_shape standard = {
    .levels = 7, .kernel = {10, 3, 3, 3, 3, 2, 2}, .stride = {5, 2, 2, 2, 2, 2, 2}};
static const struct batch_shape plain = {.levels = 1, .kernel = {1}, .stride = {1}};

static void batch_new(struct batch *b, const struct batch_shape *shape, int clips, int64_t samples) {
    struct status st;
    struct arena a, counting;
    int64_t each[CLIPS_MAX];
    arena_init_counting(&counting);
    batch_init(b, shape, clips, &counting);
    if (arena_init(&a, counting.used, "a batch", &st)) /* lives as long as the program */
        fail("memory", &st);
    batch_init(b, shape, clips, &a);
    for (int i = 0; i < clips; i++)
        each[i] = samples;
    batch_plan(b, shape, clips, each);
}

static void run_conv(void *arg, int turn) {
    struct call *c = arg;
    kernels_cpu.conv(device, c->y, c->x, &c->w->w[turn], c->act, c->stats, c->level,
                     (struct kernels_rows){0, c->rows}, c->batch);
}

/* One level of the standard stack, `tokens` rows of the last level at a time. */
static void bench_conv(int level, int64_t tokens, enum kernels_conv_norm norm) {
    char text[64];
    struct weights w;
    struct batch b;
    const int in = level == 1 ? 1 : 512, out = 512, kernel = standard.kernel[level - 1];
    snprintf(text, sizeof text, "conv%d%s k=%d %lld tokens", level - 1,
             norm == KERNELS_NORM_LAYER ? " LN" : "", kernel, (long long)tokens);
    if (!is_wanted(text))
        return;
    batch_new(&b, &standard, 1, tokens * 320 + 80);
    weights_init(&w, (struct kernels_weight_spec){.kind = KERNELS_CONV,
                                                  .in = in,
                                                  .out = out,
                                                  .kernel = kernel,
                                                  .stride = standard.stride[level - 1],
                                                  .groups = 1,
                                                  .norm = norm});
    struct call c = {.w = &w, .act = KERNELS_GELU, .level = level, .batch = &b, .rows = b.tape_rows[level]};
    float *x = new_numbers(b.tape_rows[level - 1] * in, 1);
    c.x = level == 1 ? x : new_activations(x, b.tape_rows[level - 1] * in), c.y = new_random(c.rows * out);
    float *stats = new_numbers(2 * out, 1);
    if (norm == KERNELS_NORM_GROUP) {
        kernels_cpu.group_stats(device, stats, c.x, &w.w[0], &b);
        c.stats = stats;
    }
    if (options.verify) {
        const struct kernels_rows few = {0, 8};
        float *expected = new_numbers(few.count * out, 1);
        run_conv(&c, 0);
        kernels_ref.conv(ref, expected, x, &w.ref, c.act, c.stats, level, few, &b);
        verify(text, c.y, 0, expected, few.count * out);
        kernels_cpu.memory_del(device, expected);
    }
    time_line(&(struct line){text, 2.0 * (double)c.rows * in * out * kernel, run_conv, &c});
    kernels_cpu.memory_del(device, level == 1 ? NULL : c.x), kernels_cpu.memory_del(device, c.y);
    kernels_cpu.memory_del(device, x), kernels_cpu.memory_del(device, stats);
    weights_free(&w);
}

static void run_group_stats(void *arg, int turn) {
    struct call *c = arg;
    kernels_cpu.group_stats(device, c->stats, c->x, &c->w->w[turn], c->batch);
}

static void bench_group_stats(int64_t samples) {
    struct weights w;
    struct batch b;
    if (!is_wanted("group_stats 3 s"))
        return;
    batch_new(&b, &standard, 1, samples);
    weights_init(&w, (struct kernels_weight_spec){.kind = KERNELS_CONV,
                                                  .in = 1,
                                                  .out = 512,
                                                  .kernel = 10,
                                                  .stride = 5,
                                                  .groups = 1,
                                                  .norm = KERNELS_NORM_GROUP});
    struct call c = {
        .w = &w, .x = new_numbers(b.tape_rows[0], 1), .stats = new_numbers(1024, 1), .batch = &b};
    time_line(&(struct line){"group_stats 3 s", 2.0 * 55 * (double)b.tape_rows[1], run_group_stats, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.stats);
    weights_free(&w);
}

static void run_pos_conv(void *arg, int turn) {
    struct call *c = arg;
    kernels_cpu.pos_conv(device, c->y, c->x, &c->w->w[turn], KERNELS_GELU, c->batch);
}

static void bench_pos_conv(int clips, int64_t tokens) {
    enum { GROUPS = 16, KERNEL = 128 };
    char text[64];
    struct weights w;
    struct batch b;
    snprintf(text, sizeof text, "pos_conv %d x T=%lld", clips, (long long)tokens);
    if (!is_wanted(text))
        return;
    batch_new(&b, &plain, clips, tokens);
    weights_init(&w, (struct kernels_weight_spec){.kind = KERNELS_POS_CONV,
                                                  .in = HIDDEN,
                                                  .out = HIDDEN,
                                                  .kernel = KERNEL,
                                                  .stride = 1,
                                                  .groups = GROUPS,
                                                  .has_bias = true});
    const int64_t n = batch_tokens(&b) * HIDDEN;
    float *x = new_numbers(n, 1);
    struct call c = {.w = &w, .x = new_activations(x, n), .y = new_random(n), .batch = &b};
    if (options.verify && batch_tokens(&b) < 200) {
        float *expected = new_numbers(n, 1);
        run_pos_conv(&c, 0);
        kernels_ref.pos_conv(ref, expected, x, &w.ref, KERNELS_GELU, &b);
        verify(text, c.y, 0, expected, n);
        kernels_cpu.memory_del(device, expected);
    }
    time_line(&(struct line){text, 2.0 * (double)n * HIDDEN / GROUPS * KERNEL, run_pos_conv, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.y);
    kernels_cpu.memory_del(device, x);
    weights_free(&w);
}

static void run_attention(void *arg, int turn) {
    struct call *c = arg;
    (void)turn;
    kernels_cpu.attention(device, c->y, c->x, c->heads, HIDDEN / c->heads, 0.125f, c->batch);
}

static void bench_attention(int clips, int64_t tokens) {
    char text[64];
    struct batch b;
    snprintf(text, sizeof text, "attention %d x T=%lld", clips, (long long)tokens);
    if (!is_wanted(text))
        return;
    batch_new(&b, &plain, clips, tokens);
    const int64_t n = batch_tokens(&b) * HIDDEN;
    float *x = new_numbers(3 * n, 1);
    struct call c = {.x = new_activations(x, 3 * n), .y = new_random(n), .heads = 12, .batch = &b};
    if (options.verify && tokens < 200 && clips == 1) {
        float *expected = new_numbers(n, 1);
        run_attention(&c, 0);
        kernels_ref.attention(ref, expected, x, 12, HIDDEN / 12, 0.125f, &b);
        verify(text, c.y, 0, expected, n);
        kernels_cpu.memory_del(device, expected);
    }
    time_line(&(struct line){text, 4.0 * (double)n * (double)tokens, run_attention, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.y);
    kernels_cpu.memory_del(device, x);
}

static void run_layer_norm(void *arg, int turn) {
    struct call *c = arg;
    kernels_cpu.layer_norm(device, c->y, c->x, &c->w->w[turn], c->rows);
}

static void bench_layer_norm(int64_t rows) {
    char text[64];
    struct weights w;
    snprintf(text, sizeof text, "layer_norm 768 M=%lld", (long long)rows);
    if (!is_wanted(text))
        return;
    weights_init(&w, (struct kernels_weight_spec){
                         .kind = KERNELS_LAYER_NORM, .in = HIDDEN, .out = HIDDEN, .has_bias = true});
    struct call c = {.w = &w, .x = new_random(rows * HIDDEN), .y = new_random(rows * HIDDEN), .rows = rows};
    time_line(&(struct line){text, 8.0 * (double)rows * HIDDEN, run_layer_norm, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.y);
    weights_free(&w);
}

static void run_input_norm(void *arg, int turn) {
    struct call *c = arg;
    (void)turn;
    kernels_cpu.input_norm(device, c->y, c->x, c->batch);
}

static void bench_input_norm(void) {
    struct batch b;
    if (!is_wanted("input_norm 3 s"))
        return;
    batch_new(&b, &standard, 1, 48000);
    struct call c = {.x = new_numbers(48000, 1), .y = new_numbers(48000, 1), .batch = &b};
    time_line(&(struct line){"input_norm 3 s", 6.0 * 48000, run_input_norm, &c});
    kernels_cpu.memory_del(device, c.x), kernels_cpu.memory_del(device, c.y);
}

/* Packing 90 M parameters, which is what a base model's start costs. */
static void bench_pack(void) {
    enum { N = 768, K = 3072, MATRICES = 40 };
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = K, .out = N, .parts = 1};
    struct kernels_weight w;
    struct status st;
    void *memory;
    if (!is_wanted("pack"))
        return;
    size_t bytes = kernels_cpu.weight_bytes(device, &s);
    float *numbers = new_numbers((int64_t)N * K * MATRICES, 1);
    int64_t start = now_ns();
    if (kernels_cpu.memory_new(device, &memory, bytes * MATRICES, "weights", &st))
        fail("memory", &st);
    for (int i = 0; i < MATRICES; i++) {
        s.weight[0] = numbers + (int64_t)i * N * K;
        kernels_cpu.pack(device, &w, &s, (char *)memory + (size_t)i * bytes);
    }
    double ms = elapsed_ms(start);
    printf("pack %.0f MB: %.0f ms, %.1f GB/s\n", (double)bytes * MATRICES * 1e-6, ms,
           (double)bytes * MATRICES / ms * 1e-6);
    kernels_cpu.memory_del(device, memory), kernels_cpu.memory_del(device, numbers);
}

static void bench_all(void) {
    static const int64_t rows[] = {49, 149, 499, 1192};
    printf("%-34s %9s %9s %8s %8s %8s\n", "", "best ms", "median", "GF/s", "% peak", "% median");
    bench_pack();
    bench_input_norm();
    bench_group_stats(48000);
    for (int i = 0; i < 4; i++) {
        bench_linear("out", 768, 768, rows[i], KERNELS_IDENTITY, true);
        bench_linear("qkv", 768, 2304, rows[i], KERNELS_IDENTITY, false);
        bench_linear("ff1", 768, 3072, rows[i], KERNELS_GELU, false);
        bench_linear("ff2", 3072, 768, rows[i], KERNELS_IDENTITY, true);
    }
    for (int level = 1; level <= 7; level++)
        bench_conv(level, 149, level == 1 ? KERNELS_NORM_GROUP : KERNELS_NORM_NONE);
    bench_conv(1, 149, KERNELS_NORM_LAYER);
    bench_conv(2, 149, KERNELS_NORM_LAYER);
    for (int i = 0; i < 3; i++)
        bench_pos_conv(1, rows[i]);
    bench_pos_conv(8, 149);
    for (int i = 0; i < 3; i++)
        bench_attention(1, rows[i]);
    bench_attention(8, 149);
    bench_attention(1, 1499);
    bench_layer_norm(149);
    bench_layer_norm(1192);
}

static bool find_precision(const char *name) {
    for (int i = 0; i < 3; i++)
        if (strcmp(name, precisions[i]) == 0) {
            options.precision = (enum kernels_precision)i;
            return true;
        }
    return false;
}

int main(int argc, char **argv) {
    static const struct option long_options[] = {{"threads", required_argument, NULL, 't'},
                                                 {"rounds", required_argument, NULL, 'r'},
                                                 {"only", required_argument, NULL, 'o'},
                                                 {"no-verify", no_argument, NULL, 'n'},
                                                 {"cpu-time", no_argument, NULL, 'c'},
                                                 {"precision", required_argument, NULL, 'p'},
                                                 {NULL, 0, NULL, 0}};
    bool wrong = false;
    struct status st = {0};
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (option == 't')
            options.threads = atoi(optarg);
        else if (option == 'r')
            options.rounds = atoi(optarg);
        else if (option == 'o')
            options.only = optarg;
        else if (option == 'n')
            options.verify = false;
        else if (option == 'c')
            options.cpu_time = true, options.threads = 1;
        else if (option != 'p' || !find_precision(optarg))
            wrong = true;
    }
    if (wrong || optind != argc || options.rounds < 1 || options.rounds > ROUNDS_MAX || options.threads < 0) {
        fprintf(
            stderr,
            "usage: bench_kernels [--precision fp32|bf16|int8] [--threads N] [--rounds 1..%d] [--only NAME]\n"
            "       [--no-verify] [--cpu-time]\n",
            ROUNDS_MAX);
        return 2;
    }
    const struct kernels_options for_ref = {.precision = KERNELS_FP32};
    const struct kernels_options o = {
        .precision = options.precision, .threads = options.threads, .pin = true};
    const struct kernels_limits limits = {.samples_max = 2048 * 320,
                                          .tokens_max = 2048,
                                          .clips_max = CLIPS_MAX,
                                          .hidden = HIDDEN,
                                          .channels_max = 4 * HIDDEN,
                                          .heads = HIDDEN / 64,
                                          .first_kernel = 10};
    if (kernels_cpu.device_new(&device, &o, &st) || kernels_ref.device_new(&ref, &for_ref, &st) ||
        kernels_cpu.reserve(device, &limits, &st))
        fail("device", &st);
    printf("%s, %s, peak %.0f GF/s\n", kernels_cpu.device_name(device), precisions[options.precision],
           measure_peak());
    bench_all();
    kernels_cpu.device_del(device);
    kernels_ref.device_del(ref);
    return 0;
}
