/* bench: what the files of the load generator share. bench.c has the options, bench_clips.c what is sent,
 * bench_load.c the sending and counting, bench_report.c the figures. */
#ifndef TIMBRE_CLI_BENCH_H
#define TIMBRE_CLI_BENCH_H

#include <pthread.h>

#include "cli/cli.h"
#include "cli/histogram.h"

enum {
    BENCH_CONCURRENCY_MAX = 100000,
    BENCH_CONNECTIONS_MAX = 256,
    BENCH_CLIPS_MAX = 1024,
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

/* ---- bench_load.c ---- */

/* Calls that are over. Only those that count: after the warm-up. */
struct bench_stats {
    struct histogram latency_ns; /* of calls that were answered */
    uint64_t failed;
    uint64_t codes[BENCH_CODES];
    char example[BENCH_CODES][TIMBRE_MESSAGE_BYTES]; /* a message for each code */
    uint64_t answers[5];                             /* by enum timbre_answer */
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

/* ---- bench_report.c ---- */

/* A line on standard error, if that is a terminal. */
void bench_show_live(const struct bench_stats *s, double elapsed_s, int in_flight);
void bench_clear_live(void);
void bench_report_text(const struct bench_result *r, const struct bench_options *o);
void bench_report_json(const struct bench_result *r, const struct bench_options *o);

#endif
