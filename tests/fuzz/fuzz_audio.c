/* Any bytes as a file (through libsndfile) or as raw samples. The first three bytes choose: encoding,
 * channels, rate. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "audio/audio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(bool holds) {
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const int rates[] = {16000, 8000, 44100, 48000, 1000, 768000, 11025, 7};
    if (bytes < 3)
        return 0;
    struct audio_format format = {
        .encoding = (enum audio_encoding)(data[0] % 6), /* one of them unknown */
        .channels = data[1],
        .rate_hz = rates[data[2] % 8],
    };
    struct audio_limits limits;
    audio_limits_init(&limits);
    limits.ffmpeg = "";
    limits.duration_s_max = 20.0;
    struct audio_clip clip;
    struct status st = {0};
    /* a copy of just that size, so that reading behind it shows */
    uint8_t *input = malloc(bytes - 3 > 0 ? bytes - 3 : 1);
    check(input != NULL);
    memcpy(input, data + 3, bytes - 3);
    if (audio_decode(&clip, input, bytes - 3, &format, 16000, &limits, &st) == 0) {
        check(clip.count >= 0 && clip.count <= 16000 * 20 + 1 && clip.samples != NULL &&
              clip.rate_hz == 16000);
        for (int64_t i = 0; i < clip.count; i++)
            check(isfinite(clip.samples[i]));
        check(!isnan(audio_level_dbfs(clip.samples, clip.count, clip.rate_hz)));
    } else {
        check(clip.samples == NULL && st.code != STATUS_OK && st.message[0] != '\0');
    }
    audio_clip_free(&clip);
    free(input);
    return 0;
}
