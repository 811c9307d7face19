/* The table of models, and two threads that load and unload: one for each, so that an unload which waits for
 * long requests does not hold up a load. A job goes from the completion-queue thread to one of them and comes
 * back through `finished`; the table itself is the completion-queue thread's alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/repository_internal.h"

const char *repository_state_name(enum repository_state s) {
    static const char *const names[] = {"LOADING", "READY", "UNLOADING", "UNAVAILABLE"};
    return names[s];
}

/* ---- the table ---- */

static int compare_slots(const struct repository *r, const struct slot *a, const struct slot *b) {
    const bool a_first = strcmp(a->entry.name, r->first) == 0, b_first = strcmp(b->entry.name, r->first) == 0;
    if (a_first != b_first)
        return a_first ? -1 : 1;
    int names = strcmp(a->entry.name, b->entry.name);
    if (names)
        return names;
    const long long x = atoll(a->entry.version), y = atoll(b->entry.version);
    return x < y ? -1 : x > y;
}

/* There is room: every job was let in with room for what it brings. */
static void insert_slot(struct repository *r, struct slot *s) {
    int at = r->slots_count++;
    for (; at > 0 && compare_slots(r, r->slots[at - 1], s) > 0; at--)
        r->slots[at] = r->slots[at - 1];
    r->slots[at] = s;
}

static void remove_slot(struct repository *r, int index) {
    free(r->slots[index]);
    r->slots_count--;
    memmove(&r->slots[index], &r->slots[index + 1], (size_t)(r->slots_count - index) * sizeof *r->slots);
}

static struct slot *new_slot(const char *name, const char *version, struct engine_model *m) {
    struct slot *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    memcpy(s->entry.name, name, strlen(name) + 1);
    memcpy(s->entry.version, version, strlen(version) + 1);
    s->entry.model = s->counted = m;
    s->entry.state = m ? REPOSITORY_READY : REPOSITORY_LOADING;
    return s;
}

/* Sets the state of the rows of a name that have the state `from`. */
static void set_state(struct repository *r, const char *name, enum repository_state from,
                      enum repository_state to, const char *reason) {
    for (int i = 0; i < r->slots_count; i++) {
        struct repository_entry *e = &r->slots[i]->entry;
        if (e->state != from || strcmp(e->name, name) != 0)
            continue;
        e->state = to;
        e->model = NULL;
        if (to == REPOSITORY_UNAVAILABLE)
            r->slots[i]->counted = NULL; /* freed */
        strncpy(e->reason, reason, sizeof e->reason - 1);
    }
}

static bool has_name(const struct repository *r, const char *name) {
    for (int i = 0; i < r->slots_count; i++)
        if (strcmp(r->slots[i]->entry.name, name) == 0)
            return true;
    return false;
}

int repository_count(const struct repository *r) {
    return r->slots_count;
}

struct repository_entry *repository_at(struct repository *r, int index) {
    return &r->slots[index]->entry;
}

static int fail_unknown(const struct repository *r, const char *name, struct status *st) {
    char list[256];
    struct text t;
    text_init(&t, list, sizeof list);
    for (int i = 0; i < r->slots_count && t.length < 160; i++) {
        const struct repository_entry *e = &r->slots[i]->entry;
        if (i == 0 || strcmp(e->name, r->slots[i - 1]->entry.name) != 0)
            text_printf(&t, "%s%.64s", t.length ? ", " : "", e->name);
    }
    return status_set(st, STATUS_NOT_FOUND, "model \"%.64s\": there is none of that name here; there is: %s",
                      name, list[0] ? list : "none");
}

