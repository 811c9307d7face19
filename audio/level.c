/* level: how loud a clip is, and the rule for silence.
 *
 * Frames overlap, so each hop is summed once, in two parts: up to where a frame ends in it, and the rest. A
 * frame is then a few of those sums. Everything is added in a fixed order, so that the same clip always has
 * the same level. */
#include <math.h>

#include "audio/audio.h"

enum {
    LEVEL_LANES = 8, /* sums that run side by side, as a processor's vectors do */
    LEVEL_HOPS = 8,  /* more than a frame spans: 25 ms are at most five hops of 10 ms, rounded */
};

static double level_mean(const float *samples, int64_t count) {
    double lanes[LEVEL_LANES] = {0}, sum = 0.0;
    int64_t i = 0;
    for (; i + LEVEL_LANES <= count; i += LEVEL_LANES)
        for (int l = 0; l < LEVEL_LANES; l++)
            lanes[l] += (double)samples[i + l];
    for (int l = 0; l < LEVEL_LANES; l++)
        sum += lanes[l];
    for (; i < count; i++)
        sum += (double)samples[i];
    return sum / (double)count;
}

static double level_sum_squares(const float *samples, int64_t count, float mean) {
    float lanes[LEVEL_LANES] = {0};
    double sum = 0.0;
    int64_t i = 0;
    for (; i + LEVEL_LANES <= count; i += LEVEL_LANES)
        for (int l = 0; l < LEVEL_LANES; l++) {
            const float d = samples[i + l] - mean;
            lanes[l] += d * d;
        }
    for (int l = 0; l < LEVEL_LANES; l++)
        sum += (double)lanes[l];
    for (; i < count; i++)
        sum += (double)(samples[i] - mean) * (double)(samples[i] - mean);
    return sum;
}

/* The largest sum of squares of the frames [k * hop, k * hop + frame) that lie within the clip. */
static double level_loudest(const float *samples, int64_t count, int64_t frame, int64_t hop, float mean) {
    const int64_t whole = frame / hop, part = frame % hop;
    double first[LEVEL_HOPS], rest[LEVEL_HOPS], loudest = 0.0;
    for (int64_t h = 0; h * hop + part <= count; h++) {
        const float *at = samples + h * hop;
        first[h % LEVEL_HOPS] = level_sum_squares(at, part, mean);
        if (h >= whole) {
            double sum = first[h % LEVEL_HOPS];
            for (int64_t k = h - whole; k < h; k++)
                sum += first[k % LEVEL_HOPS] + rest[k % LEVEL_HOPS];
            loudest = sum > loudest ? sum : loudest;
        }
        if ((h + 1) * hop > count)
            break;
        rest[h % LEVEL_HOPS] = level_sum_squares(at + part, hop - part, mean);
    }
    return loudest;
}

double audio_level_dbfs(const float *samples, int64_t count, int rate_hz) {
    if (samples == NULL || count <= 0)
        return -INFINITY;
    int64_t frame = ((int64_t)rate_hz * 25 + 500) / 1000, hop = ((int64_t)rate_hz * 10 + 500) / 1000;
    if (frame < 1)
        frame = 1;
    if (hop < 1)
        hop = 1;
    const float mean = (float)level_mean(samples, count);
    double loudest;
    if (frame >= count) { /* shorter than a frame: one frame of what is there */
        frame = count;
        loudest = level_sum_squares(samples, count, mean);
    } else {
        loudest = level_loudest(samples, count, frame, hop, mean);
    }
    return loudest > 0.0 ? 10.0 * log10(loudest / (double)frame) : -INFINITY;
}
