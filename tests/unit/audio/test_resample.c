/* Tests of audio/resample: lengths, sound, and that neither pieces matter nor where a signal was joined. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <soxr.h>

#include "audio/audio.h"
#include "audio/resample.h"
#include "sounds.h"

static const int rates[][2] = {
    {44100, 16000}, {48000, 16000},  {8000, 16000},  {22050, 16000}, {11025, 16000},
    {96000, 16000}, {16000, 44100},  {32000, 16000}, {16001, 16000}, {1000, 768000},
    {768000, 1000}, {767999, 16000}, {1009, 16000},  {16000, 16000},
};
enum { RATES = sizeof rates / sizeof *rates };

/* Rates of signals of several segments. */
static const int long_rates[][2] = {
    {8000, 16000},  {11025, 16000}, {12345, 16000}, {16000, 16000}, {22050, 16000}, {24000, 16000},
    {32000, 16000}, {44100, 16000}, {48000, 16000}, {1000, 16000},  {16000, 8000},  {768000, 16000},
};
enum { LONG_RATES = sizeof long_rates / sizeof *long_rates };

static atomic_int soxr_open_now, soxr_open_max,
    soxr_calls_left = -1; /* until one fails; negative: none does */

soxr_t __real_soxr_create(double from_hz, double to_hz, unsigned channels, soxr_error_t *error,
                          const soxr_io_spec_t *io, const soxr_quality_spec_t *quality,
                          const soxr_runtime_spec_t *runtime);
soxr_t __wrap_soxr_create(double from_hz, double to_hz, unsigned channels, soxr_error_t *error,
                          const soxr_io_spec_t *io, const soxr_quality_spec_t *quality,
                          const soxr_runtime_spec_t *runtime);
void __real_soxr_delete(soxr_t soxr);
void __wrap_soxr_delete(soxr_t soxr);

soxr_t __wrap_soxr_create(double from_hz, double to_hz, unsigned channels, soxr_error_t *error,
                          const soxr_io_spec_t *io, const soxr_quality_spec_t *quality,
                          const soxr_runtime_spec_t *runtime) {
    if (soxr_calls_left >= 0 && soxr_calls_left-- == 0) {
        *error = "no more";
        return NULL;
    }
    int now = ++soxr_open_now;
    if (now > soxr_open_max)
        soxr_open_max = now;
    return __real_soxr_create(from_hz, to_hz, channels, error, io, quality, runtime);
}

void __wrap_soxr_delete(soxr_t soxr) {
    soxr_open_now--;
    __real_soxr_delete(soxr);
}

/* Resamples what begins at second `first_s` of a signal, in pieces of at most `piece_max` samples, of random
 * size when `seed` is given. */
static float *resample_at(int64_t first_s, const float *in, size_t count, int from_hz, int to_hz,
                          size_t piece_max, uint32_t *seed, size_t *out_count) {
    struct status st;
    struct resampler *r = NULL;
    assert_int_equal(resampler_new_at(&r, from_hz, to_hz, first_s, &st), 0);
    float *out = NULL;
    size_t made = 0, done = 0, capacity = 0;
    for (bool last = false; !last;) {
        size_t piece = piece_max, given;
        if (seed != NULL)
            piece = (size_t)((sound_noise(seed) + 1.0f) * 0.5f * (float)piece_max);
        if (piece > count - done)
            piece = count - done;
        last = done == count;
        size_t bound = resampler_bound(r, piece);
        if (made + bound >= capacity) {
            capacity = 2 * (made + bound) + 1;
            out = realloc(out, capacity * sizeof *out);
            assert_non_null(out);
        }
        assert_int_equal(resampler_process(r, last ? NULL : in + done, piece, out + made, bound, &given, &st),
                         0);
        assert_true(given <= bound);
        made += given;
        done += piece;
    }
    resampler_del(r);
    *out_count = made;
    return out;
}

static float *resample(const float *in, size_t count, int from_hz, int to_hz, size_t piece_max,
                       uint32_t *seed, size_t *out_count) {
    return resample_at(0, in, count, from_hz, to_hz, piece_max, seed, out_count);
}

