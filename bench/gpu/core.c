/* timbre_core: the models on a device, without the server: what tests/gpu.sh and bench/gpu.sh call.
 *
 * usage: timbre_core predict    [OPTION...] MODEL FILE...       results of clips
 *        timbre_core predict    [OPTION...] --jobs FILE         lines MODEL <tab> HEAD_ACTIVATION <tab>
 * FILE... timbre_core invariance [OPTION...] MODEL               bits alone and in company timbre_core agree
 * [OPTION...] MODEL               beside the CPU in fp32 timbre_core memory     [OPTION...] MODEL the GPU's
 * free memory before and after batches timbre_core time       [OPTION...] MODEL WORKLOAD...   such as 1x10,
 * 8x3, mixed:32 timbre_core devices                                    what there is; status 77 when there is
 * no GPU
 *
 * Prints one JSON object a line, floats so that they read back to the same bits. Status 0: all well; 1:
 * something failed, or was not as it must be; 2: usage. */
#include "bench/gpu/core.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* ---- shared ---- */

void core_print(struct text *out) {
    if (out->failed)
        fprintf(stderr, "timbre_core: out of memory for an answer\n");
    puts(out->data ? out->data : "");
    fflush(stdout);
    text_free(out);
}

int core_print_error(const char *model, const struct status *st, const struct model_worker *w) {
    struct text out;
    text_init_growing(&out);
    text_put(&out, "{\"status\":\"error\",\"model\":");
    text_put_json_string(&out, model);
    text_printf(&out, ",\"code\":\"%s\",\"message\":", status_code_name(st->code));
    text_put_json_string(&out, st->message);
    text_printf(&out, ",\"lost\":%s}", w && model_worker_is_lost(w) ? "true" : "false");
    core_print(&out);
    return 1;
}

void core_put_device(struct text *out, const struct model *m) {
    const struct model_info *info = model_get_info(m);
    text_put(out, "{\"status\":\"ok\",\"device\":");
    text_put_json_string(out, info->device);
    text_printf(out, ",\"precision\":\"%s\"", info->precision);
}

int core_worker_new(struct model_worker **w, const struct model *m, const struct core_options *o,
                    int64_t samples, int clips, struct status *st) {
    if (o->worker_s > 0)
        samples = (int64_t)(o->worker_s * CLIPS_RATE_HZ);
    return model_worker_new(w, m, 0, samples, clips, st);
}

int core_results_init(struct core_results *r, const struct model *m, int clips, struct status *st) {
    const struct model_info *info = model_get_info(m);
    const int width = info->labels_count + info->hidden;
    *r = (struct core_results){.clips = clips, .width = width, .labels = info->labels_count};
    r->values = calloc((size_t)clips * (size_t)width, sizeof *r->values);
    return r->values ? 0
                     : status_set_no_memory(st, (unsigned long long)clips * (unsigned)width * 4, "results");
}

void core_results_free(struct core_results *r) {
    free(r->values);
    r->values = NULL;
}

int core_run_batch(struct model_worker *w, const struct clips *c, const int *order, int count,
                   struct core_results *r, struct status *st) {
    struct model_clip *clips = calloc((size_t)count, sizeof *clips);
    if (!clips)
        return status_set_no_memory(st, sizeof *clips, "a batch");
    for (int i = 0; i < count; i++) {
        const int k = order ? order[i] : i;
        float *to = r->values + (size_t)k * (size_t)r->width;
        clips[i] = (struct model_clip){
            .samples = c->samples[k], .count = c->counts[k], .logits = to, .embedding = to + r->labels};
    }
    const int result = model_worker_run(w, clips, count, st);
    free(clips);
    return result;
}

static int print_devices(void) {
    struct status st = {0};
    const struct kernels *k = kernels_find("cuda", &st);
    if (!k) {
        (void)core_print_error("", &st, NULL);
        return 77;
    }
    char name[MODEL_DEVICE_NAME_BYTES];
    const struct model_options o = {.device = "cuda"};
    if (model_find_device(&o, name, &st))
        return core_print_error("", &st, NULL);
    printf("{\"status\":\"ok\",\"device\":\"%s\",\"count\":%d}\n", name, k->count_devices());
    return 0;
}

/* ---- options ---- */

enum option_code { /* beyond all characters */
                   OPTION_DEVICE = 256,
                   OPTION_PRECISION,
                   OPTION_CONV,
                   OPTION_ATTENTION,
                   OPTION_EAGER,
                   OPTION_LIMIT,
                   OPTION_THREADS,
                   OPTION_CLIPS,
                   OPTION_ROUNDS,
                   OPTION_WORKERS,
                   OPTION_BATCH,
                   OPTION_REVERSED,
                   OPTION_SEED,
                   OPTION_LONGEST,
                   OPTION_BUDGET,
                   OPTION_WORKER,
                   OPTION_JOBS,
};

