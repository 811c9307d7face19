/* Tests of audio/vad and vad_bands: pieces and joining, what is speech and what is not, the transform. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "audio/vad.h"
#include "audio/vad_bands.h"
#include "sounds.h"

#define TURN 6.283185307179586

static const int rates[] = {8000, 8551, 11025, 16000, 22050, 44100, 48000};
enum { RATES = sizeof rates / sizeof *rates, RATE = 16000 };

/* ---- allocations ---- */

static bool allocation_fails;
static int allocations, allocation_to_fail = -1;

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);

static bool next_fails(void) {
    return allocations++ == allocation_to_fail && allocation_fails;
}

void *__wrap_malloc(size_t bytes) {
    return next_fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes) {
    return next_fails() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *p, size_t bytes) {
    return next_fails() ? NULL : __real_realloc(p, bytes);
}

/* ---- sounds ---- */

static float *make_silence(size_t count) {
    float *x = calloc(count, sizeof *x);
    assert_non_null(x);
    return x;
}

static void add_noise(float *x, size_t count, float peak, uint32_t seed) {
    for (size_t i = 0; i < count; i++)
        x[i] += peak * sound_noise(&seed);
}

static void add_tone(float *x, size_t count, int rate_hz, double hz, double amplitude) {
    for (size_t i = 0; i < count; i++)
        x[i] += (float)(amplitude * sin(TURN * hz * (double)i / rate_hz));
}

/* Syllables, four a second, of a voice whose pitch glides, with no pause between them: each dips to a tenth
 * of its height. `level_db` is of the whole, about. */
static void add_voice(float *x, size_t count, int rate_hz, double level_db) {
    const double scale = 0.9 * pow(10.0, level_db / 20.0);
    double phase = 0.0;
    for (size_t i = 0; i < count; i++) {
        const double t = (double)i / rate_hz;
        phase += TURN * (150.0 + 40.0 * sin(TURN * 0.7 * t)) / rate_hz;
        const double syllable = 0.55 - 0.45 * cos(TURN * 4.0 * t), vowel = 6.0 + 4.0 * sin(TURN * 1.3 * t);
        double sum = 0.0;
        for (int k = 1; k <= 16; k++)
            sum += exp(-0.05 * (k - vowel) * (k - vowel)) * sin(k * phase + k * k);
        x[i] += (float)(scale * syllable * sum);
    }
}

/* ---- running it ---- */

struct decisions {
    unsigned char *speech; /* [frames] */
    size_t frames;
};

/* In pieces of random size up to piece_max; 0: all at once. */
static struct decisions decide(const float *x, size_t count, int rate_hz, int64_t first, size_t piece_max) {
    struct status st;
    struct vad *v = NULL;
    assert_int_equal(vad_new(&v, rate_hz, first, &st), 0);
    struct decisions d = {.speech = malloc(vad_bound(v, count) + 1)};
    assert_non_null(d.speech);
    const size_t frames = vad_bound(v, count);
    uint32_t seed = (uint32_t)piece_max;
    for (size_t done = 0; done < count;) {
        size_t piece = count - done;
        if (piece_max > 0) {
            const size_t wish = (size_t)((sound_noise(&seed) + 1.0f) * 0.5f * (float)(piece_max + 1));
            piece = wish < piece ? wish : piece;
        }
        const size_t bound = vad_bound(v, piece);
        assert_int_equal(vad_process(v, x + done, piece, d.speech + d.frames), bound);
        d.frames += bound;
        done += piece;
    }
    assert_int_equal(d.frames, frames);
    vad_del(v);
    return d;
}

static double share(const struct decisions *d, double from_s, double to_s) {
    double sum = 0.0;
    const size_t from = (size_t)(from_s * 100), to = (size_t)(to_s * 100);
    assert_true(to <= d->frames);
    for (size_t i = from; i < to; i++)
        sum += d->speech[i];
    return sum / (double)(to - from);
}

