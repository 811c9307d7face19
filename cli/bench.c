/* timbre bench: load for a running server, and what came of it. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "engine/stream.h"

enum {
    CONCURRENCY_DEFAULT = 16,
    IN_FLIGHT_MAX_DEFAULT = 10000,
    ATTEMPTS_MAX = 10, /* with --retry, and of streams */
    BYTES_MAX = 1 << 30,
    RATE_HZ_DEFAULT = 16000,
    STREAM_CHUNK_MS_DEFAULT = 20,
    STREAM_CHUNK_MS_MAX = 1000,
    STREAM_CHANNELS_DEFAULT = 2,
    STREAM_RATE_HZ_DEFAULT = 8000,
};
#define STREAM_TRACKS_S    "31,37,41,43" /* made-up voices */
#define DURATION_S_DEFAULT 10.0
#define WARMUP_S_DEFAULT   1.0
#define DEADLINE_MS        60000

static const char HELP[] =
    "usage: timbre bench --server ADDRESS [OPTION]... [FILE]...\n"
    "\n"
    "Sends recordings or live streams to a running server and tells how fast and how well they were "
    "answered.\n"
    "\n" CLI_SERVER_HELP "                           (default here: 60000)\n"
    "\n"
    "  --concurrency N          closed loop: N calls under way at any time; default 16\n"
    "  --rate R                 open loop instead: R calls begin a second, whatever becomes of the others;\n"
    "                           latency counts from when a call should have begun\n"
    "  --arrivals NAME          poisson (default) or constant: the times between them\n"
    "  --max-in-flight N        open loop: at most so many at a time; default 10000\n"
    "  --duration S             measure for S seconds; default 10\n"
    "  --requests N             stop after N calls; without --duration, however long that takes\n"
    "  --warmup S               before anything is counted; default 1, with --requests 0\n"
    "  --connections N          default 1\n"
    "\n"
    "  FILE...                  what to send, each as likely as the others; name one twice to send it twice "
    "as\n"
    "                           often. Without any, clips are made up:\n"
    "  --lengths S,S,...        of these lengths in seconds; default 1,2,5,10\n"
    "  --bytes N                or of so many bytes each\n"
    "  --encoding NAME          file, pcm16, float32, mulaw, alaw; default: file for files, pcm16 for "
    "made-up clips\n"
    "  --sample-rate HZ         of raw encodings; default 16000\n"
    "  --channels N             of raw files; default 1\n"
    "  --seed N                 of everything that is left to chance; default 1\n"
    "  --model NAME             the server's name of a model; default: its first\n"
    "  --bulk                   ask for the priority of archives\n"
    "  --retry                  send again what the server asks to send again; off, so that a refusal is "
    "counted\n"
    "  --no-retry               the default\n"
    "\n"
    "  --streams M              instead of calls, M live streams at real-time pace, each of which begins at "
    "a "
    "time of its\n"
    "                           own within the first hop. With --duration, --warmup (default 0), "
    "--connections, --seed and\n"
    "  --chunk-ms N             of audio in a message; default 20. More costs this program less\n"
    "  --encoding, --sample-rate, --channels   what is sent; default here mulaw, 8000, 2. FILEs of any "
    "format "
    "are\n"
    "                           converted and played in a loop, every channel from a place of its own\n"
    "  --window S, --hop S, --min-speech S, --utterances   as of timbre stream\n"
    "  --no-retry               count a stream that is refused or ended as failed, instead of going on with "
    "it\n"
    "\n"
    "  --json                   one JSON object instead of the table\n"
    "\n"
    "Exit status: 0 all calls and streams answered, 1 some failed, 2 wrong usage, 3 could not start.\n";

struct arguments {
    struct bench_options options;
    const char *lengths;
    long bytes;
    bool has_encoding, has_warmup, has_duration, has_concurrency, has_rate_hz, has_channels, has_windows;
    const char *of_calls, *of_streams; /* an option of either kind */
};