int repository_find(struct repository *r, const char *name, const char *version,
                    struct repository_entry **entry, struct status *st) {
    struct repository_entry *best = NULL;
    bool known = false;
    if (!name[0])
        name = r->first;
    for (int i = 0; i < r->slots_count; i++) { /* the newest comes last */
        struct repository_entry *e = &r->slots[i]->entry;
        if (strcmp(e->name, name) != 0)
            continue;
        known = true;
        if (version[0] ? strcmp(e->version, version) == 0
                       : !best || e->state == REPOSITORY_READY || best->state != REPOSITORY_READY)
            best = e;
    }
    if (!known)
        return fail_unknown(r, name, st);
    if (!best)
        return status_set(st, STATUS_NOT_FOUND, "model %s has no version \"%.32s\"", name, version);
    if (best->state == REPOSITORY_UNAVAILABLE)
        return status_set(st, STATUS_UNAVAILABLE, "model %s is not loaded: %s", name, best->reason);
    if (best->state != REPOSITORY_READY)
        return status_set(st, STATUS_UNAVAILABLE, "model %s is being %s", name,
                          best->state == REPOSITORY_LOADING ? "loaded" : "unloaded");
    *entry = best;
    return 0;
}

/* ---- loading, on any thread ---- */

static void unload_all(struct job *j) {
    for (int i = 0; i < j->loaded_count; i++) {
        engine_model_unload(j->loaded[i]->entry.model);
        free(j->loaded[i]);
    }
    j->loaded_count = 0;
}

static void log_loaded(const char *name, const char *version, const struct engine_model *m,
                       const char *report, double ms) {
    const struct model_info *info = model_get_info(engine_model_get(m));
    const struct log_field fields[] = {
        log_text("model", name),
        log_text("version", version),
        log_text("digest", info->digest),
        log_text("device", info->device),
        log_text("precision", info->precision),
        log_number("parameters", (double)info->parameters),
        log_number("ms", ms),
        log_text("check", report),
    };
    log_write_fields(LOG_INFO, "repository", fields, sizeof fields / sizeof *fields, "loaded %s", info->dir);
    for (int i = 0; i < info->warnings_count; i++)
        log_write(LOG_WARN, "repository", "model %s version %s: %s", name, version, info->warnings[i]);
}

static int load_version(struct repository *r, struct job *j, const struct folder_version *v,
                        struct status *st) {
    struct engine_model *m;
    struct model_options o = r->options->model;
    char report[256] = "";
    const int64_t begin_ns = clock_now_ns();
    if (atomic_load(&r->on_cpu)) {
        o.device = "cpu";
        if (o.precision && strcmp(o.precision, "fp32") != 0)
            o.precision = "auto"; /* the GPU's may be none of the CPU's */
    }
    if (engine_model_load(&m, r->engine, j->name, v->dir, &o, st))
        return status_prefix(st, "model %s version %s", j->name, v->version);
    if (engine_model_check(m, report, sizeof report, st)) {
        engine_model_unload(m);
        return status_prefix(st, "model %s version %s", j->name, v->version);
    }
    struct slot *s = new_slot(j->name, v->version, m);
    if (!s) {
        engine_model_unload(m);
        return status_set_no_memory(st, sizeof *s, "a model's entry");
    }
    log_loaded(j->name, v->version, m, report, clock_elapsed_ms(begin_ns));
    j->loaded[j->loaded_count++] = s;
    return 0;
}

/* Fills j->loaded with every version on disk, or with nothing. */
static int load(struct repository *r, struct job *j, struct status *st) {
    int count = 0, failed;
    struct folder_version *versions = calloc(REPOSITORY_VERSIONS_MAX, sizeof *versions);
    if (!versions)
        return status_set_no_memory(st, REPOSITORY_VERSIONS_MAX * sizeof *versions, "a list of versions");
    failed = folder_list_versions(j->name, j->dir, versions, &count, st);
    for (int i = 0; i < count && !failed; i++)
        failed = atomic_load(&r->stopping) ? status_set(st, STATUS_UNAVAILABLE, "the server is stopping")
                                           : load_version(r, j, &versions[i], st);
    free(versions);
    if (failed)
        unload_all(j);
    return failed;
}

static void unload(struct job *j) {
    for (int i = 0; i < j->leaving_count; i++)
        engine_model_unload(j->leaving[i]);
    j->leaving_count = 0;
    log_write(LOG_INFO, "repository",
              j->kind == JOB_UNLOAD ? "model %s is unloaded" : "model %s: the old one is unloaded", j->name);
}

/* ---- the threads ---- */

