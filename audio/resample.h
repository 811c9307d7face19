/* resample: libsoxr, one channel, high quality (SOXR_HQ), fed in pieces. The output does not depend on the
 * pieces.
 *
 * Nor does it depend on what came long before, so that a stream can go on elsewhere with the same bits: the
 * signal is cut at every RESAMPLER_SEGMENT_S, and each segment is resampled by a resampler of its own, which
 * begins RESAMPLER_PREROLL_S earlier (both rates have a whole number of samples there) and whose output
 * before the segment is thrown away. The filter is far shorter than that, so the result is that of one
 * resampler but for rounding. */
#ifndef TIMBRE_AUDIO_RESAMPLE_H
#define TIMBRE_AUDIO_RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct resampler;

enum { RESAMPLER_SEGMENT_S = 5, RESAMPLER_PREROLL_S = 1 };

/* Rates in AUDIO_RATE_HZ_MIN..AUDIO_RATE_HZ_MAX. Equal rates copy exactly. Errors: INVALID_ARGUMENT,
 * RESOURCE_EXHAUSTED. */
int resampler_new(struct resampler **r, int from_hz, int to_hz, struct status *st);
/* As above, but the input begins at second `first_s` >= 0 of a longer signal. The output begins with sample
 * resampler_find_output_s(...) * to_hz of that signal's, and has the same bits from there on. */
int resampler_new_at(struct resampler **r, int from_hz, int to_hz, int64_t first_s, struct status *st);
/* The second at which the output begins when the input begins at `first_s`. */
int64_t resampler_find_output_s(int from_hz, int to_hz, int64_t first_s);
/* The latest second at which the input may begin for the output to have begun by second `output_s`. */
int64_t resampler_find_input_s(int from_hz, int to_hz, int64_t output_s);
void resampler_del(struct resampler *r); /* NULL is fine */

/* Output samples that at most `count` more input samples (and the flush) can give. */
size_t resampler_bound(const struct resampler *r, size_t count);

/* Consumes all `count` samples; in = NULL flushes what is left, after which only resampler_del may follow.
 * Writes up to `out_max` >= resampler_bound(r, count) samples and sets *out_count. Errors:
 * RESOURCE_EXHAUSTED, INTERNAL; then only resampler_del may follow. */
int resampler_process(struct resampler *r, const float *in, size_t count, float *out, size_t out_max,
                      size_t *out_count, struct status *st);

#endif
