/* channels: a whole file as interleaved raw samples, for what takes them as a call's audio comes: nothing is
 * mixed down and nothing resampled. */
#ifndef TIMBRE_AUDIO_CHANNELS_H
#define TIMBRE_AUDIO_CHANNELS_H

#include <stddef.h>
#include <stdint.h>

#include "audio/audio.h"
#include "base/status.h"

#define AUDIO_CHANNELS_BYTES_MAX ((size_t)2 << 30) /* of decoded samples, whatever a file claims */

struct audio_channels {
    void *data; /* free(data); frames of format.channels values, as format.encoding has them */
    size_t bytes;
    int64_t frames;
    struct audio_format format; /* a raw encoding; the file's own rate and channels */
};

/* Reads a file of any format. Samples of up to 16 bits come as PCM16, those of a mu-law or A-law file as its
 * codes, all others as float32: in each case exactly those the file has, so that they give the bits of
 * audio_decode. Floats may be not finite. A file that libsndfile does not read must be of one channel, as
 * ffmpeg's samples come mixed down.
 *
 * Errors: those of audio_decode, and INVALID_ARGUMENT for several channels that only ffmpeg reads. On an
 * error `c` holds nothing. Thread-safe. */
int audio_read_channels(struct audio_channels *c, const void *data, size_t bytes,
                        const struct audio_limits *limits, struct status *st);

#endif
