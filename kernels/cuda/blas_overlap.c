#include "kernels/cuda/blas_overlap.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { ROWS = 700, ROWS_STEP = 23 /* between those that are compared */ };

/* A convolution of three taps and stride two: a row has three taps and begins two after the row before. */
struct trial {
    enum cuda_type type;
    struct gpu_stream *stream;
    int channels;
    float *x, *w, *y; /* [(ROWS - 1) * 2 + 3, channels], [channels, 3 * channels], [ROWS, channels] */
    uint16_t *packed; /* x, w and y in bf16, behind each other */
    void *device[3];  /* x, w, y */
    size_t counts[3];
};

static int refuse(struct status *st, int error) {
    return status_set(st, error == GPU_OUT_OF_MEMORY ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE,
                      "a trial of cuBLASLt: %s", gpu_error_text(error));
}

/* Multiples of 1/64 between -1 and 1, which bf16 holds exactly; Lehmer's generator. */
static void fill(float *v, size_t count, uint64_t *state) {
    for (size_t i = 0; i < count; i++) {
        *state = *state * 48271 % 2147483647;
        v[i] = (float)((int)(*state >> 8) % 129 - 64) / 64.0f;
    }
}

static void pack(uint16_t *to, const float *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        to[i] = (uint16_t)(bits >> 16);
    }
}

static void unpack(float *to, const uint16_t *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

static size_t bytes_of(const struct trial *t, int i) {
    return t->counts[i] * (t->type == CUDA_BF16 ? sizeof *t->packed : sizeof(float));
}

/* x, w or y as the GPU has it. */
static void *host_of(const struct trial *t, int i) {
    float *const whole[] = {t->x, t->w, t->y};
    const size_t before = (i > 0 ? t->counts[0] : 0) + (i > 1 ? t->counts[1] : 0);
    return t->type == CUDA_BF16 ? (void *)(t->packed + before) : whole[i];
}

static void trial_free(struct trial *t) {
    for (int i = 0; i < 3; i++)
        gpu_memory_del(t->device[i]);
    free(t->x);
    free(t->w);
    free(t->y);
    free(t->packed);
}

static int trial_begin(struct trial *t, struct status *st) {
    const size_t c = (size_t)t->channels;
    uint64_t state = 1;
    int error = GPU_OK;
    t->counts[0] = ((ROWS - 1) * 2 + 3) * c;
    t->counts[1] = c * 3 * c;
    t->counts[2] = ROWS * c;
    const size_t all = t->counts[0] + t->counts[1] + t->counts[2];
    t->x = calloc(t->counts[0], sizeof(float));
    t->w = calloc(t->counts[1], sizeof(float));
    t->y = calloc(t->counts[2], sizeof(float));
    t->packed = calloc(all, sizeof *t->packed);
    if (!t->x || !t->w || !t->y || !t->packed)
        return status_set_no_memory(st, all * (sizeof(float) + sizeof *t->packed), "a trial of cuBLASLt");
    fill(t->x, t->counts[0], &state);
    fill(t->w, t->counts[1], &state);
    pack(t->packed, t->x, t->counts[0]);
    pack(t->packed + t->counts[0], t->w, t->counts[1]);
    for (int i = 0; i < 3 && !error; i++)
        error = gpu_memory_new(&t->device[i], bytes_of(t, i));
    for (int i = 0; i < 2 && !error; i++)
        error = gpu_copy_in(t->device[i], host_of(t, i), bytes_of(t, i), t->stream);
    return error ? refuse(st, error) : 0;
}

static bool trial_is_right(const struct trial *t) {
    const int c = t->channels;
    const double rounding = t->type == CUDA_BF16 ? 1.0 / 256 : 0;
    for (int r = ROWS - 1; r >= 0; r -= ROWS_STEP)
        for (int o = 0; o < c; o++) {
            double sum = 0, sum_abs = 0;
            for (int i = 0; i < 3 * c; i++) {
                const double term = (double)t->x[r * 2 * c + i] * t->w[o * 3 * c + i];
                sum += term;
                sum_abs += fabs(term);
            }
            /* One wrong term out of three times 512 is more than this. */
            if (!(fabs(t->y[r * c + o] - sum) <= rounding * fabs(sum) + sum_abs / 65536))
                return false;
        }
    return true;
}

static int trial_end(struct trial *t, bool *taken, struct status *st) {
    int error = gpu_copy_out(host_of(t, 2), t->device[2], bytes_of(t, 2), t->stream);
    if (!error)
        error = gpu_stream_wait(t->stream);
    if (error)
        return refuse(st, error);
    if (t->type == CUDA_BF16)
        unpack(t->y, host_of(t, 2), t->counts[2]);
    *taken = trial_is_right(t);
    return 0;
}

static int try_channels(struct blas *b, struct trial *t, bool *taken, struct status *st) {
    const struct blas_shape s = {
        .in = 3 * t->channels, .out = t->channels, .x_stride = 2 * t->channels, .w_stride = 3 * t->channels};
    int plan = -1;
    *taken = false;
    if (blas_plan(b, &s, &plan, st))
        return -1;
    if (plan < 0)
        return 0;
    int result = trial_begin(t, st);
    const bool ran =
        !result && !blas_run(b, plan, t->device[2], t->device[0], t->device[1], NULL, NULL, ROWS);
    if (ran)
        result = trial_end(t, taken, st);
    else
        (void)gpu_stream_wait(t->stream); /* for the copies */
    trial_free(t);
    return result;
}

/* What was found out in this process; never freed. */
struct found {
    int sm;
    enum cuda_type type;
    bool taken;
    struct found *next;
};

/* A small one and one of the size that it is for. */
static int find(struct blas *b, struct found *f, struct gpu_stream *stream, struct status *st) {
    struct trial small = {.type = f->type, .stream = stream, .channels = 64};
    struct trial large = {.type = f->type, .stream = stream, .channels = 512};
    if (try_channels(b, &small, &f->taken, st))
        return -1;
    return f->taken ? try_channels(b, &large, &f->taken, st) : 0;
}

int blas_try_overlap(struct blas *b, enum cuda_type type, int sm, struct gpu_stream *stream, bool *taken,
                     struct status *st) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct found *all;
    int result = 0;
    pthread_mutex_lock(&lock);
    struct found *f = all;
    while (f && !(f->sm == sm && f->type == type))
        f = f->next;
    if (!f) {
        f = calloc(1, sizeof *f);
        if (f)
            *f = (struct found){.sm = sm, .type = type, .next = all};
        result = f ? find(b, f, stream, st) : status_set_no_memory(st, sizeof *f, "a trial of cuBLASLt");
        if (result) {
            free(f);
        } else {
            all = f;
            log_write(LOG_DEBUG, "cuda", "cuBLASLt %s products of overlapping rows",
                      f->taken ? "computes" : "does not compute");
        }
    }
    if (!result)
        *taken = f->taken;
    pthread_mutex_unlock(&lock);
    return result;
}
