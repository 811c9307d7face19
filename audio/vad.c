/* vad: the voice-activity rule of docs/streaming.md. What is kept of the past is kept by the number of its
 * frame in the signal and forgotten at a fixed age, and every mean is summed anew, so that nothing depends on
 * where a signal was joined. */
#include "audio/vad.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "audio/vad_bands.h"

/* In frames. */
enum {
    VAD_BLOCK = 20,       /* extremes are kept by the block: blocks begin at multiples of it in the signal */
    VAD_BLOCKS = 38,      /* the newest of them is being filled */
    VAD_FLOOR_MEAN = 8,   /* a band's power, before its lowest is looked for */
    VAD_LEVEL_MEAN = 20,  /* the level, before its lowest is looked for */
    VAD_PERIOD_MEAN = 10, /* how periodic the frames are */
    VAD_SCORE_MEAN = 3,
    VAD_FIRM = 3, /* so many of the last VAD_FIRM_OF frames must be above the thresholds for a hangover */
    VAD_FIRM_OF = 6,
    VAD_HANGOVER = 3,
    VAD_RECENT = 32, /* kept of single frames: a power of two, more than any mean */
    VAD_REACH = VAD_BLOCK * VAD_BLOCKS + VAD_LEVEL_MEAN + VAD_SCORE_MEAN + VAD_FIRM_OF + VAD_HANGOVER,
    VAD_LENGTH_MAX = VAD_RATE_HZ_MAX / 100 * (VAD_FRAME_MS / VAD_HOP_MS),
};
_Static_assert(VAD_REACH *VAD_HOP_MS + VAD_FRAME_MS <= VAD_MEMORY_S * 1000,
               "the rule remembers longer than it promises");
_Static_assert(VAD_FRAME_MS % VAD_HOP_MS == 0, "frames are whole hops");
_Static_assert(VAD_RECENT >= VAD_LEVEL_MEAN && VAD_RECENT >= VAD_FIRM_OF, "more is asked for than is kept");

/* Logarithms are to the base 2: 1 is 3 dB of power. */
#define VAD_SILENT        1e-12f /* added to every band: what digital silence has, -120 dBFS */
#define VAD_FLOOR_GAIN    3.0f   /* the lowest of many means of noise is well below the noise */
#define VAD_BAND_SCORE    4.0f   /* the most that a band adds */
#define VAD_SCORE_MIN     0.44f
#define VAD_PERIOD_WEIGHT 3.0f
#define VAD_LEVEL_MIN     1.2e-7f /* -69 dBFS */
#define VAD_PEAK_PART     3e-5f   /* 45 dB below the loudest */
/* The margin over the lowest level, by how unsteady the background is and how far the level ranges. */
#define VAD_UNSTEADY_MIN 1.6f
#define VAD_UNSTEADY_MAX 9.0f
#define VAD_MARGIN_SLOPE 3.0f
#define VAD_MARGIN_MAX   2.4f
#define VAD_RANGE_MIN    2.0f
#define VAD_RANGE_SLOPE  0.5f

/* Of one or more blocks. */
struct vad_extremes {
    float bands[VAD_BANDS]; /* the lowest mean powers */
    float level, period;    /* the lowest means */
    float peak;             /* the highest mean of the level */
};

struct vad {
    struct vad_bands *bands;
    int hop, length;
    int64_t first; /* frame, in the signal, that this began with */
    int64_t frame; /* the next one */
    int skip;      /* samples before the first frame that are still to come */
    int held;
    float hold[VAD_LENGTH_MAX];

    /* Of frame f, in place f % VAD_RECENT. */
    float power[VAD_RECENT][VAD_BANDS], level[VAD_RECENT], period[VAD_RECENT], score[VAD_RECENT];
    struct vad_extremes block[VAD_BLOCKS]; /* of block b, in place b % VAD_BLOCKS */
    struct vad_extremes past;              /* of the whole blocks that count */
    bool above[VAD_RECENT];
    int hangover; /* frames that are speech still */
};

int vad_hop(int rate_hz) {
    return (rate_hz + 50) / 100;
}

