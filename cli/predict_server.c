/* predict by a running server. Its answers print as those of this machine would. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "cli/predict.h"

enum { MESSAGE_BYTES = TIMBRE_MESSAGE_BYTES + 32, AUDIO_BYTES_MAX = 64 << 20 /* under way; or one file */ };

/* The bytes of a file, which the client frees. */
struct upload {
    char *data;
    size_t bytes, capacity, bytes_max;
    atomic_size_t *under_way;
};

/* A file from submit to close. */
struct slot {
    struct server *server;
    struct timbre_prediction *prediction; /* NULL: see message */
    char message[MESSAGE_BYTES];
    float *scores; /* one block for all arrays */
    const char **labels;
    struct cli_window *windows;
};

struct server {
    const struct predict_arguments *arguments;
    struct timbre_client *client;
    struct timbre_models *models; /* the one asked; NULL: the server did not say */
    struct queue *replies;        /* slots that are over */
    atomic_size_t audio_bytes;    /* of uploads that are not freed */
    int under_way;
    struct slot slots[PREDICT_IN_FLIGHT_MAX];
};

/* ---- the beginning and the end ---- */

/* Whether every file would fail for the same reason. */
static bool is_hopeless(int code) {
    return code == TIMBRE_CODE_NOT_FOUND || code == TIMBRE_CODE_UNAUTHENTICATED ||
           code == TIMBRE_CODE_PERMISSION_DENIED || code == TIMBRE_CODE_INVALID_ARGUMENT;
}

static int open_server(void **self, const struct predict_arguments *a) {
    struct timbre_status status;
    struct status st;
    struct server *s = *self = calloc(1, sizeof *s);
    if (!s || queue_new(&s->replies, PREDICT_IN_FLIGHT_MAX, &st))
        return cli_fail("predict", CLI_NOT_STARTED, "out of memory");
    s->arguments = a;
    if (timbre_client_new(&s->client, &a->server, &status))
        return cli_fail("predict", CLI_NOT_STARTED, "--server %s: %s", a->server.target, status.message);
    /* The labels and the digest, also of files that get no scores. A server that is not there is each file's
     * error, as it would be later. */
    if (timbre_get_model(s->client, a->model, NULL, 0, &s->models, &status) && is_hopeless(status.code))
        return cli_fail("predict", CLI_NOT_STARTED, "--server %s: %s: %s", a->server.target,
                        timbre_code_name(status.code), status.message);
    return CLI_OK;
}

static void end_server(void *self) {
    struct server *s = self;
    if (!s)
        return;
    timbre_client_del(s->client);
    timbre_models_free(s->models);
    queue_del(s->replies);
    free(s);
}

/* ---- asking ---- */

static void free_upload(void *arg) {
    struct upload *u = arg;
    atomic_fetch_sub(u->under_way, u->bytes);
    free(u->data);
    free(u);
}

static int add(void *arg, const void *data, size_t bytes, struct status *st) {
    struct upload *u = arg;
    if (bytes > u->bytes_max - u->bytes)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "larger than max-file-bytes, %zu", u->bytes_max);
    if (bytes > u->capacity - u->bytes) {
        size_t capacity = 2 * u->capacity + bytes;
        char *more = realloc(u->data, capacity);
        if (!more)
            return status_set_no_memory(st, capacity, "a file");
        u->data = more;
        u->capacity = capacity;
    }
    memcpy(u->data + u->bytes, data, bytes);
    u->bytes += bytes;
    return 0;
}

static struct upload *read_upload(struct server *s, const char *path, struct status *st) {
    struct upload *u = calloc(1, sizeof *u);
    if (!u) {
        status_set_no_memory(st, sizeof *u, "a file");
        return NULL;
    }
    u->under_way = &s->audio_bytes;
    u->bytes_max = s->arguments->engine.audio.bytes_max;
    int result = predict_read_file(path, add, u, st);
    atomic_fetch_add(u->under_way, u->bytes);
    if (result == 0)
        return u;
    free_upload(u);
    return NULL;
}

/* Errors about the file read as they would on this machine; others say what went wrong between here and
 * there. */
static void keep_message(struct slot *slot, const struct timbre_status *status) {
    if (status->code == TIMBRE_CODE_INVALID_ARGUMENT || status->code == TIMBRE_CODE_FAILED_PRECONDITION)
        snprintf(slot->message, sizeof slot->message, "%s", status->message);
    else
        snprintf(slot->message, sizeof slot->message, "%s: %s", timbre_code_name(status->code),
                 status->message);
}

static void on_result(struct timbre_prediction *prediction, const struct timbre_status *status, void *user) {
    struct slot *slot = user;
    slot->prediction = prediction;
    if (!prediction)
        keep_message(slot, status);
    queue_put(slot->server->replies, slot); /* has room for every slot */
}

static bool has_room(void *self) {
    struct server *s = self;
    return s->under_way == 0 || atomic_load(&s->audio_bytes) < AUDIO_BYTES_MAX;
}