enum bench_option {
    O_CONCURRENCY = 256,
    O_RATE,
    O_ARRIVALS,
    O_IN_FLIGHT,
    O_DURATION,
    O_REQUESTS,
    O_WARMUP,
    O_CONNECTIONS,
    O_LENGTHS,
    O_BYTES,
    O_ENCODING,
    O_SAMPLE_RATE,
    O_CHANNELS,
    O_SEED,
    O_MODEL,
    O_BULK,
    O_RETRY,
    O_NO_RETRY,
    O_STREAMS,
    O_CHUNK_MS,
    O_WINDOW,
    O_HOP,
    O_MIN_SPEECH,
    O_UTTERANCES,
    O_JSON,
    O_HELP,
};

static const struct option options[] = {
    CLI_SERVER_OPTIONS,
    {"concurrency", required_argument, NULL, O_CONCURRENCY},
    {"rate", required_argument, NULL, O_RATE},
    {"arrivals", required_argument, NULL, O_ARRIVALS},
    {"max-in-flight", required_argument, NULL, O_IN_FLIGHT},
    {"duration", required_argument, NULL, O_DURATION},
    {"requests", required_argument, NULL, O_REQUESTS},
    {"warmup", required_argument, NULL, O_WARMUP},
    {"connections", required_argument, NULL, O_CONNECTIONS},
    {"lengths", required_argument, NULL, O_LENGTHS},
    {"bytes", required_argument, NULL, O_BYTES},
    {"encoding", required_argument, NULL, O_ENCODING},
    {"sample-rate", required_argument, NULL, O_SAMPLE_RATE},
    {"channels", required_argument, NULL, O_CHANNELS},
    {"seed", required_argument, NULL, O_SEED},
    {"model", required_argument, NULL, O_MODEL},
    {"bulk", no_argument, NULL, O_BULK},
    {"retry", no_argument, NULL, O_RETRY},
    {"no-retry", no_argument, NULL, O_NO_RETRY},
    {"streams", required_argument, NULL, O_STREAMS},
    {"chunk-ms", required_argument, NULL, O_CHUNK_MS},
    {"window", required_argument, NULL, O_WINDOW},
    {"hop", required_argument, NULL, O_HOP},
    {"min-speech", required_argument, NULL, O_MIN_SPEECH},
    {"utterances", no_argument, NULL, O_UTTERANCES},
    {"json", no_argument, NULL, O_JSON},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

static bool take_int(const char *option, const char *value, long lo, long hi, int *to) {
    long n;
    if (!cli_parse_int(option, value, lo, hi, &n))
        return false;
    *to = (int)n;
    return true;
}

static bool take_encoding(struct arguments *a, const char *value) {
    static const struct {
        const char *name;
        enum timbre_encoding encoding;
    } names[] = {{"file", TIMBRE_ENCODING_FILE},
                 {"pcm16", TIMBRE_ENCODING_PCM16},
                 {"float32", TIMBRE_ENCODING_FLOAT32},
                 {"mulaw", TIMBRE_ENCODING_MULAW},
                 {"alaw", TIMBRE_ENCODING_ALAW}};
    a->has_encoding = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(value, names[i].name) == 0)
            a->options.encoding = names[i].encoding;
    return cli_parse_choice("--encoding", value, "file pcm16 float32 mulaw alaw");
}

/* What is sent. */
static bool take_clip_option(struct arguments *a, int option, const char *value) {
    struct bench_options *o = &a->options;
    long n;
    switch (option) {
    case O_LENGTHS:
        a->lengths = value;
        return true;
    case O_BYTES:
        return cli_parse_int("--bytes", value, 1, BYTES_MAX, &a->bytes);
    case O_ENCODING:
        return take_encoding(a, value);
    case O_SAMPLE_RATE:
        a->has_rate_hz = true;
        return take_int("--sample-rate", value, AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX, &o->rate_hz);
    case O_CHANNELS:
        a->has_channels = true;
        return take_int("--channels", value, 1, AUDIO_CHANNELS_MAX, &o->channels);
    case O_SEED:
        if (!cli_parse_int("--seed", value, 0, 1L << 40, &n))
            return false;
        o->seed = (uint64_t)n;
        return true;
    case O_MODEL:
        o->model = value;
        return true;
    case O_BULK:
        o->priority = TIMBRE_PRIORITY_BULK;
        return true;
    }
    return cli_take_server_option(&o->server, option, value);
}

