/* queue: a bounded queue of pointers between threads. The only place, with team.h, where threads meet.
 *
 * Any number of threads may put and take. Whoever takes an item owns it; the queue owns nothing. The depth is
 * fixed at queue_new: a full queue refuses (queue_try_put) or makes the caller wait (queue_put). */
#ifndef TIMBRE_BASE_QUEUE_H
#define TIMBRE_BASE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct queue;

/* Errors: INVALID_ARGUMENT (depth 0), RESOURCE_EXHAUSTED (memory). */
int queue_new(struct queue **q, size_t depth, struct status *st);
void queue_del(struct queue *q); /* no thread may be inside; items left are not freed. NULL is fine. */

bool queue_try_put(struct queue *q, void *item); /* false: full or closed */
bool queue_put(struct queue *q, void *item);     /* waits while full; false: closed */

/* NULL: nothing there (and for queue_take: closed and empty). `deadline_ns` is on clock_now_ns; 0 returns at
 * once. */
void *queue_take(struct queue *q);
void *queue_take_until(struct queue *q, int64_t deadline_ns);

/* After close, puts fail and takes drain what is left, then return NULL at once. May be called more than
 * once. */
void queue_close(struct queue *q);
size_t queue_count(struct queue *q);

#endif
