/* timbre_core predict: results of clips, clip by clip or together, of one model or many in one process
 * (starting CUDA takes longer than a tiny model). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "bench/gpu/core.h"

enum { JOBS_BYTES_MAX = 16 << 20 };

/* Reads `files` until NULL or CORE_CLIPS_MAX of them. */
static int read_clips(struct clips *c, char **files, struct status *st) {
    *c = (struct clips){.samples = calloc(CORE_CLIPS_MAX, sizeof *c->samples),
                        .counts = calloc(CORE_CLIPS_MAX, sizeof *c->counts)};
    if (!c->samples || !c->counts)
        return status_set_no_memory(st, CORE_CLIPS_MAX * sizeof *c->samples, "clips");
    for (; files[c->count]; c->count++) {
        if (c->count == CORE_CLIPS_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT, "over %d clips", CORE_CLIPS_MAX);
        if (clips_read(&c->samples[c->count], &c->counts[c->count], files[c->count], st))
            return -1;
    }
    return c->count ? 0 : status_set(st, STATUS_INVALID_ARGUMENT, "no clips");
}

static void print_results(const char *dir, const char *head_activation, const struct model *m, char **files,
                          const struct clips *c, const struct core_results *r) {
    const struct model_info *info = model_get_info(m);
    for (int i = 0; i < c->count; i++) {
        const float *values = r->values + (size_t)i * (size_t)r->width;
        struct text out;
        text_init_growing(&out);
        core_put_device(&out, m);
        text_put(&out, ",\"model\":");
        text_put_json_string(&out, dir);
        text_put(&out, ",\"head_activation\":");
        text_put_json_string(&out, head_activation ? head_activation : "-");
        text_put(&out, ",\"file\":");
        text_put_json_string(&out, files[i]);
        text_put(&out, ",\"logits\":");
        text_put_json_floats(&out, values, (size_t)r->labels);
        text_put(&out, ",\"embedding\":");
        text_put_json_floats(&out, values + r->labels, (size_t)info->hidden);
        text_put(&out, "}");
        core_print(&out);
    }
}

static int run_batches(struct model_worker *w, const struct core_options *o, const struct clips *c,
                       struct core_results *r, struct status *st) {
    const int together = o->batch ? o->batch : c->count;
    int *order = calloc((size_t)c->count, sizeof *order);
    if (!order)
        return status_set_no_memory(st, sizeof *order, "an order");
    int result = 0;
    for (int i = 0; i < c->count; i++)
        order[i] = o->is_reversed ? c->count - 1 - i : i;
    for (int first = 0; first < c->count && result == 0; first += together)
        result = core_run_batch(w, c, order + first,
                                c->count - first < together ? c->count - first : together, r, st);
    free(order);
    return result;
}

static int run_job(const struct core_options *o, const char *dir, const char *head_activation, char **files) {
    struct model_options options = o->model;
    struct model *m = NULL;
    struct model_worker *w = NULL;
    struct clips c = {0};
    struct core_results r = {0};
    struct status st = {0};
    int64_t samples = 0;
    options.head_activation = head_activation;
    int result = model_new(&m, dir, &options, &st) || read_clips(&c, files, &st) ||
                 core_results_init(&r, m, c.count, &st);
    for (int i = 0; result == 0 && i < c.count; i++)
        samples += model_count_slot(m, c.counts[i]);
    /* What is too short adds nothing, and the batch will say so. */
    if (result == 0)
        result = core_worker_new(&w, m, o, samples, c.count, &st) || run_batches(w, o, &c, &r, &st);
    if (result)
        result = core_print_error(dir, &st, w);
    else
        print_results(dir, head_activation, m, files, &c, &r);
    core_results_free(&r);
    clips_free(&c);
    model_worker_del(w);
    model_del(m);
    return result;
}

/* One line: MODEL, HEAD_ACTIVATION ("-": none) and files, between tabs. */
static int run_line(const struct core_options *o, char *line) {
    char *fields[CORE_CLIPS_MAX + 3] = {0};
    int count = 0;
    for (char *at = line; at && count < CORE_CLIPS_MAX + 2; count++) {
        fields[count] = at;
        at = strchr(at, '\t');
        if (at)
            *at++ = '\0';
    }
    if (count < 3) {
        fprintf(stderr, "timbre_core: a job is MODEL, HEAD_ACTIVATION and files, between tabs\n");
        return 1;
    }
    return run_job(o, fields[0], strcmp(fields[1], "-") == 0 ? NULL : fields[1], fields + 2);
}

int core_predict(const struct core_options *o) {
    struct status st = {0};
    char *data, *next;
    size_t bytes;
    int result = 0;
    if (!o->jobs)
        return run_job(o, o->arguments[0], o->model.head_activation, o->arguments + 1);
    if (file_read(&data, &bytes, strcmp(o->jobs, "-") == 0 ? "/dev/stdin" : o->jobs, JOBS_BYTES_MAX, "jobs",
                  &st))
        return core_print_error("", &st, NULL);
    for (char *line = data; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        if (*line && run_line(o, line))
            result = 1;
    }
    free(data);
    return result;
}
