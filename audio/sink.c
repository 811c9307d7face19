/* sink: the way of every decoded sample: down-mix, check, count, resample, keep. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/decode_internal.h"
#include "audio/resample.h"

static int64_t sink_round_count(double count) {
    return count < 0x1p60 ? (int64_t)count : (int64_t)1 << 60;
}

int audio_sink_open(struct audio_sink *s, int64_t from_hz, int64_t channels, int to_hz,
                    const struct audio_limits *limits, struct status *st) {
    if (from_hz < AUDIO_RATE_HZ_MIN || from_hz > AUDIO_RATE_HZ_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "audio of %lld Hz: rates are %d to %d Hz",
                          (long long)from_hz, AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX);
    if (channels < 1 || channels > AUDIO_CHANNELS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "audio of %lld channels: 1 to %d are read",
                          (long long)channels, AUDIO_CHANNELS_MAX);
    if (resampler_new(&s->resampler, (int)from_hz, to_hz, st) != 0)
        return -1;
    s->from_hz = (int)from_hz;
    s->channels = (int)channels;
    s->to_hz = to_hz;
    s->duration_s_max = limits->duration_s_max;
    s->frames_max = sink_round_count(limits->duration_s_max * (double)from_hz);
    int64_t values_max = sink_round_count(limits->duration_s_max * AUDIO_WORK_VALUES_PER_S_MAX);
    s->frames_worked_max =
        (values_max > AUDIO_WORK_VALUES_MIN ? values_max : AUDIO_WORK_VALUES_MIN) / channels;
    return 0;
}

static int sink_count(struct audio_sink *s, size_t frames, struct status *st) {
    s->frames += (int64_t)frames;
    if (s->frames > s->frames_max)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "the audio is longer than max-duration, which is %g s", s->duration_s_max);
    if (s->frames > s->frames_worked_max)
        return status_set(
            st, STATUS_RESOURCE_EXHAUSTED,
            "the audio has more than %lld samples of %d channels, which is the limit on work for "
            "max-duration %g s",
            (long long)s->frames_worked_max, s->channels, s->duration_s_max);
    return 0;
}

/* The first of `count` values that is not finite; `count` when all are. */
static size_t sink_find_not_finite(const float *values, size_t count) {
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        found |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    size_t i = 0;
    while (found != 0 ? isfinite(values[i]) : i < count)
        i++;
    return i;
}

static int sink_reserve(struct audio_sink *s, size_t more, struct status *st) {
    size_t need = s->count + more;
    if (need <= s->capacity)
        return 0;
    size_t capacity = s->capacity + s->capacity / 2;
    if (capacity < need)
        capacity = need;
    float *grown = realloc(s->samples, capacity * sizeof *grown);
    if (grown == NULL)
        return status_set_no_memory(st, (unsigned long long)capacity * sizeof *grown, "decoded audio");
    s->samples = grown;
    s->capacity = capacity;
    return 0;
}

/* The average of the channels, summed in their order: what NumPy's mean over the channels gives. */
static void sink_mix_down(float *mono, const float *interleaved, size_t frames, int channels) {
    if (channels == 1) {
        memcpy(mono, interleaved, frames * sizeof *mono);
        return;
    }
    for (size_t i = 0; i < frames; i++) {
        const float *frame = interleaved + i * (size_t)channels;
        float sum = frame[0];
        for (int c = 1; c < channels; c++)
            sum += frame[c];
        mono[i] = sum / (float)channels;
    }
}

static int sink_refuse_frame(const struct audio_sink *s, const float *frame, int64_t position,
                             struct status *st) {
    for (int c = 0; c < s->channels; c++)
        if (!isfinite(frame[c]))
            return status_set(
                st, STATUS_INVALID_ARGUMENT,
                "the sample at position %lld (%.6f s) of channel %d is not a finite number (%s)",
                (long long)position, (double)position / s->from_hz, c, isnan(frame[c]) ? "NaN" : "infinite");
    return status_set(st, STATUS_INVALID_ARGUMENT,
                      "the samples at position %lld (%.6f s) are too large to be averaged over the channels",
                      (long long)position, (double)position / s->from_hz);
}

