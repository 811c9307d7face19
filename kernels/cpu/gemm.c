#include "kernels/cpu/gemm.h"

#include "kernels/cpu/vmath.h"

enum { LINE = 64 / sizeof(float) }; /* a cache line */

/* One term of every sum of a tile. */
ALWAYS_INLINE void add_term(const int height, const int vectors, vf (*sum)[GEMM_VECTORS], const float *a,
                            int64_t a_stride, const float *b) {
    vf column[GEMM_VECTORS];
    UNROLL
    for (int j = 0; j < vectors; j++)
        column[j] = v_load(b + j * LANES);
    UNROLL
    for (int i = 0; i < height; i++) {
        vf x = v_set(a[i * a_stride]);
        UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = v_fma(x, column[j], sum[i][j]);
    }
}

/* The micro-kernel: c [height, vectors * LANES] of a [height, k] and a panel. Both sizes are constants where
 * it is expanded, so that all sums stay in registers. Every four terms it asks for two cache lines of
 * `ahead`. */
ALWAYS_INLINE void tile(const int height, const int vectors, float *c, int64_t c_stride, const float *a,
                        int64_t a_stride, const float *b, int64_t k, bool add, const float *ahead,
                        int64_t ahead_step) {
    vf sum[12][GEMM_VECTORS];
    UNROLL
    for (int i = 0; i < height; i++) {
        UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = v_zero();
    }
    int64_t t = 0;
    for (; t + 4 <= k; t += 4) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + LINE, 0, 2);
        ahead += ahead_step;
        UNROLL
        for (int u = 0; u < 4; u++)
            add_term(height, vectors, sum, a + t + u, a_stride, b + u * vectors * LANES);
        b += 4 * vectors * LANES;
    }
    for (; t < k; t++, b += vectors * LANES)
        add_term(height, vectors, sum, a + t, a_stride, b);
    UNROLL
    for (int i = 0; i < height; i++) {
        UNROLL
        for (int j = 0; j < vectors; j++) {
            float *p = c + i * c_stride + j * LANES;
            v_store(p, add ? v_load(p) + sum[i][j] : sum[i][j]);
        }
    }
}

typedef void tile_fn(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t k,
                     bool add, const float *ahead, int64_t ahead_step);

#define TILE(height, vectors)                                                                                \
    static void tile_##height##x##vectors(float *c, int64_t c_stride, const float *a, int64_t a_stride,      \
                                          const float *b, int64_t k, bool add, const float *ahead,           \
                                          int64_t ahead_step) {                                              \
        tile(height, vectors, c, c_stride, a, a_stride, b, k, add, ahead, ahead_step);                       \
    }

#define TILES_6(v)  TILE(1, v) TILE(2, v) TILE(3, v) TILE(4, v) TILE(5, v) TILE(6, v)
#define TILES_8(v)  TILES_6(v) TILE(7, v) TILE(8, v)
#define TILES_12(v) TILES_8(v) TILE(9, v) TILE(10, v) TILE(11, v) TILE(12, v)
#define NAMES_6(v)  tile_1x##v, tile_2x##v, tile_3x##v, tile_4x##v, tile_5x##v, tile_6x##v
#define NAMES_8(v)  NAMES_6(v), tile_7x##v, tile_8x##v
#define NAMES_12(v) NAMES_8(v), tile_9x##v, tile_10x##v, tile_11x##v, tile_12x##v

/* As many rows as keep at most 24 sums of 32 registers, or 12 of 16, besides the panel's vectors. */
#if CPU_LANES == 16
TILES_12(1)
TILES_12(2)
TILES_8(3)
TILES_6(4)
static tile_fn *const tiles[GEMM_VECTORS][12] = {{NAMES_12(1)}, {NAMES_12(2)}, {NAMES_8(3)}, {NAMES_6(4)}};
static const int height_max[GEMM_VECTORS] = {12, 12, 8, 6};
#else
TILES_8(1)
TILES_6(2)
static tile_fn *const tiles[GEMM_VECTORS][8] = {{NAMES_8(1)}, {NAMES_6(2)}};
static const int height_max[GEMM_VECTORS] = {8, 6};
#endif

/* One vector of the product from its sum. */
ALWAYS_INLINE vf finish_vector(enum kernels_activation act, const struct gemm *g, vf sum, int64_t column) {
    const vf bias = v_load(g->bias + column);
    return vmath_activate(act, g->scale ? v_fma(sum, v_load(g->scale + column), bias) : sum + bias);
}

/* Finishes the sums c [rows, width] of columns [column, column + width) and writes those below n. */
ALWAYS_INLINE void finish_rows(enum kernels_activation act, const struct gemm *g, const float *c,
                               int64_t c_stride, int64_t row, int64_t rows, int64_t column, int64_t width) {
    const int64_t left = cpu_min(width, g->n - column), whole = left / LANES * LANES;
    for (int64_t i = 0; i < rows; i++) {
        float *y = g->y + (row + i) * g->y_stride + column;
        const float *residual = g->residual ? g->residual + (row + i) * g->y_stride + column : NULL;
        for (int64_t j = 0; j < whole; j += LANES) {
            vf v = finish_vector(act, g, v_load(c + i * c_stride + j), column + j);
            v_store(y + j, residual ? v + v_load(residual + j) : v);
        }
        if (whole < left) {
            vf v = finish_vector(act, g, v_load(c + i * c_stride + whole), column + whole);
            const int rest = (int)(left - whole);
            v_store_first(y + whole, residual ? v + v_load_first(residual + whole, rest) : v, rest);
        }
    }
}

