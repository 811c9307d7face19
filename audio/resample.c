/* resample: one channel through libsoxr, a segment at a time.
 *
 *     seconds     0       4   5   6           9  10  11
 *     segment 0   |===========|...|
 *     segment 1           |---|===============|...|
 *     segment 2                           |---|===========
 *
 * A lane is the resampler of one segment. It is fed from RESAMPLER_PREROLL_S before its segment (---, output
 * thrown away) until its output has come to the segment's end, which needs input from a little beyond (...).
 * So at most two lanes are fed at a time, and everything that opens or closes one lies at a whole second of
 * the input, wherever that was cut or joined. */
#include "audio/resample.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <soxr.h>

#include "audio/audio.h"

enum {
    RESAMPLER_LANES = 2,
    RESAMPLER_SLACK = 8, /* in a bound, so that it is never 0 where there is something to consume */
    RESAMPLER_THROWN_SAMPLES = 1024,
    /* libsoxr's smallest blocks: as fast as those of its defaults, and up to half as late. */
    RESAMPLER_LOG2_DFT = 8,
    /* As many as a downsampler may need for one sample more. */
    RESAMPLER_ZEROS = AUDIO_RATE_HZ_MAX / AUDIO_RATE_HZ_MIN + 2,
};

static_assert(2 * RESAMPLER_PREROLL_S < RESAMPLER_SEGMENT_S, "two lanes are enough");

struct lane {
    soxr_t soxr;     /* NULL: not fed */
    int64_t out_pos; /* in the signal, of its next output sample */
};

struct resampler {
    int from_hz, to_hz;
    int64_t in_pos, out_pos;            /* in the signal, of the next sample in, and out */
    int64_t segment;                    /* whose output comes next */
    struct lane lanes[RESAMPLER_LANES]; /* of segment n: n % RESAMPLER_LANES */
    bool flushed;
};

/* Where the output goes. */
struct outlet {
    float *out;
    size_t room, made;
};

static soxr_t soxr_open(int from_hz, int to_hz, soxr_error_t *error) {
    soxr_io_spec_t io = soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
    runtime.log2_min_dft_size = RESAMPLER_LOG2_DFT;
    runtime.log2_large_dft_size = RESAMPLER_LOG2_DFT;
    return soxr_create((double)from_hz, (double)to_hz, 1, error, &io, &quality, &runtime);
}

/* Some of libsoxr's engines set up tables shared by all resamplers in the first one, with no lock around
 * that. */
static void soxr_warm(void) {
    soxr_error_t error = NULL;
    soxr_t first = soxr_open(44100, 16000, &error);
    if (first != NULL)
        soxr_delete(first);
}

static pthread_once_t soxr_warmed = PTHREAD_ONCE_INIT;

static bool rate_is_valid(int rate_hz) {
    return rate_hz >= AUDIO_RATE_HZ_MIN && rate_hz <= AUDIO_RATE_HZ_MAX;
}

static int64_t segment_find_start_s(int64_t segment) {
    return segment == 0 ? 0 : segment * RESAMPLER_SEGMENT_S - RESAMPLER_PREROLL_S;
}

/* The first segment whose lane begins at `first_s` or later. */
static int64_t segment_find_from(int64_t first_s) {
    if (first_s <= 0)
        return 0;
    bool later = first_s % RESAMPLER_SEGMENT_S > RESAMPLER_SEGMENT_S - RESAMPLER_PREROLL_S;
    return first_s / RESAMPLER_SEGMENT_S + (later ? 2 : 1);
}

int64_t resampler_find_output_s(int from_hz, int to_hz, int64_t first_s) {
    if (from_hz == to_hz)
        return first_s > 0 ? first_s : 0;
    return segment_find_from(first_s) * RESAMPLER_SEGMENT_S;
}

int64_t resampler_find_input_s(int from_hz, int to_hz, int64_t output_s) {
    if (output_s <= 0)
        return 0;
    return from_hz == to_hz ? output_s : segment_find_start_s(output_s / RESAMPLER_SEGMENT_S);
}

static int lane_open(struct resampler *r, int64_t segment, struct status *st) {
    struct lane *lane = &r->lanes[segment % RESAMPLER_LANES];
    if (lane->soxr != NULL)
        return 0; /* by resampler_new_at */
    pthread_once(&soxr_warmed, soxr_warm);
    soxr_error_t error = NULL;
    lane->soxr = soxr_open(r->from_hz, r->to_hz, &error);
    if (lane->soxr == NULL)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot resample from %d Hz to %d Hz: %s",
                          r->from_hz, r->to_hz, error != NULL ? error : "out of memory");
    lane->out_pos = segment_find_start_s(segment) * r->to_hz;
    return 0;
}

