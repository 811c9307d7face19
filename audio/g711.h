/* g711: ITU-T G.711 mu-law and A-law to linear, as the Recommendation's tables 1 and 2 define them. */
#ifndef TIMBRE_AUDIO_G711_H
#define TIMBRE_AUDIO_G711_H

#include <stdint.h>

/* 14-bit (mu-law) and 13-bit (A-law) values, scaled to 16 bit as everybody does: -32124..32124 and
 * -32256..32256. */
int16_t g711_decode_mulaw(uint8_t code);
int16_t g711_decode_alaw(uint8_t code);

#endif
