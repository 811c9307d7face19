/* vad_frames: the voice-activity rule for tests/e2e/test_vad.py and bench/vad.py.
 *
 *     vad_frames [--mulaw] [--time] RATE_HZ
 *
 * Standard input: float32 samples at RATE_HZ, or with --mulaw G.711 codes at 8000 Hz, which are decoded and
 * resampled as a stream's are. Standard output: a byte a frame, 0 or 1. --time: processor time of the rule
 * alone, in milliseconds for a second of audio, on standard error. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "audio/pcm.h"
#include "audio/resample.h"
#include "audio/vad.h"

enum { PHONE_HZ = 8000, PIECE_MS = 20 };

struct samples {
    float *data;
    size_t count;
};

static int fail(const struct status *st) {
    fprintf(stderr, "vad_frames: %s\n", st->message);
    return 1;
}

/* All of standard input. */
static unsigned char *read_all(size_t *bytes) {
    size_t room = (size_t)1 << 20, got;
    unsigned char *data = malloc(room);
    *bytes = 0;
    while (data != NULL && (got = fread(data + *bytes, 1, room - *bytes, stdin)) > 0) {
        *bytes += got;
        if (*bytes == room) {
            unsigned char *more = realloc(data, room *= 2);
            if (more == NULL)
                free(data);
            data = more;
        }
    }
    return data;
}

static int decode_phone(struct samples *s, const unsigned char *codes, size_t bytes, int rate_hz,
                        struct status *st) {
    const struct audio_format format = {.encoding = AUDIO_MULAW, .rate_hz = PHONE_HZ, .channels = 1};
    struct pcm_reader reader;
    struct resampler *r = NULL;
    size_t frames = 0, made = 0, rest = 0;
    float *phone = malloc((bytes + 1) * sizeof *phone);
    int rc = -1;
    if (phone == NULL)
        return status_set_no_memory(st, bytes * sizeof *phone, "samples");
    if (pcm_init(&reader, &format, 0, st) != 0 ||
        pcm_read(&reader, codes, bytes, (float *const[]){phone}, &frames, st) != 0 ||
        resampler_new(&r, PHONE_HZ, rate_hz, st) != 0)
        goto out;
    const size_t room = resampler_bound(r, frames) + (size_t)rate_hz;
    s->data = malloc(room * sizeof *s->data);
    if (s->data == NULL) {
        status_set_no_memory(st, room * sizeof *s->data, "samples");
        goto out;
    }
    if (resampler_process(r, phone, frames, s->data, room, &made, st) != 0 ||
        resampler_process(r, NULL, 0, s->data + made, room - made, &rest, st) != 0)
        goto out;
    s->count = made + rest;
    rc = 0;
out:
    resampler_del(r);
    free(phone);
    return rc;
}

static double processor_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int decide(const struct samples *s, int rate_hz, bool timed, struct status *st) {
    struct vad *v = NULL;
    if (vad_new(&v, rate_hz, 0, st) != 0)
        return -1;
    unsigned char *speech = malloc(vad_bound(v, s->count) + 1);
    if (speech == NULL) {
        vad_del(v);
        return status_set_no_memory(st, s->count, "decisions");
    }
    const size_t piece = (size_t)rate_hz * PIECE_MS / 1000;
    const double begin = processor_s();
    size_t frames = 0;
    for (size_t done = 0; done < s->count; done += piece)
        frames += vad_process(v, s->data + done, s->count - done < piece ? s->count - done : piece,
                              speech + frames);
    if (timed)
        fprintf(stderr, "%.5f\n", (processor_s() - begin) * 1e3 * rate_hz / (double)s->count);
    const bool written = fwrite(speech, 1, frames, stdout) == frames && fflush(stdout) == 0;
    free(speech);
    vad_del(v);
    return written ? 0 : status_set(st, STATUS_UNAVAILABLE, "cannot write: %s", strerror(errno));
}

int main(int argc, char **argv) {
    bool mulaw = false, timed = false;
    int rate_hz = 0, rc = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--mulaw") == 0)
            mulaw = true;
        else if (strcmp(argv[i], "--time") == 0)
            timed = true;
        else
            rate_hz = atoi(argv[i]);
    }
    struct status st = {0};
    struct samples s = {0};
    size_t bytes;
    unsigned char *data = read_all(&bytes);
    if (data == NULL || rate_hz <= 0) {
        fprintf(stderr, "usage: vad_frames [--mulaw] [--time] RATE_HZ\n");
        return 2;
    }
    if (mulaw) {
        rc = decode_phone(&s, data, bytes, rate_hz, &st);
    } else {
        s.count = bytes / sizeof *s.data;
        s.data = malloc(bytes + 1);
        if (s.data == NULL)
            rc = status_set_no_memory(&st, bytes, "samples");
        else
            memcpy(s.data, data, s.count * sizeof *s.data);
    }
    if (rc == 0)
        rc = decide(&s, rate_hz, timed, &st);
    free(data);
    free(s.data);
    return rc == 0 ? 0 : fail(&st);
}
