/* The convolutions of the feature extractor: matrix products over overlapping rows of channels-last input. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/conv_pairs.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/quantize.h"

enum {
    STATS_TAPS_MAX = 32,
    STATS_ROWS = 4, /* windows that are added to the second moments together */
    TILE_ROWS = 96, /* of one tile of a convolution with a norm */
};

struct stats_job {
    float *stats;
    const float *x;
    const struct kernels_weight *w;
    const struct batch *batch;
};

/* Mean of each tap's samples over the n windows of a clip, and the products of their deviations, divided by
 * n: all that the mean and variance of any channel depend on. */
static void find_moments(const struct kernels_weight *w, const float *x, int64_t n, double *mean,
                         double (*covariance)[STATS_TAPS_MAX]) {
    const int taps = w->kernel, width = (int)cpu_divide_up(taps, 8) * 8;
    memset(mean, 0, STATS_TAPS_MAX * sizeof *mean);
    memset(covariance, 0, STATS_TAPS_MAX * sizeof *covariance);
    for (int64_t r = 0; r < n; r++)
        for (int i = 0; i < taps; i++)
            mean[i] += x[r * w->stride + i];
    for (int i = 0; i < taps; i++)
        mean[i] /= (double)n;
    for (int64_t r = 0; r < n; r += STATS_ROWS) {
        double v[STATS_ROWS][STATS_TAPS_MAX] = {{0}};
        for (int64_t s = r; s < cpu_min(r + STATS_ROWS, n); s++)
            for (int i = 0; i < taps; i++)
                v[s - r][i] = x[s * w->stride + i] - mean[i];
        for (int i = 0; i < taps; i++)
            for (int j = 0; j < width; j += 8)
                for (int l = j; l < j + 8; l++)
                    covariance[i][l] +=
                        (v[0][i] * v[0][l] + v[1][i] * v[1][l]) + (v[2][i] * v[2][l] + v[3][i] * v[3][l]);
    }
    for (int i = 0; i < taps; i++)
        for (int j = 0; j < taps; j++)
            covariance[i][j] /= (double)n;
}

/* Mean and 1 / sqrt(variance + eps) of each channel: w . mean + bias, and w^T covariance w. */
static void stats_from_moments(const struct kernels_weight *w, const double *mean,
                               double (*covariance)[STATS_TAPS_MAX], float *stats) {
    const struct cpu_packed *p = w->packed;
    for (int64_t first = 0; first < p->n; first += GEMM_PANEL) {
        const int64_t width = gemm_width(p->n, first / GEMM_PANEL);
        const float *matrix = p->matrix + first * p->k;
        double m[GEMM_PANEL] = {0}, variance[GEMM_PANEL] = {0};
        for (int i = 0; i < w->kernel; i++) {
            double product[GEMM_PANEL] = {0};
            for (int j = 0; j < w->kernel; j++)
                for (int64_t o = 0; o < width; o++)
                    product[o] += covariance[i][j] * matrix[j * width + o];
            for (int64_t o = 0; o < width; o++) {
                m[o] += mean[i] * matrix[i * width + o];
                variance[o] += product[o] * matrix[i * width + o];
            }
        }
        for (int64_t o = first; o < cpu_min(first + width, p->n); o++) {
            double v =
                variance[o - first] > 0 ? variance[o - first] : 0; /* rounding may leave it just below 0 */
            stats[2 * o] = (float)(m[o - first] + p->bias[o]);
            stats[2 * o + 1] = (float)(1.0 / sqrt(v + w->eps));
        }
    }
}

/* The plain way, for kernels of more than STATS_TAPS_MAX taps. */
static void stats_of_channel(const struct kernels_weight *w, const float *x, int64_t n, int64_t o,
                             float *stats) {
    const struct cpu_packed *p = w->packed;
    const int64_t panel = o / GEMM_PANEL, width = gemm_width(p->n, panel);
    const float *matrix = p->matrix + panel * GEMM_PANEL * p->k + o % GEMM_PANEL;
    double mean = 0, squares = 0;
    for (int pass = 0; pass < 2; pass++) {
        double sum = 0;
        for (int64_t r = 0; r < n; r++) {
            double v = 0;
            for (int i = 0; i < w->kernel; i++)
                v += (double)matrix[i * width] * x[r * w->stride + i];
            sum += pass == 0 ? v : (v - mean) * (v - mean);
        }
        *(pass == 0 ? &mean : &squares) = sum / (double)n;
    }
    stats[2 * o] = (float)(mean + p->bias[o]);
    stats[2 * o + 1] = (float)(1.0 / sqrt(squares + w->eps));
}

