/* team: a fixed group of threads that run one function together, for the kernels.
 *
 * The caller is thread 0 of the team; the others wait, spinning shortly and then sleeping. Only one thread at
 * a time may own a team. Work is handed out in tiles by an atomic counter, so a thread that is disturbed does
 * less. */
#ifndef TIMBRE_BASE_TEAM_H
#define TIMBRE_BASE_TEAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { TEAM_THREADS_MAX = 256 };

struct team;

/* `threads` in 1..TEAM_THREADS_MAX, the caller included; 0 takes one for each processor this process may use.
 * With `pin`, thread i stays on number pin_first + i of those processors (counted from 0, around and around);
 * the caller is pinned when it first calls team_run or team_for. Pinning that the kernel refuses is not an
 * error. Errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED. */
int team_new(struct team **t, int threads, bool pin, int pin_first, struct status *st);
void team_del(struct team *t); /* NULL is fine */

int team_count_threads(const struct team *t);
int team_count_processors(void); /* that this process may run on; at least 1 */

/* Calls fn(arg, thread, threads) once on every thread and returns when all are done. Everything a thread
 * wrote is visible to all afterwards. */
void team_run(struct team *t, void (*fn)(void *arg, int thread, int threads), void *arg);

/* Calls fn(arg, tile, thread) for every tile in 0..tiles-1, each exactly once, on whichever thread is free.
 * With one tile or one thread it runs on the caller without waking anybody. It returns when the tiles are
 * done, and waits for no thread that has not begun. `thread` (0..threads-1) is for scratch memory; results
 * must not depend on it. */
void team_for(struct team *t, int64_t tiles, void (*fn)(void *arg, int64_t tile, int thread), void *arg);

#endif
