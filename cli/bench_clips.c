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

static uint64_t next_random(uint64_t *state) { /* xorshift */
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
        const double noise = (double)(next_random(&seed) >> 40) / (1 << 23) - 1;
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

/* One channel. G.711 is plain noise, which every byte of it is. */
static void encode(unsigned char *to, const float *samples, size_t count, enum timbre_encoding encoding,
                   uint64_t seed) {
    for (size_t i = 0; i < count; i++) {
        if (encoding == TIMBRE_ENCODING_FLOAT32) {
            memcpy(to + 4 * i, &samples[i], 4);
        } else if (encoding == TIMBRE_ENCODING_MULAW || encoding == TIMBRE_ENCODING_ALAW) {
            to[i] = (unsigned char)next_random(&seed);
        } else {
            const unsigned value = (unsigned)lrintf(samples[i] * 32767);
            to[2 * i] = (unsigned char)value;
            to[2 * i + 1] = (unsigned char)(value >> 8);
        }
    }
}

static size_t sample_bytes(enum timbre_encoding encoding) {
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
    const size_t data_bytes = count * sample_bytes(o->encoding);
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
    encode(audio + header, samples, count, o->encoding, seed | 1);
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
    return add_samples(c, (bytes > header ? bytes - header : 0) / sample_bytes(o->encoding), o);
}