/* Of live streams. */
static bool take_stream_option(struct arguments *a, int option, const char *value) {
    struct bench_options *o = &a->options;
    switch (option) {
    case O_STREAMS:
        return take_int("--streams", value, 1, BENCH_STREAMS_MAX, &o->streams);
    case O_CHUNK_MS:
        return take_int("--chunk-ms", value, 1, STREAM_CHUNK_MS_MAX, &o->chunk_ms);
    case O_WINDOW:
        a->has_windows = true;
        return cli_parse_double("--window", value, 0.05, ENGINE_WHOLE_S_MAX, &o->window_s);
    case O_HOP:
        a->has_windows = true;
        return cli_parse_double("--hop", value, 0.01, ENGINE_WHOLE_S_MAX, &o->hop_s);
    case O_MIN_SPEECH:
        a->has_windows = true;
        return cli_parse_double("--min-speech", value, 0, ENGINE_WHOLE_S_MAX, &o->speech_s_min);
    default: /* O_UTTERANCES */
        o->utterances = true;
        return true;
    }
}

static bool take_option(struct arguments *a, int option, const char *value) {
    struct bench_options *o = &a->options;
    switch (option) {
    case O_CONCURRENCY:
        a->has_concurrency = true;
        return take_int("--concurrency", value, 1, BENCH_CONCURRENCY_MAX, &o->concurrency);
    case O_RATE:
        return cli_parse_double("--rate", value, 0.001, 1e6, &o->rate);
    case O_ARRIVALS:
        o->constant = strcmp(value, "constant") == 0;
        return cli_parse_choice("--arrivals", value, "poisson constant");
    case O_IN_FLIGHT:
        return take_int("--max-in-flight", value, 1, BENCH_CONCURRENCY_MAX, &o->in_flight_max);
    case O_DURATION:
        a->has_duration = true;
        return cli_parse_double("--duration", value, 0.1, 1e6, &o->duration_s);
    case O_REQUESTS:
        return cli_parse_int("--requests", value, 1, 1L << 40, &o->requests);
    case O_WARMUP:
        a->has_warmup = true;
        return cli_parse_double("--warmup", value, 0, 1e6, &o->warmup_s);
    case O_CONNECTIONS:
        return take_int("--connections", value, 1, BENCH_CONNECTIONS_MAX, &o->connections);
    case O_RETRY:
        o->server.attempts_max = ATTEMPTS_MAX;
        return true;
    case O_NO_RETRY:
        o->server.attempts_max = 1;
        o->no_resume = true;
        return true;
    case O_JSON:
        o->json = true;
        return true;
    }
    if (option >= O_STREAMS && option <= O_UTTERANCES)
        return take_stream_option(a, option, value);
    return take_clip_option(a, option, value);
}

static int add_lengths(struct bench_clips *clips, const char *lengths, const struct bench_options *o) {
    for (const char *s = lengths;; s++) {
        char *end;
        const double seconds = strtod(s, &end);
        if (end == s || (*end && *end != ','))
            return cli_fail("bench", CLI_USAGE, "--lengths %s: not numbers separated by commas", lengths);
        const int result = bench_add_seconds(clips, seconds, o);
        if (result != CLI_OK || !*end)
            return result;
        s = end;
    }
}

