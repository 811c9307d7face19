#include "audio/channels.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "audio/decode_internal.h"
#include "audio/sndfile_memory.h"
#include "audio/values.h"

enum {
    PIECE_VALUES = 1 << 16,
    ASKED_RATE_HZ = 16000, /* of a decoding that only has to tell what the file is */
};

/* What libsndfile decodes to 16 bits without a loss. */
static enum audio_encoding choose_encoding(const SF_INFO *info) {
    switch (info->format & SF_FORMAT_SUBMASK) {
    case SF_FORMAT_PCM_S8:
    case SF_FORMAT_PCM_U8:
    case SF_FORMAT_PCM_16:
    case SF_FORMAT_ALAC_16:
    case SF_FORMAT_IMA_ADPCM:
    case SF_FORMAT_MS_ADPCM:
        return AUDIO_PCM16;
    case SF_FORMAT_ULAW:
        return AUDIO_MULAW;
    case SF_FORMAT_ALAW:
        return AUDIO_ALAW;
    default:
        return AUDIO_FLOAT32;
    }
}

/* Frames into `values`; 0: no more. */
static sf_count_t read_piece(SNDFILE *file, void *values, sf_count_t frames, const struct audio_format *f) {
    const sf_count_t count = frames * f->channels;
    if (f->encoding == AUDIO_MULAW || f->encoding == AUDIO_ALAW)
        return sf_read_raw(file, values, count) / f->channels;
    if (f->encoding == AUDIO_PCM16) {
        uint16_t *v = values;
        frames = sf_readf_short(file, values, frames);
        for (sf_count_t i = 0; i < frames * f->channels; i++)
            v[i] = htole16(v[i]);
        return frames;
    }
    uint32_t *v = values;
    frames = sf_readf_float(file, values, frames);
    for (sf_count_t i = 0; i < frames * f->channels; i++)
        v[i] = htole32(v[i]);
    return frames;
}

static int make_room(struct audio_channels *c, size_t *capacity, size_t bytes, struct status *st) {
    if (bytes > AUDIO_CHANNELS_BYTES_MAX - c->bytes)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "the audio has more than %zu bytes of samples, which is the most that is read",
                          AUDIO_CHANNELS_BYTES_MAX);
    if (c->bytes + bytes <= *capacity)
        return 0;
    const size_t more = 2 * *capacity + bytes;
    void *data = realloc(c->data, more);
    if (data == NULL)
        return status_set_no_memory(st, more, "decoded audio");
    c->data = data;
    *capacity = more;
    return 0;
}

static int read_samples(struct audio_channels *c, SNDFILE *file, const struct audio_limits *limits,
                        struct status *st) {
    const size_t frame_bytes = values_find_bytes(c->format.encoding) * (size_t)c->format.channels;
    const sf_count_t piece = PIECE_VALUES / c->format.channels;
    size_t capacity = 0;
    for (;;) {
        if (make_room(c, &capacity, (size_t)piece * frame_bytes, st) != 0)
            return -1;
        const sf_count_t got = read_piece(file, (char *)c->data + c->bytes, piece, &c->format);
        if (got <= 0 || got > piece)
            return 0;
        c->bytes += (size_t)got * frame_bytes;
        c->frames += got;
        if ((double)c->frames > limits->duration_s_max * c->format.rate_hz)
            return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                              "the audio is longer than max-duration, which is %g s", limits->duration_s_max);
    }
}

