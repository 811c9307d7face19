/* Files as the interleaved samples that a stream takes. */
#include "engine/stream.h"

int engine_read_channels(struct audio_channels *c, const void *data, size_t bytes,
                         const struct audio_limits *limits, struct status *st) {
    return audio_read_channels(c, data, bytes, limits, st);
}
