/* blas.h by plain loops, for the tests: device memory is host memory, and everything runs at once unless the
 * stream captures. Sums are fp32, of the inner dimension alone. */
#include "kernels/cuda/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host/elements.h"
#include "kernels/cuda/host/record.h"

struct blas {
    enum cuda_type type;
    struct gpu_stream *stream;
    bool takes_overlap;
    struct blas_shape plans[BLAS_PLANS_MAX];
    int plans_count;
};

/* Eight sums side by side, then those: an order that depends on n alone. */
static float dot(enum cuda_type type, const void *a, int64_t a_at, int64_t a_step, const void *b,
                 int64_t b_at, int64_t b_step, int n) {
    float sums[8] = {0};
    for (int i = 0; i < n; i++)
        sums[i % 8] += element_get(type, a, a_at + i * a_step) * element_get(type, b, b_at + i * b_step);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

int blas_new(struct blas **blas, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st) {
    const char *forced = getenv("TIMBRE_CUDA_OVERLAP");
    (void)sm;
    *blas = calloc(1, sizeof **blas);
    if (!*blas)
        return status_set_no_memory(st, sizeof **blas, "plans of matrix products");
    (*blas)->type = type;
    (*blas)->stream = stream;
    (*blas)->takes_overlap = !(forced && strcmp(forced, "0") == 0);
    return 0;
}

void blas_del(struct blas *b) {
    free(b);
}

void blas_set_workspace(struct blas *b, void *workspace, size_t bytes) {
    (void)b;
    gpu_host_enter();
    memset(workspace, 0xFF, bytes); /* a library would use all of it */
    gpu_host_leave();
}

static bool is_same_shape(const struct blas_shape *a, const struct blas_shape *b) {
    return a->in == b->in && a->out == b->out && a->x_stride == b->x_stride && a->w_stride == b->w_stride &&
           a->accumulate == b->accumulate && a->epilogue == b->epilogue;
}

static void do_nothing(void *arg) {
    (void)arg;
}

int blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st) {
    const char nothing = 0;
    for (int i = 0; i < b->plans_count; i++)
        if (is_same_shape(&b->plans[i], s)) {
            *plan = i;
            return 0;
        }
    if (b->plans_count == BLAS_PLANS_MAX)
        return status_set(st, STATUS_UNAVAILABLE, "a model of more than %d shapes of matrix products",
                          BLAS_PLANS_MAX);
    if (gpu_host_record(b->stream, do_nothing, &nothing, sizeof nothing))
        return status_set(st, STATUS_UNAVAILABLE,
                          "a matrix product [%d, %d] is planned while a graph is recorded", s->out, s->in);
    *plan = b->plans_count;
    b->plans[b->plans_count++] = *s;
    return 0;
}

bool blas_takes_overlap(const struct blas *b) {
    return b->takes_overlap;
}

/* ---- runs: what a stream keeps of a call, and the call ---- */

struct product {
    enum cuda_type type;
    struct blas_shape shape;
    void *y;
    const void *x, *w, *bias, *c;
    int64_t rows;
};

static float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

static void run_product(void *arg) {
    const struct product *p = arg;
    const struct blas_shape *s = &p->shape;
    for (int64_t r = 0; r < p->rows; r++)
        for (int o = 0; o < s->out; o++) {
            const int64_t at = r * s->out + o;
            float v = dot(p->type, p->x, r * s->x_stride, 1, p->w, o * s->w_stride, 1, s->in);
            if (s->accumulate)
                v += element_get(p->type, p->c, at);
            if (s->epilogue == BLAS_BIAS || s->epilogue == BLAS_BIAS_GELU)
                v += element_get(p->type, p->bias, o);
            if (s->epilogue == BLAS_GELU || s->epilogue == BLAS_BIAS_GELU)
                v = gelu_tanh(v);
            element_put(p->type, p->y, at, v);
        }
}

int blas_run(struct blas *b, int plan, void *y, const void *x, const void *w, const void *bias, const void *c,
             int64_t rows) {
    if (rows == 0)
        return GPU_OK;
    if (plan < 0 || plan >= b->plans_count || rows < 0 || !gpu_host_is_current(b->stream))
        return GPU_INVALID_VALUE;
    struct product p = {b->type, b->plans[plan], y, x, w, bias, c, rows};
    gpu_host_put(b->stream, run_product, &p, sizeof p);
    return GPU_OK;
}

struct attention {
    enum cuda_type type;
    void *y;
    const void *scores, *qkv;
    int64_t stride;
    int n, heads, head_dim;
};

static void run_scores(void *arg) {
    const struct attention *a = arg;
    const int64_t hidden = (int64_t)a->heads * a->head_dim;
    for (int h = 0; h < a->heads; h++)
        for (int q = 0; q < a->n; q++)
            for (int k = 0; k < a->n; k++)
                element_put(a->type, a->y, ((int64_t)h * a->n + q) * a->stride + k,
                            dot(a->type, a->qkv, q * 3 * hidden + h * a->head_dim, 1, a->qkv,
                                (k * 3 + 1) * hidden + h * a->head_dim, 1, a->head_dim));
}

static void run_values(void *arg) {
    const struct attention *a = arg;
    const int64_t hidden = (int64_t)a->heads * a->head_dim;
    for (int h = 0; h < a->heads; h++)
        for (int q = 0; q < a->n; q++)
            for (int i = 0; i < a->head_dim; i++)
                element_put(a->type, a->y, q * hidden + h * a->head_dim + i,
                            dot(a->type, a->scores, ((int64_t)h * a->n + q) * a->stride, 1, a->qkv,
                                2 * hidden + h * a->head_dim + i, 3 * hidden, a->n));
}

static int run_attention(struct blas *b, void (*run)(void *arg), struct attention *a) {
    if (!gpu_host_is_current(b->stream))
        return GPU_INVALID_VALUE;
    gpu_host_put(b->stream, run, a, sizeof *a);
    return GPU_OK;
}

int blas_scores(struct blas *b, void *scores, int64_t stride, const void *qkv, int n, int heads,
                int head_dim) {
    struct attention a = {b->type, scores, NULL, qkv, stride, n, heads, head_dim};
    return run_attention(b, run_scores, &a);
}

int blas_values(struct blas *b, void *y, const void *scores, int64_t stride, const void *qkv, int n,
                int heads, int head_dim) {
    struct attention a = {b->type, y, scores, qkv, stride, n, heads, head_dim};
    return run_attention(b, run_values, &a);
}
