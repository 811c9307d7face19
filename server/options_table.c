/* options_table: every option once: its name, its limits, its default and what the help says of it. */
#include "server/options_table.h"

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/team.h"

/* Limits that only this table knows. */
enum {
    MESSAGE_BYTES_MIN = 4096,
    MESSAGE_BYTES_MAX = 1 << 30,
    METADATA_BYTES_MIN = 1024,
    METADATA_BYTES_MAX = 1 << 20,
    CALLS_MAX = 1000000,
    POOL_THREADS_MAX = 64,
    DELAY_US_MAX = 10000000,
    DECODE_MS_MIN = 100,
    HOUR_MS = 3600 * 1000,
    DAY_MS = 24 * HOUR_MS,
    STREAMS_MAX = 100000,
    STREAM_SECONDS_MAX = 31 * 24 * 3600,
};

#define AT(field)    .offset = offsetof(struct server_options, field)
#define WHOLE(field) AT(field), .width = (int)sizeof(((struct server_options *)0)->field)

/* clang-format off */
const struct option_row option_rows[] = {
    {OPTION_GROUP, "Addresses", .help = ""},
    {OPTION_ADDRESS, "grpc-address", "HOST:PORT", AT(grpc_address), .initial_text = "127.0.0.1:9000",
     .help = "where gRPC is served; also [IPV6]:PORT and unix:/PATH; port 0 takes a free one"},
    {OPTION_TCP, "http-address", "HOST:PORT", AT(http_address), .initial_text = "127.0.0.1:8080",
     .help = "where /metrics, /healthz and /readyz are; empty: nowhere"},

    {OPTION_GROUP, "Models", .help = ""},
    {OPTION_MODEL, "model", "[NAME=]DIR", AT(models),
     .help = "a Hugging Face model folder, served as NAME or by the folder's name; may be given again; "
             "default: the shipped model, as \"default\""},
    {OPTION_PATH, "models-dir", "DIR", AT(models_dir),
     .help = "every folder in it is a model, or holds versions of one in folders 1, 2, ..."},
    {OPTION_SWITCH, "model-control", NULL, AT(model_control),
     .help = "let clients load and unload models (repository calls of the Open Inference Protocol)"},
    {OPTION_WORD, "device", "NAME", AT(model.device), .initial_text = "auto", .words = "auto cpu cuda ref",
     .help = "auto, cpu, cuda, or ref, which is slow"},
    {OPTION_WORD, "precision", "NAME", AT(model.precision), .initial_text = "fp32",
     .words = "auto fp32 bf16 int8", .help = "fp32, bf16, int8, or auto: bf16 where it is faster, else fp32"},
    {OPTION_WHOLE, "threads", "N", WHOLE(model.threads), 0, TEAM_THREADS_MAX, 0,
     .help = "threads of the forward pass; 0: one a processor"},
    {OPTION_SWITCH_OFF, "no-pin", NULL, AT(model.pin),
     .help = "leave those threads to the scheduler instead of keeping each on its processor"},
    {OPTION_CHOICE, "cpu-mode", "NAME", WHOLE(engine.cpu_mode), .initial_text = "auto",
     .words = "auto latency throughput",
     .help = "on the CPU, latency: all threads run one batch; throughput: each thread runs its own; auto: by "
             "load"},
    {OPTION_PATH, "packed-cache", "DIR", AT(model.packed_cache),
     .help = "keep packed weights there, so that the next start is faster; beside: in each model's folder; "
             "default: nowhere"},
    {OPTION_SWITCH, "packed-cache-verify", NULL, AT(model.packed_cache_verify),
     .help = "read a model's files to know that they are the same, instead of trusting their times"},

    {OPTION_GROUP, "GPUs", .help = ""},
    {OPTION_TEXT, "devices", "LIST", AT(model.devices), .initial_text = "0",
     .help = "the GPUs that serve: all, or indexes such as 0,1 among those that this process may see"},
    {OPTION_WORD, "cuda-conv", "NAME", AT(model.cuda_conv), .initial_text = "auto", .words = "auto cudnn gemm",
     .help = "how convolutions are computed: auto, cudnn, gemm"},
    {OPTION_WORD, "cuda-attention", "NAME", AT(model.cuda_attention), .initial_text = "auto",
     .words = "auto fused cublas", .help = "how attention is computed: auto, fused, cublas"},
    {OPTION_CHOICE, "cuda-graphs", "yes|no", WHOLE(model.cuda_eager), .initial_text = "yes", .words = "yes no",
     .help = "no: start faster, run small batches slower, with the same bits"},
    {OPTION_BYTES, "gpu-memory-limit", "N", WHOLE(model.gpu_memory_max_bytes), 0, 1LL << 45, 0,
     .help = "of each GPU's memory, for all models together; 0: all there is"},
    {OPTION_CHOICE, "on-gpu-fault", "NAME", WHOLE(on_gpu_fault), .initial_text = "exit", .words = "exit cpu",
     .help = "when a GPU is lost: exit with status 1, to be started anew, or cpu: go on there"},

    {OPTION_GROUP, "Batches and queues", .help = ""},
    {OPTION_NUMBER, "max-batch-seconds", "S", AT(engine.batch_s_max),
     .lo = ENGINE_WHOLE_S_MAX, .hi = 100000, .initial = ENGINE_BATCH_S_MAX_DEFAULT,
     .help = "audio in one batch; memory grows with it"},
    {OPTION_WHOLE, "batch-delay-us", "US", WHOLE(engine.delay_us), 0, DELAY_US_MAX, ENGINE_DELAY_US_DEFAULT,
     .help = "how long a batch that has room waits for requests that are being prepared"},
    {OPTION_WHOLE, "queue-depth", "N", WHOLE(engine.queue_depth), 1, 1000000, ENGINE_QUEUE_DEPTH_DEFAULT,
     .help = "requests that may wait; more are refused with RESOURCE_EXHAUSTED"},
    {OPTION_NUMBER, "max-queued-seconds", "S", AT(engine.queued_s_max),
     .lo = 1, .hi = 1e7, .initial = ENGINE_QUEUED_S_MAX_DEFAULT, .help = "audio that may wait, likewise"},
    {OPTION_WHOLE, "prepare-threads", "N", WHOLE(engine.prepare_threads), 1, POOL_THREADS_MAX,
     ENGINE_PREPARE_THREADS_DEFAULT, .help = "threads that decode and resample"},
    {OPTION_WHOLE, "transcode-threads", "N", WHOLE(engine.transcode_threads), 1, POOL_THREADS_MAX,
     ENGINE_TRANSCODE_THREADS_DEFAULT, .help = "threads that wait for ffmpeg"},

    {OPTION_GROUP, "Audio", .help = ""},
    {OPTION_NUMBER, "max-duration", "S", AT(engine.audio.duration_s_max),
     .lo = 0.001, .hi = 1e6, .initial = AUDIO_DURATION_S_MAX_DEFAULT, .help = "longer audio is refused"},
    {OPTION_LEVEL, "silence-dbfs", "DB", AT(engine.silence_dbfs),
     .lo = -200, .hi = 0, .initial = AUDIO_SILENCE_DBFS_MAX,
     .help = "quieter audio is answered no_speech; off: none is"},
    {OPTION_WHOLE, "decode-timeout-ms", "MS", WHOLE(engine.audio.decode_ms_max), DECODE_MS_MIN, HOUR_MS,
     AUDIO_DECODE_MS_MAX_DEFAULT, .help = "time that ffmpeg has for one file"},
    {OPTION_TEXT, "ffmpeg-bin", "FILE", AT(engine.audio.ffmpeg),
     .help = "the program for what libsndfile cannot read (also FFMPEG_BIN); empty: never use one; default: "
             "ffmpeg on PATH"},

    {OPTION_GROUP, "Limits of calls", .help = ""},
    {OPTION_BYTES, "max-message-bytes", "N", WHOLE(message_bytes_max), MESSAGE_BYTES_MIN, MESSAGE_BYTES_MAX,
     SERVER_MESSAGE_BYTES_MAX_DEFAULT, .help = "one message, so also one audio file"},
    {OPTION_BYTES, "max-receive-bytes", "N", WHOLE(receive_bytes_max), MESSAGE_BYTES_MIN, 1LL << 40, 1 << 30,
     .help = "all messages that are being received together"},
    {OPTION_WHOLE, "max-calls", "N", WHOLE(calls_max), 1, CALLS_MAX, 4096,
     .help = "calls that are open at a time, health checks and streams included"},
    {OPTION_BYTES, "max-metadata-bytes", "N", WHOLE(metadata_bytes_max), METADATA_BYTES_MIN,
     METADATA_BYTES_MAX, 16384, .help = "the metadata of one call"},
    {OPTION_WHOLE, "upload-timeout-ms", "MS", WHOLE(upload_timeout_ms), 1, DAY_MS, 60000,
     .help = "from the beginning of a call to the end of its message"},

    {OPTION_GROUP, "Live streams (StreamingPredict)", .help = ""},
    {OPTION_WHOLE, "max-streams", "N", WHOLE(engine.streams_max), 1, STREAMS_MAX, ENGINE_STREAMS_MAX_DEFAULT,
     .help = "open at a time; more are refused with RESOURCE_EXHAUSTED"},
    {OPTION_WHOLE, "stream-threads", "N", WHOLE(engine.stream_threads), 1, POOL_THREADS_MAX,
     ENGINE_STREAM_THREADS_DEFAULT, .help = "threads that decode, resample and cut them"},
    {OPTION_BYTES, "max-stream-message-bytes", "N", WHOLE(stream_message_bytes_max), MESSAGE_BYTES_MIN,
     MESSAGE_BYTES_MAX, 1 << 20, .help = "one message of a stream"},
    {OPTION_WHOLE, "stream-idle-ms", "MS", WHOLE(stream_idle_ms), 1, DAY_MS, 60000,
     .help = "a stream is ended whose client sends nothing for this time"},
    {OPTION_WHOLE, "stream-stall-ms", "MS", WHOLE(stream_stall_ms), 1, DAY_MS, 15000,
     .help = "likewise when results wait and the client does not read for this time"},
    {OPTION_WHOLE, "stream-lifetime-s", "S", WHOLE(stream_lifetime_s), 0, STREAM_SECONDS_MAX, 21600,
     .help = "a stream is asked to come again after this time; 0: never"},

    {OPTION_GROUP, "Connections", .help = ""},
    {OPTION_WHOLE, "max-concurrent-streams", "N", WHOLE(connection_streams_max), 1, CALLS_MAX, 1024,
     .help = "calls at a time on one connection; more wait at the client"},
    {OPTION_WHOLE, "grpc-keepalive-time-ms", "MS", WHOLE(keepalive_time_ms), 1, INT_MAX, 7200000,
     .help = "a quiet connection is pinged so often"},
    {OPTION_WHOLE, "grpc-keepalive-timeout-ms", "MS", WHOLE(keepalive_timeout_ms), 1, HOUR_MS, 20000,
     .help = "and closed when no answer comes in this time"},
    {OPTION_SWITCH, "grpc-keepalive-permit-without-calls", NULL, AT(keepalive_without_calls),
     .help = "ping connections without calls too"},
    {OPTION_WHOLE, "grpc-http2-min-recv-ping-interval-without-data-ms", "MS", WHOLE(ping_interval_min_ms), 0,
     DAY_MS, 300000, .help = "clients that ping more often than this, without calls, are cut off"},
    {OPTION_WHOLE, "max-connection-age-ms", "MS", WHOLE(connection_age_ms), 0, INT_MAX, 0,
     .help = "connections are asked to come again after this time, so that clients spread over new servers; "
             "0: never"},
    {OPTION_WHOLE, "max-connection-age-grace-ms", "MS", WHOLE(connection_age_grace_ms), 0, DAY_MS, 30000,
     .help = "what their calls have left then"},

    {OPTION_GROUP, "Security", .help = ""},
    {OPTION_PATH, "tls-cert", "FILE", AT(tls_cert),
     .help = "certificate chain, PEM; read again when it changes"},
    {OPTION_PATH, "tls-key", "FILE", AT(tls_key), .help = "its key, PEM without a passphrase"},
    {OPTION_PATH, "tls-client-ca", "FILE", AT(tls_client_ca),
     .help = "clients must show a certificate of one of these authorities, PEM"},
    {OPTION_PATH, "token-file", "FILE", AT(token_file),
     .help = "calls need a token; a line is NAME and the token's SHA-256; read again when it changes"},
    {OPTION_SWITCH, "open-health", NULL, AT(open_health), .help = "health checks need no token"},
    {OPTION_SWITCH_OFF, "no-reflection", NULL, AT(reflection),
     .help = "do not tell clients which services and messages there are"},

    {OPTION_GROUP, "The end (SIGTERM)", .help = ""},
    {OPTION_WHOLE, "lame-duck-ms", "MS", WHOLE(lame_duck_ms), 0, HOUR_MS, 0,
     .help = "health says NOT_SERVING, but calls are still served for this time"},
    {OPTION_WHOLE, "drain-timeout-ms", "MS", WHOLE(drain_timeout_ms), 0, DAY_MS, 30000,
     .help = "running calls have this time; then they are cancelled"},

    {OPTION_GROUP, "Logs, on standard error", .help = ""},
    {OPTION_CHOICE, "log-level", "LEVEL", WHOLE(log_level), .initial_text = "info",
     .words = "debug info warn error off", .help = "debug, info, warn, error, off"},
    {OPTION_CHOICE, "log-format", "NAME", WHOLE(log_json), .initial_text = "text", .words = "text json",
     .help = "text, or json: one object a line"},
    {OPTION_CHOICE, "access-log", "WHICH", WHOLE(access_log), .initial_text = "errors",
     .words = "off errors all", .help = "a line for no call, for calls that failed, for all: off, errors, all"},

    {OPTION_GROUP, "Where options come from", .help = ""},
    {OPTION_CONFIG, "config", "FILE",
     .help = "a file of lines `option = value`, without the dashes; # begins a comment"},
};
/* clang-format on */
const int option_rows_count = (int)(sizeof option_rows / sizeof *option_rows);

