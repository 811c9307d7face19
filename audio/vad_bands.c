/* vad_bands: a real transform of one frame, and what is read from it.
 *
 * The transform is Stockham's: each stage writes its results where the next one reads them in order, so there
 * is no reordering, and the inner loops run over neighbours. Real samples go in as pairs (even ones real, odd
 * ones imaginary), which halves it. Both are as in C. Van Loan, "Computational Frameworks for the Fast
 * Fourier Transform" (1992), 1.7 and 4.3. */
#include "audio/vad_bands.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "audio/vad.h"

enum {
    VAD_POINTS_MAX = 2048,  /* the longest frame, 1536 samples, as a power of two */
    VAD_LANES = 8,          /* sums that run side by side, as a processor's vectors do */
    VAD_PERIODIC_HZ = 2000, /* voices have their harmonics mostly below */
    VAD_PITCH_HZ_MIN = 80,
    VAD_PITCH_HZ_MAX = 400,
    VAD_LAGS = 40,          /* of them, evenly spaced */
    VAD_PERIODIC_MAX = 128, /* bins below VAD_PERIODIC_HZ, more than any rate has */
};

#define VAD_TURN 6.283185307179586

static const int vad_band_hz[VAD_BANDS + 1] = {80,   160,  240,  330,  430,  540,  660,
                                               790,  930,  1080, 1250, 1450, 1680, 1950,
                                               2280, 2700, 3250, 4000, 5200, 6600, 7900};

struct vad_bands {
    int length, points, half; /* half = points / 2: the complex transform */
    int bins, periodic;       /* of the spectrum that are needed */
    int first[VAD_BANDS + 1]; /* band b is bins [first[b], first[b + 1]) */
    float window[VAD_POINTS_MAX];
    float turn_re[VAD_POINTS_MAX / 2 + 1], turn_im[VAD_POINTS_MAX / 2 + 1]; /* exp(-2 pi i k / points) */
    float cosine[VAD_PERIODIC_MAX][VAD_LAGS];                               /* bins to autocorrelation */
    float lag_gain[VAD_LAGS];                                               /* undoes the window */
    float re[2][VAD_POINTS_MAX / 2], im[2][VAD_POINTS_MAX / 2], spectrum[VAD_POINTS_MAX / 2];
};

static void vad_bands_init_window(struct vad_bands *b) {
    double w[VAD_POINTS_MAX], sum = 0.0;
    for (int i = 0; i < b->length; i++) {
        w[i] = 0.5 - 0.5 * cos(VAD_TURN * (i + 0.5) / b->length);
        sum += w[i] * w[i];
    }
    /* Such that the powers of the bins add up to the mean square of the samples. */
    for (int i = 0; i < b->length; i++)
        b->window[i] = (float)(w[i] * sqrt(2.0 / (b->points * sum)));
    for (int k = 0; k <= b->half; k++) {
        b->turn_re[k] = (float)cos(VAD_TURN * k / b->points);
        b->turn_im[k] = (float)-sin(VAD_TURN * k / b->points);
    }
}

static void vad_bands_init_lags(struct vad_bands *b, int rate_hz) {
    const double shortest = 1.0 / VAD_PITCH_HZ_MAX, longest = 1.0 / VAD_PITCH_HZ_MIN;
    for (int l = 0; l < VAD_LAGS; l++) {
        const double lag_s = shortest + (longest - shortest) * l / (VAD_LAGS - 1);
        const double x = lag_s * rate_hz / b->length; /* part of the window */
        for (int k = 0; k < b->periodic; k++)
            b->cosine[k][l] = (float)cos(VAD_TURN * k * lag_s * rate_hz / b->points);
        /* Autocorrelation of a Hann window: P. Boersma, "Accurate short-term analysis of the fundamental
         * frequency and the harmonics-to-noise ratio of a sampled sound" (1993), equation 8. */
        b->lag_gain[l] = (float)(1.0 / ((1.0 - x) * (2.0 / 3.0 + cos(VAD_TURN * x) / 3.0) +
                                        sin(VAD_TURN * x) / (VAD_TURN)));
    }
}

int vad_bands_new(struct vad_bands **b, int rate_hz, int length, struct status *st) {
    struct vad_bands *made = calloc(1, sizeof *made);
    if (made == NULL)
        return status_set_no_memory(st, sizeof *made, "a voice-activity detector");
    made->length = length;
    for (made->points = 2; made->points < length; made->points *= 2)
        ;
    made->half = made->points / 2;
    for (int i = 0; i <= VAD_BANDS; i++) {
        const int bin = (int)ceil((double)vad_band_hz[i] * made->points / rate_hz);
        made->first[i] = bin < made->half ? bin : made->half;
    }
    made->bins = made->first[VAD_BANDS];
    made->periodic = (int)((int64_t)VAD_PERIODIC_HZ * made->points / rate_hz);
    vad_bands_init_window(made);
    vad_bands_init_lags(made, rate_hz);
    *b = made;
    return 0;
}

void vad_bands_del(struct vad_bands *b) {
    free(b);
}

/* The windowed samples less their mean, as pairs, and zeros behind them. */
static void vad_bands_load(struct vad_bands *b, const float *samples) {
    float lanes[VAD_LANES] = {0}, sum = 0.0f;
    int i = 0;
    for (; i + VAD_LANES <= b->length; i += VAD_LANES)
        for (int l = 0; l < VAD_LANES; l++)
            lanes[l] += samples[i + l];
    for (int l = 0; l < VAD_LANES; l++)
        sum += lanes[l];
    for (; i < b->length; i++)
        sum += samples[i];
    const float mean = sum / (float)b->length;
    const int pairs = b->length / 2;
    float *restrict re = b->re[0], *restrict im = b->im[0];
    const float *restrict w = b->window;
    for (int k = 0; k < pairs; k++) {
        re[k] = (samples[2 * k] - mean) * w[2 * k];
        im[k] = (samples[2 * k + 1] - mean) * w[2 * k + 1];
    }
    for (int k = pairs; k < b->half; k++)
        re[k] = im[k] = 0.0f;
    if (b->length % 2 != 0)
        re[pairs] = (samples[b->length - 1] - mean) * w[b->length - 1];
}

