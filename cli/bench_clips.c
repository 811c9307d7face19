/* What the load generator sends: files, or clips made up here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/file.h"
#include "cli/bench.h"

enum { FILE_BYTES_MAX = 1 << 30, SECONDS_MAX = 3600, WAV_HEADER_BYTES = 44 };

/* Takes over `audio`. */
static int add(struct bench_clips *c, void *audio, size_t bytes) {
    if (c->count == BENCH_CLIPS_MAX) {
        free(audio);
        return cli_fail("bench", CLI_USAGE, "more than %d clips", BENCH_CLIPS_MAX);
    }
    c->clips[c->count++] = (struct bench_clip){.audio = audio, .bytes = bytes};
    return CLI_OK;
}

int bench_add_file(struct bench_clips *c, const char *path) {
    char *data;
    size_t bytes;
    struct status st;
    if (file_read(&data, &bytes, path, FILE_BYTES_MAX, "the size of a file", &st))
        return cli_fail("bench", CLI_NOT_STARTED, "%s", st.message);
    return add(c, data, bytes);
}

uint64_t bench_next_random(uint64_t *state) { /* xorshift */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A gliding tone in syllables and some noise, about 20 dB below full scale, so that no level rule takes it
 * for silence. */
static void make_voice(float *samples, size_t count, int rate_hz, uint64_t seed) {
    double phase = 0;
    for (size_t i = 0; i < count; i++) {
        const double t = (double)i / rate_hz;
        const double pitch_hz = 150 + 40 * sin(2 * M_PI * 0.7 * t) + (double)(seed % 50);
        phase += 2 * M_PI * pitch_hz / rate_hz;
        const double syllable = 0.55 + 0.45 * sin(2 * M_PI * 3.5 * t);
        const double noise = (double)(bench_next_random(&seed) >> 40) / (1 << 23) - 1;
        samples[i] = (float)(syllable * (0.2 * sin(phase) + 0.1 * sin(2 * phase) + 0.05 * sin(3 * phase)) +
                             0.02 * noise);
    }
}

static void put_u32(unsigned char *to, size_t value) {
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

static void put_wav_header(unsigned char *to, size_t data_bytes, int rate_hz) {
    memcpy(to, "RIFF....WAVEfmt \x10\0\0\0\1\0\1\0........\2\0\x10\0data....", WAV_HEADER_BYTES);
    put_u32(to + 4, data_bytes + WAV_HEADER_BYTES - 8);
    put_u32(to + 24, (size_t)rate_hz);
    put_u32(to + 28, (size_t)rate_hz * 2);
    put_u32(to + 40, data_bytes);
}

/* ITU-T G.711 from 16-bit values: a sign, the place of the highest bit (a segment), four bits below it. */
static unsigned encode_mulaw(int value) {
    const unsigned sign = value < 0 ? 0x80 : 0;
    int magnitude = (value < 0 ? -value : value) + 132; /* so that every segment begins at a power of two */
    magnitude = magnitude > 32767 ? 32767 : magnitude;
    const int segment = 31 - __builtin_clz((unsigned)magnitude) - 7;
    return ~(sign | (unsigned)segment << 4 | ((unsigned)magnitude >> (segment + 3) & 15)) & 0xff;
}

static unsigned encode_alaw(int value) {
    const unsigned sign = value < 0 ? 0 : 0x80;
    const unsigned magnitude = (unsigned)(value < 0 ? ~value : value) >> 4;
    unsigned code = magnitude; /* the first two segments are one */
    if (magnitude > 31) {
        const unsigned segment = 31 - (unsigned)__builtin_clz(magnitude) - 3;
        code = segment << 4 | (magnitude >> (segment - 1) & 15);
    }
    return (sign | code) ^ 0x55; /* every other bit is inverted on the line */
}

/* One channel. */
static void encode(unsigned char *to, const float *samples, size_t count, enum timbre_encoding encoding) {
    for (size_t i = 0; i < count; i++) {
        const float sample = fminf(fmaxf(samples[i], -1), 1);
        const int value = (int)lrintf(sample * 32767);
        if (encoding == TIMBRE_ENCODING_FLOAT32) {
            memcpy(to + 4 * i, &samples[i], 4);
        } else if (encoding == TIMBRE_ENCODING_MULAW) {
            to[i] = (unsigned char)encode_mulaw(value);
        } else if (encoding == TIMBRE_ENCODING_ALAW) {
            to[i] = (unsigned char)encode_alaw(value);
        } else {
            to[2 * i] = (unsigned char)value;
            to[2 * i + 1] = (unsigned char)((unsigned)value >> 8);
        }
    }
}

size_t bench_count_value_bytes(enum timbre_encoding encoding) {
    switch (encoding) {
    case TIMBRE_ENCODING_FLOAT32:
        return 4;
    case TIMBRE_ENCODING_MULAW:
    case TIMBRE_ENCODING_ALAW:
        return 1;
    default:
        return 2;
    }
}

static int add_samples(struct bench_clips *c, size_t count, const struct bench_options *o) {
    const uint64_t seed = o->seed + 0x9e3779b97f4a7c15u * (uint64_t)(c->count + 1);
    const size_t header = o->encoding == TIMBRE_ENCODING_FILE ? WAV_HEADER_BYTES : 0;
    const size_t data_bytes = count * bench_count_value_bytes(o->encoding);
    float *samples = malloc((count + 1) * sizeof *samples);
    unsigned char *audio = malloc(header + data_bytes + 1);
    if (!samples || !audio) {
        free(samples);
        free(audio);
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory for a clip of %zu samples", count);
    }
    make_voice(samples, count, o->rate_hz, seed | 1);
    if (header)
        put_wav_header(audio, data_bytes, o->rate_hz);
    encode(audio + header, samples, count, o->encoding);
    free(samples);
    return add(c, audio, header + data_bytes);
}

int bench_add_seconds(struct bench_clips *c, double seconds, const struct bench_options *o) {
    if (!(seconds > 0) || seconds > SECONDS_MAX)
        return cli_fail("bench", CLI_USAGE, "--lengths: %g is not in 0..%d seconds", seconds, SECONDS_MAX);
    return add_samples(c, (size_t)llrint(seconds * o->rate_hz), o);
}

int bench_add_bytes(struct bench_clips *c, size_t bytes, const struct bench_options *o) {
    const size_t header = o->encoding == TIMBRE_ENCODING_FILE ? WAV_HEADER_BYTES : 0;
    return add_samples(c, (bytes > header ? bytes - header : 0) / bench_count_value_bytes(o->encoding), o);
}

int bench_add_track(struct bench_clips *c, const char *path, const struct bench_options *o) {
    const struct audio_format file = {.encoding = AUDIO_FILE};
    struct audio_limits limits;
    struct audio_clip clip;
    struct status st;
    char *data;
    size_t bytes;
    audio_limits_init(&limits);
    limits.ffmpeg = getenv("FFMPEG_BIN");
    if (file_read(&data, &bytes, path, FILE_BYTES_MAX, "the size of a file", &st))
        return cli_fail("bench", CLI_NOT_STARTED, "%s", st.message);
    const int failed = audio_decode(&clip, data, bytes, &file, o->rate_hz, &limits, &st);
    free(data);
    if (failed)
        return cli_fail("bench", CLI_NOT_STARTED, "%s: %s", path, st.message);
    const size_t count = (size_t)clip.count, track_bytes = count * bench_count_value_bytes(o->encoding);
    unsigned char *track = malloc(track_bytes + 1);
    if (track)
        encode(track, clip.samples, count, o->encoding);
    audio_clip_free(&clip);
    if (!track)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory for %s", path);
    return add(c, track, track_bytes);
}
