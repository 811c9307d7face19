/* cli: the `timbre` program, one file for each subcommand. */
#ifndef TIMBRE_CLI_CLI_H
#define TIMBRE_CLI_CLI_H

#include <stdbool.h>

#include "base/text.h"
#include "client/client.h"
#include "engine/engine.h"

/* Exit statuses; scripts depend on them. */
enum {
    CLI_OK = 0,
    CLI_SOME_FAILED = 1, /* some input could not be answered */
    CLI_USAGE = 2,
    CLI_NOT_STARTED = 3, /* for example a model that does not load */
};

int cli_predict(int argc, char **argv);
int cli_stream(int argc, char **argv);
int cli_serve(int argc, char **argv);
int cli_inspect(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_version(int argc, char **argv);

/* ---- args.c: what the subcommands' options share ---- */

/* Each prints one line on standard error and returns false when `text` is not such a number in lo..hi. */
bool cli_parse_int(const char *option, const char *text, long lo, long hi, long *value);
bool cli_parse_double(const char *option, const char *text, double lo, double hi, double *value);

/* Likewise when `text` is not one of `names`, which are separated by spaces. */
bool cli_parse_choice(const char *option, const char *text, const char *names);

/* Likewise when `text` is no raw encoding. */
bool cli_parse_raw(const char *option, const char *text, enum audio_encoding *encoding);
/* What the client calls it. */
enum timbre_encoding cli_client_encoding(enum audio_encoding encoding);

/* The folder of the shipped model: beside the installed program, else in the source tree. Never NULL. */
const char *cli_default_model(void);

/* Prints "timbre COMMAND: MESSAGE" on standard error; returns `exit_status`. */
int cli_fail(const char *command, int exit_status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* What the load report warns of, on standard error. */
void cli_print_warnings(const char *command, const struct model *m);

/* ---- server_options.c: how to reach a server, for those who ask one ---- */

/* Entries for an array of getopt_long options, and the lines of --help. */
enum {
    CLI_O_SERVER = 1000,
    CLI_O_TLS,
    CLI_O_TLS_CA,
    CLI_O_TLS_CERT,
    CLI_O_TLS_KEY,
    CLI_O_TLS_SERVER_NAME,
    CLI_O_TOKEN_FILE,
    CLI_O_DEADLINE_MS,
};
#define CLI_SERVER_OPTIONS                                                                                   \
    {"server", required_argument, NULL, CLI_O_SERVER}, {"tls", no_argument, NULL, CLI_O_TLS},                \
        {"tls-ca", required_argument, NULL, CLI_O_TLS_CA},                                                   \
        {"tls-cert", required_argument, NULL, CLI_O_TLS_CERT},                                               \
        {"tls-key", required_argument, NULL, CLI_O_TLS_KEY},                                                 \
        {"tls-server-name", required_argument, NULL, CLI_O_TLS_SERVER_NAME},                                 \
        {"token-file", required_argument, NULL, CLI_O_TOKEN_FILE}, {                                         \
        "deadline-ms", required_argument, NULL, CLI_O_DEADLINE_MS                                            \
    }
#define CLI_SERVER_HELP                                                                                      \
    "  --server ADDRESS         host:port, unix:/path or dns:///name:port\n"                                 \
    "  --token-file FILE        a bearer token, the first line of FILE\n"                                    \
    "  --tls                    encrypt; --tls-ca FILE: trust these certificates instead of the system's;\n" \
    "                           --tls-cert FILE, --tls-key FILE: a certificate of one's own;\n"              \
    "                           --tls-server-name NAME: the name in the server's certificate\n"              \
    "  --deadline-ms N          give up an answer after this time\n"

/* Takes one of these; false after a message when its value is wrong. */
bool cli_take_server_option(struct timbre_client_options *o, int option, const char *value);

/* ---- model_options.c: a model on this machine ---- */

enum {
    CLI_O_DEVICE = 1100,
    CLI_O_PRECISION,
    CLI_O_THREADS,
    CLI_O_NO_PIN,
    CLI_O_BATCH_S,
    CLI_O_DEVICES,
    CLI_O_CUDA_CONV,
    CLI_O_CUDA_ATTENTION,
    CLI_O_PACKED_CACHE,
    CLI_O_PACKED_CACHE_VERIFY,
    CLI_O_SILENCE,
    CLI_O_LABELS,
    CLI_O_OUTPUT,
    CLI_O_HEAD_ACTIVATION,
};
#define CLI_MODEL_OPTIONS                                                                                    \
    {"device", required_argument, NULL, CLI_O_DEVICE},                                                       \
        {"precision", required_argument, NULL, CLI_O_PRECISION},                                             \
        {"threads", required_argument, NULL, CLI_O_THREADS}, {"no-pin", no_argument, NULL, CLI_O_NO_PIN},    \
        {"max-batch-seconds", required_argument, NULL, CLI_O_BATCH_S},                                       \
        {"devices", required_argument, NULL, CLI_O_DEVICES},                                                 \
        {"cuda-conv", required_argument, NULL, CLI_O_CUDA_CONV},                                             \
        {"cuda-attention", required_argument, NULL, CLI_O_CUDA_ATTENTION},                                   \
        {"packed-cache", required_argument, NULL, CLI_O_PACKED_CACHE},                                       \
        {"packed-cache-verify", no_argument, NULL, CLI_O_PACKED_CACHE_VERIFY},                               \
        {"silence-dbfs", required_argument, NULL, CLI_O_SILENCE},                                            \
        {"labels", required_argument, NULL, CLI_O_LABELS},                                                   \
        {"output", required_argument, NULL, CLI_O_OUTPUT}, {                                                 \
        "head-activation", required_argument, NULL, CLI_O_HEAD_ACTIVATION                                    \
    }
#define CLI_MODEL_HELP                                                                                       \
    "  --device NAME            auto, cpu, cuda, ref; default auto\n"                                        \
    "  --precision NAME         fp32, bf16, int8, or auto: bf16 where it is faster; default fp32\n"          \
    "  --threads N              threads of the forward pass; default: one a processor\n"                     \
    "  --no-pin                 leave the threads to the scheduler\n"                                        \
    "  --max-batch-seconds S    audio in one batch; default 60, at least 30\n"                               \
    "  --devices LIST           the GPUs: all, or indexes such as 0,1; default 0\n"                          \
    "  --cuda-conv NAME         how a GPU computes convolutions: auto, cudnn, gemm; default auto\n"          \
    "  --cuda-attention NAME    and attention: auto, fused, cublas; default auto\n"                          \
    "  --packed-cache DIR       keep packed weights there for the next start; beside: in the model's\n"      \
    "                           folder; default: nowhere\n"                                                  \
    "  --packed-cache-verify    and read the model's files to know that they are unchanged, whatever\n"      \
    "                           their times say\n"                                                           \
    "  --silence-dbfs D         quieter audio is no_speech; default -60, off for never\n"                    \
    "  --labels FILE            names to use instead of the model's own: one a line, or JSON\n"              \
    "  --output NAME            how logits become scores: auto, softmax, sigmoid, none\n"                    \
    "  --head-activation NAME   none, tanh, relu: for heads whose files do not tell; default none\n"

/* The defaults of a program that runs once. */
void cli_init_model_options(struct engine_options *e, struct model_options *m);
static inline bool cli_is_model_option(int option) {
    return option >= CLI_O_DEVICE && option <= CLI_O_HEAD_ACTIVATION;
}
/* Takes one of these; false after a message when its value is wrong. */
bool cli_take_model_option(struct engine_options *e, struct model_options *m, int option, const char *value);

/* ---- output.c: one file's answer, wherever it was computed ---- */

struct cli_window {
    double start_s, end_s;
    const char *status;  /* as cli_answer.status */
    const float *scores; /* [labels_count]; NULL: none */
    int dominant;        /* -1: none */
};

struct cli_receipt {
    const char *model, *digest, *device, *precision;
    int batch_size;
    double queue_ms, compute_ms, audio_s;
};

/* Strings are never NULL. */
struct cli_answer {
    const char *file;
    const char *status; /* "ok", "no_speech", "too_short", "error" */
    const char *message;
    double duration_s;
    const char *const *labels; /* [labels_count] */
    int labels_count;
    const float *scores, *logits; /* [labels_count]; NULL unless ok */
    const float *embedding;       /* [embedding_count]; NULL: none */
    int embedding_count;
    int dominant;                     /* label; -1: none */
    const struct cli_window *windows; /* [windows_count]; NULL: none */
    int windows_count;
    struct cli_receipt receipt;
};
void cli_print_json(const struct cli_answer *a);
void cli_print_table(const struct cli_answer *a);

/* Parts of JSON objects: ,"KEY":... each, and what they stand for. */
void cli_put_number(struct text *t, const char *key, double value);
void cli_put_floats_or_null(struct text *t, const char *key, const float *values, int count);
void cli_put_labels(struct text *t, const char *const *labels, int count);
/* {"label","score"} of label `dominant`; null for -1. */
void cli_put_dominant(struct text *t, const char *const *labels, const float *scores, int dominant);
void cli_put_receipt(struct text *t, const struct cli_receipt *r);

/* A score in 0..1 as `cells` cells; and text of others, which must not drive the terminal. */
void cli_put_bar(struct text *t, float score, int cells);
void cli_put_plain(struct text *t, const char *s);

/* ---- progress.c: a bar on standard error, when that is a terminal ---- */

void cli_progress_show(int done, int total, double audio_s, double elapsed_s);
void cli_progress_clear(void);

#endif
