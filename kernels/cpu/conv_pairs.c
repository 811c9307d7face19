#include "kernels/cpu/conv_pairs.h"

#include <string.h>

#include "kernels/cpu/quantize.h"

/* The rows that go into one product; of bytes with what they stand for. */
struct operand {
    const void *a;
    int64_t a_stride; /* bytes */
    const float *scale, *min;
};

/* Pairs whose first rows are `row`, row + 2, ...; of them the first rows of [from0, pairs) and the second
 * ones of [0, end1) are wanted, and nothing that only others need is read. */
struct chunk {
    int64_t row, pairs, from0, end1;
    struct operand even, odd, first, middle, second; /* x0 - x2 and x4 - x2; x1, x2 and x3 */
};

/* c (+)= the first `rows` of an operand * one panel of matrix `index`. Meanwhile brings `next` nearer. */
static void add_product(const struct gemm *g, float *c, const struct operand *o, int index, int64_t panel,
                        int64_t rows, bool add, const float *next) {
    const int64_t words = gemm_words(g->kind, g->k), terms = gemm_terms(g->kind);
    const int64_t blocks = cpu_divide_up(words, GEMM_BLOCK), width = gemm_width(g->n, panel);
    const float *b = g->b + index * gemm_packed_words(g->kind, g->k, g->n) + panel * GEMM_PANEL * words;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * words / blocks, last = (i + 1) * words / blocks;
        struct gemm_piece piece = {.kind = g->kind,
                                   .a = (const char *)o->a + first * (int64_t)sizeof(word),
                                   .a_stride = o->a_stride,
                                   .b = b + first * width,
                                   .k = cpu_min((last - first) * terms, g->k - first * terms),
                                   .width = width,
                                   .add = add || i > 0,
                                   .ahead = i + 1 < blocks ? b + last * width : next,
                                   .ahead_words = (last - first) * width,
                                   .row_scale = o->scale,
                                   .row_min = o->min,
                                   .row_step = 1};
        if (g->kind == CPU_INT8 && i == 0)
            piece.column_sums =
                g->column_sums + index * cpu_divide_up(g->n, LANES) * LANES + panel * GEMM_PANEL;
        gemm_sums(c, GEMM_PANEL, &piece, rows);
    }
}

/* to [rows, in] = x rows `first`, first + 4, ... minus those `less`, less + 4, ... */
static struct operand subtract(element *to, const element *x, int64_t first, int64_t less, int64_t rows,
                               int64_t in) {
    for (int64_t r = 0; r < rows; r++) {
        const element *a = x + (first + 4 * r) * in, *b = x + (less + 4 * r) * in;
        element *y = to + r * in;
        int64_t i = 0;
        for (; i + LANES <= in; i += LANES)
            element_store(y + i, element_load(a + i) - element_load(b + i));
        for (; i < in; i++)
            y[i] = element_of(element_get(a[i]) - element_get(b[i]));
    }
    return (struct operand){.a = to, .a_stride = in * (int64_t)sizeof *to};
}

/* x rows `first`, first + 4, ... where they are. */
static struct operand find_rows(const element *x, int64_t first, int64_t in) {
    return (struct operand){.a = x + first * in, .a_stride = 4 * in * (int64_t)sizeof *x};
}

static void prepare(struct chunk *c, const element *x, int64_t in, void *scratch) {
    element *even = scratch, *odd = even + CPU_PAIRS * in;
    const int64_t at = 2 * c->row, at0 = at + 4 * c->from0;
    c->even = subtract(even, x, at0, at0 + 2, c->pairs - c->from0, in);
    c->odd = subtract(odd, x, at + 4, at + 2, c->end1, in);
    c->first = find_rows(x, at0 + 1, in);
    c->middle = find_rows(x, at + 2, in);
    c->second = find_rows(x, at + 3, in);
}

