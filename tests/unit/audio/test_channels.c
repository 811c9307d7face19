/* Tests of audio_read_channels: the samples of a file are exactly those that come out, channel by channel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/channels.h"
#include "sounds.h"

enum { FRAMES = 1000, MULAW = 7, ALAW = 6 };

static struct audio_limits limits_without_ffmpeg(void) {
    struct audio_limits limits;
    audio_limits_init(&limits);
    limits.ffmpeg = "";
    return limits;
}

static struct audio_channels read_file(const struct bytes *file) {
    const struct audio_limits limits = limits_without_ffmpeg();
    struct audio_channels c;
    struct status st = {0};
    if (audio_read_channels(&c, file->data, file->count, &limits, &st))
        fail_msg("%s", st.message);
    return c;
}

/* A WAV file whose samples are random bytes, which must come out as they are. */
static void check_bytes(int tag, int bits, int channels, int rate_hz, enum audio_encoding encoding) {
    struct bytes file = sound_make_wav(tag, bits, channels, rate_hz, FRAMES);
    unsigned char *samples = file.data + WAV_HEADER_BYTES;
    const size_t bytes = file.count - WAV_HEADER_BYTES;
    uint32_t seed = (uint32_t)(bits + channels);
    for (size_t i = 0; i < bytes; i++)
        samples[i] = sound_noise_byte(&seed);
    if (bits == 32) /* floats of ordinary size */
        for (size_t i = 0; i < bytes; i += 4)
            put_u32(samples + i, 0x3e000000u | ((uint32_t)samples[i] << 12));
    struct audio_channels c = read_file(&file);
    assert_int_equal(c.format.encoding, encoding);
    assert_int_equal(c.format.channels, channels);
    assert_int_equal(c.format.rate_hz, rate_hz);
    assert_int_equal(c.frames, FRAMES);
    assert_int_equal(c.bytes, bytes);
    assert_memory_equal(c.data, samples, bytes);
    free(c.data);
    free(file.data);
}

static void test_samples_are_the_files_own(void **state) {
    (void)state;
    for (int channels = 1; channels <= 8; channels++) {
        check_bytes(WAV_PCM, 16, channels, 8000, AUDIO_PCM16);
        check_bytes(WAV_FLOAT, 32, channels, 44100, AUDIO_FLOAT32);
        check_bytes(MULAW, 8, channels, 8000, AUDIO_MULAW);
        check_bytes(ALAW, 8, channels, 16000, AUDIO_ALAW);
    }
}

/* More than one piece of the decoder. */
static void test_long(void **state) {
    (void)state;
    struct bytes file = sound_make_wav(WAV_PCM, 16, 3, 48000, 100000);
    uint32_t seed = 5;
    for (size_t i = WAV_HEADER_BYTES; i < file.count; i++)
        file.data[i] = sound_noise_byte(&seed);
    struct audio_channels c = read_file(&file);
    assert_int_equal(c.frames, 100000);
    assert_int_equal(c.bytes, file.count - WAV_HEADER_BYTES);
    assert_memory_equal(c.data, file.data + WAV_HEADER_BYTES, c.bytes);
    free(c.data);
    free(file.data);
}

/* Eight bits are PCM16 too, and 24 bits are floats, both without a loss. */
static void test_other_widths(void **state) {
    (void)state;
    struct bytes eight = sound_make_wav(WAV_PCM, 8, 2, 8000, FRAMES);
    struct bytes more = sound_make_wav(WAV_PCM, 24, 1, 8000, FRAMES);
    uint32_t seed = 3;
    for (size_t i = WAV_HEADER_BYTES; i < eight.count; i++)
        eight.data[i] = sound_noise_byte(&seed);
    for (size_t i = WAV_HEADER_BYTES; i < more.count; i++)
        more.data[i] = sound_noise_byte(&seed);
    struct audio_channels c = read_file(&eight);
    assert_int_equal(c.format.encoding, AUDIO_PCM16);
    assert_int_equal(c.frames, FRAMES);
    for (size_t i = 0; i < 2 * FRAMES; i++) {
        const unsigned char *p = (unsigned char *)c.data + 2 * i;
        const int value = (int16_t)(uint16_t)(p[0] | p[1] << 8);
        assert_int_equal(value, (eight.data[WAV_HEADER_BYTES + i] - 128) * 256);
    }
    free(c.data);
    c = read_file(&more);
    assert_int_equal(c.format.encoding, AUDIO_FLOAT32);
    for (size_t i = 0; i < FRAMES; i++) {
        const unsigned char *p = more.data + WAV_HEADER_BYTES + 3 * i;
        int32_t value = p[0] | p[1] << 8 | p[2] << 16;
        value -= value & 0x800000 ? 0x1000000 : 0;
        float got;
        memcpy(&got, (char *)c.data + 4 * i, sizeof got);
        assert_true(got == (float)value / 8388608.0f);
    }
    free(c.data);
    free(eight.data);
    free(more.data);
}

