/* sounds: files and samples made in memory, for the tests of this folder. */
#ifndef TIMBRE_TESTS_UNIT_AUDIO_SOUNDS_H
#define TIMBRE_TESTS_UNIT_AUDIO_SOUNDS_H

#include <stddef.h>
#include <stdint.h>

struct bytes {
    unsigned char *data; /* free() */
    size_t count;
};

void put_u16(unsigned char *p, unsigned value);
void put_u32(unsigned char *p, uint32_t value);

enum { WAV_HEADER_BYTES = 44, WAV_PCM = 1, WAV_FLOAT = 3 };

/* A WAV file of `frames` frames, all zero behind its header; `tag` is WAV_PCM or WAV_FLOAT. */
struct bytes sound_make_wav(int tag, int bits, int channels, int rate_hz, size_t frames);

/* 64-bit PCM, which libsndfile does not read: a sine of 440 Hz at half scale on every channel. */
struct bytes sound_make_wav64(int channels, int rate_hz, size_t frames);

/* The same numbers for the same seed: in -1..1. */
float sound_noise(uint32_t *seed);
unsigned char sound_noise_byte(uint32_t *seed);

#endif