/* One libsoxr resampler over all of it; log2_dft 0: with its defaults. */
static float *resample_single(const float *in, size_t count, int from_hz, int to_hz, unsigned log2_dft,
                              size_t *out_count) {
    soxr_error_t error = NULL;
    soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
    if (log2_dft != 0)
        runtime.log2_min_dft_size = runtime.log2_large_dft_size = log2_dft;
    soxr_t soxr = soxr_create(from_hz, to_hz, 1, &error, NULL, &quality, &runtime);
    assert_non_null(soxr);
    size_t capacity = (size_t)((double)count * to_hz / from_hz) + 16, made = 0, given = 1;
    float *out = malloc(capacity * sizeof *out);
    assert_non_null(out);
    for (size_t done = 0; done < count;) {
        size_t piece = count - done < 100000 ? count - done : 100000;
        assert_null(soxr_process(soxr, in + done, piece, NULL, out + made, capacity - made, &given));
        made += given;
        done += piece;
    }
    for (given = 1; given > 0; made += given)
        assert_null(soxr_process(soxr, NULL, 0, NULL, out + made, capacity - made, &given));
    soxr_delete(soxr);
    *out_count = made;
    return out;
}

static float *make_noise(size_t count, uint32_t seed) {
    float *in = malloc(count * sizeof *in);
    assert_non_null(in);
    for (size_t i = 0; i < count; i++)
        in[i] = sound_noise(&seed);
    return in;
}

static void test_pieces_do_not_matter(void **state) {
    (void)state;
    uint32_t seed = 1;
    for (int k = 0; k < RATES; k++) {
        int from_hz = rates[k][0], to_hz = rates[k][1];
        size_t count = from_hz > 8 * to_hz ? 200000 : to_hz > 8 * from_hz ? 3000 : 40000, whole_count, count2;
        float *in = make_noise(count, (uint32_t)k);
        float *whole = resample(in, count, from_hz, to_hz, count, NULL, &whole_count);
        const size_t pieces[] = {1, 7, 160, 4096, 30000};
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++)
            for (int random = 0; random < 2; random++) {
                if (pieces[p] == 1 && random)
                    continue; /* would take pieces of no samples for ever */
                float *parts = resample(in, count, from_hz, to_hz, pieces[p], random ? &seed : NULL, &count2);
                assert_int_equal(count2, whole_count);
                assert_memory_equal(parts, whole, whole_count * sizeof *whole);
                free(parts);
            }
        free(whole);
        free(in);
    }
}

static void test_lengths(void **state) {
    (void)state;
    float *in = make_noise(50000, 3);
    for (int k = 0; k < RATES; k++) {
        const size_t counts[] = {0, 1, 2, 3, 10, 99, 441, 1000, 16001, 50000};
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            if (rates[k][1] > 8 * rates[k][0] && counts[i] > 2000)
                continue;
            size_t made;
            free(resample(in, counts[i], rates[k][0], rates[k][1], 4096, NULL, &made));
            double want = round((double)counts[i] * rates[k][1] / rates[k][0]);
            assert_true(fabs((double)made - want) <= 1.0);
        }
    }
    free(in);
}

/* The same over several segments. */
static void test_pieces_of_segments_do_not_matter(void **state) {
    (void)state;
    uint32_t seed = 2;
    for (int k = 0; k < LONG_RATES; k++) {
        int from_hz = long_rates[k][0], to_hz = long_rates[k][1];
        size_t count = (size_t)(11.3 * from_hz), whole_count, count2;
        float *in = make_noise(count, (uint32_t)k);
        float *whole = resample(in, count, from_hz, to_hz, count, NULL, &whole_count);
        const size_t pieces[] = {1, 160, (size_t)from_hz, 7 * (size_t)from_hz};
        for (size_t p = from_hz > 48000; p < sizeof pieces / sizeof *pieces; p++)
            for (int random = 0; random < 2; random++) {
                if (pieces[p] == 1 && random)
                    continue;
                float *parts = resample(in, count, from_hz, to_hz, pieces[p], random ? &seed : NULL, &count2);
                assert_int_equal(count2, whole_count);
                assert_memory_equal(parts, whole, whole_count * sizeof *whole);
                free(parts);
            }
        free(whole);
        free(in);
    }
}

/* A signal may be joined at any second: from resampler_find_output_s on, it has the bits of the whole. */
static void test_joining_does_not_matter(void **state) {
    (void)state;
    enum { SECONDS = 13 };
    for (int k = 0; k < LONG_RATES; k++) {
        int from_hz = long_rates[k][0], to_hz = long_rates[k][1];
        size_t count = (size_t)(13.4 * from_hz), whole_count, made;
        float *in = make_noise(count, (uint32_t)k);
        float *whole = resample(in, count, from_hz, to_hz, 4096, NULL, &whole_count);
        for (int64_t first_s = 0; first_s <= SECONDS; first_s++) {
            size_t first = (size_t)(first_s * from_hz),
                   out_first = (size_t)(resampler_find_output_s(from_hz, to_hz, first_s) * to_hz),
                   want = whole_count > out_first ? whole_count - out_first : 0;
            float *part = resample_at(first_s, in + first, count - first, from_hz, to_hz,
                                      first_s % 2 == 0 ? 160 : 3 * (size_t)from_hz + 17, NULL, &made);
            assert_int_equal(made, want);
            assert_true(want == 0 || memcmp(part, whole + out_first, want * sizeof *part) == 0);
            assert_true(from_hz == to_hz ? out_first == first : first_s > 8 || want > 0);
            free(part);
        }
        free(whole);
        free(in);
    }
}

