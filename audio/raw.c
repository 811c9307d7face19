/* raw: samples without a header, in the format that the caller states. */
#include "audio/decode_internal.h"
#include "audio/values.h"

enum { RAW_PIECE_VALUES = 4096 };

int raw_decode(struct audio_sink *s, const void *data, size_t bytes, const struct audio_format *format,
               int rate_hz, const struct audio_limits *limits, struct status *st) {
    size_t value_bytes = values_find_bytes(format->encoding);
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
        values_convert(values, p, piece * channels, value_bytes, format->encoding);
        if (audio_sink_put(s, values, piece, st) != 0)
            return -1;
        p += piece * frame_bytes;
        frames -= piece;
    }
    return audio_sink_finish(s, st);
}
