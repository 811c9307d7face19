/* raw: samples without a header, in the format that the caller states. */
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

static float raw_read_float(const unsigned char *p) {
    uint32_t bits = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void raw_convert(float *out, const unsigned char *p, size_t values, enum audio_encoding encoding) {
    const float scale = 1.0f / 32768.0f;
    for (size_t i = 0; i < values; i++) {
        switch (encoding) {
        case AUDIO_PCM16:
            out[i] = (float)(int16_t)(uint16_t)(p[2 * i] | p[2 * i + 1] << 8) * scale;
            break;
        case AUDIO_FLOAT32:
            out[i] = raw_read_float(p + 4 * i);
            break;
        case AUDIO_MULAW:
            out[i] = (float)g711_decode_mulaw(p[i]) * scale;
            break;
        case AUDIO_ALAW:
            out[i] = (float)g711_decode_alaw(p[i]) * scale;
            break;
        case AUDIO_FILE:
            out[i] = 0.0f; /* refused by raw_decode */
            break;
        }
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
