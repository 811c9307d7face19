/* Samples and decisions as they come, and windows over them. */
#include "engine/cutter_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "engine/windows.h"

/* ---- frames
 * ------------------------------------------------------------------------------------------------ */

int64_t cutter_frame_from(const struct cutter *c, int64_t sample) {
    return sample / c->frame_hop + (sample % c->frame_hop != 0);
}

bool cutter_get_frame(const struct cutter *c, int64_t frame) {
    return c->speech[frame - c->frames_first] != 0;
}

/* Speech among the frames [first, end) whose decisions begin with frame 0 at `speech`. */
static int64_t count_ones(const unsigned char *speech, int64_t first, int64_t end) {
    int64_t n = 0;
    for (int64_t i = first; i < end; i++)
        n += speech[i] != 0;
    return n;
}

/* Frames wholly in samples [first, first + count): *from to the one before the returned. */
static int64_t find_frames(int64_t hop, int64_t length, int64_t first, int64_t count, int64_t *from) {
    *from = (first + hop - 1) / hop;
    if (count < length)
        return *from;
    return (first + count - length) / hop + 1;
}

static double measure_s(int64_t frames, int64_t hop, int rate_hz) {
    return (double)(frames * hop) / rate_hz;
}

int64_t cutter_count_speech(const struct cutter *c, int64_t first, int64_t count) {
    int64_t from, end = find_frames(c->frame_hop, c->frame_length, first, count, &from);
    from = from > c->frames_first ? from : c->frames_first;
    end = end < c->frames_end ? end : c->frames_end;
    return count_ones(c->speech, from - c->frames_first, end - c->frames_first);
}

double cutter_measure_speech_s(const unsigned char *speech, int64_t frames, int rate_hz, int64_t first,
                               int64_t count) {
    const int64_t hop = vad_hop(rate_hz);
    int64_t from, end = find_frames(hop, vad_length(rate_hz), first, count, &from);
    return measure_s(count_ones(speech, from, end < frames ? end : frames), hop, rate_hz);
}

size_t cutter_take_frames(struct cutter *c, int64_t *first, const unsigned char **speech) {
    const int64_t from = c->frames_taken;
    *first = from;
    *speech = c->speech + (from - c->frames_first);
    c->frames_taken = c->frames_end;
    return (size_t)(c->frames_end - from);
}

/* ---- what is held
 * ------------------------------------------------------------------------------------------------ */

/* Audio is overwritten where it is not needed any more: explicit_bzero, as nobody reads it again. */
static void wipe(float *samples, size_t count) {
    if (count)
        explicit_bzero(samples, count * sizeof *samples);
}

size_t cutter_count_held(const struct cutter *c) {
    return (size_t)(c->end - c->held_first);
}

static int64_t find_next_window(const struct cutter *c) {
    return c->window * c->options.hop;
}

/* Gives up the samples and decisions that no piece to come can need. */
static void trim(struct cutter *c) {
    const int64_t frames_first = c->frames_first;
    int64_t sample = c->options.utterances ? cutter_find_utterance_sample(c) : find_next_window(c);
    int64_t frame =
        c->options.utterances ? cutter_find_utterance_frame(c) : cutter_frame_from(c, find_next_window(c));
    if (c->finished || sample > c->end)
        sample = c->end;
    if (sample > c->held_first) {
        wipe(c->block + c->at, (size_t)(sample - c->held_first));
        c->at += (size_t)(sample - c->held_first);
        c->held_first = sample;
    }
    frame = c->finished || frame > c->frames_taken ? c->frames_taken : frame;
    if (frame > frames_first) {
        memmove(c->speech, c->speech + (frame - frames_first), (size_t)(c->frames_end - frame));
        c->frames_first = frame;
    }
}

/* Moves what is held to the block's beginning, or into a larger block, so that `count` more samples fit. A
 * quarter more than is needed, so that this is not done for every feed. Blocks are not given to realloc,
 * which could leave a copy behind. */
static int reserve_samples(struct cutter *c, size_t count, struct status *st) {
    const size_t held = cutter_count_held(c);
    size_t values, bytes;
    if (count <= c->capacity - c->at - held)
        return 0;
    if (!check_add_size(held, count, &values) || !check_add_size(values, values / 4, &values) ||
        !check_mul_size(values, sizeof *c->block, &bytes))
        return status_set_no_memory(st, SIZE_MAX, "samples of a stream");
    if (values <= c->capacity) {
        const size_t gap = c->at;
        memmove(c->block, c->block + gap, held * sizeof *c->block);
        wipe(c->block + (gap > held ? gap : held), gap > held ? held : gap);
        c->at = 0;
        return 0;
    }
    float *block = malloc(bytes);
    if (!block)
        return status_set_no_memory(st, bytes, "samples of a stream");
    if (held) {
        memcpy(block, c->block + c->at, held * sizeof *block);
        wipe(c->block + c->at, held);
    }
    free(c->block);
    c->block = block;
    c->capacity = values;
    c->at = 0;
    return 0;
}

