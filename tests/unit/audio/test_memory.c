/* Every allocation of a decoding fails once: the call says so, and nothing leaks or breaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "audio/audio.h"
#include "sounds.h"

static int calls_left = -1; /* until one fails; negative: none does */

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);

static int call_fails(void) {
    return calls_left >= 0 && calls_left-- == 0;
}

void *__wrap_malloc(size_t bytes) {
    return call_fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes) {
    return call_fails() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *p, size_t bytes) {
    return call_fails() ? NULL : __real_realloc(p, bytes);
}

static void check_each(struct bytes input, struct audio_format format) {
    struct audio_limits limits;
    audio_limits_init(&limits);
    int failed = 0;
    for (int n = 0;; n++) {
        struct audio_clip clip;
        struct status st = {0};
        assert_true(n < 1000);
        calls_left = n;
        int result = audio_decode(&clip, input.data, input.count, &format, 16000, &limits, &st);
        int all_done = calls_left >= 0;
        calls_left = -1;
        if (result == 0) {
            audio_clip_free(&clip);
        } else {
            assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
            assert_null(clip.samples);
            failed++;
        }
        if (all_done) {
            assert_int_equal(result, 0);
            break;
        }
    }
    assert_true(failed > 0);
}

static void test_file(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 2, 44100, 20000);
    check_each(wav, (struct audio_format){.encoding = AUDIO_FILE});
    free(wav.data);
}

static void test_raw(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 2, 8000, 20000);
    check_each(wav, (struct audio_format){AUDIO_MULAW, 8000, 1});
    free(wav.data);
}

static void test_ffmpeg(void **state) {
    (void)state;
    if (system("command -v ffmpeg >/dev/null 2>&1") != 0) {
        print_message("SKIPPED: there is no ffmpeg program\n");
        skip();
    }
    struct bytes wav = sound_make_wav64(1, 44100, 2000);
    check_each(wav, (struct audio_format){.encoding = AUDIO_FILE});
    free(wav.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_ffmpeg),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
