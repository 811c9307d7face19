/* timbre stream: the emotions of a call while it is heard. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/stream.h"

enum { FILE_BYTES_MAX_DEFAULT = 1 << 30 };
#define DURATION_S_MAX_DEFAULT 21600.0
#define PACE_MAX               10000.0
#define SMOOTHING_S_MAX        3600.0
#define RESUME_S_MAX           1e7

static const char HELP[] =
    "usage: timbre stream [OPTION]... FILE|-\n"
    "\n"
    "Says which emotions a model hears in a call, channel by channel, while the call goes on. FILE is an "
    "audio "
    "file of\n"
    "any format, or, with --raw, samples; - is raw samples on standard input, taken as they come.\n"
    "\n"
    "  --raw ENCODING           pcm16, float32, mulaw, alaw; with\n"
    "  --rate HZ, --channels N  their rate, 8000 to 48000 (default 16000), and interleaved channels, up to 8 "
    "(default 1)\n"
    "  --pace R                 send a FILE at R times real time; default 1; 0: as fast as it is taken\n"
    "  --channel [NAME][:ROLE]  names the first channel, given again the second, and so on\n"
    "  --exclude N|NAME         this channel (from 1) is dropped before anything is computed from it\n"
    "\n"
    "  --window S, --hop S      windows of S seconds (0.05 to 30; default 10), one every S (default: half a "
    "window)\n"
    "  --min-speech S           windows with less speech are no_speech; default: only silent ones are\n"
    "  --utterances             stretches of speech instead of windows:\n"
    "  --utterance-min S        shorter ones are none; 0.05 to 5, default 0.3\n"
    "  --utterance-max S        longer ones are cut; 1 to 30, default 15\n"
    "  --hangover S             silence that ends one; 0.1 to 5, default 0.5\n"
    "  --interim S              results so often while one grows, at least 0.25; default none\n"
    "  --smoothing S            with --json: also scores smoothed with this time constant, up to 3600\n"
    "  --summary-every S        summaries after so much audio, at least 1; default: one at the end\n"
    "  --embedding              with --json: the pooled hidden states too\n"
    "  --json                   one JSON object a line, with \"type\": result, summary or resume\n"
    "\n"
    "To go on after a stream that ended early, with the resume_offset_ms of its last line and, for each "
    "channel, the\n"
    "end_s of its last final result:\n"
    "\n"
    "  --resume-offset MS       where to begin: in FILE, or where what comes on standard input begins\n"
    "  --resume-end S[,S...]    what ends by then is not told again\n"
    "\n"
    "  --model DIR              a Hugging Face model folder; default: the shipped model\n" CLI_MODEL_HELP;

static const char HELP_END[] = /* a string has up to 4095 characters */
    "  --max-file-bytes N       refuse a larger FILE; default 1073741824\n"
    "  --max-duration S         refuse a longer FILE; default 21600\n"
    "\n"
    "Ask a running server instead of computing here; --model is then a name of the server's:\n"
    "\n" CLI_SERVER_HELP "                           (here the whole stream; default: never)\n"
    "  --no-resume              when the server goes, end instead of going on elsewhere\n"
    "\n"
    "Ctrl-C ends the audio: the last results and the summary follow. Again: at once. Exit status: 0 all was "
    "answered,\n"
    "1 the stream or a result failed, 2 wrong usage, 3 could not start.\n";

enum stream_option {
    O_MODEL = 256,
    O_RAW,
    O_RATE,
    O_CHANNELS,
    O_PACE,
    O_CHANNEL,
    O_EXCLUDE,
    O_WINDOW,
    O_HOP,
    O_MIN_SPEECH,
    O_UTTERANCES,
    O_UTTERANCE_MIN,
    O_UTTERANCE_MAX,
    O_HANGOVER,
    O_INTERIM,
    O_SMOOTHING,
    O_SUMMARY_EVERY,
    O_EMBEDDING,
    O_RESUME_OFFSET,
    O_RESUME_END,
    O_FILE_BYTES,
    O_DURATION,
    O_NO_RESUME,
    O_JSON,
    O_HELP,
    O_END,
};