int vad_length(int rate_hz) {
    return vad_hop(rate_hz) * (VAD_FRAME_MS / VAD_HOP_MS);
}

int vad_new(struct vad **v, int rate_hz, int64_t first_sample, struct status *st) {
    if (rate_hz < VAD_RATE_HZ_MIN || rate_hz > VAD_RATE_HZ_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "voice activity cannot be told at %d Hz: rates are %d to %d Hz", rate_hz,
                          VAD_RATE_HZ_MIN, VAD_RATE_HZ_MAX);
    struct vad *made = calloc(1, sizeof *made);
    if (made == NULL)
        return status_set_no_memory(st, sizeof *made, "a voice-activity detector");
    made->hop = vad_hop(rate_hz);
    made->length = vad_length(rate_hz);
    if (vad_bands_new(&made->bands, rate_hz, made->length, st) != 0) {
        free(made);
        return -1;
    }
    made->first = made->frame = (first_sample + made->hop - 1) / made->hop;
    made->skip = (int)(made->frame * made->hop - first_sample);
    *v = made;
    return 0;
}

void vad_del(struct vad *v) {
    if (v == NULL)
        return;
    vad_bands_del(v->bands);
    free(v);
}

static float vad_lower(float a, float b) {
    return a < b ? a : b;
}

static float vad_higher(float a, float b) {
    return a > b ? a : b;
}

static void vad_extremes_add(struct vad_extremes *e, const struct vad_extremes *other) {
    for (int b = 0; b < VAD_BANDS; b++)
        e->bands[b] = vad_lower(e->bands[b], other->bands[b]);
    e->level = vad_lower(e->level, other->level);
    e->period = vad_lower(e->period, other->period);
    e->peak = vad_higher(e->peak, other->peak);
}

/* The mean over the newest `count` frames, or as many as there were. */
static float vad_mean(const struct vad *v, const float *recent, int count) {
    const int64_t known = v->frame - v->first + 1;
    const int frames = known < count ? (int)known : count;
    float sum = 0.0f;
    for (int i = 0; i < frames; i++)
        sum += recent[(v->frame - i) % VAD_RECENT];
    return sum / (float)frames;
}

/* The means that the newest frame ends. */
static void vad_extremes_init(struct vad_extremes *e, const struct vad *v) {
    const int64_t known = v->frame - v->first + 1;
    const int frames = known < VAD_FLOOR_MEAN ? (int)known : VAD_FLOOR_MEAN;
    memset(e, 0, sizeof *e);
    for (int i = 0; i < frames; i++)
        for (int b = 0; b < VAD_BANDS; b++)
            e->bands[b] += v->power[(v->frame - i) % VAD_RECENT][b];
    for (int b = 0; b < VAD_BANDS; b++)
        e->bands[b] /= (float)frames;
    e->level = vad_mean(v, v->level, VAD_LEVEL_MEAN);
    e->period = vad_mean(v, v->period, VAD_PERIOD_MEAN);
    e->peak = e->level;
}

/* Takes in what is `now`; *all: the extremes of all blocks that count. */
static void vad_remember(struct vad *v, const struct vad_extremes *now, struct vad_extremes *all) {
    /* Means of fewer frames than they should have stray too far to be floors. */
    const int64_t begin = v->first + VAD_FLOOR_MEAN - 1;
    const int64_t block = v->frame / VAD_BLOCK, first = begin / VAD_BLOCK;
    struct vad_extremes *newest = &v->block[block % VAD_BLOCKS];
    if (v->frame <= begin || v->frame % VAD_BLOCK == 0) {
        *newest = *now;
        if (block > first)
            v->past = v->block[(block - 1) % VAD_BLOCKS];
        for (int64_t i = 2; i < VAD_BLOCKS && block - i >= first; i++)
            vad_extremes_add(&v->past, &v->block[(block - i) % VAD_BLOCKS]);
    }
    vad_extremes_add(newest, now);
    *all = *newest;
    if (block > first)
        vad_extremes_add(all, &v->past);
}

