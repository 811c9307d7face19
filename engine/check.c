/* The known answer: whether this machine computes what it should, before a model is served. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

#define CHECK_CLIP_S 0.3 /* at least; more for a model with longer frames */
#define CHECK_TOLERANCE                                                                                      \
    1e-4 /* of a logit, or of its size when that is over 1: what fp32 is promised to keep */

enum { CHECK_FRAMES_REF = 2 }; /* naive kernels are slow */

struct check {
    struct engine_model *model;
    const struct model_info *info;
    struct batcher_lane *lane; /* of one worker alone; NULL: the model's own */
    struct queue *replies;
    float *voice; /* [3 * count] */
    int64_t count;
    float *logits, *first; /* [labels] of the second part alone; likewise, of the first worker */
};

/* Something with pitch, overtones and breath, in three parts that differ. The same on every machine but for
 * the last bits of sin, which both sides of every comparison share. */
static void make_voice(struct check *c) {
    const double rate_hz = c->info->sampling_rate_hz, tau = 6.283185307179586;
    uint32_t seed = 1;
    for (int64_t i = 0; i < 3 * c->count; i++) {
        const int64_t part = i / c->count;
        const double t = (double)i / rate_hz, hz = 110.0 + 35.0 * (double)part;
        double x = 0;
        for (int k = 1; k <= 8; k++)
            x += 0.2 / k * sin(tau * hz * k * (t + 0.002 * sin(tau * 5.0 * t)));
        seed = seed * 1664525u + 1013904223u;
        x += 0.02 * ((double)(seed >> 8) / (1 << 23) - 1.0);
        c->voice[i] = (float)x;
    }
}

/* Sends samples to the workers of the lane (NULL: the model's own), whole or by windows of `count`. */
static int send(const struct check *c, struct batcher_lane *lane, const float *samples, int64_t count,
                bool windows, struct status *st) {
    const int rate_hz = c->info->sampling_rate_hz;
    const struct engine_request_options o = {
        .model = c->model,
        .window_s = windows ? (double)c->count / rate_hz : 0,
        .order = ENGINE_UNARY, /* a batch with live windows is cut short: company would not be company */
        .replies = c->replies,
        .user = lane,
    };
    struct engine_request *r;
    if (engine_open(&r, &o, st))
        return -1;
    if (lane)
        r->lane = lane;
    engine_run_samples(r, samples, count, 0);
    return 0;
}

/* An answer to one of those; the caller's to close. */
static struct engine_request *take(const struct check *c, struct status *st) {
    struct engine_request *r = queue_take(c->replies);
    if (r->result.outcome == ENGINE_OK)
        return r;
    status_set(st, r->result.status.code, "known answer: %s", r->result.status.message);
    engine_close(r);
    return NULL;
}

static struct engine_request *run(const struct check *c, const float *samples, int64_t count, bool windows,
                                  struct status *st) {
    return send(c, c->lane, samples, count, windows, st) ? NULL : take(c, st);
}

/* The second part alone, then between the others. */
static int check_company(struct check *c, struct status *st) {
    const int labels = c->info->labels_count;
    struct engine_request *r = run(c, c->voice + c->count, c->count, false, st);
    if (!r)
        return -1;
    memcpy(c->logits, r->result.logits, (size_t)labels * sizeof *c->logits);
    engine_close(r);
    r = run(c, c->voice, 3 * c->count - c->count / 2, true, st);
    if (!r)
        return -1;
    int result = 0;
    const float *among = r->result.windows[1].logits;
    for (int i = 0; result == 0 && i < labels; i++)
        if (among[i] != c->logits[i]) /* both are finite */
            result = status_set(
                st, STATUS_INTERNAL,
                "known answer: this machine computes wrongly: logit %d of a clip is %.9g alone and "
                "%.9g between others",
                i, (double)c->logits[i], (double)among[i]);
    engine_close(r);
    return result;
}

static int compare_workers(const struct check *c, const float *logits, int worker, struct status *st) {
    for (int i = 0; i < c->info->labels_count; i++)
        if (logits[i] != c->first[i])
            return status_set(
                st, STATUS_INTERNAL,
                "known answer: this machine computes wrongly: logit %d is %.9g by worker 0 (device 0) and "
                "%.9g by worker %d (device %d)",
                i, (double)c->first[i], (double)logits[i], worker, worker % c->info->devices_count);
    return 0;
}

/* One worker, and whether it agrees with the first. */
static int check_worker(struct check *c, int worker, struct status *st) {
    struct engine_model *m = c->model;
    struct batcher_lane lane = {0};
    batcher_add_lane(m->engine->batcher, &lane, m->lane.samples_max, engine_model_worker(m, worker));
    c->lane = &lane;
    int result = check_company(c, st);
    c->lane = NULL;
    batcher_remove_lane(m->engine->batcher, &lane);
    if (result == 0 && worker == 0)
        memcpy(c->first, c->logits, (size_t)c->info->labels_count * sizeof *c->first);
    return result ? -1 : compare_workers(c, c->logits, worker, st);
}

/* The workers from that one on, which have a part of the threads each, all at once: whether they agree with
 * the first. */
