/* resample: libsoxr, one channel, high quality (SOXR_HQ), fed in pieces. The output does not depend on the
 * pieces. */
#ifndef TIMBRE_AUDIO_RESAMPLE_H
#define TIMBRE_AUDIO_RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct resampler;

/* Rates in AUDIO_RATE_HZ_MIN..AUDIO_RATE_HZ_MAX. Equal rates copy exactly. Errors: INVALID_ARGUMENT,
 * RESOURCE_EXHAUSTED. */
int resampler_new(struct resampler **r, int from_hz, int to_hz, struct status *st);
void resampler_del(struct resampler *r); /* NULL is fine */

/* Output samples that at most `count` more input samples (and the flush) can give. */
size_t resampler_bound(const struct resampler *r, size_t count);

/* Consumes all `count` samples; in = NULL flushes what is left, after which only resampler_del may follow.
 * Writes up to `out_max` >= resampler_bound(r, count) samples and sets *out_count. Error: INTERNAL. */
int resampler_process(struct resampler *r, const float *in, size_t count, float *out, size_t out_max,
                      size_t *out_count, struct status *st);

#endif
