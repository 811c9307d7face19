/* Tests of audio/resample: lengths, sound, and that pieces do not matter. */
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
#include "audio/resample.h"
#include "sounds.h"

static const int rates[][2] = {
    {44100, 16000}, {48000, 16000},  {8000, 16000},  {22050, 16000}, {11025, 16000},
    {96000, 16000}, {16000, 44100},  {32000, 16000}, {16001, 16000}, {1000, 768000},
    {768000, 1000}, {767999, 16000}, {1009, 16000},  {16000, 16000},
};
enum { RATES = sizeof rates / sizeof *rates };

/* Resamples in pieces of at most `piece_max` samples, of random size when `seed` is given. */
static float *resample(const float *in, size_t count, int from_hz, int to_hz, size_t piece_max,
                       uint32_t *seed, size_t *out_count) {
    struct status st;
    struct resampler *r = NULL;
    assert_int_equal(resampler_new(&r, from_hz, to_hz, &st), 0);
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
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_equal_rates_copy),
        cmocka_unit_test(test_tone),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
