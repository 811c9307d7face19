/* batcher: what waits for the devices, and what of it goes next.
 *
 * One lane a model; a batch is of one lane. The devices pull: a free worker takes up to a budget of samples.
 * In a lane the order is by class, then deadline, then arrival, with aging (engine.h). Of lanes the one goes
 * first whose best class is better, with aging by the time since it was last served, so that a flood in one
 * lane does not make its old requests everybody's first; among equals the one that has used the device least.
 * A lane that was empty saves up nothing. The first item always goes, so nothing that fits a worker can
 * starve. A batch with live windows takes no company that would make it longer than 30 ms at the measured
 * pace, as its first window would wait for its last. Requests nobody waits for, and those that cannot be done
 * before their deadline, are dropped unrun.
 *
 * Several workers may share a device, so that one's audio is copied while the other computes. Their batches
 * run one after another all the same, and what is taken early cannot be joined by what comes later. So beside
 * a batch that runs a second one is taken only when it is full, or when the first is about to be over at the
 * measured pace.
 *
 * The processor is one device however many workers share it. A wide worker has all its threads, and answers
 * one clip soonest; narrow workers have a part of them each, and no barriers between them, so that together
 * they do more, also while another program takes one of the processors. The two kinds never run at the same
 * time. Which one begins is decided for all lanes together: narrow workers while there is enough for all of
 * them, over the last half second or right now; a wide one otherwise. */
#ifndef TIMBRE_ENGINE_BATCHER_H
#define TIMBRE_ENGINE_BATCHER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/door.h"
#include "engine/request.h"

struct batcher;

enum { BATCHER_DEVICES_MAX = MODEL_DEVICES_MAX, BATCHER_WORKERS_MAX = 64 };

enum batcher_kind { BATCHER_WIDE, BATCHER_NARROW, BATCHER_KINDS };

/* Who may take from a lane: the workers first .. first + count - 1. Worker i computes on device i % devices.
 */
struct batcher_workers {
    int first, count, devices;
    bool share; /* a device has several of them */
    int narrow; /* the last so many are narrow; then the device is the processor, and not shared */
    int64_t narrow_samples; /* the budget of a batch of one of those */
};

/* How fast batches of a lane are. */
struct batcher_pace {
    struct door_pace pace; /* in samples of slots; of one device, or of one narrow worker */
    int64_t ran_ns;        /* when the last was over; 0: never */
};

/* Belongs to a model; all but `arriving` and `lost` are the batcher's. */
struct batcher_lane {
    struct batcher_workers workers;
    int64_t samples_max;  /* the budget of a batch */
    atomic_int arriving;  /* requests between engine_finish and here */
    atomic_bool lost;     /* its device does not work any more: what waits is dead */
    struct batcher_list { /* entries, by arrival; -1: empty */
        int32_t first, last;
    } classes[ENGINE_CLASSES];
    int count;       /* requests */
    int items;       /* theirs that were not handed out */
    int64_t samples; /* slots of those */
    int64_t used_ns; /* the devices' time, but for what was given away while it was empty */
    struct batcher_pace pace[BATCHER_KINDS];
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

void batcher_add_lane(struct batcher *b, struct batcher_lane *l, int64_t samples_max,
                      struct batcher_workers workers);
void batcher_remove_lane(struct batcher *b, struct batcher_lane *l); /* it must be empty */

/* Takes a request that has items and counted as arriving. *gone: nobody waits for it any more already, so
 * somebody should sweep. */
void batcher_put(struct batcher *b, struct engine_request *r, bool *gone);
/* A request that counted as arriving does not come. */
void batcher_expect_less(struct batcher *b, struct batcher_lane *l);

/* Waits for work for worker 0 <= `worker` < BATCHER_WORKERS_MAX and fills `batch` with at most count_max
 * items. `dead` may be there with and without items. False: closed, and nothing is left for this worker. One
 * thread a worker. */
bool batcher_take(struct batcher *b, int worker, int count_max, struct batcher_batch *batch);
/* The batch that the worker took last, which had items, is over: `samples` of slots, 0 when it failed and its
 * time tells nothing. Returns the device's time that it is counted for: without the time during which the
 * device ran what was taken before it, so that no moment of a device counts twice. *begin_ns: when the device
 * began with it. Before anybody hears of it. */
int64_t batcher_ran(struct batcher *b, int worker, int64_t samples, int64_t *begin_ns);

/* Some request's mark may have changed: the next take looks at all. */
void batcher_suspect(struct batcher *b);
/* Takes out the dead, linked by `next`. *earliest_ns is lowered to the first deadline of those that stay. */
struct engine_request *batcher_sweep(struct batcher *b, int64_t now_ns, int64_t *earliest_ns);

void batcher_close(struct batcher *b);

#endif
