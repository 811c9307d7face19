/* sndfile: files through libsndfile, from memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audio/decode_internal.h"
#include "audio/sndfile_memory.h"

#if defined(__has_feature)
#define SNDFILE_TSAN __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_THREAD__)
#define SNDFILE_TSAN 1
#endif
#if SNDFILE_TSAN
/* Every sf_open writes a message for people into one static buffer, whichever thread it is on. Nobody reads
 * it here, and a lock around opening would let one slow file hold up all others. */
const char *__tsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void) {
    return "called_from_lib:libsndfile.so\n";
}
#endif

enum {
    SNDFILE_PIECE_VALUES = 16384,
    SNDFILE_UNREAD_BYTES_MAX = 4096, /* behind a stream, such as tags */
};

static sf_count_t memory_length(void *user) {
    return ((struct memory_file *)user)->bytes;
}

static sf_count_t memory_tell(void *user) {
    return ((struct memory_file *)user)->position;
}

static sf_count_t memory_seek(sf_count_t offset, int whence, void *user) {
    struct memory_file *f = user;
    sf_count_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? f->position : f->bytes, to;
    if (__builtin_add_overflow(base, offset, &to) || to < 0)
        return -1;
    f->position = to > f->bytes ? f->bytes : to;
    return f->position;
}

static sf_count_t memory_read(void *out, sf_count_t count, void *user) {
    struct memory_file *f = user;
    sf_count_t left = f->bytes - f->position;
    if (count > left)
        count = left;
    if (count <= 0)
        return 0;
    memcpy(out, f->data + f->position, (size_t)count);
    f->position += count;
    return count;
}

static sf_count_t memory_write(const void *in, sf_count_t count, void *user) {
    (void)in, (void)count, (void)user;
    return 0; /* the file is open for reading only */
}

static void sndfile_say(struct audio_attempt *a, const char *text) {
    size_t n = 0;
    for (; text[n] != '\0' && n + 1 < sizeof a->why; n++)
        a->why[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
    a->why[n] = '\0';
}

static int sndfile_read(struct audio_attempt *a, SNDFILE *file, struct status *st) {
    float *values = malloc(SNDFILE_PIECE_VALUES * sizeof *values);
    if (values == NULL)
        return status_set_no_memory(st, SNDFILE_PIECE_VALUES * sizeof *values, "decoding");
    sf_count_t piece_max = SNDFILE_PIECE_VALUES / a->sink.channels;
    int failed = 0;
    for (;;) {
        sf_count_t got = sf_readf_float(file, values, piece_max);
        if (got <= 0 || got > piece_max)
            break;
        failed = audio_sink_put(&a->sink, values, (size_t)got, st);
        if (failed != 0)
            break;
    }
    free(values);
    return failed != 0 ? -1 : audio_sink_finish(&a->sink, st);
}

void sndfile_judge(struct audio_attempt *a, SNDFILE *file, const SF_INFO *info, sf_count_t unread) {
    int type = info->format & SF_FORMAT_TYPEMASK, subtype = info->format & SF_FORMAT_SUBMASK;
    bool stream = type == SF_FORMAT_MPEG || type == SF_FORMAT_OGG;
    a->guessed = type == SF_FORMAT_MPEG;
    a->empty = info->frames == 0;
    if (sf_error(file) != SF_ERR_NO_ERROR)
        sndfile_say(a, sf_strerror(file));
    else if (a->sink.frames == 0)
        sndfile_say(a, "the file holds no samples");
    else if (info->frames != SF_COUNT_MAX && a->sink.frames < info->frames - info->frames / 100)
        sndfile_say(a, "the file ends early");
    else if (stream && unread > SNDFILE_UNREAD_BYTES_MAX)
        sndfile_say(a,
                    "only the first part of the file was read"); /* as of streams put one behind the other */
    else if (subtype == SF_FORMAT_GSM610)
        sndfile_say(a, "GSM 6.10 may come with a block too many"); /* made up after an odd number of them */
    else
        a->whole = true;
}

SNDFILE *sndfile_open_memory(struct memory_file *memory, SF_INFO *info, struct audio_attempt *a) {
    SF_VIRTUAL_IO io = {memory_length, memory_seek, memory_read, memory_write, memory_tell};
    *info = (SF_INFO){0};
    SNDFILE *file = sf_open_virtual(&io, SFM_READ, info, memory);
    /* libsndfile keeps the reason in a variable that all threads share, so it is not asked for. */
    if (file == NULL)
        sndfile_say(a, "not a file that it reads");
    return file;
}

int sndfile_decode(struct audio_attempt *a, const void *data, size_t bytes, int rate_hz,
                   const struct audio_limits *limits, struct status *st) {
    struct memory_file memory = {.data = data, .bytes = (sf_count_t)bytes};
    SF_INFO info;
    SNDFILE *file = sndfile_open_memory(&memory, &info, a);
    if (file == NULL)
        return 0;
    int failed = audio_sink_open(&a->sink, info.samplerate, info.channels, rate_hz, limits, st);
    if (failed == 0)
        failed = sndfile_read(a, file, st);
    if (failed == 0)
        sndfile_judge(a, file, &info, memory.bytes - memory.position);
    sf_close(file);
    return failed;
}