/* A little of everything: noise whose level steps, voices, silence. */
static float *make_call(int rate_hz, int seconds) {
    const size_t second = (size_t)rate_hz;
    float *x = make_silence(second * (size_t)seconds);
    for (int s = 0; s < seconds; s++) {
        float *at = x + second * (size_t)s;
        if (s % 11 < 7)
            add_noise(at, second, s % 3 == 0 ? 0.01f : 0.03f, (uint32_t)s);
        if (s % 4 > 1)
            add_voice(at, second - second / (size_t)(2 + s % 3), rate_hz, -20.0 - 3.0 * (s % 5));
    }
    return x;
}

/* Noise that grows without end: the floor is always the oldest that is remembered. */
static float *make_rise(int rate_hz, int seconds) {
    const size_t second = (size_t)rate_hz;
    float *x = make_silence(second * (size_t)seconds);
    for (int s = 0; s < seconds; s++) {
        add_noise(x + second * (size_t)s, second, 0.001f * powf(1.04f, (float)s), (uint32_t)s);
        if (s % 5 == 2)
            add_voice(x + second * (size_t)s, second / 2, rate_hz, -45.0);
    }
    return x;
}

/* ---- tests ---- */

static void test_pieces_do_not_matter(void **state) {
    (void)state;
    for (int r = 0; r < RATES; r++) {
        const size_t count = (size_t)rates[r] * 12 + 77;
        float *x = make_call(rates[r], 13);
        struct decisions whole = decide(x, count, rates[r], 0, 0);
        const double all = share(&whole, 0.0, 11.9);
        assert_true(all > 0.1 && all < 0.9);
        const size_t pieces[] = {3, 160, 481, 30000};
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
            struct decisions parts = decide(x, count, rates[r], 0, pieces[p]);
            assert_int_equal(parts.frames, whole.frames);
            assert_memory_equal(parts.speech, whole.speech, whole.frames);
            free(parts.speech);
        }
        free(whole.speech);
        free(x);
    }
}

static void check_joining(const float *x, int seconds, int rate_hz) {
    const int hop = vad_hop(rate_hz), length = vad_length(rate_hz);
    const size_t count = (size_t)rate_hz * (size_t)seconds;
    struct decisions whole = decide(x, count, rate_hz, 0, 0);
    size_t compared = 0;
    for (int s = 1; s < seconds - VAD_MEMORY_S; s++) {
        const int64_t first = (int64_t)s * rate_hz, frame = (first + hop - 1) / hop;
        struct decisions later =
            decide(x + first, count - (size_t)first, rate_hz, first, s % 2 == 0 ? 700 : 0);
        assert_int_equal((int64_t)later.frames + frame, (int64_t)whole.frames);
        int64_t n = frame;
        while (n * hop + length <= first + (int64_t)VAD_MEMORY_S * rate_hz)
            n++;
        assert_memory_equal(later.speech + (n - frame), whole.speech + n, whole.frames - (size_t)n);
        compared += whole.frames - (size_t)n;
        free(later.speech);
    }
    assert_true(compared > 20000);
    free(whole.speech);
}

/* What only repeats is repeated less where every access is checked. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { RATES_STEP = 4 };
#else
enum { RATES_STEP = 1 };
#endif

static void test_joining_later_does_not_matter(void **state) {
    (void)state;
    enum { SECONDS = 31 };
    for (int r = 0; r < RATES; r += RATES_STEP) {
        float *call = make_call(rates[r], SECONDS), *rise = make_rise(rates[r], SECONDS);
        check_joining(call, SECONDS, rates[r]);
        check_joining(rise, SECONDS, rates[r]);
        free(call);
        free(rise);
    }
}

/* The far past is forgotten whatever it was. */
static void test_bad_samples_are_forgotten(void **state) {
    (void)state;
    const size_t count = (size_t)RATE * 20;
    float *x = make_call(RATE, 20), *bad = make_call(RATE, 20);
    bad[1000] = NAN;
    bad[5000] = INFINITY;
    bad[9000] = -3e38f;
    bad[9001] = 3e38f;
    struct decisions good = decide(x, count, RATE, 0, 0), other = decide(bad, count, RATE, 0, 0);
    const size_t from = 9001 / 160 + VAD_MEMORY_S * 100;
    assert_memory_equal(good.speech + from, other.speech + from, good.frames - from);
    free(good.speech);
    free(other.speech);
    free(x);
    free(bad);
}