/* Cut off in the middle: what is there is read, of several channels too. */
static void test_cut_short(void **state) {
    (void)state;
    struct bytes file = sound_make_wav(WAV_PCM, 16, 2, 8000, FRAMES);
    memset(file.data + WAV_HEADER_BYTES, 0x12, file.count - WAV_HEADER_BYTES);
    file.count -= 4 * FRAMES / 2;
    struct audio_channels c = read_file(&file);
    assert_int_equal(c.format.channels, 2);
    assert_int_equal(c.frames, FRAMES / 2);
    assert_memory_equal(c.data, file.data + WAV_HEADER_BYTES, c.bytes);
    free(c.data);
    free(file.data);
}

static void refuse(const void *data, size_t bytes, const struct audio_limits *limits, enum status_code code,
                   const char *part) {
    struct audio_channels c;
    struct status st = {0};
    assert_int_equal(audio_read_channels(&c, data, bytes, limits, &st), -1);
    if (st.code != code || !strstr(st.message, part))
        fail_msg("%s: %s", status_code_name(st.code), st.message);
    assert_null(c.data);
    assert_int_equal(c.bytes, 0);
}

static void test_refused(void **state) {
    (void)state;
    struct audio_limits limits = limits_without_ffmpeg();
    struct bytes file = sound_make_wav(WAV_PCM, 16, 2, 8000, FRAMES);
    refuse("", 0, &limits, STATUS_INVALID_ARGUMENT, "0 bytes");
    refuse("not a sound", 11, &limits, STATUS_INVALID_ARGUMENT, "cannot be decoded");
    limits.bytes_max = 100;
    refuse(file.data, file.count, &limits, STATUS_RESOURCE_EXHAUSTED, "max-file-bytes is 100");
    limits.bytes_max = file.count;
    limits.duration_s_max = 0.1;
    refuse(file.data, file.count, &limits, STATUS_RESOURCE_EXHAUSTED, "max-duration");
    free(file.data);
    file = sound_make_wav(WAV_PCM, 16, 1, 100, 10);
    refuse(file.data, file.count, &limits, STATUS_INVALID_ARGUMENT, "100 Hz");
    free(file.data);
}

/* What libsndfile does not read: one channel comes through ffmpeg at its own rate, two are refused. */
static void test_through_ffmpeg(void **state) {
    (void)state;
    struct audio_limits limits;
    struct audio_channels c;
    struct status st = {0};
    audio_limits_init(&limits);
    limits.ffmpeg = getenv("FFMPEG_BIN");
    for (int rate_hz = 16000; rate_hz <= 44100; rate_hz += 28100) {
        struct bytes mono = sound_make_wav64(1, rate_hz, FRAMES);
        if (audio_read_channels(&c, mono.data, mono.count, &limits, &st)) {
            assert_non_null(strstr(st.message, "ffmpeg"));
            free(mono.data);
            skip();
        }
        assert_int_equal(c.format.encoding, AUDIO_FLOAT32);
        assert_int_equal(c.format.rate_hz, rate_hz);
        assert_int_equal(c.format.channels, 1);
        assert_int_equal(c.frames, FRAMES);
        for (int i = 0; i < FRAMES; i++) {
            float got;
            memcpy(&got, (char *)c.data + 4 * i, sizeof got);
            assert_true(fabs((double)got - 0.5 * sin(2 * M_PI * 440 * i / rate_hz)) < 1e-4);
        }
        free(c.data);
        free(mono.data);
    }
    struct bytes stereo = sound_make_wav64(2, 8000, FRAMES);
    refuse(stereo.data, stereo.count, &limits, STATUS_INVALID_ARGUMENT, "2 channels");
    free(stereo.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples_are_the_files_own),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_other_widths),
        cmocka_unit_test(test_cut_short),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_through_ffmpeg),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
