/* dnn.h over cuDNN's graph API. */
#include "kernels/cuda/dnn.h"

int64_t dnn_count_rows(int64_t rows) {
    return (rows + DNN_ROWS_SMALL - 1) / DNN_ROWS_SMALL * DNN_ROWS_SMALL;
}

#ifndef TIMBRE_HAS_CUDNN

int dnn_new(struct dnn **d, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st) {
    (void)type, (void)sm, (void)stream;
    *d = NULL;
    return status_set(st, STATUS_UNAVAILABLE, "this build has no cuDNN");
}

void dnn_del(struct dnn *d) {
    (void)d;
}

int dnn_plan(struct dnn *d, const struct dnn_shape *s, int *plan, bool *act_done, struct status *st) {
    (void)d, (void)s;
    *plan = -1;
    *act_done = false;
    return status_set(st, STATUS_UNAVAILABLE, "this build has no cuDNN");
}

int dnn_run(struct dnn *d, int plan, void *y, const void *x, const void *w, const void *bias, int64_t rows) {
    (void)d, (void)plan, (void)y, (void)x, (void)w, (void)bias, (void)rows;
    return GPU_INVALID_VALUE;
}

#else

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/dnn_graph.h"

enum { LARGE, SMALL, SIZES, ATTEMPTS_MAX = 8 /* at compiling, for one pattern */ };
static const int64_t size_rows[SIZES] = {DNN_ROWS_LARGE, DNN_ROWS_SMALL};

struct plan {
    struct dnn_shape shape;
    bool exists, act_done, has_bias; /* has_bias: in the graph */
    struct dnn_graph graphs[SIZES];
    struct dnn_executable executables[SIZES];
    void *workspace; /* its own, for a recorded graph holds on to it */
};

struct dnn {
    const struct dnn_api *api;
    enum cuda_type type;
    struct gpu_stream *stream;
    cudnnHandle_t handle;
    struct plan plans[DNN_PLANS_MAX];
    int plans_count;
};

/* Guards the library's loading, and planning: mode B of the heuristics is not safe for several threads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- the library ---- */

static int load(struct dnn_api *api, struct status *st) {
    static const char file[] = "libcudnn.so.9";
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        return status_set(st, STATUS_UNAVAILABLE, "%s", why ? why : file);
    }
    const struct {
        const char *name;
        void *function;
    } symbols[] = {
        {"cudnnGetVersion", &api->get_version},
        {"cudnnGetErrorString", &api->get_error_string},
        {"cudnnCreate", &api->create},
        {"cudnnDestroy", &api->destroy},
        {"cudnnSetStream", &api->set_stream},
        {"cudnnBackendCreateDescriptor", &api->make},
        {"cudnnBackendDestroyDescriptor", &api->unmake},
        {"cudnnBackendSetAttribute", &api->set},
        {"cudnnBackendGetAttribute", &api->get},
        {"cudnnBackendFinalize", &api->finalize},
        {"cudnnBackendExecute", &api->execute},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol)
            return status_set(st, STATUS_UNAVAILABLE, "%s has no %s", file, symbols[i].name);
        memcpy(symbols[i].function, &symbol, sizeof symbol);
    }
    if (api->get_version() / 10000 != CUDNN_MAJOR)
        return status_set(st, STATUS_UNAVAILABLE, "%s is version %zu, and not %d", file, api->get_version(),
                          CUDNN_MAJOR);
    return 0;
}

