/* predict: what its files share. predict.c has the options and the order of printing; where an answer is
 * computed is behind a table of functions: predict_local.c (on this machine) and predict_server.c (by a
 * running server). */
#ifndef TIMBRE_CLI_PREDICT_H
#define TIMBRE_CLI_PREDICT_H

#include "cli/cli.h"

enum { PREDICT_IN_FLIGHT_MAX = 128 /* files between reading and printing; bounds memory */ };

struct predict_arguments {
    struct timbre_client_options server; /* without a target: on this machine */
    const char *model;                   /* a folder, or a name on the server; NULL: the default */
    struct engine_options engine;
    struct model_options model_options;
    struct engine_request_options request; /* format, windows, embedding */
    bool json;
    char **files;
    int files_count;
};

/* Files are told apart by their slot, 0..PREDICT_IN_FLIGHT_MAX - 1: one from submit to close. */
struct predict_backend {
    /* Loads, connects. The exit status after a message, CLI_OK to go on. */
    int (*open)(void **self, const struct predict_arguments *a);
    /* Whether submit would not take more memory than it should. Always true when nothing is under way. */
    bool (*has_room)(void *self);
    /* Begins a file. False: it is over already, `fill` tells why; nothing will come. */
    bool (*submit)(void *self, int slot, const char *path);
    int (*take)(void *self);        /* waits until a file is over: its slot */
    bool (*would_wait)(void *self); /* take would */
    /* Of a slot that is over. Pointers live until close. */
    void (*fill)(void *self, int slot, struct cli_answer *answer);
    void (*close)(void *self, int slot);
    void (*end)(void *self); /* all slots are closed; NULL is fine */
};
extern const struct predict_backend predict_local, predict_server;

/* Gives the file's bytes to `take`, piece by piece; "-" is standard input. Errors: those of take, NOT_FOUND,
 * INVALID_ARGUMENT (a folder, cannot be read). */
int predict_read_file(const char *path,
                      int (*take)(void *arg, const void *data, size_t bytes, struct status *st), void *arg,
                      struct status *st);

#endif
