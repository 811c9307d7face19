/* Utterances: where speech begins and ends, frame by frame (docs/streaming.md has the rule). */
#include "engine/cutter_internal.h"

#include <math.h>

static int64_t count_frames(const struct cutter *c, double s, int64_t least) {
    const int64_t n = llround(s * c->options.rate_hz / (double)c->frame_hop);
    return n > least ? n : least;
}

void cutter_init_utterances(struct cutter *c, int64_t begin_sample) {
    const struct cutter_options *o = &c->options;
    struct cutter_utterances *u = &c->utterances;
    const int64_t begin = begin_sample > o->first_sample ? begin_sample : o->first_sample;
    *u = (struct cutter_utterances){
        .frames_min = count_frames(c, o->length_s_min, 1),
        .frames_max = count_frames(c, o->length_s_max, 1),
        .hangover = count_frames(c, o->hangover_s, 2),
        .lead = count_frames(c, CUTTER_LEAD_MS * 1e-3, 0),
        .tail = count_frames(c, CUTTER_TAIL_MS * 1e-3, 0),
        .interim = o->interim_every_s > 0 ? count_frames(c, o->interim_every_s, 1) : 0,
        .silence = count_frames(c, CUTTER_SILENCE_S, 1),
        .length = (c->frame_length + c->frame_hop - 1) / c->frame_hop,
        .base = cutter_frame_from(c, begin),
    };
    /* What is cut at the greatest length has enough, if it is speech all through. */
    if (u->frames_min > u->frames_max - u->length)
        u->frames_min = u->frames_max - u->length;
    if (u->tail > u->hangover / 2)
        u->tail = u->hangover / 2;
    u->next = u->confirm_at = u->base;
}

/* ---- what is needed
 * ------------------------------------------------------------------------------------------------ */

/* Where an utterance begins at the earliest that is confirmed by frame `n` or a later one. */
static int64_t find_earliest(const struct cutter_utterances *u, int64_t n) {
    const int64_t first = n - (CUTTER_CONFIRM_FRAMES - 1) - u->lead;
    return first > u->base ? first : u->base;
}

int64_t cutter_find_utterance_sample(const struct cutter *c) {
    const struct cutter_utterances *u = &c->utterances;
    return (u->open ? u->first : find_earliest(u, u->next)) * c->frame_hop;
}

int64_t cutter_find_utterance_frame(const struct cutter *c) {
    return c->utterances.base;
}

/* ---- one frame
 * ------------------------------------------------------------------------------------------------ */

/* A final piece ends at frame `end`: from there on everything is looked at anew, as by a cutter that begins
 * there. */
static void go_on_from(struct cutter_utterances *u, int64_t end) {
    u->base = u->next = u->confirm_at = end;
    u->open = false;
}

/* Speech is there at frame n when enough of the last frames have it. */
static void open_utterance(struct cutter *c, int64_t n) {
    struct cutter_utterances *u = &c->utterances;
    const int64_t oldest = n - CUTTER_CONFIRM_FRAMES + 1;
    const int64_t from = oldest > u->confirm_at ? oldest : u->confirm_at;
    int64_t speech = 0, first = n;
    for (int64_t i = n; i >= from; i--)
        if (cutter_get_frame(c, i)) {
            speech++;
            first = i;
        }
    if (speech < CUTTER_CONFIRM_SPEECH)
        return;
    u->open = true;
    u->first = first - u->lead > u->base ? first - u->lead : u->base;
    u->last = n;
    u->interims = 0;
}

/* Whether with frame n all samples before frame `end`, and all decisions wholly before it, are there. */
static bool is_complete(const struct cutter *c, int64_t n, int64_t end) {
    return n * c->frame_hop + c->frame_length >= end * c->frame_hop;
}

/* Where the open one would end by its last frame of speech. */
static int64_t find_end(const struct cutter_utterances *u) {
    const int64_t most = u->first + u->frames_max, end = u->last + u->length + u->tail;
    return end < most ? end : most;
}

/* Ends the open one before sample `end`; false: it has too little speech, and is none. */
static bool close_utterance(struct cutter *c, int64_t end_frame, int64_t end, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    const int64_t first = u->first * c->frame_hop;
    u->open = false;
    u->confirm_at = u->next;
    if (cutter_count_speech(c, first, end - first) < u->frames_min)
        return false;
    cutter_fill_piece(c, piece, first, end - first, true, false);
    go_on_from(u, end_frame);
    return true;
}

/* An interim result is due, and there is speech in it since the one before. */
static bool give_interim(struct cutter *c, int64_t n, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    if (!u->interim || !is_complete(c, n, u->first + (u->interims + 1) * u->interim))
        return false;
    u->interims++;
    const int64_t end = u->first + u->interims * u->interim, first = u->first * c->frame_hop;
    const int64_t count = end * c->frame_hop - first;
    if (end > find_end(u) || end == u->first + u->frames_max ||
        cutter_count_speech(c, first, count) < u->frames_min)
        return false;
    cutter_fill_piece(c, piece, first, count, false, false);
    return true;
}

/* Nothing was there for long. */
static void give_silence(struct cutter *c, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    const int64_t first = u->base * c->frame_hop, end = u->base + u->silence;
    cutter_fill_piece(c, piece, first, end * c->frame_hop - first, true, true);
    go_on_from(u, end);
}

static bool look_at(struct cutter *c, int64_t n, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    if (!u->open)
        open_utterance(c, n);
    if (u->open) {
        if (cutter_get_frame(c, n))
            u->last = n;
        if (n - u->last >= u->hangover || is_complete(c, n, u->first + u->frames_max)) {
            const int64_t end = find_end(u);
            if (close_utterance(c, end, end * c->frame_hop, piece))
                return true;
        } else if (give_interim(c, n, piece)) {
            return true;
        }
    }
    /* Not before it is sure that no utterance will begin in it. */
    if (!u->open && find_earliest(u, n + 1) >= u->base + u->silence) {
        give_silence(c, piece);
        return true;
    }
    return false;
}

/* The signal ends: so does the open one. */
static bool give_last(struct cutter *c, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    if (u->open) {
        const int64_t end_frame = find_end(u), end = end_frame * c->frame_hop;
        if (close_utterance(c, end_frame, end < c->end ? end : c->end, piece))
            return true;
    }
    if ((u->base + u->silence) * c->frame_hop > c->end)
        return false;
    give_silence(c, piece);
    return true;
}

bool cutter_next_utterance(struct cutter *c, struct cutter_piece *piece) {
    struct cutter_utterances *u = &c->utterances;
    while (u->next < c->frames_end) {
        const int64_t n = u->next++;
        if (look_at(c, n, piece))
            return true;
    }
    return c->finished && give_last(c, piece);
}