static int check_parts(struct check *c, int first, struct status *st) {
    struct engine_model *m = c->model;
    const int count = m->workers_count - first;
    struct batcher_lane *lanes = calloc((size_t)count, sizeof *lanes);
    int sent = 0, result = 0;
    if (!lanes)
        return status_set_no_memory(st, (size_t)count * sizeof *lanes, "the known answer");
    for (int i = 0; i < count; i++)
        batcher_add_lane(m->engine->batcher, &lanes[i], m->lane.samples_max,
                         engine_model_worker(m, first + i));
    while (result == 0 && sent < count) {
        result = send(c, &lanes[sent], c->voice + c->count, c->count, false, st);
        sent += result == 0;
    }
    for (int i = 0; i < sent; i++) {
        struct engine_request *r = take(c, result ? NULL : st);
        if (!r)
            result = -1;
        else if (result == 0)
            result = compare_workers(c, r->result.logits,
                                     first + (int)((struct batcher_lane *)r->options.user - lanes), st);
        engine_close(r);
    }
    for (int i = 0; i < count; i++)
        batcher_remove_lane(m->engine->batcher, &lanes[i]);
    free(lanes);
    return result;
}

/* The logits of the naive kernels, from a second copy of the model. */
static int run_ref(const struct check *c, int64_t count, float *logits, struct status *st) {
    const struct model_options o = {.device = "ref",
                                    .threads = 1,
                                    .head_activation =
                                        c->model->head_activation[0] ? c->model->head_activation : NULL};
    struct model_clip clip = {.samples = c->voice, .count = count, .logits = logits};
    struct model *m = NULL;
    struct model_worker *w = NULL;
    int result = model_new(&m, c->info->dir, &o, st);
    if (result == 0)
        result = model_worker_new(&w, m, 0, model_count_slot(m, count), 1, st);
    if (result == 0)
        result = model_worker_run(w, &clip, 1, st);
    model_worker_del(w);
    model_del(m);
    return result;
}

static int check_ref(struct check *c, int64_t count, double *worst, struct status *st) {
    const int labels = c->info->labels_count;
    int result = -1;
    float *ref = malloc((size_t)labels * sizeof *ref);
    if (!ref)
        return status_set_no_memory(st, (size_t)labels * sizeof *ref, "the known answer");
    struct engine_request *r = run(c, c->voice, count, false, st);
    if (!r || run_ref(c, count, ref, st))
        goto done;
    result = 0;
    for (int i = 0; result == 0 && i < labels; i++) {
        const double y = ref[i], off = fabs((double)r->result.logits[i] - y) / fmax(1.0, fabs(y));
        *worst = off > *worst ? off : *worst;
        if (!(off <= CHECK_TOLERANCE))
            result = status_set(
                st, STATUS_INTERNAL,
                "known answer: this machine computes wrongly: logit %d is %.9g, and %.9g by the naive "
                "kernels; the tolerance is %g",
                i, (double)r->result.logits[i], y, CHECK_TOLERANCE);
    }
done:
    engine_close(r);
    free(ref);
    return result;
}

/* "0.3 s between others as alone, bit for bit[, on 4 workers of 2 devices]" */
static void report_company(const struct check *c, char *report, size_t report_bytes) {
    const int n = snprintf(report, report_bytes, "%.1f s between others as alone, bit for bit",
                           (double)c->count / c->info->sampling_rate_hz);
    if (c->model->workers_count > 1 && n >= 0 && (size_t)n < report_bytes)
        snprintf(report + n, report_bytes - (size_t)n, ", on %d workers of %d device%s",
                 c->model->workers_count, c->info->devices_count, c->info->devices_count > 1 ? "s" : "");
}

static int check(struct check *c, char *report, size_t report_bytes, struct status *st) {
    const int64_t step = (int64_t)llround(c->info->frame_s * c->info->sampling_rate_hz);
    const int64_t count_ref = c->info->min_samples + (CHECK_FRAMES_REF - 1) * step;
    c->count = (int64_t)(CHECK_CLIP_S * c->info->sampling_rate_hz);
    if (c->count < count_ref + step)
        c->count =
            count_ref + step; /* half of it, the last window, may be too short; it is there all the same */
    c->voice = malloc((size_t)c->count * 3 * sizeof *c->voice);
    c->logits = malloc((size_t)c->info->labels_count * sizeof *c->logits);
    c->first = malloc((size_t)c->info->labels_count * sizeof *c->first);
    if (!c->voice || !c->logits || !c->first)
        return status_set_no_memory(st, (size_t)c->count * 3 * sizeof *c->voice, "the known answer");
    make_voice(c);
    const struct engine_model *m = c->model;
    const int alone = m->workers_count > m->narrow_count ? m->workers_count - m->narrow_count : 1;
    if (queue_new(&c->replies, ENGINE_WORKERS_MAX, st))
        return -1;
    for (int i = 0; i < alone; i++)
        if (check_worker(c, i, st))
            return -1;
    if (alone < m->workers_count && check_parts(c, alone, st))
        return -1;
    char company[128];
    report_company(c, company, sizeof company);
    if (strcmp(c->info->device, "ref") == 0 || strcmp(c->info->precision, "fp32") != 0 ||
        c->info->weight_bytes > ENGINE_CHECK_BYTES_MAX) {
        snprintf(report, report_bytes, "%s; not compared with the naive kernels", company);
        return 0;
    }
    double worst = 0;
    if (check_ref(c, count_ref, &worst, st))
        return -1;
    snprintf(report, report_bytes, "%s; %lld samples as the naive kernels within %.1e", company,
             (long long)count_ref, worst);
    return 0;
}

int engine_model_check(struct engine_model *m, char *report, size_t report_bytes, struct status *st) {
    struct check c = {.model = m, .info = model_get_info(m->model)};
    pthread_mutex_lock(&m->engine->check);
    int result = check(&c, report, report_bytes, st);
    pthread_mutex_unlock(&m->engine->check);
    queue_del(c.replies);
    free(c.voice);
    free(c.logits);
    free(c.first);
    return result;
}