/* ---- names ---- */

const char *option_env_name(char *env, const char *name) {
    int n = snprintf(env, OPTION_ENV_BYTES, "TIMBRE_%s", name);
    for (int i = 0; i < n && i < OPTION_ENV_BYTES - 1; i++) {
        if (env[i] == '-')
            env[i] = '_';
        else if (env[i] >= 'a' && env[i] <= 'z')
            env[i] = (char)(env[i] - 'a' + 'A');
    }
    return env;
}

const struct option_row *option_find(const char *name, size_t bytes) {
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind != OPTION_GROUP && strlen(row->name) == bytes && memcmp(row->name, name, bytes) == 0)
            return row;
    }
    return NULL;
}

bool option_is_switch(const struct option_row *row) {
    return row->kind == OPTION_SWITCH || row->kind == OPTION_SWITCH_OFF;
}

static int min3(int a, int b, int c) {
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* How many letters have to be put in, taken out or changed; both shorter than OPTION_NAME_BYTES. */
static int edit_distance(const char *a, const char *b) {
    int row[OPTION_NAME_BYTES + 1];
    const int n = (int)strlen(b);
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int changed = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = min3(row[j] + 1, row[j - 1] + 1, changed);
        }
    }
    return row[n];
}

const char *option_suggest(const char *name) {
    const char *best = NULL;
    int least = 4; /* further away is no suggestion */
    if (strlen(name) >= OPTION_NAME_BYTES)
        return NULL;
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind == OPTION_GROUP)
            continue;
        int distance = edit_distance(name, row->name);
        if (distance < least && 2 * distance < (int)strlen(row->name)) {
            least = distance;
            best = row->name;
        }
    }
    return best;
}

