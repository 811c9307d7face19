/* batcher: what waits for the device, and what of it goes next.
 *
 * The device pulls: a free worker takes up to a budget of samples, after a short delay for company. Order is
 * by class, then deadline, then arrival, with aging (engine.h). The first item always goes, so nothing that
 * fits a worker can starve; requests whose callers left or whose deadline has passed are dropped unrun. */
#ifndef TIMBRE_ENGINE_BATCHER_H
#define TIMBRE_ENGINE_BATCHER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct batcher;
struct engine_request;
struct engine_item;

/* `depth`: requests it holds at most. Error: RESOURCE_EXHAUSTED. */
int batcher_new(struct batcher **b, int depth, int delay_us, struct status *st);
void batcher_del(struct batcher *b); /* must be empty; NULL is fine */

/* Takes a request that has items; waits while it is full. False when closed: the caller keeps it. */
bool batcher_put(struct batcher *b, struct engine_request *r);

/* Waits for work and fills items[0..*count) with at most count_max items whose slots sum to at most
 * samples_max (the first counts whatever its size). Requests to be dropped go to `dropped` (one at a time:
 * then *count is 0, and *dropped is a request whose items that were not handed out yet are `*dropped_items`).
 * False: closed and empty. */
bool batcher_take(struct batcher *b, int64_t samples_max, int count_max, struct engine_item **items,
                  int *count, struct engine_request **dropped, int *dropped_items);

void batcher_close(struct batcher *b);

#endif
