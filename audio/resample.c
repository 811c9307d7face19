/* resample: one channel through libsoxr. */
#include "audio/resample.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <soxr.h>

#include "audio/audio.h"

struct resampler {
    soxr_t soxr; /* NULL: equal rates, samples are copied */
    int from_hz, to_hz;
    uint64_t in_total, out_total;
    bool flushed;
};

static soxr_t soxr_open(int from_hz, int to_hz, soxr_error_t *error) {
    soxr_io_spec_t io = soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
    return soxr_create((double)from_hz, (double)to_hz, 1, error, &io, &quality, &runtime);
}

/* Some of libsoxr's engines set up tables shared by all resamplers in the first one, with no lock around
 * that. */
static void soxr_warm(void) {
    soxr_error_t error = NULL;
    soxr_t first = soxr_open(44100, 16000, &error);
    if (first != NULL)
        soxr_delete(first);
}

static pthread_once_t soxr_warmed = PTHREAD_ONCE_INIT;

static bool rate_is_valid(int rate_hz) {
    return rate_hz >= AUDIO_RATE_HZ_MIN && rate_hz <= AUDIO_RATE_HZ_MAX;
}

int resampler_new(struct resampler **r, int from_hz, int to_hz, struct status *st) {
    if (!rate_is_valid(from_hz) || !rate_is_valid(to_hz))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "cannot resample from %d Hz to %d Hz: rates are %d to %d Hz", from_hz, to_hz,
                          AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX);
    struct resampler *made = calloc(1, sizeof *made);
    if (made == NULL)
        return status_set_no_memory(st, sizeof *made, "a resampler");
    made->from_hz = from_hz;
    made->to_hz = to_hz;
    if (from_hz != to_hz) {
        pthread_once(&soxr_warmed, soxr_warm);
        soxr_error_t error = NULL;
        made->soxr = soxr_open(from_hz, to_hz, &error);
        if (made->soxr == NULL) {
            free(made);
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot resample from %d Hz to %d Hz: %s",
                              from_hz, to_hz, error != NULL ? error : "out of memory");
        }
    }
    *r = made;
    return 0;
}

void resampler_del(struct resampler *r) {
    if (r == NULL)
        return;
    if (r->soxr != NULL)
        soxr_delete(r->soxr);
    free(r);
}

size_t resampler_bound(const struct resampler *r, size_t count) {
    if (r->soxr == NULL)
        return count;
    /* All that goes in comes out in proportion, late but never early. The slack covers rounding at the end.
     */
    double whole = ((double)r->in_total + (double)count) * (double)r->to_hz / (double)r->from_hz;
    double left = whole - (double)r->out_total;
    return (left > 0.0 ? (size_t)left : 0) + 16;
}

static int resampler_step(struct resampler *r, const float *in, size_t count, float *out, size_t out_max,
                          size_t *taken, size_t *given, struct status *st) {
    soxr_error_t error = soxr_process(r->soxr, in, count, taken, out, out_max, given);
    if (error != NULL)
        return status_set(st, STATUS_INTERNAL, "resampling from %d Hz to %d Hz failed: %s", r->from_hz,
                          r->to_hz, error);
    r->in_total += *taken;
    r->out_total += *given;
    return 0;
}

int resampler_process(struct resampler *r, const float *in, size_t count, float *out, size_t out_max,
                      size_t *out_count, struct status *st) {
    *out_count = 0;
    if (r->flushed)
        return status_set(st, STATUS_INTERNAL, "a resampler was used after its flush");
    r->flushed = in == NULL;
    if (r->soxr == NULL) {
        if (in == NULL)
            return 0;
        if (count > out_max)
            return status_set(st, STATUS_INTERNAL, "a resampler was given too small a buffer");
        memcpy(out, in, count * sizeof *out);
        *out_count = count;
        return 0;
    }
    size_t done = 0, made = 0, taken = 0, given = 0;
    while (in == NULL ? made < out_max : done < count) {
        if (resampler_step(r, in == NULL ? NULL : in + done, count - done, out + made, out_max - made, &taken,
                           &given, st) != 0)
            return -1;
        done += taken;
        made += given;
        if (taken == 0 && given == 0) {
            if (in == NULL)
                break; /* flushed */
            return status_set(st, STATUS_INTERNAL, "a resampler was given too small a buffer");
        }
    }
    *out_count = made;
    return 0;
}