static int make_tracks(struct bench_clips *tracks, const struct arguments *a, char **files, int files_count) {
    int result = CLI_OK;
    for (int i = 0; i < files_count && result == CLI_OK; i++)
        result = bench_add_track(tracks, files[i], &a->options);
    return files_count ? result : add_lengths(tracks, STREAM_TRACKS_S, &a->options);
}

static int make_clips(struct bench_clips *clips, struct arguments *a, char **files, int files_count) {
    int result = CLI_OK;
    if (files_count && (a->lengths || a->bytes))
        return cli_fail("bench", CLI_USAGE, "FILE or --%s, not both", a->lengths ? "lengths" : "bytes");
    if (a->lengths && a->bytes)
        return cli_fail("bench", CLI_USAGE, "--lengths or --bytes, not both");
    if (!a->has_encoding)
        a->options.encoding = files_count ? TIMBRE_ENCODING_FILE : TIMBRE_ENCODING_PCM16;
    if (!files_count)
        a->options.channels = 1;
    for (int i = 0; i < files_count && result == CLI_OK; i++)
        result = bench_add_file(clips, files[i]);
    if (files_count)
        return result;
    return a->bytes ? bench_add_bytes(clips, (size_t)a->bytes, &a->options)
                    : add_lengths(clips, a->lengths ? a->lengths : "1,2,5,10", &a->options);
}

/* Notes options that are only of calls, or only of streams. */
static void note_kind(struct arguments *a, int option) {
    switch (option) {
    case O_CONCURRENCY:
    case O_RATE:
    case O_ARRIVALS:
    case O_IN_FLIGHT:
    case O_REQUESTS:
    case O_LENGTHS:
    case O_BYTES:
    case O_BULK:
    case O_RETRY:
        a->of_calls = "one of --concurrency, --rate, --arrivals, --max-in-flight, --requests, --lengths, "
                      "--bytes, --bulk, --retry";
        break;
    case O_CHUNK_MS:
    case O_WINDOW:
    case O_HOP:
    case O_MIN_SPEECH:
    case O_UTTERANCES:
        a->of_streams = "one of --chunk-ms, --window, --hop, --min-speech, --utterances";
        break;
    }
}

/* What streams want to be otherwise. -1: go on; else the exit status. */
static int settle_streams(struct arguments *a) {
    struct bench_options *o = &a->options;
    if (!o->streams)
        return a->of_streams ? cli_fail("bench", CLI_USAGE, "%s without --streams", a->of_streams) : -1;
    if (a->of_calls)
        return cli_fail("bench", CLI_USAGE, "%s with --streams", a->of_calls);
    if (o->utterances && a->has_windows)
        return cli_fail("bench", CLI_USAGE, "--window, --hop and --min-speech are not for --utterances");
    if (!a->has_encoding)
        o->encoding = TIMBRE_ENCODING_MULAW;
    if (o->encoding == TIMBRE_ENCODING_FILE)
        return cli_fail("bench", CLI_USAGE, "--encoding file: a stream is of raw samples");
    o->rate_hz = a->has_rate_hz ? o->rate_hz : STREAM_RATE_HZ_DEFAULT;
    o->channels = a->has_channels ? o->channels : STREAM_CHANNELS_DEFAULT;
    if (o->rate_hz < ENGINE_STREAM_RATE_HZ_MIN || o->rate_hz > ENGINE_STREAM_RATE_HZ_MAX ||
        o->channels > ENGINE_STREAM_CHANNELS_MAX)
        return cli_fail("bench", CLI_USAGE, "a stream has %d to %d Hz and up to %d channels",
                        ENGINE_STREAM_RATE_HZ_MIN, ENGINE_STREAM_RATE_HZ_MAX, ENGINE_STREAM_CHANNELS_MAX);
    if ((int64_t)o->rate_hz * o->chunk_ms % 1000)
        return cli_fail("bench", CLI_USAGE, "--chunk-ms %d at %d Hz is not a whole number of samples",
                        o->chunk_ms, o->rate_hz);
    o->window_s = o->window_s > 0 ? o->window_s : ENGINE_WINDOW_S_DEFAULT;
    o->hop_s = o->hop_s > 0 ? o->hop_s : o->window_s / 2;
    if (o->hop_s > o->window_s || o->hop_s * ENGINE_STREAM_OVERLAP_MAX < o->window_s * (1 - 1e-9))
        return cli_fail("bench", CLI_USAGE, "--hop is not between a %dth of --window and all of it",
                        ENGINE_STREAM_OVERLAP_MAX);
    o->server.attempts_max = o->no_resume ? 1 : ATTEMPTS_MAX;
    a->has_warmup = true;
    return -1;
}

