/* Tests of raw samples through audio_decode, and of the limits that hold for every input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/audio.h"
#include "audio/g711.h"
#include "sounds.h"

static struct audio_limits limits_default(void) {
    struct audio_limits limits;
    audio_limits_init(&limits);
    limits.ffmpeg = "";
    return limits;
}

static struct audio_clip decode(const void *data, size_t bytes, enum audio_encoding encoding, int channels,
                                int rate_hz) {
    struct audio_limits limits = limits_default();
    struct audio_format format = {encoding, rate_hz, channels};
    struct audio_clip clip;
    struct status st = {0};
    if (audio_decode(&clip, data, bytes, &format, 16000, &limits, &st) != 0)
        fail_msg("%s", st.message);
    assert_string_equal(clip.decoder, "raw");
    assert_int_equal(clip.rate_hz, 16000);
    assert_int_equal(clip.source_rate_hz, rate_hz);
    assert_int_equal(clip.source_channels, channels);
    return clip;
}

static void refuse_limited(const void *data, size_t bytes, struct audio_format format,
                           struct audio_limits limits, enum status_code code, const char *part) {
    struct audio_clip clip;
    struct status st = {0};
    assert_int_equal(audio_decode(&clip, data, bytes, &format, 16000, &limits, &st), -1);
    if (st.code != code || strstr(st.message, part) == NULL)
        fail_msg("%s: %s", status_code_name(st.code), st.message);
    assert_null(clip.samples);
    assert_int_equal(clip.count, 0);
    audio_clip_free(&clip);
}

static void refuse(const void *data, size_t bytes, struct audio_format format, const char *part) {
    refuse_limited(data, bytes, format, limits_default(), STATUS_INVALID_ARGUMENT, part);
}

static void test_pcm16(void **state) {
    (void)state;
    /* one byte off, as a buffer from a network may be */
    const unsigned char data[] = {99, 0x00, 0x80, 0xff, 0x7f, 0x00, 0x00, 0x01, 0x00};
    const float want[] = {-1.0f, 32767.0f / 32768.0f, 0.0f, 1.0f / 32768.0f};
    struct audio_clip clip = decode(data + 1, 8, AUDIO_PCM16, 1, 16000);
    assert_int_equal(clip.count, 4);
    assert_memory_equal(clip.samples, want, sizeof want);
    assert_true(clip.source_duration_s == 4.0 / 16000.0);
    audio_clip_free(&clip);
    clip = decode(data + 1, 8, AUDIO_PCM16, 2, 16000);
    assert_int_equal(clip.count, 2);
    assert_true(clip.samples[0] == (want[0] + want[1]) / 2.0f);
    assert_true(clip.samples[1] == (want[2] + want[3]) / 2.0f);
    audio_clip_free(&clip);
    audio_clip_free(&clip); /* twice is fine */
}

static void test_float32(void **state) {
    (void)state;
    const float values[] = {0.5f, -3.25f, 100.0f, 1e-30f, 0.1f, 0.2f};
    struct audio_clip clip = decode(values, sizeof values, AUDIO_FLOAT32, 1, 16000);
    assert_int_equal(clip.count, 6);
    assert_memory_equal(clip.samples, values, sizeof values); /* louder than full scale is kept */
    audio_clip_free(&clip);
    clip = decode(values, sizeof values, AUDIO_FLOAT32, 3, 16000);
    assert_int_equal(clip.count, 2);
    assert_true(clip.samples[0] == (0.5f - 3.25f + 100.0f) / 3.0f);
    audio_clip_free(&clip);
}

static void test_g711(void **state) {
    (void)state;
    unsigned char codes[256];
    for (int i = 0; i < 256; i++)
        codes[i] = (unsigned char)i;
    struct audio_clip clip = decode(codes, 256, AUDIO_MULAW, 1, 16000);
    for (int i = 0; i < 256; i++)
        assert_true(clip.samples[i] * 32768.0f == (float)g711_decode_mulaw((uint8_t)i));
    audio_clip_free(&clip);
    clip = decode(codes, 256, AUDIO_ALAW, 1, 16000);
    for (int i = 0; i < 256; i++)
        assert_true(clip.samples[i] * 32768.0f == (float)g711_decode_alaw((uint8_t)i));
    audio_clip_free(&clip);
    clip = decode(codes, 256, AUDIO_MULAW, 2, 8000);
    assert_int_equal(clip.count, 256);
    audio_clip_free(&clip);
}

/* More frames than one piece, over every number of channels: each channel c of frame i holds i + c. */
static void test_many_frames(void **state) {
    (void)state;
    for (int channels = 1; channels <= AUDIO_CHANNELS_MAX; channels += 7) {
        size_t frames = 10001;
        float *values = malloc(frames * (size_t)channels * sizeof *values);
        assert_non_null(values);
        for (size_t i = 0; i < frames * (size_t)channels; i++)
            values[i] = (float)(i / (size_t)channels + i % (size_t)channels);
        struct audio_clip clip =
            decode(values, frames * (size_t)channels * sizeof *values, AUDIO_FLOAT32, channels, 16000);
        assert_int_equal(clip.count, frames);
        for (size_t i = 0; i < frames; i++)
            assert_true(fabsf(clip.samples[i] - ((float)i + (float)(channels - 1) / 2.0f)) < 0.01f);
        audio_clip_free(&clip);
        free(values);
    }
}