/* The library, loaded at the first call and never unloaded; NULL when there is none. */
static const struct dnn_api *find_library(struct status *st) {
    static struct dnn_api api;
    static bool is_loaded;
    pthread_mutex_lock(&lock);
    if (!is_loaded)
        is_loaded = load(&api, st) == 0;
    const struct dnn_api *found = is_loaded ? &api : NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

int dnn_new(struct dnn **dnn, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st) {
    (void)sm;
    *dnn = NULL;
    const struct dnn_api *api = find_library(st);
    if (!api)
        return -1;
    struct dnn *d = calloc(1, sizeof *d);
    if (!d)
        return status_set_no_memory(st, sizeof *d, "plans of convolutions");
    d->api = api;
    d->type = type;
    d->stream = stream;
    const char *call = "cudnnCreate";
    cudnnStatus_t e = api->create(&d->handle);
    if (e)
        d->handle = NULL;
    if (!e) {
        call = "cudnnSetStream";
        e = api->set_stream(d->handle, (cudaStream_t)(void *)stream);
    }
    if (e) {
        dnn_del(d);
        return status_set(st, STATUS_UNAVAILABLE, "%s: %s", call, api->get_error_string(e));
    }
    *dnn = d;
    return 0;
}

/* ---- plans ---- */

static void free_executables(struct dnn *d, struct plan *p) {
    for (int i = 0; i < SIZES; i++)
        dnn_descriptors_free(d->api, &p->executables[i].descriptors);
}

static void free_graphs(struct dnn *d, struct plan *p) {
    for (int i = 0; i < SIZES; i++)
        dnn_descriptors_free(d->api, &p->graphs[i].descriptors);
}

void dnn_del(struct dnn *d) {
    if (!d)
        return;
    for (int i = 0; i < d->plans_count; i++) {
        free_executables(d, &d->plans[i]);
        free_graphs(d, &d->plans[i]);
        gpu_memory_del(d->plans[i].workspace);
    }
    if (d->handle)
        (void)d->api->destroy(d->handle);
    free(d);
}

/* Whether a choice can be had for both sizes; then both are in the plan. */
static bool try_choice(struct dnn *d, struct plan *p, const struct dnn_choice *c) {
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    for (int i = 0; i < SIZES; i++)
        p->executables[i].descriptors.count = 0;
    for (int i = 0; i < SIZES && !e; i++) {
        e = dnn_executable_build(d->api, d->handle, &p->graphs[i], c, &p->executables[i]);
        if (!e && p->executables[i].workspace_bytes > DNN_WORKSPACE_BYTES_MAX)
            e = CUDNN_STATUS_NOT_SUPPORTED;
    }
    if (e)
        free_executables(d, p);
    return !e;
}

/* The first choice of the first mode that can be had. */
static bool try_pattern(struct dnn *d, struct plan *p, const struct dnn_pattern *pattern) {
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_A,
                                                   CUDNN_HEUR_MODE_FALLBACK};
    struct dnn_choice *choices = calloc(DNN_CHOICES_MAX, sizeof *choices);
    cudnnStatus_t e = choices ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    int attempts = 0;
    bool done = false;
    for (int i = 0; i < SIZES; i++)
        p->graphs[i].descriptors.count = 0;
    for (int i = 0; i < SIZES && !e; i++)
        e = dnn_graph_build(d->api, d->handle, pattern, size_rows[i], &p->graphs[i]);
    for (size_t m = 0; m < sizeof modes / sizeof *modes && !e && !done; m++) {
        const int count = dnn_graph_propose(d->api, &p->graphs[LARGE], d->type, modes[m], choices);
        for (int i = 0; i < count && attempts < ATTEMPTS_MAX && !done; i++, attempts++) {
            done = try_choice(d, p, &choices[i]);
            if (done)
                log_write(LOG_DEBUG, "cuda", "cuDNN convolution [%d, %d, %d]%s%s: engine %lld of mode %d",
                          pattern->shape.out, pattern->shape.kernel, pattern->shape.in,
                          pattern->has_bias ? " + bias" : "", pattern->has_act ? " + activation" : "",
                          (long long)choices[i].engine, (int)modes[m]);
        }
    }
    if (!done)
        free_graphs(d, p);
    free(choices);
    return done;
}

static cudnnPointwiseMode_t pointwise_mode(enum cuda_activation act) {
    switch (act) {
    case CUDA_GELU:
        return CUDNN_POINTWISE_GELU_FWD;
    case CUDA_GELU_TANH:
        return CUDNN_POINTWISE_GELU_APPROX_TANH_FWD;
    case CUDA_RELU:
        return CUDNN_POINTWISE_RELU_FWD;
    case CUDA_SILU:
        return CUDNN_POINTWISE_SWISH_FWD;
    case CUDA_TANH:
        return CUDNN_POINTWISE_TANH_FWD;
    case CUDA_IDENTITY:
        break;
    }
    return CUDNN_POINTWISE_IDENTITY;
}

/* With everything fused, or else the convolution alone. */
static void choose(struct dnn *d, struct plan *p) {
    const struct dnn_shape *s = &p->shape;
    struct dnn_pattern pattern = {.shape = *s,
                                  .type = d->type,
                                  .has_bias = s->has_bias,
                                  .has_act = s->act != CUDA_IDENTITY,
                                  .act = pointwise_mode(s->act)};
    p->exists = try_pattern(d, p, &pattern);
    if (!p->exists && s->act == CUDA_GELU && d->type == CUDA_BF16) {
        pattern.act = pointwise_mode(CUDA_GELU_TANH); /* within bf16's rounding of the exact one */
        p->exists = try_pattern(d, p, &pattern);
    }
    p->act_done = p->exists;
    if (!p->exists && (pattern.has_bias || pattern.has_act)) {
        pattern.has_bias = pattern.has_act = false;
        p->exists = try_pattern(d, p, &pattern);
    }
    p->has_bias = pattern.has_bias;
}

