/* What a stream may ask for; fields are called as in timbre.v1.StreamConfig. */
#include <math.h>

#include "engine/stream_internal.h"

#define SMOOTHING_S_MAX     3600.0
#define SUMMARY_S_MAX       86400.0
#define RESUME_OFFSET_S_MAX (365 * 86400)

static int out_of_range(const char *field, double value, double lo, double hi, struct status *st) {
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %.10g is not in %.10g..%.10g", field, value, lo, hi);
}

/* Written so that NaN is out of range too. */
static int check(const char *field, double value, double lo, double hi, struct status *st) {
    return value >= lo && value <= hi ? 0 : out_of_range(field, value, lo, hi, st);
}

static int check_optional(const char *field, double value, double lo, double hi, struct status *st) {
    return value == 0 ? 0 : check(field, value, lo, hi, st);
}

static int check_format(const struct audio_format *f, struct status *st) {
    if (f->encoding != AUDIO_PCM16 && f->encoding != AUDIO_FLOAT32 && f->encoding != AUDIO_MULAW &&
        f->encoding != AUDIO_ALAW)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "format.encoding: a stream is raw audio: PCM16, FLOAT32, MULAW or ALAW");
    if (f->rate_hz < ENGINE_STREAM_RATE_HZ_MIN || f->rate_hz > ENGINE_STREAM_RATE_HZ_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "format.sample_rate_hz: %d is not in %d..%d",
                          f->rate_hz, ENGINE_STREAM_RATE_HZ_MIN, ENGINE_STREAM_RATE_HZ_MAX);
    if (f->channels < 1 || f->channels > ENGINE_STREAM_CHANNELS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "format.channels: %d is not in 1..%d", f->channels,
                          ENGINE_STREAM_CHANNELS_MAX);
    return 0;
}

static int check_windows(struct engine_stream_options *o, struct status *st) {
    o->window_s = o->window_s == 0 ? ENGINE_WINDOW_S_DEFAULT : o->window_s;
    o->hop_s = o->hop_s == 0 ? o->window_s / 2 : o->hop_s;
    if (check("windows.length_s", o->window_s, 0.05, ENGINE_WHOLE_S_MAX, st) ||
        check("windows.hop_s", o->hop_s, 0.01, o->window_s, st) ||
        check("windows.speech_s_min", o->speech_s_min, 0, o->window_s, st))
        return -1;
    if (o->window_s > o->hop_s * ENGINE_STREAM_OVERLAP_MAX * (1 + 1e-9))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "windows.hop_s: %g s is less than a %dth of the length (%g s)", o->hop_s,
                          ENGINE_STREAM_OVERLAP_MAX, o->window_s);
    return 0;
}

static int check_utterances(struct engine_stream_options *o, struct status *st) {
    o->length_s_min = o->length_s_min == 0 ? ENGINE_UTTERANCE_S_MIN_DEFAULT : o->length_s_min;
    o->length_s_max = o->length_s_max == 0 ? ENGINE_UTTERANCE_S_MAX_DEFAULT : o->length_s_max;
    o->hangover_s = o->hangover_s == 0 ? ENGINE_HANGOVER_S_DEFAULT : o->hangover_s;
    if (check("utterances.length_s_min", o->length_s_min, 0.05, 5, st) ||
        check("utterances.length_s_max", o->length_s_max, 1, ENGINE_WHOLE_S_MAX, st) ||
        check("utterances.hangover_s", o->hangover_s, 0.1, 5, st) ||
        check_optional("utterances.interim_every_s", o->interim_every_s, 0.25, ENGINE_WHOLE_S_MAX, st))
        return -1;
    if (o->length_s_min > o->length_s_max)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "utterances.length_s_min: %g is more than length_s_max (%g)", o->length_s_min,
                          o->length_s_max);
    return 0;
}

static int check_channels(const struct engine_stream_options *o, struct status *st) {
    const int labels = model_get_info(o->model->model)->labels_count;
    bool any = false;
    for (int c = 0; c < o->format.channels; c++) {
        const double had_s = o->channels[c].had_s;
        any = any || !o->channels[c].excluded;
        if (!(had_s >= 0 && had_s <= RESUME_OFFSET_S_MAX))
            return status_set(st, STATUS_INVALID_ARGUMENT, "channels[%d].resume_end_s: %g is not in 0..%d", c,
                              had_s, RESUME_OFFSET_S_MAX);
        for (int i = 0; o->channels[c].smoothed && i < labels; i++)
            if (!isfinite(o->channels[c].smoothed[i]))
                return status_set(st, STATUS_INVALID_ARGUMENT,
                                  "channels[%d].resume_smoothed: value %d is not finite", c, i);
    }
    if (!any)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "channels: all are excluded; nothing is left to analyse");
    return 0;
}

int stream_settle_options(struct engine_stream_options *o, struct status *st) {
    if (!o->model || !o->wake)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a stream needs a model and a wake");
    if (check_format(&o->format, st) || check_channels(o, st) ||
        (o->utterances ? check_utterances(o, st) : check_windows(o, st)) ||
        check_optional("smoothing_s", o->smoothing_s, 0.01, SMOOTHING_S_MAX, st) ||
        check_optional("summary_every_s", o->summary_every_s, 1, SUMMARY_S_MAX, st))
        return -1;
    if (o->resume_offset_ms < 0 || o->resume_offset_ms > RESUME_OFFSET_S_MAX * INT64_C(1000) ||
        o->resume_offset_ms % ENGINE_STREAM_OFFSET_STEP_MS)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "resume_offset_ms: %lld is none that a result told: whole seconds from 0 to %d",
                          (long long)o->resume_offset_ms, RESUME_OFFSET_S_MAX);
    return 0;
}
