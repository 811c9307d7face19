/* The positional convolution: for each group of channels a matrix product over windows that overlap by all
 * but one row. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/quantize.h"

struct job {
    struct kernels_device *device;
    const struct kernels_weight *w;
    element *y;
    const element *x;
    enum kernels_activation act;
    const struct batch *batch;
    int64_t blocks, in, out; /* channels of one group */
    enum cpu_kind kind;
    int64_t element_bytes; /* of a window */
};

/* to [rows, in] = rows [first, first + rows) of a clip of n tokens, one group of channels of x; zeros
 * outside. */
static void copy_window(const struct job *j, element *to, const element *x, int64_t group, int64_t n,
                        int64_t first, int64_t rows) {
    const struct cpu_packed *p = j->w->packed;
    const int64_t channel = group * j->in;
    for (int64_t r = 0; r < rows; r++, to += j->in) {
        const element *from = x + (first + r) * j->w->in + channel;
        if (first + r < 0 || first + r >= n)
            memset(to, 0, (size_t)j->in * sizeof *to);
        else if (!j->w->has_input_affine)
            memcpy(to, from, (size_t)j->in * sizeof *to);
        else
            for (int64_t i = 0; i < j->in; i++)
                to[i] = element_of(element_get(from[i]) * p->input_scale[channel + i] +
                                   p->input_shift[channel + i]);
    }
}

#if CPU_HAS_INT8
/* copy_window of bytes, which lie where the numbers do. */
static void copy_bytes(const struct job *j, uint8_t *to, const uint8_t *x, uint8_t zero, int64_t group,
                       int64_t n, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; r++, to += j->in) {
        if (first + r < 0 || first + r >= n)
            memset(to, zero, (size_t)j->in);
        else
            memcpy(to, x + (first + r) * j->w->in + group * j->in, (size_t)j->in);
    }
}

/* One group of one clip, with one scale: its rows are read together. */
static void quantize_group(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const struct batch *b = j->batch;
    struct kernels_device *d = j->device;
    const int64_t clip = index / j->w->groups, first = b->cu_tokens[clip];
    const int64_t at = first * j->w->in + index % j->w->groups * j->in;
    (void)thread;
    quantize_together(d->quantized + at, d->group_scale + index, d->group_min + index, j->x + at, j->w->in,
                      b->cu_tokens[clip + 1] - first, j->in);
}
#endif

/* What one tile works on: rows [first, first + rows) of a clip, one group, one panel. */
struct tile {
    int64_t clip, group, panel, width, tokens, first, rows;
    const element *x; /* of the clip */
    char *window;
    float *sums;
    const float *scale, *min; /* int8: of the group */
};

/* The window of taps [tap, tap + taps): from the first row that they read on. */
static void fill_window(const struct job *j, const struct tile *t, int64_t tap, int64_t taps) {
    const int64_t first = t->first + tap - j->w->kernel / 2, rows = t->rows + taps - 1;
#if CPU_HAS_INT8
    if (j->kind == CPU_INT8) {
        const uint8_t zero = *t->scale > 0 ? (uint8_t)lrintf(-*t->min / *t->scale) : 0;
        copy_bytes(j, (uint8_t *)t->window, j->device->quantized + j->batch->cu_tokens[t->clip] * j->w->in,
                   zero, t->group, t->tokens, first, rows);
        return;
    }
#endif
    copy_window(j, (element *)(void *)t->window, t->x, t->group, t->tokens, first, rows);
}

/* Adds taps [tap, tap + taps) to the sums, as far as they meet any row of the clip: the others would add
 * zeros. In fp32 and bf16 leaving them out changes no bit; in int8 it is the clip's cut into tiles that
 * decides on them, which depends on the clip alone. */