static void stats_of_clip(void *arg, int64_t clip, int thread) {
    const struct stats_job *j = arg;
    const float *x = j->x + j->batch->offset[clip];
    const int64_t n = batch_rows(j->batch, 1, (int)clip);
    float *stats = j->stats + clip * j->w->out * 2;
    (void)thread;
    if (j->w->kernel > STATS_TAPS_MAX) {
        for (int64_t o = 0; o < j->w->out; o++)
            stats_of_channel(j->w, x, n, o, stats);
        return;
    }
    double mean[STATS_TAPS_MAX], covariance[STATS_TAPS_MAX][STATS_TAPS_MAX];
    find_moments(j->w, x, n, mean, covariance);
    stats_from_moments(j->w, mean, covariance, stats);
}

void CPU_NAME(group_stats)(struct kernels_device *d, float *stats, const float *x,
                           const struct kernels_weight *w, const struct batch *b) {
    struct stats_job j = {.stats = stats, .x = x, .w = w, .batch = b};
    assert(((const struct cpu_packed *)w->packed)->ops == d->ops && w->in == 1);
    cpu_for(d, b->clips, CPU_ELEMENT_FLOP * b->tape_rows[1] * w->kernel, stats_of_clip, &j);
}

struct conv_job {
    struct kernels_device *device;
    const struct kernels_weight *w;
    struct gemm gemm;
    const float *stats;
    int level;
    struct kernels_rows rows;
    const struct batch *batch;
    enum kernels_activation act;
    int64_t tile_rows; /* where all columns of a row are made by one tile */
};

/* Group norm: each clip's numbers become a factor and a term for each channel. The product is small beside
 * its result, so rows are made whole, a few at a time: memory likes to be written in order. */
static void conv_group_rows(const struct conv_job *j, int64_t row, int64_t rows, int clip, float *sums) {
    enum { PANELS = 16, COLUMNS = PANELS * GEMM_PANEL, ROWS = 12 };
    const struct cpu_packed *p = j->w->packed;
    const float *stats = j->stats + (int64_t)clip * p->n * 2;
    for (int64_t first = 0; first < p->n; first += COLUMNS) {
        float scale[COLUMNS], bias[COLUMNS];
        struct gemm g =
            j->gemm; /* these columns alone: a matrix of its own, as panels lie behind each other */
        g.b += first * g.k;
        g.y = (element *)g.y + first;
        g.n = cpu_min(COLUMNS, p->n - first);
        g.scale = scale;
        g.bias = bias;
        for (int64_t o = 0; o < cpu_divide_up(g.n, LANES) * LANES; o++) {
            const int64_t c = first + cpu_min(o, g.n - 1);
            scale[o] = stats[2 * c + 1] * p->norm_weight[c];
            bias[o] = (p->bias[c] - stats[2 * c]) * scale[o] + p->norm_bias[c];
        }
        for (int64_t r = row; r < row + rows; r += ROWS)
            gemm_block(&g, r, cpu_min(ROWS, row + rows - r), 0, cpu_divide_up(g.n, GEMM_PANEL), sums, NULL);
    }
}

/* Of the rows up to `end`, those that belong to the clip end here. */
static int64_t find_slot_end(const struct conv_job *j, int clip, int64_t end) {
    const struct batch *b = j->batch;
    if (clip + 1 >= b->clips)
        return end;
    return cpu_min(end, b->offset[clip + 1] / b->step[j->level] - j->rows.first); /* offsets are multiples */
}

static void conv_group(void *arg, int64_t index, int thread) {
    const struct conv_job *j = arg;
    const struct batch *b = j->batch;
    const int64_t end = cpu_min((index + 1) * TILE_ROWS, j->rows.count);
    for (int64_t row = index * TILE_ROWS; row < end;) {
        const int clip = batch_find_clip(b, j->level, j->rows.first + row);
        const int64_t next = find_slot_end(j, clip, end);
        conv_group_rows(j, row, next - row, clip, cpu_sums(j->device, thread));
        row = next;
    }
}