void gemm_finish(const struct gemm *g, const float *c, int64_t c_stride, int64_t row, int64_t rows,
                 int64_t column, int64_t width) {
    switch (g->act) {
    case KERNELS_IDENTITY:
        finish_rows(KERNELS_IDENTITY, g, c, c_stride, row, rows, column, width);
        break;
    case KERNELS_GELU:
        finish_rows(KERNELS_GELU, g, c, c_stride, row, rows, column, width);
        break;
    case KERNELS_GELU_TANH:
        finish_rows(KERNELS_GELU_TANH, g, c, c_stride, row, rows, column, width);
        break;
    case KERNELS_RELU:
        finish_rows(KERNELS_RELU, g, c, c_stride, row, rows, column, width);
        break;
    case KERNELS_SILU:
        finish_rows(KERNELS_SILU, g, c, c_stride, row, rows, column, width);
        break;
    case KERNELS_TANH:
        finish_rows(KERNELS_TANH, g, c, c_stride, row, rows, column, width);
        break;
    }
}

/* Asks for the lines that are about to be written. */
static void prefetch_rows(const struct gemm *g, int64_t row, int64_t rows, int64_t column, int64_t width) {
    for (int64_t i = row; i < row + rows; i++)
        for (int64_t j = column; j < cpu_min(column + width, g->n); j += LINE)
            __builtin_prefetch(g->y + i * g->y_stride + j, 1, 3);
}

/* gemm_sums; with `g`, these are the last terms of rows [row, row + rows), which are finished tile by tile:
 * many writes in one go would wait for memory. */
ALWAYS_INLINE void add_block(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b,
                             int64_t k, int64_t rows, int64_t width, bool add, const float *ahead,
                             int64_t ahead_floats, const struct gemm *g, int64_t row, int64_t column) {
    const int vectors = (int)(width / LANES);
    const int64_t count = cpu_divide_up(rows, height_max[vectors - 1]);
    const float *ahead_end = ahead_floats ? ahead + ahead_floats : ahead;
    const int64_t step = count * k / 4 * LINE < ahead_floats ? 2 * LINE : LINE;
    /* Heights that differ by one at most, so that no tile is a thin rest. */
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i * rows / count, height = (i + 1) * rows / count - first;
        const bool more = ahead < ahead_end;
        if (g && k >= 64) /* else there is no time to gain */
            prefetch_rows(g, row + first, height, column, width);
        tiles[vectors - 1][height - 1](c + first * c_stride, c_stride, a + first * a_stride, a_stride, b, k,
                                       add, more ? ahead : b, more ? step : 0);
        if (g)
            gemm_finish(g, c + first * c_stride, c_stride, row + first, height, column, width);
        ahead = more ? ahead + k / 4 * step : ahead;
    }
}

void gemm_sums(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t k,
               int64_t rows, int64_t width, bool add, const float *ahead, int64_t ahead_floats) {
    add_block(c, c_stride, a, a_stride, b, k, rows, width, add, ahead, ahead_floats, NULL, 0, 0);
}

void gemm_block(const struct gemm *g, int64_t row, int64_t rows, int64_t panel, int64_t panels, float *sums,
                const float *next) {
    const int64_t blocks = cpu_divide_up(g->k, GEMM_BLOCK), end = panel + panels;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * g->k / blocks, last = (i + 1) * g->k / blocks;
        for (int64_t p = panel; p < end; p++) {
            const int64_t width = gemm_width(g->n, p);
            /* What comes after this block: the next panel's, the first panel's next one, or the next tile. */
            const float *ahead =
                p + 1 < end      ? g->b + (p + 1) * GEMM_PANEL * g->k + first * gemm_width(g->n, p + 1)
                : i + 1 < blocks ? g->b + panel * GEMM_PANEL * g->k + last * gemm_width(g->n, panel)
                                 : next;
            add_block(sums + (p - panel) * rows * GEMM_PANEL, GEMM_PANEL, g->a + row * g->a_stride + first,
                      g->a_stride, g->b + p * GEMM_PANEL * g->k + first * width, last - first, rows, width,
                      i > 0, ahead, ahead ? (last - first) * width : 0, i + 1 == blocks ? g : NULL, row,
                      p * GEMM_PANEL);
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
    gemm_block(
        g, row, end - row, panel, cpu_min(j->panels_each, j->panels - panel), cpu_sums(j->device, thread),
        next < j->row_blocks * j->columns ? g->b + next % j->columns * j->panels_each * GEMM_PANEL * g->k
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
