/* Packing of weights, once at load. */
#include "base/arena.h"
#include "kernels/cpu/gemm.h"

/* What the matrix of a weight looks like: `groups` times [k, n], k = taps * in. */
struct shape {
    int64_t groups, in, taps, k, n;
};

static struct shape find_shape(const struct kernels_weight_spec *s) {
    bool conv = s->kind == KERNELS_CONV || s->kind == KERNELS_POS_CONV;
    struct shape m = {.groups = s->kind == KERNELS_POS_CONV ? s->groups : 1, .taps = conv ? s->kernel : 1};
    m.in = s->in / m.groups;
    m.k = m.in * m.taps;
    m.n = s->out / m.groups;
    if (s->kind == KERNELS_LAYER_NORM)
        m.groups = 0;
    return m;
}

static void layout(struct cpu_packed *p, const struct kernels_weight_spec *s, struct arena *a) {
    const struct shape m = find_shape(s);
    const size_t out = (size_t)s->out + CPU_LANES_MAX, in = (size_t)s->in + CPU_LANES_MAX;
    const bool norm = s->kind == KERNELS_LAYER_NORM || s->norm != KERNELS_NORM_NONE;
    p->k = m.k;
    p->n = m.n;
    p->matrix = arena_alloc(a, (size_t)(m.groups * gemm_packed_floats(m.k, m.n)), sizeof(float));
    p->bias = arena_alloc(a, out, sizeof(float));
    p->norm_weight = norm ? arena_alloc(a, out, sizeof(float)) : NULL;
    p->norm_bias = norm ? arena_alloc(a, out, sizeof(float)) : NULL;
    p->input_scale = s->has_input_affine ? arena_alloc(a, in, sizeof(float)) : NULL;
    p->input_shift = s->has_input_affine ? arena_alloc(a, in, sizeof(float)) : NULL;
}

size_t CPU_NAME(weight_bytes)(const struct kernels_device *d, const struct kernels_weight_spec *s) {
    struct arena a;
    struct cpu_packed p;
    (void)d;
    arena_init_counting(&a);
    arena_alloc(&a, 1, sizeof p);
    layout(&p, s, &a);
    return a.used;
}

struct job {
    const struct kernels_weight_spec *spec;
    struct shape shape;
    float *matrix;
    int64_t panels;
};

/* The row of output channel `o` of the spec's weight. */
static const float *find_row(const struct job *j, int64_t o) {
    const int64_t part_rows = j->spec->out / j->spec->parts;
    return j->spec->weight[o / part_rows] + o % part_rows * j->shape.k;
}

/* One panel of one group: [out, in, taps] becomes [taps, in, out]. Strips of channels, long enough for memory
 * to be read in order and short enough for what is written (32 KiB) to stay in the first cache. */
static void pack_panel(void *arg, int64_t index, int thread) {
    enum { STRIP = 128, AHEAD = 4, LINE = 64 / sizeof(float) };
    const struct job *j = arg;
    const struct shape *m = &j->shape;
    const int64_t group = index / j->panels, panel = index % j->panels, width = gemm_width(m->n, panel);
    float *to = j->matrix + group * gemm_packed_floats(m->k, m->n) + panel * GEMM_PANEL * m->k;
    (void)thread;
    for (int64_t tap = 0; tap < m->taps; tap++) {
        for (int64_t in = 0; in < m->in; in += STRIP) {
            const int64_t count = cpu_min(STRIP, m->in - in);
            float *strip = to + (tap * m->in + in) * width;
            for (int64_t o = 0; o < width; o++) {
                const int64_t column = panel * GEMM_PANEL + o;
                const float *from =
                    column < m->n ? find_row(j, group * m->n + column) + in * m->taps + tap : NULL;
                if (column + AHEAD < m->n && tap == 0)
                    for (int64_t i = 0; i < count * m->taps; i += LINE)
                        __builtin_prefetch(find_row(j, group * m->n + column + AHEAD) + in * m->taps + i, 0,
                                           3);
                for (int64_t i = 0; i < count; i++)
                    strip[i * width + o] = from ? from[i * m->taps] : 0.0f;
            }
        }
    }
}

static void fill(float *to, const float *from, int n, float otherwise) {
    for (int i = 0; i < n; i++)
        to[i] = from ? from[i] : otherwise;
    for (int i = n; i < n + CPU_LANES_MAX; i++)
        to[i] = 0.0f;
}

void CPU_NAME(pack)(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
                    void *memory) {
    struct arena a = {.base = memory, .bytes = CPU_NAME(weight_bytes)(d, s)};
    struct cpu_packed *p = arena_alloc(&a, 1, sizeof *p);
    layout(p, s, &a);
    p->ops = d->ops;
    struct job j = {.spec = s, .shape = find_shape(s), .matrix = p->matrix};
    j.panels = cpu_divide_up(j.shape.n, GEMM_PANEL);
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
    *w = kernels_weight_of(s, p);
}
