/* Tests of audio/pcm: raw samples cut anywhere, a channel at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/audio.h"
#include "audio/pcm.h"
#include "sounds.h"

static const struct {
    enum audio_encoding encoding;
    size_t bytes;
} encodings[] = {{AUDIO_PCM16, 2}, {AUDIO_FLOAT32, 4}, {AUDIO_MULAW, 1}, {AUDIO_ALAW, 1}};
enum { ENCODINGS = 4 };

/* Any bytes; floats are finite. */
static unsigned char *make_bytes(enum audio_encoding encoding, size_t bytes, uint32_t seed) {
    unsigned char *p = malloc(bytes);
    assert_non_null(p);
    for (size_t i = 0; i < bytes; i++)
        p[i] = sound_noise_byte(&seed);
    for (size_t i = 3; encoding == AUDIO_FLOAT32 && i < bytes; i += 4)
        p[i] &= 0xbf;
    return p;
}

/* Channel c of what audio_decode makes of it alone. */
static struct audio_clip decode_channel(const unsigned char *p, size_t frames, int channels, int c, int k,
                                        int rate_hz) {
    size_t value = encodings[k].bytes, frame = value * (size_t)channels;
    unsigned char *alone = malloc(frames * value);
    assert_non_null(alone);
    for (size_t i = 0; i < frames; i++)
        memcpy(alone + i * value, p + i * frame + (size_t)c * value, value);
    struct audio_limits limits;
    audio_limits_init(&limits);
    struct audio_format format = {encodings[k].encoding, rate_hz, 1};
    struct audio_clip clip;
    struct status st;
    assert_int_equal(audio_decode(&clip, alone, frames * value, &format, rate_hz, &limits, &st), 0);
    assert_int_equal(clip.count, frames);
    free(alone);
    return clip;
}

/* Reads all of it in pieces of up to `piece_max` bytes, random ones with a seed. Each piece lies in a block
 * of its own, and so does the output, so that a sanitizer sees what is touched beyond them. */
static void read_all(struct pcm_reader *r, const unsigned char *p, size_t bytes, size_t piece_max,
                     uint32_t *seed, float *const out[]) {
    struct status st;
    size_t done = 0, made = 0;
    while (done < bytes) {
        size_t piece = seed != NULL ? sound_noise_byte(seed) * piece_max / 255 : piece_max;
        piece = piece < bytes - done ? piece : bytes - done;
        size_t want = pcm_count_frames(r, piece), frames = 99;
        unsigned char *block = malloc(piece > 0 ? piece : 1);
        assert_non_null(block);
        memcpy(block, p + done, piece);
        float *parts[PCM_CHANNELS_MAX] = {0};
        for (int c = 0; c < r->format.channels; c++)
            if (out[c] != NULL) {
                parts[c] = malloc(want > 0 ? want * sizeof(float) : 1);
                assert_non_null(parts[c]);
            }
        assert_int_equal(pcm_read(r, piece > 0 ? block : NULL, piece, parts, &frames, &st), 0);
        assert_int_equal(frames, want);
        for (int c = 0; c < r->format.channels; c++)
            if (out[c] != NULL) {
                memcpy(out[c] + made, parts[c], frames * sizeof(float));
                free(parts[c]);
            }
        free(block);
        done += piece;
        made += frames;
        assert_int_equal(made, done / r->frame_bytes);
    }
}

/* Every encoding and number of channels, cut anywhere, with every second channel or all: the same bits as one
 * channel decoded alone. */
static void test_same_as_decode(void **state) {
    (void)state;
    enum { FRAMES = 3001 };
    uint32_t seed = 1;
    for (int k = 0; k < ENCODINGS; k++)
        for (int channels = 1; channels <= PCM_CHANNELS_MAX; channels++) {
            struct audio_format format = {encodings[k].encoding, 8000, channels};
            size_t bytes = FRAMES * (size_t)channels * encodings[k].bytes;
            unsigned char *p = make_bytes(format.encoding, bytes, (uint32_t)(100 * k + channels));
            const size_t pieces[] = {1, 3, 50, 1000, bytes};
            for (size_t i = 0; i < 2 * sizeof pieces / sizeof *pieces; i++) {
                struct pcm_reader r;
                struct status st;
                assert_int_equal(pcm_init(&r, &format, 16000, &st), 0);
                float *out[PCM_CHANNELS_MAX] = {0};
                for (int c = (int)i % 2; c < channels; c += 1 + (int)i % 2)
                    out[c] = malloc(FRAMES * sizeof(float));
                read_all(&r, p, bytes, pieces[i / 2], i % 4 > 1 && pieces[i / 2] > 1 ? &seed : NULL, out);
                assert_int_equal(pcm_finish(&r, &st), 0);
                for (int c = 0; c < channels; c++) {
                    if (out[c] == NULL)
                        continue;
                    struct audio_clip clip = decode_channel(p, FRAMES, channels, c, k, 8000);
                    assert_memory_equal(out[c], clip.samples, FRAMES * sizeof(float));
                    audio_clip_free(&clip);
                    free(out[c]);
                }
            }
            free(p);
        }
}

