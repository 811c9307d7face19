#include "kernels/cpu/gemm.h"

#include "kernels/cpu/tile.h"
#include "kernels/cpu/vmath.h"

enum { LINE = 64 / sizeof(float) }; /* a cache line */

/* Factors and terms of the columns from one on; without factors, ones, again and again. */
struct columns {
    const float *scale, *bias;
    int64_t scale_step;
};

static struct columns find_columns(const struct gemm *g, int64_t column) {
    static const float ones[CPU_LANES_MAX] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return (struct columns){g->scale ? g->scale + column : ones, g->bias + column, g->scale ? 1 : 0};
}

/* Vector j of a row of the product from its sum. */
ALWAYS_INLINE vf finish_vector(enum kernels_activation act, bool fp32, const struct columns *columns, vf sum,
                               int64_t j) {
    const vf scale = v_load(columns->scale + j * columns->scale_step);
    const vf v = v_fma(sum, scale, v_load(columns->bias + j));
    return fp32 ? vmath_activate(act, v) : vmath_activate_element(act, v);
}

/* Finishes the sums c [rows, width] of columns [column, column + width) and writes those below n. */
ALWAYS_INLINE void finish_rows(enum kernels_activation act, const struct gemm *g, const float *c,
                               int64_t c_stride, int64_t row, int64_t rows, int64_t column, int64_t width) {
    const int64_t left = cpu_min(width, g->n - column), whole = left / LANES * LANES;
    const int rest = (int)(left - whole);
    const struct columns columns = find_columns(g, column);
    for (int64_t i = 0; i < rows; i++, c += c_stride) {
        element *y = (element *)g->y + (row + i) * g->y_stride + column;
        const element *residual = g->residual ? g->residual + (row + i) * g->y_stride + column : NULL;
        if (whole == GEMM_PANEL && !residual) { /* side by side: none waits for another */
            UNROLL
            for (int j = 0; j < GEMM_PANEL; j += LANES)
                element_store(y + j, finish_vector(act, false, &columns, v_load(c + j), j));
            continue;
        }
        for (int64_t j = 0; j < whole; j += LANES) {
            vf v = finish_vector(act, false, &columns, v_load(c + j), j);
            element_store(y + j, residual ? v + element_load(residual + j) : v);
        }
        if (rest) {
            vf v = finish_vector(act, false, &columns, v_load(c + whole), whole);
            element_store_first(y + whole, residual ? v + element_load_first(residual + whole, rest) : v,
                                rest);
        }
    }
}

/* The same for results in fp32, without residual. */
ALWAYS_INLINE void finish_rows_fp32(enum kernels_activation act, const struct gemm *g, const float *c,
                                    int64_t c_stride, int64_t row, int64_t rows, int64_t column,
                                    int64_t width) {
    const int64_t left = cpu_min(width, g->n - column);
    const struct columns columns = find_columns(g, column);
    for (int64_t i = 0; i < rows; i++) {
        float *y = (float *)g->y + (row + i) * g->y_stride + column;
        for (int64_t j = 0; j < left; j += LANES) {
            vf v = finish_vector(act, true, &columns, v_load(c + i * c_stride + j), j);
            if (j + LANES <= left)
                v_store(y + j, v);
            else
                v_store_first(y + j, v, (int)(left - j));
        }
    }
}

#define FINISH_CASE(act)                                                                                     \
    case act:                                                                                                \
        if (CPU_HAS_BF16 && g->y_fp32)                                                                       \
            finish_rows_fp32(act, g, c, c_stride, row, rows, column, width);                                 \
        else                                                                                                 \
            finish_rows(act, g, c, c_stride, row, rows, column, width);                                      \
        break;

void gemm_finish(const struct gemm *g, const float *c, int64_t c_stride, int64_t row, int64_t rows,
                 int64_t column, int64_t width) {
    switch (g->act) {
        FINISH_CASE(KERNELS_IDENTITY)
        FINISH_CASE(KERNELS_GELU)
        FINISH_CASE(KERNELS_GELU_TANH)
        FINISH_CASE(KERNELS_RELU)
        FINISH_CASE(KERNELS_SILU)
        FINISH_CASE(KERNELS_TANH)
    }
}

