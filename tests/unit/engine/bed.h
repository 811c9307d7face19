/* bed: an engine with a tiny model, and sounds, for the tests of this folder. */
#ifndef TIMBRE_TESTS_UNIT_ENGINE_BED_H
#define TIMBRE_TESTS_UNIT_ENGINE_BED_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

enum { BED_RATE_HZ = 16000, BED_NOISE_SAMPLES = 4 * BED_RATE_HZ };
#define BED_MODEL TIMBRE_SOURCE_DIR "/tests/golden/base"

extern float bed_noise[BED_NOISE_SAMPLES]; /* filled by bed_options */

/* The defaults, without ffmpeg. */
void bed_options(struct engine_options *o);
/* Fails the test when it does not start. */
struct engine *bed_start(const struct engine_options *o);
struct engine_model *bed_load(struct engine *e, const char *name);

/* Whole clips of fp32 samples. */
struct engine_request_options bed_raw(struct engine_model *m, struct queue *replies);
/* Opened and fed with `samples` of noise; not finished. */
struct engine_request *bed_open(const struct engine_request_options *o, size_t samples);
/* Likewise, and finished; it must be let in. */
struct engine_request *bed_send(const struct engine_request_options *o, size_t samples);
/* Takes a reply, checks its status code and closes it. Returns what it took, closed: only to compare. */
const void *bed_expect(struct queue *replies, enum status_code code);

/* A file that needs ffmpeg, as far as anybody can see before asking it. Free it. */
void *bed_make_mp4(size_t bytes);
/* A program that does nothing for ever, as `path` [64]; false: not on this machine. Unlink it. */
bool bed_make_hanging_program(char *path);

#endif
