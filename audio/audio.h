/* audio: from bytes in any format to mono fp32 samples at the model's rate.
 *
 * Files: libsndfile for what it reads, from memory; everything else through the ffmpeg program in a confined
 * child process (audio/ffmpeg.h). Raw samples: PCM16, fp32, mu-law, A-law with stated rate and channels.
 * Channels are mixed down by their average, then resampled with libsoxr (high quality, as librosa does).
 * Nothing is allocated because of what a header claims: memory grows with samples that were really decoded.
 */
#ifndef TIMBRE_AUDIO_AUDIO_H
#define TIMBRE_AUDIO_AUDIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    AUDIO_RATE_HZ_MIN = 1000,
    AUDIO_RATE_HZ_MAX = 768000,
    AUDIO_CHANNELS_MAX = 64,
};

enum audio_encoding {
    AUDIO_FILE,    /* a file of any format; rate and channels are its own */
    AUDIO_PCM16,   /* signed 16 bit little-endian, full scale 32768 */
    AUDIO_FLOAT32, /* little-endian, full scale 1.0 */
    AUDIO_MULAW,   /* ITU-T G.711 */
    AUDIO_ALAW,
};

struct audio_format {
    enum audio_encoding encoding;
    int rate_hz, channels; /* of raw encodings; interleaved */
};

struct audio_limits {
    size_t bytes_max;      /* --max-file-bytes: of encoded input. Default AUDIO_BYTES_MAX_DEFAULT */
    double duration_s_max; /* --max-duration: of audio. Default AUDIO_DURATION_S_MAX_DEFAULT */
    int decode_ms_max;     /* wall time of the ffmpeg child. Default AUDIO_DECODE_MS_MAX_DEFAULT */
    const char *ffmpeg;    /* the program (FFMPEG_BIN); NULL: "ffmpeg" on PATH; "" : never use one */
};

#define AUDIO_BYTES_MAX_DEFAULT      ((size_t)256 << 20)
#define AUDIO_DURATION_S_MAX_DEFAULT 1800.0
#define AUDIO_DECODE_MS_MAX_DEFAULT  8000

void audio_limits_init(struct audio_limits *l); /* the defaults */

/* Mono samples at the rate asked for; full scale is 1.0, and louder is kept. */
struct audio_clip {
    float *samples; /* free with audio_clip_free */
    int64_t count;
    int rate_hz;
    double source_duration_s; /* of the source before resampling */
    int source_rate_hz, source_channels;
    const char *decoder; /* "libsndfile", "ffmpeg", "raw"; constant */
};
void audio_clip_free(struct audio_clip *c); /* overwrites the samples first */

/* Decodes `bytes` bytes. Errors: INVALID_ARGUMENT (not decodable, no audio in it, samples that are not
 * finite: what and where), RESOURCE_EXHAUSTED (a limit: its name and value; or memory), FAILED_PRECONDITION
 * (ffmpeg is needed and there is none here, or it is no program), UNAVAILABLE (ffmpeg cannot be started now),
 * DEADLINE_EXCEEDED (ffmpeg took longer than decode_ms_max). A file that ends early gives what was readable
 * when at least one sample was. On error `clip` holds nothing. Thread-safe. */
int audio_decode(struct audio_clip *clip, const void *data, size_t bytes, const struct audio_format *format,
                 int rate_hz, const struct audio_limits *limits, struct status *st);

/* As audio_decode, but starts no program and so never waits for one: where audio_decode would ask ffmpeg, it
 * returns 0 with *needs_ffmpeg set and nothing in `clip`. */
int audio_decode_here(struct audio_clip *clip, const void *data, size_t bytes,
                      const struct audio_format *format, int rate_hz, const struct audio_limits *limits,
                      bool *needs_ffmpeg, struct status *st);

/* The level rule for "no speech". The clip is cut into frames of 25 ms, 10 ms apart; a frame's level is the
 * RMS of its samples less the clip's mean (so that a constant offset is silence). A clip whose loudest frame
 * is below AUDIO_SILENCE_DBFS_MAX (or the level the caller chose) is silence. -60 dBFS lies under any speech
 * that was recorded to be heard and above the noise of a muted line (8-bit companding idles at about -66
 * dBFS). Returns the loudest frame's level in dB relative to full scale; -INFINITY for digital silence and
 * for no samples. */
#define AUDIO_SILENCE_DBFS_MAX (-60.0)
double audio_level_dbfs(const float *samples, int64_t count, int rate_hz);

#endif
