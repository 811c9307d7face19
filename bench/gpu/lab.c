/* bench_gpu_lab: the kernel laboratory of the GPU. Each operation of kernels.h is compared with ref first, at
 * the size at which it is then timed.
 *
 * usage: bench_gpu_lab [--precision bf16|fp32] [--only TEXT] [--budget SECONDS] [--cuda-conv W]
 * [--cuda-attention W]
 *                      [--tiny]
 *
 * One JSON object a line, microseconds of one call: "eager", launched one by one; "graph", many in one CUDA
 * graph (up to 4096 rows), which leaves out what a launch costs the processor; both with weights and
 * activations that are not in the L2, and "warm" with one set of them. A call's time is that of a batch of
 * very many, less that of an empty batch, over their number; the median of batches. Peaks to compare with:
 * bench_gpu_peak. */
#include "bench/gpu/lab.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "tests/unit/kernels/tolerance.h"

enum { ROUNDS_MAX = 200, CALLS_MAX = 1000, GRAPH_ROWS_MAX = 4096 };

static void fail(const char *what, const struct status *st) {
    fprintf(stderr, "bench_gpu_lab: %s: %s\n", what, st->message);
    exit(st->code == STATUS_UNAVAILABLE && strstr(st->message, "no NVIDIA driver") ? 77 : 3);
}

static void *check_memory(void *p) {
    const struct status st = {.message = "out of memory"};
    if (!p)
        fail("numbers", &st);
    return p;
}

static void finish(struct lab *lab, struct kernels_device *d, const char *what) {
    struct status st = {0};
    if (lab->k->finish(d, &st))
        fail(what, &st);
}

bool lab_wants(const struct lab *lab, const char *name) {
    return !lab->only || strstr(name, lab->only);
}

/* ---- numbers ---- */

