#include "kernels/cuda/dnn.h"

#ifdef TIMBRE_HAS_CUDNN

#include <string.h>

#include "kernels/cuda/dnn_graph.h"

void dnn_descriptors_free(const struct dnn_api *api, struct dnn_descriptors *d) {
    while (d->count > 0)
        (void)api->unmake(d->all[--d->count]);
}

cudnnBackendDescriptor_t dnn_make(const struct dnn_api *api, struct dnn_descriptors *d,
                                  cudnnBackendDescriptorType_t type, cudnnStatus_t *e) {
    cudnnBackendDescriptor_t new = NULL;
    if (*e)
        return NULL;
    if (d->count == DNN_DESCRIPTORS_MAX) {
        *e = CUDNN_STATUS_INTERNAL_ERROR;
        return NULL;
    }
    *e = api->make(type, &new);
    if (*e)
        return NULL;
    d->all[d->count++] = new;
    return new;
}

/* A graph or plan in the making: after the first error nothing more is done. */
struct builder {
    const struct dnn_api *api;
    struct dnn_descriptors *descriptors;
    cudnnStatus_t error;
};

static cudnnBackendDescriptor_t make(struct builder *b, cudnnBackendDescriptorType_t type) {
    return dnn_make(b->api, b->descriptors, type, &b->error);
}

static void set(struct builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    if (!b->error)
        b->error = b->api->set(d, name, type, count, values);
}

