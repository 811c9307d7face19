/* Packing of weights, once at load. */
#include <math.h>
#include <string.h>

#include "base/arena.h"
#include "kernels/cpu/conv_pairs.h"
#include "kernels/cpu/gemm.h"

enum { PAIR_TAPS = 3 }; /* of a spec's weight that conv_pairs takes */

/* What the matrix of a weight looks like: `groups` times [k, n], k = taps * in. */
struct shape {
    enum cpu_kind kind;
    bool pairs;    /* the taps are those of conv_pairs.h */
    bool pos_conv; /* whose column sums are those of all taps before one */
    int64_t groups, in, taps, k, n;
    int64_t tap_terms; /* of one tap; padded to whole words for int8 and pairs */
};

/* fp32 where a layer reads fp32: the samples, and what is pooled. int8 where sums cannot overflow, and where
 * each tap of a positional convolution is made of whole words of what it reads. */
static enum cpu_kind choose_kind(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    if (s->is_head || (s->kind == KERNELS_CONV && s->in == 1) || d->precision == KERNELS_FP32)
        return CPU_FP32;
#if CPU_HAS_INT8
    const bool pos_conv = s->kind == KERNELS_POS_CONV;
    const int64_t taps = s->kind == KERNELS_CONV || pos_conv ? s->kernel : 1;
    const int64_t in = pos_conv ? s->in / s->groups : s->in;
    const bool fits = pos_conv ? in % 4 == 0 && !s->has_input_affine : taps < CPU_CONV_TOKENS;
    if (d->precision == KERNELS_INT8 && fits && taps * in <= CPU_INT8_TERMS_MAX)
        return CPU_INT8;
#endif
#if CPU_HAS_BF16
    return CPU_BF16;
#else
    return CPU_FP32;
#endif
}

static struct shape find_shape(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    bool conv = s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV;
    struct shape m = {.kind = choose_kind(d, s),
                      .groups = s->kind == KERNELS_POS_CONV ? s->groups : 1,
                      .taps = conv ? s->kernel : 1};
    m.in = s->in / m.groups;
    m.n = s->out / m.groups;
    m.pairs = conv_pairs_fit(s);
    m.pos_conv = s->kind == KERNELS_POS_CONV;
    if (m.pairs)
        m.taps = CONV_PAIRS_TAPS;
    const int64_t terms = m.kind == CPU_INT8 || m.pairs ? gemm_terms(m.kind) : 1;
    m.tap_terms = cpu_divide_up(m.in, terms) * terms;
    m.k = m.tap_terms * m.taps;
    if (s->kind == KERNELS_LAYER_NORM)
        m.groups = 0;
    return m;
}

static int64_t pad_columns(int64_t n) {
    return cpu_divide_up(n, LANES) * LANES;
}

/* Rows of column sums that each group has. */
static int64_t count_sums(const struct shape *m) {
    return m->pos_conv ? m->taps + 1 : m->taps;
}

static void layout(struct cpu_packed *p, const struct kernels_device *d, const struct kernels_weight_spec *s,
                   struct arena *a) {
    const struct shape m = find_shape(d, s);
    const size_t out = (size_t)s->out + CPU_LANES_MAX, in = (size_t)s->in + CPU_LANES_MAX;
    const bool norm = s->kind == KERNELS_LAYER_NORM || s->norm != KERNELS_NORM_NONE;
    const bool int8 = m.kind == CPU_INT8 && m.groups > 0;
    p->kind = m.kind;
    p->pairs = m.pairs;
    p->k = m.k;
    p->n = m.n;
    p->matrix = arena_alloc(a, (size_t)(m.groups * gemm_packed_words(m.kind, m.k, m.n)), sizeof(word));
    p->column_scale = int8 ? arena_alloc(a, out, sizeof(float)) : NULL;
    p->column_sums =
        int8 ? arena_alloc(a, (size_t)(m.groups * count_sums(&m) * pad_columns(m.n)), sizeof(float)) : NULL;
    p->bias = arena_alloc(a, out, sizeof(float));
    p->norm_weight = norm ? arena_alloc(a, out, sizeof(float)) : NULL;
    p->norm_bias = norm ? arena_alloc(a, out, sizeof(float)) : NULL;
    p->input_scale = s->has_input_affine ? arena_alloc(a, in, sizeof(float)) : NULL;
    p->input_shift = s->has_input_affine ? arena_alloc(a, in, sizeof(float)) : NULL;
}

size_t CPU_NAME(weight_bytes)(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    struct arena a;
    struct cpu_packed p;
    arena_init_counting(&a);
    arena_alloc(&a, 1, sizeof p);
    layout(&p, d, s, &a);
    return a.used;
}

struct job {
    const struct kernels_weight_spec *spec;
    struct shape shape;
    const struct cpu_packed *packed;
    int64_t panels;
};

