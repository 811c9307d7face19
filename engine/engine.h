/* engine: all of inference, no network. A request is opened, fed and finished; its answer comes back through
 * a queue.
 *
 * A request is a baton: it has one owner at a time. The caller owns it from engine_open to engine_finish;
 * then the engine; then, once it has appeared in the reply queue, the caller again, until engine_close.
 * Between finish and reply the caller may only call engine_cancel. Threads meet only at queues
 * (docs/architecture.md). */
#ifndef TIMBRE_ENGINE_ENGINE_H
#define TIMBRE_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "audio/audio.h"
#include "base/queue.h"
#include "base/status.h"
#include "models/model.h"

struct engine;       /* the devices with their workers, the threads that prepare, the queues */
struct engine_model; /* a model loaded into an engine */
struct engine_request;
struct metrics;

/* Defaults and limits; each is named in the message that refuses something over it. */
#define ENGINE_BATCH_S_MAX_DEFAULT  60.0  /* max-batch-seconds: audio in one batch */
#define ENGINE_QUEUED_S_MAX_DEFAULT 600.0 /* max-queued-seconds */
#define ENGINE_WHOLE_S_MAX          30.0  /* a longer clip goes by windows */
#define ENGINE_WINDOW_S_DEFAULT     10.0
#define ENGINE_HOP_S_DEFAULT        5.0
enum {
    ENGINE_MODELS_MAX = 64,
    ENGINE_BATCH_CLIPS_MAX = 256,
    ENGINE_WINDOWS_MAX = 8192, /* of one request */
    ENGINE_QUEUE_DEPTH_DEFAULT = 1024,
    ENGINE_PREPARE_THREADS_DEFAULT = 2,
    ENGINE_TRANSCODE_THREADS_DEFAULT = 2,
    ENGINE_DELAY_US_DEFAULT = 2000,
};

/* Who computes on the CPU when a model has several threads. The bits are the same. */
enum engine_cpu_mode {
    ENGINE_CPU_AUTO,    /* by load: one worker with all threads while there is little to do, so that an answer
                           comes soon; one worker a thread, each with a batch of its own, when there is more */
    ENGINE_CPU_LATENCY, /* always the first; takes less memory */
    ENGINE_CPU_THROUGHPUT, /* always the second */
};

struct engine_options {
    struct audio_limits audio;
    double silence_dbfs; /* a clip or window below this level is no_speech; -INFINITY: none is. audio.h has
                            the rule */
    double batch_s_max;  /* audio in one batch, and the size of a workspace; at least ENGINE_WHOLE_S_MAX */
    enum engine_cpu_mode cpu_mode;
    int delay_us;    /* how long a free worker waits for requests that are being prepared, before it runs a
                        batch that has room. With none on its way it does not wait */
    int queue_depth; /* requests between finish and forward */
    double queued_s_max; /* audio between finish and forward. A file counts as PCM16 at the model's rate would
                            until it is decoded, then as what it is. One that turned out longer
                            than there is room for comes back with RESOURCE_EXHAUSTED */
    int prepare_threads; /* decode and resample what needs no other program */
    int transcode_threads;   /* run ffmpeg for the rest, so that slow uploads wait for each other alone. Those
                                may take half of queue_depth and of queued_s_max */
    int stream_threads;      /* take the turns of live streams (stream.h): decode, resample, cut */
    int streams_max;         /* open at a time */
    struct metrics *metrics; /* where the engine counts (docs/metrics.md); NULL: nowhere */
    /* A device is lost: nothing will run on it any more in this process, and all models on devices of its
     * kind are refused from now on (UNAVAILABLE), with what waits for them. Called on a thread of the engine
     * before the first caller is told. Must not block, nor call the engine. NULL: nobody wants to know. */
    void (*on_lost)(void *arg, const struct status *why);
    void *on_lost_arg;
};

void engine_options_init(struct engine_options *o); /* the defaults */

/* Starts the threads. Errors: INVALID_ARGUMENT (an option out of range: named), RESOURCE_EXHAUSTED. */
int engine_new(struct engine **e, const struct engine_options *o, struct status *st);
/* Finishes what was finished by callers (their replies are posted), unloads the models, then stops. All
 * requests must be closed or finished, all streams closed. NULL is fine. */
void engine_del(struct engine *e);

/* Loads a folder and makes its workspaces, one for each of its workers (model.h: devices_count times
 * workers_per_device; on the CPU by cpu_mode); takes seconds, disturbs nobody. Any thread. `name` is what
 * metrics call it. Errors: those of model_new, RESOURCE_EXHAUSTED (ENGINE_MODELS_MAX; says what the batch
 * budget needs). */
int engine_model_load(struct engine_model **m, struct engine *e, const char *name, const char *dir,
                      const struct model_options *o, struct status *st);
/* Waits until every request opened on it is closed, then frees it. Not on a thread that closes requests. The
 * caller sees to it that none is opened meanwhile. NULL is fine. */
void engine_model_unload(struct engine_model *m);
const struct model *engine_model_get(const struct engine_model *m);
/* Its device is lost (engine_options.on_lost): whatever is asked of it is refused. Any thread. */
bool engine_model_is_lost(const struct engine_model *m);
/* The known answer: runs a made-up voice through every worker, alone and between others, and compares bits;
 * models of up to ENGINE_CHECK_BYTES_MAX of weights are also compared with the naive kernels ("ref"). Says in
 * `report` what was compared. Errors: INTERNAL (this machine computes wrongly: what and by how much),
 * UNAVAILABLE (the device failed).
 */
#define ENGINE_CHECK_BYTES_MAX ((int64_t)512 << 20)
int engine_model_check(struct engine_model *m, char *report, size_t report_bytes, struct status *st);

