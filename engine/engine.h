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

struct engine;
struct engine_request;

/* Defaults and limits; each is named in the message that refuses something over it. */
#define ENGINE_BATCH_S_MAX_DEFAULT 60.0 /* max-batch-seconds: audio in one batch */
#define ENGINE_WHOLE_S_MAX         30.0 /* a longer clip goes by windows */
#define ENGINE_WINDOW_S_DEFAULT    10.0
#define ENGINE_HOP_S_DEFAULT       5.0
enum {
    ENGINE_BATCH_CLIPS_MAX = 256,
    ENGINE_WINDOWS_MAX = 8192, /* of one request */
    ENGINE_QUEUE_DEPTH_DEFAULT = 256,
    ENGINE_PREPARE_THREADS_DEFAULT = 2,
    ENGINE_DELAY_US_DEFAULT = 2000,
};

struct engine_options {
    const char *model_dir;
    struct model_options model;
    struct audio_limits audio;
    double silence_dbfs; /* a clip or window below this level is no_speech; -INFINITY: none is. audio.h has
                            the rule */
    double batch_s_max;  /* audio in one batch, and the size of the workspace; at least ENGINE_WHOLE_S_MAX */
    int delay_us;        /* how long a free worker waits for company before it runs a batch that has room */
    int queue_depth;     /* requests between finish and forward */
    int prepare_threads; /* decode and resample */
};

void engine_options_init(struct engine_options *o); /* the defaults; model_dir is left NULL */

/* Loads the model and starts the threads. Errors: those of model_new, INVALID_ARGUMENT (an option out of
 * range: named), RESOURCE_EXHAUSTED (says what the batch budget needs). */
int engine_new(struct engine **e, const struct engine_options *o, struct status *st);
/* Finishes what was finished by callers (their replies are posted), then stops. NULL is fine. */
void engine_del(struct engine *e);
const struct model *engine_model(const struct engine *e);

/* What this machine offers, a line each: processors, the device that would be chosen, how ffmpeg is shut in.
 */
void engine_describe_machine(struct text *out);

/* Order in the batcher: lower first; by deadline, then by arrival within a class. Nobody starves: for every
 * ENGINE_AGING_MS that a request has waited it counts as one class better, in the end better than fresh live
 * work. */
enum engine_class { ENGINE_LIVE, ENGINE_UNARY, ENGINE_BULK };
enum { ENGINE_AGING_MS = 2000 };

struct engine_request_options {
    struct audio_format format;
    double window_s,
        hop_s;      /* 0: whole up to ENGINE_WHOLE_S_MAX, longer by the default windows. hop_s 0: window_s */
    bool embedding; /* wanted in the result */
    enum engine_class order;
    int64_t deadline_ns;     /* on clock_now_ns; 0: none. Work that is late is dropped unrun */
    struct queue *replies;   /* where the request is put when it is done. A full one makes the engine wait */
    void (*wake)(void *arg); /* called after that, on a thread of the engine; must not block. NULL: none */
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
    struct status status;                /* why, when ENGINE_ERROR; else a sentence for people, or empty */
    double duration_s;                   /* of the audio as it came; 0 when it could not be decoded */
    const float *logits, *scores;        /* [labels]; NULL unless ENGINE_OK */
    const float *embedding;              /* [hidden]; NULL unless ENGINE_OK and wanted */
    int dominant;                        /* label index; -1: none */
    const struct engine_window *windows; /* [windows_count]; NULL for a whole clip */
    int windows_count;
    /* The receipt. Model, digest, device and precision are those of model_get_info. */
    int batch_size;    /* clips in the largest batch that a part of this one rode in; 0: no forward was run */
    double queue_ms;   /* from ready to the start of the (first) forward */
    double compute_ms; /* time of the forwards it rode in */
    double audio_s;    /* audio that was run, in the model's rate */
};

/* Errors: INVALID_ARGUMENT (window, hop, format out of range), RESOURCE_EXHAUSTED. */
int engine_open(struct engine_request **r, struct engine *e, const struct engine_request_options *o,
                struct status *st);
/* Adds bytes: of the file, or raw samples. How they are cut does not matter. Copies them. Errors:
 * RESOURCE_EXHAUSTED (max-file-bytes, or memory). */
int engine_feed(struct engine_request *r, const void *data, size_t bytes, struct status *st);
/* Hands the request to the engine: exactly one reply follows. Error: RESOURCE_EXHAUSTED (queue depth),
 * UNAVAILABLE (stopping); then the caller still owns it. With `wait` it waits for room in the queue instead.
 */
int engine_finish(struct engine_request *r, bool wait, struct status *st);
void engine_cancel(struct engine_request *r); /* whoever holds it drops it; the reply says CANCELLED */

/* Of a request that came back. */
const struct engine_result *engine_get_result(const struct engine_request *r);
void *engine_get_user(const struct engine_request *r);
void engine_close(struct engine_request *r); /* of one the caller owns; NULL is fine */

#endif