static void set_descriptor(struct builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value) {
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static cudnnBackendDescriptor_t finish(struct builder *b, cudnnBackendDescriptor_t d) {
    if (!b->error)
        b->error = b->api->finalize(d);
    return d;
}

/* ---- the graph ---- */

static cudnnDataType_t data_type(enum cuda_type type) {
    return type == CUDA_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* What rows of so many elements are aligned to, all behind a base pointer that is aligned to 16 bytes. */
static int64_t alignment(enum cuda_type type, int64_t elements) {
    const int64_t row = elements * (type == CUDA_BF16 ? 2 : 4);
    int64_t bytes = 16;
    while (row % bytes)
        bytes /= 2;
    return bytes;
}

/* [n, c, 1, w] with the channels last, as images of one line. Virtual ones are never in memory, and in fp32.
 */
static cudnnBackendDescriptor_t make_tensor(struct builder *b, enum cuda_type type, int64_t id,
                                            bool is_virtual, int64_t n, int64_t c, int64_t w) {
    const int64_t dimensions[] = {n, c, 1, w}, strides[] = {w * c, 1, w * c, c};
    const int64_t align = is_virtual ? 16 : alignment(type, c);
    const cudnnDataType_t data = is_virtual ? CUDNN_DATA_FLOAT : data_type(type);
    cudnnBackendDescriptor_t t = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &data);
    set(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dimensions);
    set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    return finish(b, t);
}

static cudnnBackendDescriptor_t make_convolution(struct builder *b, const struct dnn_pattern *p,
                                                 cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t w,
                                                 cudnnBackendDescriptor_t y) {
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t axes = 2, none[] = {0, 0}, ones[] = {1, 1}, strides[] = {1, p->shape.stride};
    const float alpha = 1, beta = 0;
    cudnnBackendDescriptor_t c = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(b, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    set(b, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(b, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &axes);
    set(b, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, none);
    set(b, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, none);
    set(b, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
    set(b, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides);
    finish(b, c);
    cudnnBackendDescriptor_t o = make(b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, c);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    set(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &beta);
    return finish(b, o);
}

/* y = mode(x) or, with a second operand, mode(x, second). */
static cudnnBackendDescriptor_t make_pointwise(struct builder *b, cudnnPointwiseMode_t mode,
                                               cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t second,
                                               cudnnBackendDescriptor_t y) {
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(b, d, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(b, d, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    finish(b, d);
    cudnnBackendDescriptor_t o = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, d);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (second)
        set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, second);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    return finish(b, o);
}

cudnnStatus_t dnn_graph_build(const struct dnn_api *api, cudnnHandle_t handle, const struct dnn_pattern *p,
                              int64_t rows, struct dnn_graph *g) {
    const struct dnn_shape *s = &p->shape;
    struct builder b = {api, &g->descriptors, CUDNN_STATUS_SUCCESS};
    cudnnBackendDescriptor_t operations[3];
    int count = 0;
    memset(g, 0, sizeof *g);
    const int64_t rows_in = (rows - 1) * s->stride + s->kernel;
    cudnnBackendDescriptor_t x = make_tensor(&b, p->type, DNN_X, false, 1, s->in, rows_in);
    cudnnBackendDescriptor_t w = make_tensor(&b, p->type, DNN_W, false, s->out, s->in, s->kernel);
    cudnnBackendDescriptor_t y = make_tensor(&b, p->type, DNN_Y, false, 1, s->out, rows);
    cudnnBackendDescriptor_t sum = y;
    if (p->has_bias || p->has_act)
        sum = make_tensor(&b, p->type, DNN_BIAS + 1, true, 1, s->out, rows);
    operations[count++] = make_convolution(&b, p, x, w, sum);
    if (p->has_bias) {
        cudnnBackendDescriptor_t bias = make_tensor(&b, p->type, DNN_BIAS, false, 1, s->out, 1);
        cudnnBackendDescriptor_t next =
            p->has_act ? make_tensor(&b, p->type, DNN_BIAS + 2, true, 1, s->out, rows) : y;
        operations[count++] = make_pointwise(&b, CUDNN_POINTWISE_ADD, sum, bias, next);
        sum = next;
    }
    if (p->has_act)
        operations[count++] = make_pointwise(&b, p->act, sum, NULL, y);
    g->graph = make(&b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(&b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, operations);
    set(&b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finish(&b, g->graph);
    return b.error;
}

/* ---- the choice ---- */

/* Whether a note says that a row's sum is not one in fp32, of the numbers as they are, in an order of its
 * own: atomics, low precision, or transforms of a piece of the input whose place the row's depends on. */
static bool is_unsafe_note(cudnnBackendNumericalNote_t note, enum cuda_type type) {
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
        return type == CUDA_F32; /* TF32 */
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP:
        return false;
    default:
        return true;
    }
}

/* Whether a knob splits the inner dimension. Those with numbers of pieces have one, switches are off. */
static bool is_unsafe_knob(cudnnBackendKnobType_t knob, int64_t value) {
    switch (knob) {
    case CUDNN_KNOB_TYPE_SPLIT_K:
    case CUDNN_KNOB_TYPE_SPLIT_K_SLC:
    case CUDNN_KNOB_TYPE_SPLIT_H:
        return value > 1;
    case CUDNN_KNOB_TYPE_SPLIT_K_BUF:
    case CUDNN_KNOB_TYPE_CTA_SPLIT_K_MODE:
    case CUDNN_KNOB_TYPE_SPLIT_RS:
    case CUDNN_KNOB_TYPE_STREAM_K:
        return value != 0;
    default:
        return false;
    }
}

static bool is_safe_engine(const struct dnn_api *api, cudnnBackendDescriptor_t engine, enum cuda_type type) {
    enum { NOTES_MAX = 32 };
    cudnnBackendNumericalNote_t notes[NOTES_MAX];
    int64_t count = 0;
    memset(notes, 0, sizeof notes);
    if (api->get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES_MAX, &count,
                 notes) ||
        count > NOTES_MAX)
        return false;
    for (int64_t i = 0; i < count; i++)
        if (is_unsafe_note(notes[i], type))
            return false;
    return true;
}

static bool read_knobs(const struct dnn_api *api, cudnnBackendDescriptor_t config, struct dnn_choice *c) {
    struct dnn_descriptors d = {.count = 0};
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    int64_t count = 0, one = 0;
    for (int i = 0; i < DNN_KNOBS_MAX; i++)
        (void)dnn_make(api, &d, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, &e);
    if (!e)
        e = api->get(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, DNN_KNOBS_MAX,
                     &count, d.all);
    bool safe = !e && count <= DNN_KNOBS_MAX;
    c->knobs_count = safe ? (int)count : 0;
    for (int i = 0; i < c->knobs_count && safe; i++)
        safe = !api->get(d.all[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &one,
                         &c->knobs[i].type) &&
               !api->get(d.all[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &one,
                         &c->knobs[i].value) &&
               !is_unsafe_knob(c->knobs[i].type, c->knobs[i].value);
    dnn_descriptors_free(api, &d);
    return safe;
}

/* False when it is not safe, or cannot be read. */
static bool read_choice(const struct dnn_api *api, cudnnBackendDescriptor_t config, enum cuda_type type,
                        struct dnn_choice *c) {
    struct dnn_descriptors d = {.count = 0};
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    int64_t count = 0;
    memset(c, 0, sizeof *c);
    cudnnBackendDescriptor_t engine = dnn_make(api, &d, CUDNN_BACKEND_ENGINE_DESCRIPTOR, &e);
    if (!e)
        e = api->get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine);
    if (!e)
        e = api->get(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count, &c->engine);
    const bool safe = !e && is_safe_engine(api, engine, type);
    dnn_descriptors_free(api, &d);
    return safe && read_knobs(api, config, c);
}

int dnn_graph_propose(const struct dnn_api *api, const struct dnn_graph *g, enum cuda_type type,
                      cudnnBackendHeurMode_t mode, struct dnn_choice choices[DNN_CHOICES_MAX]) {
    struct dnn_descriptors d = {.count = 0}, configs = {.count = 0};
    struct builder b = {api, &d, CUDNN_STATUS_SUCCESS};
    int64_t count = 0;
    int safe = 0;
    cudnnBackendDescriptor_t h = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(&b, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g->graph);
    set(&b, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(&b, h);
    for (int i = 0; i < DNN_CHOICES_MAX; i++)
        (void)dnn_make(api, &configs, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &b.error);
    if (!b.error)
        b.error = api->get(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, DNN_CHOICES_MAX,
                           &count, configs.all);
    for (int64_t i = 0; !b.error && i < count && i < DNN_CHOICES_MAX; i++)
        if (read_choice(api, configs.all[i], type, &choices[safe]))
            safe++;
    dnn_descriptors_free(api, &configs);
    dnn_descriptors_free(api, &d);
    return safe;
}

/* ---- the plan ---- */

cudnnStatus_t dnn_executable_build(const struct dnn_api *api, cudnnHandle_t handle, const struct dnn_graph *g,
                                   const struct dnn_choice *c, struct dnn_executable *x) {
    struct builder b = {api, &x->descriptors, CUDNN_STATUS_SUCCESS};
    cudnnBackendDescriptor_t knobs[DNN_KNOBS_MAX];
    int64_t count = 0;
    memset(x, 0, sizeof *x);
    cudnnBackendDescriptor_t engine = make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    set_descriptor(&b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, g->graph);
    set(&b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &c->engine);
    finish(&b, engine);
    for (int i = 0; i < c->knobs_count; i++) {
        knobs[i] = make(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
        set(&b, knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &c->knobs[i].type);
        set(&b, knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &c->knobs[i].value);
        finish(&b, knobs[i]);
    }
    cudnnBackendDescriptor_t config = make(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    set_descriptor(&b, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    if (c->knobs_count > 0)
        set(&b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, c->knobs_count,
            knobs);
    finish(&b, config);
    x->plan = make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_descriptor(&b, x->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    set(&b, x->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finish(&b, x->plan);
    if (!b.error)
        b.error = api->get(x->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                           &x->workspace_bytes);
    return b.error;
}

#endif