static void test_where_joining_may_be(void **state) {
    (void)state;
    for (int64_t s = 0; s < 100; s++) {
        int64_t input_s = resampler_find_input_s(8000, 16000, s);
        assert_true(input_s >= 0 && input_s <= s);
        assert_true(resampler_find_output_s(8000, 16000, input_s) <= s);
        assert_true(resampler_find_output_s(8000, 16000, input_s + 1) > s);
        assert_true(resampler_find_output_s(8000, 16000, s) >= s);
        assert_true(resampler_find_output_s(8000, 16000, s) <= s + RESAMPLER_SEGMENT_S);
        assert_int_equal(resampler_find_input_s(16000, 16000, s), s);
        assert_int_equal(resampler_find_output_s(16000, 16000, s), s);
    }
    const int64_t output_s[] = {0, 5, 5, 5, 5, 10, 10, 10, 10, 10, 15};
    for (int64_t s = 0; s < 11; s++)
        assert_int_equal(resampler_find_output_s(44100, 16000, s), output_s[s]);
    assert_int_equal(resampler_find_input_s(44100, 16000, 4), 0);
    assert_int_equal(resampler_find_input_s(44100, 16000, 5), 4);
    assert_int_equal(resampler_find_input_s(44100, 16000, 9), 4);
    assert_int_equal(resampler_find_input_s(44100, 16000, 10), 9);
}

/* Lengths are those of one libsoxr resampler over all, also where a half is rounded; and so are the bits of
 * what is not longer than a segment. */
static void test_lengths_of_one_resampler(void **state) {
    (void)state;
    const int more[][2] = {{16000, 44100}, {25600, 16000}, {16001, 16000},
                           {1009, 16000},  {96000, 16000}, {16000, 1000}};
    uint32_t seed = 4;
    for (size_t k = 0; k < LONG_RATES - 1 + sizeof more / sizeof *more; k++) {
        const int *pair = k < LONG_RATES - 1 ? long_rates[k] : more[k - (LONG_RATES - 1)];
        int from_hz = pair[0], to_hz = pair[1];
        float *in = make_noise(12 * (size_t)from_hz, (uint32_t)k);
        for (int i = 0; from_hz != to_hz && i < 48; i++) {
            /* close to where something begins or ends, or anywhere */
            size_t count = i < 33 ? (size_t)((i / 3 + 1) * from_hz + i % 3 - 1)
                                  : (size_t)((sound_noise(&seed) + 1.0f) * 6.0f * (float)from_hz);
            size_t made, want;
            float *out = resample(in, count, from_hz, to_hz, 1 << 20, NULL, &made);
            float *single = resample_single(in, count, from_hz, to_hz, 8, &want);
            assert_int_equal(made, want);
            if (count <= RESAMPLER_SEGMENT_S * (size_t)from_hz)
                assert_memory_equal(out, single, made * sizeof *out);
            free(out);
            free(single);
        }
        free(in);
    }
}

/* Where libsoxr comes to a half, it rounds the whole one way and the last segment the other. */
static void test_lengths_of_halves(void **state) {
    (void)state;
    const size_t counts[] = {131680, 132320, 4800160, 4801440};
    float *in = make_noise(4801440, 8);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        size_t made, want;
        free(resample(in, counts[i], 24000, 11025, 24000, NULL, &made));
        free(resample_single(in, counts[i], 24000, 11025, 0, &want));
        assert_int_equal(made, want);
    }
    free(in);
}

/* Segments and small blocks change no more than rounding does: at most 9.5e-7 was measured. */
static void test_agrees_with_one_resampler(void **state) {
    (void)state;
    for (int k = 0; k < LONG_RATES; k++) {
        int from_hz = long_rates[k][0], to_hz = long_rates[k][1];
        if (from_hz == to_hz)
            continue;
        size_t count = 30 * (size_t)from_hz, made, want;
        float *in = make_noise(count, (uint32_t)k);
        float *out = resample(in, count, from_hz, to_hz, 1 << 20, NULL, &made);
        float *single = resample_single(in, count, from_hz, to_hz, 0, &want);
        assert_int_equal(made, want);
        float worst = 0.0f;
        for (size_t i = 0; i < made; i++)
            worst = fmaxf(worst, fabsf(out[i] - single[i]));
        if (worst > 3e-6f)
            fail_msg("%d Hz to %d Hz: %g", from_hz, to_hz, (double)worst);
        free(out);
        free(single);
        free(in);
    }
}

