/* stream: what its files share. stream.c has the options, stream_run.c the audio and its pace, and
 * stream_output.c the printing; where results are computed is behind a table of functions: stream_local.c (on
 * this machine) and stream_server.c (by a running server). */
#ifndef TIMBRE_CLI_STREAM_H
#define TIMBRE_CLI_STREAM_H

#include "cli/cli.h"
#include "engine/stream.h"

enum { STREAM_NAME_BYTES = 65, STREAM_SEND_BYTES_MAX = 1 << 16 };

struct stream_channel {
    char name[STREAM_NAME_BYTES], role[STREAM_NAME_BYTES]; /* "": none */
};

struct stream_arguments {
    struct timbre_client_options server; /* without a target: on this machine */
    bool no_resume;
    const char *model; /* a folder, or a name on the server; NULL: the default */
    struct engine_options engine;
    struct model_options model_options;
    struct engine_stream_options analysis; /* all but the model */
    struct stream_channel channels[ENGINE_STREAM_CHANNELS_MAX];
    const char *path; /* "-": standard input */
    double pace;      /* times real time; 0: as fast as it is taken */
    bool json;
};

/* ---- stream_output.c ---- */

/* Strings are never NULL. */
struct stream_result {
    int channel;
    double start_s, end_s, speech_s;
    const char *status, *message; /* as cli_answer's */
    bool final;
    const char *const *labels; /* [labels_count] */
    int labels_count;
    const float *scores, *logits, *smoothed; /* [labels_count] or NULL */
    const float *embedding;                  /* [embedding_count] or NULL */
    int embedding_count;
    int dominant; /* label; -1: none */
    struct cli_receipt receipt;
    int64_t resume_offset_ms;
    double lag_ms; /* NaN: not known */
};

struct stream_summary {
    const struct summary_report *report;
    const char *const *labels; /* [labels_count] of its scores */
    int labels_count;
    int dominant[SUMMARY_CHANNELS_MAX]; /* of the mean scores; -1: none */
    bool final;
    const char *end; /* "": it goes on */
    int64_t resume_offset_ms;
    const char *request_id; /* "": none */
};

/* Results come from one thread at a time. */
struct stream_output {
    const struct stream_arguments *arguments;
    bool terminal;   /* standard output is one */
    bool interim;    /* a line stands there that the next one overwrites */
    int name_width;  /* of the channels' names */
    int label_width; /* of the labels, so far */
    long failed;     /* results that are errors, and lines that could not be made */
};

void stream_output_init(struct stream_output *out, const struct stream_arguments *a);
/* A channel's name, or its number, from 1: what --exclude takes. */
void stream_name_channel(char name[STREAM_NAME_BYTES], const struct stream_arguments *a, int channel);
void stream_print_result(struct stream_output *out, const struct stream_result *r);
void stream_print_summary(struct stream_output *out, const struct stream_summary *s);
/* The stream goes on, with the audio from `offset_ms` on, in `wait_ms`. */
void stream_print_resume(struct stream_output *out, const char *code, const char *message, int64_t offset_ms,
                         int wait_ms);
void stream_output_end(struct stream_output *out);

/* ---- stream_local.c, stream_server.c ---- */

enum stream_sent {
    STREAM_SENT,
    STREAM_NO_ROOM, /* nothing was taken; again when `attend` was due, or soon */
    STREAM_OVER,
};

struct stream_backend {
    /* Loads, connects, begins. The exit status after a message, CLI_OK to go on. A byte is written to
     * `wake_fd` (an eventfd) when there is something to attend to. */
    int (*open)(void **self, const struct stream_arguments *a, struct stream_output *out, int wake_fd);
    enum stream_sent (*send)(void *self, const void *data, size_t bytes); /* up to STREAM_SEND_BYTES_MAX */
    void (*finish)(void *self);                                           /* no more audio */
    bool (*attend)(void *self); /* prints what there is; false: the stream is over */
    /* Ends it, whatever its state; the exit status, after a message when it failed. NULL is fine. */
    int (*end)(void *self);
};
extern const struct stream_backend stream_local, stream_server;

/* ---- stream_run.c ---- */

/* The audio of a FILE in memory; of standard input only the format. */
struct stream_audio {
    char *data; /* free(data) */
    size_t bytes, frame_bytes;
};

/* Reads the file into `audio` and sets the format in a->analysis. The exit status after a message, or CLI_OK.
 */
int stream_read_file(struct stream_audio *audio, struct stream_arguments *a);
/* Sends the audio from a->analysis.resume_offset_ms on, until all results are there. The exit status. */
int stream_run(const struct stream_arguments *a, const struct stream_audio *audio);

#endif
