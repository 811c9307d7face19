/* Tests of files through audio_decode without ffmpeg: what libsndfile reads, headers that lie, limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "audio/audio.h"
#include "sounds.h"

static const struct audio_format a_file = {.encoding = AUDIO_FILE};

static int decode_limited(struct audio_clip *clip, struct bytes file, double duration_s_max,
                          struct status *st) {
    struct audio_limits limits;
    audio_limits_init(&limits);
    limits.ffmpeg = "";
    limits.duration_s_max = duration_s_max;
    *st = (struct status){0};
    return audio_decode(clip, file.data, file.count, &a_file, 16000, &limits, st);
}

static struct audio_clip decode(struct bytes file) {
    struct audio_clip clip;
    struct status st;
    if (decode_limited(&clip, file, AUDIO_DURATION_S_MAX_DEFAULT, &st) != 0)
        fail_msg("%s", st.message);
    assert_string_equal(clip.decoder, "libsndfile");
    return clip;
}

static void refuse(struct bytes file, enum status_code code, const char *part) {
    struct audio_clip clip;
    struct status st;
    assert_int_equal(decode_limited(&clip, file, AUDIO_DURATION_S_MAX_DEFAULT, &st), -1);
    if (st.code != code || strstr(st.message, part) == NULL)
        fail_msg("%s: %s", status_code_name(st.code), st.message);
    assert_null(clip.samples);
}

static void test_defaults(void **state) {
    (void)state;
    struct audio_limits limits;
    audio_limits_init(&limits);
    assert_int_equal(limits.bytes_max, AUDIO_BYTES_MAX_DEFAULT);
    assert_true(limits.duration_s_max == AUDIO_DURATION_S_MAX_DEFAULT);
    assert_int_equal(limits.decode_ms_max, AUDIO_DECODE_MS_MAX_DEFAULT);
    assert_null(limits.ffmpeg);
}

static void test_pcm16(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 2, 16000, 5000);
    for (unsigned i = 0; i < 5000; i++) {
        put_u16(wav.data + WAV_HEADER_BYTES + 4 * i, i);
        put_u16(wav.data + WAV_HEADER_BYTES + 4 * i + 2, 3 * i);
    }
    struct audio_clip clip = decode(wav);
    assert_int_equal(clip.count, 5000);
    assert_int_equal(clip.source_rate_hz, 16000);
    assert_int_equal(clip.source_channels, 2);
    assert_true(clip.source_duration_s == 5000.0 / 16000.0);
    for (int i = 0; i < 5000; i++)
        assert_true(clip.samples[i] == (float)(2 * i) / 32768.0f);
    audio_clip_free(&clip);
    free(wav.data);
}

/* Samples louder than full scale stay as they are. */
static void test_float(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_FLOAT, 32, 1, 16000, 1000);
    const float values[] = {1.5f, -20.0f, 0.001f};
    for (int i = 0; i < 1000; i++)
        memcpy(wav.data + WAV_HEADER_BYTES + 4 * i, &values[i % 3], 4);
    struct audio_clip clip = decode(wav);
    assert_int_equal(clip.count, 1000);
    for (int i = 0; i < 1000; i++)
        assert_true(clip.samples[i] == values[i % 3]);
    audio_clip_free(&clip);

    const float wrong = NAN;
    memcpy(wav.data + WAV_HEADER_BYTES + 4 * 777, &wrong, 4);
    refuse(wav, STATUS_INVALID_ARGUMENT, "position 777 (0.048563 s) of channel 0");
    free(wav.data);
}

static void test_rates_and_channels(void **state) {
    (void)state;
    const int rates[] = {1000, 8000, 11025, 44100, 192000, 768000};
    for (int k = 0; k < 6; k++)
        for (int channels = 1; channels <= 64; channels *= 4) {
            struct bytes wav = sound_make_wav(WAV_PCM, 8, channels, rates[k], (size_t)rates[k] / 2);
            struct audio_clip clip = decode(wav);
            assert_true(llabs(clip.count - 8000) <= 1);
            assert_int_equal(clip.source_channels, channels);
            assert_true(clip.source_duration_s == (double)(rates[k] / 2) / rates[k]);
            audio_clip_free(&clip);
            free(wav.data);
        }
    struct bytes wav = sound_make_wav(WAV_PCM, 8, 1, 999, 100);
    refuse(wav, STATUS_INVALID_ARGUMENT, "999 Hz");
    put_u32(wav.data + 24, 768001);
    refuse(wav, STATUS_INVALID_ARGUMENT, "768001 Hz");
    free(wav.data);
    wav = sound_make_wav(WAV_PCM, 8, 65, 8000, 100);
    refuse(wav, STATUS_INVALID_ARGUMENT, "65 channels");
    free(wav.data);
}

