/* stream on this machine: the audio goes through the engine as a server's would. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/stream.h"

struct local {
    const struct stream_arguments *arguments;
    struct stream_output *out;
    struct engine *engine;
    struct engine_model *model;
    struct engine_stream *stream;
    int wake_fd;
    bool busy; /* what was sent last is not taken yet */
    bool finished, over;
    struct status status; /* why it is over; OK: all was answered */
};

static void wake(void *arg) {
    const uint64_t one = 1;
    const ssize_t ignored = write(((struct local *)arg)->wake_fd, &one, sizeof one);
    (void)ignored;
}

static int open_local(void **self, const struct stream_arguments *a, struct stream_output *out, int wake_fd) {
    const char *dir = a->model ? a->model : cli_default_model();
    struct status st;
    struct local *l = *self = calloc(1, sizeof *l);
    if (!l)
        return cli_fail("stream", CLI_NOT_STARTED, "out of memory");
    l->arguments = a;
    l->out = out;
    l->wake_fd = wake_fd;
    if (engine_new(&l->engine, &a->engine, &st) ||
        engine_model_load(&l->model, l->engine, "default", dir, &a->model_options, &st))
        return cli_fail("stream", CLI_NOT_STARTED, "%s", st.message);
    cli_print_warnings("stream", engine_model_get(l->model));
    struct engine_stream_options o = a->analysis;
    o.model = l->model;
    o.wake = wake;
    o.wake_arg = l;
    if (engine_stream_open(&l->stream, &o, &st))
        return cli_fail("stream", CLI_NOT_STARTED, "%s", st.message);
    wake(l); /* so that the first events are looked for */
    return CLI_OK;
}

static void close_over(struct local *l, enum status_code code, const char *message) {
    l->over = true;
    if (l->status.code == STATUS_OK && code != STATUS_OK)
        status_set(&l->status, code, "%s", message);
}

static enum stream_sent send_local(void *self, const void *data, size_t bytes) {
    struct local *l = self;
    struct status st;
    if (l->over || l->finished)
        return STREAM_OVER;
    if (l->busy)
        return STREAM_NO_ROOM;
    void *copy = malloc(bytes + 1);
    if (!copy) {
        close_over(l, STATUS_RESOURCE_EXHAUSTED, "out of memory for audio");
        return STREAM_OVER;
    }
    memcpy(copy, data, bytes);
    const struct engine_piece piece = {.data = copy, .bytes = bytes};
    if (engine_stream_feed(l->stream, &piece, 1, free, copy, &st)) {
        free(copy);
        close_over(l, st.code, st.message);
        return STREAM_OVER;
    }
    l->busy = true;
    return STREAM_SENT;
}

static void finish_local(void *self) {
    struct local *l = self;
    if (!l->finished && !l->over)
        engine_stream_finish(l->stream);
    l->finished = true;
}

static void print_result(struct local *l, const struct engine_stream_event *e) {
    const struct model_info *info = model_get_info(engine_model_get(l->model));
    const char *name = strrchr(info->dir, '/');
    const struct stream_result r = {.channel = e->channel,
                                    .start_s = e->start_s,
                                    .end_s = e->end_s,
                                    .speech_s = e->speech_s,
                                    .status = engine_outcome_name(e->outcome),
                                    .message = e->message ? e->message : "",
                                    .final = e->final,
                                    .labels = info->labels,
                                    .labels_count = info->labels_count,
                                    .scores = e->scores,
                                    .logits = e->logits,
                                    .smoothed = e->smoothed,
                                    .embedding = e->embedding,
                                    .embedding_count = info->hidden,
                                    .dominant = e->scores ? e->dominant : -1,
                                    .receipt = {.model = name && name[1] ? name + 1 : info->dir,
                                                .digest = info->digest,
                                                .device = info->device,
                                                .precision = info->precision,
                                                .batch_size = e->batch_size,
                                                .queue_ms = e->queue_ms,
                                                .compute_ms = e->compute_ms,
                                                .audio_s = e->audio_s},
                                    .resume_offset_ms = e->resume_offset_ms,
                                    .lag_ms = e->lag_ms};
    stream_print_result(l->out, &r);
}

/* As timbre.v1.StreamEnd has them. */
static const char *name_end(enum engine_stream_end end) {
    switch (end) {
    case ENGINE_STREAM_GOES_ON:
        return "";
    case ENGINE_STREAM_FINISHED:
    case ENGINE_STREAM_STOPPED:
        return "client";
    default:
        return "error";
    }
}

static void print_summary(struct local *l, const struct engine_stream_event *e) {
    const struct model *m = engine_model_get(l->model);
    const struct model_info *info = model_get_info(m);
    struct stream_summary s = {.report = e->summary,
                               .labels = info->labels,
                               .labels_count = info->labels_count,
                               .final = e->last,
                               .end = e->last ? name_end(e->end) : "",
                               .resume_offset_ms = e->resume_offset_ms,
                               .request_id = ""};
    for (int c = 0; c < e->summary->channels_count; c++) {
        const float *scores = e->summary->channels[c].scores;
        s.dominant[c] = scores ? model_dominant(m, scores) : -1;
    }
    stream_print_summary(l->out, &s);
}

static bool attend_local(void *self) {
    struct local *l = self;
    struct engine_stream_event e;
    while (!l->over && engine_stream_take(l->stream, &e))
        switch (e.kind) {
        case ENGINE_STREAM_RESULT:
            print_result(l, &e);
            break;
        case ENGINE_STREAM_SUMMARY:
            print_summary(l, &e);
            break;
        case ENGINE_STREAM_WANTS:
            l->busy = false;
            break;
        case ENGINE_STREAM_END:
            close_over(l, e.status.code, e.status.message);
            break;
        }
    return !l->over;
}

static int end_local(void *self) {
    struct local *l = self;
    if (!l)
        return CLI_OK;
    /* Whatever wakes are still on their way end with the engine. */
    engine_stream_close(l->stream);
    engine_del(l->engine);
    const int result =
        l->status.code == STATUS_OK ? CLI_OK : cli_fail("stream", CLI_SOME_FAILED, "%s", l->status.message);
    free(l);
    return result;
}

const struct stream_backend stream_local = {
    .open = open_local,
    .send = send_local,
    .finish = finish_local,
    .attend = attend_local,
    .end = end_local,
};
