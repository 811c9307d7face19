/* vad_bands: the spectrum of one frame of the voice-activity rule, as the powers of some bands of speech and
 * how periodic it is. What it gives for a frame depends on that frame's samples alone, and on no choice made
 * at run time. */
#ifndef TIMBRE_AUDIO_VAD_BANDS_H
#define TIMBRE_AUDIO_VAD_BANDS_H

#include "base/status.h"

struct vad_bands;

enum { VAD_BANDS = 20 }; /* a multiple of 4. Those above half the rate are silent */

/* `length` samples a frame; the rate is within VAD_RATE_HZ_*. Error: RESOURCE_EXHAUSTED. */
int vad_bands_new(struct vad_bands **b, int rate_hz, int length, struct status *st);
void vad_bands_del(struct vad_bands *b); /* NULL is fine */

/* samples [length]. power [VAD_BANDS]: mean square of the frame, less its mean, in each band; full scale
 * is 1. Returns the highest autocorrelation at a period of 80 to 400 Hz, of what is below 2 kHz: 1 for a
 * periodic frame, near 0 for noise. */
float vad_bands_compute(struct vad_bands *b, const float *samples, float *power);

/* log2 of a positive, normal number, within 1e-4: the same bits wherever floats are IEEE's. */
float vad_log2(float x);

#endif
