/* internal: what struct engine is made of, for engine/ alone.
 *
 * Threads: callers put requests into `prepare`; the prepare threads take them from there and put them into
 * the batcher or, when ffmpeg is needed, into `transcode`, whose threads put them into the batcher; the
 * stream threads take the turns of live streams (stream_internal.h), whose windows go straight into the
 * batcher; the workers take items from the batcher, run them and reply; the sweeper takes out of all three
 * what nobody waits for any more. Each lock is held for a few instructions, or a walk over what waits, and
 * none while another is taken. */
#ifndef TIMBRE_ENGINE_INTERNAL_H
#define TIMBRE_ENGINE_INTERNAL_H

#include <pthread.h>

#include "engine/batcher.h"
#include "engine/counts.h"
#include "engine/door.h"
#include "engine/request.h"
#include "engine/stream.h"
#include "engine/sweeper.h"
#include "engine/waiting.h"

enum {
    ENGINE_PREPARE_THREADS_MAX = 64,
    ENGINE_TRANSCODE_THREADS_MAX = 64,
    ENGINE_WORKERS_MAX = BATCHER_WORKERS_MAX,
    ENGINE_NAME_BYTES = 128,
    ENGINE_NARROW_WORKERS_MAX = 32, /* of one model; with more threads each has several */
};

struct engine_model {
    struct engine *engine;
    struct model *model;
    /* Worker i is run by the engine's worker thread i alone, on device i % devices_count. On the processor
     * the last narrow_count have a part of its threads each, and those before them, if any, all of them. */
    struct model_worker *workers[ENGINE_WORKERS_MAX];
    int workers_count, narrow_count;
    struct batcher_lane lane;
    struct status lost_why; /* once lane.lost */
    char name[ENGINE_NAME_BYTES];
    char head_activation[16]; /* as at loading; "": the default */
    atomic_int open;          /* requests */
    struct counts_model counts;
};

struct engine_pool { /* threads that run one function */
    pthread_t threads[ENGINE_PREPARE_THREADS_MAX];
    int count;
};

struct engine_worker { /* what one of the worker threads is told */
    struct engine *engine;
    int index;
};

struct engine {
    struct engine_options options;
    struct door *door;
    struct waiting *prepare, *transcode;
    struct batcher *batcher;
    struct sweeper *sweeper;
    struct counts counts;
    struct stream_turns *turns;
    struct engine_pool prepare_pool, transcode_pool, stream_pool, worker_pool, sweeper_pool;

    struct engine_worker workers[ENGINE_WORKERS_MAX];

    pthread_mutex_t lock;       /* guards the table of models, and the number of worker threads */
    pthread_cond_t closed_last; /* a model's last open request was closed, or the engine's last stream */
    atomic_int streams;         /* that are open, or on their way out */
    atomic_int unloading;       /* threads that wait for that */
    struct engine_model *models[ENGINE_MODELS_MAX];
    int models_count;      /* places taken, also by models that are being loaded */
    pthread_mutex_t check; /* one known answer at a time; held while it is found */
};

/* The threads' functions; arg is the engine, of a worker its struct engine_worker. Each ends when what it
 * takes from is closed and empty. */
void *engine_prepare_main(void *arg);
void *engine_transcode_main(void *arg);
void *engine_stream_main(void *arg);
void *engine_worker_main(void *arg);
void *engine_sweeper_main(void *arg);

/* Starts worker threads until there are `count`; there are never fewer again, as idle ones cost nothing.
 * Error: RESOURCE_EXHAUSTED. */
int engine_start_workers(struct engine *e, int count, struct status *st);

/* The workers of a model, for the batcher: all of them, or one alone. */
struct batcher_workers engine_model_workers(const struct engine_model *m);
struct batcher_workers engine_model_worker(const struct engine_model *m, int worker);

/* A worker of this model found its device lost. Tells the one who wants to know, then drops what waits for
 * any model on such a device. Any worker thread; what has been told once is not told again. */
void engine_lose_device(struct engine_model *m, const struct status *why);

/* Frees what is left of the models; the threads are gone. */
void engine_free_models(struct engine *e);

/* Runs samples at the model's rate in a request that was opened and neither fed nor finished, past the door
 * and the level rule; it counts for `audio_us` there. One reply follows. The batcher has room for
 * ENGINE_STREAM_WINDOWS_MAX of each stream, and for one more (engine.check). */
void engine_run_samples(struct engine_request *r, const float *samples, int64_t count, int64_t audio_us);

/* One of those who keep a model loaded is gone, and perhaps the model with it. */
void engine_model_release(struct engine_model *m);

#endif
