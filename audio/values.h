/* values: raw samples of any encoding as floats; full scale is 1.0. Not for other folders. */
#ifndef TIMBRE_AUDIO_VALUES_H
#define TIMBRE_AUDIO_VALUES_H

#include <stddef.h>

#include "audio/audio.h"

/* Bytes of one value; 0 for what is not a raw encoding. */
size_t values_find_bytes(enum audio_encoding encoding);

/* `count` values, `stride` bytes from one to the next (at least their size), at any address. Floats are
 * copied as they are, finite or not. */
void values_convert(float *out, const void *data, size_t count, size_t stride, enum audio_encoding encoding);

#endif