/* Resamples into the result; count 0 with mono NULL flushes. */
static int sink_resample(struct audio_sink *s, const float *mono, size_t frames, struct status *st) {
    size_t bound = resampler_bound(s->resampler, frames), given = 0;
    if (bound == 0)
        return 0; /* equal rates hold nothing back */
    if (sink_reserve(s, bound, st) != 0)
        return -1;
    float *out = s->samples + s->count;
    if (resampler_process(s->resampler, mono, frames, out, bound, &given, st) != 0)
        return -1;
    const size_t wrong = sink_find_not_finite(out, given);
    if (wrong < given)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "the samples near %.6f s are too large to be resampled",
                          (double)(s->count + wrong) / s->to_hz);
    s->count += given;
    return 0;
}

int audio_sink_expect(struct audio_sink *s, size_t frames, struct status *st) {
    int64_t most = s->frames_max < s->frames_worked_max ? s->frames_max : s->frames_worked_max;
    if ((uint64_t)frames > (uint64_t)most)
        return 0; /* will be refused */
    return sink_reserve(s, (size_t)((double)frames * s->to_hz / s->from_hz) + 16, st);
}

int audio_sink_put(struct audio_sink *s, const float *interleaved, size_t frames, struct status *st) {
    const size_t channels = (size_t)s->channels;
    const bool copied = s->from_hz == s->to_hz;
    while (frames > 0) {
        size_t piece = frames < AUDIO_SINK_PIECE_FRAMES ? frames : AUDIO_SINK_PIECE_FRAMES;
        int64_t position = s->frames;
        if (sink_count(s, piece, st) != 0)
            return -1;
        if (copied && sink_reserve(s, piece, st) != 0)
            return -1;
        float *mono = copied ? s->samples + s->count : s->mono;
        sink_mix_down(mono, interleaved, piece, s->channels);
        const size_t wrong = sink_find_not_finite(mono, piece); /* so is a sum over anything that is not */
        if (wrong < piece)
            return sink_refuse_frame(s, interleaved + wrong * channels, position + (int64_t)wrong, st);
        if (copied)
            s->count += piece;
        else if (sink_resample(s, mono, piece, st) != 0)
            return -1;
        interleaved += piece * channels;
        frames -= piece;
    }
    return 0;
}

int audio_sink_finish(struct audio_sink *s, struct status *st) {
    if (s->resampler == NULL)
        return 0;
    if (sink_resample(s, NULL, 0, st) != 0)
        return -1;
    /* What growing left over goes back; when that fails, the larger block is as good. */
    float *fitted = realloc(s->samples, (s->count > 0 ? s->count : 1) * sizeof *fitted);
    if (fitted != NULL) {
        s->samples = fitted;
        s->capacity = s->count > 0 ? s->count : 1;
    }
    return 0;
}

void audio_sink_move(struct audio_sink *s, struct audio_clip *clip, const char *decoder) {
    *clip = (struct audio_clip){
        .samples = s->samples,
        .count = (int64_t)s->count,
        .rate_hz = s->to_hz,
        .source_duration_s = audio_sink_duration_s(s),
        .source_rate_hz = s->from_hz,
        .source_channels = s->channels,
        .decoder = decoder,
    };
    s->samples = NULL;
    s->count = s->capacity = 0;
}

void audio_sink_free(struct audio_sink *s) {
    resampler_del(s->resampler);
    free(s->samples);
    s->resampler = NULL;
    s->samples = NULL;
    s->count = s->capacity = 0;
}

double audio_sink_duration_s(const struct audio_sink *s) {
    return s->from_hz > 0 ? (double)s->frames / (double)s->from_hz : 0.0;
}
