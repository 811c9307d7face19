#include "engine/counts.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

static const char *const decoders[COUNTS_DECODERS] = {"none", "raw", "libsndfile", "ffmpeg"};

static const double clips_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
static const double audio_bounds[] = {0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600};

static struct metrics_family *add_histogram(struct metrics *m, const char *name, const char *help,
                                            const char *label, const double *bounds, int count) {
    return metrics_add(m, METRICS_HISTOGRAM, name, help, label, bounds, count);
}

static struct metrics_family *add_seconds(struct metrics *m, const char *name, const char *help,
                                          const char *label) {
    return add_histogram(m, name, help, label, metrics_seconds_bounds, METRICS_SECONDS_BOUNDS);
}

static struct metrics_series *add_one(struct metrics *m, enum metrics_kind kind, const char *name,
                                      const char *help) {
    return metrics_get(metrics_add(m, kind, name, help, "", NULL, 0));
}

static void add_device(struct metrics *m, struct counts_device *d, const char *index) {
    struct metrics_family *faults =
        metrics_add(m, METRICS_COUNTER, "timbre_device_faults_total",
                    "Batches that failed by the device's fault: that batch alone, or the device with it.",
                    "device,kind", NULL, 0);
    d->busy_s = metrics_get(metrics_add(m, METRICS_COUNTER, "timbre_device_busy_seconds_total",
                                        "Time during which a device ran a forward.", "device", NULL, 0),
                            index);
    d->faults = metrics_get(faults, index, "batch");
    d->losses = metrics_get(faults, index, "lost");
}

void counts_init(struct engine *e) {
    struct counts *c = &e->counts;
    struct metrics *m = e->options.metrics;
    c->requests = add_one(m, METRICS_GAUGE, "timbre_queue_requests",
                          "Requests that were let in and whose last forward has not begun.");
    c->audio_s = add_one(m, METRICS_GAUGE, "timbre_queue_audio_seconds",
                         "Audio of the requests that wait; of files that are not decoded yet, estimated.");
    struct metrics_family *dropped =
        metrics_add(m, METRICS_COUNTER, "timbre_dropped_total",
                    "Requests that were dropped before they were run, by reason.", "reason", NULL, 0);
    c->cancelled = metrics_get(dropped, "cancelled");
    c->deadline = metrics_get(dropped, "deadline");
    c->device = metrics_get(dropped, "device");
    add_device(m, &(struct counts_device){0}, "0"); /* there from the start */
    struct metrics_family *prepare =
        add_seconds(m, "timbre_prepare_seconds",
                    "Time to decode, resample and cut one request, by the decoder that read it.", "decoder");
    for (int i = 0; i < COUNTS_DECODERS; i++)
        c->prepare_s[i] = metrics_get(prepare, decoders[i]);
    door_show(e->door, c->requests, c->audio_s);
}

static double count_workspace_bytes(const struct engine_model *m) {
    double bytes = 0;
    for (int i = 0; i < m->workers_count; i++)
        bytes += (double)model_worker_get_bytes(m->workers[i]);
    return bytes;
}