/* -1: go on; else the exit status. */
static int parse(struct arguments *a, int argc, char **argv) {
    struct bench_options *o = &a->options;
    *o = (struct bench_options){.concurrency = CONCURRENCY_DEFAULT,
                                .in_flight_max = IN_FLIGHT_MAX_DEFAULT,
                                .connections = 1,
                                .rate_hz = RATE_HZ_DEFAULT,
                                .channels = 1,
                                .chunk_ms = STREAM_CHUNK_MS_DEFAULT,
                                .seed = 1};
    o->server.attempts_max = 1;
    o->server.deadline_ms = DEADLINE_MS;
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == O_HELP || option == 'h') {
            fputs(HELP, stdout);
            return CLI_OK;
        }
        if (option == '?' || !take_option(a, option, optarg)) {
            fprintf(stderr, "`timbre bench --help` tells the options\n");
            return CLI_USAGE;
        }
        note_kind(a, option);
    }
    if (!o->server.target)
        return cli_fail("bench", CLI_USAGE, "no --server; `timbre bench --help` tells the options");
    if (o->rate > 0 && a->has_concurrency)
        return cli_fail("bench", CLI_USAGE, "--rate or --concurrency, not both");
    const int result = settle_streams(a);
    if (result >= 0)
        return result;
    if (!a->has_duration && !o->requests)
        o->duration_s = DURATION_S_DEFAULT;
    if (!a->has_warmup && !o->requests)
        o->warmup_s = WARMUP_S_DEFAULT;
    return -1;
}

static int run_streams(const struct bench_options *o, const struct bench_clips *tracks) {
    struct bench_streams_result *r = calloc(1, sizeof *r);
    if (!r)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    int result = bench_run_streams(r, o, tracks);
    if (result == CLI_OK) {
        const struct bench_streams_stats *s = &r->stats;
        if (o->json)
            bench_report_streams_json(r, o);
        else
            bench_report_streams_text(r, o);
        result = s->failed || s->missing || s->doubled || s->misplaced ? CLI_SOME_FAILED : CLI_OK;
    }
    free(r);
    return result;
}

static int run_calls(const struct bench_options *o, const struct bench_clips *clips) {
    struct bench_result *r = calloc(1, sizeof *r);
    if (!r)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    int result = bench_run(r, o, clips);
    if (result == CLI_OK) {
        if (o->json)
            bench_report_json(r, o);
        else
            bench_report_text(r, o);
        result = r->stats.failed || r->unsent ? CLI_SOME_FAILED : CLI_OK;
    }
    free(r);
    return result;
}

int cli_bench(int argc, char **argv) {
    static struct bench_clips clips; /* reachable to the end, as gRPC may hold what was sent */
    struct arguments a = {.lengths = NULL};
    int result = parse(&a, argc, argv);
    if (result >= 0)
        return result;
    const bool streams = a.options.streams > 0;
    char **files = argv + optind;
    result = streams ? make_tracks(&clips, &a, files, argc - optind)
                     : make_clips(&clips, &a, files, argc - optind);
    if (result == CLI_OK)
        result = streams ? run_streams(&a.options, &clips) : run_calls(&a.options, &clips);
    return fflush(stdout) == 0 ? result : CLI_SOME_FAILED;
}