static void test_voice_is_found_at_any_level(void **state) {
    (void)state;
    const double levels_db[] = {-50.0, -40.0, -26.0, -10.0, 0.0, 20.0};
    for (size_t l = 0; l < sizeof levels_db / sizeof *levels_db; l++) {
        for (int rate = 0; rate < RATES; rate++) {
            const size_t second = (size_t)rates[rate];
            float *x = make_silence(12 * second);
            add_voice(x + 4 * second, 3 * second, rates[rate], levels_db[l]);
            struct decisions d = decide(x, 12 * second, rates[rate], 0, 0);
            const double s = (double)second / vad_hop(rates[rate]) / 100.0; /* frames are not just 10 ms */
            assert_true(share(&d, 0.0, 3.9 * s) == 0.0);
            assert_true(share(&d, 4.1 * s, 6.9 * s) > 0.95);
            assert_true(share(&d, 7.2 * s, 11.9 * s) == 0.0);
            free(d.speech);
            free(x);
        }
    }
}

/* From the first sample on there is nothing to compare with: it may take a syllable. */
static void test_voice_at_the_very_beginning(void **state) {
    (void)state;
    const size_t count = 4 * RATE;
    float *x = make_silence(count);
    add_voice(x, count, RATE, -26.0);
    struct decisions d = decide(x, count, RATE, 0, 0);
    assert_true(share(&d, 0.5, 3.9) > 0.8);
    free(d.speech);
    free(x);
}

static void test_voice_without_pause_is_not_swallowed(void **state) {
    (void)state;
    const float noises[] = {0.0f, 0.02f};
    for (int n = 0; n < 2; n++) {
        const size_t count = 32 * RATE;
        float *x = make_silence(count);
        add_noise(x, count, noises[n], 5); /* 0.02: 12 dB below the voice */
        add_voice(x + RATE, 30 * RATE, RATE, -26.0);
        struct decisions d = decide(x, count, RATE, 0, 0);
        for (int s = 1; s < 31; s++)
            assert_true(share(&d, s, s + 1) > 0.6);
        assert_true(share(&d, 2, 31) > 0.75);
        assert_true(share(&d, 31.5, 31.9) == 0.0);
        free(d.speech);
        free(x);
    }
}

static void expect_none(float *x, size_t count, double from_s, double at_most) {
    struct decisions d = decide(x, count, RATE, 0, 0);
    const double found = share(&d, from_s, (double)count / RATE - 0.1);
    if (found > at_most)
        print_error("speech in %.4f of it\n", found);
    assert_true(found <= at_most);
    free(d.speech);
    free(x);
}

static void test_steady_sounds_are_not_speech(void **state) {
    (void)state;
    const size_t count = 30 * RATE;
    const double tones_hz[] = {50.0, 100.0, 150.0, 440.0, 1000.0, 2500.0};
    for (size_t t = 0; t < sizeof tones_hz / sizeof *tones_hz; t++)
        for (int noise = 0; noise < 3; noise++) {
            float *x = make_silence(count);
            add_tone(x, count, RATE, tones_hz[t], 0.1);
            add_noise(x, count, 0.01f * (float)noise, 3);
            expect_none(x, count, VAD_MEMORY_S, 0.01);
        }
    for (int level = 0; level < 4; level++) {
        float *x = make_silence(count);
        add_noise(x, count, powf(0.1f, (float)level), 9);
        expect_none(x, count, 1.0, 0.01);
    }
    float *hum = make_silence(count);
    for (int k = 1; k < 12; k++)
        add_tone(hum, count, RATE, 50.0 * k, 0.1 / k);
    add_noise(hum, count, 0.005f, 4);
    expect_none(hum, count, VAD_MEMORY_S, 0.01);
}

