/* The positional convolution: for each group of channels a matrix product over windows that overlap by all
 * but one row. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/gemm.h"

struct job {
    struct kernels_device *device;
    const struct kernels_weight *w;
    element *y;
    const element *x;
    enum kernels_activation act;
    const struct batch *batch;
    int64_t blocks, in, out; /* channels of one group */
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

/* Adds taps [tap, tap + taps) to the sums of one panel; `from` and `end` are the taps, counted from `tap`,
 * that meet any row of the clip. The others would add zeros, so leaving them out changes no bit. */
static void add_taps(const struct job *j, float *sums, const element *window, const float *b, int64_t taps,
                     int64_t rows, int64_t width, int64_t from, int64_t end) {
    const enum cpu_kind kind = ((const struct cpu_packed *)j->w->packed)->kind;
    const int64_t terms = gemm_terms(kind), k = taps * j->in, words = gemm_words(kind, k);
    const int64_t blocks = cpu_divide_up(words, GEMM_BLOCK);
    from = from * j->in / terms;
    end = gemm_words(kind, end * j->in);
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = i * words / blocks, last = (i + 1) * words / blocks;
        first = first < from ? from : first;
        last = cpu_min(last, end);
        if (first >= last)
            continue;
        const struct gemm_piece piece = {.kind = kind,
                                         .a = window + first * terms,
                                         .a_stride = j->in * (int64_t)sizeof(element),
                                         .b = b + first * width,
                                         .k = cpu_min((last - first) * terms, k - first * terms),
                                         .width = width,
                                         .add = true,
                                         .ahead = b + last * width,
                                         .ahead_words = (last - first) * width};
        gemm_sums(sums, GEMM_PANEL, &piece, rows);
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
    const int64_t n = j->batch->cu_tokens[block.clip + 1] - row;
    const element *x = j->x + row * w->in;
    const float *matrix = p->matrix + group * gemm_packed_words(p->kind, p->k, p->n);
    const struct gemm g = {.n = p->n,
                           .y = j->y + row * w->out + group * j->out,
                           .y_stride = w->out,
                           .bias = p->bias + group * j->out,
                           .residual = x + group * j->out,
                           .act = j->act};
    float *sums = cpu_sums(j->device, thread);
    element *window = (element *)(void *)(j->device->windows + (size_t)thread * j->device->windows_floats);

    for (int64_t panel = 0; panel * GEMM_PANEL < p->n; panel++) {
        const int64_t width = gemm_width(p->n, panel);
        memset(sums, 0, (size_t)(block.count * GEMM_PANEL) * sizeof *sums);
        for (int64_t tap = 0; tap < w->kernel; tap += CPU_POS_CONV_TAPS) {
            const int64_t taps = cpu_min(CPU_POS_CONV_TAPS, w->kernel - tap);
            const int64_t first = block.first + tap - w->kernel / 2; /* the window's first row */
            const int64_t from = -first - (block.count - 1), end = cpu_min(taps, n - first);
            if (panel == 0 || w->kernel > CPU_POS_CONV_TAPS)
                copy_window(j, window, x, group, n, first, block.count + taps - 1);
            add_taps(j, sums, window,
                     matrix + panel * GEMM_PANEL * gemm_words(p->kind, p->k) +
                         gemm_words(p->kind, tap * j->in) * width,
                     taps, block.count, width, from < 0 ? 0 : from, end);
        }
        gemm_finish(&g, sums, GEMM_PANEL, block.first, block.count, panel * GEMM_PANEL, width);
    }
}

void CPU_NAME(pos_conv)(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                        enum kernels_activation act, const struct batch *b) {
    struct job j = {.device = d, .w = w, .y = y, .x = x, .act = act, .batch = b};
    const struct cpu_packed *p = w->packed;
    assert(p->ops == d->ops);
    j.blocks = cpu_count_blocks(b, CPU_POS_CONV_ROWS);
    j.in = w->in / w->groups;
    j.out = w->out / w->groups;
    cpu_for(d, j.blocks * w->groups, 2 * batch_tokens(b) * w->out * p->k, run_tile, &j);
}
