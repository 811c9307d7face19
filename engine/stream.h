/* stream: live audio of one call, of one or several channels. Like a request (engine.h) it is opened, fed and
 * finished; what comes of it comes back while it is fed.
 *
 * The owner has one thread at a time in these functions. Inside, a stream's turns are taken by the engine's
 * stream threads, one at a time, and its forwards ride in the same batches as everybody's: live windows
 * before all else, those of a stream that is fed faster than real time behind all else. The engine tells the
 * owner through `wake` that there are events. Two streams share nothing but the model.
 *
 * A channel that is excluded is skipped byte by byte: not decoded, not kept. Of the others, samples are kept
 * as long as a window that is not out yet needs them, and overwritten after that. */
#ifndef TIMBRE_ENGINE_STREAM_H
#define TIMBRE_ENGINE_STREAM_H

#include "audio/channels.h"
#include "engine/engine.h"
#include "engine/summary.h"

struct engine_stream;

enum {
    ENGINE_STREAM_CHANNELS_MAX = 8,
    ENGINE_STREAM_RATE_HZ_MIN = 8000,
    ENGINE_STREAM_RATE_HZ_MAX = 48000,
    ENGINE_STREAM_OVERLAP_MAX = 40,      /* window length over hop */
    ENGINE_STREAM_WINDOWS_MAX = 16,      /* of one stream, on the way through the engine; then it waits */
    ENGINE_STREAM_EVENTS_MAX = 64,       /* that the owner has not taken; then it waits */
    ENGINE_STREAM_OFFSET_STEP_MS = 1000, /* every resume_offset_ms is a multiple */
    ENGINE_STREAM_THREADS_DEFAULT = 2,
    ENGINE_STREAMS_MAX_DEFAULT = 512, /* max-streams */
    ENGINE_STREAMS_MAX = 100000,
};
/* A stream whose audio is further ahead of the clock than this is no live one: its windows go last. */
#define ENGINE_STREAM_AHEAD_S 10.0

#define ENGINE_UTTERANCE_S_MIN_DEFAULT 0.3
#define ENGINE_UTTERANCE_S_MAX_DEFAULT 15.0
#define ENGINE_HANGOVER_S_DEFAULT      0.5

struct engine_stream_channel {
    bool excluded;
    double had_s;          /* of a stream that goes on: end of the channel's last final result; 0: none */
    const float *smoothed; /* [labels] its last smoothed scores; NULL: none. Copied */
};

struct engine_stream_options {
    struct engine_model *model;
    struct audio_format format;                                        /* a raw encoding */
    struct engine_stream_channel channels[ENGINE_STREAM_CHANNELS_MAX]; /* the first format.channels of them */
    bool utterances;                                                   /* else windows */
    double window_s, hop_s, speech_s_min; /* 0: the defaults; hop_s 0: half of window_s */
    double length_s_min, length_s_max, hangover_s, interim_every_s; /* 0: the defaults; no interim results */
    double smoothing_s;                                             /* 0: none */
    double summary_every_s;                                         /* 0: only at the end */
    bool embedding;
    int64_t resume_offset_ms;            /* where the audio begins */
    const struct summary_report *before; /* a summary to go on from, or NULL. Copied */
    /* Called on a thread of the engine when there are events and the wake is armed; must not block. */
    void (*wake)(void *arg);
    void *wake_arg;
};

enum engine_stream_end {
    ENGINE_STREAM_GOES_ON,
    ENGINE_STREAM_FINISHED, /* by engine_stream_finish */
    ENGINE_STREAM_STOPPED,  /* by engine_stream_stop */
    ENGINE_STREAM_FAILED,   /* the audio is wrong, or the device failed: `status` says */
};

enum engine_stream_kind {
    ENGINE_STREAM_RESULT,
    ENGINE_STREAM_SUMMARY,
    ENGINE_STREAM_WANTS, /* the bytes of engine_stream_feed are taken: more may come */
    ENGINE_STREAM_END,   /* nothing comes any more */
};

/* Pointers are valid until the next call of engine_stream_take or engine_stream_close. */
struct engine_stream_event {
    enum engine_stream_kind kind;

    /* RESULT */
    int channel;
    double start_s, end_s, speech_s;
    bool final;
    enum engine_outcome outcome;
    const char *message;          /* a sentence when there is no score, else "" */
    const float *scores, *logits; /* [labels]; NULL unless ENGINE_OK */
    const float *smoothed;        /* [labels]; NULL: not wanted, or not final */
    const float *embedding;       /* [hidden]; NULL: not wanted */
    int dominant;                 /* label index; -1: none */
    int batch_size;               /* the receipt, as engine_result's */
    double queue_ms, compute_ms, audio_s;
    double lag_ms; /* from when the last byte that it needed was fed until it was ready */

    /* SUMMARY. The one before END tells of the whole stream. */
    const struct summary_report *summary;
    bool last;

    /* RESULT and SUMMARY: where the audio must begin for a stream that goes on after this event. */
    int64_t resume_offset_ms;

    /* END, and the last SUMMARY */
    enum engine_stream_end end;
    struct status status; /* OK, or why */
};

/* The wake is not armed at first. Errors: INVALID_ARGUMENT (what is out of range, by its name in
 * timbre.v1.StreamConfig), RESOURCE_EXHAUSTED (max-streams; memory), UNAVAILABLE (the device is lost, or the
 * engine is stopping). */
int engine_stream_open(struct engine_stream **s, const struct engine_stream_options *o, struct status *st);

/* Gives bytes, which must stay until release(arg) is called: once, on any thread, at the latest in
 * engine_stream_close. Not again before ENGINE_STREAM_WANTS has come, and not after finish or stop: INTERNAL
 * (then release is not called). */
int engine_stream_feed(struct engine_stream *s, const struct engine_piece *pieces, size_t count,
                       void (*release)(void *arg), void *arg, struct status *st);
/* A summary is wanted now: it comes when what was fed before was cut, without waiting for forwards. */
void engine_stream_summarise(struct engine_stream *s);
/* No more audio: the last windows, the last summary and END follow. */
void engine_stream_finish(struct engine_stream *s);
/* To be gone on with elsewhere: what was fed and is not cut yet is dropped, windows that are on their way
 * come, then the last summary and END. May follow engine_stream_finish. */
void engine_stream_stop(struct engine_stream *s);

/* The next event; false: there is none now, and the wake is armed: it will be called once when there is. Then
 * not again before it has been called. */
bool engine_stream_take(struct engine_stream *s, struct engine_stream_event *event);

/* Cancels what runs and gives the stream back, at any time. True: a wake that was armed will not be called
 * any more. False: none was armed, or it has been called, or is about to be. NULL is fine: false. */
bool engine_stream_close(struct engine_stream *s);

/* Streams that are open in the engine, or closed and on their way out. Any thread. */
int engine_count_streams(const struct engine *e);

/* A file of any format as the interleaved raw samples that a stream takes; free(c->data). Errors: those of
 * audio_read_channels. */
int engine_read_channels(struct audio_channels *c, const void *data, size_t bytes,
                         const struct audio_limits *limits, struct status *st);

#endif
