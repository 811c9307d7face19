/* timbre predict: the emotions in audio files. Many are under way at a time; answers come in the order given.
 */
#include <errno.h>
#include <getopt.h>
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
    "  --model DIR              a Hugging Face model folder; default: the shipped model\n" CLI_MODEL_HELP
    "  --window S, --hop S      answer for every window; default: files over 30 s by 10 s windows, 5 s "
    "apart\n"
    "  --min-speech S           windows with less speech than this are no_speech; default 0: silence alone "
    "is\n"
    "  --embedding              with --json: the pooled hidden states too\n"
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
    O_WINDOW,
    O_HOP,
    O_MIN_SPEECH,
    O_EMBEDDING,
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
    {"window", required_argument, NULL, O_WINDOW},
    {"hop", required_argument, NULL, O_HOP},
    {"min-speech", required_argument, NULL, O_MIN_SPEECH},
    {"embedding", no_argument, NULL, O_EMBEDDING},
    {"raw", required_argument, NULL, O_RAW},
    {"rate", required_argument, NULL, O_RATE},
    {"channels", required_argument, NULL, O_CHANNELS},
    {"max-file-bytes", required_argument, NULL, O_FILE_BYTES},
    {"max-duration", required_argument, NULL, O_DURATION},
    CLI_MODEL_OPTIONS,
    CLI_SERVER_OPTIONS,
    {"json", no_argument, NULL, O_JSON},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

/* Takes one option; false after a message when its value is wrong. */
static bool take_option(struct predict_arguments *a, int option, const char *value) {
    long n = 0;
    switch (option) {
    case O_MODEL:
        a->model = value;
        return true;
    case O_WINDOW:
        return cli_parse_double("--window", value, 0.05, ENGINE_WHOLE_S_MAX, &a->request.window_s);
    case O_HOP:
        return cli_parse_double("--hop", value, 0.01, ENGINE_WHOLE_S_MAX, &a->request.hop_s);
    case O_MIN_SPEECH:
        return cli_parse_double("--min-speech", value, 0, ENGINE_WHOLE_S_MAX, &a->request.speech_s_min);
    case O_EMBEDDING:
        a->request.embedding = true;
        return true;
    case O_RAW:
        return cli_parse_raw("--raw", value, &a->request.format.encoding);
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
    if (cli_is_model_option(option))
        return cli_take_model_option(&a->engine, &a->model_options, option, value);
    return cli_take_server_option(&a->server, option, value);
}

static const char *name_of(int option) {
    for (const struct option *o = options; o->name; o++)
        if (o->val == option)
            return o->name;
    return "";
}

/* -1: go on; else the exit status. */
static int parse(struct predict_arguments *a, int argc, char **argv) {
    cli_init_model_options(&a->engine, &a->model_options);
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
        local = cli_is_model_option(option) || option == O_DURATION ? option : local;
        remote = option > CLI_O_SERVER && option <= CLI_O_DEADLINE_MS ? option : remote;
    }
    a->files = argv + optind;
    a->files_count = argc - optind;
    if (a->files_count == 0)
        return cli_fail("predict", CLI_USAGE, "no FILE; `timbre predict --help` tells the options");
    if (a->request.hop_s != 0 && a->request.window_s == 0)
        return cli_fail("predict", CLI_USAGE, "--hop needs --window");
    if (a->request.hop_s > a->request.window_s)
        return cli_fail("predict", CLI_USAGE, "--hop is longer than --window");
    if (a->request.speech_s_min != 0 && a->request.window_s == 0)
        return cli_fail("predict", CLI_USAGE, "--min-speech needs --window");
    if (a->request.speech_s_min > a->request.window_s)
        return cli_fail("predict", CLI_USAGE, "--min-speech is longer than --window");
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
