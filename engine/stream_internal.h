/* stream_internal: what struct engine_stream is made of, for engine/stream*.c alone.
 *
 * A stream has a mailbox, under its lock: what its owner asked, requests that came back, events that were
 * not taken. All else belongs to its turn, which one stream thread at a time takes. Whoever puts something
 * into the mailbox sees to it that a turn follows (stream_schedule). */
#ifndef TIMBRE_ENGINE_STREAM_INTERNAL_H
#define TIMBRE_ENGINE_STREAM_INTERNAL_H

#include <pthread.h>

#include "audio/pcm.h"
#include "audio/resample.h"
#include "engine/cutter.h"
#include "engine/internal.h"
#include "engine/stream.h"

/* A piece of a channel, from when it was cut until it was told. */
struct stream_window {
    struct engine_stream *stream;
    struct stream_window *next, *next_done; /* in its channel; among those that came back */
    int channel;
    int64_t first, count; /* samples at the model's rate */
    int64_t needed;       /* with this one had, samples from here on are needed */
    bool final, done;
    double speech_s;
    enum engine_outcome outcome;
    struct engine_request *request; /* NULL: no forward */
    int64_t fed_ns, done_ns;
};

struct stream_channel {
    bool excluded;
    bool flushed, finished; /* the resampler; the cutter */
    struct resampler *resampler;
    struct cutter *cutter;
    struct stream_window *first, **last; /* by time */
    int64_t needed;                      /* with what was told */
    float *smoothed;                     /* [labels] */
    bool has_smoothed;
};

/* An event that waits to be taken. */
struct stream_node {
    struct stream_node *next;
    struct engine_stream_event event;
    struct summary_report report;
    struct status status; /* of a result: its sentence */
    struct arena block;   /* what they point to */
};

struct stream_bytes { /* of one engine_stream_feed */
    struct engine_piece *pieces;
    size_t count, at, offset; /* the next byte is pieces[at].data[offset] */
    void (*release)(void *arg);
    void *release_arg;
    int64_t fed_ns;
};

struct engine_stream {
    struct engine *engine;
    struct engine_model *model;
    struct engine_stream_options options; /* with the defaults filled in */
    struct engine_stream *next;           /* in the queue of turns */

    pthread_mutex_t lock;    /* guards the mailbox */
    bool scheduled;          /* in the queue of turns, or in its turn */
    bool again;              /* and another one is to follow */
    bool has_bytes;          /* something was fed, and is not all taken yet */
    struct stream_bytes fed; /* until a turn takes it over */
    bool summarise, finish, stop, closed;
    bool armed; /* the wake is to be called */
    bool wants, ended, end_told;
    bool waits_for_owner; /* there are too many events */
    struct stream_window *done;
    struct stream_node *events, **events_last, *taken;
    int events_count;
    struct status end_status;
    enum engine_stream_end end;

    /* The turn's own. */
    struct stream_bytes bytes; /* no pieces: none */
    struct pcm_reader reader;
    struct stream_channel channels[ENGINE_STREAM_CHANNELS_MAX];
    struct summary *summary;
    double summary_due_s;
    int64_t first_frame, frames; /* of the source: where it began, and how many came */
    int64_t begin_ns, fed_ns;
    int in_flight, untold; /* windows that run, and all that were cut and not told */
    double in_flight_s;
    bool ending, told_last;
    enum engine_stream_end turn_end;
    struct status turn_status;
};

/* ---- stream_turns.c: who is next ---- */

struct stream_turns;
int stream_turns_new(struct stream_turns **t, struct status *st);
void stream_turns_del(struct stream_turns *t);
void stream_turns_put(struct stream_turns *t, struct engine_stream *s);
struct engine_stream *stream_turns_take(struct stream_turns *t); /* NULL: closed, and none is left */
void stream_turns_close(struct stream_turns *t);

/* ---- stream_state.c ---- */

/* With the lock: a turn is to follow. True: the caller puts it into the queue of turns when it has given the
 * lock back; else somebody does, and the stream may be gone from then on. */
bool stream_schedule(struct engine_stream *s);
/* The stream ends with this, once what is on its way has come. The first one counts. */
void stream_end(struct engine_stream *s, enum engine_stream_end end, const struct status *st);
void stream_free_node(struct stream_node *n); /* NULL is fine */

/* ---- stream_options.c ---- */

/* Fills in the defaults and checks. Error: INVALID_ARGUMENT. */
int stream_settle_options(struct engine_stream_options *o, struct status *st);

/* ---- stream_cut.c: bytes to pieces ---- */

/* What a stream thread keeps for decoding; all zero at first. */
struct stream_scratch {
    float *pcm, *resampled;
    size_t pcm_values, resampled_values;
};
void stream_free_scratch(struct stream_scratch *x);

int stream_open_channels(struct engine_stream *s, struct status *st);
void stream_close_channels(struct engine_stream *s);
/* The second of the model's signal at which the cutters begin. */
int64_t stream_find_begin_s(const struct engine_stream *s);
/* Decodes and cuts up to a step of what was fed, or what is left at the end. False: nothing is left to do
 * now. Pieces go to stream_window_put. Errors end the stream (stream_end). */
bool stream_cut(struct engine_stream *s, struct stream_scratch *x, bool finish);
void stream_drop_bytes(struct stream_bytes *b); /* gives them back */

/* ---- stream_window.c: pieces to results ---- */

bool stream_may_cut(struct engine_stream *s);
/* Takes a piece of the cutter: into its channel's line, and to the batcher when it needs a forward. */
void stream_window_put(struct engine_stream *s, int channel, const struct cutter_piece *piece);
/* A window's request came back. */
void stream_window_finish(struct engine_stream *s, struct stream_window *w);
/* Makes events of what is done and whose turn it is. */
void stream_tell(struct engine_stream *s);
void stream_tell_summary(struct engine_stream *s, bool last);
void stream_cancel_windows(struct engine_stream *s);
void stream_free_windows(struct engine_stream *s);

/* ---- stream_turn.c ---- */

/* With nothing on its way any more. */
void stream_free(struct engine_stream *s);

#endif
