/* cutter_internal: what a cutter is made of, for engine/cutter*.c alone. */
#ifndef TIMBRE_ENGINE_CUTTER_INTERNAL_H
#define TIMBRE_ENGINE_CUTTER_INTERNAL_H

#include "audio/vad.h"
#include "engine/cutter.h"

/* The rule for utterances, besides what the options say. */
enum {
    CUTTER_CONFIRM_FRAMES = 5, /* speech begins when of so many frames, */
    CUTTER_CONFIRM_SPEECH = 3, /* so many have speech; */
    CUTTER_LEAD_MS = 100,      /* the utterance so much before the first of those, */
    CUTTER_TAIL_MS = 100,      /* and it ends so much after its last frame of speech, or half the hangover */
};

/* Utterances are looked for frame by frame; all places and lengths are in frames. Nothing but the decisions
 * themselves and `base` goes into what comes after a final piece: so a cutter that goes on there finds the
 * same. */
struct cutter_utterances {
    int64_t frames_min, frames_max, hangover, lead, tail, interim, silence; /* interim 0: none */
    int64_t length;     /* of a frame, rounded up to hops */
    int64_t base;       /* end of the last final piece: nothing begins before it */
    int64_t next;       /* the frame to be looked at next */
    int64_t confirm_at; /* frames before this one are not asked whether speech begins */
    bool open;
    int64_t first, last; /* of the open one: where it begins, its last frame of speech */
    int64_t interims;    /* of it, that were due so far */
};

struct cutter {
    struct cutter_options options;
    struct vad *vad;
    int64_t frame_hop, frame_length; /* samples */
    int64_t end;                     /* of the samples that came */
    bool finished;

    float *block; /* [capacity]; the samples [held_first, end) begin at `at` */
    size_t capacity, at;
    int64_t held_first;

    unsigned char *speech; /* [speech_capacity] decisions of frames [frames_first, frames_end) */
    size_t speech_capacity;
    int64_t frames_first, frames_end;
    int64_t frames_taken; /* frames before this one were taken by cutter_take_frames */

    int64_t last_end; /* of the last final piece */
    bool any_final;   /* there was one, here or before */

    int64_t window; /* the next one's number */
    struct cutter_utterances utterances;
};

/* Frames of speech among those wholly in samples [first, first + count). */
int64_t cutter_count_speech(const struct cutter *c, int64_t first, int64_t count);
/* The first frame that begins at `sample` or later. */
int64_t cutter_frame_from(const struct cutter *c, int64_t sample);
bool cutter_get_frame(const struct cutter *c, int64_t frame);
/* A piece of samples [first, first + count), which are held unless it has no speech. */
void cutter_fill_piece(struct cutter *c, struct cutter_piece *piece, int64_t first, int64_t count, bool final,
                       bool no_speech);

/* ---- cutter_utterances.c ---- */

void cutter_init_utterances(struct cutter *c, int64_t begin_sample);
bool cutter_next_utterance(struct cutter *c, struct cutter_piece *piece);
/* Samples and frames before these are not needed any more. */
int64_t cutter_find_utterance_sample(const struct cutter *c);
int64_t cutter_find_utterance_frame(const struct cutter *c);

#endif
