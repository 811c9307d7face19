/* request: the baton and its parts, for engine/ alone. Fields belong to whoever owns the baton, but for the
 * atomics. */
#ifndef TIMBRE_ENGINE_REQUEST_H
#define TIMBRE_ENGINE_REQUEST_H

#include <stdatomic.h>

#include "base/arena.h"
#include "engine/engine.h"

/* One forward's worth of a request: a whole clip or one window. The baton of the batcher and the worker. */
struct engine_item {
    struct engine_request *request;
    const float *samples; /* [count], within the request's clip */
    int64_t count, slot;  /* slot: what it takes of a worker's budget */
    struct engine_window *window;
    float *logits, *scores, *embedding; /* where the results go; embedding may be NULL */
    int batch_size;
    int64_t start_ns; /* of the forward it rode in; the same for all items of one batch */
    double compute_ms;
};

struct engine_request {
    struct engine *engine;
    struct engine_request_options options;
    atomic_bool cancelled;

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

/* Decodes what was fed, cuts it into windows, applies the level rule. Sets result and items_count; the baton
 * then goes to the batcher when items_count > 0, else to request_reply. */
void request_prepare(struct engine_request *r);

/* Counts `count` items as done; true for the caller that finished the last one and now owns the request. */
bool request_items_done(struct engine_request *r, int count);
/* Keeps the first failure. Thread-safe. */
void request_fail(struct engine_request *r, const struct status *st);

/* Sums up the windows into the result and hands the request back to its caller. */
void request_reply(struct engine_request *r);

#endif
