/* decode: which decoder reads a file, and whose result is used when both tried. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audio/audio.h"
#include "audio/decode_internal.h"
#include "audio/ffmpeg.h"

void audio_limits_init(struct audio_limits *l) {
    *l = (struct audio_limits){
        .bytes_max = AUDIO_BYTES_MAX_DEFAULT,
        .duration_s_max = AUDIO_DURATION_S_MAX_DEFAULT,
        .decode_ms_max = AUDIO_DECODE_MS_MAX_DEFAULT,
        .ffmpeg = NULL,
    };
}

void audio_clip_free(struct audio_clip *c) {
    if (c->samples)
        explicit_bzero(c->samples, (size_t)c->count * sizeof *c->samples);
    free(c->samples);
    *c = (struct audio_clip){0};
}

/* What files begin with that only ffmpeg reads, or that it may read when libsndfile fails on them. */
static const struct container {
    size_t offset, bytes;
    const char *magic, *name;
} containers[] = {
    {4, 4, "ftyp", "an MP4 or M4A file"},
    {0, 4, "\x1a\x45\xdf\xa3", "a WebM or Matroska file"},
    {0, 4, "\x30\x26\xb2\x75", "a WMA or ASF file"},
    {0, 5, "#!AMR", "an AMR file"},
    {0, 4, "OggS", "an Ogg file"},
    {0, 2, "\xff\xf1", "an AAC stream"},
    {0, 2, "\xff\xf9", "an AAC stream"},
    {0, 2, "\x0b\x77", "an AC-3 stream"},
    {0, 4, "\x7f\xfe\x80\x01", "a DTS stream"},
    {0, 4, "\x00\x00\x01\xba", "an MPEG program stream"},
    {0, 3, "FLV", "a Flash video"},
    {0, 4, "wvpk", "a WavPack file"},
    {0, 4, "MAC ", "a Monkey's Audio file"},
    {0, 4, "TTA1", "a TTA file"},
    {0, 4, "DSD ", "a DSF file"},
    {0, 4, ".RMF", "a RealMedia file"},
    {0, 4, "RIFF", "a WAV or AVI file of a kind that libsndfile does not read"},
    {0, 4, "fLaC", "a FLAC file that libsndfile does not read"},
    {0, 3, "ID3", "a file with an ID3 tag that libsndfile does not read"},
};

static const char *decode_name_container(const unsigned char *data, size_t bytes) {
    for (size_t i = 0; i < sizeof containers / sizeof *containers; i++) {
        const struct container *c = &containers[i];
        if (bytes >= c->offset + c->bytes && memcmp(data + c->offset, c->magic, c->bytes) == 0)
            return c->name;
    }
    return NULL;
}

/* Whether ffmpeg did not run because it is not to be had, which says nothing about the file. */
static bool decode_went_without(const struct status *why) {
    return why->code == STATUS_FAILED_PRECONDITION || why->code == STATUS_UNAVAILABLE;
}

/* Why neither decoder gave a sample. When ffmpeg did not run, `why` comes in saying why not. Sets `why`;
 * returns -1. */
static int decode_refuse(const struct audio_attempt *a, const struct audio_attempt *b, bool ran,
                         const void *data, size_t bytes, struct status *why) {
    if (a->empty || b->empty)
        return status_set(why, STATUS_INVALID_ARGUMENT, "there is no audio in it: %s",
                          b->empty ? b->why : a->why);
    if (ran)
        return status_set(why, STATUS_INVALID_ARGUMENT,
                          "the audio cannot be decoded: libsndfile: %s; ffmpeg: %s", a->why, b->why);
    if (!decode_went_without(why))
        return -1;
    const char *name = decode_name_container(data, bytes);
    if (name != NULL)
        return status_prefix(why, "this is %s, which needs ffmpeg", name);
    /* Most likely no audio at all, which trying again elsewhere would not change. */
    char without[AUDIO_ATTEMPT_WHY_BYTES];
    snprintf(without, sizeof without, "%.*s", (int)sizeof without - 1, why->message);
    return status_set(why, STATUS_INVALID_ARGUMENT, "the audio cannot be decoded: libsndfile: %s; ffmpeg: %s",
                      a->why, without);
}

/* Both tried. ffmpeg knows more formats and their details, so its result is used unless it lost a good part.
 */
