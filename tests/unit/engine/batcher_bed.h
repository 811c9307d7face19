/* batcher_bed: requests for tests of the batcher, which are bare: only what it reads is set; and many threads
 * that bring and take them. */
#ifndef TIMBRE_TESTS_UNIT_ENGINE_BATCHER_BED_H
#define TIMBRE_TESTS_UNIT_ENGINE_BATCHER_BED_H

#include <stdatomic.h>
#include <stdint.h>

#include "engine/batcher.h"

/* Puts a request of so many items of `slot` samples each. within_ns: until its deadline; 0: it has none. */
struct engine_request *batcher_bed_put(struct batcher *b, struct batcher_lane *l, int items, int64_t slot,
                                       int64_t within_ns);
void batcher_bed_drop(struct engine_request *r);

struct batcher_bed_many {
    struct batcher *batcher;
    struct batcher_lane *const *lanes; /* one of which each request goes to */
    int lanes_count;
    int64_t slot_max;
    int requests; /* of each of three threads that put */
    int depth;    /* of the batcher: never more items than that wait */
    int workers;
    void *(*work)(void *worker); /* an int's address; counts what it ran in batcher_bed_items_run and in each
                                    item's batch_size, and returns when the batcher is closed */
};

extern atomic_int batcher_bed_items_run;

/* Puts and runs all of it, and asserts that every item is run once, in 20 s. Closes the batcher. */
void batcher_bed_run_many(const struct batcher_bed_many *m);

#endif