/* To the nearest, ties to even; none is near the largest. */
static uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float of_bf16(uint16_t x) {
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Of mean 0 and variance 1, evenly. */
static void make_block(struct lab *lab) {
    uint32_t state = 1;
    lab->block = check_memory(malloc(LAB_BLOCK * sizeof *lab->block));
    for (int i = 0; i < LAB_BLOCK; i++) {
        state = state * 1664525u + 1013904223u;
        const float v = (float)(((double)(state >> 8) / (1 << 24) - 0.5) * 3.4641);
        lab->block[i] = lab->bf16 ? of_bf16(to_bf16(v)) : v;
    }
}

int lab_count_sets(const struct lab *lab, double bytes) {
    const double sets = lab->cold_bytes / bytes;
    return sets < 1 ? 1 : sets > LAB_SETS_MAX ? LAB_SETS_MAX : (int)sets + 1;
}

void lab_array_init(struct lab *lab, struct lab_array *a, int64_t count, enum lab_content content, int sets) {
    const bool narrow = lab->bf16 && (content == LAB_NUMBERS || content == LAB_RESULTS);
    const size_t element = narrow ? 2 : 4;
    struct status st = {0};
    void *p = NULL;
    unsigned char *block = check_memory(malloc(LAB_BLOCK * element));
    memset(block, 0xff, LAB_BLOCK * element); /* NaNs */
    for (int i = 0; i < LAB_BLOCK && (content == LAB_NUMBERS || content == LAB_NUMBERS_FP32); i++) {
        const uint16_t half = to_bf16(lab->block[i]);
        memcpy(block + (size_t)i * element, narrow ? (const void *)&half : &lab->block[i], element);
    }
    /* Sets begin at multiples of 256 bytes, as memory does. */
    *a = (struct lab_array){.count = count, .bytes = ((size_t)count * element + 255) / 256 * 256};
    if (lab->k->memory_new(lab->device, &p, a->bytes * (size_t)sets, "an array", &st))
        fail("an array", &st);
    a->device = p;
    for (int set = 0; set < sets; set++)
        for (int64_t at = 0; at < count; at += LAB_BLOCK) {
            const int64_t n = count - at < LAB_BLOCK ? count - at : LAB_BLOCK;
            lab->k->upload(lab->device, a->device + (size_t)set * a->bytes + (size_t)at * element, block,
                           (size_t)n * element);
        }
    finish(lab, lab->device, "an array");
    free(block);
}

void lab_array_free(struct lab *lab, struct lab_array *a) {
    lab->k->memory_del(lab->device, a->device);
    a->device = NULL;
}

void *lab_at(const struct lab_array *a, int set) {
    return a->device ? a->device + (size_t)set * a->bytes : NULL;
}

float *lab_copy(const struct lab *lab, int64_t first, int64_t count) {
    float *y = check_memory(malloc((size_t)count * sizeof *y + 1));
    for (int64_t i = 0; i < count; i++)
        y[i] = lab->block[(first + i) % LAB_BLOCK];
    return y;
}

static float *new_weights(const struct lab *lab, int64_t n, double scale, double mean) {
    float *p = check_memory(malloc((size_t)n * sizeof *p + 1));
    for (int64_t i = 0; i < n; i++) {
        const float v = (float)(mean + scale * (double)lab->block[(i + 12345) % LAB_BLOCK]);
        p[i] = lab->bf16 ? of_bf16(to_bf16(v)) : v;
    }
    return p;
}

void lab_weights_init(struct lab *lab, struct lab_call *c, struct kernels_weight_spec *s) {
    const bool is_norm = s->kind == KERNELS_LAYER_NORM;
    const bool conv = s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV;
    const int64_t row = is_norm ? 1 : conv ? (int64_t)s->in / s->groups * s->kernel : s->in;
    float *matrix = new_weights(lab, s->out * row, is_norm ? 0.2 : 1 / sqrt((double)row), is_norm ? 1 : 0);
    float *vector = new_weights(lab, s->out, 0.3, 0), *scales = new_weights(lab, s->out, 0.2, 1);
    struct status st = {0};
    s->parts = 1;
    s->eps = 1e-5f;
    s->weight[0] = matrix;
    s->bias[0] = s->has_bias || is_norm ? vector : NULL;
    s->has_bias = s->bias[0] != NULL;
    s->norm_weight = conv && s->norm != KERNELS_NORM_NONE ? scales : NULL;
    s->norm_bias = s->norm_weight ? vector : NULL;
    const size_t bytes = (lab->k->weight_bytes(lab->device, s) + 255) / 256 * 256;
    if (lab->k->memory_new(lab->device, &c->weights, bytes * (size_t)c->sets, "weights", &st) ||
        kernels_ref.memory_new(lab->ref, &c->ref_weights, kernels_ref.weight_bytes(lab->ref, s), "a weight",
                               &st))
        fail("weights", &st);
    for (int i = 0; i < c->sets; i++)
        lab->k->pack(lab->device, &c->w[i], s, (char *)c->weights + (size_t)i * bytes);
    finish(lab, lab->device, "packing");
    kernels_ref.pack(lab->ref, &c->ref_w, s, c->ref_weights);
    free(matrix), free(vector), free(scales);
}

/* ---- verification ---- */

/* A batch of `calls` calls; milliseconds until all is done. */
static double run_batch(struct lab *lab, struct kernels_device *d, const struct lab_call *c, int calls,
                        int sets) {
    const int64_t start = clock_now_ns();
    (void)lab->k->begin(d, c->batch);
    for (int i = 0; i < calls; i++)
        c->run(lab, d, c, i % sets);
    lab->k->end(d);
    finish(lab, d, c->name);
    return clock_elapsed_ms(start);
}

float *lab_run_once(struct lab *lab, struct lab_call *c, bool fp32, int64_t first, int64_t count) {
    const bool narrow = lab->bf16 && !fp32;
    const size_t element = narrow ? 2 : 4;
    float *y = check_memory(malloc((size_t)count * sizeof *y + 1));
    uint16_t *half = check_memory(malloc((size_t)count * sizeof *half + 1));
    (void)run_batch(lab, lab->device, c, 1, 1);
    lab->k->download(lab->device, narrow ? (void *)half : y, c->y.device + (size_t)first * element,
                     (size_t)count * element);
    finish(lab, lab->device, c->name);
    for (int64_t i = 0; narrow && i < count; i++)
        y[i] = of_bf16(half[i]);
    free(half);
    return y;
}

void lab_compare(struct lab_call *c, const float *y, const float *expected, int64_t n) {
    if (c->error < 0)
        c->error = 0;
    for (int64_t i = 0; i < n; i++) {
        const double error = fabs((double)y[i] - expected[i]) / (1 + fabs((double)expected[i]));
        if (!(error <= c->error))
            c->error = isnan(error) ? INFINITY : error;
    }
}

/* ---- timing ---- */

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median milliseconds of a batch of `calls` calls. */
static double time_batches(struct lab *lab, struct kernels_device *d, const struct lab_call *c, int calls,
                           int sets) {
    static double ms[ROUNDS_MAX];
    const int64_t begin = clock_now_ns();
    int rounds = 0;
    while (rounds < ROUNDS_MAX && (rounds < 5 || clock_elapsed_ms(begin) < lab->budget_s * 1e3))
        ms[rounds++] = run_batch(lab, d, c, calls, sets);
    qsort(ms, (size_t)rounds, sizeof *ms, compare_doubles);
    return ms[rounds / 2];
}

/* Through a graph: of a device of its own, since a device keeps one for each size of a batch. */
static double time_graph(struct lab *lab, const struct lab_call *c, int calls, int sets, double empty_ms) {
    struct kernels_options o = lab->options;
    struct kernels_device *d = NULL;
    struct status st = {0};
    o.eager = false;
    if (lab->k->device_new(&d, &o, &st) || lab->k->reserve(d, &lab->limits, &st))
        fail("a device with graphs", &st);
    (void)run_batch(lab, d, c, calls, sets); /* its plans */
    (void)run_batch(lab, d, c, calls, sets); /* recorded */
    const double ms = time_batches(lab, d, c, calls, sets);
    lab->k->device_del(d);
    return (ms - empty_ms) / calls * 1e3;
}

static void put_time(struct text *out, const char *name, double us) {
    text_printf(out, ",\"%s\":%.3f", name, us);
}

static void time_call(struct lab *lab, const struct lab_call *c, struct text *out) {
    (void)run_batch(lab, lab->device, c, 2, 1);
    const double empty_ms = time_batches(lab, lab->device, c, 0, 1);
    const double once_ms = (run_batch(lab, lab->device, c, 8, c->sets) - empty_ms) / 8;
    const double wanted = lab->tiny ? 1 : 4 / (once_ms > 1e-3 ? once_ms : 1e-3);
    int calls = wanted > CALLS_MAX ? CALLS_MAX : wanted < 1 ? 1 : (int)wanted;
    if (calls < c->sets) /* or the L2 keeps them */
        calls = c->sets;
    const double eager = (time_batches(lab, lab->device, c, calls, c->sets) - empty_ms) / calls * 1e3;
    const bool graphs = lab->options.attention_way != KERNELS_ATTENTION_CUBLAS &&
                        c->batch->tape_rows[c->batch->levels] <= GRAPH_ROWS_MAX;
    put_time(out, "eager_us", eager);
    if (graphs) {
        put_time(out, "graph_us", time_graph(lab, c, calls, c->sets, empty_ms));
        put_time(out, "warm_us", time_graph(lab, c, calls, 1, empty_ms));
    } else {
        put_time(out, "warm_us", (time_batches(lab, lab->device, c, calls, 1) - empty_ms) / calls * 1e3);
    }
    text_printf(out, ",\"calls\":%d,\"sets\":%d,\"empty_us\":%.2f", calls, c->sets, empty_ms * 1e3);
}

void lab_finish(struct lab *lab, struct lab_call *c) {
    const double tolerance = lab->bf16 ? TOLERANCE_BF16 : 4 * TOLERANCE_FP32; /* sums of up to 3072 terms */
    const bool right = c->error >= 0 && c->error <= tolerance;
    struct text out;
    text_init_growing(&out);
    text_put(&out, "{\"name\":");
    text_put_json_string(&out, c->name);
    text_printf(&out, ",\"precision\":\"%s\",\"rows\":%lld,\"flop\":%.6g,\"bytes\":%.6g,\"error\":%.3g",
                lab->bf16 ? "bf16" : "fp32", (long long)c->rows, c->flop, c->bytes, c->error);
    lab->lines++;
    if (right) {
        text_put(&out, ",\"status\":\"ok\"");
        time_call(lab, c, &out);
    } else { /* what is wrong is not timed */
        text_printf(&out, ",\"status\":\"wrong\",\"tolerance\":%.3g", tolerance);
        lab->failed++;
    }
    text_put(&out, "}");
    puts(out.data);
    fflush(stdout);
    text_free(&out);
    lab_array_free(lab, &c->x);
    lab_array_free(lab, &c->y);
    lab_array_free(lab, &c->residual);
    lab_array_free(lab, &c->stats);
    lab->k->memory_del(lab->device, c->weights);
    kernels_ref.memory_del(lab->ref, c->ref_weights);
}

/* ---- options ---- */

static int find(const char *const *names, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    fprintf(stderr, "bench_gpu_lab: %s: not a value of this option\n", name);
    exit(2);
}

static void read_options(struct lab *lab, int argc, char **argv) {
    static const char *const precisions[] = {"fp32", "bf16"}, *const convs[] = {"auto", "cudnn", "gemm"},
                             *const attentions[] = {"auto", "fused", "cublas"};
    static const struct option options[] = {{"precision", required_argument, NULL, 'p'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"budget", required_argument, NULL, 'b'},
                                            {"cuda-conv", required_argument, NULL, 'c'},
                                            {"tiny", no_argument, NULL, 't'},
                                            {"cuda-attention", required_argument, NULL, 'a'},
                                            {NULL, 0, NULL, 0}};
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (code == 'p')
            lab->options.precision = (enum kernels_precision)find(precisions, 2, optarg);
        else if (code == 'o')
            lab->only = optarg;
        else if (code == 'b')
            lab->budget_s = atof(optarg);
        else if (code == 'c')
            lab->options.conv_way = (enum kernels_conv_way)find(convs, 3, optarg);
        else if (code == 'a')
            lab->options.attention_way = (enum kernels_attention_way)find(attentions, 3, optarg);
        else if (code == 't')
            lab->tiny = true;
        else
            exit(2);
    }
    if (optind != argc)
        exit(2);
}