/* By libsndfile. `a` says what came of it. */
static int read_here(struct audio_channels *c, struct audio_attempt *a, const void *data, size_t bytes,
                     const struct audio_limits *limits, struct status *st) {
    struct memory_file memory = {.data = data, .bytes = (sf_count_t)bytes};
    SF_INFO info;
    SNDFILE *file = sndfile_open_memory(&memory, &info, a);
    if (file == NULL)
        return 0;
    int failed;
    if (info.samplerate < AUDIO_RATE_HZ_MIN || info.samplerate > AUDIO_RATE_HZ_MAX)
        failed = status_set(st, STATUS_INVALID_ARGUMENT, "audio of %d Hz: rates are %d to %d Hz",
                            info.samplerate, AUDIO_RATE_HZ_MIN, AUDIO_RATE_HZ_MAX);
    else if (info.channels < 1 || info.channels > AUDIO_CHANNELS_MAX)
        failed = status_set(st, STATUS_INVALID_ARGUMENT, "audio of %d channels: 1 to %d are read",
                            info.channels, AUDIO_CHANNELS_MAX);
    else {
        c->format = (struct audio_format){
            .encoding = choose_encoding(&info), .rate_hz = info.samplerate, .channels = info.channels};
        failed = read_samples(c, file, limits, st);
    }
    a->sink.frames = c->frames;
    if (failed == 0)
        sndfile_judge(a, file, &info, memory.bytes - memory.position);
    sf_close(file);
    return failed;
}

static void take_clip(struct audio_channels *c, struct audio_clip *clip) {
    uint32_t *values = (uint32_t *)(void *)clip->samples;
    for (int64_t i = 0; i < clip->count; i++)
        values[i] = htole32(values[i]);
    free(c->data);
    *c = (struct audio_channels){
        .data = clip->samples,
        .bytes = (size_t)clip->count * sizeof *clip->samples,
        .frames = clip->count,
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = clip->source_rate_hz, .channels = 1}};
    clip->samples = NULL;
}

/* libsndfile was not sure: audio_decode, which asks ffmpeg too, says whose result is used. */
static int read_with_ffmpeg(struct audio_channels *c, const struct audio_attempt *a, const void *data,
                            size_t bytes, const struct audio_limits *limits, struct status *st) {
    const struct audio_format file = {.encoding = AUDIO_FILE};
    struct audio_clip clip;
    if (audio_decode(&clip, data, bytes, &file, ASKED_RATE_HZ, limits, st) != 0)
        return -1;
    const int rate_hz = clip.source_rate_hz, channels = clip.source_channels;
    const bool here = strcmp(clip.decoder, "libsndfile") == 0;
    /* Cut short and of several channels: what libsndfile read of them is better than a mixture. */
    if (here || (channels > 1 && c->frames > 0 && !a->guessed)) {
        audio_clip_free(&clip);
        return 0;
    }
    if (channels == 1 && rate_hz != ASKED_RATE_HZ) {
        audio_clip_free(&clip);
        if (audio_decode(&clip, data, bytes, &file, rate_hz, limits, st) != 0)
            return -1;
    }
    if (channels == 1)
        take_clip(c, &clip);
    audio_clip_free(&clip);
    if (channels != 1)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "%d channels in a format that only ffmpeg reads, which mixes them here: convert it "
                          "first (ffmpeg -i FILE FILE.wav)",
                          channels);
    return 0;
}

int audio_read_channels(struct audio_channels *c, const void *data, size_t bytes,
                        const struct audio_limits *limits, struct status *st) {
    *c = (struct audio_channels){0};
    if (bytes == 0 || data == NULL)
        return status_set(st, STATUS_INVALID_ARGUMENT, "there is no audio in it: it has 0 bytes");
    if (bytes > limits->bytes_max)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "the audio has %zu bytes; max-file-bytes is %zu",
                          bytes, limits->bytes_max);
    struct audio_attempt *a = calloc(1, sizeof *a);
    if (a == NULL)
        return status_set_no_memory(st, sizeof *a, "decoding");
    int failed = read_here(c, a, data, bytes, limits, st);
    if (failed == 0 && !a->whole)
        failed = read_with_ffmpeg(c, a, data, bytes, limits, st);
    free(a);
    if (failed != 0) {
        free(c->data);
        *c = (struct audio_channels){0};
    }
    return failed;
}
