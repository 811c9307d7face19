/* The engine's threads: made in engine_new, ended in engine_del. */
#include "engine/engine.h"

#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audio/ffmpeg.h"
#include "base/team.h"
#include "engine/stream_internal.h"

/* Clips come and go by the thousand a second. Below these sizes their memory stays with the process: asking
 * the kernel for it anew each time costs more than a small model's forward. */
enum { KEPT_BLOCK_BYTES = 4 << 20, KEPT_FREE_BYTES = 32 << 20 };

enum { RETRY_MS_MIN = 10, RETRY_MS_MAX = 30000, RETRY_MS_UNKNOWN = 1000 };

void engine_options_init(struct engine_options *o) {
    *o = (struct engine_options){
        .silence_dbfs = AUDIO_SILENCE_DBFS_MAX,
        .batch_s_max = ENGINE_BATCH_S_MAX_DEFAULT,
        .delay_us = ENGINE_DELAY_US_DEFAULT,
        .queue_depth = ENGINE_QUEUE_DEPTH_DEFAULT,
        .queued_s_max = ENGINE_QUEUED_S_MAX_DEFAULT,
        .prepare_threads = ENGINE_PREPARE_THREADS_DEFAULT,
        .transcode_threads = ENGINE_TRANSCODE_THREADS_DEFAULT,
        .stream_threads = ENGINE_STREAM_THREADS_DEFAULT,
        .streams_max = ENGINE_STREAMS_MAX_DEFAULT,
    };
    audio_limits_init(&o->audio);
}

static int check_options(const struct engine_options *o, struct status *st) {
    if (!(o->silence_dbfs <= 0))
        return status_set(st, STATUS_INVALID_ARGUMENT, "silence level: %g dB is above full scale",
                          o->silence_dbfs);
    if (!(o->batch_s_max >= ENGINE_WHOLE_S_MAX && o->batch_s_max <= 100000))
        return status_set(st, STATUS_INVALID_ARGUMENT, "max-batch-seconds: %g is not in %g..100000",
                          o->batch_s_max, ENGINE_WHOLE_S_MAX);
    if (o->queue_depth < 1 || o->queue_depth > 1000000)
        return status_set(st, STATUS_INVALID_ARGUMENT, "queue-depth: %d is not in 1..1000000",
                          o->queue_depth);
    if (!(o->queued_s_max > 0 && o->queued_s_max <= 1e9))
        return status_set(st, STATUS_INVALID_ARGUMENT, "max-queued-seconds: %g is not over 0 and up to 1e9",
                          o->queued_s_max);
    if (o->transcode_threads < 1 || o->transcode_threads > ENGINE_TRANSCODE_THREADS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "transcode-threads: %d is not in 1..%d",
                          o->transcode_threads, ENGINE_TRANSCODE_THREADS_MAX);
    if (o->prepare_threads < 1 || o->prepare_threads > ENGINE_PREPARE_THREADS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "prepare-threads: %d is not in 1..%d",
                          o->prepare_threads, ENGINE_PREPARE_THREADS_MAX);
    if (o->stream_threads < 1 || o->stream_threads > ENGINE_PREPARE_THREADS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "stream-threads: %d is not in 1..%d",
                          o->stream_threads, ENGINE_PREPARE_THREADS_MAX);
    if (o->streams_max < 0 || o->streams_max > ENGINE_STREAMS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "max-streams: %d is not in 0..%d", o->streams_max,
                          ENGINE_STREAMS_MAX);
    if (o->cpu_mode < ENGINE_CPU_AUTO || o->cpu_mode > ENGINE_CPU_THROUGHPUT)
        return status_set(st, STATUS_INVALID_ARGUMENT, "cpu-mode: %d is not one of them", (int)o->cpu_mode);
    if (o->delay_us < 0 || o->delay_us > 10000000)
        return status_set(st, STATUS_INVALID_ARGUMENT, "batch delay: %d us is not in 0..10000000",
                          o->delay_us);
    return 0;
}

static int start(struct engine_pool *pool, int count, void *(*run)(void *arg), struct engine *e,
                 const char *name, struct status *st) {
    for (int i = 0; i < count; i++) {
        if (pthread_create(&pool->threads[i], NULL, run, e) != 0)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start thread %d of %d of %s", i + 1,
                              count, name);
        pthread_setname_np(pool->threads[i], name);
        pool->count = i + 1;
    }
    return 0;
}

static void join(struct engine_pool *pool) {
    for (int i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i], NULL);
    pool->count = 0;
}

int engine_start_workers(struct engine *e, int count, struct status *st) {
    struct engine_pool *pool = &e->worker_pool;
    int result = 0;
    pthread_mutex_lock(&e->lock);
    while (result == 0 && pool->count < count) {
        struct engine_worker *w = &e->workers[pool->count];
        *w = (struct engine_worker){.engine = e, .index = pool->count};
        if (pthread_create(&pool->threads[pool->count], NULL, engine_worker_main, w) != 0)
            result = status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start worker thread %d of %d",
                                pool->count + 1, count);
        else
            pthread_setname_np(pool->threads[pool->count++], "timbre-worker");
    }
    pthread_mutex_unlock(&e->lock);
    return result;
}

