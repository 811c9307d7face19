/* ldmatrix and mma: every lane's registers against the layouts of the PTX ISA, and products against plain
 * ones; asynchronous copies. */
#include "tests/unit/cuda_shim/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/cuda_shim/kernels.h"

/* PTX ISA, ldmatrix: "each thread holds a fragment of the row", two elements of row lane / 4. */
static void test_load(void **state) {
    (void)state;
    uint16_t x[32][8];
    for (int row = 0; row < 32; row++) {
        for (int column = 0; column < 8; column++) {
            x[row][column] = (uint16_t)(row * 100 + column);
        }
    }
    struct gpu_stream *s = stream_new();
    for (int matrices = 4; matrices >= 2; matrices -= 2) {
        for (int trans = 0; trans < 2; trans++) {
            uint32_t y[32][4];
            void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s);
            tensor_load(s, dy, dx, matrices, trans != 0);
            memory_take(y, dy, sizeof(y), s);
            gpu_memory_del(dx);
            for (int lane = 0; lane < 32; lane++) {
                for (int i = 0; i < matrices; i++) {
                    const int a = lane / 4, b = lane % 4 * 2;
                    const uint32_t lo = trans ? x[8 * i + b][a] : x[8 * i + a][b];
                    const uint32_t hi = trans ? x[8 * i + b + 1][a] : x[8 * i + a][b + 1];
                    assert_int_equal(y[lane][i], lo | hi << 16);
                }
            }
        }
    }
    gpu_stream_del(s);
}

static float widen(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static void check_product(uint16_t a[16][16], uint16_t b[16][8], float c[16][8], bool by_rows,
                          double tolerance) {
    uint16_t columns[8][16];
    float d[16][8];
    for (int k = 0; k < 16; k++) {
        for (int n = 0; n < 8; n++) {
            columns[n][k] = b[k][n];
        }
    }
    struct gpu_stream *s = stream_new();
    void *da = memory_new(sizeof(columns) * 2, a, s), *dd = memory_new(sizeof(d), c, s);
    void *db = memory_new(sizeof(columns), by_rows ? (const void *)b : (const void *)columns, s);
    tensor_multiply(s, dd, da, db, by_rows);
    memory_take(d, dd, sizeof(d), s);
    gpu_memory_del(da);
    gpu_memory_del(db);
    gpu_stream_del(s);
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 8; n++) {
            double sum = (double)c[m][n];
            for (int k = 0; k < 16; k++) {
                sum += (double)widen(a[m][k]) * (double)widen(b[k][n]);
            }
            if (fabs((double)d[m][n] - sum) > tolerance) {
                fail_msg("d[%d][%d] is %.9g, not %.9g", m, n, d[m][n], sum);
            }
        }
    }
}

/* One 1.0 in a and another in b, everywhere: a single element of d tells where each register stands. */
static void test_multiply_units(void **state) {
    (void)state;
    for (int m = 0; m < 16; m++) {
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < 8; n++) {
                uint16_t a[16][16] = {{0}}, b[16][8] = {{0}};
                float c[16][8] = {{0.0f}};
                a[m][k] = 0x3f80;
                b[k][n] = 0x4000;
                check_product(a, b, c, n % 2 == 0, 0.0);
            }
        }
    }
}

static void test_multiply(void **state) {
    (void)state;
    srand(1);
    for (int i = 0; i < 20; i++) {
        uint16_t a[16][16], b[16][8];
        float c[16][8];
        for (int m = 0; m < 16; m++) {
            for (int k = 0; k < 16; k++) { /* 1 to 2, of either sign */
                a[m][k] = (uint16_t)(0x3f80 | rand() % 128 | rand() % 2 << 15);
                b[k][m % 8] = (uint16_t)(0x3f80 | rand() % 128 | rand() % 2 << 15);
            }
            for (int n = 0; n < 8; n++) {
                c[m][n] = (float)(rand() % 2001 - 1000) / 100.0f;
            }
        }
        check_product(a, b, c, i % 2 == 0, 2e-5);
    }
}

static void test_fill(void **state) {
    (void)state;
    enum { VALID = 37, ROWS = 75 };
    float x[VALID][4], y[ROWS][4];
    for (int i = 0; i < VALID * 4; i++) {
        x[i / 4][i % 4] = (float)(i + 1);
    }
    struct gpu_stream *s = stream_new();
    void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s);
    copies_fill(s, dy, dx, VALID, ROWS);
    memory_take(y, dy, sizeof(y), s);
    gpu_memory_del(dx);
    gpu_stream_del(s);
    for (int i = 0; i < ROWS * 4; i++) {
        assert_true(y[i / 4][i % 4] == (i / 4 < VALID ? (float)(i + 1) : 0.0f));
    }
}

static void test_pipeline(void **state) {
    (void)state;
    enum { STEPS_MAX = 7, ROW = 128 };
    static float x[STEPS_MAX * ROW], y[STEPS_MAX * ROW];
    for (int i = 0; i < STEPS_MAX * ROW; i++) {
        x[i] = (float)i;
    }
    struct gpu_stream *s = stream_new();
    for (int steps = 1; steps <= STEPS_MAX; steps += 2) {
        const size_t bytes = (size_t)steps * ROW * sizeof(float);
        void *dx = memory_new(bytes, x, s), *dy = memory_new(bytes, NULL, s);
        copies_pipeline(s, dy, dx, steps);
        memory_take(y, dy, bytes, s);
        gpu_memory_del(dx);
        assert_memory_equal(x, y, bytes);
    }
    gpu_stream_del(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load), cmocka_unit_test(test_multiply_units), cmocka_unit_test(test_multiply),
        cmocka_unit_test(test_fill), cmocka_unit_test(test_pipeline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