static void lane_close(struct lane *lane) {
    if (lane->soxr != NULL)
        soxr_delete(lane->soxr);
    lane->soxr = NULL;
}

int resampler_new(struct resampler **r, int from_hz, int to_hz, struct status *st) {
    return resampler_new_at(r, from_hz, to_hz, 0, st);
}

int resampler_new_at(struct resampler **r, int from_hz, int to_hz, int64_t first_s, struct status *st) {
    if (!rate_is_valid(from_hz) || !rate_is_valid(to_hz))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "cannot resample from %d Hz to %d Hz: rates are %d to %d Hz", from_hz, to_hz,
                          AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX);
    const int64_t first_s_max = INT64_MAX / 2 / AUDIO_RATE_HZ_MAX; /* so that positions never overflow */
    if (first_s < 0 || first_s > first_s_max)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "cannot resample a signal from second %lld on: 0 to %lld are possible",
                          (long long)first_s, (long long)first_s_max);
    struct resampler *made = calloc(1, sizeof *made);
    if (made == NULL)
        return status_set_no_memory(st, sizeof *made, "a resampler");
    made->from_hz = from_hz;
    made->to_hz = to_hz;
    made->in_pos = first_s * from_hz;
    made->out_pos = resampler_find_output_s(from_hz, to_hz, first_s) * to_hz;
    made->segment = segment_find_from(first_s);
    /* Now rather than at the first sample: so most of what may fail does so here. */
    if (from_hz != to_hz && segment_find_start_s(made->segment) == first_s &&
        lane_open(made, made->segment, st) != 0) {
        resampler_del(made);
        return -1;
    }
    *r = made;
    return 0;
}

void resampler_del(struct resampler *r) {
    if (r == NULL)
        return;
    for (int i = 0; i < RESAMPLER_LANES; i++)
        lane_close(&r->lanes[i]);
    free(r);
}

/* All that goes in comes out in proportion, late but never early, and rounded at the end. */
static size_t resampler_most(const struct resampler *r, size_t count) {
    int64_t in_pos = r->in_pos + (int64_t)count, part = in_pos % r->from_hz * r->to_hz;
    int64_t whole = in_pos / r->from_hz * r->to_hz + (part + r->from_hz - 1) / r->from_hz;
    return whole > r->out_pos ? (size_t)(whole - r->out_pos) : 0;
}

size_t resampler_bound(const struct resampler *r, size_t count) {
    return r->from_hz == r->to_hz ? count : resampler_most(r, count) + RESAMPLER_SLACK;
}

/* One call of libsoxr. in = NULL: no more input will come. Without a place for how much it took, libsoxr
 * takes all of it, and keeps what it has no room to give. */
static int lane_process(struct resampler *r, struct lane *lane, const float *in, size_t count, float *out,
                        size_t out_max, size_t *given, struct status *st) {
    soxr_error_t error = soxr_process(lane->soxr, in, count, NULL, out, out_max, given);
    if (error != NULL)
        return status_set(st, STATUS_INTERNAL, "resampling from %d Hz to %d Hz failed: %s", r->from_hz,
                          r->to_hz, error);
    lane->out_pos += (int64_t)*given;
    return 0;
}

/* Feeds a lane, and throws away what it gives before `segment`, its own. */
static int lane_put(struct resampler *r, int64_t segment, const float *in, size_t count, struct status *st) {
    struct lane *lane = &r->lanes[segment % RESAMPLER_LANES];
    if (lane->soxr == NULL)
        return 0;
    float thrown[RESAMPLER_THROWN_SAMPLES];
    size_t given = 0;
    if (lane_process(r, lane, in, count, thrown, 0, &given, st) != 0)
        return -1;
    int64_t left = 0;
    while ((left = segment * RESAMPLER_SEGMENT_S * r->to_hz - lane->out_pos) > 0) {
        size_t most = left < RESAMPLER_THROWN_SAMPLES ? (size_t)left : RESAMPLER_THROWN_SAMPLES;
        if (lane_process(r, lane, thrown, 0, thrown, most, &given, st) != 0)
            return -1;
        if (given == 0)
            break;
    }
    return 0;
}

