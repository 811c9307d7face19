/* predict on this machine: files go through the engine's batcher. */
#include <stdlib.h>
#include <string.h>

#include "cli/predict.h"

/* A file from submit to close. */
struct slot {
    struct engine_request *request;
    struct status status; /* why there is no request */
    struct cli_window *windows;
};

struct local {
    const struct predict_arguments *arguments;
    struct engine *engine;
    struct engine_model *model;
    struct queue *replies;
    struct slot slots[PREDICT_IN_FLIGHT_MAX];
};

static int open_local(void **self, const struct predict_arguments *a) {
    const char *dir = a->model ? a->model : cli_default_model();
    struct status st;
    struct local *l = *self = calloc(1, sizeof *l);
    if (!l)
        return cli_fail("predict", CLI_NOT_STARTED, "out of memory");
    l->arguments = a;
    if (queue_new(&l->replies, PREDICT_IN_FLIGHT_MAX, &st) || engine_new(&l->engine, &a->engine, &st) ||
        engine_model_load(&l->model, l->engine, "default", dir, &a->model_options, &st))
        return cli_fail("predict", CLI_NOT_STARTED, "%s", st.message);
    cli_print_warnings("predict", engine_model_get(l->model));
    return CLI_OK;
}

static void end_local(void *self) {
    struct local *l = self;
    if (!l)
        return;
    engine_del(l->engine);
    queue_del(l->replies);
    free(l);
}

static bool has_room(void *self) { /* engine_finish waits for it */
    (void)self;
    return true;
}

static int feed(void *request, const void *data, size_t bytes, struct status *st) {
    return engine_feed(request, data, bytes, st);
}

static bool submit(void *self, int index, const char *path) {
    struct local *l = self;
    struct slot *slot = &l->slots[index];
    struct engine_request_options o = l->arguments->request;
    o.model = l->model;
    o.replies = l->replies;
    o.user = slot;
    *slot = (struct slot){.request = NULL};
    if (engine_open(&slot->request, &o, &slot->status) == 0 &&
        predict_read_file(path, feed, slot->request, &slot->status) == 0 &&
        engine_finish(slot->request, true, &slot->status) == 0)
        return true;
    engine_close(slot->request);
    slot->request = NULL;
    return false;
}

static int take(void *self) {
    struct local *l = self;
    struct slot *slot = engine_get_user(queue_take(l->replies));
    return (int)(slot - l->slots);
}

static bool would_wait(void *self) {
    return queue_count(((struct local *)self)->replies) == 0;
}

static void fill_windows(struct slot *slot, const struct engine_result *r, const struct model *m,
                         struct cli_answer *a) {
    slot->windows = calloc((size_t)r->windows_count + 1, sizeof *slot->windows);
    for (int i = 0; slot->windows && i < r->windows_count; i++) {
        const struct engine_window *w = &r->windows[i];
        slot->windows[i] = (struct cli_window){.start_s = w->start_s,
                                               .end_s = w->end_s,
                                               .status = engine_outcome_name(w->outcome),
                                               .scores = w->scores,
                                               .dominant = w->scores ? model_dominant(m, w->scores) : -1};
    }
    a->windows = slot->windows;
    a->windows_count = slot->windows ? r->windows_count : 0;
}

static void fill(void *self, int index, struct cli_answer *a) {
    struct local *l = self;
    struct slot *slot = &l->slots[index];
    const struct model *m = engine_model_get(l->model);
    const struct model_info *info = model_get_info(m);
    const struct engine_result *r = slot->request ? engine_get_result(slot->request) : NULL;
    const char *name = strrchr(info->dir, '/');
    a->status = engine_outcome_name(r ? r->outcome : ENGINE_ERROR);
    a->message = r ? r->status.message : slot->status.message;
    a->labels = info->labels;
    a->labels_count = info->labels_count;
    a->dominant = -1;
    a->receipt.model = name && name[1] ? name + 1 : info->dir;
    a->receipt.digest = info->digest;
    a->receipt.device = info->device;
    a->receipt.precision = info->precision;
    if (!r)
        return;
    a->duration_s = r->duration_s;
    a->scores = r->scores;
    a->logits = r->logits;
    a->embedding = r->embedding;
    a->embedding_count = info->hidden;
    a->dominant = r->dominant;
    a->receipt.batch_size = r->batch_size;
    a->receipt.queue_ms = r->queue_ms;
    a->receipt.compute_ms = r->compute_ms;
    a->receipt.audio_s = r->audio_s;
    if (r->windows)
        fill_windows(slot, r, m, a);
}

static void close_slot(void *self, int index) {
    struct slot *slot = &((struct local *)self)->slots[index];
    engine_close(slot->request);
    free(slot->windows);
    *slot = (struct slot){.request = NULL};
}

const struct predict_backend predict_local = {
    .open = open_local,
    .has_room = has_room,
    .submit = submit,
    .take = take,
    .would_wait = would_wait,
    .fill = fill,
    .close = close_slot,
    .end = end_local,
};