/* One radix-4 stage: `count` points are left of each of `stride` interleaved transforms. */
static void vad_fft_by_4(const struct vad_bands *b, int count, int stride, const float *restrict re,
                         const float *restrict im, float *restrict out_re, float *restrict out_im) {
    const int quarter = count / 4, step = b->points / count, far = stride * quarter;
    for (int p = 0; p < quarter; p++) {
        const float r1 = b->turn_re[p * step], i1 = b->turn_im[p * step];
        const float r2 = r1 * r1 - i1 * i1, i2 = 2.0f * r1 * i1;
        const float r3 = r1 * r2 - i1 * i2, i3 = r1 * i2 + i1 * r2;
        const float *xr = re + stride * p, *xi = im + stride * p;
        float *yr = out_re + stride * 4 * p, *yi = out_im + stride * 4 * p;
        for (int q = 0; q < stride; q++) {
            const float ar = xr[q] + xr[q + 2 * far], ai = xi[q] + xi[q + 2 * far];
            const float cr = xr[q] - xr[q + 2 * far], ci = xi[q] - xi[q + 2 * far];
            const float br = xr[q + far] + xr[q + 3 * far], bi = xi[q + far] + xi[q + 3 * far];
            const float dr = xr[q + far] - xr[q + 3 * far], di = xi[q + far] - xi[q + 3 * far];
            const float er = cr + di, ei = ci - dr, fr = ar - br, fi = ai - bi, gr = cr - di, gi = ci + dr;
            yr[q] = ar + br;
            yi[q] = ai + bi;
            yr[q + stride] = r1 * er - i1 * ei;
            yi[q + stride] = r1 * ei + i1 * er;
            yr[q + 2 * stride] = r2 * fr - i2 * fi;
            yi[q + 2 * stride] = r2 * fi + i2 * fr;
            yr[q + 3 * stride] = r3 * gr - i3 * gi;
            yi[q + 3 * stride] = r3 * gi + i3 * gr;
        }
    }
}

/* The transform of the `half` pairs; returns which of the two buffers holds it. */
static int vad_fft(struct vad_bands *b) {
    int at = 0, stride = 1, count = b->half;
    for (; count >= 4; count /= 4, stride *= 4, at = 1 - at)
        vad_fft_by_4(b, count, stride, b->re[at], b->im[at], b->re[1 - at], b->im[1 - at]);
    if (count == 2) {
        const float *restrict re = b->re[at], *restrict im = b->im[at];
        float *restrict yr = b->re[1 - at], *restrict yi = b->im[1 - at];
        for (int q = 0; q < stride; q++) {
            yr[q] = re[q] + re[q + stride];
            yi[q] = im[q] + im[q + stride];
            yr[q + stride] = re[q] - re[q + stride];
            yi[q + stride] = im[q] - im[q + stride];
        }
        at = 1 - at;
    }
    return at;
}

/* Powers of bins 1 .. bins - 1 of the real samples' spectrum. */
static void vad_bands_unpack(struct vad_bands *b, int at) {
    const float *restrict re = b->re[at], *restrict im = b->im[at];
    float *restrict spectrum = b->spectrum;
    spectrum[0] = 0.0f;
    for (int k = 1; k < b->bins; k++) {
        const int m = b->half - k;
        const float er = 0.5f * (re[k] + re[m]), ei = 0.5f * (im[k] - im[m]); /* of the even samples */
        const float dr = 0.5f * (im[k] + im[m]), di = 0.5f * (re[m] - re[k]); /* of the odd ones */
        const float xr = er + b->turn_re[k] * dr - b->turn_im[k] * di;
        const float xi = ei + b->turn_re[k] * di + b->turn_im[k] * dr;
        spectrum[k] = xr * xr + xi * xi;
    }
}

static float vad_bands_measure_period(const struct vad_bands *b) {
    float lags[VAD_LAGS] = {0}, whole = 0.0f, highest = 0.0f;
    for (int k = b->first[0]; k < b->periodic; k++) {
        const float power = b->spectrum[k];
        whole += power;
        for (int l = 0; l < VAD_LAGS; l++)
            lags[l] += power * b->cosine[k][l];
    }
    for (int l = 0; l < VAD_LAGS; l++) {
        const float value = lags[l] * b->lag_gain[l];
        highest = value > highest ? value : highest;
    }
    return whole > 0.0f ? highest / whole : 0.0f;
}

float vad_bands_compute(struct vad_bands *b, const float *samples, float *power) {
    vad_bands_load(b, samples);
    vad_bands_unpack(b, vad_fft(b));
    for (int i = 0; i < VAD_BANDS; i++) {
        float sum = 0.0f;
        for (int k = b->first[i]; k < b->first[i + 1]; k++)
            sum += b->spectrum[k];
        power[i] = sum;
    }
    return vad_bands_measure_period(b);
}

float vad_log2(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int exponent = (int)(bits >> 23) - 127;
    bits = (bits & 0x007fffffu) | 0x3f800000u;
    float m;
    memcpy(&m, &bits, sizeof m);
    /* log2 of 1..2 by the series of atanh around the middle. */
    const float y = (m - 1.41421356f) / (m + 1.41421356f), z = y * y;
    return (float)exponent + 0.5f + y * (2.88539008f + z * (0.961796694f + z * 0.577078016f));
}