/* How much waits, and how fast it goes. Any thread. */
struct engine_load {
    int requests;    /* between finish and forward */
    double queued_s; /* audio of those */
    double rate; /* audio seconds a second in which any device is busy, smoothed; 0 before the first batch */
    double running_s; /* audio in the batches that run now */
    int requests_max; /* queue_depth */
    double queued_s_max;
};
void engine_measure(const struct engine *e, struct engine_load *load);
/* Whether one more request would be let in; the errors of engine_finish. Before an upload is read. */
int engine_check_room(const struct engine *e, struct status *st);
/* When a caller who was refused should come again: the time the queue needs at the measured rate to halve,
 * in 10..30000 ms. */
int engine_retry_after_ms(const struct engine *e);

/* What this machine offers, a line each: processors, GPUs or why there is none, the device that would be
 * chosen, how ffmpeg is shut in. */
void engine_describe_machine(struct text *out);

/* Order in the batcher: lower first; by deadline, then by arrival within a class. Nobody starves: for every
 * ENGINE_AGING_MS that a request has waited it counts as one class better, in the end better than fresh live
 * work. A batch is of one model: of the one whose best class is better, likewise one better for every
 * ENGINE_AGING_MS since it was served; among equals, of the one that has used the device least. */
enum engine_class { ENGINE_LIVE, ENGINE_UNARY, ENGINE_BULK };
enum { ENGINE_AGING_MS = 2000 };

struct engine_request_options {
    struct engine_model *model;
    struct audio_format format;
    double window_s,
        hop_s; /* 0: whole up to ENGINE_WHOLE_S_MAX, longer by the default windows. hop_s 0: window_s */
    double speech_s_min; /* with window_s: less speech in a window, by the rule of audio/vad.h, is no_speech;
                            0: only the level rule is asked */
    bool embedding;      /* wanted in the result */
    enum engine_class order;
    int64_t deadline_ns; /* on clock_now_ns; 0: none. Work that is late, or would be at the measured rate, is
                            dropped unrun */
    struct queue *replies;   /* where the request is put when it is done; a full one makes the engine wait.
                                NULL: only wake tells, and from its call on the request is the caller's */
    void (*wake)(void *arg); /* called after that, on a thread of the engine; must not block. One call may
                                stand for several that share wake and wake_arg. NULL: none */
    void *wake_arg;
    void *user; /* for the caller */
};

/* What became of a clip or window. Only ENGINE_OK carries scores. */
enum engine_outcome {
    ENGINE_OK,
    ENGINE_NO_SPEECH, /* silence by the level rule of audio.h */
    ENGINE_TOO_SHORT, /* fewer samples than one frame needs */
    ENGINE_ERROR,
};
const char *engine_outcome_name(enum engine_outcome o); /* "ok", "no_speech", "too_short", "error" */

struct engine_window {
    double start_s, end_s;
    enum engine_outcome outcome;
    const float *logits, *scores; /* [labels]; NULL unless ENGINE_OK */
};

/* Valid until engine_close. With windows, logits, scores and embedding are the means over the windows that
 * are OK, weighted by their length. */
struct engine_result {
    enum engine_outcome outcome;
    struct status status;                /* why, when ENGINE_ERROR (UNAVAILABLE: the device failed); else a
                                            sentence for people, or empty */
    double duration_s;                   /* of the audio as it came; 0 when it could not be decoded */
    const float *logits, *scores;        /* [labels]; NULL unless ENGINE_OK */
    const float *embedding;              /* [hidden]; NULL unless ENGINE_OK and wanted */
    int dominant;                        /* label index; -1: none */
    const struct engine_window *windows; /* [windows_count]; NULL for a whole clip */
    int windows_count;
    /* The receipt. Model, digest, device and precision are those of model_get_info. */
    int batch_size;    /* clips in the largest batch that a part of this one rode in; 0: no forward was run */
    double queue_ms;   /* from ready to when the device began the (first) forward */
    double compute_ms; /* the device's time for the forwards it rode in */
    double audio_s;    /* audio that was run, in the model's rate */
};

/* Errors: INVALID_ARGUMENT (window, hop, format out of range), RESOURCE_EXHAUSTED. */
int engine_open(struct engine_request **r, const struct engine_request_options *o, struct status *st);
/* Adds bytes: of the file, or raw samples. How they are cut does not matter. Copies them. Errors:
 * RESOURCE_EXHAUSTED (max-file-bytes, or memory). */
int engine_feed(struct engine_request *r, const void *data, size_t bytes, struct status *st);
/* Instead of engine_feed, once: all bytes at once and without a copy. `pieces` [count] is copied, what they
 * point to must stay until the engine calls release(arg): once, on any thread, at the latest in engine_close.
 * On an error it is not called. Errors: as engine_feed. */
struct engine_piece {
    const void *data;
    size_t bytes;
};
int engine_give(struct engine_request *r, const struct engine_piece *pieces, size_t count,
                void (*release)(void *arg), void *arg, struct status *st);
/* Hands the request to the engine: exactly one reply follows. Errors: RESOURCE_EXHAUSTED (queue-depth or
 * max-queued-seconds, with what waits and the limit), UNAVAILABLE (stopping, or the device is lost); then the
 * caller still owns it. With `wait` it waits for room in the queue instead. */
int engine_finish(struct engine_request *r, bool wait, struct status *st);
void engine_cancel(struct engine_request *r); /* whoever holds it drops it; the reply says CANCELLED */

/* Of a request that came back; engine_get_user of any. */
const struct engine_result *engine_get_result(const struct engine_request *r);
void *engine_get_user(const struct engine_request *r);
void engine_close(struct engine_request *r); /* of one the caller owns; NULL is fine */

#endif
