#include "kernels/cpu/conv_pairs.h"

#include "kernels/cpu/quantize.h"

enum { OUTER, W0, W1 }; /* where each sum's taps begin; there is W2 too */

/* The rows that go into one product; of bytes with what they stand for. */
struct operand {
    const void *a;
    int64_t a_stride; /* bytes */
    int64_t taps;     /* that a row is for */
    const float *scale, *min;
};

/* Pairs whose first rows are `row`, row + 2, ...; of them the first rows of [from0, pairs) and the second
 * ones of [0, end1) are wanted, and nothing that only others need is read. */
struct chunk {
    int64_t row, pairs, from0, end1;
    struct operand middle;    /* x2 */
    struct operand first[2];  /* x0 - x2 and x1, */
    struct operand second[2]; /* x3 and x4 - x2; or, of bytes, each two as one */
};

/* One panel, and what of b is to be brought nearer. */
struct panel {
    const struct gemm *g;
    int64_t in, index, tap_words, width;
    const float *b, *ahead, *ahead_end;
};

/* The next part of what lies ahead, at the rate at which a panel's four taps are used up in five products;
 * behind the last panel comes the first one, for the next chunk. */
static int64_t find_ahead(struct panel *p, int64_t words, const float **ahead) {
    enum { PRODUCTS = 5 };
    const int64_t part = words * p->width * CONV_PAIRS_TAPS / PRODUCTS / LANES * LANES;
    *ahead = p->ahead = p->ahead < p->ahead_end ? p->ahead : p->g->b;
    p->ahead = p->ahead_end - p->ahead < part ? p->ahead_end : p->ahead + part;
    return p->ahead - *ahead;
}

/* c = from + the operands * the taps of b from `tap` on; with `last` these rows of the product are complete,
 * and finished. */
static void add_products(struct panel *p, float *c, const float *from, const struct operand *o, int tap,
                         int64_t rows, const struct gemm *last, int64_t row) {
    const struct gemm *g = p->g;
    const int64_t terms = gemm_terms(g->kind), taps = tap == OUTER ? 1 : 2;
    for (int64_t done = 0; done < taps; done += o->taps, o++) {
        const int64_t words = o->taps * p->tap_words, blocks = cpu_divide_up(words, GEMM_BLOCK);
        const float *b = p->b + (tap + done) * p->tap_words * p->width;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t first = i * words / blocks, end = (i + 1) * words / blocks;
            struct gemm_piece piece = {.kind = g->kind,
                                       .a = (const char *)o->a + first * (int64_t)sizeof(word),
                                       .a_stride = o->a_stride,
                                       .b = b + first * p->width,
                                       .k = (end - first) * terms,
                                       .width = p->width,
                                       .from = done + i > 0 ? c : from,
                                       .row_scale = o->scale,
                                       .row_min = o->min,
                                       .row_step = 1};
            if (g->kind != CPU_INT8) /* the last word of a tap may be half */
                piece.k = cpu_min(piece.k, p->in - first * terms);
            else if (i == 0)
                piece.column_sums =
                    g->column_sums + tap * cpu_divide_up(g->n, LANES) * LANES + p->index * GEMM_PANEL;
            piece.ahead_words = find_ahead(p, end - first, &piece.ahead);
            if (last && done + o->taps == taps && i + 1 == blocks)
                gemm_sums_last(last, c, GEMM_PANEL, &piece, row, rows, p->index * GEMM_PANEL);
            else
                gemm_sums(c, GEMM_PANEL, &piece, rows);
        }
    }
}

/* to [in] = a - b */
static void subtract(element *to, const element *a, const element *b, int64_t in) {
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES)
        element_store(to + i, element_load(a + i) - element_load(b + i));
    for (; i < in; i++)
        to[i] = element_of(element_get(a[i]) - element_get(b[i]));
}

