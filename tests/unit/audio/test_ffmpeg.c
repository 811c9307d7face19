/* Tests of the ffmpeg child: what it decodes, how it ends, and that nothing of it is left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audio/audio.h"
#include "audio/ffmpeg.h"
#include "base/clock.h"
#include "sounds.h"

static void need_ffmpeg(void) {
    if (system("command -v ffmpeg >/dev/null 2>&1") == 0)
        return;
    print_message("SKIPPED: there is no ffmpeg program\n");
    skip();
}

static int count_descriptors(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void assert_no_children(void) {
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static int decode_with(struct audio_clip *clip, struct bytes file, const char *program, int decode_ms_max,
                       double duration_s_max, struct status *st) {
    struct audio_limits limits;
    audio_limits_init(&limits);
    limits.ffmpeg = program;
    limits.decode_ms_max = decode_ms_max;
    limits.duration_s_max = duration_s_max;
    *st = (struct status){0};
    return audio_decode(clip, file.data, file.count, &(struct audio_format){.encoding = AUDIO_FILE}, 16000,
                        &limits, st);
}

enum { PATIENCE_MS = 60000 }; /* sanitizers and busy machines take their time */

static struct audio_clip decode(struct bytes file) {
    struct audio_clip clip;
    struct status st;
    if (decode_with(&clip, file, NULL, PATIENCE_MS, 1800.0, &st) != 0)
        fail_msg("%s", st.message);
    assert_string_equal(clip.decoder, "ffmpeg");
    return clip;
}

static void refuse(struct bytes file, const char *program, int decode_ms_max, double duration_s_max,
                   enum status_code code, const char *part) {
    struct audio_clip clip;
    struct status st;
    assert_int_equal(decode_with(&clip, file, program, decode_ms_max, duration_s_max, &st), -1);
    if (st.code != code || strstr(st.message, part) == NULL)
        fail_msg("%s: %s", status_code_name(st.code), st.message);
    assert_null(clip.samples);
    assert_no_children();
}

static void check_sine(const struct audio_clip *clip, int64_t count) {
    assert_int_equal(clip->count, count);
    for (int64_t i = 0; i < count; i++)
        assert_true(fabs(clip->samples[i] - 0.5 * sin(2.0 * acos(-1.0) * 440.0 * (double)i / 16000.0)) <
                    1e-6);
}

static void test_samples_are_exact(void **state) {
    (void)state;
    need_ffmpeg();
    for (int channels = 1; channels <= 8; channels++) {
        struct bytes wav = sound_make_wav64(channels, 16000, 20011);
        struct audio_clip clip = decode(wav);
        check_sine(&clip, 20011);
        assert_int_equal(clip.source_channels, channels);
        assert_int_equal(clip.source_rate_hz, 16000);
        audio_clip_free(&clip);
        free(wav.data);
    }
}

/* 20 ms frames of AMR, as phones record; what they hold does not matter. */
static void test_amr(void **state) {
    (void)state;
    need_ffmpeg();
    enum { FRAMES = 50, FRAME_BYTES = 32 };
    unsigned char amr[6 + FRAMES * FRAME_BYTES] = "#!AMR\n";
    uint32_t seed = 1;
    for (int i = 0; i < FRAMES * FRAME_BYTES; i++)
        amr[6 + i] = i % FRAME_BYTES == 0 ? 0x3c : sound_noise_byte(&seed);
    struct audio_clip clip = decode((struct bytes){amr, sizeof amr});
    assert_int_equal(clip.count, 16000);
    assert_int_equal(clip.source_rate_hz, 8000);
    audio_clip_free(&clip);
}

