#include "sounds.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void put_u16(unsigned char *p, unsigned value) {
    p[0] = (unsigned char)value;
    p[1] = (unsigned char)(value >> 8);
}

void put_u32(unsigned char *p, uint32_t value) {
    put_u16(p, value & 0xffff);
    put_u16(p + 2, value >> 16);
}

struct bytes sound_make_wav(int tag, int bits, int channels, int rate_hz, size_t frames) {
    size_t frame_bytes = (size_t)channels * (size_t)bits / 8, data_bytes = frames * frame_bytes;
    unsigned char *p = calloc(1, WAV_HEADER_BYTES + data_bytes);
    if (p == NULL)
        abort();
    memcpy(p, "RIFF....WAVEfmt ", 16);
    put_u32(p + 4, (uint32_t)(WAV_HEADER_BYTES - 8 + data_bytes));
    put_u32(p + 16, 16);
    put_u16(p + 20, (unsigned)tag);
    put_u16(p + 22, (unsigned)channels);
    put_u32(p + 24, (uint32_t)rate_hz);
    put_u32(p + 28, (uint32_t)((size_t)rate_hz * frame_bytes));
    put_u16(p + 32, (unsigned)frame_bytes);
    put_u16(p + 34, (unsigned)bits);
    memcpy(p + 36, "data", 4);
    put_u32(p + 40, (uint32_t)data_bytes);
    return (struct bytes){p, WAV_HEADER_BYTES + data_bytes};
}

struct bytes sound_make_wav64(int channels, int rate_hz, size_t frames) {
    struct bytes wav = sound_make_wav(WAV_PCM, 64, channels, rate_hz, frames);
    unsigned char *p = wav.data + WAV_HEADER_BYTES;
    for (size_t i = 0; i < frames; i++)
        for (int c = 0; c < channels; c++, p += 8)
            put_u32(p + 4, (uint32_t)(int32_t)lrint(0.5 * 2147483648.0 *
                                                    sin(2.0 * acos(-1.0) * 440.0 * (double)i / rate_hz)));
    return wav;
}

float sound_noise(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(int32_t)*seed / 2147483648.0f;
}

unsigned char sound_noise_byte(uint32_t *seed) {
    sound_noise(seed);
    return (unsigned char)(*seed >> 24);
}