static void norm_rows(const struct conv_job *j, int64_t first, int64_t end) {
    const int n = (int)j->gemm.n;
    element *y = j->gemm.y;
    for (int64_t r = first; r < end; r++)
        layer_norm_row(y + r * n, y + r * n, j->w->packed, n, j->w->eps, j->act);
}

/* Layer norm: whole rows are made and then normalised while they are near. */
static void conv_layer(void *arg, int64_t index, int thread) {
    enum { PANELS = 2 };
    const struct conv_job *j = arg;
    const struct gemm *g = &j->gemm;
    const int64_t first = index * TILE_ROWS, end = cpu_min(first + TILE_ROWS, j->rows.count);
    const int64_t panels = cpu_divide_up(g->n, GEMM_PANEL);
    const int64_t words = gemm_words(g->kind, g->k);
    for (int64_t p = 0; p < panels; p += PANELS)
        gemm_block(g, first, end - first, p, cpu_min(PANELS, panels - p), cpu_sums(j->device, thread),
                   g->b + (p + PANELS < panels ? p + PANELS : 0) * GEMM_PANEL * words);
    norm_rows(j, first, end);
}

/* Rows of a tile, at most `room`: equal shares for all threads. An even number, unless there is room for one.
 */
static int64_t choose_tile_rows(const struct conv_job *j, int64_t room) {
    const int64_t threads = j->device->threads, tiles = cpu_divide_up(j->rows.count, room);
    const int64_t each = cpu_divide_up(j->rows.count, cpu_divide_up(tiles, threads) * threads);
    return cpu_min(room, cpu_divide_up(each, 2) * 2);
}

/* Three taps and stride two: rows in pairs, which count from the clip's first. */
static void conv_pairs(void *arg, int64_t index, int thread) {
    const struct conv_job *j = arg;
    const struct batch *b = j->batch;
    struct kernels_device *d = j->device;
    const int64_t first = index * j->tile_rows, end = cpu_min(first + j->tile_rows, j->rows.count);
    for (int64_t row = first; row < end;) {
        const int clip = batch_find_clip(b, j->level, j->rows.first + row);
        const int64_t next = find_slot_end(j, clip, end);
        const int64_t from_start = j->rows.first + row - b->offset[clip] / b->step[j->level];
        conv_pairs_run(&j->gemm, j->w->in, row, next, from_start % 2 != 0, cpu_sums(d, thread),
                       (char *)d->pairs + (size_t)thread * d->pairs_bytes);
        row = next;
    }
    if (j->w->norm == KERNELS_NORM_LAYER)
        norm_rows(j, first, end);
}

static void run_pairs(struct conv_job *j, int64_t flop) {
    j->gemm.a_stride = j->w->in * (int64_t)sizeof(element);
    j->tile_rows = choose_tile_rows(j, 2 * CPU_PAIRS);
    cpu_for(j->device, cpu_divide_up(j->rows.count, j->tile_rows), flop, conv_pairs, j);
}
#if CPU_HAS_INT8
/* int8: the rows a tile reads are made bytes once, and then stay near for all columns. */
static void conv_int8(void *arg, int64_t index, int thread) {
    enum { PANELS = 2 };
    const struct conv_job *j = arg;
    const struct kernels_weight *w = j->w;
    struct kernels_device *d = j->device;
    const int64_t first = index * j->tile_rows, end = cpu_min(first + j->tile_rows, j->rows.count);
    const int64_t tokens = (end - first - 1) * w->stride + w->kernel, bytes = quantize_count_bytes(w->in);
    const element *x = (const element *)j->gemm.a + first * w->stride * w->in;
    uint8_t *quantized = d->conv_quantized + (int64_t)thread * CPU_CONV_TOKENS * d->quantized_bytes;
    float *scale = d->conv_row_scale + (int64_t)thread * CPU_CONV_TOKENS,
          *min = d->conv_row_min + (int64_t)thread * CPU_CONV_TOKENS;
    for (int64_t t = 0; t < tokens; t++)
        quantize_row(quantized + t * bytes, scale + t, min + t, x + t * w->in, w->in);
    struct gemm g = j->gemm;
    g.a = quantized;
    g.a_stride = w->stride * bytes;
    g.y = (element *)g.y + first * g.y_stride;
    g.segments = w->kernel;
    g.row_step = w->stride;
    g.row_scale = scale;
    g.row_min = min;
    const int64_t panels = cpu_divide_up(g.n, GEMM_PANEL), words = gemm_words(g.kind, g.k);
    for (int64_t p = 0; p < panels; p += PANELS)
        gemm_block(&g, 0, end - first, p, cpu_min(PANELS, panels - p), cpu_sums(d, thread),
                   g.b + (p + PANELS < panels ? p + PANELS : 0) * GEMM_PANEL * words);
    if (w->norm == KERNELS_NORM_LAYER)
        norm_rows(j, first, end);
}

