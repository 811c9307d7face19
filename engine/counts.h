/* counts: what the engine tells of itself in the metrics. Without a table of metrics all of this does
 * nothing. */
#ifndef TIMBRE_ENGINE_COUNTS_H
#define TIMBRE_ENGINE_COUNTS_H

#include <stdint.h>

#include "base/metrics.h"

struct engine;
struct engine_model;
struct batcher_batch;

enum { COUNTS_DECODERS = 4 };

struct counts {
    struct metrics_series *requests, *audio_s, *busy_s;
    struct metrics_series *cancelled, *deadline;
    struct metrics_series *prepare_s[COUNTS_DECODERS];
};

struct counts_model {
    struct metrics_series *queue_s, *compute_s, *batch_clips, *batch_audio_s;
    struct metrics_series *audio_s, *waste_s, *weight_bytes, *workspace_bytes;
};

void counts_init(struct engine *e);
void counts_add_model(struct engine_model *m);
void counts_remove_model(struct engine_model *m);

/* A request was prepared by `decoder` (of audio_clip; NULL: by none) in so long. */
void counts_prepare(struct counts *c, const char *decoder, int64_t ns);
void counts_drop(struct counts *c, int status_code);
/* A batch that begins, and one that is over. */
void counts_begin_batch(struct engine_model *m, const struct batcher_batch *b, int64_t start_ns);
void counts_end_batch(struct engine_model *m, const struct batcher_batch *b, int64_t busy_ns);

#endif
