/* Tests of audio/g711 against the Recommendation's construction: decision values by adding up step sizes,
 * each output value in the middle between two of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "audio/g711.h"

/* G.711 table 2: 14-bit scale; decision values 0, 1, 3, 5, ..., 31 and then 16 steps of each size. */
static void test_mulaw_table(void **state) {
    (void)state;
    int decision[129] = {0, 1};
    for (int n = 1; n < 128; n++)
        decision[n + 1] = decision[n] + (2 << (n / 16));
    assert_int_equal(decision[128], 8159);
    for (int n = 0; n < 128; n++) {
        int value = n == 0 ? 0 : 4 * ((decision[n] + decision[n + 1]) / 2);
        assert_int_equal(g711_decode_mulaw((uint8_t)(0xff - n)), value);
        assert_int_equal(g711_decode_mulaw((uint8_t)(0x7f - n)), -value);
    }
}

/* G.711 table 1: 13-bit scale; 32 steps of 2, then 16 steps of each size. */
static void test_alaw_table(void **state) {
    (void)state;
    int decision[129] = {0};
    for (int n = 0; n < 128; n++)
        decision[n + 1] = decision[n] + (n < 32 ? 2 : 2 << (n / 16 - 1));
    assert_int_equal(decision[128], 4096);
    for (int n = 0; n < 128; n++) {
        int value = 8 * ((decision[n] + decision[n + 1]) / 2);
        assert_int_equal(g711_decode_alaw((uint8_t)((0x80 | n) ^ 0x55)), value);
        assert_int_equal(g711_decode_alaw((uint8_t)(n ^ 0x55)), -value);
    }
}

static void test_known_values(void **state) {
    (void)state;
    assert_int_equal(g711_decode_mulaw(0x00), -32124);
    assert_int_equal(g711_decode_mulaw(0x80), 32124);
    assert_int_equal(g711_decode_mulaw(0xff), 0);
    assert_int_equal(g711_decode_mulaw(0x7f), 0);
    assert_int_equal(g711_decode_mulaw(0xfe), 8);
    assert_int_equal(g711_decode_alaw(0xaa), 32256);
    assert_int_equal(g711_decode_alaw(0x2a), -32256);
    assert_int_equal(g711_decode_alaw(0xd5), 8);
    assert_int_equal(g711_decode_alaw(0x55), -8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mulaw_table),
        cmocka_unit_test(test_alaw_table),
        cmocka_unit_test(test_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
