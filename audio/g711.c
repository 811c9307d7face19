#include "audio/g711.h"

/* A code is sign, 3 bits of segment and 4 bits of place within it; the value is the middle of the step. */

int16_t g711_decode_mulaw(uint8_t code) {
    int bits = ~code & 0xff; /* every bit is inverted on the line */
    int segment = (bits >> 4) & 7, place = bits & 15;
    /* The curve is shifted by 33 (of 8159), here times 4, so that each segment is a power of two. */
    int value = ((2 * place + 33) << segment) - 33;
    return (int16_t)((bits & 0x80) ? -4 * value : 4 * value);
}

int16_t g711_decode_alaw(uint8_t code) {
    int bits = code ^ 0x55; /* every even bit is inverted on the line */
    int segment = (bits >> 4) & 7, place = bits & 15;
    /* Segments 0 and 1 share one step size: together they are the straight part through zero. */
    int value = segment == 0 ? 2 * place + 1 : (2 * place + 33) << (segment - 1);
    return (int16_t)((bits & 0x80) ? 8 * value : -8 * value);
}