static bool decode_prefers_ffmpeg(const struct audio_attempt *a, const struct audio_attempt *b) {
    return b->sink.frames > 0 && audio_sink_duration_s(&b->sink) >= 0.9 * audio_sink_duration_s(&a->sink);
}

static bool decode_may_ask(const struct audio_limits *limits) {
    return limits->ffmpeg == NULL || limits->ffmpeg[0] != '\0';
}

static int decode_ask_ffmpeg(struct audio_attempt *b, const void *data, size_t bytes, int rate_hz,
                             const struct audio_limits *limits, struct status *why) {
    if (!decode_may_ask(limits))
        return status_set(why, STATUS_FAILED_PRECONDITION, "it is switched off here");
    return ffmpeg_decode(b, data, bytes, rate_hz, limits, why);
}

/* `needs_ffmpeg` NULL: it is asked here. */
static int decode_file(struct audio_clip *clip, const void *data, size_t bytes, int rate_hz,
                       const struct audio_limits *limits, bool *needs_ffmpeg, struct status *st) {
    struct audio_attempt a = {0}, b = {0};
    struct status why = {0};
    bool ran = false;
    int result = sndfile_decode(&a, data, bytes, rate_hz, limits, &why);
    if (result == 0 && !a.whole && needs_ffmpeg != NULL && decode_may_ask(limits)) {
        *needs_ffmpeg = true;
        audio_sink_free(&a.sink);
        return 0;
    }
    if (result == 0 && !a.whole) {
        ran = decode_ask_ffmpeg(&b, data, bytes, rate_hz, limits, &why) == 0;
        /* Without ffmpeg, what libsndfile read is better than nothing; other errors end it. */
        if (!ran && !decode_went_without(&why) && why.code != STATUS_DEADLINE_EXCEEDED)
            result = -1;
    }
    if (result == 0) {
        /* A guessed format that ffmpeg does not confirm is noise. */
        bool noise = ran && a.guessed && b.sink.frames == 0;
        if (ran && decode_prefers_ffmpeg(&a, &b))
            audio_sink_move(&b.sink, clip, "ffmpeg");
        else if (a.sink.frames > 0 && !noise)
            audio_sink_move(&a.sink, clip, "libsndfile");
        else
            result = decode_refuse(&a, &b, ran, data, bytes, &why);
    }
    if (result != 0)
        status_set(st, why.code, "%s", why.message);
    audio_sink_free(&a.sink);
    audio_sink_free(&b.sink);
    return result;
}

static int decode_raw(struct audio_clip *clip, const void *data, size_t bytes,
                      const struct audio_format *format, int rate_hz, const struct audio_limits *limits,
                      struct status *st) {
    struct audio_sink sink = {0};
    int result = raw_decode(&sink, data, bytes, format, rate_hz, limits, st);
    if (result == 0)
        audio_sink_move(&sink, clip, "raw");
    audio_sink_free(&sink);
    return result;
}

static int decode(struct audio_clip *clip, const void *data, size_t bytes, const struct audio_format *format,
                  int rate_hz, const struct audio_limits *limits, bool *needs_ffmpeg, struct status *st) {
    *clip = (struct audio_clip){0};
    if (bytes == 0 || data == NULL)
        return status_set(st, STATUS_INVALID_ARGUMENT, "there is no audio in it: it has 0 bytes");
    if (bytes > limits->bytes_max)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "the audio has %zu bytes; max-file-bytes is %zu",
                          bytes, limits->bytes_max);
    if (format->encoding == AUDIO_FILE)
        return decode_file(clip, data, bytes, rate_hz, limits, needs_ffmpeg, st);
    return decode_raw(clip, data, bytes, format, rate_hz, limits, st);
}

int audio_decode(struct audio_clip *clip, const void *data, size_t bytes, const struct audio_format *format,
                 int rate_hz, const struct audio_limits *limits, struct status *st) {
    return decode(clip, data, bytes, format, rate_hz, limits, NULL, st);
}

int audio_decode_here(struct audio_clip *clip, const void *data, size_t bytes,
                      const struct audio_format *format, int rate_hz, const struct audio_limits *limits,
                      bool *needs_ffmpeg, struct status *st) {
    *needs_ffmpeg = false;
    return decode(clip, data, bytes, format, rate_hz, limits, needs_ffmpeg, st);
}
