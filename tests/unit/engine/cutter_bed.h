/* cutter_bed: a voice-activity rule whose decisions can be told from the samples, made-up calls, and what a
 * cutter makes of them, for the tests of cutters. */
#ifndef TIMBRE_TESTS_UNIT_ENGINE_CUTTER_BED_H
#define TIMBRE_TESTS_UNIT_ENGINE_CUTTER_BED_H

#include "audio/vad.h"
#include "engine/cutter.h"

/* The rule: a frame that is loud enough has speech. With memory it must also be nearly as loud as those of
 * the 7.5 s before, so that a cutter that asks for too little of them is found out. A test that declares
 * these has them in place of audio/vad.h's. */
extern bool vad_has_memory;
int __wrap_vad_hop(int rate_hz);
int __wrap_vad_length(int rate_hz);
int __wrap_vad_new(struct vad **out, int rate_hz, int64_t first_sample, struct status *st);
void __wrap_vad_del(struct vad *v);
size_t __wrap_vad_bound(const struct vad *v, size_t count);
size_t __wrap_vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech);

extern uint64_t chance;       /* the seed */
int64_t chance_to(int64_t n); /* 0 .. n - 1 */
double chance_s(double lo, double hi);
struct cutter_options chance_windows(int rate_hz);
struct cutter_options chance_utterances(int rate_hz);
extern const struct cutter_options utterance_options; /* plain ones, at 8 kHz */

struct signal {
    float *samples;
    int64_t count;
    int rate_hz;
};

/* More of the same level, 0 to 1. */
void signal_put(struct signal *s, double level, double length_s);
/* Something like a call: words, pauses, long silences, clicks, soft and loud, long monologues. */
struct signal signal_make_call(int rate_hz, double length_s);

/* What a cutter gave. */
struct list {
    struct cutter_piece *pieces; /* samples: a copy of its own */
    int64_t *needed;
    size_t count;
    unsigned char *speech; /* of frames from `frames_first` on */
    int64_t frames_first, frames_count;
    size_t most_held;
};

void list_free(struct list *l);
/* The pieces of the signal from options.first_sample on, fed in chunks of up to `chunk` samples. */
struct list list_cut(const struct signal *s, const struct cutter_options *o, int64_t chunk);
/* The pieces of `l` from number `from` on are those of `rest`, bit for bit. */
void list_expect_same(const struct list *l, size_t from, const struct list *rest);

#endif