/* ---- the help ---- */

const char *option_default(const struct option_row *row, char *text, size_t bytes) {
    static const char units[] = "\0kmg";
    text[0] = 0;
    if (row->kind == OPTION_BYTES) {
        long long n = (long long)row->initial;
        int unit = 0;
        for (; unit < 3 && n && n % 1024 == 0; unit++)
            n /= 1024;
        snprintf(text, bytes, "%lld%.1s", n, &units[unit]);
    } else if (row->kind == OPTION_WHOLE) {
        snprintf(text, bytes, "%lld", (long long)row->initial);
    } else if (row->kind == OPTION_NUMBER || row->kind == OPTION_LEVEL) {
        snprintf(text, bytes, "%.15g", row->initial);
    } else if (row->initial_text) {
        snprintf(text, bytes, "%s", row->initial_text);
    }
    return text;
}

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 };

/* Words in lines from HELP_COLUMN to HELP_WIDTH; `column` is where the cursor is. */
static void print_wrapped(FILE *to, const char *text, int column) {
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + n > HELP_WIDTH) {
            fprintf(to, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            fputc(' ', to);
            column++;
        }
        fprintf(to, "%.*s", n, text);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', to);
}

static void print_row(FILE *to, const struct option_row *row) {
    char left[OPTION_NAME_BYTES + 32], value[64], help[512];
    int n = snprintf(left, sizeof left, "  --%s%s%s", row->name, row->value ? " " : "",
                     row->value ? row->value : "");
    option_default(row, value, sizeof value);
    snprintf(help, sizeof help, "%s%s%s", row->help, value[0] ? "; default " : "", value);
    if (n + 2 > HELP_COLUMN)
        fprintf(to, "%s\n%*s", left, HELP_COLUMN, "");
    else
        fprintf(to, "%-*s", HELP_COLUMN, left);
    print_wrapped(to, help, HELP_COLUMN);
}

void option_print_help(FILE *to) {
    fputs("usage: timbre serve [OPTION]...\n"
          "\n"
          "Serves models over gRPC. When it serves, it prints `ready grpc=HOST:PORT http=HOST:PORT` on "
          "standard\n"
          "output. SIGTERM ends it after the running calls; a second one ends it at once.\n",
          to);
    for (int i = 0; i < option_rows_count; i++) {
        if (option_rows[i].kind == OPTION_GROUP)
            fprintf(to, "\n%s\n", option_rows[i].name);
        else
            print_row(to, &option_rows[i]);
    }
    fputs("\n"
          "--max-calls 100 is TIMBRE_MAX_CALLS=100 in the environment and `max-calls = 100` in the file. "
          "Flags win\n"
          "over the environment, the environment over the file. A switch takes true or false there, and may "
          "take\n"
          "it here: --model-control=false. In TIMBRE_MODEL, models are separated by commas. Bytes take k, m "
          "or g\n"
          "behind the number. TIMBRE_CPU = avx512, avx2 or portable forces a code path.\n"
          "\n"
          "Exit status: 0 after SIGTERM, 1 a GPU was lost, 3 could not start: also when an option is "
          "wrong.\n",
          to);
}
