/* timbre predict: the emotions in audio files. Many are under way at a time; answers come in the order given.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "cli/predict.h"

enum {
    PIECE_BYTES = 1 << 16,
    SERVER_DEADLINE_MS = 120000,
    SERVER_ATTEMPTS_MAX = 6,
    SERVER_BACKOFF_MS_MAX = 1000
};

static const char HELP[] =
    "usage: timbre predict [OPTION]... FILE...\n"
    "\n"
    "Says which emotions a model hears in each FILE (any audio format; - is standard input).\n"
    "\n"
    "  --model DIR              a Hugging Face model folder; default: the shipped model\n"
    "  --device NAME            auto, cpu, cuda, ref; default auto\n"
    "  --precision NAME         auto, fp32, bf16, int8; default auto\n"
    "  --threads N              threads of the forward pass; default: one a processor\n"
    "  --no-pin                 leave the threads to the scheduler\n"
    "  --max-batch-seconds S    audio in one batch; default 60, at least 30\n"
    "  --window S, --hop S      answer for every window; default: files over 30 s by 10 s windows, 5 s "
    "apart\n"
    "  --devices LIST           the GPUs: all, or indexes such as 0,1; default 0\n"
    "  --cuda-conv NAME         how a GPU computes convolutions: auto, cudnn, gemm; default auto\n"
    "  --cuda-attention NAME    and attention: auto, fused, cublas; default auto\n"
    "  --silence-dbfs D         quieter audio is no_speech; default -60, off for never\n"
    "  --embedding              with --json: the pooled hidden states too\n"
    "  --labels FILE            names to use instead of the model's own: one a line, or JSON\n"
    "  --output NAME            how logits become scores: auto, softmax, sigmoid, none\n"
    "  --head-activation NAME   none, tanh, relu: for heads whose files do not tell; default none\n"
    "  --raw ENCODING           FILE is raw samples: pcm16, float32, mulaw, alaw; with\n"
    "  --rate HZ, --channels N  their rate (default 16000) and interleaved channels (default 1)\n"
    "  --max-file-bytes N       refuse larger files; default 268435456\n"
    "  --max-duration S         refuse longer audio; default 1800\n"
    "  --json                   one JSON object a line instead of the table\n"
    "\n"
    "Ask a running server instead of computing here; --model is then a name of the server's:\n"
    "\n" CLI_SERVER_HELP "                           (default here: 120000)\n"
    "\n"
    "Environment: FFMPEG_BIN, the ffmpeg program for what libsndfile cannot read; TIMBRE_CPU = avx512, avx2 "
    "or\n"
    "portable forces a code path. Exit status: 0 all files answered, 1 some failed, 2 wrong usage, 3 could "
    "not start.\n";

enum predict_option {
    O_MODEL = 256,
    O_DEVICE,
    O_PRECISION,
    O_THREADS,
    O_NO_PIN,
    O_BATCH_S,
    O_DEVICES,
    O_CUDA_CONV,
    O_CUDA_ATTENTION,
    O_WINDOW,
    O_HOP,
    O_SILENCE,
    O_EMBEDDING,
    O_LABELS,
    O_OUTPUT,
    O_HEAD_ACTIVATION,
    O_RAW,
    O_RATE,
    O_CHANNELS,
    O_FILE_BYTES,
    O_DURATION,
    O_JSON,
    O_HELP,
};

static const struct option options[] = {
    {"model", required_argument, NULL, O_MODEL},
    {"device", required_argument, NULL, O_DEVICE},
    {"precision", required_argument, NULL, O_PRECISION},
    {"threads", required_argument, NULL, O_THREADS},
    {"no-pin", no_argument, NULL, O_NO_PIN},
    {"max-batch-seconds", required_argument, NULL, O_BATCH_S},
    {"devices", required_argument, NULL, O_DEVICES},
    {"cuda-conv", required_argument, NULL, O_CUDA_CONV},
    {"cuda-attention", required_argument, NULL, O_CUDA_ATTENTION},
    {"window", required_argument, NULL, O_WINDOW},
    {"hop", required_argument, NULL, O_HOP},
    {"silence-dbfs", required_argument, NULL, O_SILENCE},
    {"embedding", no_argument, NULL, O_EMBEDDING},
    {"labels", required_argument, NULL, O_LABELS},
    {"output", required_argument, NULL, O_OUTPUT},
    {"head-activation", required_argument, NULL, O_HEAD_ACTIVATION},
    {"raw", required_argument, NULL, O_RAW},
    {"rate", required_argument, NULL, O_RATE},
    {"channels", required_argument, NULL, O_CHANNELS},
    {"max-file-bytes", required_argument, NULL, O_FILE_BYTES},
    {"max-duration", required_argument, NULL, O_DURATION},
    CLI_SERVER_OPTIONS,
    {"json", no_argument, NULL, O_JSON},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

static bool parse_encoding(const char *name, enum audio_encoding *encoding) {
    static const char *const names[] = {
        [AUDIO_PCM16] = "pcm16", [AUDIO_FLOAT32] = "float32", [AUDIO_MULAW] = "mulaw", [AUDIO_ALAW] = "alaw"};
    for (int i = AUDIO_PCM16; i <= AUDIO_ALAW; i++)
        if (strcmp(name, names[i]) == 0) {
            *encoding = (enum audio_encoding)i;
            return true;
        }
    fprintf(stderr, "timbre: --raw %s: not one of pcm16, float32, mulaw, alaw\n", name);
    return false;
}

/* What only a model on this machine has, but for limits. */
static bool take_model_option(struct model_options *o, int option, const char *value) {
    long n = 0;
    switch (option) {
    case O_DEVICE:
        o->device = value;
        return cli_parse_choice("--device", value, "auto cpu cuda ref");
    case O_PRECISION:
        o->precision = value;
        return cli_parse_choice("--precision", value, "auto fp32 bf16 int8");
    case O_THREADS:
        if (!cli_parse_int("--threads", value, 0, 256, &n))
            return false;
        o->threads = (int)n;
        return true;
    case O_NO_PIN:
        o->pin = false;
        return true;
    case O_DEVICES:
        o->devices = value;
        return true;
    case O_CUDA_CONV:
        o->cuda_conv = value;
        return cli_parse_choice("--cuda-conv", value, "auto cudnn gemm");
    case O_CUDA_ATTENTION:
        o->cuda_attention = value;
        return cli_parse_choice("--cuda-attention", value, "auto fused cublas");
    case O_LABELS:
        o->labels_path = value;
        return true;
    case O_OUTPUT:
        o->output = value;
        return cli_parse_choice("--output", value, "auto softmax sigmoid none");
    default: /* O_HEAD_ACTIVATION */
        o->head_activation = value;
        return cli_parse_choice("--head-activation", value, "none tanh relu");
    }
}

