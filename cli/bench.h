/* bench: what the files of the load generator share. bench.c has the options, bench_clips.c what is sent,
 * bench_load.c the sending and counting of calls, bench_streams.c that of live streams, bench_report.c the
 * figures and bench_streams_report.c those of streams. */
#ifndef TIMBRE_CLI_BENCH_H
#define TIMBRE_CLI_BENCH_H

#include <pthread.h>

#include "cli/cli.h"
#include "cli/histogram.h"

enum {
    BENCH_CONCURRENCY_MAX = 100000,
    BENCH_CONNECTIONS_MAX = 256,
    BENCH_CLIPS_MAX = 1024,
    BENCH_STREAMS_MAX = 20000,
    BENCH_CODES = 17, /* of gRPC */
};

struct bench_options {
    struct timbre_client_options server;
    const char *model;
    int concurrency; /* closed loop: so many calls at a time */
    double rate;     /* open loop: so many begin a second; 0: closed loop */
    bool constant;   /* open loop: evenly spaced, not by chance */
    int in_flight_max;
    int connections;
    double duration_s, warmup_s;
    long requests; /* stop after so many; 0: none */
    uint64_t seed;
    enum timbre_priority priority;
    enum timbre_encoding encoding;
    int rate_hz, channels; /* of raw files; of made-up clips the rate */
    bool json;

    int streams;  /* live streams instead of calls; 0: calls */
    int chunk_ms; /* of audio in a message */
    double window_s, hop_s, speech_s_min;
    bool utterances, no_resume;
};

struct bench_clip {
    void *audio;
    size_t bytes;
};

struct bench_clips {
    struct bench_clip clips[BENCH_CLIPS_MAX];
    int count;
};

/* ---- bench_clips.c ---- */

/* Each adds one clip; the exit status after a message, or CLI_OK. Clips are never freed: gRPC may hold them
 * until the process ends. */
int bench_add_file(struct bench_clips *c, const char *path);
/* Something like a voice, of so many seconds; or so many bytes of it. */
int bench_add_seconds(struct bench_clips *c, double seconds, const struct bench_options *o);
int bench_add_bytes(struct bench_clips *c, size_t bytes, const struct bench_options *o);
/* The file's audio, of one channel and in the raw encoding of the options. */
int bench_add_track(struct bench_clips *c, const char *path, const struct bench_options *o);
size_t bench_count_value_bytes(enum timbre_encoding encoding);

uint64_t bench_next_random(uint64_t *state); /* *state is not 0 */

/* ---- bench_load.c ---- */

/* What failed, by code. */
struct bench_errors {
    uint64_t codes[BENCH_CODES];
    char example[BENCH_CODES][TIMBRE_MESSAGE_BYTES]; /* a message for each code */
};
void bench_count_error(struct bench_errors *e, int code, const char *message);
void bench_merge_errors(struct bench_errors *to, const struct bench_errors *from);

double bench_measure_cpu_s(void); /* of this process, so far */
/* SIGINT ends the load early, with a report; the second one ends it at once. */
void bench_catch_signal(void);
bool bench_is_interrupted(void);
void bench_sleep_until(int64_t ns);
/* A client, once the server has told of the model. The exit status after a message, or CLI_OK. */
int bench_connect(struct timbre_client **client, int *model_rate_hz, const struct bench_options *o);

/* Calls that are over. Only those that count: after the warm-up. */
struct bench_stats {
    struct histogram latency_ns; /* of calls that were answered */
    uint64_t failed;
    struct bench_errors errors;
    uint64_t answers[5]; /* by enum timbre_answer */
    uint64_t attempts;
    uint64_t batches; /* answers that a forward was run for */
    double audio_s, batch_size, queue_ms, compute_ms;
};

struct bench_result {
    struct bench_stats stats;
    double elapsed_s; /* that was measured */
    double cpu_s;     /* of this process meanwhile */
    uint64_t unsent;  /* open loop: whose time came while `in_flight_max` others were under way, to the end */
    double late_ms_max; /* open loop: the longest that a call was sent after its time */
};

/* Runs the load. The exit status after a message when it cannot start, else CLI_OK. */
int bench_run(struct bench_result *r, const struct bench_options *o, const struct bench_clips *clips);

/* ---- bench_streams.c ---- */

struct bench_streams_stats {
    struct histogram lag_ns;   /* of results that count: after the warm-up, until the end */
    struct histogram first_ns; /* of every stream: from its opening to its first result */
    uint64_t answers[5];       /* of those that count, by enum timbre_answer */
    uint64_t results, final;   /* those that count; final ones among them */
    uint64_t batches;
    double batch_size, queue_ms, compute_ms;
    /* Of every stream from beginning to end, channel by channel. */
    uint64_t got, missing, doubled, misplaced; /* final results */
    uint64_t resumed;
    uint64_t failed; /* streams that did not end well */
    struct bench_errors errors;
};

struct bench_streams_result {
    struct bench_streams_stats stats;
    double elapsed_s, cpu_s; /* that was measured */
    double audio_s;          /* sent meanwhile, of all channels */
    double late_ms_max;      /* the longest that a chunk was given after its time */
    uint64_t no_room;        /* times that the client had no room for a chunk */
};

/* Runs the streams. The exit status after a message when it cannot start, else CLI_OK. */
int bench_run_streams(struct bench_streams_result *r, const struct bench_options *o,
                      const struct bench_clips *tracks);

/* ---- bench_report.c ---- */

enum { BENCH_QUANTILES = 4 };
extern const struct bench_quantile {
    const char *name, *key;
    double share;
} bench_quantiles[BENCH_QUANTILES];

/* Parts of the reports. */
double bench_mean(double sum, uint64_t count);
void bench_print_times(const char *name, const struct histogram *ns); /* in ms */
void bench_print_answers(const uint64_t *answers);                    /* [5] */
void bench_print_errors(const struct bench_errors *e);
void bench_put_count(struct text *t, const char *key, uint64_t value);
void bench_put_times(struct text *t, const char *key, const struct histogram *ns);
void bench_put_counts(struct text *t, const uint64_t *answers, const struct bench_errors *e);

/* A line on standard error, if that is a terminal. */
void bench_show_live(const struct bench_stats *s, double elapsed_s, int in_flight);
void bench_clear_live(void);
void bench_report_text(const struct bench_result *r, const struct bench_options *o);
void bench_report_json(const struct bench_result *r, const struct bench_options *o);
/* Shows a line of the caller's likewise. */
void bench_show_line(const char *line);

/* ---- bench_streams_report.c ---- */

void bench_report_streams_text(const struct bench_streams_result *r, const struct bench_options *o);
void bench_report_streams_json(const struct bench_streams_result *r, const struct bench_options *o);

#endif