/* Asks for the lines that are about to be written. */
static void prefetch_rows(const struct gemm *g, int64_t row, int64_t rows, int64_t column, int64_t width) {
    enum { ELEMENTS = 64 / sizeof(element) };
    for (int64_t i = row; i < row + rows; i++)
        for (int64_t j = column; j < cpu_min(column + width, g->n); j += ELEMENTS)
            __builtin_prefetch((const element *)g->y + i * g->y_stride + j, 1, 3);
}

/* gemm_sums, or with `g` gemm_sums_last. */
static void add_piece(float *c, int64_t c_stride, const struct gemm_piece *p, int64_t rows,
                      const struct gemm *g, int64_t row, int64_t column) {
    const int vectors = (int)(p->width / LANES);
    const int64_t count = cpu_divide_up(rows, tile_height_max[vectors - 1]);
    const int64_t words = gemm_words(p->kind, p->k);
    const float *ahead = p->ahead, *ahead_end = p->ahead_words ? ahead + p->ahead_words : ahead;
    const int64_t step = count * words / 4 * LINE < p->ahead_words ? 2 * LINE : LINE;
    struct tile_job t = {.a_stride = p->a_stride,
                         .b = p->b,
                         .words = words,
                         .half = p->k % gemm_terms(p->kind) != 0,
                         .c_stride = c_stride,
                         .row_step = p->row_step,
                         .column_sums = p->column_sums};
    /* Heights that differ by one at most, so that no tile is a thin rest. */
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i * rows / count, height = (i + 1) * rows / count - first;
        const bool more = ahead < ahead_end;
        if (g && words >= 64) /* else there is no time to gain */
            prefetch_rows(g, row + first, height, column, p->width);
        t.a = (const char *)p->a + first * p->a_stride;
        t.c = c + first * c_stride;
        t.from = p->from ? p->from + first * c_stride : NULL;
        t.ahead = more ? ahead : p->b;
        t.ahead_step = more ? step : 0;
        t.row_scale = p->row_scale + first * p->row_step;
        t.row_min = p->row_min + first * p->row_step;
        tile_run(p->kind, vectors, (int)height, &t);
        if (g)
            gemm_finish(g, c + first * c_stride, c_stride, row + first, height, column, p->width);
        ahead = more ? ahead + words / 4 * step : ahead;
    }
}

void gemm_sums(float *c, int64_t c_stride, const struct gemm_piece *p, int64_t rows) {
    add_piece(c, c_stride, p, rows, NULL, 0, 0);
}

void gemm_sums_last(const struct gemm *g, float *c, int64_t c_stride, const struct gemm_piece *p, int64_t row,
                    int64_t rows, int64_t column) {
    add_piece(c, c_stride, p, rows, g, row, column);
}

/* The words [first, first + count) of the whole row that are block `index`. */
struct block {
    int64_t segment, first, count;
    bool is_first; /* of its segment */
};

static struct block find_block(int64_t segment_words, int64_t blocks, int64_t index) {
    const int64_t segment = index / blocks, i = index % blocks;
    const int64_t first = i * segment_words / blocks, last = (i + 1) * segment_words / blocks;
    return (struct block){segment, segment * segment_words + first, last - first, i == 0};
}

