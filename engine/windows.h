/* windows: where the windows of a clip lie. Window k covers samples k * hop up to window samples; there is
 * one for every k whose window lies wholly in the clip, and a shorter last one, at the next k, when samples
 * are left behind the end of the last full window. So a stream can give each full window as soon as it is
 * there, and the rest at its end. */
#ifndef TIMBRE_ENGINE_WINDOWS_H
#define TIMBRE_ENGINE_WINDOWS_H

#include <stdint.h>

/* Windows of a clip of `count` >= 0 samples; window, hop >= 1, hop <= window. 0 for an empty clip. */
int64_t windows_count(int64_t count, int64_t window, int64_t hop);
/* First sample and length of window k < windows_count. */
void windows_get(int64_t count, int64_t window, int64_t hop, int64_t k, int64_t *first, int64_t *length);

#endif