static int reserve_frames(struct cutter *c, size_t count, struct status *st) {
    size_t frames = (size_t)(c->frames_end - c->frames_first);
    if (!check_add_size(frames, count, &frames))
        return status_set_no_memory(st, SIZE_MAX, "a stream");
    if (frames <= c->speech_capacity)
        return 0;
    frames += frames / 4;
    unsigned char *grown = realloc(c->speech, frames);
    if (!grown)
        return status_set_no_memory(st, frames, "a stream");
    c->speech = grown;
    c->speech_capacity = frames;
    return 0;
}

/* ---- from beginning to end
 * ------------------------------------------------------------------------------------------------ */

/* Where the first piece may begin. */
static int64_t find_begin(const struct cutter_options *o) {
    if (o->first_sample == 0)
        return 0;
    return o->first_sample + (int64_t)VAD_MEMORY_S * o->rate_hz;
}

/* The first window that is not answered, and whose samples will come. */
static int64_t find_first_window(const struct cutter_options *o) {
    const int64_t begin = o->had_end > 0 ? o->first_sample : find_begin(o);
    const int64_t k = begin / o->hop + (begin % o->hop != 0);
    const int64_t unanswered = o->had_end < o->window ? 0 : (o->had_end - o->window) / o->hop + 1;
    return k > unanswered ? k : unanswered;
}

int cutter_new(struct cutter **out, const struct cutter_options *o, struct status *st) {
    struct cutter *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c)
        return status_set_no_memory(st, sizeof *c, "a stream");
    c->options = *o;
    if (vad_new(&c->vad, o->rate_hz, o->first_sample, st) || reserve_frames(c, 1, st)) {
        cutter_del(c);
        return -1;
    }
    c->frame_hop = vad_hop(o->rate_hz);
    c->frame_length = vad_length(o->rate_hz);
    c->end = c->held_first = o->first_sample;
    c->frames_first = c->frames_end = c->frames_taken = cutter_frame_from(c, o->first_sample);
    c->any_final = o->had_end > 0;
    c->last_end = o->had_end;
    if (o->utterances)
        cutter_init_utterances(c, o->had_end > 0 ? o->had_end : find_begin(o));
    else
        c->window = find_first_window(o);
    *out = c;
    return 0;
}

void cutter_del(struct cutter *c) {
    if (!c)
        return;
    if (c->block)
        wipe(c->block + c->at, cutter_count_held(c));
    free(c->block);
    free(c->speech);
    vad_del(c->vad);
    free(c);
}

int cutter_feed(struct cutter *c, const float *samples, size_t count, struct status *st) {
    if (c->finished)
        return status_set(st, STATUS_INTERNAL, "samples were fed after the end of the signal");
    if (count == 0)
        return 0;
    trim(c);
    if (reserve_samples(c, count, st) || reserve_frames(c, vad_bound(c->vad, count), st))
        return -1;
    memcpy(c->block + c->at + cutter_count_held(c), samples, count * sizeof *samples);
    c->end += (int64_t)count;
    c->frames_end +=
        (int64_t)vad_process(c->vad, samples, count, c->speech + (c->frames_end - c->frames_first));
    return 0;
}

int cutter_finish(struct cutter *c, struct status *st) {
    if (c->finished)
        return status_set(st, STATUS_INTERNAL, "a signal was finished twice");
    c->finished = true;
    return 0;
}

/* ---- pieces
 * ------------------------------------------------------------------------------------------------ */

void cutter_fill_piece(struct cutter *c, struct cutter_piece *piece, int64_t first, int64_t count, bool final,
                       bool no_speech) {
    *piece = (struct cutter_piece){
        .first = first,
        .count = count,
        .final = final,
        .no_speech = no_speech,
        .speech_s = measure_s(cutter_count_speech(c, first, count), c->frame_hop, c->options.rate_hz),
        .samples = no_speech ? NULL : c->block + c->at + (first - c->held_first),
    };
    if (final) {
        c->any_final = true;
        c->last_end = first + count;
    }
}

static bool next_window(struct cutter *c, struct cutter_piece *piece) {
    const struct cutter_options *o = &c->options;
    const int64_t first = find_next_window(c);
    int64_t begin = first, count = o->window;
    if (first > c->end - o->window) {
        if (!c->finished || c->window >= windows_count(c->end, o->window, o->hop))
            return false;
        windows_get(c->end, o->window, o->hop, c->window, &begin, &count);
        if (begin + count <= o->had_end)
            return false;
    }
    cutter_fill_piece(c, piece, begin, count, true, false);
    if (o->speech_s_min > 0 && piece->speech_s < o->speech_s_min) {
        piece->no_speech = true;
        piece->samples = NULL;
    }
    c->window++;
    return true;
}

bool cutter_next(struct cutter *c, struct cutter_piece *piece) {
    if (c->options.utterances ? cutter_next_utterance(c, piece) : next_window(c, piece))
        return true;
    trim(c);
    return false;
}

int64_t cutter_find_needed(const struct cutter *c) {
    if (!c->any_final)
        return c->options.first_sample;
    /* Windows overlap: the next one begins before the last one's end. */
    const int64_t next = c->options.utterances ? c->last_end : find_next_window(c);
    const int64_t from = next < c->last_end ? next : c->last_end;
    const int64_t memory = (int64_t)VAD_MEMORY_S * c->options.rate_hz;
    return from > memory ? from - memory : 0;
}
