/* Reductions, shuffles, votes, indices: under several orders of threads. */
#include "tests/unit/cuda_shim/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/cuda_shim/kernels.h"

enum { N = 256, SEEDS = 4 };
static const char *const seeds[SEEDS] = {"0", "1", "2", "3000000000"};

static void reduce(float *y, const float *x, enum warps_kind kind, int block) {
    struct gpu_stream *s = stream_new();
    void *dx = memory_new(N * sizeof(*x), x, s), *dy = memory_new(N * sizeof(*y), NULL, s);
    warps_reduce(s, dy, dx, kind, N, block);
    memory_take(y, dy, N * sizeof(*y), s);
    gpu_memory_del(dx);
    gpu_stream_del(s);
}

static void check_reductions(void) {
    float x[N], y[N], z[N];
    for (int i = 0; i < N; i++) {
        x[i] = sinf((float)(7 * i)) * powf(10.0f, (float)(i % 7 - 3));
    }
    reduce(y, x, WARPS_SUM, 64);
    reduce(z, x, WARPS_BUTTERFLY, 128);
    assert_memory_equal(y, z, sizeof(y));
    reduce(z, x, WARPS_SUM_DOUBLE, 64);
    for (int w = 0; w < N / 32; w++) {
        double sum = 0.0;
        for (int i = 0; i < 32; i++) {
            sum += (double)x[w * 32 + i];
        }
        for (int i = 0; i < 32; i++) {
            assert_true(y[w * 32 + i] == y[w * 32]);
            assert_true(fabs((double)y[w * 32 + i] - sum) < 1e-3);
            assert_true(fabs((double)z[w * 32 + i] - sum) <= 1e-7 * fabs(sum));
        }
    }
    reduce(y, x, WARPS_MAX, 64);
    for (int i = 0; i < N; i++) {
        float largest = x[i / 32 * 32];
        for (int k = 0; k < 32; k++) {
            largest = fmaxf(largest, x[i / 32 * 32 + k]);
        }
        assert_true(y[i] == largest);
    }
    for (int i = 0; i < N; i++) {
        x[i] = (float)i;
    }
    reduce(y, x, WARPS_BLOCK_SUM, 128);
    for (int i = 0; i < N; i++) {
        assert_true(y[i] == (i < 128 ? 8128.0f : 24512.0f));
    }
}

static void check_shuffles(void) {
    struct gpu_stream *s = stream_new();
    for (int width = 32; width >= 8; width /= 2) {
        for (int by = 0; by < 32; by++) {
            for (int kind = WARPS_INDEX; kind <= WARPS_DOWN; kind++) {
                int y[32];
                void *dy = memory_new(sizeof(y), NULL, s);
                warps_shuffle(s, dy, (enum warps_shuffle)kind, by, width);
                memory_take(y, dy, sizeof(y), s);
                for (int lane = 0; lane < 32; lane++) {
                    const int first = lane / width * width, end = first + width;
                    const int from[] = {first + by % width, lane ^ by, lane - by, lane + by};
                    const bool is_there[] = {true, from[1] < end, from[2] >= first, from[3] < end};
                    assert_int_equal(y[lane], is_there[kind] ? from[kind] : lane);
                }
            }
        }
    }
    gpu_stream_del(s);
}

static void check_votes(void) {
    const unsigned bits[] = {0, 1, 0x80000000u, 0xffffffffu, 0x12345678u};
    struct gpu_stream *s = stream_new();
    for (int i = 0; i < 5; i++) {
        unsigned y[3];
        void *dy = memory_new(sizeof(y), NULL, s);
        warps_vote(s, dy, bits[i]);
        memory_take(y, dy, sizeof(y), s);
        assert_int_equal(y[0], bits[i]);
        assert_int_equal(y[1], bits[i] != 0);
        assert_int_equal(y[2], bits[i] == 0xffffffffu);
    }
    gpu_stream_del(s);
}

static void check_indices(void) {
    const int grid[3] = {3, 2, 2}, block[3] = {5, 3, 2};
    enum { BLOCKS = 12, THREADS = 30 };
    int y[BLOCKS][THREADS][6];
    struct gpu_stream *s = stream_new();
    void *dy = memory_new(sizeof(y), NULL, s);
    warps_indices(s, dy, grid, block);
    memory_take(y, dy, sizeof(y), s);
    gpu_stream_del(s);
    for (int b = 0; b < BLOCKS; b++) {
        for (int t = 0; t < THREADS; t++) {
            const int wanted[6] = {t % 5, t / 5 % 3, t / 15, b % 3, b / 3 % 2, b / 6};
            assert_memory_equal(y[b][t], wanted, sizeof(wanted));
        }
    }
}

static void for_all_orders(void (*check)(void)) {
    for (int i = 0; i < SEEDS; i++) {
        setenv("TIMBRE_SHIM_SEED", seeds[i], 1);
        check();
    }
    unsetenv("TIMBRE_SHIM_SEED");
}
static void test_reductions(void **state) {
    (void)state;
    for_all_orders(check_reductions);
}
static void test_shuffles(void **state) {
    (void)state;
    for_all_orders(check_shuffles);
}
static void test_votes(void **state) {
    (void)state;
    for_all_orders(check_votes);
}
static void test_indices(void **state) {
    (void)state;
    for_all_orders(check_indices);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_votes),
        cmocka_unit_test(test_indices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
