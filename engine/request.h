/* request: the baton and its parts, for engine/ alone. Fields belong to whoever owns the baton, but for the
 * atomics. */
#ifndef TIMBRE_ENGINE_REQUEST_H
#define TIMBRE_ENGINE_REQUEST_H

#include <stdatomic.h>

#include "base/arena.h"
#include "engine/engine.h"

enum { ENGINE_CLASSES = ENGINE_BULK + 1 };

struct batcher_lane;
struct engine_model;

/* One forward's worth of a request: a whole clip or one window. The baton of the batcher and the worker. */
struct engine_item {
    struct engine_request *request;
    const float *samples; /* [count], within the request's clip */
    int64_t count, slot;  /* slot: what it takes of a worker's budget */
    struct engine_window *window;
    float *logits, *scores, *embedding; /* where the results go; embedding may be NULL */
    int batch_size;
    int64_t start_ns; /* when the device began its forward; the same for all items of one batch */
    double compute_ms;
};

struct engine_request {
    struct engine *engine;
    struct engine_model *model;
    struct batcher_lane *lane; /* the model's */
    struct engine_request_options options;
    bool patient;   /* finished with `wait` */
    bool any_level; /* the level rule is not applied */
    bool flat;      /* given in pieces, and now one block in `bytes` */
    atomic_bool cancelled;

    struct engine_request *next; /* in the list that holds it */
    int64_t waits_since_ns;      /* in that list */
    bool arriving;               /* counted in the lane as on its way to the batcher */
    bool inside, ready;          /* counted at the door, and that as decoded */
    int64_t door_us;             /* what it counts for there */
    int64_t needs_ns; /* of the device, more than its deadline leaves; 0: not known to be hopeless */

    void (*release)(void *arg); /* of engine_give; NULL when there is nothing to release */
    void *release_arg;
    struct engine_piece *pieces; /* as given */
    size_t pieces_count;
    unsigned char *bytes; /* as fed; freed once decoded */
    size_t bytes_count, bytes_capacity;

    struct audio_clip clip;
    struct arena block; /* all that follows, in one allocation */
    struct engine_window *windows;
    int windows_count;         /* 1 for a whole clip */
    bool windowed;             /* windows are shown in the result */
    struct engine_item *items; /* the windows that need a forward */
    int items_count;
    float *logits, *scores, *embedding; /* of the result */

    int next_item;         /* the batcher's: first item not yet handed out */
    atomic_int items_left; /* not yet run or dropped; who takes it to 0 finishes the request */
    int64_t ready_ns;      /* when it entered the batcher */
    atomic_bool failed;    /* set by the first item that fails, which alone then writes `failure` */
    struct status failure; /* read by whoever finishes the last item */

    struct engine_result result;
};

/* The class after aging: one better for every ENGINE_AGING_MS waited, without a floor, so that old bulk work
 * overtakes even a steady stream of live work with deadlines. */
static inline int64_t request_rank(int order, int64_t since_ns, int64_t now_ns) {
    return order - (now_ns - since_ns) / ((int64_t)ENGINE_AGING_MS * 1000000);
}

/* Nobody waits for it any more, or nothing can run it. */
bool request_is_dead(const struct engine_request *r, int64_t now_ns);

/* What is to become of a request that was prepared. */
enum request_next {
    REQUEST_RUN,       /* to the batcher: it has items */
    REQUEST_REPLY,     /* its result is there */
    REQUEST_TRANSCODE, /* ffmpeg is needed, and was not to be asked here */
};
/* Decodes what was fed, cuts it into windows, applies the level rule, and that of voice activity if asked. */
enum request_next request_prepare(struct engine_request *r, bool may_ask_ffmpeg);

/* What becomes of a window before any forward, of an upload's and a stream's alike: ENGINE_OK means that one
 * is needed. `no_speech`: what the voice-activity rule says, when it was asked; then samples [count] are not
 * looked at. */
enum engine_outcome request_judge(const struct engine *e, const struct model_info *info, const float *samples,
                                  int64_t count, bool no_speech);

/* Audio that a request counts for before it is decoded (engine.h: queued_s_max), in microseconds. */
int64_t request_estimate_us(const struct engine_request *r);

/* Frees the bytes that came in, or gives them back to who gave them. */
void request_free_bytes(struct engine_request *r);

/* Why nothing that is asked of a model can be run: its device is lost. Error: UNAVAILABLE. */
int request_check_device(const struct engine_model *m, struct status *st);

/* It is not among those inside any more, and not on its way to the batcher. */
void request_leave(struct engine_request *r);
void request_expect_less(struct engine_request *r);

/* Counts `count` items as done; true for the caller that finished the last one and now owns the request. */
bool request_items_done(struct engine_request *r, int count);
/* Keeps the first failure; true when this is it. Thread-safe. */
bool request_fail(struct engine_request *r, const struct status *st);
/* Why it is dropped. */
void request_explain_drop(const struct engine_request *r, struct status *st);

/* A wake that is still to be called: requests that are done together wake their caller once. All zero: none.
 */
struct request_wake {
    void (*wake)(void *arg);
    void *arg;
};
void request_wake_flush(struct request_wake *w);

/* Sums up the windows into the result and hands the request back to its caller. Leaves the wake in `w`;
 * before it must wait for room in the reply queue it calls what is there. NULL: calls it at once. */
void request_reply(struct engine_request *r, struct request_wake *w);

#endif
