/* repository: which models are served under which names and versions; loading and unloading while traffic
 * runs.
 *
 * A thread of its own loads and unloads. repository_find and the calls that tell or change the table are made
 * by the completion-queue thread alone, so what repository_find returns may be opened by engine_open in the
 * same event without a lock; the repository waits in engine_model_unload for what was opened. */
#ifndef TIMBRE_SERVER_REPOSITORY_H
#define TIMBRE_SERVER_REPOSITORY_H

#include <stdbool.h>

#include "base/status.h"
#include "server/options.h"

enum {
    REPOSITORY_NAME_BYTES = 128,
    REPOSITORY_VERSION_BYTES = 20,
    REPOSITORY_VERSIONS_MAX = 16, /* of one model; the newest are taken */
    REPOSITORY_ENTRIES_MAX = 256, /* loaded or not */
    REPOSITORY_JOBS_MAX = 16,     /* loads and unloads at a time */
};

enum repository_state { REPOSITORY_LOADING, REPOSITORY_READY, REPOSITORY_UNLOADING, REPOSITORY_UNAVAILABLE };
const char *
repository_state_name(enum repository_state s); /* "LOADING" ..., as Triton's repository index says */

/* One version of one model. The statistics belong to the completion-queue thread. */
struct repository_entry {
    char name[REPOSITORY_NAME_BYTES], version[REPOSITORY_VERSION_BYTES];
    enum repository_state state;
    char reason[STATUS_MESSAGE_BYTES_MAX]; /* of UNAVAILABLE: why; "unloaded" when it was asked for */
    struct engine_model *model;            /* READY: never NULL; else NULL */
    struct repository_statistics {         /* since the version was loaded; for ModelStatistics */
        uint64_t success_count, success_ns, fail_count, fail_ns, cancel_count, cancel_ns;
        uint64_t queue_ns, compute_ns, inference_count, execution_count, last_inference_ms;
    } statistics;
};

struct repository;

/* Finds the folders, loads every model and checks its known answer, in the calling thread; any failure is
 * fatal: names model and folder. */
int repository_new(struct repository **r, struct engine *e, const struct server_options *o,
                   struct status *st);
void repository_del(struct repository *r); /* unloads all; every request must be closed. NULL is fine */

/* The entry for a name ("" = the first model) and version ("" = the newest that is ready). Errors: NOT_FOUND
 * (lists what there is), UNAVAILABLE (loading, unloading, unloaded: why). Valid until the next event. */
int repository_find(struct repository *r, const char *name, const char *version,
                    struct repository_entry **entry, struct status *st);
/* All entries, by name (the first model first), then version; models of the models-dir that are not loaded
 * too. */
int repository_count(const struct repository *r);
struct repository_entry *repository_at(struct repository *r, int index);

/* Begin to load (again: all versions on disk, the newest wins; what is served meanwhile stays until the new
 * ones are ready) or unload a model by name. A name may be that of a --model or of a folder in the
 * models-dir. `done(arg, st)` follows exactly once, on a thread of the repository; `st` is OK or why not:
 * NOT_FOUND (no such folder), the errors of engine_model_load and engine_model_check. Errors at once:
 * NOT_FOUND (a name that cannot be one; unload: that is not here), UNAVAILABLE (it is being loaded),
 * RESOURCE_EXHAUSTED (too many waiting). */
int repository_load(struct repository *r, const char *name, void (*done)(void *arg, const struct status *st),
                    void *arg, struct status *st);
int repository_unload(struct repository *r, const char *name,
                      void (*done)(void *arg, const struct status *st), void *arg, struct status *st);
/* The devices of models are lost (engine_model_is_lost): those models are not served from here on, and loaded
 * anew on the CPU, in fp32 if that was wanted, else in the precision "auto"; so is whatever is loaded later.
 */
void repository_move_to_cpu(struct repository *r);
/* Takes over what the thread has finished: called by the completion-queue thread at every tick and by whoever
 * got `done`, before it looks. Returns true when the table changed (health does too). */
bool repository_update(struct repository *r);

/* Counts a request of `m` that came back, before it is closed, and one that was refused after its model was
 * found; `took_ns` since it arrived. A model that is not in the table any more is not counted. */
void repository_count_answer(struct repository *r, const struct engine_model *m,
                             const struct engine_result *result, int64_t took_ns);
void repository_count_failure(struct repository *r, const struct engine_model *m, enum status_code code,
                              int64_t took_ns);

#endif
