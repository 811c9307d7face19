/* decode_internal: what the decoders of this folder share. Not for other folders. */
#ifndef TIMBRE_AUDIO_DECODE_INTERNAL_H
#define TIMBRE_AUDIO_DECODE_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "audio/audio.h"
#include "base/status.h"

struct resampler;

enum {
    /* Frames that are mixed down and resampled at a time, whatever a decoder hands over. */
    AUDIO_SINK_PIECE_FRAMES = 4096,
    AUDIO_ATTEMPT_WHY_BYTES = 200,
};

/* A small file can hold silence of many channels at a high rate, which max-duration alone would let through
 * for minutes of work. So decoded values over all channels are limited too: for each second of max-duration
 * as many as six channels at 48 kHz have, and never fewer than the minimum. */
#define AUDIO_WORK_VALUES_PER_S_MAX (6 * 48000)
#define AUDIO_WORK_VALUES_MIN       ((int64_t)1 << 26)

/* sink: takes interleaved frames as a decoder produces them, mixes them down, checks and counts them,
 * resamples them and keeps only the result. All zero is a valid sink that was never opened. */
struct audio_sink {
    struct resampler *resampler; /* NULL until opened */
    float *samples;              /* the result so far */
    size_t count, capacity;
    int from_hz, channels, to_hz;
    int64_t frames, frames_max, frames_worked_max; /* of the source: so far, by duration, by work */
    double duration_s_max;
    float mono[AUDIO_SINK_PIECE_FRAMES];
};

/* Rate and channels are the file's own claim. Errors: INVALID_ARGUMENT (out of range), RESOURCE_EXHAUSTED. */
int audio_sink_open(struct audio_sink *s, int64_t from_hz, int64_t channels, int to_hz,
                    const struct audio_limits *limits, struct status *st);
/* So many frames are there, not only claimed: takes the memory for all of them at once. */
int audio_sink_expect(struct audio_sink *s, size_t frames, struct status *st);
/* Errors: INVALID_ARGUMENT (a value that is not finite: which), RESOURCE_EXHAUSTED (the limit by name;
 * memory). */
int audio_sink_put(struct audio_sink *s, const float *interleaved, size_t frames, struct status *st);
/* The end of the source; nothing may be put afterwards. */
int audio_sink_finish(struct audio_sink *s, struct status *st);
/* Moves the result into `clip`; the sink is empty afterwards. `decoder` is a constant. */
void audio_sink_move(struct audio_sink *s, struct audio_clip *clip, const char *decoder);
void audio_sink_free(struct audio_sink *s);
double audio_sink_duration_s(const struct audio_sink *s); /* of the source so far; 0 when never opened */

/* What one decoder made of a file. */
struct audio_attempt {
    struct audio_sink sink; /* what it read: none, some or all */
    bool whole;             /* it came to the end without complaint, and is known to be right about it */
    bool empty;             /* it knows the format, and there is no audio in it */
    bool guessed;           /* the format was recognised by little, so that its samples may be noise */
    char why[AUDIO_ATTEMPT_WHY_BYTES]; /* when not whole: what it said; printable ASCII */
};

/* Each returns 0 when it could make its attempt, however little came of it, and -1 for what ends the whole
 * decoding: a limit, memory, a value that is not finite; for ffmpeg also FAILED_PRECONDITION,
 * UNAVAILABLE and DEADLINE_EXCEEDED.
 */
int sndfile_decode(struct audio_attempt *a, const void *data, size_t bytes, int rate_hz,
                   const struct audio_limits *limits, struct status *st);
int raw_decode(struct audio_sink *s, const void *data, size_t bytes, const struct audio_format *format,
               int rate_hz, const struct audio_limits *limits, struct status *st);

#endif
