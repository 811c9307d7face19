/* batcher_internal: what struct batcher is made of, for engine/batcher*.c alone. The lock guards all of it.
 */
#ifndef TIMBRE_ENGINE_BATCHER_INTERNAL_H
#define TIMBRE_ENGINE_BATCHER_INTERNAL_H

#include <pthread.h>

#include "engine/batcher.h"

enum { BATCHER_NONE = -1 };

/* What choosing needs of a request, apart from it, so that walking over thousands stays in cache. */
struct batcher_entry {
    struct engine_request *request;
    int64_t ready_ns, deadline_ns; /* INT64_MAX: none */
    int64_t arrival;
    int64_t samples;        /* slots of items not handed out */
    int32_t next, previous; /* in its lane and class, or among the free */
};

struct batcher_candidate {
    int64_t rank, deadline_ns, arrival;
    int32_t entry;
};

struct batcher_worker {
    pthread_cond_t wake;
    bool waits, called;        /* in batcher_take; was woken there and has not looked yet */
    int64_t until_ns;          /* it looks then by itself; INT64_MAX: never */
    struct batcher_lane *runs; /* of its batch; NULL: none */
    int64_t samples, taken_ns; /* of that */
    int items;                 /* likewise */
};

struct batcher_device {
    int running;        /* batches */
    int narrow;         /* of those, on narrow workers: then nothing else runs */
    int64_t counted_ns; /* its time is counted up to here; while nothing runs, it is not */
};

/* Who may begin on the processor, narrow workers or the wide ones, and what that is decided from. */
struct batcher_mode {
    enum batcher_kind kind;
    bool busy;            /* by `load`, with hysteresis */
    bool hurried;         /* something waits that only a wide worker can do in time */
    int waiting, running; /* items of lanes that have narrow workers */
    int narrow_max;       /* workers of any such lane */
    double load;          /* items waiting and running, smoothed */
    int64_t load_ns;      /* up to then */
};

struct batcher {
    pthread_mutex_t lock; /* guards all below */
    struct batcher_worker workers[BATCHER_WORKERS_MAX];
    int workers_count; /* those that have ever come */
    /* Those that workers share, and behind them those that have one worker each, or are the processor. */
    struct batcher_device devices[2 * BATCHER_DEVICES_MAX];
    struct batcher_mode mode;
    int64_t delay_ns;
    int64_t earliest_ns; /* no deadline of what waits is earlier */
    int64_t arrivals;
    int64_t virtual_ns; /* used_ns of the lane that was served last, when it was */
    atomic_bool suspect;
    bool closed;
    int count;
    int32_t free;
    struct batcher_lane *lanes;
    struct engine_request *dead;
    struct batcher_candidate *heap; /* [depth] */
    struct batcher_entry entries[]; /* [depth] */
};

/* ---- batcher.c ---- */

/* Takes an entry out of its lane. */
void batcher_unlink(struct batcher *b, int32_t index);
/* Likewise, and puts its request among the dead. */
void batcher_bury(struct batcher *b, int32_t index, int64_t now_ns);
/* The best lane of those that `worker` may take from; -1: of those on the processor. NULL: nothing waits
 * there. */
struct batcher_lane *batcher_choose_lane(const struct batcher *b, int worker, int64_t now_ns);
bool batcher_may_take(const struct batcher_lane *l, int worker);

/* ---- batcher_fill.c ---- */

/* Takes the next batch of the lane for this worker, dropping what is hopeless. It may stay empty. */
void batcher_fill(struct batcher *b, struct batcher_lane *l, int worker, int count_max,
                  struct batcher_batch *batch, int64_t now_ns);

/* ---- batcher_devices.c ---- */

enum batcher_kind batcher_find_kind(const struct batcher_lane *l, int worker);
struct batcher_device *batcher_find_device(struct batcher *b, const struct batcher_lane *l, int worker);

/* When a forward of so many samples that begins then would be over at the lane's pace; 0 when nobody can
 * tell. */
int64_t batcher_predict_end_ns(const struct batcher_lane *l, enum batcher_kind kind, int64_t samples,
                               int64_t begin_ns, int64_t now_ns);
/* When a device will have run what it runs now; 0 when nobody can tell. */
int64_t batcher_predict_free_ns(struct batcher *b, const struct batcher_device *d, int64_t now_ns);

/* What a worker takes of a lane at most: all that are free are to have something to do. */
int64_t batcher_find_budget(struct batcher *b, const struct batcher_lane *l, int worker);

/* A worker begins with what it took, and is over with it; returns as batcher_ran. */
void batcher_begin(struct batcher *b, int worker, const struct batcher_batch *batch, int64_t now_ns);
int64_t batcher_end(struct batcher *b, int worker, int64_t samples, int64_t *begin_ns, int64_t now_ns);

/* Decides anew who may begin on the processor. */
void batcher_choose_mode(struct batcher *b, int64_t now_ns);
/* Whether this worker may begin a batch of the lane now, as was decided. */
bool batcher_may_begin(struct batcher *b, const struct batcher_lane *l, int worker);
/* So many items of the lane more, or fewer, wait. */
void batcher_count_waiting(struct batcher *b, struct batcher_lane *l, int items, int64_t now_ns);
/* A request cannot be done in time by a narrow worker, and could never have been: a wide one is to come. */
void batcher_hurry(struct batcher *b);

#endif
