/* internal: what struct engine is made of, for engine/ alone.
 *
 * Threads: the prepare pool takes requests from `prepare` and puts them into the batcher; the worker takes
 * items from the batcher, runs them and replies. The batcher has the only lock that guards more than a queue,
 * and nothing else is locked while it is held. */
#ifndef TIMBRE_ENGINE_INTERNAL_H
#define TIMBRE_ENGINE_INTERNAL_H

#include <pthread.h>

#include "engine/batcher.h"
#include "engine/request.h"

enum { ENGINE_PREPARE_THREADS_MAX = 64 };

struct engine {
    struct engine_options options;
    struct model *model;
    struct queue *prepare;
    struct batcher *batcher;
    pthread_t prepare_threads[ENGINE_PREPARE_THREADS_MAX];
    int prepare_threads_count;
    pthread_t worker_thread;
    bool worker_started;
    struct model_worker *worker;
    struct model_clip *clips;   /* [ENGINE_BATCH_CLIPS_MAX] of the worker's batch */
    struct engine_item **batch; /* likewise */
};

/* The worker's thread: takes batches until the batcher is closed and empty. arg is the engine. */
void *engine_worker_main(void *arg);

#endif