static void *run_lane(void *arg) {
    struct lane *lane = arg;
    struct repository *r = lane->repository;
    struct job *j;
    while ((j = queue_take(lane->queue))) {
        struct status st = {0};
        if (j->kind == JOB_LOAD && load(r, j, &st))
            log_write(LOG_ERROR, "repository", "cannot load: %s", st.message);
        else if (j->kind != JOB_LOAD)
            unload(j);
        j->status = st;
        void (*done)(void *, const struct status *) = j->done;
        void *done_arg = j->arg;
        queue_try_put(r->finished, j); /* there is room for all jobs; from here on the job is not ours */
        if (done)
            done(done_arg, &st);
    }
    return NULL;
}

static int start_lane(struct repository *r, struct lane *lane, struct status *st) {
    lane->repository = r;
    if (queue_new(&lane->queue, REPOSITORY_JOBS_MAX, st))
        return -1;
    if (pthread_create(&lane->thread, NULL, run_lane, lane))
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start the repository's threads");
    pthread_setname_np(lane->thread, "timbre-models");
    lane->started = true;
    return 0;
}

static void stop_lane(struct lane *lane) {
    if (!lane->queue)
        return;
    queue_close(lane->queue);
    if (lane->started)
        pthread_join(lane->thread, NULL);
    queue_del(lane->queue);
    lane->queue = NULL;
}

/* ---- jobs, on the completion-queue thread ---- */

static struct job *find_load(const struct repository *r, const char *name) {
    for (int i = 0; i < REPOSITORY_JOBS_MAX; i++)
        if (r->jobs[i] && r->jobs[i]->kind == JOB_LOAD && strcmp(r->jobs[i]->name, name) == 0)
            return r->jobs[i];
    return NULL;
}

static struct job *add_job(struct repository *r, enum job_kind kind, const char *name, struct status *st) {
    int at = 0;
    if (find_load(r, name)) {
        status_set(st, STATUS_UNAVAILABLE, "model %s is being loaded: try again when that is done", name);
        return NULL;
    }
    while (at < REPOSITORY_JOBS_MAX && r->jobs[at])
        at++;
    if (at == REPOSITORY_JOBS_MAX) {
        status_set(st, STATUS_RESOURCE_EXHAUSTED, "%d models are being loaded or unloaded, the limit",
                   REPOSITORY_JOBS_MAX);
        return NULL;
    }
    struct job *j = r->jobs[at] = calloc(1, sizeof *j);
    if (!j) {
        status_set_no_memory(st, sizeof *j, "a job of the repository");
        return NULL;
    }
    j->kind = kind;
    memcpy(j->name, name, strlen(name) + 1);
    return j;
}

static void free_job(struct repository *r, struct job *j) {
    for (int i = 0; i < REPOSITORY_JOBS_MAX; i++)
        if (r->jobs[i] == j)
            r->jobs[i] = NULL;
    free(j);
}

/* The new rows take the place of all that the name had. What was served goes to j->leaving. */
static void swap_in(struct repository *r, struct job *j) {
    for (int i = r->slots_count - 1; i >= 0; i--) {
        struct repository_entry *e = &r->slots[i]->entry;
        if (strcmp(e->name, j->name) != 0)
            continue;
        if (e->model)
            j->leaving[j->leaving_count++] = e->model;
        remove_slot(r, i);
    }
    if (!r->first[0])
        memcpy(r->first, j->name, sizeof r->first);
    for (int i = 0; i < j->loaded_count; i++)
        insert_slot(r, j->loaded[i]);
    j->loaded_count = 0;
}

/* What is served stays; rows that waited for this load say why there is nothing. */
static void give_up_load(struct repository *r, const struct job *j) {
    set_state(r, j->name, REPOSITORY_LOADING, REPOSITORY_UNAVAILABLE, j->status.message);
    for (int i = r->slots_count - 1; i >= 0; i--) /* a row without a version was made for this load */
        if (j->status.code == STATUS_NOT_FOUND && !r->slots[i]->entry.version[0] &&
            strcmp(r->slots[i]->entry.name, j->name) == 0)
            remove_slot(r, i);
}