void counts_add_model(struct engine_model *m) {
    struct counts_model *c = &m->counts;
    struct metrics *t = m->engine->options.metrics;
    const char *name = m->name;
    c->queue_s = metrics_get(
        add_seconds(t, "timbre_queue_seconds",
                    "Time from the end of preparing to the start of a request's first forward.", "model"),
        name);
    c->compute_s =
        metrics_get(add_seconds(t, "timbre_compute_seconds", "Time of one forward.", "model"), name);
    c->batch_clips =
        metrics_get(add_histogram(t, "timbre_batch_clips", "Clips or windows in one forward.", "model",
                                  clips_bounds, sizeof clips_bounds / sizeof *clips_bounds),
                    name);
    c->batch_audio_s =
        metrics_get(add_histogram(t, "timbre_batch_audio_seconds", "Audio in one forward.", "model",
                                  audio_bounds, sizeof audio_bounds / sizeof *audio_bounds),
                    name);
    c->audio_s = metrics_get(metrics_add(t, METRICS_COUNTER, "timbre_audio_seconds_total",
                                         "Audio that was run through a model.", "model", NULL, 0),
                             name);
    c->waste_s = metrics_get(
        metrics_add(
            t, METRICS_COUNTER, "timbre_padding_waste_seconds_total",
            "Samples computed beyond the clips' own: each clip is rounded up to a whole step of the "
            "convolutions (less than 320 samples for wav2vec2). Clips are never padded to one another.",
            "model", NULL, 0),
        name);
    c->weight_bytes =
        metrics_get(metrics_add(t, METRICS_GAUGE, "timbre_weight_bytes",
                                "Bytes of a model's weights as the device keeps them.", "model", NULL, 0),
                    name);
    /* Two versions of one name may be loaded for a while. */
    metrics_count(c->weight_bytes, (double)model_get_info(m->model)->weight_bytes);
    c->workspace_bytes = metrics_get(
        metrics_add(t, METRICS_GAUGE, "timbre_workspace_bytes",
                    "Bytes of a model's workspaces: activations and tables for the largest batch.", "model",
                    NULL, 0),
        name);
    metrics_count(c->workspace_bytes, count_workspace_bytes(m));
    if (m->narrow_count) {
        struct metrics_family *batches = metrics_add(
            t, METRICS_COUNTER, "timbre_cpu_batches_total",
            "Forwards on the CPU by a worker with all threads, or with a part of them (cpu-mode).", "threads",
            NULL, 0);
        c->cpu_batches[BATCHER_WIDE] = metrics_get(batches, "all");
        c->cpu_batches[BATCHER_NARROW] = metrics_get(batches, "part");
    }
    for (int i = 0; i < model_get_info(m->model)->devices_count; i++) {
        char index[16];
        snprintf(index, sizeof index, "%d", i);
        add_device(t, &c->devices[i], index);
    }
}

void counts_remove_model(struct engine_model *m) {
    metrics_count(m->counts.weight_bytes, -(double)model_get_info(m->model)->weight_bytes);
    metrics_count(m->counts.workspace_bytes, -count_workspace_bytes(m));
}

void counts_prepare(struct counts *c, const char *decoder, int64_t ns) {
    int i = 0;
    for (int k = 1; decoder && k < COUNTS_DECODERS; k++)
        if (strcmp(decoder, decoders[k]) == 0)
            i = k;
    metrics_observe(c->prepare_s[i], (double)ns * 1e-9);
}

void counts_drop(struct counts *c, int status_code) {
    if (status_code == STATUS_CANCELLED)
        metrics_count(c->cancelled, 1);
    else if (status_code == STATUS_DEADLINE_EXCEEDED)
        metrics_count(c->deadline, 1);
    else if (status_code == STATUS_UNAVAILABLE)
        metrics_count(c->device, 1);
}

static struct counts_device *find_device(struct engine_model *m, int worker) {
    return &m->counts.devices[worker % model_get_info(m->model)->devices_count];
}

void counts_batch(struct engine_model *m, int worker, const struct batcher_batch *b, int64_t begin_ns,
                  int64_t busy_ns) {
    if (!m->counts.queue_s)
        return;
    const double rate_hz = model_get_info(m->model)->sampling_rate_hz;
    int64_t samples = 0, slots = 0;
    for (int i = 0; i < b->count; i++) {
        const struct engine_item *item = b->items[i];
        samples += item->count;
        slots += item->slot;
        if (item == item->request->items)
            metrics_observe(m->counts.queue_s, (double)(begin_ns - item->request->ready_ns) * 1e-9);
    }
    metrics_count(find_device(m, worker)->busy_s, (double)busy_ns * 1e-9);
    metrics_count(m->counts.cpu_batches[worker >= m->workers_count - m->narrow_count], 1);
    metrics_observe(m->counts.compute_s, clock_elapsed_ms(begin_ns) * 1e-3);
    metrics_observe(m->counts.batch_clips, b->count);
    metrics_observe(m->counts.batch_audio_s, (double)samples / rate_hz);
    metrics_count(m->counts.audio_s, (double)samples / rate_hz);
    metrics_count(m->counts.waste_s, (double)(slots - samples) / rate_hz);
}

void counts_fault(struct engine_model *m, int worker, bool lost) {
    const struct counts_device *d = find_device(m, worker);
    metrics_count(lost ? d->losses : d->faults, 1);
}