void gemm_block(const struct gemm *g, int64_t row, int64_t rows, int64_t panel, int64_t panels, float *sums,
                const float *next) {
    const int64_t words = gemm_words(g->kind, g->k), terms = gemm_terms(g->kind);
    const int64_t segments = g->kind == CPU_INT8 ? g->segments : 1, segment_words = words / segments;
    const int64_t blocks = cpu_divide_up(segment_words, GEMM_BLOCK), count = segments * blocks;
    const int64_t end = panel + panels, padded = cpu_divide_up(g->n, LANES) * LANES;
    for (int64_t i = 0; i < count; i++) {
        const struct block b = find_block(segment_words, blocks, i);
        struct gemm_piece piece = {.kind = g->kind,
                                   .a = (const char *)g->a + row * g->a_stride + 4 * b.first,
                                   .a_stride = g->a_stride,
                                   .k = cpu_min(b.count * terms, g->k - b.first * terms),
                                   .row_step = g->row_step};
        if (g->kind == CPU_INT8) {
            piece.row_scale = g->row_scale + row * g->row_step + b.segment;
            piece.row_min = g->row_min + row * g->row_step + b.segment;
        }
        for (int64_t p = panel; p < end; p++) {
            const int64_t width = gemm_width(g->n, p);
            /* What comes after this block: the next panel's, the first panel's next one, or the next tile. */
            piece.ahead =
                p + 1 < end ? g->b + (p + 1) * GEMM_PANEL * words + b.first * gemm_width(g->n, p + 1)
                : i + 1 < count
                    ? g->b + panel * GEMM_PANEL * words + (b.first + b.count) * gemm_width(g->n, panel)
                    : next;
            piece.ahead_words = piece.ahead ? b.count * width : 0;
            piece.b = g->b + p * GEMM_PANEL * words + b.first * width;
            piece.width = width;
            if (g->kind == CPU_INT8)
                piece.column_sums = b.is_first ? g->column_sums + b.segment * padded + p * GEMM_PANEL : NULL;
            float *c = sums + (p - panel) * rows * GEMM_PANEL;
            piece.from = i > 0 ? c : NULL;
            add_piece(c, GEMM_PANEL, &piece, rows, i + 1 == count ? g : NULL, row, p * GEMM_PANEL);
        }
    }
}

/* How a product is cut into tiles. */
struct job {
    const struct kernels_device *device;
    const struct gemm *gemm;
    int64_t rows, row_blocks, panels, panels_each, columns;
};

static void run_tile(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const struct gemm *g = j->gemm;
    const int64_t block = index / j->columns, panel = index % j->columns * j->panels_each;
    const int64_t row = block * j->rows / j->row_blocks, end = (block + 1) * j->rows / j->row_blocks;
    /* Tiles are handed out in order, so this thread's next one is probably as many further on as there are
     * threads. */
    const int64_t next = index + j->device->threads;
    gemm_block(g, row, end - row, panel, cpu_min(j->panels_each, j->panels - panel),
               cpu_sums(j->device, thread),
               next < j->row_blocks * j->columns
                   ? g->b + next % j->columns * j->panels_each * GEMM_PANEL * gemm_words(g->kind, g->k)
                   : NULL);
}

/* Tiles of up to 192 rows by one or two panels: a's rows stay in the second cache (192 rows of 768 channels
 * are 576 KiB), and every part of b is read once for each tile. How a product is cut changes who computes a
 * row, never how. */
static void choose_tiles(struct job *j) {
    enum { ROWS_MAX = 192, ROWS_MIN = 24, TILES_MIN = 3, TILES_PLENTY = 16 }; /* tiles: for each thread */
    const int64_t threads = j->device->threads;
    j->row_blocks = cpu_divide_up(j->rows, ROWS_MAX);
    j->panels_each = 1;
    if (j->row_blocks * j->panels >= TILES_PLENTY * threads)
        j->panels_each = 2;
    else if (j->row_blocks * j->panels < TILES_MIN * threads)
        j->row_blocks =
            cpu_min(cpu_divide_up(TILES_MIN * threads, j->panels), cpu_divide_up(j->rows, ROWS_MIN));
    j->columns = cpu_divide_up(j->panels, j->panels_each);
}

void gemm_run(struct kernels_device *d, const struct gemm *g, int64_t rows) {
    struct job j = {.device = d, .gemm = g, .rows = rows, .panels = cpu_divide_up(g->n, GEMM_PANEL)};
    if (rows <= 0)
        return;
    choose_tiles(&j);
    cpu_for(d, j.row_blocks * j.columns, 2 * rows * g->k * g->n, run_tile, &j);
}
