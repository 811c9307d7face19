#include "kernels/cpu/conv_pairs.h"

#include <string.h>

#if !CPU_HAS_BF16

/* c (+)= a [rows, k] * one panel b [k, width]. Meanwhile brings `next` nearer. */
static void add_product(float *c, const float *a, int64_t a_stride, const float *b, int64_t k, int64_t width,
                        int64_t rows, bool add, const float *next) {
    const int64_t blocks = cpu_divide_up(k, GEMM_BLOCK);
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * k / blocks, last = (i + 1) * k / blocks;
        const struct gemm_piece piece = {.kind = CPU_FP32,
                                         .a = a + first,
                                         .a_stride = a_stride,
                                         .b = b + first * width,
                                         .k = last - first,
                                         .width = width,
                                         .add = add || i > 0,
                                         .ahead = i + 1 < blocks ? b + last * width : next,
                                         .ahead_words = (last - first) * width};
        gemm_sums(c, GEMM_PANEL, &piece, rows);
    }
}

/* to [rows, k] = x rows `first`, first + 4, ... minus those `less`, less + 4, ... */
static void subtract(float *to, const float *x, int64_t first, int64_t less, int64_t rows, int64_t k) {
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + (first + 4 * r) * k, *b = x + (less + 4 * r) * k;
        int64_t i = 0;
        for (; i + LANES <= k; i += LANES)
            v_store(to + r * k + i, v_load(a + i) - v_load(b + i));
        for (; i < k; i++)
            to[r * k + i] = a[i] - b[i];
    }
}

/* Pairs whose first rows are `row`, row + 2, ...; of them the first rows of [from0, pairs) and the second
 * ones of [0, end1) are wanted, and nothing that only others need is read. */
struct chunk {
    int64_t row, pairs, from0, end1;
};

static void finish(const struct gemm *g, const float *c, int64_t row, int64_t rows, int64_t panel) {
    struct gemm half = *g;
    half.y = (element *)g->y + row * g->y_stride;
    half.y_stride = 2 * g->y_stride;
    gemm_finish(&half, c, GEMM_PANEL, 0, rows, panel * GEMM_PANEL, gemm_width(g->n, panel));
}

static void run_panel(const struct gemm *g, const struct chunk *c, int64_t panel, float *sums,
                      const float *scratch) {
    const int64_t k = g->k, width = gemm_width(g->n, panel), each = gemm_packed_words(CPU_FP32, k, g->n);
    const int64_t stride = 4 * g->a_stride, count0 = c->pairs - c->from0;
    const float *x = g->a, *w = g->b + panel * GEMM_PANEL * k;
    float *middle = sums, *sum = sums + CPU_PAIRS * GEMM_PANEL;
    const float *even = scratch, *odd = scratch + CPU_PAIRS * k;
    add_product(middle, x + (2 * c->row + 2) * k, stride, w + 3 * each, k, width, c->pairs, false, w);
    if (count0 > 0) {
        memcpy(sum, middle + c->from0 * GEMM_PANEL, (size_t)(count0 * GEMM_PANEL) * sizeof *sum);
        add_product(sum, even, g->a_stride, w, k, width, count0, true, w + each);
        add_product(sum, x + (2 * c->row + 4 * c->from0 + 1) * k, stride, w + each, k, width, count0, true,
                    w + 2 * each);
        finish(g, sum, c->row + 2 * c->from0, count0, panel);
    }
    if (c->end1 > 0) {
        const float *next = panel + 1 < cpu_divide_up(g->n, GEMM_PANEL) ? w + GEMM_PANEL * k : g->b;
        add_product(middle, odd, g->a_stride, w + 2 * each, k, width, c->end1, true, w + each);
        add_product(middle, x + (2 * c->row + 3) * k, stride, w + each, k, width, c->end1, true,
                    next + 3 * each);
        finish(g, middle, c->row + 1, c->end1, panel);
    }
}

void conv_pairs_run(const struct gemm *g, int64_t row, int64_t end, bool second, float *sums,
                    float *scratch) {
    const int64_t first = row - second, pairs = cpu_divide_up(end - first, 2), k = g->k;
    const int64_t chunks = cpu_divide_up(pairs, CPU_PAIRS);
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t from = i * pairs / chunks, to = (i + 1) * pairs / chunks;
        struct chunk c = {.row = first + 2 * from, .pairs = to - from, .from0 = i == 0 && second};
        c.end1 = c.row + 2 * c.pairs > end ? c.pairs - 1 : c.pairs;
        const int64_t x = 2 * c.row;
        subtract(scratch, g->a, x + 4 * c.from0, x + 4 * c.from0 + 2, c.pairs - c.from0, k);
        subtract(scratch + CPU_PAIRS * k, g->a, x + 4, x + 2, c.end1, k);
        for (int64_t panel = 0; panel * GEMM_PANEL < g->n; panel++)
            run_panel(g, &c, panel, sums, scratch);
    }
}

#else

typedef int conv_pairs_nothing; /* no file may be empty */

#endif
