/* stream_bed: an owner of a stream that waits for its events, for the tests of this folder. */
#ifndef TIMBRE_TESTS_UNIT_ENGINE_STREAM_BED_H
#define TIMBRE_TESTS_UNIT_ENGINE_STREAM_BED_H

#include <semaphore.h>

#include "engine/stream.h"

enum { STREAM_BED_RESULTS_MAX = 4096, STREAM_BED_LABELS_MAX = 8 };

struct stream_bed_result {
    int channel;
    double start_s, end_s, speech_s;
    bool final, has_scores, has_smoothed;
    enum engine_outcome outcome;
    float scores[STREAM_BED_LABELS_MAX], smoothed[STREAM_BED_LABELS_MAX];
    int64_t resume_offset_ms;
};

/* One stream from its opening to its end. */
struct stream_bed {
    struct engine_stream *stream;
    sem_t woken;
    int labels;
    struct stream_bed_result *results; /* [count] */
    int count, wants, summaries;
    bool armed; /* the wake will come, or is there */
    bool ended;
    enum engine_stream_end end;
    struct status status;
    /* Of the last summary. */
    int64_t resume_offset_ms;
    double talk_over_s, start_s, end_s;
    struct summary_channel channels[ENGINE_STREAM_CHANNELS_MAX]; /* without what it points to */
    float means[ENGINE_STREAM_CHANNELS_MAX][STREAM_BED_LABELS_MAX];
};

/* Fails the test when it is refused. `o` gets the wake. */
void stream_bed_open(struct stream_bed *b, struct engine_stream_options *o);
/* Takes events until there is none; with `wait` until the next WANTS or the end. */
void stream_bed_take(struct stream_bed *b, bool wait);
/* Feeds one chunk and waits until it is taken. */
void stream_bed_feed(struct stream_bed *b, const void *data, size_t bytes);
/* Feeds all in chunks of 1..most bytes, by a generator that begins with `seed`; most 0: in one. */
void stream_bed_feed_all(struct stream_bed *b, const void *data, size_t bytes, size_t most, unsigned seed);
void stream_bed_end(struct stream_bed *b);   /* waits for END */
void stream_bed_close(struct stream_bed *b); /* the stream and what was kept */

/* Results of one channel, those that are not final left out, are the same bit for bit. */
void stream_bed_assert_equal(const struct stream_bed *a, int channel_a, const struct stream_bed *b,
                             int channel_b);

#endif