static const struct option options[] = {
    {"model", required_argument, NULL, O_MODEL},
    {"raw", required_argument, NULL, O_RAW},
    {"rate", required_argument, NULL, O_RATE},
    {"channels", required_argument, NULL, O_CHANNELS},
    {"pace", required_argument, NULL, O_PACE},
    {"channel", required_argument, NULL, O_CHANNEL},
    {"exclude", required_argument, NULL, O_EXCLUDE},
    {"window", required_argument, NULL, O_WINDOW},
    {"hop", required_argument, NULL, O_HOP},
    {"min-speech", required_argument, NULL, O_MIN_SPEECH},
    {"utterances", no_argument, NULL, O_UTTERANCES},
    {"utterance-min", required_argument, NULL, O_UTTERANCE_MIN},
    {"utterance-max", required_argument, NULL, O_UTTERANCE_MAX},
    {"hangover", required_argument, NULL, O_HANGOVER},
    {"interim", required_argument, NULL, O_INTERIM},
    {"smoothing", required_argument, NULL, O_SMOOTHING},
    {"summary-every", required_argument, NULL, O_SUMMARY_EVERY},
    {"embedding", no_argument, NULL, O_EMBEDDING},
    {"resume-offset", required_argument, NULL, O_RESUME_OFFSET},
    {"resume-end", required_argument, NULL, O_RESUME_END},
    {"max-file-bytes", required_argument, NULL, O_FILE_BYTES},
    {"max-duration", required_argument, NULL, O_DURATION},
    {"no-resume", no_argument, NULL, O_NO_RESUME},
    CLI_MODEL_OPTIONS,
    CLI_SERVER_OPTIONS,
    {"json", no_argument, NULL, O_JSON},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

/* What was given, before the audio is known. */
struct given {
    struct stream_arguments *to;
    const char *excluded[ENGINE_STREAM_CHANNELS_MAX];
    int excluded_count, named_count, ends_count;
    bool options[O_END]; /* those of enum stream_option */
    int local, remote;   /* an option of either kind, or 0 */
};

/* ---- one option ---- */

static bool take_name(char *to, const char *from, size_t length, const char *value) {
    if (length >= STREAM_NAME_BYTES) {
        fprintf(stderr, "timbre: --channel %s: names and roles have up to %d bytes\n", value,
                STREAM_NAME_BYTES - 1);
        return false;
    }
    memcpy(to, from, length);
    if (text_is_utf8(to, length))
        return true;
    fprintf(stderr, "timbre: --channel: a name that is not UTF-8\n");
    return false;
}

static bool take_channel(struct given *g, const char *value) {
    const size_t length = strcspn(value, ":");
    if (g->named_count == ENGINE_STREAM_CHANNELS_MAX) {
        fprintf(stderr, "timbre: more than %d times --channel\n", ENGINE_STREAM_CHANNELS_MAX);
        return false;
    }
    struct stream_channel *c = &g->to->channels[g->named_count++];
    const char *role = value[length] ? value + length + 1 : value + length;
    return take_name(c->name, value, length, value) && take_name(c->role, role, strlen(role), value);
}

static bool take_excluded(struct given *g, const char *value) {
    if (g->excluded_count == ENGINE_STREAM_CHANNELS_MAX) {
        fprintf(stderr, "timbre: more than %d times --exclude\n", ENGINE_STREAM_CHANNELS_MAX);
        return false;
    }
    g->excluded[g->excluded_count++] = value;
    return true;
}

static bool take_ends(struct given *g, const char *value) {
    g->ends_count = 0;
    for (const char *s = value;; s++) {
        char *end;
        const double seconds = strtod(s, &end);
        if (end == s || (*end && *end != ',') || !(seconds >= 0) || seconds > RESUME_S_MAX ||
            g->ends_count == ENGINE_STREAM_CHANNELS_MAX) {
            fprintf(stderr, "timbre: --resume-end %s: not up to %d numbers of seconds separated by commas\n",
                    value, ENGINE_STREAM_CHANNELS_MAX);
            return false;
        }
        g->to->analysis.channels[g->ends_count++].had_s = seconds;
        if (!*end)
            return true;
        s = end;
    }
}

static bool take_offset(struct given *g, const char *value) {
    long n = 0;
    if (!cli_parse_int("--resume-offset", value, 0, (long)(RESUME_S_MAX * 1000), &n))
        return false;
    g->to->analysis.resume_offset_ms = n;
    if (n % 1000 == 0)
        return true;
    fprintf(stderr, "timbre: --resume-offset %s: not whole seconds\n", value);
    return false;
}

static bool take_audio_option(struct given *g, int option, const char *value) {
    struct stream_arguments *a = g->to;
    struct audio_format *f = &a->analysis.format;
    long n = 0;
    switch (option) {
    case O_RAW:
        return cli_parse_raw("--raw", value, &f->encoding);
    case O_RATE:
        if (!cli_parse_int("--rate", value, ENGINE_STREAM_RATE_HZ_MIN, ENGINE_STREAM_RATE_HZ_MAX, &n))
            return false;
        f->rate_hz = (int)n;
        return true;
    case O_CHANNELS:
        if (!cli_parse_int("--channels", value, 1, ENGINE_STREAM_CHANNELS_MAX, &n))
            return false;
        f->channels = (int)n;
        return true;
    case O_PACE:
        return cli_parse_double("--pace", value, 0, PACE_MAX, &a->pace);
    case O_CHANNEL:
        return take_channel(g, value);
    case O_EXCLUDE:
        return take_excluded(g, value);
    case O_RESUME_OFFSET:
        return take_offset(g, value);
    case O_RESUME_END:
        return take_ends(g, value);
    case O_FILE_BYTES:
        if (!cli_parse_int("--max-file-bytes", value, 1, 1L << 40, &n))
            return false;
        a->engine.audio.bytes_max = (size_t)n;
        return true;
    default: /* O_DURATION */
        return cli_parse_double("--max-duration", value, 0.001, 1e6, &a->engine.audio.duration_s_max);
    }
}

/* False after a message when its value is wrong. */
static bool take_option(struct given *g, int option, const char *value) {
    struct stream_arguments *a = g->to;
    struct engine_stream_options *o = &a->analysis;
    switch (option) {
    case O_MODEL:
        a->model = value;
        return true;
    case O_WINDOW:
        return cli_parse_double("--window", value, 0.05, ENGINE_WHOLE_S_MAX, &o->window_s);
    case O_HOP:
        return cli_parse_double("--hop", value, 0.01, ENGINE_WHOLE_S_MAX, &o->hop_s);
    case O_MIN_SPEECH:
        return cli_parse_double("--min-speech", value, 0, ENGINE_WHOLE_S_MAX, &o->speech_s_min);
    case O_UTTERANCES:
        o->utterances = true;
        return true;
    case O_UTTERANCE_MIN:
        return cli_parse_double("--utterance-min", value, 0.05, 5, &o->length_s_min);
    case O_UTTERANCE_MAX:
        return cli_parse_double("--utterance-max", value, 1, ENGINE_WHOLE_S_MAX, &o->length_s_max);
    case O_HANGOVER:
        return cli_parse_double("--hangover", value, 0.1, 5, &o->hangover_s);
    case O_INTERIM:
        return cli_parse_double("--interim", value, 0.25, 3600, &o->interim_every_s);
    case O_SMOOTHING:
        return cli_parse_double("--smoothing", value, 0, SMOOTHING_S_MAX, &o->smoothing_s);
    case O_SUMMARY_EVERY:
        return cli_parse_double("--summary-every", value, 1, 1e6, &o->summary_every_s);
    case O_EMBEDDING:
        o->embedding = true;
        return true;
    case O_NO_RESUME:
        a->no_resume = true;
        return true;
    case O_JSON:
        a->json = true;
        return true;
    }
    if (cli_is_model_option(option))
        return cli_take_model_option(&a->engine, &a->model_options, option, value);
    if (option >= CLI_O_SERVER)
        return cli_take_server_option(&a->server, option, value);
    return take_audio_option(g, option, value);
}

/* ---- all of them ---- */

static const char *name_of(int option) {
    for (const struct option *o = options; o->name; o++)
        if (o->val == option)
            return o->name;
    return "";
}

/* The first of options `from` to `to` that was given; 0: none. */
static int find_given(const struct given *g, int from, int to) {
    for (int i = from; i <= to; i++)
        if (g->options[i])
            return i;
    return 0;
}

static int refuse_pair(const char *a, const char *b) {
    return cli_fail("stream", CLI_USAGE, "--%s is not for %s", a, b);
}

/* Options that do not go together. -1: they do; else the exit status. */
static int check(const struct given *g) {
    const struct stream_arguments *a = g->to;
    const struct engine_stream_options *o = &a->analysis;
    const bool input = strcmp(a->path, "-") == 0;
    int option;
    if (a->server.target && g->local)
        return refuse_pair(name_of(g->local), "--server: it is of a model on this machine");
    if (!a->server.target && (g->remote || a->no_resume))
        return cli_fail("stream", CLI_USAGE, "--%s needs --server",
                        a->no_resume ? "no-resume" : name_of(g->remote));
    if (o->utterances && (option = find_given(g, O_WINDOW, O_MIN_SPEECH)))
        return refuse_pair(name_of(option), "--utterances");
    if (!o->utterances && (option = find_given(g, O_UTTERANCE_MIN, O_INTERIM)))
        return cli_fail("stream", CLI_USAGE, "--%s needs --utterances", name_of(option));
    if (input && !g->options[O_RAW])
        return cli_fail("stream", CLI_USAGE, "- is raw samples and needs --raw");
    if (input && g->options[O_PACE])
        return refuse_pair("pace", "-: standard input is taken as it comes");
    if (!g->options[O_RAW] && (option = find_given(g, O_RATE, O_CHANNELS)))
        return cli_fail("stream", CLI_USAGE, "--%s needs --raw", name_of(option));
    const double window_s = o->window_s > 0 ? o->window_s : ENGINE_WINDOW_S_DEFAULT;
    if (o->hop_s > window_s)
        return cli_fail("stream", CLI_USAGE, "--hop is longer than --window");
    if (o->hop_s > 0 && o->hop_s * ENGINE_STREAM_OVERLAP_MAX < window_s * (1 - 1e-9))
        return cli_fail("stream", CLI_USAGE, "--hop is less than a %dth of --window",
                        ENGINE_STREAM_OVERLAP_MAX);
    return -1;
}

/* -1: go on; else the exit status. */
static int parse(struct given *g, int argc, char **argv) {
    struct stream_arguments *a = g->to;
    cli_init_model_options(&a->engine, &a->model_options);
    a->engine.audio.bytes_max = FILE_BYTES_MAX_DEFAULT;
    a->engine.audio.duration_s_max = DURATION_S_MAX_DEFAULT;
    a->server.deadline_ms = 0;
    a->analysis.format = (struct audio_format){.encoding = AUDIO_FILE, .rate_hz = 16000, .channels = 1};
    a->pace = 1;
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == O_HELP || option == 'h') {
            fputs(HELP, stdout);
            fputs(HELP_END, stdout);
            return CLI_OK;
        }
        if (option == '?' || !take_option(g, option, optarg)) {
            fprintf(stderr, "`timbre stream --help` tells the options\n");
            return CLI_USAGE;
        }
        if (option < O_END)
            g->options[option] = true;
        g->local = cli_is_model_option(option) ? option : g->local;
        g->remote = option > CLI_O_SERVER && option <= CLI_O_DEADLINE_MS ? option : g->remote;
    }
    if (argc - optind != 1)
        return cli_fail("stream", CLI_USAGE, "%s; `timbre stream --help` tells the options",
                        argc == optind ? "no FILE" : "more than one FILE");
    a->path = argv[optind];
    return check(g);
}