/* Noise that begins is taken for speech until it is the floor, and no longer. */
static void test_noise_that_begins_becomes_the_floor(void **state) {
    (void)state;
    const size_t count = 25 * RATE;
    float *x = make_silence(count);
    add_noise(x + 5 * RATE, count - 5 * RATE, 0.05f, 6);
    expect_none(x, count, 5.0 + VAD_MEMORY_S, 0.01);
}

static void test_offset_is_not_speech(void **state) {
    (void)state;
    const size_t count = 10 * RATE;
    float *x = make_silence(count);
    for (size_t i = 0; i < count; i++)
        x[i] = 0.5f;
    expect_none(x, count, 0.0, 0.0);

    float *voice = make_call(RATE, 10), *shifted = make_call(RATE, 10);
    for (size_t i = 0; i < count; i++)
        shifted[i] += 0.25f;
    struct decisions d = decide(voice, count, RATE, 0, 0), e = decide(shifted, count, RATE, 0, 0);
    size_t differ = 0;
    for (size_t i = 0; i < d.frames; i++)
        differ += d.speech[i] != e.speech[i];
    assert_true(differ <= d.frames / 100);
    free(d.speech);
    free(e.speech);
    free(voice);
    free(shifted);
}

static void test_nothing_is_allocated_while_it_runs(void **state) {
    (void)state;
    struct status st;
    struct vad *v = NULL;
    float *x = make_call(RATE, 10);
    unsigned char speech[64];
    assert_int_equal(vad_new(&v, RATE, 0, &st), 0);
    const int before = allocations;
    assert_true(before > 0);
    for (int round = 0; round < 60; round++) /* ten minutes */
        for (size_t at = 0; at < 10 * RATE; at += RATE / 2)
            assert_int_not_equal(vad_process(v, x + at, RATE / 2, speech), 0);
    assert_int_equal(allocations, before);
    vad_del(v);
    free(x);
}

static void test_errors(void **state) {
    (void)state;
    struct status st;
    struct vad *v = NULL;
    const int wrong[] = {-1, 0, VAD_RATE_HZ_MIN - 1, VAD_RATE_HZ_MAX + 1, 2147483647};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(vad_new(&v, wrong[i], 0, &st), -1);
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    }
    allocation_fails = true;
    for (int k = 0;; k++) {
        allocation_to_fail = allocations + k;
        const int rc = vad_new(&v, RATE, 0, &st);
        if (rc == 0)
            break;
        assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
        assert_true(k < 10);
    }
    allocation_fails = false;
    vad_del(v);
    vad_del(NULL);
}

static void test_grid(void **state) {
    (void)state;
    assert_int_equal(vad_hop(16000), 160);
    assert_int_equal(vad_length(16000), 480);
    assert_int_equal(vad_hop(11025), 110);
    assert_int_equal(vad_hop(22050), 221);
    struct status st;
    struct vad *v = NULL;
    assert_int_equal(vad_new(&v, 16000, 0, &st), 0);
    assert_int_equal(vad_bound(v, 479), 0);
    assert_int_equal(vad_bound(v, 480), 1);
    assert_int_equal(vad_bound(v, 639), 1);
    assert_int_equal(vad_bound(v, 640), 2);
    vad_del(v);
    /* Second 1 of 11025 Hz lies between frames 100 and 101, which begins 85 samples later. */
    assert_int_equal(vad_new(&v, 11025, 11025, &st), 0);
    assert_int_equal(vad_bound(v, 85 + 329), 0);
    assert_int_equal(vad_bound(v, 85 + 330), 1);
    vad_del(v);
}

/* ---- bands ---- */

