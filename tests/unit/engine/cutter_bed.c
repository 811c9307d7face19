#include "cutter_bed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- a stand-in for the voice-activity rule ---- */

enum { LEVELS = 750 };

struct vad {
    int hop, length;
    int64_t skip; /* samples until the first frame begins */
    float *samples;
    int count;
    float levels[LEVELS]; /* of the last frames */
    int64_t frame;
};

bool vad_has_memory;

int __wrap_vad_hop(int rate_hz) {
    return (rate_hz + 50) / 100;
}

int __wrap_vad_length(int rate_hz) {
    return (rate_hz * 3 + 50) / 100;
}

int __wrap_vad_new(struct vad **out, int rate_hz, int64_t first_sample, struct status *st) {
    const int hop = __wrap_vad_hop(rate_hz), length = __wrap_vad_length(rate_hz);
    struct vad *v = *out = calloc(1, sizeof *v);
    if (!v || !(v->samples = calloc((size_t)length, sizeof *v->samples))) {
        free(v);
        *out = NULL;
        return status_set_no_memory(st, 1, "a stand-in");
    }
    assert_int_equal(first_sample % rate_hz, 0);
    v->hop = hop;
    v->length = length;
    v->skip = (hop - first_sample % hop) % hop;
    return 0;
}

void __wrap_vad_del(struct vad *v) {
    if (v)
        free(v->samples);
    free(v);
}

size_t __wrap_vad_bound(const struct vad *v, size_t count) {
    return (count + (size_t)v->count) / (size_t)v->hop + 1;
}

static unsigned char decide(struct vad *v) {
    float level = 0, loudest = 0;
    for (int i = 0; i < v->length; i++)
        level += v->samples[i] < 0 ? -v->samples[i] : v->samples[i];
    level /= (float)v->length;
    v->levels[v->frame++ % LEVELS] = level;
    for (int i = 0; i < LEVELS; i++)
        loudest = v->levels[i] > loudest ? v->levels[i] : loudest;
    return level > 0.1f && (!vad_has_memory || level > 0.3f * loudest);
}

size_t __wrap_vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech) {
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (v->skip > 0) {
            v->skip--;
            continue;
        }
        v->samples[v->count++] = samples[i];
        if (v->count == v->length) {
            speech[n++] = decide(v);
            v->count -= v->hop;
            memmove(v->samples, v->samples + v->hop, (size_t)v->count * sizeof *v->samples);
        }
    }
    return n;
}
/* ---- chance ---- */

uint64_t chance;

int64_t chance_to(int64_t n) {
    chance = chance * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((chance >> 33) % (uint64_t)n);
}

double chance_s(double lo, double hi) {
    return lo + (hi - lo) * (double)chance_to(1000001) * 1e-6;
}

/* ---- signals ---- */

void signal_put(struct signal *s, double level, double length_s) {
    const int64_t count = (int64_t)(length_s * s->rate_hz);
    s->samples = realloc(s->samples, (size_t)(s->count + count + 1) * sizeof *s->samples);
    assert_non_null(s->samples);
    for (int64_t i = 0; i < count; i++)
        s->samples[s->count++] = (float)(level * (0.5 + (double)chance_to(1000) * 1e-3));
}

struct signal signal_make_call(int rate_hz, double length_s) {
    struct signal s = {.rate_hz = rate_hz};
    while ((double)s.count < length_s * rate_hz) {
        const double level = chance_to(3) ? 0.9 : 0.2;
        switch (chance_to(12)) {
        case 0:
            signal_put(&s, 0, chance_s(5, 40));
            break;
        case 1:
            signal_put(&s, level, chance_s(3, 25));
            break;
        case 2:
            signal_put(&s, level, chance_s(0.001, 0.05));
            break;
        default:
            signal_put(&s, level, chance_s(0.05, 2));
        }
        signal_put(&s, 0, chance_s(0.01, chance_to(3) ? 0.4 : 2));
    }
    s.count -= chance_to(rate_hz / 50);
    return s;
}

/* ---- what a cutter gives ---- */

void list_free(struct list *l) {
    for (size_t i = 0; i < l->count; i++)
        free((void *)l->pieces[i].samples);
    free(l->pieces);
    free(l->needed);
    free(l->speech);
    *l = (struct list){0};
}