/* The channel with this name, else with this number; from 0. -1: none. */
static int find_channel(const struct stream_arguments *a, const char *value) {
    const int channels = a->analysis.format.channels;
    char *end;
    for (int c = 0; c < channels; c++)
        if (value[0] && strcmp(a->channels[c].name, value) == 0)
            return c;
    errno = 0;
    const long number = strtol(value, &end, 10);
    return *value && !*end && errno == 0 && number >= 1 && number <= channels ? (int)number - 1 : -1;
}

/* What could not be said before the number of channels was known. */
static int apply_channels(struct given *g) {
    struct stream_arguments *a = g->to;
    const int channels = a->analysis.format.channels;
    if (g->named_count > channels || g->ends_count > channels)
        return cli_fail("stream", CLI_USAGE, "%s for %d channels, and the audio has %d",
                        g->named_count > channels ? "--channel" : "--resume-end",
                        g->named_count > channels ? g->named_count : g->ends_count, channels);
    for (int i = 0; i < g->excluded_count; i++) {
        const int c = find_channel(a, g->excluded[i]);
        if (c < 0)
            return cli_fail("stream", CLI_USAGE, "--exclude %s: not a channel's number (1 to %d) or name",
                            g->excluded[i], channels);
        a->analysis.channels[c].excluded = true;
    }
    return CLI_OK;
}

int cli_stream(int argc, char **argv) {
    struct stream_arguments arguments = {.json = false};
    struct given given = {.to = &arguments};
    struct stream_audio audio;
    int result = parse(&given, argc, argv);
    if (result >= 0)
        return result;
    result = stream_read_file(&audio, &arguments);
    if (result == CLI_OK)
        result = apply_channels(&given);
    if (result == CLI_OK)
        result = stream_run(&arguments, &audio);
    free(audio.data);
    return fflush(stdout) == 0 && !ferror(stdout) ? result : CLI_SOME_FAILED;
}