int main(int argc, char **argv) {
    struct lab lab = {
        .budget_s = 0.15, .cold_bytes = 3e8, .options = {.precision = KERNELS_BF16, .eager = true}};
    const struct kernels_options for_ref = {.precision = KERNELS_FP32};
    struct status st = {0};
    read_options(&lab, argc, argv);
    lab.bf16 = lab.options.precision == KERNELS_BF16;
    if (lab.tiny)
        lab.cold_bytes = 1e5;
    lab.limits = (struct kernels_limits){.samples_max = lab.tiny ? 100000 : 12000000,
                                         .tokens_max = lab.tiny ? 1024 : 36000,
                                         .clips_max = 64,
                                         .hidden = lab.tiny ? 64 : 768,
                                         .channels_max = lab.tiny ? 256 : 3072,
                                         .heads = lab.tiny ? 2 : 12,
                                         .first_kernel = 10};
    lab.k = kernels_find("cuda", &st);
    if (!lab.k || lab.k->device_new(&lab.device, &lab.options, &st) ||
        lab.k->reserve(lab.device, &lab.limits, &st) || kernels_ref.device_new(&lab.ref, &for_ref, &st))
        fail("device", &st);
    lab.element_bytes = lab.k->activation_bytes(lab.device);
    make_block(&lab);
    lab_run_lines(&lab);
    free(lab.block);
    kernels_ref.device_del(lab.ref);
    lab.k->device_del(lab.device);
    if (lab.lines == 0)
        fprintf(stderr, "bench_gpu_lab: no line of that name\n");
    return lab.failed > 0 || lab.lines == 0;
}