/* Takes over a finished job. True: it goes on. */
static bool take_over(struct repository *r, struct job *j) {
    if (j->kind == JOB_UNLOAD)
        set_state(r, j->name, REPOSITORY_UNLOADING, REPOSITORY_UNAVAILABLE, "unloaded");
    if (j->kind != JOB_LOAD)
        return false;
    if (j->status.code != STATUS_OK)
        give_up_load(r, j);
    else
        swap_in(r, j);
    j->kind = JOB_RETIRE;
    j->done = NULL;
    return j->leaving_count > 0 && queue_try_put(r->unload.queue, j);
}

/* The folder of a name: that of --model, else one in the models-dir. */
static int find_dir(const struct repository *r, const char *name, char dir[FOLDER_DIR_BYTES],
                    struct status *st) {
    for (int i = 0; i < r->sources_count; i++)
        if (strcmp(r->sources[i].name, name) == 0) {
            memcpy(dir, r->sources[i].dir, FOLDER_DIR_BYTES);
            return 0;
        }
    if (!r->options->models_dir || !folder_is_name(name))
        return fail_unknown(r, name, st);
    if (snprintf(dir, FOLDER_DIR_BYTES, "%s/%s", r->options->models_dir, name) >= FOLDER_DIR_BYTES)
        return status_set(st, STATUS_INVALID_ARGUMENT, "model %s: a path of more than %d bytes", name,
                          FOLDER_DIR_BYTES - 1);
    return 0;
}

/* Loads a name anew whose models are lost. False: there is no room for a job now. */
static bool begin_move(struct repository *r, const char *name) {
    char dir[FOLDER_DIR_BYTES];
    struct status st;
    if (find_dir(r, name, dir, &st)) {
        set_state(r, name, REPOSITORY_LOADING, REPOSITORY_UNAVAILABLE, st.message);
        return true;
    }
    struct job *j = add_job(r, JOB_LOAD, name, NULL);
    if (!j)
        return false;
    memcpy(j->dir, dir, sizeof j->dir);
    for (int i = 0; i < r->slots_count; i++) {
        struct slot *s = r->slots[i];
        if (s->lost && strcmp(s->entry.name, name) == 0) {
            j->leaving[j->leaving_count++] = s->lost;
            s->lost = NULL;
        }
    }
    set_state(r, name, REPOSITORY_UNAVAILABLE, REPOSITORY_LOADING, "");
    queue_try_put(r->load.queue, j);
    return true;
}

/* Models on devices that are lost are not served any more, and loaded anew as there is room for jobs. True:
 * the table changed. */
static bool move_lost(struct repository *r) {
    bool changed = false;
    for (int i = 0; i < r->slots_count; i++) {
        struct slot *s = r->slots[i];
        if (s->entry.state != REPOSITORY_READY || !engine_model_is_lost(s->entry.model))
            continue;
        s->lost = s->entry.model;
        s->entry.model = NULL;
        s->entry.state = REPOSITORY_LOADING;
        changed = true;
    }
    for (int i = 0; i < r->slots_count; i++)
        if (r->slots[i]->lost && !find_load(r, r->slots[i]->entry.name) &&
            !begin_move(r, r->slots[i]->entry.name))
            break;
    return changed;
}

void repository_move_to_cpu(struct repository *r) {
    atomic_store(&r->on_cpu, true);
    (void)repository_update(r);
}

bool repository_update(struct repository *r) {
    struct job *j;
    bool changed = false;
    while ((j = queue_take_until(r->finished, 0))) {
        changed = changed || j->kind != JOB_RETIRE;
        if (!take_over(r, j))
            free_job(r, j);
    }
    if (atomic_load(&r->on_cpu) && !atomic_load(&r->stopping))
        changed = move_lost(r) || changed;
    return changed;
}

