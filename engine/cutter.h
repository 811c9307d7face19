/* cutter: where the windows and utterances of one channel lie. Samples go in as they come, pieces to be
 * answered come out. No threads, no model, no clock; the same samples give the same pieces however they were
 * cut. Keeps no sample longer than a piece that is not out yet may need it. */
#ifndef TIMBRE_ENGINE_CUTTER_H
#define TIMBRE_ENGINE_CUTTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct cutter;

#define CUTTER_SILENCE_S 15.0 /* utterances: after so much without speech, and again, a piece says so */

struct cutter_options {
    int rate_hz;
    bool utterances; /* else windows */

    /* Windows: as windows.h lays them. */
    int64_t window, hop; /* samples */
    double speech_s_min; /* 0: not asked for */

    /* Utterances, in seconds. */
    double length_s_min, length_s_max, hangover_s, interim_every_s;

    /* Where the samples begin in the signal (a whole second), and what of it was answered: pieces that end by
     * had_end (samples) are not given again; an utterance may begin there at the earliest. 0: nothing was
     * had, and windows may begin at first_sample + VAD_MEMORY_S (at 0 when that is where the samples begin).
     */
    int64_t first_sample, had_end;
};

/* A window, an utterance or a silence. */
struct cutter_piece {
    int64_t first, count; /* samples of the signal */
    bool final;           /* false: an utterance that still grows */
    bool no_speech;       /* by the voice-activity rule; the level rule is not asked here */
    double speech_s;      /* frames of speech wholly in it, times the hop */
    const float *samples; /* [count]; valid until the next call of any function. NULL with no_speech */
};

/* Errors: RESOURCE_EXHAUSTED, INVALID_ARGUMENT (rate). The options are taken to be in range otherwise. */
int cutter_new(struct cutter **c, const struct cutter_options *o, struct status *st);
void cutter_del(struct cutter *c); /* NULL is fine. What it held is overwritten before it is freed */

/* Adds samples: may be called again only when cutter_next has said false. Error: RESOURCE_EXHAUSTED. */
int cutter_feed(struct cutter *c, const float *samples, size_t count, struct status *st);
/* The signal is over: the last, shorter window, or the utterance that is open, comes out too. Once. */
int cutter_finish(struct cutter *c, struct status *st);
/* The next piece, in the order of their ends; false: more samples are needed. */
bool cutter_next(struct cutter *c, struct cutter_piece *piece);

/* Frames of VAD_HOP_MS that were decided since the last call, in order: speech [returned], of the signal's
 * frames from *first on. Valid until the next call of any function. */
size_t cutter_take_frames(struct cutter *c, int64_t *first, const unsigned char **speech);

/* Samples of the signal before this one are not needed any more by a cutter that goes on with
 * had_end = the end of the last final piece given: VAD_MEMORY_S before what is not answered yet begins, or 0.
 */
int64_t cutter_find_needed(const struct cutter *c);
/* Samples held now. */
size_t cutter_count_held(const struct cutter *c);

/* Speech (as the rule of pieces counts it) in samples [first, first + count) of a signal that is all there:
 * what a windowed request asks. speech: [frames] from frame 0 on, of vad_process over the whole signal. */
double cutter_measure_speech_s(const unsigned char *speech, int64_t frames, int rate_hz, int64_t first,
                               int64_t count);

#endif
