/* Tests of audio/level. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "audio/audio.h"

static bool is_silent(const float *samples, int64_t count, int rate_hz) {
    return audio_level_dbfs(samples, count, rate_hz) < AUDIO_SILENCE_DBFS_MAX;
}

enum { RATE_HZ = 16000 };

static float *make(int64_t count) {
    float *samples = calloc((size_t)count, sizeof *samples);
    assert_non_null(samples);
    return samples;
}

/* A sine whose RMS is `dbfs`, and which fits into a frame a whole number of times. */
static void fill_sine(float *samples, int64_t count, double dbfs, float offset) {
    double amplitude = sqrt(2.0) * pow(10.0, dbfs / 20.0);
    for (int64_t i = 0; i < count; i++)
        samples[i] = offset + (float)(amplitude * sin(2.0 * acos(-1.0) * (double)i / 16.0));
}

static void test_sines(void **state) {
    (void)state;
    float *samples = make(RATE_HZ);
    for (double dbfs = -91.0; dbfs <= 0.0; dbfs += 7.5) {
        fill_sine(samples, RATE_HZ, dbfs, 0.0f);
        assert_true(fabs(audio_level_dbfs(samples, RATE_HZ, RATE_HZ) - dbfs) < 0.01);
        assert_int_equal(is_silent(samples, RATE_HZ, RATE_HZ), dbfs < AUDIO_SILENCE_DBFS_MAX);
    }
    fill_sine(samples, RATE_HZ, AUDIO_SILENCE_DBFS_MAX + 0.1, 0.0f);
    assert_false(is_silent(samples, RATE_HZ, RATE_HZ));
    fill_sine(samples, RATE_HZ, AUDIO_SILENCE_DBFS_MAX - 0.1, 0.0f);
    assert_true(is_silent(samples, RATE_HZ, RATE_HZ));
    free(samples);
}

static void test_offset_is_silence(void **state) {
    (void)state;
    float *samples = make(RATE_HZ);
    for (int i = 0; i < RATE_HZ; i++)
        samples[i] = 0.25f;
    assert_true(isinf(audio_level_dbfs(samples, RATE_HZ, RATE_HZ)));
    fill_sine(samples, RATE_HZ, -30.0, 0.5f);
    assert_true(fabs(audio_level_dbfs(samples, RATE_HZ, RATE_HZ) + 30.0) < 0.01);
    free(samples);
}

static void test_nothing_is_silence(void **state) {
    (void)state;
    float zeros[400] = {0};
    assert_true(is_silent(NULL, 0, RATE_HZ));
    assert_true(is_silent(zeros, 0, RATE_HZ));
    assert_true(is_silent(zeros, 400, RATE_HZ));
    assert_true(audio_level_dbfs(zeros, 400, RATE_HZ) == -INFINITY);
}

/* One loud frame anywhere is enough, whatever surrounds it. */
static void test_loudest_frame_counts(void **state) {
    (void)state;
    for (int64_t at = 0; at + 400 <= RATE_HZ; at += 1600) {
        float *samples = make(RATE_HZ);
        fill_sine(samples + at, 400, -20.0, 0.0f);
        assert_true(fabs(audio_level_dbfs(samples, RATE_HZ, RATE_HZ) + 20.0) < 0.01);
        free(samples);
    }
}

/* Shorter than a frame: a frame of what is there. A single sample is its own mean, and so silent. */
static void test_short_clips(void **state) {
    (void)state;
    float samples[16], one = 0.5f;
    fill_sine(samples, 16, -20.0, 0.0f);
    assert_true(fabs(audio_level_dbfs(samples, 16, RATE_HZ) + 20.0) < 0.01);
    assert_true(is_silent(&one, 1, RATE_HZ));
    assert_false(is_silent(samples, 16, AUDIO_RATE_HZ_MAX));
    assert_false(is_silent(samples, 16, AUDIO_RATE_HZ_MIN));
}

/* The rule as audio.h says it, frame by frame. */
static double level_by_the_rule(const float *samples, int64_t count, int rate_hz) {
    int64_t frame = ((int64_t)rate_hz * 25 + 500) / 1000, hop = ((int64_t)rate_hz * 10 + 500) / 1000;
    double mean = 0, loudest = 0;
    frame = frame < 1 ? 1 : frame > count ? count : frame;
    hop = hop < 1 ? 1 : hop;
    for (int64_t i = 0; i < count; i++)
        mean += (double)samples[i] / (double)count;
    for (int64_t start = 0; start + frame <= count; start += hop) {
        double sum = 0;
        for (int64_t i = start; i < start + frame; i++)
            sum += ((double)samples[i] - mean) * ((double)samples[i] - mean);
        loudest = sum > loudest ? sum : loudest;
    }
    return 10.0 * log10(loudest / (double)frame);
}

static void test_by_the_rule(void **state) {
    (void)state;
    const int rates[] = {1, 40, 70, 149, 1000, 1050, 8000, 11025, 16000, 22050, 44100, 48000, 768000};
    uint32_t seed = 9;
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++)
        for (int k = 0; k < 60; k++) {
            int64_t count = k < 20 ? 2 + k : 2 + (int64_t)(seed >> 8) % (rates[r] / 8 + 50);
            float *samples = make(count);
            for (int64_t i = 0; i < count; i++) {
                seed = seed * 1664525u + 1013904223u;
                /* somewhere in it the noise swells, so that one frame is the loudest */
                double swell = 1.0 / (1.0 + 0.01 * fabs((double)(i - count * (k % 7) / 7)));
                samples[i] = 0.1f + (float)(swell * ((double)(seed >> 8) / (1 << 24) - 0.5));
            }
            double level = audio_level_dbfs(samples, count, rates[r]);
            if (!(fabs(level - level_by_the_rule(samples, count, rates[r])) < 1e-4))
                fail_msg("%lld samples at %d Hz: %.6f dB, not %.6f", (long long)count, rates[r], level,
                         level_by_the_rule(samples, count, rates[r]));
            assert_true(level == audio_level_dbfs(samples, count, rates[r]));
            free(samples);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sines),
        cmocka_unit_test(test_offset_is_silence),
        cmocka_unit_test(test_nothing_is_silence),
        cmocka_unit_test(test_loudest_frame_counts),
        cmocka_unit_test(test_short_clips),
        cmocka_unit_test(test_by_the_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