/* Takes one option; false after a message when its value is wrong. */
static bool take_option(struct predict_arguments *a, int option, const char *value) {
    long n = 0;
    switch (option) {
    case O_MODEL:
        a->model = value;
        return true;
    case O_DEVICE:
    case O_PRECISION:
    case O_THREADS:
    case O_NO_PIN:
    case O_DEVICES:
    case O_CUDA_CONV:
    case O_CUDA_ATTENTION:
    case O_LABELS:
    case O_OUTPUT:
    case O_HEAD_ACTIVATION:
        return take_model_option(&a->model_options, option, value);
    case O_BATCH_S:
        return cli_parse_double("--max-batch-seconds", value, ENGINE_WHOLE_S_MAX, 100000,
                                &a->engine.batch_s_max);
    case O_WINDOW:
        return cli_parse_double("--window", value, 0.05, ENGINE_WHOLE_S_MAX, &a->request.window_s);
    case O_HOP:
        return cli_parse_double("--hop", value, 0.01, ENGINE_WHOLE_S_MAX, &a->request.hop_s);
    case O_SILENCE:
        a->engine.silence_dbfs = -INFINITY;
        return strcmp(value, "off") == 0 ||
               cli_parse_double("--silence-dbfs", value, -200, 0, &a->engine.silence_dbfs);
    case O_EMBEDDING:
        a->request.embedding = true;
        return true;
    case O_RAW:
        return parse_encoding(value, &a->request.format.encoding);
    case O_RATE:
        if (!cli_parse_int("--rate", value, AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX, &n))
            return false;
        a->request.format.rate_hz = (int)n;
        return true;
    case O_CHANNELS:
        if (!cli_parse_int("--channels", value, 1, AUDIO_CHANNELS_MAX, &n))
            return false;
        a->request.format.channels = (int)n;
        return true;
    case O_FILE_BYTES:
        if (!cli_parse_int("--max-file-bytes", value, 1, 1L << 40, &n))
            return false;
        a->engine.audio.bytes_max = (size_t)n;
        return true;
    case O_DURATION:
        return cli_parse_double("--max-duration", value, 0.001, 1e6, &a->engine.audio.duration_s_max);
    case O_JSON:
        a->json = true;
        return true;
    }
    return cli_take_server_option(&a->server, option, value);
}

/* What only a model on this machine has. */
static bool is_local(int option) {
    switch (option) {
    case O_DEVICE:
    case O_PRECISION:
    case O_THREADS:
    case O_NO_PIN:
    case O_BATCH_S:
    case O_DEVICES:
    case O_CUDA_CONV:
    case O_CUDA_ATTENTION:
    case O_SILENCE:
    case O_LABELS:
    case O_OUTPUT:
    case O_HEAD_ACTIVATION:
    case O_DURATION:
        return true;
    default:
        return false;
    }
}

static const char *name_of(int option) {
    for (const struct option *o = options; o->name; o++)
        if (o->val == option)
            return o->name;
    return "";
}