int repository_load(struct repository *r, const char *name, void (*done)(void *arg, const struct status *st),
                    void *arg, struct status *st) {
    char dir[FOLDER_DIR_BYTES];
    struct slot *placeholder = NULL;
    if (find_dir(r, name, dir, st))
        return -1;
    if (!has_name(r, name)) {
        if (r->slots_count + REPOSITORY_VERSIONS_MAX > REPOSITORY_ENTRIES_MAX)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                              "the repository has %d entries of %d, too many for a model", r->slots_count,
                              REPOSITORY_ENTRIES_MAX);
        placeholder = new_slot(name, "", NULL);
        if (!placeholder)
            return status_set_no_memory(st, sizeof *placeholder, "a model's entry");
    }
    struct job *j = add_job(r, JOB_LOAD, name, st);
    if (!j) {
        free(placeholder);
        return -1;
    }
    memcpy(j->dir, dir, sizeof j->dir);
    j->done = done;
    j->arg = arg;
    if (placeholder)
        insert_slot(r, placeholder);
    set_state(r, name, REPOSITORY_UNAVAILABLE, REPOSITORY_LOADING, "");
    queue_try_put(r->load.queue, j);
    return 0;
}

int repository_unload(struct repository *r, const char *name,
                      void (*done)(void *arg, const struct status *st), void *arg, struct status *st) {
    if (!has_name(r, name))
        return fail_unknown(r, name, st);
    struct job *j = add_job(r, JOB_UNLOAD, name, st);
    if (!j)
        return -1;
    j->done = done;
    j->arg = arg;
    for (int i = 0; i < r->slots_count; i++) {
        struct repository_entry *e = &r->slots[i]->entry;
        if (e->state == REPOSITORY_READY && strcmp(e->name, name) == 0)
            j->leaving[j->leaving_count++] = e->model;
    }
    set_state(r, name, REPOSITORY_READY, REPOSITORY_UNLOADING, "");
    queue_try_put(r->unload.queue, j);
    return 0;
}

/* ---- life ---- */

static int load_at_start(struct repository *r, const struct folder_model *m, struct status *st) {
    struct job *j = add_job(r, JOB_LOAD, m->name, st);
    if (!j)
        return -1;
    memcpy(j->dir, m->dir, sizeof j->dir);
    int failed = load(r, j, st);
    if (!failed)
        swap_in(r, j);
    free_job(r, j);
    return failed;
}

static int load_all(struct repository *r, struct status *st) {
    const struct server_options *o = r->options;
    struct folder_model *models = calloc(SERVER_MODELS_MAX, sizeof *models);
    int count, failed;
    if (!models)
        return status_set_no_memory(st, SERVER_MODELS_MAX * sizeof *models, "a list of models");
    failed = folder_name_models(o, models, &count, st);
    if (!failed) {
        memcpy(r->sources, models, (size_t)count * sizeof *models);
        r->sources_count = count;
        failed = o->models_dir && folder_list_models(o->models_dir, models, &count, st);
    }
    if (!failed && count == 0 && !o->model_control)
        failed = status_set(st, STATUS_NOT_FOUND,
                            "no model: name one by --model NAME=DIR, or a folder of models by "
                            "--models-dir");
    if (!failed && count)
        memcpy(r->first, models[0].name, sizeof r->first);
    for (int i = 0; i < count && !failed; i++)
        failed = load_at_start(r, &models[i], st);
    free(models);
    return failed ? -1 : 0;
}

int repository_new(struct repository **out, struct engine *e, const struct server_options *o,
                   struct status *st) {
    struct repository *r = *out = calloc(1, sizeof *r);
    if (!r)
        return status_set_no_memory(st, sizeof *r, "the repository");
    r->engine = e;
    r->options = o;
    if (load_all(r, st) || queue_new(&r->finished, REPOSITORY_JOBS_MAX, st) || start_lane(r, &r->load, st) ||
        start_lane(r, &r->unload, st)) {
        repository_del(r);
        *out = NULL;
        return -1;
    }
    return 0;
}

void repository_del(struct repository *r) {
    if (!r)
        return;
    atomic_store(&r->stopping, true);
    stop_lane(&r->load);
    if (r->finished)
        repository_update(r);
    stop_lane(&r->unload);
    if (r->finished)
        repository_update(r);
    queue_del(r->finished);
    for (int i = 0; i < r->slots_count; i++) {
        engine_model_unload(r->slots[i]->lost);
        engine_model_unload(r->slots[i]->entry.model);
        free(r->slots[i]);
    }
    free(r);
}