static int take_workspace(struct plan *p, struct status *st) {
    int64_t bytes = 0;
    for (int i = 0; i < SIZES; i++)
        if (p->executables[i].workspace_bytes > bytes)
            bytes = p->executables[i].workspace_bytes;
    const int error = p->exists && bytes > 0 ? gpu_memory_new(&p->workspace, (size_t)bytes) : GPU_OK;
    return error ? status_set(st, STATUS_UNAVAILABLE, "%lld bytes for a convolution of cuDNN: %s",
                              (long long)bytes, gpu_error_text(error))
                 : 0;
}

static bool is_capturing(const struct dnn *d) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing((cudaStream_t)(void *)d->stream, &capture) == cudaSuccess &&
           capture != cudaStreamCaptureStatusNone;
}

static bool is_same_shape(const struct dnn_shape *a, const struct dnn_shape *b) {
    return a->in == b->in && a->out == b->out && a->kernel == b->kernel && a->stride == b->stride &&
           a->has_bias == b->has_bias && a->act == b->act;
}

int dnn_plan(struct dnn *d, const struct dnn_shape *s, int *plan, bool *act_done, struct status *st) {
    *plan = -1;
    *act_done = false;
    for (int i = 0; i < d->plans_count; i++)
        if (is_same_shape(&d->plans[i].shape, s)) {
            *plan = d->plans[i].exists ? i : -1;
            *act_done = d->plans[i].act_done;
            return 0;
        }
    if (d->plans_count == DNN_PLANS_MAX)
        return status_set(st, STATUS_UNAVAILABLE, "a model of more than %d shapes of convolutions",
                          DNN_PLANS_MAX);
    if (is_capturing(d))
        return status_set(st, STATUS_UNAVAILABLE,
                          "a convolution [%d, %d, %d] is planned while a graph is recorded", s->out,
                          s->kernel, s->in);
    struct plan *p = &d->plans[d->plans_count];
    memset(p, 0, sizeof *p);
    p->shape = *s;
    pthread_mutex_lock(&lock);
    choose(d, p);
    pthread_mutex_unlock(&lock);
    if (take_workspace(p, st)) {
        free_executables(d, p);
        free_graphs(d, p);
        return -1;
    }
    *plan = p->exists ? d->plans_count : -1;
    *act_done = p->act_done;
    d->plans_count++;
    return 0;
}

/* ---- runs ---- */

static cudnnStatus_t run_piece(struct dnn *d, const struct plan *p, int size, void *y, const void *x,
                               const void *w, const void *bias) {
    /* The graph's type of a pointer has no const; only y is written. */
    const void *pointers[] = {x, w, y, bias};
    const int64_t ids[] = {DNN_X, DNN_W, DNN_Y, DNN_BIAS};
    const int64_t count = p->has_bias ? 4 : 3;
    struct dnn_descriptors list = {.count = 0};
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    cudnnBackendDescriptor_t pack = dnn_make(d->api, &list, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &e);
    if (!e)
        e = d->api->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers);
    if (!e)
        e = d->api->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids);
    if (!e)
        e = d->api->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &p->workspace);
    if (!e)
        e = d->api->finalize(pack);
    if (!e)
        e = d->api->execute(d->handle, p->executables[size].plan, pack);
    dnn_descriptors_free(d->api, &list);
    return e;
}

int dnn_run(struct dnn *d, int plan, void *y, const void *x, const void *w, const void *bias, int64_t rows) {
    if (rows == 0)
        return GPU_OK;
    if (plan < 0 || plan >= d->plans_count || !d->plans[plan].exists || rows < 0)
        return GPU_INVALID_VALUE;
    const struct plan *p = &d->plans[plan];
    const struct dnn_shape *s = &p->shape;
    const int64_t element = d->type == CUDA_BF16 ? 2 : 4, all = dnn_count_rows(rows);
    for (int64_t first = 0; first < all;) {
        const int size = all - first >= DNN_ROWS_LARGE ? LARGE : SMALL;
        const cudnnStatus_t e = run_piece(d, p, size, (char *)y + first * s->out * element,
                                          (const char *)x + first * s->stride * s->in * element, w, bias);
        if (e) {
            log_write(LOG_ERROR, "cuda",
                      "cudnnBackendExecute for a convolution [%d, %d, %d] of %lld rows: %s", s->out,
                      s->kernel, s->in, (long long)size_rows[size], d->api->get_error_string(e));
            return GPU_LAUNCH_FAILURE;
        }
        first += size_rows[size];
    }
    return GPU_OK;
}

#endif