static const struct option options[] = {
    {"device", required_argument, NULL, OPTION_DEVICE},
    {"precision", required_argument, NULL, OPTION_PRECISION},
    {"cuda-conv", required_argument, NULL, OPTION_CONV},
    {"cuda-attention", required_argument, NULL, OPTION_ATTENTION},
    {"eager", no_argument, NULL, OPTION_EAGER},
    {"gpu-memory-limit", required_argument, NULL, OPTION_LIMIT}, /* bytes */
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"clips", required_argument, NULL, OPTION_CLIPS},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"workers", required_argument, NULL, OPTION_WORKERS},
    {"batch", required_argument, NULL, OPTION_BATCH},
    {"reversed", no_argument, NULL, OPTION_REVERSED},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"longest", required_argument, NULL, OPTION_LONGEST}, /* seconds */
    {"budget", required_argument, NULL, OPTION_BUDGET},   /* seconds */
    {"worker-seconds", required_argument, NULL, OPTION_WORKER},
    {"jobs", required_argument, NULL, OPTION_JOBS},
    {NULL, 0, NULL, 0}};

static int fail_usage(const char *what) {
    fprintf(stderr, "timbre_core: %s; see the head of bench/gpu/core.c\n", what);
    return 2;
}

/* A whole number of lo..hi, or an exit. */
static int64_t read_number(const char *text, int64_t lo, int64_t hi) {
    char *end;
    const long long v = strtoll(text, &end, 10);
    if (end == text || *end || v < lo || v > hi)
        exit(fail_usage("a number is out of its range"));
    return v;
}

static double read_seconds(const char *text) {
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v >= 0 && v <= 1e6))
        exit(fail_usage("not a number of seconds"));
    return v;
}

static void take_option(struct core_options *o, int code, const char *value) {
    switch (code) {
    case OPTION_DEVICE:
        o->model.device = value;
        break;
    case OPTION_PRECISION:
        o->model.precision = value;
        break;
    case OPTION_CONV:
        o->model.cuda_conv = value;
        break;
    case OPTION_ATTENTION:
        o->model.cuda_attention = value;
        break;
    case OPTION_EAGER:
        o->model.cuda_eager = true;
        break;
    case OPTION_LIMIT:
        o->model.gpu_memory_max_bytes = read_number(value, 0, INT64_MAX);
        break;
    case OPTION_THREADS:
        o->model.threads = (int)read_number(value, 0, 1024);
        break;
    case OPTION_CLIPS:
        o->clips = (int)read_number(value, 2, CORE_CLIPS_MAX);
        break;
    case OPTION_ROUNDS:
        o->rounds = (int)read_number(value, 1, 100000);
        break;
    case OPTION_WORKERS:
        o->workers = (int)read_number(value, 1, 64);
        break;
    case OPTION_BATCH:
        o->batch = (int)read_number(value, 0, CORE_CLIPS_MAX);
        break;
    case OPTION_REVERSED:
        o->is_reversed = true;
        break;
    case OPTION_SEED:
        o->seed = (uint32_t)read_number(value, 0, UINT32_MAX);
        break;
    case OPTION_LONGEST:
        o->longest_s = read_seconds(value);
        break;
    case OPTION_BUDGET:
        o->budget_s = read_seconds(value);
        break;
    case OPTION_WORKER:
        o->worker_s = read_seconds(value);
        break;
    case OPTION_JOBS:
        o->jobs = value;
        break;
    default:
        exit(fail_usage("an option is not known, or its value is missing"));
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(const struct core_options *o);
    } commands[] = {{"predict", core_predict},
                    {"invariance", core_invariance},
                    {"agree", core_agree},
                    {"memory", core_memory},
                    {"time", core_time}};
    struct core_options o = {
        .clips = 200, .rounds = 30, .workers = 1, .seed = 1, .longest_s = 10, .budget_s = 5};
    if (argc < 2)
        return fail_usage("no command");
    const char *command = argv[1];
    optind = 2;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;)
        take_option(&o, code, optarg);
    o.arguments = argv + optind;
    if (strcmp(command, "devices") == 0)
        return print_devices();
    if (!o.arguments[0] && !(strcmp(command, "predict") == 0 && o.jobs))
        return fail_usage("no model");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(command, commands[i].name) == 0)
            return commands[i].run(&o);
    return fail_usage("no such command");
}
