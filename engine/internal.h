/* internal: what struct engine is made of, for engine/ alone.
 *
 * Threads: callers put requests into `prepare`; the prepare threads take them from there and put them into
 * the batcher or, when ffmpeg is needed, into `transcode`, whose threads put them into the batcher; the
 * worker takes items from the batcher, runs them and replies; the sweeper takes out of all three what nobody
 * waits for any more. Each lock is held for a few instructions, or a walk over what waits, and none while
 * another is taken. */
#ifndef TIMBRE_ENGINE_INTERNAL_H
#define TIMBRE_ENGINE_INTERNAL_H

#include <pthread.h>

#include "engine/batcher.h"
#include "engine/counts.h"
#include "engine/door.h"
#include "engine/request.h"
#include "engine/sweeper.h"
#include "engine/waiting.h"

enum { ENGINE_PREPARE_THREADS_MAX = 64, ENGINE_TRANSCODE_THREADS_MAX = 64, ENGINE_NAME_BYTES = 128 };

struct engine_model {
    struct engine *engine;
    struct model *model;
    struct model_worker *worker; /* run by the engine's worker thread alone */
    struct batcher_lane lane;
    char name[ENGINE_NAME_BYTES];
    char head_activation[16]; /* as at loading; "": the default */
    atomic_int open;          /* requests */
    struct counts_model counts;
};

struct engine_pool { /* threads that run one function */
    pthread_t threads[ENGINE_PREPARE_THREADS_MAX];
    int count;
};

struct engine {
    struct engine_options options;
    struct door *door;
    struct waiting *prepare, *transcode;
    struct batcher *batcher;
    struct sweeper *sweeper;
    struct counts counts;
    struct engine_pool prepare_pool, transcode_pool, worker_pool, sweeper_pool;

    pthread_mutex_t lock;       /* guards the table of models */
    pthread_cond_t closed_last; /* a model's last open request was closed */
    atomic_int unloading;       /* threads that wait for that */
    struct engine_model *models[ENGINE_MODELS_MAX];
    int models_count;      /* places taken, also by models that are being loaded */
    pthread_mutex_t check; /* one known answer at a time; held while it is found */

    struct batcher_batch batch;                      /* the worker's */
    struct model_clip clips[ENGINE_BATCH_CLIPS_MAX]; /* likewise */
};

/* The threads' functions; arg is the engine. Each ends when what it takes from is closed and empty. */
void *engine_prepare_main(void *arg);
void *engine_transcode_main(void *arg);
void *engine_worker_main(void *arg);
void *engine_sweeper_main(void *arg);

/* Frees what is left of the models; the threads are gone. */
void engine_free_models(struct engine *e);

/* Runs samples at the model's rate in a request that was opened and neither fed nor finished, past the door
 * and the level rule. One reply follows. One at a time (engine.check). */
void engine_run_samples(struct engine_request *r, const float *samples, int64_t count);

#endif