static void add_taps(const struct job *j, const struct tile *t, int64_t tap, int64_t taps) {
    const struct cpu_packed *p = j->w->packed;
    const int64_t terms = gemm_terms(j->kind), k = taps * j->in, words = gemm_words(j->kind, k);
    const int64_t blocks = cpu_divide_up(words, GEMM_BLOCK);
    const int64_t row = t->first + tap - j->w->kernel / 2; /* the window's first */
    const int64_t from = row + t->rows > 0 ? 0 : 1 - row - t->rows, end = cpu_min(taps, t->tokens - row);
    const float *b = p->matrix + t->group * gemm_packed_words(j->kind, p->k, p->n) +
                     t->panel * GEMM_PANEL * gemm_words(j->kind, p->k) +
                     gemm_words(j->kind, tap * j->in) * t->width;
    float column_sums[GEMM_PANEL];
    if (from >= end)
        return;
    if (j->kind == CPU_INT8) {
        const int64_t padded = cpu_divide_up(p->n, LANES) * LANES;
        const float *before =
            p->column_sums + (t->group * (j->w->kernel + 1) + tap) * padded + t->panel * GEMM_PANEL;
        for (int64_t o = 0; o < t->width; o++)
            column_sums[o] = before[end * padded + o] - before[from * padded + o];
    }
    bool is_first = true;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = i * words / blocks, last = (i + 1) * words / blocks;
        first = first < from * j->in / terms ? from * j->in / terms : first;
        last = cpu_min(last, gemm_words(j->kind, end * j->in));
        if (first >= last)
            continue;
        const struct gemm_piece piece = {.kind = j->kind,
                                         .a = t->window + first * (int64_t)sizeof(word),
                                         .a_stride = j->in * j->element_bytes,
                                         .b = b + first * t->width,
                                         .k = cpu_min((last - first) * terms, k - first * terms),
                                         .width = t->width,
                                         .from = t->sums,
                                         .ahead = b + last * t->width,
                                         .ahead_words = (last - first) * t->width,
                                         .row_scale = t->scale,
                                         .row_min = t->min,
                                         .column_sums = is_first && j->kind == CPU_INT8 ? column_sums : NULL};
        gemm_sums(t->sums, GEMM_PANEL, &piece, t->rows);
        is_first = false;
    }
}

static void run_tile(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const struct kernels_weight *w = j->w;
    const struct cpu_packed *p = w->packed;
    const struct cpu_block block = cpu_find_block(j->batch, CPU_POS_CONV_ROWS, index % j->blocks);
    if (block.count == 0)
        return;
    const int64_t group = index / j->blocks, row = j->batch->cu_tokens[block.clip];
    struct tile t = {.clip = block.clip,
                     .group = group,
                     .tokens = j->batch->cu_tokens[block.clip + 1] - row,
                     .first = block.first,
                     .rows = block.count,
                     .x = j->x + row * w->in,
                     .window = (char *)(j->device->windows + (size_t)thread * j->device->windows_floats),
                     .sums = cpu_sums(j->device, thread)};
    const struct gemm g = {.n = p->n,
                           .y = j->y + row * w->out + group * j->out,
                           .y_stride = w->out,
                           .scale = p->column_scale ? p->column_scale + group * j->out : NULL,
                           .bias = p->bias + group * j->out,
                           .residual = t.x + group * j->out,
                           .act = j->act};
    if (j->kind == CPU_INT8) {
        t.scale = j->device->group_scale + block.clip * w->groups + group;
        t.min = j->device->group_min + block.clip * w->groups + group;
    }
    for (; t.panel * GEMM_PANEL < p->n; t.panel++) {
        t.width = gemm_width(p->n, t.panel);
        memset(t.sums, 0, (size_t)(t.rows * GEMM_PANEL) * sizeof *t.sums);
        for (int64_t tap = 0; tap < w->kernel; tap += CPU_POS_CONV_TAPS) {
            const int64_t taps = cpu_min(CPU_POS_CONV_TAPS, w->kernel - tap);
            if (t.panel == 0 || w->kernel > CPU_POS_CONV_TAPS)
                fill_window(j, &t, tap, taps);
            add_taps(j, &t, tap, taps);
        }
        gemm_finish(&g, t.sums, GEMM_PANEL, t.first, t.rows, t.panel * GEMM_PANEL, t.width);
    }
}

void CPU_NAME(pos_conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                        enum kernels_activation act, const struct batch *b) {
    struct job j = {.device = d, .w = w, .y = y, .x = x, .act = act, .batch = b};
    const struct cpu_packed *p = w->packed;
    assert(p->ops == d->ops);
    j.kind = p->kind;
    j.element_bytes = p->kind == CPU_INT8 ? 1 : (int64_t)sizeof(element);
    j.blocks = cpu_count_blocks(b, CPU_POS_CONV_ROWS);
    j.in = w->in / w->groups;
    j.out = w->out / w->groups;
#if CPU_HAS_INT8
    if (p->kind == CPU_INT8)
        cpu_for(d, (int64_t)b->clips * w->groups, CPU_ELEMENT_FLOP * batch_tokens(b) * w->in, quantize_group,
                &j);
#endif
    cpu_for(d, j.blocks * w->groups, 2 * batch_tokens(b) * w->out * p->k, run_tile, &j);
}
