/* From the bytes of a stream to pieces: decode a channel, resample it, let the cutter find where they lie. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stream_internal.h"

/* Audio that is decoded at a time: little enough that the streams' turns stay short. */
enum { STEPS_PER_S = 8 };

void stream_free_scratch(struct stream_scratch *x) {
    free(x->pcm);
    free(x->resampled);
    *x = (struct stream_scratch){0};
}

static int reserve(float **block, size_t *have, size_t values, struct status *st) {
    if (values <= *have)
        return 0;
    float *grown = realloc(*block, values * sizeof *grown);
    if (!grown)
        return status_set_no_memory(st, values * sizeof *grown, "decoding a stream");
    *block = grown;
    *have = values;
    return 0;
}

/* ---- channels ---- */

static int model_rate_hz(const struct engine_stream *s) {
    return model_get_info(s->model->model)->sampling_rate_hz;
}

int64_t stream_find_begin_s(const struct engine_stream *s) {
    return resampler_find_output_s(s->options.format.rate_hz, model_rate_hz(s),
                                   s->options.resume_offset_ms / 1000);
}

static int open_channel(struct engine_stream *s, int c, struct status *st) {
    const struct engine_stream_options *o = &s->options;
    const struct model_info *info = model_get_info(s->model->model);
    const int rate_hz = info->sampling_rate_hz;
    struct stream_channel *channel = &s->channels[c];
    const struct cutter_options cutter = {
        .rate_hz = rate_hz,
        .utterances = o->utterances,
        .window = llround(o->window_s * rate_hz),
        .hop = llround(o->hop_s * rate_hz),
        .speech_s_min = o->speech_s_min,
        .length_s_min = o->length_s_min,
        .length_s_max = o->length_s_max,
        .hangover_s = o->hangover_s,
        .interim_every_s = o->interim_every_s,
        .first_sample = stream_find_begin_s(s) * rate_hz,
        .had_end = llround(o->channels[c].had_s * rate_hz),
    };
    channel->last = &channel->first;
    channel->excluded = o->channels[c].excluded;
    if (channel->excluded)
        return 0;
    if (resampler_new_at(&channel->resampler, o->format.rate_hz, rate_hz, o->resume_offset_ms / 1000, st) ||
        cutter_new(&channel->cutter, &cutter, st))
        return -1;
    channel->needed = cutter_find_needed(channel->cutter);
    if (o->smoothing_s > 0) {
        const size_t labels = (size_t)info->labels_count;
        channel->smoothed = calloc(labels, sizeof *channel->smoothed);
        if (!channel->smoothed)
            return status_set_no_memory(st, labels * sizeof *channel->smoothed, "a stream");
        channel->has_smoothed = o->channels[c].smoothed != NULL;
        if (channel->has_smoothed)
            memcpy(channel->smoothed, o->channels[c].smoothed, labels * sizeof *channel->smoothed);
    }
    return 0;
}

int stream_open_channels(struct engine_stream *s, struct status *st) {
    const struct engine_stream_options *o = &s->options;
    s->first_frame = o->resume_offset_ms / 1000 * o->format.rate_hz;
    if (pcm_init(&s->reader, &o->format, s->first_frame, st))
        return -1;
    for (int c = 0; c < o->format.channels; c++)
        if (open_channel(s, c, st))
            return -1;
    return 0;
}

void stream_close_channels(struct engine_stream *s) {
    for (int c = 0; c < ENGINE_STREAM_CHANNELS_MAX; c++) {
        cutter_del(s->channels[c].cutter);
        resampler_del(s->channels[c].resampler);
        free(s->channels[c].smoothed);
    }
    explicit_bzero(&s->reader, sizeof s->reader);
}

/* ---- pieces ---- */

/* Takes what the cutter has found; false when it must wait. */
static bool take_pieces(struct engine_stream *s, int c) {
    struct cutter *cutter = s->channels[c].cutter;
    struct cutter_piece piece;
    int64_t first;
    const unsigned char *speech;
    const size_t frames = cutter_take_frames(cutter, &first, &speech);
    if (frames)
        summary_add_frames(s->summary, c, first, frames, speech);
    while (!s->ending) {
        if (!stream_may_cut(s))
            return false;
        if (!cutter_next(cutter, &piece))
            return true;
        stream_window_put(s, c, &piece);
    }
    return false;
}

static bool take_all_pieces(struct engine_stream *s) {
    for (int c = 0; c < s->options.format.channels; c++)
        if (!s->channels[c].excluded && !take_pieces(s, c))
            return false;
    return true;
}