/* The row of output channel `o` of the spec's weight: [in, taps]. */
static const float *find_row(const struct job *j, int64_t o) {
    const int64_t part_rows = j->spec->out / j->spec->parts;
    return j->spec->weight[o / part_rows] + o % part_rows * j->shape.in * j->shape.taps;
}

/* One term of a column: what is written to the width * word-th part of a panel. */
ALWAYS_INLINE void put_term(enum cpu_kind kind, float *column, int64_t width, int64_t term, float value,
                            float inverse) {
    if (kind == CPU_FP32) {
        column[term * width] = value;
    } else if (kind == CPU_BF16) {
#if CPU_HAS_BF16
        uint16_t *word = (uint16_t *)(void *)(column + term / 2 * width);
        word[term % 2] = element_of(value);
#endif
    } else {
        int8_t *word = (int8_t *)(void *)(column + term / 4 * width);
        word[term % 4] = (int8_t)lrintf(value * inverse);
    }
}

/* What one channel's taps give for a tap of conv_pairs. */
ALWAYS_INLINE float pair_weight(const float *taps, int64_t tap) {
    return tap > 0 ? taps[tap - 1] : taps[0] + taps[PAIR_TAPS - 1];
}

/* Channels [in, in + count) of all taps of one panel: [out, in, taps] becomes [taps, in, out]. */
ALWAYS_INLINE void pack_strip(enum cpu_kind kind, const struct job *j, float *to, int64_t group,
                              int64_t panel, int64_t in, int64_t count) {
    enum { AHEAD = 4, LINE = 64 / sizeof(float) };
    const struct shape *m = &j->shape;
    const int64_t width = gemm_width(m->n, panel), columns = cpu_min(width, m->n - panel * GEMM_PANEL);
    for (int64_t tap = 0; tap < m->taps; tap++) {
        for (int64_t o = 0; o < columns; o++) {
            const int64_t column = group * m->n + panel * GEMM_PANEL + o;
            const float *from = find_row(j, column) + in * m->taps + tap;
            const float scale = kind == CPU_INT8 ? j->packed->column_scale[column] : 0.0f;
            const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
            if (o + AHEAD < columns && tap == 0)
                for (int64_t i = 0; i < count * m->taps; i += LINE)
                    __builtin_prefetch(find_row(j, column + AHEAD) + in * m->taps + i, 0, 3);
            for (int64_t i = 0; i < count; i++)
                put_term(kind, to + o, width, tap * m->tap_terms + in + i, from[i * m->taps], inverse);
        }
    }
}

/* The same for conv_pairs. */
ALWAYS_INLINE void pack_pairs_strip(enum cpu_kind kind, const struct job *j, float *to, int64_t panel,
                                    int64_t in, int64_t count) {
    const struct shape *m = &j->shape;
    const int64_t width = gemm_width(m->n, panel), columns = cpu_min(width, m->n - panel * GEMM_PANEL);
    for (int64_t tap = 0; tap < m->taps; tap++) {
        for (int64_t o = 0; o < columns; o++) {
            const int64_t column = panel * GEMM_PANEL + o;
            const float *from = j->spec->weight[0] + (column * m->in + in) * PAIR_TAPS;
            const float scale = kind == CPU_INT8 ? j->packed->column_scale[column] : 0.0f;
            const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
            for (int64_t i = 0; i < count; i++, from += PAIR_TAPS)
                put_term(kind, to + o, width, tap * m->tap_terms + in + i, pair_weight(from, tap), inverse);
        }
    }
}

/* int8: the scale that takes each column's largest number to 127, of all taps of conv_pairs together. Before
 * any panel is packed. */
static void find_scales(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const struct shape *m = &j->shape;
    const int64_t first = index % j->panels * GEMM_PANEL;
    (void)thread;
    for (int64_t o = first; o < cpu_min(m->n, first + GEMM_PANEL); o++) {
        const int64_t count = m->in * (m->pairs ? PAIR_TAPS : m->taps);
        const int64_t column = index / j->panels * m->n + o;
        const float *row = m->pairs ? j->spec->weight[0] + column * count : find_row(j, column);
        float largest = 0.0f;
        for (int64_t i = 0; i < count; i++)
            largest = fmaxf(largest, fabsf(row[i]));
        for (int64_t i = 0; m->pairs && i < count; i += PAIR_TAPS)
            largest = fmaxf(largest, fabsf(pair_weight(row + i, 0)));
        j->packed->column_scale[column] = largest / 127.0f;
    }
}

/* int8: what each tap's terms of a column add up to before the scale, as conv_pairs.h and pos_conv want it.
 */