/* How far the bands are above their floors. */
static float vad_score(const float *power, const struct vad_extremes *all) {
    float sum = 0.0f;
    for (int b = 0; b < VAD_BANDS; b++) {
        const float floor = VAD_FLOOR_GAIN * all->bands[b];
        if (power[b] > floor)
            sum += vad_lower(vad_log2(power[b] / floor), VAD_BAND_SCORE);
    }
    return sum / (float)VAD_BANDS;
}

/* A steady background is at its floor in all bands at once. In one that is not, such as many voices, the
 * bands have their lowest moments at different times, so that the level is never near the sum of the floors;
 * it then takes more than the lowest level to be in front of it. Where they are still further apart there is
 * no background to speak of, only the pauses of a voice; and where the level does not range, nothing is in
 * front. */
static float vad_find_margin(const struct vad_extremes *all) {
    float floors = 0.0f;
    for (int b = 0; b < VAD_BANDS; b++)
        floors += all->bands[b];
    const float unsteady = vad_log2(all->level / floors), range = vad_log2(all->peak / all->level);
    float margin = vad_lower(VAD_MARGIN_SLOPE * (unsteady - VAD_UNSTEADY_MIN), VAD_UNSTEADY_MAX - unsteady);
    margin = vad_lower(margin, VAD_RANGE_SLOPE * (range - VAD_RANGE_MIN));
    return vad_lower(vad_higher(margin, 0.0f), VAD_MARGIN_MAX);
}

/* Of the frame in `hold`. */
static bool vad_decide(struct vad *v) {
    const int at = (int)(v->frame % VAD_RECENT);
    const float period = vad_bands_compute(v->bands, v->hold, v->power[at]);
    float level = 0.0f;
    for (int b = 0; b < VAD_BANDS; b++) {
        v->power[at][b] += VAD_SILENT;
        level += v->power[at][b];
    }
    v->level[at] = level;
    v->period[at] = vad_lower(vad_higher(period, 0.0f), 1.0f);

    struct vad_extremes now, all;
    vad_extremes_init(&now, v);
    vad_remember(v, &now, &all);
    v->score[at] = vad_score(v->power[at], &all);
    const float score = vad_mean(v, v->score, VAD_SCORE_MEAN) *
                        (1.0f + VAD_PERIOD_WEIGHT * vad_higher(now.period - all.period, 0.0f));
    const float margin = vad_find_margin(&all);
    v->above[at] = score > VAD_SCORE_MIN && level > VAD_LEVEL_MIN && level > VAD_PEAK_PART * all.peak &&
                   (margin <= 0.0f || vad_log2(now.level / all.level) > margin);
    int above = 0;
    for (int i = 0; i < VAD_FIRM_OF; i++)
        above += v->above[(v->frame - i + VAD_RECENT) % VAD_RECENT];
    if (above >= VAD_FIRM)
        v->hangover = VAD_HANGOVER + 1;
    else if (v->hangover > 0)
        v->hangover--;
    v->frame++;
    return v->above[at] || v->hangover > 0;
}

size_t vad_bound(const struct vad *v, size_t count) {
    const size_t skip = (size_t)v->skip, held = (size_t)v->held, length = (size_t)v->length;
    if (count < skip || held + (count - skip) < length)
        return 0;
    return (held + (count - skip) - length) / (size_t)v->hop + 1;
}

size_t vad_process(struct vad *v, const float *samples, size_t count, unsigned char *speech) {
    size_t done = (size_t)v->skip < count ? (size_t)v->skip : count, frames = 0;
    v->skip -= (int)done;
    while (done < count) {
        size_t take = (size_t)(v->length - v->held);
        take = take < count - done ? take : count - done;
        memcpy(v->hold + v->held, samples + done, take * sizeof *samples);
        v->held += (int)take;
        done += take;
        if (v->held < v->length)
            break;
        speech[frames++] = vad_decide(v);
        v->held -= v->hop;
        memmove(v->hold, v->hold + v->hop, (size_t)v->held * sizeof *v->hold);
    }
    return frames;
}
