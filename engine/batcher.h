/* batcher: what waits for the device, and what of it goes next.
 *
 * One lane a model; a batch is of one lane. The device pulls: its one worker takes up to a budget of samples.
 * In a lane the order is by class, then deadline, then arrival, with aging (engine.h). Of lanes the one goes
 * first whose best class is better, with aging by the time since it was last served, so that a flood in one
 * lane does not make its old requests everybody's first; among equals the one that has used the device least.
 * A lane that was empty saves up nothing. The first item always goes, so nothing that fits a worker can
 * starve. Requests nobody waits for, and those that cannot be done before their deadline, are dropped unrun.
 */
#ifndef TIMBRE_ENGINE_BATCHER_H
#define TIMBRE_ENGINE_BATCHER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/door.h"
#include "engine/request.h"

struct batcher;

/* Belongs to a model; all but `arriving` are the batcher's. */
struct batcher_lane {
    int64_t samples_max;  /* the budget of a batch */
    atomic_int arriving;  /* requests between engine_finish and here */
    struct batcher_list { /* entries, by arrival; -1: empty */
        int32_t first, last;
    } classes[ENGINE_CLASSES];
    int count;              /* requests */
    int64_t samples;        /* slots of their items that were not handed out */
    int64_t used_ns;        /* the device's time, but for what was given away while it was empty */
    struct door_pace pace;  /* in samples of slots */
    int64_t ran_ns;         /* when its last batch was over; 0: never */
    int64_t waits_since_ns; /* since it was served last, or became non-empty */
    struct batcher_lane *next;
};

struct batcher_batch {
    struct engine_item *items[ENGINE_BATCH_CLIPS_MAX];
    int count; /* 0: nothing to run */
    struct batcher_lane *lane;
    int requests;                /* that left for good with this batch */
    int64_t door_us;             /* audio that left with it, as the door counts */
    struct engine_request *dead; /* to be dropped; linked by `next` */
};

/* `depth`: requests it holds at most; the door sees to it. Error: RESOURCE_EXHAUSTED. */
int batcher_new(struct batcher **b, int depth, int delay_us, struct status *st);
void batcher_del(struct batcher *b); /* must be empty; NULL is fine */

void batcher_add_lane(struct batcher *b, struct batcher_lane *l, int64_t samples_max);
void batcher_remove_lane(struct batcher *b, struct batcher_lane *l); /* it must be empty */

/* Takes a request that has items and counted as arriving. *gone: it was cancelled already, so somebody should
 * sweep. */
void batcher_put(struct batcher *b, struct engine_request *r, bool *gone);
/* A request that counted as arriving does not come. */
void batcher_expect_less(struct batcher *b, struct batcher_lane *l);

/* Waits for work and fills `batch` with at most count_max items. `dead` may be there with and without items.
 * False: closed and empty. One thread. */
bool batcher_take(struct batcher *b, int count_max, struct batcher_batch *batch);
/* A batch of the lane took busy_ns for so many samples of slots. */
void batcher_ran(struct batcher *b, struct batcher_lane *l, int64_t samples, int64_t busy_ns);

/* Some request's mark may have changed: the next take looks at all. */
void batcher_suspect(struct batcher *b);
/* Takes out the dead, linked by `next`. *earliest_ns is lowered to the first deadline of those that stay. */
struct engine_request *batcher_sweep(struct batcher *b, int64_t now_ns, int64_t *earliest_ns);

void batcher_close(struct batcher *b);

#endif
