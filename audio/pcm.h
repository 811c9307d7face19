/* pcm: raw interleaved samples that arrive cut anywhere, a channel at a time. */
#ifndef TIMBRE_AUDIO_PCM_H
#define TIMBRE_AUDIO_PCM_H

#include <stddef.h>
#include <stdint.h>

#include "audio/audio.h"
#include "base/status.h"

enum { PCM_CHANNELS_MAX = 8, PCM_VALUE_BYTES_MAX = 4 };

/* All fields are the functions' own. */
struct pcm_reader {
    struct audio_format format;
    size_t frame_bytes;
    int64_t first_frame;                                        /* of the signal, for messages */
    int64_t bytes;                                              /* taken so far */
    unsigned char rest[PCM_CHANNELS_MAX * PCM_VALUE_BYTES_MAX]; /* of a frame that is not complete */
    size_t rest_bytes;
};

/* A raw encoding; channels 1..PCM_CHANNELS_MAX. `first_frame` is where in the signal the bytes begin. Error:
 * INVALID_ARGUMENT. */
int pcm_init(struct pcm_reader *r, const struct audio_format *format, int64_t first_frame, struct status *st);

/* Frames that `bytes` more bytes complete. */
size_t pcm_count_frames(const struct pcm_reader *r, size_t bytes);

/* Takes all `bytes` (any number) and writes the frames they complete, channel c into out[c]
 * [pcm_count_frames]. A channel whose out[c] is NULL is not looked at: its samples are skipped unread. The
 * same bytes give the same values as raw_decode of one channel. *frames: how many. Error: INVALID_ARGUMENT (a
 * value that is not finite: which, at what time, of which channel). */
int pcm_read(struct pcm_reader *r, const void *data, size_t bytes, float *const out[], size_t *frames,
             struct status *st);

/* The end. Error: INVALID_ARGUMENT (it lies within a frame: at which byte). */
int pcm_finish(const struct pcm_reader *r, struct status *st);

#endif