static bool submit(void *self, int index, const char *path) {
    struct server *s = self;
    struct slot *slot = &s->slots[index];
    const struct predict_arguments *a = s->arguments;
    const struct engine_request_options *o = &a->request;
    struct timbre_status status;
    struct status st;
    *slot = (struct slot){.server = s};
    struct upload *u = read_upload(s, path, &st);
    if (!u) {
        snprintf(slot->message, sizeof slot->message, "%s", st.message);
        return false;
    }
    struct timbre_predict_request r = {.audio = u->data,
                                       .audio_bytes = u->bytes,
                                       .release = free_upload,
                                       .release_arg = u,
                                       .encoding = cli_client_encoding(o->format.encoding),
                                       .model = a->model,
                                       .window_s = o->window_s,
                                       .hop_s = o->hop_s != 0 ? o->hop_s : o->window_s,
                                       .speech_s_min = o->speech_s_min,
                                       .embedding = o->embedding && a->json,
                                       .priority = a->files_count > 1 ? TIMBRE_PRIORITY_BULK
                                                                      : TIMBRE_PRIORITY_NORMAL};
    if (r.encoding != TIMBRE_ENCODING_FILE) {
        r.sample_rate_hz = o->format.rate_hz;
        r.channels = o->format.channels;
    }
    if (timbre_predict_start(s->client, &r, on_result, slot, NULL, &status) == 0) {
        s->under_way++;
        return true;
    }
    keep_message(slot, &status);
    return false;
}

static int take(void *self) {
    struct server *s = self;
    struct slot *slot = queue_take(s->replies);
    s->under_way--;
    return (int)(slot - s->slots);
}

static bool would_wait(void *self) {
    return queue_count(((struct server *)self)->replies) == 0;
}

/* ---- the answer ---- */

/* The first of the highest, as on this machine. */
static int find_highest(const float *scores, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (scores[i] > scores[best])
            best = i;
    return (int)best;
}

/* Arrays of the answer's scores: labels, scores, logits, and the scores of every window. Windows of another
 * number of labels, which no server of this project sends, are left without scores. */
static bool make_arrays(struct slot *slot, const struct timbre_prediction *p) {
    const size_t n = p->scores_count;
    size_t arrays, floats;
    if (!check_add_size(p->windows_count, 2, &arrays) || !check_mul_size(arrays, n, &floats))
        return false;
    slot->scores = calloc(floats + 1, sizeof *slot->scores);
    slot->labels = calloc(n + 1, sizeof *slot->labels);
    slot->windows = calloc(p->windows_count + 1, sizeof *slot->windows);
    if (!slot->scores || !slot->labels || !slot->windows)
        return false;
    for (size_t i = 0; i < n; i++) {
        slot->scores[i] = p->scores[i].score;
        slot->scores[n + i] = p->scores[i].logit;
        slot->labels[i] = p->scores[i].label;
    }
    for (size_t w = 0; w < p->windows_count; w++) {
        const struct timbre_window *from = &p->windows[w];
        float *scores = slot->scores + (2 + w) * n;
        slot->windows[w] = (struct cli_window){.start_s = from->start_s,
                                               .end_s = from->end_s,
                                               .status = timbre_answer_name(from->answer),
                                               .dominant = -1};
        if (from->scores_count != n || n == 0)
            continue;
        for (size_t i = 0; i < n; i++)
            scores[i] = from->scores[i].score;
        slot->windows[w].scores = scores;
        if (p->dominant)
            slot->windows[w].dominant = find_highest(scores, n);
    }
    return true;
}

static void fill_from_model(struct cli_answer *a, const struct timbre_models *models) {
    static const struct timbre_model unknown = {.name = "", .digest = "", .device = "", .precision = ""};
    const struct timbre_model *m = models ? &models->models[0] : &unknown;
    a->labels = m->labels;
    a->labels_count = (int)m->labels_count;
    a->receipt.model = m->name;
    a->receipt.digest = m->digest;
    a->receipt.device = m->device;
    a->receipt.precision = m->precision;
}

static void fill(void *self, int index, struct cli_answer *a) {
    struct server *s = self;
    struct slot *slot = &s->slots[index];
    const struct timbre_prediction *p = slot->prediction;
    fill_from_model(a, s->models);
    a->status = "error";
    a->message = slot->message;
    a->dominant = -1;
    if (p && !make_arrays(slot, p)) {
        snprintf(slot->message, sizeof slot->message, "out of memory for the answer");
        p = NULL;
    }
    if (!p)
        return;
    const bool known = p->answer >= TIMBRE_ANSWER_OK && p->answer <= TIMBRE_ANSWER_ERROR;
    a->status = known ? timbre_answer_name(p->answer) : "error";
    a->message = known ? p->message : "the server's answer is of a kind that this version does not know";
    a->duration_s = p->duration_s;
    if (p->scores_count) {
        a->labels = slot->labels;
        a->labels_count = (int)p->scores_count;
        a->scores = slot->scores;
        a->logits = slot->scores + p->scores_count;
        a->dominant = p->dominant ? find_highest(a->scores, p->scores_count) : -1;
    }
    if (p->embedding_count) {
        a->embedding = p->embedding;
        a->embedding_count = (int)p->embedding_count;
    }
    if (p->windows_count) {
        a->windows = slot->windows;
        a->windows_count = (int)p->windows_count;
    }
    a->receipt.model = p->receipt.model;
    a->receipt.digest = p->receipt.digest;
    a->receipt.device = p->receipt.device;
    a->receipt.precision = p->receipt.precision;
    a->receipt.batch_size = p->receipt.batch_size;
    a->receipt.queue_ms = p->receipt.queue_ms;
    a->receipt.compute_ms = p->receipt.compute_ms;
    a->receipt.audio_s = p->receipt.audio_s;
}

static void close_slot(void *self, int index) {
    struct slot *slot = &((struct server *)self)->slots[index];
    timbre_prediction_free(slot->prediction);
    free(slot->scores);
    free(slot->labels);
    free(slot->windows);
    *slot = (struct slot){.server = NULL};
}

const struct predict_backend predict_server = {
    .open = open_server,
    .has_room = has_room,
    .submit = submit,
    .take = take,
    .would_wait = would_wait,
    .fill = fill,
    .close = close_slot,
    .end = end_server,
};
