/* vad: where there is speech. For each frame of VAD_HOP_MS one decision, made as soon as the frame's last
 * sample is there, from what lies at most VAD_MEMORY_S before its end: level over an adaptive noise floor,
 * and a spectral measure (docs/streaming.md has the rule and how well it does).
 *
 * Frame n covers samples [n * hop, n * hop + length) of the signal, hop = rate / 100 (rounded), length
 * VAD_FRAME_MS. Decisions depend neither on how the samples were cut into pieces nor, for frames that end
 * more than VAD_MEMORY_S after `first_sample`, on where the signal was joined. */
#ifndef TIMBRE_AUDIO_VAD_H
#define TIMBRE_AUDIO_VAD_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct vad;

enum {
    VAD_HOP_MS = 10,
    VAD_FRAME_MS = 30,
    VAD_MEMORY_S = 8,
    VAD_RATE_HZ_MIN = 8000,
    VAD_RATE_HZ_MAX = 48000
};

/* `first_sample`: the place in the signal of the first sample that will come, a multiple of the rate; frames
 * are numbered from the beginning of the signal, and the first is that which begins there. Errors:
 * INVALID_ARGUMENT (rate), RESOURCE_EXHAUSTED. */
int vad_new(struct vad **v, int rate_hz, int64_t first_sample, struct status *st);
void vad_del(struct vad *v); /* NULL is fine */

/* Frames that will be complete with `count` more samples. */
size_t vad_bound(const struct vad *v, size_t count);
/* Takes all samples; writes a 0 or 1 for each frame they complete, in order, to speech [vad_bound]. Returns
 * how many. */
size_t vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech);

int vad_hop(int rate_hz);    /* samples from one frame to the next */
int vad_length(int rate_hz); /* samples of a frame */

#endif
