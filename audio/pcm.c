#include "audio/pcm.h"

#include <math.h>
#include <string.h>

#include "audio/values.h"

int pcm_init(struct pcm_reader *r, const struct audio_format *format, int64_t first_frame,
             struct status *st) {
    size_t value_bytes = values_find_bytes(format->encoding);
    if (value_bytes == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "live audio of an encoding that is not raw (%d)",
                          (int)format->encoding);
    if (format->rate_hz < AUDIO_RATE_HZ_MIN || format->rate_hz > AUDIO_RATE_HZ_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "live audio of %d Hz: rates are %d to %d Hz",
                          format->rate_hz, AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX);
    if (format->channels < 1 || format->channels > PCM_CHANNELS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "live audio of %d channels: 1 to %d are read",
                          format->channels, PCM_CHANNELS_MAX);
    if (first_frame < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "live audio that begins at frame %lld",
                          (long long)first_frame);
    *r = (struct pcm_reader){
        .format = *format, .frame_bytes = (size_t)format->channels * value_bytes, .first_frame = first_frame};
    return 0;
}

size_t pcm_count_frames(const struct pcm_reader *r, size_t bytes) {
    return bytes / r->frame_bytes + (r->rest_bytes + bytes % r->frame_bytes) / r->frame_bytes;
}

/* Keeps bytes of a frame that is not complete, with zeros for channels that are not looked at. */
static void pcm_keep(struct pcm_reader *r, const unsigned char *p, size_t bytes, float *const out[]) {
    size_t value_bytes = r->frame_bytes / (size_t)r->format.channels;
    for (size_t i = 0; i < bytes; i++, r->rest_bytes++)
        r->rest[r->rest_bytes] = out[r->rest_bytes / value_bytes] != NULL ? p[i] : 0;
}

/* Whole frames, to out[c] + at. */
static void pcm_convert(const struct pcm_reader *r, const unsigned char *p, size_t frames, float *const out[],
                        size_t at) {
    size_t value_bytes = r->frame_bytes / (size_t)r->format.channels;
    for (int c = 0; c < r->format.channels; c++)
        if (out[c] != NULL)
            values_convert(out[c] + at, p + (size_t)c * value_bytes, frames, r->frame_bytes,
                           r->format.encoding);
}

/* `frame`: of the signal, that of out[c][0]. */
static int pcm_check_finite(const struct pcm_reader *r, int64_t frame, size_t frames, float *const out[],
                            struct status *st) {
    for (size_t i = 0; i < frames; i++)
        for (int c = 0; c < r->format.channels; c++)
            if (out[c] != NULL && !isfinite(out[c][i]))
                return status_set(
                    st, STATUS_INVALID_ARGUMENT,
                    "the sample at position %lld (%.6f s) of channel %d is not a finite number (%s)",
                    (long long)(frame + (int64_t)i), (double)(frame + (int64_t)i) / r->format.rate_hz, c,
                    isnan(out[c][i]) ? "NaN" : "infinite");
    return 0;
}

int pcm_read(struct pcm_reader *r, const void *data, size_t bytes, float *const out[], size_t *frames,
             struct status *st) {
    const unsigned char *p = data;
    const size_t total = pcm_count_frames(r, bytes);
    const int64_t frame = r->first_frame + r->bytes / (int64_t)r->frame_bytes;
    *frames = 0;
    r->bytes += (int64_t)bytes;
    size_t made = 0;
    if (r->rest_bytes > 0) {
        size_t missing = r->frame_bytes - r->rest_bytes, taken = bytes < missing ? bytes : missing;
        pcm_keep(r, p, taken, out);
        p += taken;
        bytes -= taken;
        if (r->rest_bytes < r->frame_bytes)
            return 0;
        pcm_convert(r, r->rest, 1, out, 0);
        memset(r->rest, 0, sizeof r->rest); /* no audio is kept longer than it must be */
        r->rest_bytes = 0;
        made = 1;
    }
    if (bytes > 0) {
        size_t whole = total - made;
        pcm_convert(r, p, whole, out, made);
        pcm_keep(r, p + whole * r->frame_bytes, bytes - whole * r->frame_bytes, out);
    }
    if (r->format.encoding == AUDIO_FLOAT32 && pcm_check_finite(r, frame, total, out, st) != 0)
        return -1;
    *frames = total;
    return 0;
}

int pcm_finish(const struct pcm_reader *r, struct status *st) {
    if (r->rest_bytes == 0)
        return 0;
    const int64_t frames = r->bytes / (int64_t)r->frame_bytes, frame = r->first_frame + frames;
    return status_set(
        st, STATUS_INVALID_ARGUMENT,
        "the audio, %lld bytes here, ends within a frame: %zu bytes a frame (%d channels of %zu), and the "
        "last, at byte %lld (%.6f s), has only %zu",
        (long long)r->bytes, r->frame_bytes, r->format.channels, r->frame_bytes / (size_t)r->format.channels,
        (long long)(frames * (int64_t)r->frame_bytes), (double)frame / r->format.rate_hz, r->rest_bytes);
}
