#include "audio/values.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "audio/g711.h"

size_t values_find_bytes(enum audio_encoding encoding) {
    switch (encoding) {
    case AUDIO_PCM16:
        return 2;
    case AUDIO_FLOAT32:
        return 4;
    case AUDIO_MULAW:
    case AUDIO_ALAW:
        return 1;
    case AUDIO_FILE:
        break;
    }
    return 0;
}

static inline void values_convert_pcm16(float *out, const unsigned char *p, size_t count, size_t stride) {
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, p + i * stride, sizeof bits);
        out[i] = (float)(int16_t)le16toh(bits) * (1.0f / 32768.0f);
    }
}

static inline void values_convert_float32(float *out, const unsigned char *p, size_t count, size_t stride) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, p + i * stride, sizeof bits);
        bits = le32toh(bits);
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static void values_convert_g711(float *out, const unsigned char *p, size_t count, size_t stride,
                                int16_t (*decode)(uint8_t code)) {
    for (size_t i = 0; i < count; i++)
        out[i] = (float)decode(p[i * stride]) * (1.0f / 32768.0f);
}

void values_convert(float *out, const void *data, size_t count, size_t stride, enum audio_encoding encoding) {
    const unsigned char *p = data;
    switch (encoding) {
    case AUDIO_PCM16:
        if (stride == 2) /* a loop of its own, which the compiler can make wide */
            values_convert_pcm16(out, p, count, 2);
        else
            values_convert_pcm16(out, p, count, stride);
        break;
    case AUDIO_FLOAT32:
        if (stride == 4)
            values_convert_float32(out, p, count, 4);
        else
            values_convert_float32(out, p, count, stride);
        break;
    case AUDIO_MULAW:
        values_convert_g711(out, p, count, stride, g711_decode_mulaw);
        break;
    case AUDIO_ALAW:
        values_convert_g711(out, p, count, stride, g711_decode_alaw);
        break;
    case AUDIO_FILE:
        break; /* has no values */
    }
}