static void test_refusals(void **state) {
    (void)state;
    need_ffmpeg();
    struct bytes wav = sound_make_wav64(1, 16000, 3 * 16000), nothing = sound_make_wav64(1, 16000, 0);
    unsigned char text[] = "There is no audio in here, and no header of any kind either.";
    unsigned char list[] =
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n";
    refuse(wav, NULL, PATIENCE_MS, 2.0, STATUS_RESOURCE_EXHAUSTED, "max-duration, which is 2 s");
    refuse(wav, NULL, 1, 1800.0, STATUS_DEADLINE_EXCEEDED, "decode-timeout-ms, which is 1 ms");
    refuse(nothing, NULL, PATIENCE_MS, 1800.0, STATUS_INVALID_ARGUMENT, "there is no audio in it");
    refuse((struct bytes){text, sizeof text - 1}, NULL, PATIENCE_MS, 1800.0, STATUS_INVALID_ARGUMENT,
           "libsndfile: not a file that it reads; ffmpeg: Invalid data");
    refuse((struct bytes){list, sizeof list - 1}, NULL, PATIENCE_MS, 1800.0, STATUS_INVALID_ARGUMENT,
           "not a kind of file that carries audio");
    /* no path of this machine and no address in what callers see */
    struct audio_clip clip;
    struct status st;
    decode_with(&clip, (struct bytes){text, sizeof text - 1}, NULL, PATIENCE_MS, 1800.0, &st);
    assert_null(strchr(st.message, '/'));
    assert_null(strstr(st.message, "0x"));
    free(wav.data);
    free(nothing.data);
}

