#include "bench/gpu/clips.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { FILE_BYTES_MAX = 64 << 20 };

static uint32_t read_le(const unsigned char *p, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint32_t)p[i] << (8 * i);
    return v;
}

/* Finds the samples of a WAV file: RIFF, then chunks of a name, a length and, padded to even, content. */
static int find_pcm16(const unsigned char *d, size_t bytes, const unsigned char **pcm, size_t *pcm_bytes,
                      const char *path, struct status *st) {
    bool has_format = false;
    if (bytes < 12 || memcmp(d, "RIFF", 4) != 0 || memcmp(d + 8, "WAVE", 4) != 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a WAV file", path);
    for (size_t at = 12; bytes - at >= 8;) {
        const unsigned char *chunk = d + at;
        size_t length = read_le(chunk + 4, 4);
        if (length > bytes - at - 8)
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: a chunk goes beyond the end of the file",
                              path);
        if (memcmp(chunk, "fmt ", 4) == 0) {
            if (length < 16 || read_le(chunk + 8, 2) != 1 || read_le(chunk + 10, 2) != 1 ||
                read_le(chunk + 12, 4) != CLIPS_RATE_HZ || read_le(chunk + 22, 2) != 16)
                return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not 16-bit PCM, mono, 16 kHz", path);
            has_format = true;
        } else if (memcmp(chunk, "data", 4) == 0 && has_format) {
            *pcm = chunk + 8;
            *pcm_bytes = length;
            return 0;
        }
        length += length & 1;
        if (length > bytes - at - 8)
            break;
        at += 8 + length;
    }
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s: no samples behind a format", path);
}

static int read_wav(float **samples, int64_t *count, const unsigned char *d, size_t bytes, const char *path,
                    struct status *st) {
    const unsigned char *pcm = NULL;
    size_t pcm_bytes = 0;
    if (find_pcm16(d, bytes, &pcm, &pcm_bytes, path, st))
        return -1;
    *count = (int64_t)(pcm_bytes / 2);
    *samples = malloc((size_t)*count * sizeof **samples + 1);
    if (!*samples)
        return status_set_no_memory(st, pcm_bytes * 2, path);
    for (int64_t i = 0; i < *count; i++)
        (*samples)[i] = (float)(int16_t)read_le(pcm + 2 * i, 2) / 32768.0f;
    return 0;
}

static int read_raw(float **samples, int64_t *count, const unsigned char *d, size_t bytes, const char *path,
                    struct status *st) {
    if (bytes % sizeof(float) != 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: %zu bytes are no whole number of float32", path,
                          bytes);
    *count = (int64_t)(bytes / sizeof(float));
    *samples = malloc(bytes + 1);
    if (!*samples)
        return status_set_no_memory(st, bytes, path);
    for (int64_t i = 0; i < *count; i++) {
        const uint32_t bits = read_le(d + 4 * i, 4);
        memcpy(*samples + i, &bits, sizeof bits);
        if (!isfinite((*samples)[i])) {
            free(*samples);
            *samples = NULL;
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: sample %lld is not finite", path,
                              (long long)i);
        }
    }
    return 0;
}

int clips_read(float **samples, int64_t *count, const char *path, struct status *st) {
    const size_t length = strlen(path);
    const bool wav = length >= 4 && strcmp(path + length - 4, ".wav") == 0;
    char *data;
    size_t bytes;
    *samples = NULL;
    *count = 0;
    if (file_read(&data, &bytes, path, FILE_BYTES_MAX, "the longest clip", st))
        return -1;
    const int result =
        (wav ? read_wav : read_raw)(samples, count, (const unsigned char *)data, bytes, path, st);
    free(data);
    return result;
}

/* ---- clips that are made ---- */

uint32_t clips_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u; /* Knuth's and Lewis's generator */
    return *state >> 8;
}

static void fill(float *x, int64_t n, int kind, uint32_t *state) {
    static const double levels[] = {0.1, 0.01, 0.5, 0.03, 1.0, 1e-3, 3.0};
    const double level = levels[kind % 7];
    const double pitch = 2 * 3.14159265358979 * (80 + clips_random(state) % 3000) / CLIPS_RATE_HZ;
    for (int64_t i = 0; i < n; i++) {
        const double noise = (double)clips_random(state) / (1 << 23) - 1;
        const double tone = sin(pitch * (double)i) * (0.6 + 0.4 * sin(pitch * (double)i / 531));
        x[i] = kind % 23 == 11   ? 0.0f
               : kind % 23 == 17 ? 0.25f
                                 : (float)(level * (kind % 3 == 0 ? noise : 0.8 * tone + 0.2 * noise));
    }
}

int clips_make(struct clips *c, int count, int64_t shortest, int64_t longest, uint32_t seed,
               struct status *st) {
    uint32_t state = seed;
    *c = (struct clips){.samples = calloc((size_t)count, sizeof *c->samples),
                        .counts = calloc((size_t)count, sizeof *c->counts)};
    for (int i = 0; c->samples && c->counts && i < count; i++) {
        const double u = (double)clips_random(&state) / (1 << 24);
        const int64_t n = i == 0   ? shortest
                          : i == 1 ? longest
                                   : shortest + (int64_t)((double)(longest - shortest) * u * u);
        c->counts[i] = n;
        c->samples[i] = malloc((size_t)n * sizeof **c->samples);
        if (!c->samples[i])
            break;
        fill(c->samples[i], n, i, &state);
        c->audio_s += (double)n / CLIPS_RATE_HZ;
        c->count++;
    }
    if (c->count == count)
        return 0;
    clips_free(c);
    return status_set_no_memory(st, (unsigned long long)count * (unsigned long long)longest * sizeof(float),
                                "clips");
}

void clips_free(struct clips *c) {
    for (int i = 0; i < c->count; i++)
        free(c->samples[i]);
    free(c->samples);
    free(c->counts);
    *c = (struct clips){0};
}