/* Sizes that claim more than there is, as of files cut short and of headers written before the end was known.
 */
static void test_lying_sizes(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 16000, 2000);
    const uint32_t claims[] = {0xffffffff, 0x7fffffff, 100000, 4001};
    for (int k = 0; k < 4; k++) {
        put_u32(wav.data + 4, claims[k]);
        put_u32(wav.data + 40, claims[k]);
        struct audio_clip clip = decode(wav);
        assert_int_equal(clip.count, 2000);
        audio_clip_free(&clip);
    }
    free(wav.data);
}

static void test_cut_anywhere(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 16000, 100);
    for (size_t count = 0; count < wav.count; count++) {
        /* a copy of that size, so that reading behind it shows */
        struct bytes cut = {malloc(count > 0 ? count : 1), count};
        memcpy(cut.data, wav.data, count);
        struct audio_clip clip;
        struct status st;
        if (decode_limited(&clip, cut, 1800.0, &st) == 0) {
            assert_true(count > WAV_HEADER_BYTES);
            assert_int_equal(clip.count, (count - WAV_HEADER_BYTES) / 2);
        } else {
            assert_true(count <= WAV_HEADER_BYTES + 1);
        }
        audio_clip_free(&clip);
        free(cut.data);
    }
    free(wav.data);
}

static void test_limits(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 8000, 16001);
    struct audio_clip clip;
    struct status st;
    assert_int_equal(decode_limited(&clip, wav, 2.0, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "max-duration, which is 2 s"));
    assert_int_equal(decode_limited(&clip, wav, 2.001, &st), 0);
    audio_clip_free(&clip);
    free(wav.data);
}

static void test_not_audio(void **state) {
    (void)state;
    unsigned char text[] = "Dear reader, this is no audio at all.",
                  mp4[64] = {0, 0, 0, 24, 'f', 't', 'y', 'p', 'M'};
    refuse((struct bytes){text, 0}, STATUS_INVALID_ARGUMENT, "0 bytes");
    refuse((struct bytes){text, 1}, STATUS_INVALID_ARGUMENT, "cannot be decoded");
    refuse((struct bytes){text, sizeof text - 1}, STATUS_INVALID_ARGUMENT, "cannot be decoded");
    /* what a server with ffmpeg may well read is not the caller's fault */
    refuse((struct bytes){mp4, sizeof mp4}, STATUS_FAILED_PRECONDITION,
           "this is an MP4 or M4A file, which needs ffmpeg");
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 16000, 0);
    refuse(wav, STATUS_INVALID_ARGUMENT, "there is no audio in it");
    free(wav.data);
    unsigned char noise[5000];
    uint32_t seed = 5;
    for (int k = 0; k < 50; k++) {
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = sound_noise_byte(&seed);
        refuse((struct bytes){noise, sizeof noise}, STATUS_INVALID_ARGUMENT, "cannot be decoded");
    }
}

/* A target rate that no model has is the caller's mistake, and told. */
static void test_wrong_target(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 16000, 10);
    struct audio_limits limits;
    audio_limits_init(&limits);
    struct audio_clip clip;
    struct status st = {0};
    assert_int_equal(audio_decode(&clip, wav.data, wav.count, &a_file, 0, &limits, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(audio_decode(&clip, wav.data, wav.count, &a_file, 0, &limits, NULL), -1);
    free(wav.data);
}

static struct bytes shared_wav;

static void *run_decodes(void *arg) {
    int64_t *count = arg;
    unsigned char text[] = "nothing";
    for (int i = 0; i < 20; i++) {
        struct audio_clip clip = decode(shared_wav);
        *count += clip.count;
        audio_clip_free(&clip);
        refuse((struct bytes){text, sizeof text}, STATUS_INVALID_ARGUMENT, "not a file that it reads");
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    enum { THREADS = 6 };
    pthread_t threads[THREADS];
    int64_t counts[THREADS] = {0};
    shared_wav = sound_make_wav(WAV_PCM, 16, 2, 44100, 44100);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_decodes, &counts[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(counts[i], 20 * 16000);
    }
    free(shared_wav.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),     cmocka_unit_test(test_pcm16),
        cmocka_unit_test(test_float),        cmocka_unit_test(test_rates_and_channels),
        cmocka_unit_test(test_lying_sizes),  cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_limits),       cmocka_unit_test(test_not_audio),
        cmocka_unit_test(test_wrong_target), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
