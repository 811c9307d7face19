/* cli: the `timbre` program, one file for each subcommand. */
#ifndef TIMBRE_CLI_CLI_H
#define TIMBRE_CLI_CLI_H

#include <stdbool.h>

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

/* ---- output.c: one file's answer, wherever it was computed ---- */

struct cli_window {
    double start_s, end_s;
    const char *status;  /* as cli_answer.status */
    const float *scores; /* [labels_count]; NULL: none */
    int dominant;        /* -1: none */
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
    struct {
        const char *model, *digest, *device, *precision;
        int batch_size;
        double queue_ms, compute_ms, audio_s;
    } receipt;
};
void cli_print_json(const struct cli_answer *a);
void cli_print_table(const struct cli_answer *a);

/* ---- progress.c: a bar on standard error, when that is a terminal ---- */

void cli_progress_show(int done, int total, double audio_s, double elapsed_s);
void cli_progress_clear(void);

#endif
