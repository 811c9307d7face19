/* Tests of audio/g711 against the Recommendation's construction: decision values by adding up step sizes,
 * each output value in the middle between two of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "audio/g711.h"

/* G.711 tables 2a (positive) and 2b: 14-bit scale; decision values 0, 1, 3, 5, ..., 31 and then 16 steps of
 * each size. */
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

/* G.711 tables 1a (positive) and 1b: 13-bit scale; 32 steps of 2, then 16 steps of each size. */
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

/* The ends of the segments, from 0, as the tables print them, with the character signal of the interval below
 * each (table 1 before its even bits are inverted): the curve of 13 and that of 15 segments. */
static void test_segments(void **state) {
    (void)state;
    const struct {
        int end, step, code;
    } alaw[] = {{64, 2, 0x9f},    {128, 4, 0xaf},   {256, 8, 0xbf},   {512, 16, 0xcf},
                {1024, 32, 0xdf}, {2048, 64, 0xef}, {4096, 128, 0xff}},
      mulaw[] = {{31, 2, 0xf0},   {95, 4, 0xe0},    {223, 8, 0xd0},    {479, 16, 0xc0},
                 {991, 32, 0xb0}, {2015, 64, 0xa0}, {4063, 128, 0x90}, {8159, 256, 0x80}};
    for (int i = 0; i < 7; i++) {
        int below = alaw[i].end - alaw[i].step / 2, code = alaw[i].code ^ 0x55;
        assert_int_equal(g711_decode_alaw((uint8_t)code), 8 * below);
        assert_int_equal(g711_decode_alaw((uint8_t)(code ^ 0x80)), -8 * below);
        if (i < 6) { /* the first interval of the next segment */
            int above = alaw[i].end + alaw[i + 1].step / 2, next = (alaw[i].code + 1) ^ 0x55;
            assert_int_equal(g711_decode_alaw((uint8_t)next), 8 * above);
        }
    }
    for (int i = 0; i < 8; i++) {
        int below = mulaw[i].end - mulaw[i].step / 2;
        assert_int_equal(g711_decode_mulaw((uint8_t)mulaw[i].code), 4 * below);
        assert_int_equal(g711_decode_mulaw((uint8_t)(mulaw[i].code ^ 0x80)), -4 * below);
        if (i < 7) {
            int above = mulaw[i].end + mulaw[i + 1].step / 2;
            assert_int_equal(g711_decode_mulaw((uint8_t)(mulaw[i].code - 1)), 4 * above);
        }
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
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
