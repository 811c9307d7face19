/* bf16 both ways, vector accesses, activations. */
#include "tests/unit/cuda_shim/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/cuda_shim/kernels.h"

enum { ALL = 65536 };

static float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
static uint32_t as_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
static bool is_nan(uint32_t h) {
    return (h & 0x7fff) > 0x7f80;
}

static void test_widen(void **state) {
    (void)state;
    static uint16_t x[ALL];
    static float y[ALL];
    for (int i = 0; i < ALL; i++) {
        x[i] = (uint16_t)i;
    }
    struct gpu_stream *s = stream_new();
    void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s);
    numbers_widen(s, dy, dx, ALL);
    memory_take(y, dy, sizeof(y), s);
    gpu_memory_del(dx);
    gpu_stream_del(s);
    for (uint32_t i = 0; i < ALL; i++) {
        assert_int_equal(as_bits(y[i]), i << 16);
    }
}

/* The float with `tail` below the bits of bf16 h becomes `wanted`. */
static void check_round(uint32_t tail, uint16_t (*wanted)(uint32_t h)) {
    static float x[ALL];
    static uint16_t y[ALL];
    for (uint32_t i = 0; i < ALL; i++) {
        x[i] = as_float(i << 16 | tail);
    }
    struct gpu_stream *s = stream_new();
    void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s);
    numbers_round(s, dy, dx, ALL);
    memory_take(y, dy, sizeof(y), s);
    gpu_memory_del(dx);
    gpu_stream_del(s);
    for (uint32_t i = 0; i < ALL; i++) {
        const bool nan = is_nan(i) || ((i & 0x7fff) == 0x7f80 && tail != 0);
        assert_int_equal(y[i], nan ? 0x7fff : wanted(i));
    }
}
static uint16_t same(uint32_t h) {
    return (uint16_t)h;
}
static uint16_t next(uint32_t h) { /* away from zero; the largest finite one becomes infinite */
    return (uint16_t)(h + 1);
}
static uint16_t even(uint32_t h) {
    return (uint16_t)(h + (h & 1));
}

static void test_round(void **state) {
    (void)state;
    check_round(0, same);
    check_round(1, same);
    check_round(0x7fff, same);
    check_round(0x8000, even); /* halfway */
    check_round(0x8001, next);
    check_round(0xffff, next);
}

static void test_copy(void **state) {
    (void)state;
    static uint16_t x[ALL], y[ALL];
    for (int i = 0; i < ALL; i++) {
        x[i] = is_nan((uint32_t)i) ? 0x7fff : (uint16_t)i;
    }
    const enum numbers_width widths[] = {NUMBERS_4, NUMBERS_8, NUMBERS_PACK};
    struct gpu_stream *s = stream_new();
    for (int w = 0; w < 3; w++) {
        void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s);
        numbers_copy(s, dy, dx, ALL, widths[w]);
        memory_take(y, dy, sizeof(y), s);
        gpu_memory_del(dx);
        assert_memory_equal(x, y, sizeof(x));
    }
    gpu_stream_del(s);
}

static double activation(enum cuda_activation act, double x) {
    switch (act) {
    case CUDA_GELU:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case CUDA_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case CUDA_RELU:
        return x > 0.0 ? x : 0.0;
    case CUDA_SILU:
        return x / (1.0 + exp(-x));
    case CUDA_TANH:
        return tanh(x);
    default:
        return x;
    }
}

static void test_activate(void **state) {
    (void)state;
    enum { N = 4001 };
    static float x[N], y[N], z[N];
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i - N / 2) * (12.0f / (N / 2));
    }
    struct gpu_stream *s = stream_new();
    for (int act = CUDA_IDENTITY; act <= CUDA_TANH; act++) {
        void *dx = memory_new(sizeof(x), x, s), *dy = memory_new(sizeof(y), NULL, s),
             *dz = memory_new(sizeof(z), NULL, s);
        numbers_activate(s, dy, dx, N, (enum cuda_activation)act, true);
        numbers_activate(s, dz, dx, N, (enum cuda_activation)act, false);
        memory_take(y, dy, sizeof(y), s);
        memory_take(z, dz, sizeof(z), s);
        gpu_memory_del(dx);
        assert_memory_equal(y, z, sizeof(y));
        for (int i = 0; i < N; i++) {
            const double wanted = activation((enum cuda_activation)act, x[i]);
            /* 1 + erf(x) loses the digits of a small sum: fp32's half unit of 1, times x / 2 */
            if (fabs((double)y[i] - wanted) > 4e-7 * fabs(wanted) + 2e-7 * fabs((double)x[i])) {
                fail_msg("activation %d of %.9g is %.9g, not %.9g", act, x[i], y[i], wanted);
            }
        }
    }
    gpu_stream_del(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widen),
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_activate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