static void find_sums(const struct job *j, const float *panel_words, int64_t group, int64_t panel) {
    const struct shape *m = &j->shape;
    const int64_t width = gemm_width(m->n, panel), words = m->tap_terms / 4, row = pad_columns(m->n);
    float *to = j->packed->column_sums + group * count_sums(m) * row + panel * GEMM_PANEL;
    int32_t before[GEMM_PANEL] = {0};
    for (int64_t tap = 0; tap < m->taps; tap++, to += row) {
        int32_t sum[GEMM_PANEL] = {0};
        for (int64_t w = tap * words; w < (tap + 1) * words; w++) {
            const int8_t *from = (const int8_t *)(const void *)(panel_words + w * width);
            for (int64_t o = 0; o < width; o++)
                sum[o] += from[4 * o] + from[4 * o + 1] + from[4 * o + 2] + from[4 * o + 3];
        }
        for (int64_t o = 0; o < width; o++) {
            to[o] = (float)(m->pos_conv ? before[o] : sum[o]);
            if (m->pairs && tap > 1) /* w1 is summed with w0, and w2 with w1 */
                to[o - row] += (float)sum[o];
            before[o] += sum[o];
        }
    }
    for (int64_t o = 0; m->pos_conv && o < width; o++)
        to[o] = (float)before[o];
}

ALWAYS_INLINE void pack_any(enum cpu_kind kind, const struct job *j, float *to, int64_t group, int64_t panel,
                            int64_t in, int64_t count) {
    if (j->shape.pairs)
        pack_pairs_strip(kind, j, to, panel, in, count);
    else
        pack_strip(kind, j, to, group, panel, in, count);
}

/* One panel of one group, in strips of channels: long enough for memory to be read in order and short enough
 * for what is written (32 KiB) to stay in the first cache. */
static void pack_panel(void *arg, int64_t index, int thread) {
    enum { STRIP = 128 };
    const struct job *j = arg;
    const struct shape *m = &j->shape;
    const int64_t group = index / j->panels, panel = index % j->panels, width = gemm_width(m->n, panel);
    float *to = j->packed->matrix + group * gemm_packed_words(m->kind, m->k, m->n) +
                panel * GEMM_PANEL * gemm_words(m->kind, m->k);
    (void)thread;
    if (m->n % LANES != 0 || m->tap_terms != m->in || m->k % gemm_terms(m->kind) != 0) /* padding */
        memset(to, 0, (size_t)(gemm_words(m->kind, m->k) * width) * sizeof *to);
    for (int64_t in = 0; in < m->in; in += STRIP) {
        const int64_t count = cpu_min(STRIP, m->in - in);
        if (m->kind == CPU_FP32)
            pack_any(CPU_FP32, j, to, group, panel, in, count);
        else if (m->kind == CPU_BF16)
            pack_any(CPU_BF16, j, to, group, panel, in, count);
        else
            pack_any(CPU_INT8, j, to, group, panel, in, count);
    }
    if (m->kind == CPU_INT8)
        find_sums(j, to, group, panel);
}

static void fill(float *to, const float *from, int n, float otherwise) {
    for (int i = 0; i < n; i++)
        to[i] = from ? from[i] : otherwise;
    for (int i = n; i < n + CPU_LANES_MAX; i++)
        to[i] = 0.0f;
}

void CPU_NAME(adopt)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                     void *memory) {
    struct arena a = {.base = memory, .bytes = CPU_NAME(weight_bytes)(d, s)};
    struct cpu_packed *p = arena_alloc(&a, 1, sizeof *p);
    layout(p, d, s, &a);
    p->ops = d->ops;
    *w = kernels_weight_of(s, p);
}

void CPU_NAME(pack)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                    void *memory) {
    CPU_NAME(adopt)(d, w, s, memory);
    struct cpu_packed *p = w->packed;
    struct job j = {.spec = s, .shape = find_shape(d, s), .packed = p};
    j.panels = cpu_divide_up(j.shape.n, GEMM_PANEL);
    if (p->column_scale) {
        memset(p->column_scale, 0, ((size_t)s->out + CPU_LANES_MAX) * sizeof(float));
        team_for(d->team, j.shape.groups * j.panels, find_scales, &j);
    }
    team_for(d->team, j.shape.groups * j.panels, pack_panel, &j);

    const int rows = s->out / s->parts;
    for (int i = 0; i < s->parts; i++)
        fill(p->bias + i * rows, s->bias[i], rows, 0.0f);
    if (p->norm_weight) {
        bool layer_norm = s->kind == KERNELS_LAYER_NORM;
        fill(p->norm_weight, layer_norm ? s->weight[0] : s->norm_weight, s->out, 1.0f);
        fill(p->norm_bias, layer_norm ? s->bias[0] : s->norm_bias, s->out, 0.0f);
    }
    if (p->input_scale) {
        fill(p->input_scale, s->input_scale, s->in, 1.0f);
        fill(p->input_shift, s->input_shift, s->in, 0.0f);
    }
}
