/* cli: the `timbre` program, one file for each subcommand. */
#ifndef TIMBRE_CLI_CLI_H
#define TIMBRE_CLI_CLI_H

#include <stdbool.h>

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

/* ---- output.c: one result ---- */

/* A file's result, from the engine or, when it could not even be read, from `status`. */
struct cli_result {
    const char *file;
    const struct engine_result *result; /* NULL: see status */
    const struct status *status;
};
void cli_print_json(const struct cli_result *r, const struct model *m);
void cli_print_table(const struct cli_result *r, const struct model *m);

/* ---- progress.c: a bar on standard error, when that is a terminal ---- */

void cli_progress_show(int done, int total, double audio_s, double elapsed_s);
void cli_progress_clear(void);

#endif