/* ---- samples ---- */

/* Samples of a channel through its resampler into its cutter; NULL flushes. */
static int pass_channel(struct engine_stream *s, int c, const float *in, size_t count,
                        struct stream_scratch *x, struct status *st) {
    struct stream_channel *channel = &s->channels[c];
    const size_t bound = resampler_bound(channel->resampler, count);
    size_t made = 0;
    if (reserve(&x->resampled, &x->resampled_values, bound ? bound : 1, st) ||
        resampler_process(channel->resampler, in, count, x->resampled, bound, &made, st))
        return -1;
    for (size_t i = 0; i < made; i++)
        if (!isfinite(x->resampled[i]))
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "the samples of channel %d before %.3f s are too large to be resampled", c,
                              (double)(s->first_frame + s->frames) / s->options.format.rate_hz);
    const int result = cutter_feed(channel->cutter, x->resampled, made, st);
    memset(x->resampled, 0, made * sizeof *x->resampled); /* nothing of one stream lies about */
    return result;
}

/* The next stretch of bytes that lies in one block, a step at most. */
static const void *next_bytes(struct stream_bytes *b, size_t most, size_t *bytes) {
    while (b->at < b->count && b->offset == b->pieces[b->at].bytes) {
        b->at++;
        b->offset = 0;
    }
    if (b->at == b->count)
        return NULL;
    const struct engine_piece *p = &b->pieces[b->at];
    const void *data = (const char *)p->data + b->offset;
    *bytes = p->bytes - b->offset < most ? p->bytes - b->offset : most;
    b->offset += *bytes;
    return data;
}

static int decode_step(struct engine_stream *s, const void *data, size_t bytes, struct stream_scratch *x,
                       struct status *st) {
    const int channels = s->options.format.channels;
    const size_t most = pcm_count_frames(&s->reader, bytes);
    float *out[PCM_CHANNELS_MAX] = {0};
    size_t frames;
    if (reserve(&x->pcm, &x->pcm_values, (most ? most : 1) * (size_t)channels, st))
        return -1;
    for (int c = 0; c < channels; c++)
        out[c] = s->channels[c].excluded ? NULL : x->pcm + (size_t)c * most;
    if (pcm_read(&s->reader, data, bytes, out, &frames, st))
        return -1;
    s->frames += (int64_t)frames;
    int result = 0;
    for (int c = 0; c < channels && frames && result == 0; c++)
        if (out[c])
            result = pass_channel(s, c, out[c], frames, x, st);
    memset(x->pcm, 0, (size_t)channels * most * sizeof *x->pcm);
    return result;
}

void stream_drop_bytes(struct stream_bytes *b) {
    if (b->release)
        b->release(b->release_arg);
    free(b->pieces);
    *b = (struct stream_bytes){0};
}

/* One channel nearer to its end; false: all are there. */
static bool finish_step(struct engine_stream *s, struct stream_scratch *x, struct status *st, int *result) {
    for (int c = 0; c < s->options.format.channels; c++) {
        struct stream_channel *channel = &s->channels[c];
        if (channel->excluded || channel->finished)
            continue;
        if (!channel->flushed) {
            channel->flushed = true;
            *result = pass_channel(s, c, NULL, 0, x, st);
        } else {
            channel->finished = true;
            *result = cutter_finish(channel->cutter, st);
        }
        return true;
    }
    return false;
}

bool stream_cut(struct engine_stream *s, struct stream_scratch *x, bool finish) {
    const struct audio_format *f = &s->options.format;
    struct status st = {0};
    int result = 0;
    bool more = true;
    if (!take_all_pieces(s))
        return false;
    const size_t step_bytes = s->reader.frame_bytes * (size_t)(f->rate_hz / STEPS_PER_S);
    size_t bytes;
    const void *data = next_bytes(&s->bytes, step_bytes, &bytes);
    if (data) {
        s->fed_ns = s->bytes.fed_ns;
        result = decode_step(s, data, bytes, x, &st);
    } else if (finish) {
        result = pcm_finish(&s->reader, &st);
        if (result == 0)
            more = finish_step(s, x, &st, &result);
        if (!more) { /* all was cut */
            const struct status ok = {0};
            stream_end(s, ENGINE_STREAM_FINISHED, &ok);
        }
    } else {
        return false;
    }
    if (result)
        stream_end(s, ENGINE_STREAM_FAILED, &st);
    else if (more)
        (void)take_all_pieces(s);
    return more && !s->ending;
}