static void test_count_frames(void **state) {
    (void)state;
    struct pcm_reader r;
    struct status st;
    assert_int_equal(pcm_init(&r, &(struct audio_format){AUDIO_PCM16, 8000, 3}, 0, &st), 0);
    assert_int_equal(pcm_count_frames(&r, 0), 0);
    assert_int_equal(pcm_count_frames(&r, 5), 0);
    assert_int_equal(pcm_count_frames(&r, 6), 1);
    float values[3], *out[] = {values, NULL, values + 2};
    size_t frames;
    assert_int_equal(pcm_read(&r, "\1\2\3\4\5", 5, out, &frames, &st), 0);
    assert_int_equal(frames, 0);
    assert_int_equal(pcm_count_frames(&r, 0), 0);
    assert_int_equal(pcm_count_frames(&r, 1), 1);
    assert_int_equal(pcm_count_frames(&r, 6), 1);
    assert_int_equal(pcm_count_frames(&r, 7), 2);
    assert_true(pcm_count_frames(&r, SIZE_MAX) == SIZE_MAX / 6 + (SIZE_MAX % 6 + 5) / 6);
}

/* Of an excluded channel nothing is kept, not even a part of a frame. */
static void test_excluded_is_not_kept(void **state) {
    (void)state;
    struct pcm_reader r;
    struct status st;
    assert_int_equal(pcm_init(&r, &(struct audio_format){AUDIO_PCM16, 8000, 4}, 0, &st), 0);
    float values[2][1], *out[] = {NULL, values[0], NULL, values[1]};
    size_t frames;
    assert_int_equal(pcm_read(&r, "\x71\x72\x01\x02\x73\x74\x03", 7, out, &frames, &st), 0);
    for (const unsigned char *p = (const unsigned char *)&r.rest; p < r.rest + sizeof r.rest; p++)
        assert_true(*p < 0x70);
    assert_int_equal(pcm_read(&r, "\x04\x75", 2, out, &frames, &st), 0);
    assert_int_equal(frames, 1);
    assert_true(values[0][0] == 0x201 / 32768.0f);
    assert_true(values[1][0] == 0x403 / 32768.0f);
    for (size_t i = 0; i < sizeof r.rest; i++)
        assert_int_equal(r.rest[i], 0);
}

static void expect(const struct status *st, const char *part) {
    if (st->code != STATUS_INVALID_ARGUMENT || strstr(st->message, part) == NULL)
        fail_msg("%s: %s", status_code_name(st->code), st->message);
}

/* Which one, however it was cut; times are those of the signal. */
static void test_not_finite(void **state) {
    (void)state;
    enum { FRAMES = 500 };
    float data[FRAMES][3], a[FRAMES], b[FRAMES];
    for (size_t piece = 1; piece <= sizeof data; piece = piece * 3 + 1) {
        memset(data, 0, sizeof data);
        data[100][1] = NAN; /* of a channel that is not looked at */
        data[400][2] = -INFINITY;
        data[401][0] = NAN;
        struct pcm_reader r;
        struct status st = {0};
        assert_int_equal(pcm_init(&r, &(struct audio_format){AUDIO_FLOAT32, 8000, 3}, 80000, &st), 0);
        int result = 0;
        for (size_t done = 0; result == 0; done += piece) {
            assert_true(done < sizeof data);
            float *out[] = {a, NULL, b};
            size_t frames = 99, bytes = piece < sizeof data - done ? piece : sizeof data - done;
            result = pcm_read(&r, (unsigned char *)data + done, bytes, out, &frames, &st);
            assert_true(result == 0 || frames == 0);
        }
        expect(&st, "position 80400 (10.050000 s) of channel 2 is not a finite number (infinite)");
    }
}

static void test_finish(void **state) {
    (void)state;
    struct pcm_reader r;
    struct status st = {0};
    assert_int_equal(pcm_init(&r, &(struct audio_format){AUDIO_PCM16, 8000, 2}, 40000, &st), 0);
    assert_int_equal(pcm_finish(&r, &st), 0); /* no audio at all */
    unsigned char data[64] = {0};
    float a[20], b[20], *out[] = {a, b};
    size_t frames;
    assert_int_equal(pcm_read(&r, data, 34, out, &frames, &st), 0);
    assert_int_equal(frames, 8);
    assert_int_equal(pcm_read(&r, data, 33, out, &frames, &st), 0);
    assert_int_equal(frames, 8);
    assert_int_equal(pcm_finish(&r, &st), -1);
    expect(&st, "ends within a frame: 4 bytes a frame (2 channels of 2)");
    expect(&st, "at byte 64 (5.002000 s), has only 3");
    assert_int_equal(pcm_read(&r, data, 1, out, &frames, &st), 0);
    assert_int_equal(frames, 1);
    assert_int_equal(pcm_finish(&r, &st), 0);
}

static void test_refusals(void **state) {
    (void)state;
    const struct {
        struct audio_format format;
        int64_t first_frame;
        const char *part;
    } wrong[] = {
        {{AUDIO_FILE, 8000, 1}, 0, "not raw (0)"},
        {{(enum audio_encoding)77, 8000, 1}, 0, "not raw (77)"},
        {{AUDIO_PCM16, 999, 1}, 0, "999 Hz: rates are 1000 to 768000 Hz"},
        {{AUDIO_PCM16, 768001, 1}, 0, "768001 Hz"},
        {{AUDIO_PCM16, 8000, 0}, 0, "0 channels: 1 to 8"},
        {{AUDIO_PCM16, 8000, -1}, 0, "-1 channels"},
        {{AUDIO_PCM16, 8000, 9}, 0, "9 channels"},
        {{AUDIO_PCM16, 8000, 1}, -1, "frame -1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct pcm_reader r;
        struct status st = {0};
        assert_int_equal(pcm_init(&r, &wrong[i].format, wrong[i].first_frame, &st), -1);
        expect(&st, wrong[i].part);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_decode),
        cmocka_unit_test(test_count_frames),
        cmocka_unit_test(test_excluded_is_not_kept),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_finish),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