#if CPU_HAS_INT8
/* x rows `first`, first + 4, ..., without those `less`, less + 4, ... unless that is negative, as bytes. */
static struct operand quantize(void **scratch, const element *x, int64_t first, int64_t less, int64_t rows,
                               int64_t in) {
    const int64_t bytes = quantize_count_bytes(in);
    float *scale = *scratch, *min = scale + CPU_PAIRS;
    uint8_t *to = (uint8_t *)(min + CPU_PAIRS);
    for (int64_t r = 0; r < rows; r++) {
        const element *a = x + (first + 4 * r) * in;
        if (less < 0)
            quantize_row(to + r * bytes, scale + r, min + r, a, in);
        else
            quantize_difference(to + r * bytes, scale + r, min + r, a, x + (less + 4 * r) * in, in);
    }
    *scratch = to + CPU_PAIRS * bytes;
    return (struct operand){.a = to, .a_stride = bytes, .scale = scale, .min = min};
}

static void prepare_int8(struct chunk *c, const element *x, int64_t in, void *scratch) {
    const int64_t at = 2 * c->row, at0 = at + 4 * c->from0, count0 = c->pairs - c->from0;
    c->even = quantize(&scratch, x, at0, at0 + 2, count0, in);
    c->odd = quantize(&scratch, x, at + 4, at + 2, c->end1, in);
    c->first = quantize(&scratch, x, at0 + 1, -1, count0, in);
    c->middle = quantize(&scratch, x, at + 2, -1, c->pairs, in);
    c->second = quantize(&scratch, x, at + 3, -1, c->end1, in);
}
#endif

static void finish(const struct gemm *g, const float *c, int64_t row, int64_t rows, int64_t panel) {
    struct gemm half = *g;
    half.y = (element *)g->y + row * g->y_stride;
    half.y_stride = 2 * g->y_stride;
    gemm_finish(&half, c, GEMM_PANEL, 0, rows, panel * GEMM_PANEL, gemm_width(g->n, panel));
}

static void run_panel(const struct gemm *g, const struct chunk *c, int64_t panel, float *sums) {
    enum { W0, W1, W2, OUTER };
    const int64_t words = gemm_words(g->kind, g->k), each = gemm_packed_words(g->kind, g->k, g->n);
    const int64_t count0 = c->pairs - c->from0;
    const float *w = g->b + panel * GEMM_PANEL * words;
    float *middle = sums, *sum = sums + CPU_PAIRS * GEMM_PANEL;
    add_product(g, middle, &c->middle, OUTER, panel, c->pairs, false, w);
    if (count0 > 0) {
        memcpy(sum, middle + c->from0 * GEMM_PANEL, (size_t)(count0 * GEMM_PANEL) * sizeof *sum);
        add_product(g, sum, &c->even, W0, panel, count0, true, w + W1 * each);
        add_product(g, sum, &c->first, W1, panel, count0, true, w + W2 * each);
        finish(g, sum, c->row + 2 * c->from0, count0, panel);
    }
    if (c->end1 > 0) {
        const float *next = panel + 1 < cpu_divide_up(g->n, GEMM_PANEL) ? w + GEMM_PANEL * words : g->b;
        add_product(g, middle, &c->odd, W2, panel, c->end1, true, w + W1 * each);
        add_product(g, middle, &c->second, W1, panel, c->end1, true, next + OUTER * each);
        finish(g, middle, c->row + 1, c->end1, panel);
    }
}

void conv_pairs_run(const struct gemm *g, int64_t in, int64_t row, int64_t end, bool second, float *sums,
                    void *scratch) {
    const int64_t first = row - second, pairs = cpu_divide_up(end - first, 2);
    const int64_t chunks = cpu_divide_up(pairs, CPU_PAIRS);
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t from = i * pairs / chunks, to = (i + 1) * pairs / chunks;
        struct chunk c = {.row = first + 2 * from, .pairs = to - from, .from0 = i == 0 && second};
        c.end1 = c.row + 2 * c.pairs > end ? c.pairs - 1 : c.pairs;
#if CPU_HAS_INT8
        if (g->kind == CPU_INT8)
            prepare_int8(&c, g->a, in, scratch);
        else
#endif
            prepare(&c, g->a, in, scratch);
        for (int64_t panel = 0; panel * GEMM_PANEL < g->n; panel++)
            run_panel(g, &c, panel, sums);
    }
}
