/* raw: samples without a header, in the format that the caller states. */
#include <endian.h>
#include <string.h>

#include "audio/decode_internal.h"
#include "audio/g711.h"

enum { RAW_PIECE_VALUES = 4096 };

static size_t raw_value_bytes(enum audio_encoding encoding) {
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

static void raw_convert_pcm16(float *out, const unsigned char *p, size_t values) {
    for (size_t i = 0; i < values; i++) {
        uint16_t bits;
        memcpy(&bits, p + 2 * i, sizeof bits);
        out[i] = (float)(int16_t)le16toh(bits) * (1.0f / 32768.0f);
    }
}

static void raw_convert_float32(float *out, const unsigned char *p, size_t values) {
    for (size_t i = 0; i < values; i++) {
        uint32_t bits;
        memcpy(&bits, p + 4 * i, sizeof bits);
        bits = le32toh(bits);
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static void raw_convert_g711(float *out, const unsigned char *p, size_t values,
                             int16_t (*decode)(uint8_t code)) {
    for (size_t i = 0; i < values; i++)
        out[i] = (float)decode(p[i]) * (1.0f / 32768.0f);
}

static void raw_convert(float *out, const unsigned char *p, size_t values, enum audio_encoding encoding) {
    switch (encoding) {
    case AUDIO_PCM16:
        raw_convert_pcm16(out, p, values);
        break;
    case AUDIO_FLOAT32:
        raw_convert_float32(out, p, values);
        break;
    case AUDIO_MULAW:
        raw_convert_g711(out, p, values, g711_decode_mulaw);
        break;
    case AUDIO_ALAW:
        raw_convert_g711(out, p, values, g711_decode_alaw);
        break;
    case AUDIO_FILE:
        break; /* refused by raw_decode */
    }
}

int raw_decode(struct audio_sink *s, const void *data, size_t bytes, const struct audio_format *format,
               int rate_hz, const struct audio_limits *limits, struct status *st) {
    size_t value_bytes = raw_value_bytes(format->encoding);
    if (value_bytes == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "raw audio of an unknown encoding (%d)",
                          (int)format->encoding);
    if (audio_sink_open(s, format->rate_hz, format->channels, rate_hz, limits, st) != 0)
        return -1;
    size_t channels = (size_t)format->channels, frame_bytes = channels * value_bytes,
           frames = bytes / frame_bytes;
    if (bytes % frame_bytes != 0)
        return status_set(
            st, STATUS_INVALID_ARGUMENT,
            "raw audio of %zu bytes ends within a frame: %zu bytes a frame (%d channels of %zu), and "
            "the last, at byte %zu, has only %zu",
            bytes, frame_bytes, format->channels, value_bytes, frames * frame_bytes, bytes % frame_bytes);
    if (audio_sink_expect(s, frames, st) != 0)
        return -1;
    float values[RAW_PIECE_VALUES];
    const unsigned char *p = data;
    size_t piece_max = RAW_PIECE_VALUES / channels;
    while (frames > 0) {
        size_t piece = frames < piece_max ? frames : piece_max;
        raw_convert(values, p, piece * channels, format->encoding);
        if (audio_sink_put(s, values, piece, st) != 0)
            return -1;
        p += piece * frame_bytes;
        frames -= piece;
    }
    return audio_sink_finish(s, st);
}
