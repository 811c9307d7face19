#include "kernels/cpu/gemm.h"

#include "kernels/cpu/vmath.h"

enum { LINE = 64 / sizeof(float) };

/* The micro-kernel: c [height, vectors * LANES] of a [height, k] and a panel. Both sizes are constants where it is
 * expanded, so that all sums stay in registers. Each term also asks for one cache line of `ahead`. */
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
    for (int64_t t = 0; t < k; t++) {
        vf column[GEMM_VECTORS];
        UNROLL
        for (int j = 0; j < vectors; j++)
            column[j] = v_load(b + j * LANES);
        b += vectors * LANES;
        __builtin_prefetch(ahead, 0, 2);
        ahead += ahead_step;
        UNROLL
        for (int i = 0; i < height; i++) {
            vf x = v_set(a[i * a_stride + t]);
            UNROLL
            for (int j = 0; j < vectors; j++)
                sum[i][j] = v_fma(x, column[j], sum[i][j]);
        }
    }
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

#define TILE(height, vectors)                                                                                  \
    static void tile_##height##x##vectors(float *c, int64_t c_stride, const float *a, int64_t a_stride,        \
                                          const float *b, int64_t k, bool add, const float *ahead,             \
                                          int64_t ahead_step) {                                                \
        tile(height, vectors, c, c_stride, a, a_stride, b, k, add, ahead, ahead_step);                         \
    }

#define TILES_6(v) TILE(1, v) TILE(2, v) TILE(3, v) TILE(4, v) TILE(5, v) TILE(6, v)
#define TILES_8(v) TILES_6(v) TILE(7, v) TILE(8, v)
#define TILES_12(v) TILES_8(v) TILE(9, v) TILE(10, v) TILE(11, v) TILE(12, v)
#define NAMES_6(v) tile_1x##v, tile_2x##v, tile_3x##v, tile_4x##v, tile_5x##v, tile_6x##v
#define NAMES_8(v) NAMES_6(v), tile_7x##v, tile_8x##v
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

/* Finishes the sums c [rows, width] of columns [column, column + width) and writes those below n. */
ALWAYS_INLINE void finish_rows(enum kernels_activation act, const struct gemm *g, const float *c, int64_t c_stride,
                               int64_t row, int64_t rows, int64_t column, int64_t width) {
    for (int64_t i = 0; i < rows; i++) {
        float *y = g->y + (row + i) * g->y_stride + column;
        const float *residual = g->residual ? g->residual + (row + i) * g->y_stride + column : NULL;
        for (int64_t j = 0; j < width; j += LANES) {
            vf v = v_load(c + i * c_stride + j), bias = v_load(g->bias + column + j);
            v = vmath_activate(act, g->scale ? v_fma(v, v_load(g->scale + column + j), bias) : v + bias);
            int64_t left = g->n - column - j;
            if (left >= LANES)
                v_store(y + j, residual ? v + v_load(residual + j) : v);
            else
                v_store_first(y + j, residual ? v + v_load_first(residual + j, (int)left) : v, (int)left);
        }
    }
}

void CPU_NAME(gemm_finish)(const struct gemm *g, const float *c, int64_t c_stride, int64_t row, int64_t rows,
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

void CPU_NAME(gemm_sums)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t k,
                         int64_t rows, int64_t width, bool add, const float *ahead, int64_t ahead_floats) {
    const int vectors = (int)(width / LANES);
    const int64_t count = cpu_divide_up(rows, height_max[vectors - 1]);
    const float *ahead_end = ahead + ahead_floats;
    for (int64_t i = 0; i < count; i++) { /* heights that differ by one at most, so that no tile is a thin rest */
        int64_t first = i * rows / count, height = (i + 1) * rows / count - first;
        int64_t step = ahead < ahead_end ? LINE : 0;
        tiles[vectors - 1][height - 1](c + first * c_stride, c_stride, a + first * a_stride, a_stride, b, k, add,
                                       step ? ahead : b, step);
        ahead += step * k;
    }
}

void CPU_NAME(gemm_block)(const struct gemm *g, int64_t row, int64_t rows, int64_t panel, int64_t panels,
                          float *sums) {
    const int64_t blocks = cpu_divide_up(g->k, GEMM_BLOCK);
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * g->k / blocks, k = (i + 1) * g->k / blocks - first;
        for (int64_t p = panel; p < panel + panels; p++) {
            const int64_t width = gemm_width(g->n, p), c_stride = panels * GEMM_PANEL;
            const float *b = g->b + p * GEMM_PANEL * g->k + first * width;
            float *c = sums + (p - panel) * GEMM_PANEL;
            /* The next block of the same panel lies behind this one; with one panel that is what comes next. */
            const int64_t ahead = i + 1 < blocks ? k * width : 0;
            CPU_NAME(gemm_sums)(c, c_stride, g->a + row * g->a_stride + first, g->a_stride, b, k, rows, width, i > 0,
                                b + k * width, ahead);
            if (i + 1 == blocks)
                CPU_NAME(gemm_finish)(g, c, c_stride, row, rows, p * GEMM_PANEL, width);
        }
    }
}

struct job {
    const struct kernels_device *device;
    const struct gemm *gemm;
    int64_t rows, row_blocks, panels, panels_each, columns;
};

static void run_tile(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    int64_t block = index / j->columns, column = index % j->columns * j->panels_each;
    int64_t row = block * j->rows / j->row_blocks, end = (block + 1) * j->rows / j->row_blocks;
    CPU_NAME(gemm_block)(j->gemm, row, end - row, column, cpu_min(j->panels_each, j->panels - column),
                         cpu_sums(j->device, thread));
}

void CPU_NAME(gemm)(struct kernels_device *d, const struct gemm *g, int64_t rows) {
    const int64_t panels = cpu_divide_up(g->n, GEMM_PANEL);
    struct job j = {.device = d, .gemm = g, .rows = rows, .panels = panels, .panels_each = 1};
    j.row_blocks = cpu_divide_up(rows, 192);
    j.columns = cpu_divide_up(panels, j.panels_each);
    if (rows > 0)
        team_for(d->team, j.row_blocks * j.columns, run_tile, &j);
}