/* -1: go on; else the exit status. */
static int parse(struct predict_arguments *a, int argc, char **argv) {
    engine_options_init(&a->engine);
    a->model_options.pin = true;
    a->model_options.cuda_eager =
        true; /* the bits are the same, and the graphs would not pay for themselves */
    a->engine.audio.ffmpeg = getenv("FFMPEG_BIN");
    a->engine.queue_depth = PREDICT_IN_FLIGHT_MAX;
    a->server.attempts_max = SERVER_ATTEMPTS_MAX;
    a->server.backoff_max_ms = SERVER_BACKOFF_MS_MAX;
    a->server.deadline_ms = SERVER_DEADLINE_MS;
    a->request =
        (struct engine_request_options){.format = {.rate_hz = 16000, .channels = 1}, .order = ENGINE_BULK};
    int local = 0, remote = 0; /* options that were given, of either kind */
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == O_HELP || option == 'h') {
            fputs(HELP, stdout);
            return CLI_OK;
        }
        if (option == '?' || !take_option(a, option, optarg)) {
            fprintf(stderr, "`timbre predict --help` tells the options\n");
            return CLI_USAGE;
        }
        local = is_local(option) ? option : local;
        remote = option > CLI_O_SERVER ? option : remote;
    }
    a->files = argv + optind;
    a->files_count = argc - optind;
    if (a->files_count == 0)
        return cli_fail("predict", CLI_USAGE, "no FILE; `timbre predict --help` tells the options");
    if (a->request.hop_s != 0 && a->request.window_s == 0)
        return cli_fail("predict", CLI_USAGE, "--hop needs --window");
    if (a->request.hop_s > a->request.window_s)
        return cli_fail("predict", CLI_USAGE, "--hop is longer than --window");
    if (a->server.target && local)
        return cli_fail("predict", CLI_USAGE, "--%s is for a model on this machine, not with --server",
                        name_of(local));
    if (!a->server.target && remote)
        return cli_fail("predict", CLI_USAGE, "--%s needs --server", name_of(remote));
    return -1;
}

int predict_read_file(const char *path,
                      int (*take)(void *arg, const void *data, size_t bytes, struct status *st), void *arg,
                      struct status *st) {
    const bool standard_input = strcmp(path, "-") == 0;
    if (!standard_input && file_kind(path) == 2)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a folder, not a file");
    FILE *f = standard_input ? stdin : fopen(path, "rb");
    if (!f)
        return status_set(st, STATUS_NOT_FOUND, "%s", strerror(errno));
    char piece[PIECE_BYTES];
    int result = 0;
    for (size_t n; result == 0 && (n = fread(piece, 1, sizeof piece, f)) > 0;)
        result = take(arg, piece, n, st);
    if (result == 0 && ferror(f))
        result = status_set(st, STATUS_INVALID_ARGUMENT, "%s", strerror(errno));
    if (!standard_input)
        fclose(f);
    return result;
}

struct run {
    const struct predict_arguments *arguments;
    const struct predict_backend *backend;
    void *self;
    bool over[PREDICT_IN_FLIGHT_MAX]; /* file i has slot i % PREDICT_IN_FLIGHT_MAX */
    int printed, submitted, under_way;
    int failed;
    double audio_s;
    int64_t start_ns;
};

static void submit(struct run *run) {
    const int slot = run->submitted % PREDICT_IN_FLIGHT_MAX;
    const bool under_way = run->backend->submit(run->self, slot, run->arguments->files[run->submitted++]);
    run->over[slot] = !under_way;
    run->under_way += under_way;
}

static void take(struct run *run) {
    run->over[run->backend->take(run->self)] = true;
    run->under_way--;
}

/* Prints what is over and whose turn it is. */
static void print_ready(struct run *run) {
    const struct predict_arguments *a = run->arguments;
    for (; run->printed < run->submitted; run->printed++) {
        const int slot = run->printed % PREDICT_IN_FLIGHT_MAX;
        struct cli_answer answer = {.file = a->files[run->printed]};
        if (!run->over[slot])
            return;
        run->backend->fill(run->self, slot, &answer);
        cli_progress_clear();
        if (a->json)
            cli_print_json(&answer);
        else
            cli_print_table(&answer);
        run->failed += strcmp(answer.status, "error") == 0;
        run->audio_s += answer.duration_s;
        run->backend->close(run->self, slot);
    }
}

static void run_files(struct run *run) {
    const int total = run->arguments->files_count;
    run->start_ns = clock_now_ns();
    while (run->printed < total) {
        if (run->submitted < total && run->submitted - run->printed < PREDICT_IN_FLIGHT_MAX &&
            run->backend->has_room(run->self))
            submit(run);
        else if (run->under_way)
            take(run);
        while (run->under_way && !run->backend->would_wait(run->self))
            take(run);
        print_ready(run);
        if (total > 1)
            cli_progress_show(run->printed, total, run->audio_s, clock_elapsed_ms(run->start_ns) * 1e-3);
    }
    cli_progress_clear();
}

int cli_predict(int argc, char **argv) {
    struct predict_arguments arguments = {.json = false};
    int result = parse(&arguments, argc, argv);
    if (result >= 0)
        return result;
    struct run run = {.arguments = &arguments,
                      .backend = arguments.server.target ? &predict_server : &predict_local};
    result = run.backend->open(&run.self, &arguments);
    if (result == CLI_OK) {
        run_files(&run);
        result = run.failed ? CLI_SOME_FAILED : CLI_OK;
    }
    run.backend->end(run.self);
    return fflush(stdout) == 0 ? result : CLI_SOME_FAILED;
}
