/* counts: what the engine tells of itself in the metrics. Without a table of metrics all of this does
 * nothing. */
#ifndef TIMBRE_ENGINE_COUNTS_H
#define TIMBRE_ENGINE_COUNTS_H

#include <stdint.h>

#include "base/metrics.h"
#include "models/model.h"

struct engine;
struct engine_model;
struct batcher_batch;

enum { COUNTS_DECODERS = 4 };

struct counts {
    struct metrics_series *requests, *audio_s;
    struct metrics_series *cancelled, *deadline, *device;
    struct metrics_series *prepare_s[COUNTS_DECODERS];
};

struct counts_model {
    struct metrics_series *queue_s, *compute_s, *batch_clips, *batch_audio_s;
    struct metrics_series *audio_s, *waste_s, *weight_bytes, *workspace_bytes;
    struct metrics_series *cpu_batches[2]; /* by batcher_kind; shared by all models */
    struct counts_device {                 /* shared by all models */
        struct metrics_series *busy_s, *faults, *losses;
    } devices[MODEL_DEVICES_MAX];
};

void counts_init(struct engine *e);
void counts_add_model(struct engine_model *m);
void counts_remove_model(struct engine_model *m);

/* A request was prepared by `decoder` (of audio_clip; NULL: by none) in so long. */
void counts_prepare(struct counts *c, const char *decoder, int64_t ns);
void counts_drop(struct counts *c, int status_code);
/* A batch is over that the device began then; it counts for so much of the device's time. */
void counts_batch(struct engine_model *m, int worker, const struct batcher_batch *b, int64_t begin_ns,
                  int64_t busy_ns);
/* A batch failed by the device's fault; `lost`: and the device with it. */
void counts_fault(struct engine_model *m, int worker, bool lost);

#endif