static void test_refusals(void **state) {
    (void)state;
    const unsigned char zeros[64] = {0};
    refuse(zeros, 7, (struct audio_format){AUDIO_PCM16, 8000, 1}, "at byte 6");
    refuse(zeros, 6, (struct audio_format){AUDIO_PCM16, 8000, 2}, "at byte 4, has only 2");
    refuse(zeros, 15, (struct audio_format){AUDIO_FLOAT32, 8000, 1}, "at byte 12");
    refuse(zeros, 3, (struct audio_format){AUDIO_ALAW, 8000, 2}, "at byte 2");
    refuse(zeros, 0, (struct audio_format){AUDIO_ALAW, 8000, 1}, "no audio");
    refuse(NULL, 0, (struct audio_format){AUDIO_ALAW, 8000, 1}, "no audio");
    refuse(zeros, 64, (struct audio_format){AUDIO_PCM16, 999, 1}, "1000 to 768000");
    refuse(zeros, 64, (struct audio_format){AUDIO_PCM16, 768001, 1}, "1000 to 768000");
    refuse(zeros, 64, (struct audio_format){AUDIO_PCM16, 8000, 0}, "channels");
    refuse(zeros, 64, (struct audio_format){AUDIO_PCM16, 8000, -1}, "channels");
    refuse(zeros, 64, (struct audio_format){AUDIO_PCM16, 8000, 65}, "channels");
    refuse(zeros, 64, (struct audio_format){(enum audio_encoding)77, 8000, 1}, "77");
}

static void test_not_finite(void **state) {
    (void)state;
    float values[3000] = {0};
    struct audio_format mono = {AUDIO_FLOAT32, 16000, 1}, stereo = {AUDIO_FLOAT32, 44100, 2};
    values[2999] = NAN;
    refuse(values, sizeof values, mono, "position 2999");
    refuse(values, sizeof values, stereo, "position 1499");
    refuse(values, sizeof values, stereo, "channel 1");
    values[2000] = -INFINITY;
    refuse(values, sizeof values, mono, "position 2000");
    values[2001] = INFINITY; /* the two of one frame: their average is no number either */
    refuse(values, sizeof values, stereo, "position 1000");
    /* finite numbers whose sum, or whose resampling, is not */
    for (int i = 0; i < 3000; i++)
        values[i] = i % 8 < 4 ? 3.4e38f : -3.4e38f;
    refuse(values, sizeof values, stereo, "too large");
    refuse(values, sizeof values, (struct audio_format){AUDIO_FLOAT32, 44100, 1}, "too large");
}

static void test_limits(void **state) {
    (void)state;
    enum { BYTES = 16000 };
    unsigned char *data = calloc(1, BYTES);
    struct audio_limits limits = limits_default();
    struct audio_format format = {AUDIO_MULAW, 8000, 1};
    limits.bytes_max = BYTES - 1;
    refuse_limited(data, BYTES, format, limits, STATUS_RESOURCE_EXHAUSTED, "max-file-bytes is 15999");
    limits.bytes_max = BYTES;
    limits.duration_s_max = 1.999;
    refuse_limited(data, BYTES, format, limits, STATUS_RESOURCE_EXHAUSTED, "max-duration, which is 1.999 s");
    limits.duration_s_max = 2.0;
    struct audio_clip clip;
    struct status st;
    assert_int_equal(audio_decode(&clip, data, BYTES, &format, 16000, &limits, &st), 0);
    assert_int_equal(clip.count, 32000);
    audio_clip_free(&clip);
    limits.duration_s_max = 1e300; /* no limit in effect, and no overflow */
    assert_int_equal(audio_decode(&clip, data, BYTES, &format, 16000, &limits, &st), 0);
    audio_clip_free(&clip);
    free(data);
}

/* A short limit on duration does not let through millions of frames of 64 channels. */
static void test_work_limit(void **state) {
    (void)state;
    size_t bytes = (size_t)80 << 20;
    unsigned char *data = calloc(1, bytes);
    assert_non_null(data);
    struct audio_limits limits = limits_default();
    limits.duration_s_max = 10.0;
    refuse_limited(data, bytes, (struct audio_format){AUDIO_MULAW, 768000, 64}, limits,
                   STATUS_RESOURCE_EXHAUSTED, "limit on work");
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pcm16),    cmocka_unit_test(test_float32),
        cmocka_unit_test(test_g711),     cmocka_unit_test(test_many_frames),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_limits),   cmocka_unit_test(test_work_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