/* What a live result waits for beside its audio. */
static void test_lag(void **state) {
    (void)state;
    struct status st;
    struct resampler *r = NULL;
    float in[80] = {0}, out[2000];
    assert_int_equal(resampler_new(&r, 8000, 16000, &st), 0);
    int64_t made = 0, lag_max = 0;
    for (int64_t piece = 1; piece <= 1200; piece++) {
        size_t given;
        assert_true(resampler_bound(r, 80) <= 2000);
        assert_int_equal(resampler_process(r, in, 80, out, 2000, &given, &st), 0);
        made += (int64_t)given;
        lag_max = lag_max > piece * 160 - made ? lag_max : piece * 160 - made;
    }
    resampler_del(r);
    assert_in_range(lag_max, 1, 16000 * 60 / 1000);
}

/* A filter that would keep a segment open until the next but one begins is told that no more input will come:
 * all is as with a filter in time. (No filter is so late but by libsoxr's environment variables.) */
static void test_late_filter(void **state) {
    (void)state;
    enum { FROM_HZ = 16000, TO_HZ = 1000, FIRST_S = 12, OUT_FIRST = 15 * TO_HZ };
    size_t count = 31 * FROM_HZ + 333, made, want, joined;
    float *in = make_noise(count, 7);
    float *single = resample_single(in, count, FROM_HZ, TO_HZ, 0, &want);
    assert_int_equal(setenv("SOXR_MIN_DFT_SIZE", "15", 1), 0);
    assert_int_equal(setenv("SOXR_LARGE_DFT_SIZE", "20", 1), 0);
    soxr_open_max = 0;
    float *out = resample(in, count, FROM_HZ, TO_HZ, 1600, NULL, &made);
    assert_int_equal(soxr_open_max, 2);
    assert_int_equal(made, want);
    for (size_t i = 0; i < made; i++)
        assert_true(fabsf(out[i] - single[i]) < 3e-6f);
    float *part = resample_at(FIRST_S, in + FIRST_S * FROM_HZ, count - FIRST_S * FROM_HZ, FROM_HZ, TO_HZ,
                              7000, NULL, &joined);
    assert_int_equal(unsetenv("SOXR_MIN_DFT_SIZE"), 0);
    assert_int_equal(unsetenv("SOXR_LARGE_DFT_SIZE"), 0);
    assert_int_equal(joined, made - OUT_FIRST);
    assert_memory_equal(part, out + OUT_FIRST, joined * sizeof *part);
    free(part);
    free(out);
    free(single);
    free(in);
}

/* At most two resamplers at a time, and none is left. */
static void test_what_is_held(void **state) {
    (void)state;
    assert_int_equal(soxr_open_now, 0);
    size_t count = 31 * 8000, made;
    float *in = make_noise(count, 5);
    soxr_open_max = 0;
    free(resample(in, count, 8000, 16000, 1000, NULL, &made));
    assert_int_equal(soxr_open_max, 2);
    free(resample_at(3, in, count, 8000, 16000, count, NULL, &made));
    assert_int_equal(soxr_open_max, 2);
    free(resample(in, count / 31, 1000, 768000, 100, NULL, &made));
    assert_int_equal(soxr_open_max, 2);
    assert_int_equal(soxr_open_now, 0);
    free(in);
}

