/* door: who is let in, how much waits, and how fast it goes. A request is inside from engine_finish until the
 * last of it goes into a forward (or it is dropped). Any thread. */
#ifndef TIMBRE_ENGINE_DOOR_H
#define TIMBRE_ENGINE_DOOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "base/status.h"

struct door;
struct engine_load;

int door_new(struct door **d, int requests_max, double audio_s_max, struct status *st);
void door_del(struct door *d); /* NULL is fine */
/* Where it shows what waits; NULL: nowhere. Before the first enters. */
void door_show(struct door *d, struct metrics_series *requests, struct metrics_series *audio_s);

/* Lets a request in that counts for `audio_us`. Whoever finds nobody inside is let in whatever its length.
 * With `wait` it waits for room. Errors: RESOURCE_EXHAUSTED (queue-depth, max-queued-seconds), UNAVAILABLE
 * (closed). */
int door_enter(struct door *d, int64_t audio_us, bool wait, struct status *st);
/* As door_enter for a request of no length, but it stays outside. */
int door_check(struct door *d, struct status *st);
/* Lets in one that is ready for the device, whatever the limits: what the engine itself runs, and windows of
 * live streams, which have limits of their own. */
void door_force(struct door *d, int64_t audio_us);

/* A request inside turned out to be `audio_us` long instead of `was_us`, and is ready for the device. What
 * became longer is refused when it and what else is ready pass the limit; with `wait` it waits until they do
 * not. When refused, it still counts for `was_us`. Error: RESOURCE_EXHAUSTED. */
int door_correct(struct door *d, int64_t was_us, int64_t audio_us, bool wait, struct status *st);

/* `requests` (may be 0) and `audio_us` leave; `ready`: they had passed door_correct. */
void door_leave(struct door *d, int requests, int64_t audio_us, bool ready);

/* A forward of so much audio begins, and is over; `counts`: its pace tells something. Several may run at
 * once: the rate is that of all together, so no moment counts twice. */
void door_begin_batch(struct door *d, int64_t audio_us);
void door_end_batch(struct door *d, int64_t audio_us, bool counts);

void door_measure(struct door *d, struct engine_load *load);
void door_close(struct door *d); /* nobody enters any more; who waits is refused */

/* A rate of work, smoothed over the last seconds of busy time. All zero: nothing known yet. */
struct door_pace {
    double work, busy_ns, batches; /* what is old counts for less than one */
};
void door_pace_add(struct door_pace *p, double work, double busy_ns); /* of one batch */

#endif