/* A program of that content in a folder of its own; `path` takes 64 bytes. */
static void make_program(char *path, const char *content) {
    strcpy(path, "/tmp/timbre-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, strlen(content)), (ssize_t)strlen(content));
    assert_int_equal(fchmod(fd, 0755), 0);
    close(fd);
}

static void test_other_programs(void **state) {
    (void)state;
    struct bytes wav = sound_make_wav64(1, 16000, 1000);
    const enum status_code invalid = STATUS_INVALID_ARGUMENT, missing = STATUS_FAILED_PRECONDITION;
    refuse(wav, "", PATIENCE_MS, 1800.0, missing, "switched off");
    refuse(wav, "/nowhere/ffmpeg", PATIENCE_MS, 1800.0, missing, "install ffmpeg");
    refuse(wav, "there-is-no-such-ffmpeg", PATIENCE_MS, 1800.0, missing, "install ffmpeg");
    refuse(wav, "/", PATIENCE_MS, 1800.0, missing, "cannot be started");
    char path[64];
    make_program(path, "neither a script nor a program");
    refuse(wav, path, PATIENCE_MS, 1800.0, missing, "cannot be started");
    unlink(path);
    refuse(wav, "/bin/false", PATIENCE_MS, 1800.0, invalid, "failed without a word");
    refuse(wav, "/bin/true", PATIENCE_MS, 1800.0, invalid, "no samples");
    refuse(wav, "/bin/echo", PATIENCE_MS, 1800.0, invalid, "did not answer with audio");
    free(wav.data);
}

/* What libsndfile reads is read; for the rest it is only said that ffmpeg is needed, and nothing is started.
 */
static void test_decode_here(void **state) {
    (void)state;
    const struct audio_format file = {.encoding = AUDIO_FILE};
    struct bytes wav = sound_make_wav(WAV_PCM, 16, 1, 16000, 1000), wav64 = sound_make_wav64(1, 16000, 1000);
    struct audio_limits limits;
    struct audio_clip clip;
    struct status st = {0};
    bool needs = true;
    audio_limits_init(&limits);
    limits.ffmpeg = "/nowhere/ffmpeg";
    assert_int_equal(audio_decode_here(&clip, wav.data, wav.count, &file, 16000, &limits, &needs, &st), 0);
    assert_false(needs);
    assert_int_equal(clip.count, 1000);
    audio_clip_free(&clip);
    assert_int_equal(audio_decode_here(&clip, wav64.data, wav64.count, &file, 16000, &limits, &needs, &st),
                     0);
    assert_true(needs);
    assert_null(clip.samples);
    /* part of it is readable, and ffmpeg may know more */
    put_u32(wav.data + 40, 100000);
    wav.data[20] = WAV_FLOAT; /* 16-bit floats: there are none */
    assert_int_equal(audio_decode_here(&clip, wav.data, wav.count, &file, 16000, &limits, &needs, &st), 0);
    assert_true(needs);
    /* never to be asked: the same as audio_decode */
    limits.ffmpeg = "";
    assert_int_equal(audio_decode_here(&clip, wav64.data, wav64.count, &file, 16000, &limits, &needs, &st),
                     -1);
    assert_false(needs);
    assert_non_null(strstr(st.message, "switched off"));
    free(wav.data);
    free(wav64.data);
}

static void test_nothing_is_left(void **state) {
    (void)state;
    need_ffmpeg();
    struct bytes wav = sound_make_wav64(2, 44100, 44100);
    struct audio_clip clip = decode(wav);
    audio_clip_free(&clip);
    int before = count_descriptors();
    for (int i = 0; i < 5; i++) {
        clip = decode(wav);
        assert_int_equal(clip.count, 16000);
        audio_clip_free(&clip);
        refuse(wav, NULL, 1, 1800.0, STATUS_DEADLINE_EXCEEDED, "decode-timeout-ms");
        refuse(wav, NULL, PATIENCE_MS, 0.01, STATUS_RESOURCE_EXHAUSTED, "max-duration");
        refuse(wav, "/nowhere", PATIENCE_MS, 1800.0, STATUS_FAILED_PRECONDITION, "install");
        refuse(wav, "/bin/echo", PATIENCE_MS, 1800.0, STATUS_INVALID_ARGUMENT, "did not answer");
        refuse(wav, "/", PATIENCE_MS, 1800.0, STATUS_FAILED_PRECONDITION, "cannot be started");
    }
    assert_int_equal(count_descriptors(), before);
    assert_no_children();
    free(wav.data);
}

/* A server may have closed its standard descriptors, ignore its children, or wait for all of them by itself.
 */
static void test_odd_hosts(void **state) {
    (void)state;
    need_ffmpeg();
    struct bytes wav = sound_make_wav64(1, 16000, 1000);
    int in = fcntl(0, F_DUPFD_CLOEXEC, 50);
    close(0);
    struct audio_clip clip = decode(wav);
    if (in >= 0) {
        dup2(in, 0);
        close(in);
    }
    check_sine(&clip, 1000);
    audio_clip_free(&clip);

    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    sigaction(SIGCHLD, &ignore, &before);
    clip = decode(wav);
    sigaction(SIGCHLD, &before, NULL);
    check_sine(&clip, 1000);
    audio_clip_free(&clip);

    sigset_t all, mask;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    clip = decode(wav);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    check_sine(&clip, 1000);
    audio_clip_free(&clip);
    free(wav.data);
}

static struct bytes shared_wav;

static void *run_decodes(void *arg) {
    for (int i = 0; i < 4; i++) {
        struct audio_clip clip = decode(shared_wav);
        check_sine(&clip, 30000);
        audio_clip_free(&clip);
        struct status st;
        decode_with(&clip, shared_wav, NULL, 1, 1800.0, &st);
    }
    return arg;
}

static void test_threads(void **state) {
    (void)state;
    need_ffmpeg();
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    shared_wav = sound_make_wav64(1, 16000, 30000);
    int before = count_descriptors();
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_decodes, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(count_descriptors(), before);
    assert_no_children();
    free(shared_wav.data);
}

static void test_describe(void **state) {
    (void)state;
    char text[128], little[8];
    int before = count_descriptors();
    assert_ptr_equal(ffmpeg_describe_confinement(text, sizeof text), text);
    print_message("confinement: %s\n", text);
    assert_non_null(strstr(text, "rlimits, no-new-privs"));
    assert_string_equal(ffmpeg_describe_confinement(little, sizeof little), "rlimits");
    assert_int_equal(count_descriptors(), before);
    assert_no_children();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples_are_exact), cmocka_unit_test(test_amr),
        cmocka_unit_test(test_refusals),          cmocka_unit_test(test_other_programs),
        cmocka_unit_test(test_decode_here),       cmocka_unit_test(test_nothing_is_left),
        cmocka_unit_test(test_odd_hosts),         cmocka_unit_test(test_threads),
        cmocka_unit_test(test_describe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
