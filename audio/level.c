/* level: how loud a clip is, and the rule for silence. */
#include <math.h>

#include "audio/audio.h"

static double level_mean(const float *samples, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)samples[i];
    return sum / (double)count;
}

static double level_mean_square(const float *samples, int64_t count, double mean) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)samples[i] - mean;
        sum += d * d;
    }
    return sum / (double)count;
}

/* The mean square of the loudest frame. */
static double level_loudest(const float *samples, int64_t count, int rate_hz) {
    if (samples == NULL || count <= 0)
        return 0.0;
    int64_t frame = ((int64_t)rate_hz * 25 + 500) / 1000, hop = ((int64_t)rate_hz * 10 + 500) / 1000;
    if (frame < 1)
        frame = 1;
    if (hop < 1)
        hop = 1;
    if (frame > count)
        frame = count; /* shorter than a frame: one frame of what is there */
    double mean = level_mean(samples, count), loudest = 0.0;
    for (int64_t start = 0; start + frame <= count; start += hop) {
        double square = level_mean_square(samples + start, frame, mean);
        if (square > loudest)
            loudest = square;
    }
    return loudest;
}

double audio_level_dbfs(const float *samples, int64_t count, int rate_hz) {
    double loudest = level_loudest(samples, count, rate_hz);
    return loudest > 0.0 ? 10.0 * log10(loudest) : -INFINITY;
}