static void test_no_memory(void **state) {
    (void)state;
    enum { SECONDS = 6 };
    struct status st = {0};
    struct resampler *r = NULL;
    float *in = make_noise(SECONDS * 8000, 6), *out = malloc(SECONDS * 20000 * sizeof *out);
    assert_non_null(out);
    size_t given;
    soxr_calls_left = 0;
    assert_int_equal(resampler_new(&r, 8000, 16000, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_null(r);
    soxr_calls_left = 1; /* the second segment's */
    assert_int_equal(resampler_new(&r, 8000, 16000, &st), 0);
    assert_int_equal(resampler_process(r, in, SECONDS * 8000, out, SECONDS * 20000, &given, &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "no more"));
    resampler_del(r);
    assert_int_equal(soxr_open_now, 0);
    soxr_calls_left = -1;
    free(in);
    free(out);
}

static void test_equal_rates_copy(void **state) {
    (void)state;
    size_t made;
    float in[] = {0.1f, -7.0f, 1e30f, -0.0f, 1e-40f};
    float *out = resample(in, 5, 16000, 16000, 2, NULL, &made);
    assert_int_equal(made, 5);
    assert_memory_equal(out, in, sizeof in);
    free(out);
}

/* A tone below both limits comes out as the same tone, in place. */
static void test_tone(void **state) {
    (void)state;
    enum { SECONDS = 1 };
    for (int k = 0; k < 8; k++) {
        int from_hz = rates[k][0], to_hz = rates[k][1];
        size_t count = (size_t)(from_hz * SECONDS), made;
        float *in = malloc(count * sizeof *in);
        assert_non_null(in);
        double turn = 2.0 * acos(-1.0) * 1000.0;
        for (size_t i = 0; i < count; i++)
            in[i] = (float)(0.9 * sin(turn * (double)i / from_hz));
        float *out = resample(in, count, from_hz, to_hz, 4096, NULL, &made);
        double worst = 0.0;
        for (size_t i = made / 10; i < made - made / 10; i++)
            worst = fmax(worst, fabs((double)out[i] - 0.9 * sin(turn * (double)i / to_hz)));
        assert_true(worst < 2e-5);
        free(out);
        free(in);
    }
}

static void test_refusals(void **state) {
    (void)state;
    const int wrong[][2] = {{999, 16000}, {768001, 16000}, {16000, 0}, {16000, -1}, {16000, 768001}};
    struct resampler *r = NULL;
    struct status st;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(resampler_new(&r, wrong[i][0], wrong[i][1], &st), -1);
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(st.message, "1000 to 768000 Hz"));
    }
    const int64_t wrong_s[] = {-1, INT64_MIN, INT64_MAX, INT64_MAX / AUDIO_RATE_HZ_MAX};
    for (size_t i = 0; i < sizeof wrong_s / sizeof *wrong_s; i++) {
        assert_int_equal(resampler_new_at(&r, 768000, 767999, wrong_s[i], &st), -1);
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    }
    assert_null(r);
    resampler_del(NULL);

    /* Misuse is told, not undefined. */
    float in[64] = {0}, out[8];
    size_t made;
    assert_int_equal(resampler_new(&r, 16000, 16000, &st), 0);
    assert_int_equal(resampler_process(r, in, 64, out, 8, &made, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    resampler_del(r);
    assert_int_equal(resampler_new(&r, 8000, 16000, &st), 0);
    assert_int_equal(resampler_process(r, NULL, 0, out, 8, &made, &st), 0);
    assert_int_equal(resampler_process(r, in, 1, out, 8, &made, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    resampler_del(r);
    assert_int_equal(resampler_new(&r, 8000, 16000, &st), 0);
    assert_int_equal(resampler_process(r, in, 64, out, 8, &made, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    resampler_del(r);
}

struct job {
    const float *in;
    float *out;
    size_t made;
};

enum { JOB_SAMPLES = 30000, JOBS = 6 };

static void *run_job(void *arg) {
    struct job *job = arg;
    for (int i = 0; i < 5; i++) {
        free(job->out);
        job->out = resample(job->in, JOB_SAMPLES, 44100, 16000, 1000, NULL, &job->made);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    struct job jobs[JOBS] = {0};
    pthread_t threads[JOBS];
    float *in = make_noise(JOB_SAMPLES, 9);
    for (int i = 0; i < JOBS; i++) {
        jobs[i].in = in;
        assert_int_equal(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    }
    for (int i = 0; i < JOBS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i].made, jobs[0].made);
        assert_memory_equal(jobs[i].out, jobs[0].out, jobs[0].made * sizeof(float));
    }
    for (int i = 0; i < JOBS; i++)
        free(jobs[i].out);
    free(in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads), /* first, so that the first resamplers are made at once */
        cmocka_unit_test(test_pieces_do_not_matter),
        cmocka_unit_test(test_pieces_of_segments_do_not_matter),
        cmocka_unit_test(test_joining_does_not_matter),
        cmocka_unit_test(test_where_joining_may_be),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_lengths_of_one_resampler),
        cmocka_unit_test(test_lengths_of_halves),
        cmocka_unit_test(test_agrees_with_one_resampler),
        cmocka_unit_test(test_lag),
        cmocka_unit_test(test_late_filter),
        cmocka_unit_test(test_what_is_held),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_equal_rates_copy),
        cmocka_unit_test(test_tone),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