static void run_int8(struct conv_job *j, int64_t flop) {
    const int64_t room = (CPU_CONV_TOKENS - j->w->kernel) / j->w->stride + 1;
    j->tile_rows = choose_tile_rows(j, room > 1 ? room / 2 * 2 : 1);
    cpu_for(j->device, cpu_divide_up(j->rows.count, j->tile_rows), flop, conv_int8, j);
}
#else
static void run_int8(struct conv_job *j, int64_t flop) {
    (void)j, (void)flop;
    assert(!"no weight of this instruction set is packed for it");
}
#endif

void CPU_NAME(conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                    enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
                    const struct batch *b) {
    const struct cpu_packed *p = w->packed;
    struct conv_job j = {
        .device = d, .w = w, .stats = stats, .level = level, .rows = rows, .batch = b, .act = act};
    assert(p->ops == d->ops && (stats != NULL) == (w->norm == KERNELS_NORM_GROUP));
    const size_t from_bytes = level == 1 ? sizeof(float) : sizeof(element);
    j.gemm = (struct gemm){.kind = p->kind,
                           .a = x,
                           .a_stride = (int64_t)w->stride * w->in * (int64_t)from_bytes,
                           .b = p->matrix,
                           .k = p->k,
                           .n = p->n,
                           .y = y,
                           .y_stride = p->n,
                           .scale = p->column_scale,
                           .bias = p->bias,
                           .column_sums = p->column_sums,
                           .act = w->norm == KERNELS_NORM_LAYER ? KERNELS_IDENTITY : act};
    const int64_t tiles = cpu_divide_up(rows.count, TILE_ROWS), flop = 2 * rows.count * p->k * p->n;
    if (p->pairs)
        run_pairs(&j, flop);
    else if (p->kind == CPU_INT8)
        run_int8(&j, flop);
    else if (w->norm == KERNELS_NORM_GROUP)
        cpu_for(d, tiles, flop, conv_group, &j);
    else if (w->norm == KERNELS_NORM_LAYER)
        cpu_for(d, tiles, flop, conv_layer, &j);
    else
        gemm_run(d, &j.gemm, rows.count);
}

enum { COMPACT_ROWS = 32 }; /* of one tile */

struct compact_job {
    element *y;
    const element *x;
    int channels;
    struct kernels_rows rows;
    const struct batch *batch;
};

static void compact(void *arg, int64_t index, int thread) {
    const struct compact_job *j = arg;
    const struct batch *b = j->batch;
    const int64_t end = cpu_min((index + 1) * COMPACT_ROWS, j->rows.count);
    (void)thread;
    for (int64_t r = index * COMPACT_ROWS; r < end; r++) {
        int clip = batch_find_clip(b, b->levels, j->rows.first + r);
        int64_t t = j->rows.first + r - b->offset[clip] / b->step[b->levels];
        if (t < batch_rows(b, b->levels, clip))
            memcpy(j->y + (b->cu_tokens[clip] + t) * j->channels, j->x + r * j->channels,
                   (size_t)j->channels * sizeof(element));
    }
}

void CPU_NAME(compact)(struct kernels_device *d, void *y, const void *x, int channels,
                       struct kernels_rows rows, const struct batch *b) {
    struct compact_job j = {.y = y, .x = x, .channels = channels, .rows = rows, .batch = b};
    cpu_for(d, cpu_divide_up(rows.count, COMPACT_ROWS), CPU_ELEMENT_FLOP * rows.count * channels, compact,
            &j);
}
