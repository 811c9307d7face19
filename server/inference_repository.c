/* The repository calls of the Open Inference Protocol. */
#include <stdlib.h>
#include <string.h>

#include "proto/inference/grpc_service.pb-c.h"
#include "server/inference.h"

typedef Inference__RepositoryIndexResponse__ModelIndex Row;

/* Fails the call when it names another repository than the one there is. */
static bool check_repository(struct call *c, const char *name) {
    struct status st;
    if (!name[0])
        return true;
    status_set(&st, STATUS_INVALID_ARGUMENT,
               "repository_name: \"%.64s\"; there is one repository, without a name", name);
    call_fail(c, &st, &(struct failure){.reason = "INVALID_FIELD", .field = "repository_name"});
    return false;
}

static void fill_row(Row *to, struct repository_entry *e) {
    inference__repository_index_response__model_index__init(to);
    to->name = e->name;
    to->version = e->version;
    to->state = (char *)repository_state_name(e->state);
    to->reason = e->reason;
}

static void reply_index(struct call *c, bool ready_only) {
    struct repository *r = call_get_server(c)->repository;
    const int count = repository_count(r);
    Row *rows = calloc((size_t)count + 1, sizeof *rows), **list = calloc((size_t)count + 1, sizeof *list);
    Inference__RepositoryIndexResponse response = INFERENCE__REPOSITORY_INDEX_RESPONSE__INIT;
    struct status st;
    for (int i = 0; i < count && rows && list; i++) {
        struct repository_entry *e = repository_at(r, i);
        if (ready_only && e->state != REPOSITORY_READY)
            continue;
        fill_row(&rows[i], e);
        list[response.n_models++] = &rows[i];
    }
    response.models = list;
    if (rows && list) {
        call_reply(c, &response.base);
    } else {
        status_set_no_memory(&st, (size_t)count * sizeof *rows, "the repository's index");
        call_fail(c, &st, NULL);
    }
    free(list);
    free(rows);
}

void inference_get_index(struct call *c, struct wire_message *in) {
    Inference__RepositoryIndexRequest *request = (Inference__RepositoryIndexRequest *)inference_unpack(
        c, in, &inference__repository_index_request__descriptor);
    if (!request)
        return;
    if (check_repository(c, request->repository_name))
        reply_index(c, request->ready);
    inference__repository_index_request__free_unpacked(request, NULL);
}

/* ---- load and unload ---- */

static bool check_allowed(struct call *c) {
    struct status st;
    if (call_get_server(c)->options->model_control)
        return true;
    status_set(
        &st, STATUS_PERMISSION_DENIED,
        "model-control: this server loads and unloads nothing; it was started without --model-control");
    call_fail(c, &st, NULL);
    return false;
}

/* On a thread of the repository; the call is held. */
static void wake(void *arg, const struct status *st) {
    struct call *c = arg;
    *(struct status *)call_get_state(c) = *st;
    call_wake(c, 0);
}

void inference_end_load(struct call *c, int value) {
    const struct status *st = call_get_state(c);
    Inference__RepositoryModelLoadResponse response = INFERENCE__REPOSITORY_MODEL_LOAD_RESPONSE__INIT;
    (void)value;
    loop_update_models(call_get_server(c));
    if (st->code != STATUS_OK)
        call_fail(c, st, NULL);
    else
        call_reply(c, &response.base); /* that of unload is as empty */
}

typedef int start_function(struct repository *r, const char *name,
                           void (*done)(void *arg, const struct status *st), void *arg, struct status *st);

static void start(struct call *c, const char *name, start_function *begin) {
    struct server *s = call_get_server(c);
    struct status st;
    call_set_model(c, name);
    if (begin(s->repository, name, wake, c, &st)) {
        call_fail(c, &st,
                  &(struct failure){.reason = st.code == STATUS_NOT_FOUND ? "MODEL_NOT_FOUND" : NULL});
        return;
    }
    call_hold(c);             /* in time: what wakes it is handled by this thread, after this event */
    health_update(s->health); /* what is being unloaded is not served from here on */
}

static bool check_load_parameters(struct call *c, const Inference__RepositoryModelLoadRequest *request) {
    struct status st;
    if (request->n_parameters == 0)
        return true;
    status_set(&st, STATUS_INVALID_ARGUMENT,
               "parameters: \"%.64s\"; a model is loaded as it lies on the server's disk, without parameters",
               request->parameters[0]->key);
    call_fail(c, &st, &(struct failure){.reason = "INVALID_FIELD", .field = "parameters"});
    return false;
}

void inference_load(struct call *c, struct wire_message *in) {
    Inference__RepositoryModelLoadRequest *request =
        (Inference__RepositoryModelLoadRequest *)inference_unpack(
            c, in, &inference__repository_model_load_request__descriptor);
    if (!request)
        return;
    if (check_allowed(c) && check_repository(c, request->repository_name) &&
        check_load_parameters(c, request))
        start(c, request->model_name, repository_load);
    inference__repository_model_load_request__free_unpacked(request, NULL);
}

static bool check_unload_parameters(struct call *c, const Inference__RepositoryModelUnloadRequest *request) {
    struct status st;
    for (size_t i = 0; i < request->n_parameters; i++)
        if (strcmp(request->parameters[i]->key, "unload_dependents") != 0) {
            status_set(&st, STATUS_INVALID_ARGUMENT, "parameters: \"%.64s\" is none that this server knows",
                       request->parameters[i]->key);
            call_fail(c, &st, &(struct failure){.reason = "INVALID_FIELD", .field = "parameters"});
            return false;
        }
    return true;
}

void inference_unload(struct call *c, struct wire_message *in) {
    Inference__RepositoryModelUnloadRequest *request =
        (Inference__RepositoryModelUnloadRequest *)inference_unpack(
            c, in, &inference__repository_model_unload_request__descriptor);
    if (!request)
        return;
    if (check_allowed(c) && check_repository(c, request->repository_name) &&
        check_unload_parameters(c, request))
        start(c, request->model_name, repository_unload);
    inference__repository_model_unload_request__free_unpacked(request, NULL);
}