static void prepare(struct chunk *c, const element *x, int64_t in, void *scratch) {
    element *even = scratch, *odd = even + CPU_PAIRS * in;
    const int64_t row_bytes = in * (int64_t)sizeof *x, from = c->from0;
    x += 2 * c->row * in;
    for (int64_t r = 0; r < c->pairs; r++) {
        const element *at = x + 4 * r * in;
        if (r >= from)
            subtract(even + r * in, at, at + 2 * in, in);
        if (r < c->end1)
            subtract(odd + r * in, at + 4 * in, at + 2 * in, in);
    }
    c->middle = (struct operand){.a = x + 2 * in, .a_stride = 4 * row_bytes, .taps = 1};
    c->first[0] = (struct operand){.a = even + from * in, .a_stride = row_bytes, .taps = 1};
    c->first[1] = (struct operand){.a = x + (4 * from + 1) * in, .a_stride = 4 * row_bytes, .taps = 1};
    c->second[0] = (struct operand){.a = x + 3 * in, .a_stride = 4 * row_bytes, .taps = 1};
    c->second[1] = (struct operand){.a = odd, .a_stride = row_bytes, .taps = 1};
}

#if CPU_HAS_INT8
static void prepare_int8(struct chunk *c, const element *x, int64_t in, void *scratch) {
    const int64_t bytes = quantize_count_bytes(in), from = c->from0;
    float *scale[3], *min[3]; /* of the middle, the first and the second rows */
    uint8_t *to[3];
    for (int i = 0; i < 3; i++) {
        scale[i] = (float *)scratch + 2 * i * CPU_PAIRS;
        min[i] = scale[i] + CPU_PAIRS;
        to[i] = (uint8_t *)((float *)scratch + 6 * CPU_PAIRS) + (i == 0 ? 0 : 2 * i - 1) * CPU_PAIRS * bytes;
    }
    x += 2 * c->row * in;
    for (int64_t r = 0; r < c->pairs; r++) {
        const element *at = x + 4 * r * in;
        uint8_t *first = to[1] + 2 * r * bytes, *second = to[2] + 2 * r * bytes;
        if (r >= from)
            quantize_difference(first, first + bytes, scale[1] + r, min[1] + r, at, at + 2 * in, at + in, in);
        quantize_row(to[0] + r * bytes, scale[0] + r, min[0] + r, at + 2 * in, in);
        if (r < c->end1)
            quantize_difference(second + bytes, second, scale[2] + r, min[2] + r, at + 4 * in, at + 2 * in,
                                at + 3 * in, in);
    }
    c->middle = (struct operand){to[0], bytes, 1, scale[0], min[0]};
    c->first[0] = (struct operand){to[1] + 2 * from * bytes, 2 * bytes, 2, scale[1] + from, min[1] + from};
    c->second[0] = (struct operand){to[2], 2 * bytes, 2, scale[2], min[2]};
}
#endif

static void run_panel(struct panel *p, const struct chunk *c, float *sums) {
    float *middle = sums, *sum = sums + CPU_PAIRS * GEMM_PANEL;
    const int64_t count0 = c->pairs - c->from0;
    struct gemm half = *p->g; /* every second row */
    half.y_stride = 2 * p->g->y_stride;
    half.y = (element *)p->g->y + c->row * p->g->y_stride;
    add_products(p, middle, NULL, &c->middle, OUTER, c->pairs, NULL, 0);
    if (count0 > 0)
        add_products(p, sum, middle + c->from0 * GEMM_PANEL, c->first, W0, count0, &half, c->from0);
    half.y = (element *)half.y + p->g->y_stride;
    if (c->end1 > 0)
        add_products(p, middle, middle, c->second, W1, c->end1, &half, 0);
}

/* All panels of a chunk, one after another. A tap of b is brought nearer two taps before it is used. */
static void run_panels(const struct gemm *g, const struct chunk *c, int64_t in, float *sums) {
    enum { TAPS_AHEAD = 2 };
    const int64_t panels = cpu_divide_up(g->n, GEMM_PANEL), words = gemm_words(g->kind, g->k);
    struct panel p = {.g = g, .in = in, .tap_words = words / CONV_PAIRS_TAPS};
    p.ahead = g->b + TAPS_AHEAD * p.tap_words * gemm_width(g->n, 0);
    p.ahead_end = g->b + gemm_packed_words(g->kind, g->k, g->n);
    for (; p.index < panels; p.index++) {
        p.b = g->b + p.index * GEMM_PANEL * words;
        p.width = gemm_width(g->n, p.index);
        run_panel(&p, c, sums);
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
        run_panels(g, &c, in, sums);
    }
}