static void test_bands_are_those_of_a_slow_transform(void **state) {
    (void)state;
    static const double edges_hz[] = {80.0, 160.0, 240.0, 330.0};
    for (int r = 0; r < RATES; r++) {
        const int length = vad_length(rates[r]);
        int points = 1;
        while (points < length)
            points *= 2;
        struct status st;
        struct vad_bands *b = NULL;
        assert_int_equal(vad_bands_new(&b, rates[r], length, &st), 0);
        float *x = make_silence((size_t)length), power[VAD_BANDS];
        add_noise(x, (size_t)length, 0.3f, (uint32_t)r);
        add_tone(x, (size_t)length, rates[r], 200.0, 0.2);
        (void)vad_bands_compute(b, x, power);
        double mean = 0.0, squares = 0.0;
        for (int i = 0; i < length; i++)
            mean += x[i] / length;
        for (int i = 0; i < length; i++)
            squares += pow(0.5 - 0.5 * cos(TURN * (i + 0.5) / length), 2.0);
        for (int band = 0; band < 3; band++) {
            double sum = 0.0;
            for (int k = 1; k < points / 2; k++) {
                const double hz = (double)k * rates[r] / points;
                if (hz < edges_hz[band] || hz >= edges_hz[band + 1])
                    continue;
                double re = 0.0, im = 0.0;
                for (int i = 0; i < length; i++) {
                    const double w = (x[i] - mean) * (0.5 - 0.5 * cos(TURN * (i + 0.5) / length));
                    re += w * cos(TURN * k * i / points);
                    im -= w * sin(TURN * k * i / points);
                }
                sum += 2.0 * (re * re + im * im) / (points * squares);
            }
            assert_true(fabs(power[band] - sum) <= 1e-5 * sum + 1e-9);
        }
        vad_bands_del(b);
        free(x);
    }
}

static void test_bands_add_up_to_the_mean_square(void **state) {
    (void)state;
    for (int r = 0; r < RATES; r++) {
        const int length = vad_length(rates[r]);
        struct status st;
        struct vad_bands *b = NULL;
        assert_int_equal(vad_bands_new(&b, rates[r], length, &st), 0);
        const double tones_hz[] = {200.0, 500.0, 1300.0, 3500.0};
        for (int t = 0; t < 4; t++) {
            float *x = make_silence((size_t)length), power[VAD_BANDS], sum = 0.0f;
            add_tone(x, (size_t)length, rates[r], tones_hz[t], 0.2);
            const float period = vad_bands_compute(b, x, power);
            for (int i = 0; i < VAD_BANDS; i++)
                sum += power[i];
            assert_true(fabs(sum / 0.02 - 1.0) < 0.05);
            if (tones_hz[t] < 1000.0)
                assert_true(period > 0.85f && period < 1.1f);
            free(x);
        }
        float *x = make_silence((size_t)length), power[VAD_BANDS];
        add_noise(x, (size_t)length, 0.3f, 8);
        assert_true(vad_bands_compute(b, x, power) < 0.7f);
        vad_bands_del(b);
        free(x);
    }
}

static void test_log2(void **state) {
    (void)state;
    for (float x = 1e-20f; x < 1e20f; x *= 1.013f)
        assert_true(fabs((double)vad_log2(x) - log2((double)x)) < 2e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_pieces_do_not_matter),
        cmocka_unit_test(test_joining_later_does_not_matter),
        cmocka_unit_test(test_bad_samples_are_forgotten),
        cmocka_unit_test(test_voice_is_found_at_any_level),
        cmocka_unit_test(test_voice_at_the_very_beginning),
        cmocka_unit_test(test_voice_without_pause_is_not_swallowed),
        cmocka_unit_test(test_steady_sounds_are_not_speech),
        cmocka_unit_test(test_noise_that_begins_becomes_the_floor),
        cmocka_unit_test(test_offset_is_not_speech),
        cmocka_unit_test(test_nothing_is_allocated_while_it_runs),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_bands_are_those_of_a_slow_transform),
        cmocka_unit_test(test_bands_add_up_to_the_mean_square),
        cmocka_unit_test(test_log2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
