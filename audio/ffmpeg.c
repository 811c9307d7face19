#include "audio/ffmpeg.h"
#include <stdio.h>
#include "audio/decode_internal.h"
int ffmpeg_decode(struct audio_attempt *a, const void *data, size_t bytes, int rate_hz,
                  const struct audio_limits *limits, struct status *st) {
    (void)a, (void)data, (void)bytes, (void)rate_hz, (void)limits;
    return status_set(st, STATUS_UNAVAILABLE, "no ffmpeg program was found");
}
const char *ffmpeg_describe_confinement(char *text, size_t bytes) {
    snprintf(text, bytes, "none");
    return text;
}
