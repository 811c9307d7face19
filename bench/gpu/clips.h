/* clips: the audio that timbre_core runs on, from files or made here. */
#ifndef TIMBRE_BENCH_GPU_CLIPS_H
#define TIMBRE_BENCH_GPU_CLIPS_H

#include <stdint.h>

#include "base/status.h"

enum { CLIPS_RATE_HZ = 16000 };

/* One file, mono at 16 kHz: a WAV file of 16-bit PCM, or (any name that does not end in .wav) raw
 * little-endian float32. *samples [*count] on the heap. Errors: those of file_read; INVALID_ARGUMENT naming
 * the file and what is wrong with it. */
int clips_read(float **samples, int64_t *count, const char *path, struct status *st);

/* Clips that nobody recorded, of the same lengths on every machine: noise and tones of many levels, silence,
 * a constant, and some over full scale. */
struct clips {
    int count;
    float **samples;
    int64_t *counts;
    double audio_s;
};

/* `count` clips of `shortest` .. `longest` samples, most of them short; the first two have just these
 * lengths. Errors: RESOURCE_EXHAUSTED. */
int clips_make(struct clips *c, int count, int64_t shortest, int64_t longest, uint32_t seed,
               struct status *st);
void clips_free(struct clips *c);

/* 0 .. 2^24 - 1; the state moves on. */
uint32_t clips_random(uint32_t *state);

#endif
