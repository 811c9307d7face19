/* summary: what a whole stream was like, in memory that does not grow with it. */
#ifndef TIMBRE_ENGINE_SUMMARY_H
#define TIMBRE_ENGINE_SUMMARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { SUMMARY_CHANNELS_MAX = 8, SUMMARY_SEGMENTS_MAX = 48 };
#define SUMMARY_SEGMENT_S 5.0 /* of the timeline at first; doubled whenever it is full */

/* A part of the timeline. All zero: nothing was there. */
struct summary_segment {
    double start_s, end_s;
    double speech_s;     /* weight of the scores */
    const float *scores; /* [labels] weighted means; NULL: none */
};

struct summary_channel {
    bool excluded;
    double speech_s, silence_s;
    int64_t results, no_speech_results, forwards;
    const float *scores; /* [labels] means weighted by speech; NULL: none yet */
    const float *trend;  /* [labels] last third less first third; NULL: one of them has no scores */
    const struct summary_segment *timeline; /* [timeline_count] of equal length, from start_s on */
    int timeline_count;
};

/* What summary_get gives, and summary_new can go on from. */
struct summary_report {
    int channels_count;
    struct summary_channel channels[SUMMARY_CHANNELS_MAX];
    double talk_over_s;
    double start_s, end_s; /* of the signal, as far as frames were counted */
};

struct summary;

/* `before` (may be NULL): what an earlier summary of the same stream said; frames before its end_s are not
 * counted again. Errors: INVALID_ARGUMENT (what of `before` is out of range or does not fit: named),
 * RESOURCE_EXHAUSTED. */
int summary_new(struct summary **s, int channels_count, const bool *excluded, int labels_count,
                double start_s, const struct summary_report *before, struct status *st);
void summary_del(struct summary *s); /* NULL is fine */

/* Decisions of the voice-activity rule for frames [first, first + count) of VAD_HOP_MS, of one channel, in
 * order. Talk-over is counted when all channels that are not excluded are there. */
void summary_add_frames(struct summary *s, int channel, int64_t first, size_t count,
                        const unsigned char *speech);
/* A final result: scores [labels], or NULL when there is none. The weight is its speech. An OK result without
 * any speech by the voice-activity rule counts with a small weight, so that a stream of such still has means.
 */
void summary_add_result(struct summary *s, int channel, double start_s, double end_s, double speech_s,
                        const float *scores, bool no_speech);
void summary_count_forward(struct summary *s, int channel);

/* Valid until the next call of any function. */
const struct summary_report *summary_get(struct summary *s);

#endif
