/* Tests of base/xxh64, by the values that its author publishes (xxHash, tests/sanity_test_vectors.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/xxh64.h"

enum { BYTES = 4160 };

/* The author's made-up input, at an odd address. */
static unsigned char memory[BYTES + 1], *const input = memory + 1;

static int make_input(void **state) {
    uint64_t g = 2654435761;
    (void)state;
    for (int i = 0; i < BYTES; i++) {
        input[i] = (unsigned char)(g >> 56);
        g *= UINT64_C(11400714785074694797);
    }
    return 0;
}

static void test_published_values(void **state) {
    static const struct {
        size_t bytes;
        uint64_t seed, is;
    } cases[] = {
        {0, 0, 0xef46db3751d8e999},    {0, 0x9e3779b1, 0xac75fda2929b17ef},
        {1, 0, 0xe934a84adb052768},    {1, 0x9e3779b1, 0x5014607643a9b4c3},
        {4, 0, 0x9136a0dca57457ee},    {4, 0x9e3779b1, 0xcaab286bd8e9fdb5},
        {8, 0, 0xcdbcf538e71d1348},    {8, 0x9e3779b1, 0xfe0c047a5353cdac},
        {14, 0, 0x8282dcc4994e35c8},   {14, 0x9e3779b1, 0xc3bd6bf63deb6df0},
        {32, 0, 0x18b216492bb44b70},   {32, 0x9e3779b1, 0xb3f33bdf93ade409},
        {33, 0, 0x55c8dc3e578f5b59},   {33, 0x9e3779b1, 0xe92c292f64bc3071},
        {100, 0, 0x4bfe019cd91d9ea4},  {100, 0x9e3779b1, 0x4853706dc9625cae},
        {222, 0, 0xb641ae8cb691c174},  {222, 0x9e3779b1, 0x20cb8ab7ae10c14a},
        {2048, 0, 0x5940f2752bc04387}, {4160, 0, 0xeee6a4e2ac952a5e},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (xxh64(input, cases[i].bytes, cases[i].seed) != cases[i].is)
            fail_msg("%zu bytes, seed %llx", cases[i].bytes, (unsigned long long)cases[i].seed);
    static const char text[] = "Nobody inspects the spammish repetition";
    assert_true(xxh64(text, strlen(text), 0) == 0xfbcea83c8a378bf1);
}

/* Every bit counts, at every length. */
static void test_every_bit(void **state) {
    (void)state;
    for (size_t n = 1; n < 100; n++) {
        const uint64_t is = xxh64(input, n, 0);
        for (size_t bit = 0; bit < 8 * n; bit++) {
            input[bit / 8] ^= (unsigned char)(1 << bit % 8);
            assert_true(xxh64(input, n, 0) != is);
            input[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
        assert_true(xxh64(input, n - 1, 0) != is);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_published_values),
                                       cmocka_unit_test(test_every_bit)};
    return cmocka_run_group_tests(tests, make_input, NULL);
}
