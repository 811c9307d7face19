/* dnn.h by plain loops, for the tests. What cuDNN may or may not offer is set by the environment:
 * TIMBRE_SHIM_DNN=0 (it cannot be loaded), TIMBRE_SHIM_DNN_FUSED=0|1 (bias and activation are never or always
 * fused; otherwise in bf16 alone). There is no engine for an odd number of channels. */
#include "kernels/cuda/dnn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host/elements.h"
#include "kernels/cuda/host/record.h"

struct dnn {
    enum cuda_type type;
    struct gpu_stream *stream;
    bool fuses;
    struct dnn_shape plans[DNN_PLANS_MAX];
    int plans_count;
};

static bool is_set(const char *variable, const char *value) {
    const char *text = getenv(variable);
    return text && strcmp(text, value) == 0;
}

int dnn_new(struct dnn **d, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st) {
    (void)sm;
    *d = NULL;
    if (is_set("TIMBRE_SHIM_DNN", "0"))
        return status_set(st, STATUS_UNAVAILABLE, "libcudnn.so.9: none, as TIMBRE_SHIM_DNN says");
    *d = calloc(1, sizeof **d);
    if (!*d)
        return status_set_no_memory(st, sizeof **d, "plans of convolutions");
    (*d)->type = type;
    (*d)->stream = stream;
    (*d)->fuses =
        is_set("TIMBRE_SHIM_DNN_FUSED", "1") || (type == CUDA_BF16 && !is_set("TIMBRE_SHIM_DNN_FUSED", "0"));
    return 0;
}

void dnn_del(struct dnn *d) {
    free(d);
}

int64_t dnn_count_rows(int64_t rows) {
    return (rows + DNN_ROWS_SMALL - 1) / DNN_ROWS_SMALL * DNN_ROWS_SMALL;
}

static bool is_same_shape(const struct dnn_shape *a, const struct dnn_shape *b) {
    return a->in == b->in && a->out == b->out && a->kernel == b->kernel && a->stride == b->stride &&
           a->has_bias == b->has_bias && a->act == b->act;
}

static void do_nothing(void *arg) {
    (void)arg;
}

int dnn_plan(struct dnn *d, const struct dnn_shape *s, int *plan, bool *act_done, struct status *st) {
    const char nothing = 0;
    *act_done = d->fuses || (!s->has_bias && s->act == CUDA_IDENTITY);
    *plan = -1;
    for (int i = 0; i < d->plans_count && *plan < 0; i++)
        if (is_same_shape(&d->plans[i], s))
            *plan = i;
    if (*plan >= 0 || s->in % 2 || s->out % 2)
        return 0;
    if (d->plans_count == DNN_PLANS_MAX)
        return status_set(st, STATUS_UNAVAILABLE, "a model of more than %d shapes of convolutions",
                          DNN_PLANS_MAX);
    if (gpu_host_record(d->stream, do_nothing, &nothing, sizeof nothing))
        return status_set(st, STATUS_UNAVAILABLE,
                          "a convolution [%d, %d, %d] is planned while a graph is recorded", s->out, s->in,
                          s->kernel);
    *plan = d->plans_count;
    d->plans[d->plans_count++] = *s;
    return 0;
}

struct call {
    enum cuda_type type;
    bool fuses;
    struct dnn_shape shape;
    void *y;
    const void *x, *w, *bias;
    int64_t rows;
};

/* GELU in bf16 in the tanh form, as cuDNN may have it. */
static float activate(enum cuda_activation act, enum cuda_type type, float x) {
    if (act == CUDA_GELU && type == CUDA_BF16)
        act = CUDA_GELU_TANH;
    switch (act) {
    case CUDA_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    case CUDA_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case CUDA_RELU:
        return fmaxf(x, 0.0f);
    case CUDA_SILU:
        return x / (1.0f + expf(-x));
    case CUDA_TANH:
        return tanhf(x);
    case CUDA_IDENTITY:
        break;
    }
    return x;
}

static void run(void *arg) {
    const struct call *c = arg;
    const struct dnn_shape *s = &c->shape;
    const int64_t taps = (int64_t)s->kernel * s->in;
    for (int64_t r = 0; r < c->rows; r++)
        for (int o = 0; o < s->out; o++) {
            float v = 0;
            for (int64_t i = 0; i < taps; i++)
                v += element_get(c->type, c->x, r * s->stride * s->in + i) *
                     element_get(c->type, c->w, o * taps + i);
            if (c->fuses && s->has_bias)
                v += element_get(c->type, c->bias, o);
            element_put(c->type, c->y, r * s->out + o, c->fuses ? activate(s->act, c->type, v) : v);
        }
}

int dnn_run(struct dnn *d, int plan, void *y, const void *x, const void *w, const void *bias, int64_t rows) {
    if (rows == 0)
        return GPU_OK;
    if (plan < 0 || plan >= d->plans_count || rows < 0 || !gpu_host_is_current(d->stream))
        return GPU_INVALID_VALUE;
    struct call c = {d->type, d->fuses, d->plans[plan], y, x, w, bias, dnn_count_rows(rows)};
    gpu_host_put(d->stream, run, &c, sizeof c);
    return GPU_OK;
}
