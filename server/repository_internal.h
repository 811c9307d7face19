/* repository_internal: what struct repository is made of, for repository*.c alone. */
#ifndef TIMBRE_SERVER_REPOSITORY_INTERNAL_H
#define TIMBRE_SERVER_REPOSITORY_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/queue.h"
#include "server/folder.h"
#include "server/repository.h"

/* A row of the table. */
struct slot {
    struct repository_entry entry;
    struct engine_model *counted; /* whose answers count here: the entry's model, while it is unloaded too */
    struct engine_model *lost;    /* with its device; unloaded when it is loaded anew */
    double executions;            /* each answer is its share of a batch */
};

enum job_kind {
    JOB_LOAD,   /* load, then to the completion-queue thread */
    JOB_RETIRE, /* a load whose models are served: unload those they replaced */
    JOB_UNLOAD,
};

struct job {
    enum job_kind kind; /* changed by the completion-queue thread alone */
    char name[REPOSITORY_NAME_BYTES], dir[FOLDER_DIR_BYTES];
    struct slot *loaded[REPOSITORY_VERSIONS_MAX]; /* rows to be */
    int loaded_count;
    struct engine_model *leaving[REPOSITORY_VERSIONS_MAX]; /* to be unloaded */
    int leaving_count;
    struct status status;
    void (*done)(void *arg, const struct status *st); /* NULL: nobody waits */
    void *arg;
};

struct repository {
    struct engine *engine;
    const struct server_options *options;
    struct folder_model sources[SERVER_MODELS_MAX]; /* those of --model; others are in the models-dir */
    int sources_count;
    char first[REPOSITORY_NAME_BYTES];
    /* Room for what is there, and for what jobs bring. */
    struct slot *slots[REPOSITORY_ENTRIES_MAX + REPOSITORY_JOBS_MAX * REPOSITORY_VERSIONS_MAX];
    int slots_count;
    struct job *jobs[REPOSITORY_JOBS_MAX]; /* all there are; NULL: free */
    struct lane {
        struct repository *repository;
        struct queue *queue;
        pthread_t thread;
        bool started;
    } load, unload;
    struct queue *finished;
    atomic_bool stopping;
    atomic_bool on_cpu; /* the GPUs are not used any more */
};

#endif