static int start_threads(struct engine *e, struct status *st) {
    const struct engine_options *o = &e->options;
    if (start(&e->sweeper_pool, 1, engine_sweeper_main, e, "timbre-sweeper", st) ||
        engine_start_workers(e, 1, st) ||
        start(&e->stream_pool, o->stream_threads, engine_stream_main, e, "timbre-stream", st) ||
        start(&e->prepare_pool, o->prepare_threads, engine_prepare_main, e, "timbre-prepare", st) ||
        start(&e->transcode_pool, o->transcode_threads, engine_transcode_main, e, "timbre-ffmpeg", st))
        return -1;
    return 0;
}

static int make_parts(struct engine *e, struct status *st) {
    const struct engine_options *o = &e->options;
    /* What needs ffmpeg gets half of the room. The batcher has places more, for the windows of streams and
     * for the known answer. */
    const int half = o->queue_depth > 1 ? o->queue_depth / 2 : 1;
    const int depth = o->queue_depth + o->streams_max * ENGINE_STREAM_WINDOWS_MAX + 1;
    if (door_new(&e->door, o->queue_depth, o->queued_s_max, st) ||
        waiting_new(&e->prepare, INT_MAX, INT64_MAX, st) ||
        waiting_new(&e->transcode, half, (int64_t)(o->queued_s_max * 0.5e6), st) ||
        batcher_new(&e->batcher, depth, o->delay_us, st) || sweeper_new(&e->sweeper, st) ||
        stream_turns_new(&e->turns, st))
        return -1;
    counts_init(e);
    return 0;
}

int engine_new(struct engine **out, const struct engine_options *o, struct status *st) {
    *out = NULL;
    if (check_options(o, st))
        return -1;
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return status_set_no_memory(st, sizeof *e, "the engine");
    e->options = *o;
    mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES);
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->check, NULL);
    pthread_cond_init(&e->closed_last, NULL);
    if (make_parts(e, st) || start_threads(e, st)) {
        engine_del(e);
        return -1;
    }
    *out = e;
    return 0;
}

/* They were closed; their last forwards are on their way. */
static void wait_for_streams(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    while (atomic_load(&e->streams) > 0)
        pthread_cond_wait(&e->closed_last, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

void engine_del(struct engine *e) {
    if (!e)
        return;
    if (e->door)
        door_close(e->door);
    wait_for_streams(e);
    if (e->turns)
        stream_turns_close(e->turns);
    join(&e->stream_pool);
    /* Each list is closed when nobody puts into it any more, and its threads end when it is empty. */
    if (e->prepare)
        waiting_close(e->prepare);
    join(&e->prepare_pool);
    if (e->transcode)
        waiting_close(e->transcode);
    join(&e->transcode_pool);
    if (e->batcher)
        batcher_close(e->batcher);
    join(&e->worker_pool);
    if (e->sweeper)
        sweeper_stop(e->sweeper);
    join(&e->sweeper_pool);
    engine_free_models(e);
    sweeper_del(e->sweeper);
    stream_turns_del(e->turns);
    batcher_del(e->batcher);
    waiting_del(e->transcode);
    waiting_del(e->prepare);
    door_del(e->door);
    pthread_cond_destroy(&e->closed_last);
    pthread_mutex_destroy(&e->check);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void engine_measure(const struct engine *e, struct engine_load *load) {
    door_measure(e->door, load);
}

int engine_check_room(const struct engine *e, struct status *st) {
    return door_check(e->door, st);
}

int engine_retry_after_ms(const struct engine *e) {
    struct engine_load load;
    door_measure(e->door, &load);
    double ms = RETRY_MS_UNKNOWN;
    if (load.rate > 0)
        ms = (load.queued_s / 2 + load.running_s) / load.rate * 1e3;
    return ms < RETRY_MS_MIN ? RETRY_MS_MIN : ms > RETRY_MS_MAX ? RETRY_MS_MAX : (int)ms;
}

/* One after another until there is none of that index. */
static void describe_gpus(struct text *out) {
    static const char asked[] = "device cuda: "; /* before the reason, for those who did ask */
    for (int i = 0; i < MODEL_DEVICES_MAX; i++) {
        char name[MODEL_DEVICE_NAME_BYTES], index[16];
        const struct model_options o = {.device = "cuda", .devices = index, .cuda_eager = true};
        struct status st;
        snprintf(index, sizeof index, "%d", i);
        if (model_find_device(&o, name, &st) == 0)
            text_printf(out, "gpu %d %s\n", i, name);
        else if (i == 0)
            text_printf(out, "gpu none: %s\n",
                        strncmp(st.message, asked, sizeof asked - 1) ? st.message
                                                                     : st.message + sizeof asked - 1);
        else
            return;
    }
}

void engine_describe_machine(struct text *out) {
    const struct model_options automatic = {.threads = 1};
    char device[MODEL_DEVICE_NAME_BYTES], confinement[256];
    struct status st;
    text_printf(out, "processors %d\n", team_count_processors());
    describe_gpus(out);
    if (model_find_device(&automatic, device, &st))
        text_printf(out, "device none: %s\n", st.message);
    else
        text_printf(out, "device %s, fp32\n", device);
    text_printf(out, "ffmpeg shut in by %s\n", ffmpeg_describe_confinement(confinement, sizeof confinement));
}