/* Takes what the lanes have of the output before `end`, each to the end of its segment. */
static int resampler_take(struct resampler *r, int64_t end, struct outlet *o, struct status *st) {
    for (struct lane *lane; (lane = &r->lanes[r->segment % RESAMPLER_LANES])->soxr != NULL;) {
        int64_t segment_end = (r->segment + 1) * RESAMPLER_SEGMENT_S * r->to_hz,
                stop = segment_end < end ? segment_end : end;
        if (lane->out_pos != r->out_pos)
            break; /* still before its segment */
        size_t given = 1;
        while (given > 0 && r->out_pos < stop) {
            size_t want = (uint64_t)(stop - r->out_pos) < o->room - o->made ? (size_t)(stop - r->out_pos)
                                                                            : o->room - o->made;
            if (lane_process(r, lane, o->out, 0, o->out + o->made, want, &given, st) != 0)
                return -1;
            o->made += given;
            r->out_pos += (int64_t)given;
        }
        if (r->out_pos < segment_end)
            break;
        lane_close(lane);
        r->segment++;
    }
    return 0;
}

/* The lane of the segment that is due gets no more input: all it has comes out, to `end` or to the end of
 * its segment. */
static int resampler_end_lane(struct resampler *r, int64_t end, struct outlet *o, struct status *st) {
    /* libsoxr goes on with zeros itself, but only to its idea of this lane's length. That of the whole signal
     * may be one more where a half is rounded. */
    static const float zeros[RESAMPLER_ZEROS];
    int64_t segment = r->segment;
    if (lane_put(r, segment, zeros, RESAMPLER_ZEROS, st) != 0 || lane_put(r, segment, NULL, 0, st) != 0 ||
        resampler_take(r, end, o, st) != 0)
        return -1;
    if (r->segment == segment && r->out_pos < end)
        return status_set(st, STATUS_INTERNAL, "resampling from %d Hz to %d Hz gave too few samples",
                          r->from_hz, r->to_hz);
    return 0;
}

/* The input comes to a whole second. */
static int resampler_begin_second(struct resampler *r, struct outlet *o, struct status *st) {
    int64_t second = r->in_pos / r->from_hz, segment = (second + RESAMPLER_PREROLL_S) / RESAMPLER_SEGMENT_S;
    if (second == segment_find_start_s(segment))
        return lane_open(r, segment, st);
    /* However late a filter is: what lies further ahead than this is not waited for. */
    if (second % RESAMPLER_SEGMENT_S == RESAMPLER_PREROLL_S && r->segment < second / RESAMPLER_SEGMENT_S)
        return resampler_end_lane(r, INT64_MAX, o, st);
    return 0;
}

/* Everything left: the length of the output is what one libsoxr resampler makes of the whole signal. */
static int resampler_flush(struct resampler *r, struct outlet *o, struct status *st) {
    int64_t end = (int64_t)((double)r->in_pos / ((double)r->from_hz / (double)r->to_hz) + 0.5);
    while (r->out_pos < end && r->lanes[r->segment % RESAMPLER_LANES].soxr != NULL)
        if (resampler_end_lane(r, end, o, st) != 0)
            return -1;
    return 0;
}

static int resampler_feed(struct resampler *r, const float *in, size_t count, struct outlet *o,
                          struct status *st) {
    while (count > 0) {
        size_t phase = (size_t)(r->in_pos % r->from_hz), piece = (size_t)r->from_hz - phase;
        if (piece > count)
            piece = count;
        if (phase == 0 && resampler_begin_second(r, o, st) != 0)
            return -1;
        for (int64_t i = 0; i < RESAMPLER_LANES; i++)
            if (lane_put(r, r->segment + i, in, piece, st) != 0)
                return -1;
        r->in_pos += (int64_t)piece;
        if (resampler_take(r, INT64_MAX, o, st) != 0)
            return -1;
        in += piece;
        count -= piece;
    }
    return 0;
}

int resampler_process(struct resampler *r, const float *in, size_t count, float *out, size_t out_max,
                      size_t *out_count, struct status *st) {
    *out_count = 0;
    if (r->flushed)
        return status_set(st, STATUS_INTERNAL, "a resampler was used after its flush");
    r->flushed = in == NULL;
    if (in == NULL)
        count = 0;
    const bool copied = r->from_hz == r->to_hz;
    if ((copied ? count : resampler_most(r, count)) > out_max)
        return status_set(st, STATUS_INTERNAL, "a resampler was given too small a buffer");
    if (copied) {
        if (count > 0)
            memcpy(out, in, count * sizeof *out);
        *out_count = count;
        return 0;
    }
    struct outlet o = {out, out_max, 0};
    if ((in == NULL ? resampler_flush(r, &o, st) : resampler_feed(r, in, count, &o, st)) != 0)
        return -1;
    *out_count = o.made;
    return 0;
}