static void keep_frames(struct list *l, struct cutter *c) {
    int64_t first;
    const unsigned char *speech;
    const size_t n = cutter_take_frames(c, &first, &speech);
    if (l->frames_count == 0)
        l->frames_first = first;
    assert_int_equal(first, l->frames_first + l->frames_count);
    l->speech = realloc(l->speech, (size_t)l->frames_count + n + 1);
    memcpy(l->speech + l->frames_count, speech, n);
    l->frames_count += (int64_t)n;
}

static void keep_pieces(struct list *l, struct cutter *c) {
    struct cutter_piece piece;
    if (chance_to(2))
        keep_frames(l, c);
    while (cutter_next(c, &piece)) {
        l->pieces = realloc(l->pieces, (l->count + 1) * sizeof *l->pieces);
        l->needed = realloc(l->needed, (l->count + 1) * sizeof *l->needed);
        assert_int_equal(piece.samples == NULL, piece.no_speech);
        if (piece.samples) {
            const size_t bytes = (size_t)piece.count * sizeof *piece.samples;
            piece.samples = memcpy(malloc(bytes), piece.samples, bytes);
        }
        l->needed[l->count] = cutter_find_needed(c);
        l->pieces[l->count++] = piece;
    }
    l->most_held = cutter_count_held(c) > l->most_held ? cutter_count_held(c) : l->most_held;
}

struct list list_cut(const struct signal *s, const struct cutter_options *o, int64_t chunk) {
    struct list l = {0};
    struct status st;
    struct cutter *c;
    assert_int_equal(cutter_new(&c, o, &st), 0);
    for (int64_t at = o->first_sample; at < s->count;) {
        int64_t n = 1 + chance_to(chunk);
        n = n < s->count - at ? n : s->count - at;
        assert_int_equal(cutter_feed(c, s->samples + at, (size_t)n, &st), 0);
        at += n;
        keep_pieces(&l, c);
    }
    assert_int_equal(cutter_finish(c, &st), 0);
    keep_pieces(&l, c);
    keep_frames(&l, c);
    assert_int_equal(cutter_count_held(c), 0);
    cutter_del(c);
    return l;
}

static bool is_same(const struct cutter_piece *a, const struct cutter_piece *b) {
    return a->first == b->first && a->count == b->count && a->final == b->final &&
           a->no_speech == b->no_speech && memcmp(&a->speech_s, &b->speech_s, sizeof a->speech_s) == 0 &&
           (a->no_speech || memcmp(a->samples, b->samples, (size_t)a->count * sizeof *a->samples) == 0);
}

void list_expect_same(const struct list *l, size_t from, const struct list *rest) {
    assert_int_equal(rest->count, l->count - from);
    for (size_t i = 0; i < rest->count; i++)
        if (!is_same(&l->pieces[from + i], &rest->pieces[i]))
            fail_msg("piece %zu: [%lld, +%lld) speech %g, not [%lld, +%lld) speech %g", i,
                     (long long)rest->pieces[i].first, (long long)rest->pieces[i].count,
                     rest->pieces[i].speech_s, (long long)l->pieces[from + i].first,
                     (long long)l->pieces[from + i].count, l->pieces[from + i].speech_s);
}

const struct cutter_options utterance_options = {
    .rate_hz = 8000, .utterances = true, .length_s_min = 0.3, .length_s_max = 15, .hangover_s = 0.5};

struct cutter_options chance_windows(int rate_hz) {
    struct cutter_options o = {.rate_hz = rate_hz, .window = 1 + chance_to(4 * rate_hz)};
    if (chance_to(4) == 0)
        o.window = 1 + chance_to(rate_hz / 20);
    o.hop = o.window / 40 + 1 + chance_to(o.window);
    o.hop = o.hop < o.window ? o.hop : o.window;
    if (chance_to(2))
        o.speech_s_min = chance_s(0, (double)o.window / rate_hz);
    return o;
}

struct cutter_options chance_utterances(int rate_hz) {
    struct cutter_options o = {.rate_hz = rate_hz,
                               .utterances = true,
                               .length_s_min = chance_s(0.05, 1),
                               .length_s_max = chance_s(1, 30),
                               .hangover_s = chance_s(0.1, 2),
                               .interim_every_s = chance_to(2) ? chance_s(0.25, 3) : 0};
    if (chance_to(3) == 0) { /* so that much is dropped where it is cut */
        o.length_s_max = chance_s(1, 5);
        o.length_s_min = chance_s(0.6, 1) * o.length_s_max;
    }
    return o;
}
