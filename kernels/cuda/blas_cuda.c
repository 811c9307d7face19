/* blas.h over cuBLASLt (products with weights) and cuBLAS (attention).
 *
 * Both libraries are column-major, where a row-major [rows, n] matrix reads as its transpose [n, rows]. So a
 * product is asked for as y^T [out, rows] = w x^T: A = w, stored [in, out] and transposed; B = x^T [in,
 * rows]; C and D [out, rows].
 *
 * An algorithm of cuBLASLt is a kernel with its tile sizes, and adds up an element of the product in the
 * order of the inner dimension unless it is told to split that. Whoever splits it (split-K, stream-K) needs a
 * workspace for the parts; the library does not tell of stream-K otherwise. So an algorithm is taken only
 * when it says that it needs no workspace, for few rows as for many. */
#include "kernels/cuda/blas.h"

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/blas_overlap.h"

enum {
    ALGORITHMS_MAX = 64, /* asked for; the first that will do is taken */
    ALIGNMENT_BYTES = 16 /* of base pointers, and the most that any kernel asks for */
};

struct plan {
    struct blas_shape shape;
    bool exists; /* the library has an algorithm */
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y; /* the columns of x and y are set for every run */
    cublasLtMatmulAlgo_t algorithm;
};

struct blas {
    enum cuda_type type;
    int sm;
    struct gpu_stream *stream;
    cublasLtHandle_t lt;
    cublasHandle_t handle;
    int64_t plan_rows;
    bool takes_overlap;
    bool trying; /* a refusal is an answer, not a fault */
    struct plan plans[BLAS_PLANS_MAX];
    int plans_count;
};

/* What was chosen in this process, never freed. */
struct choice {
    int sm;
    enum cuda_type type;
    struct blas_shape shape;
    bool exists;
    cublasLtMatmulAlgo_t algorithm;
    struct choice *next;
};
static pthread_mutex_t choices_lock = PTHREAD_MUTEX_INITIALIZER;
static struct choice *choices;

static int refuse(struct status *st, const char *call, cublasStatus_t e) {
    return status_set(st, e == CUBLAS_STATUS_ALLOC_FAILED ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE,
                      "%s: %s", call, cublasGetStatusName(e));
}

/* A run that fails: the device's users get an error, people get the reason. */
static int fail(const char *call, cublasStatus_t e, int64_t m, int64_t n, int64_t k) {
    log_write(LOG_ERROR, "cuda", "%s for [%lld, %lld] x [%lld, %lld]: %s", call, (long long)m, (long long)k,
              (long long)k, (long long)n, cublasGetStatusName(e));
    return GPU_LAUNCH_FAILURE;
}

static cudaDataType_t data_type(const struct blas *b) {
    return b->type == CUDA_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static size_t element_bytes(const struct blas *b) {
    return b->type == CUDA_BF16 ? 2 : sizeof(float);
}

static bool is_same_shape(const struct blas_shape *a, const struct blas_shape *b) {
    return a->in == b->in && a->out == b->out && a->x_stride == b->x_stride && a->w_stride == b->w_stride &&
           a->accumulate == b->accumulate && a->epilogue == b->epilogue;
}

static bool has_bias(const struct blas_shape *s) {
    return s->epilogue == BLAS_BIAS || s->epilogue == BLAS_BIAS_GELU;
}

/* ---- plans ---- */

static void plan_free(struct plan *p) {
    if (p->y)
        (void)cublasLtMatrixLayoutDestroy(p->y);
    if (p->x)
        (void)cublasLtMatrixLayoutDestroy(p->x);
    if (p->w)
        (void)cublasLtMatrixLayoutDestroy(p->w);
    if (p->product)
        (void)cublasLtMatmulDescDestroy(p->product);
    memset(p, 0, sizeof *p);
}

static cublasStatus_t set_rows(const struct plan *p, int64_t rows) {
    const uint64_t columns = (uint64_t)rows;
    const cublasStatus_t e =
        cublasLtMatrixLayoutSetAttribute(p->x, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns);
    return e ? e
             : cublasLtMatrixLayoutSetAttribute(p->y, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns);
}

static cublasStatus_t set_bias(const struct plan *p, const void *bias) {
    return cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
}

/* The descriptors of a shape; what was made of them is in *p, also after an error. */
static cublasStatus_t plan_describe(const struct blas *b, struct plan *p) {
    static const cublasLtEpilogue_t epilogues[] = {[BLAS_NONE] = CUBLASLT_EPILOGUE_DEFAULT,
                                                   [BLAS_BIAS] = CUBLASLT_EPILOGUE_BIAS,
                                                   [BLAS_GELU] = CUBLASLT_EPILOGUE_GELU,
                                                   [BLAS_BIAS_GELU] = CUBLASLT_EPILOGUE_GELU_BIAS};
    const struct blas_shape *s = &p->shape;
    const cudaDataType_t type = data_type(b);
    const int32_t transposed = CUBLAS_OP_T;
    const uint32_t epilogue = epilogues[s->epilogue];
    const uint64_t in = (uint64_t)s->in, out = (uint64_t)s->out, rows = (uint64_t)b->plan_rows;
    cublasStatus_t e = cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!e)
        e = cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof transposed);
    if (!e)
        e = cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                           sizeof epilogue);
    /* Only the pointer's alignment is looked at before the first run. */
    if (!e && has_bias(s))
        e = set_bias(p, (const void *)(uintptr_t)ALIGNMENT_BYTES);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->w, type, in, out, s->w_stride);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->x, type, in, rows, s->x_stride);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->y, type, out, rows, s->out);
    return e;
}

/* What every row of a matrix is aligned to: rows lie `stride` elements apart, and a matrix may begin a
 * multiple of `width` elements behind a base pointer (a tap of a convolution). */
static uint32_t alignment(const struct blas *b, int64_t stride, int64_t width) {
    uint32_t bytes = ALIGNMENT_BYTES;
    const int64_t size = (int64_t)element_bytes(b);
    while (stride * size % bytes || width * size % bytes)
        bytes /= 2;
    return bytes;
}

static cublasStatus_t prefer(const struct blas *b, const struct blas_shape *s,
                             cublasLtMatmulPreference_t wish) {
    const uint64_t workspace = 0; /* see the head of this file */
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t w = alignment(b, s->w_stride, s->in), x = alignment(b, s->x_stride, s->in);
    const uint32_t y = alignment(b, s->out, s->out);
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w, sizeof w},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x, sizeof x},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y, sizeof y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y, sizeof y},
    };
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; !e && i < sizeof wishes / sizeof *wishes; i++)
        e = cublasLtMatmulPreferenceSetAttribute(wish, wishes[i].name, wishes[i].value, wishes[i].bytes);
    return e;
}

/* Whether the sum of a row is one sum in fp32, of what the row says: no split, no TF32, no emulation. */
static bool keeps_order(const struct blas *b, const struct blas_shape *s, const cublasLtMatmulAlgo_t *a) {
    int32_t splits = 0, out_of_place = 0;
    uint32_t scheme = 0;
    uint64_t numbers = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits,
                                             &written) ||
        cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                             &written) ||
        cublasLtMatmulAlgoCapGetAttribute(a, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS, &numbers, sizeof numbers,
                                          &written) ||
        cublasLtMatmulAlgoCapGetAttribute(a, CUBLASLT_ALGO_CAP_OUT_OF_PLACE_RESULT_SUPPORT, &out_of_place,
                                          sizeof out_of_place, &written))
        return false;
    if (splits > 1 || scheme != CUBLASLT_REDUCTION_SCHEME_NONE || (s->accumulate && !out_of_place))
        return false;
    const uint64_t inputs = CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_TF32 |
                            CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16BF |
                            CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16F;
    return !(numbers & CUBLASLT_NUMERICAL_IMPL_FLAGS_ACCUMULATOR_16F) &&
           !(b->type == CUDA_F32 && (numbers & inputs));
}

/* Whether an algorithm will do for a plan's shape, whatever the number of rows. */
static bool is_usable(const struct blas *b, const struct plan *p, const cublasLtMatmulAlgo_t *a) {
    const int64_t rows[] = {1, 49, 1000, 50000, b->plan_rows};
    if (!keeps_order(b, &p->shape, a))
        return false;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cublasLtMatmulHeuristicResult_t r;
        memset(&r, 0, sizeof r);
        if (set_rows(p, rows[i]) ||
            cublasLtMatmulAlgoCheck(b->lt, p->product, p->w, p->x, p->y, p->y, a, &r) || r.workspaceSize > 0)
            return false;
    }
    return true;
}

/* The first usable algorithm of those that the library proposes; p->exists says whether there is one. */
static cublasStatus_t plan_choose(const struct blas *b, struct plan *p) {
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t *found = calloc(ALGORITHMS_MAX, sizeof *found);
    int count = 0;
    if (!found)
        return CUBLAS_STATUS_ALLOC_FAILED;
    cublasStatus_t e = cublasLtMatmulPreferenceCreate(&wish);
    if (!e)
        e = prefer(b, &p->shape, wish);
    if (!e)
        e = set_rows(p, b->plan_rows);
    if (!e)
        e = cublasLtMatmulAlgoGetHeuristic(b->lt, p->product, p->w, p->x, p->y, p->y, wish, ALGORITHMS_MAX,
                                           found, &count);
    p->exists = false;
    for (int i = 0; !e && i < count && !p->exists; i++)
        if (!found[i].state && is_usable(b, p, &found[i].algo)) {
            p->algorithm = found[i].algo;
            p->exists = true;
        }
    if (wish)
        (void)cublasLtMatmulPreferenceDestroy(wish);
    free(found);
    if (!p->exists && !b->trying)
        log_write(LOG_WARN, "cuda", "cuBLASLt has no algorithm for [rows, %d] x [%d, %d] (%s, %d proposed)",
                  p->shape.in, p->shape.in, p->shape.out, cublasGetStatusName(e), count);
    /* These are the library's words for a shape that it does not take. */
    return e == CUBLAS_STATUS_NOT_SUPPORTED || e == CUBLAS_STATUS_INVALID_VALUE ? CUBLAS_STATUS_SUCCESS : e;
}

/* As an earlier plan of this process for the same shape has it, else chosen now. */
static cublasStatus_t plan_agree(const struct blas *b, struct plan *p) {
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    pthread_mutex_lock(&choices_lock);
    const struct choice *c = choices;
    while (c && !(c->sm == b->sm && c->type == b->type && is_same_shape(&c->shape, &p->shape)))
        c = c->next;
    /* Another GPU of the kind may have fewer multiprocessors, or less of its memory shared. */
    if (c && (!c->exists || is_usable(b, p, &c->algorithm))) {
        p->exists = c->exists;
        p->algorithm = c->algorithm;
    } else {
        e = plan_choose(b, p);
        struct choice *new = e || c ? NULL : calloc(1, sizeof *new);
        if (new) {
            *new = (struct choice){b->sm, b->type, p->shape, p->exists, p->algorithm, choices};
            choices = new;
        } else if (!e && !c) {
            e = CUBLAS_STATUS_ALLOC_FAILED;
        }
    }
    pthread_mutex_unlock(&choices_lock);
    return e;
}

static bool is_capturing(const struct blas *b) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing((cudaStream_t)(void *)b->stream, &capture) == cudaSuccess &&
           capture != cudaStreamCaptureStatusNone;
}

int blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st) {
    for (int i = 0; i < b->plans_count; i++)
        if (is_same_shape(&b->plans[i].shape, s)) {
            *plan = b->plans[i].exists ? i : -1;
            return 0;
        }
    if (b->plans_count == BLAS_PLANS_MAX)
        return status_set(st, STATUS_UNAVAILABLE, "a model of more than %d shapes of matrix products",
                          BLAS_PLANS_MAX);
    if (is_capturing(b))
        return status_set(st, STATUS_UNAVAILABLE,
                          "a matrix product [%d, %d] is planned while a graph is recorded", s->out, s->in);
    struct plan *p = &b->plans[b->plans_count];
    memset(p, 0, sizeof *p);
    p->shape = *s;
    const char *call = "cublasLtMatmulDescCreate";
    cublasStatus_t e = plan_describe(b, p);
    if (!e) {
        call = "cublasLtMatmulAlgoGetHeuristic";
        e = plan_agree(b, p);
    }
    if (e) {
        plan_free(p);
        return refuse(st, call, e);
    }
    *plan = p->exists ? b->plans_count : -1;
    b->plans_count++;
    return 0;
}

static cublasStatus_t run(struct blas *b, const struct plan *p, void *y, const void *x, const void *w,
                          const void *bias, const void *c, int64_t rows) {
    const float one = 1.0f, beta = p->shape.accumulate ? 1.0f : 0.0f;
    cublasStatus_t e = set_rows(p, rows);
    if (!e && has_bias(&p->shape))
        e = set_bias(p, bias);
    return e ? e
             : cublasLtMatmul(b->lt, p->product, &one, w, p->w, x, p->x, &beta, p->shape.accumulate ? c : y,
                              p->y, y, p->y, &p->algorithm, NULL, 0, (cudaStream_t)(void *)b->stream);
}

int blas_run(struct blas *b, int plan, void *y, const void *x, const void *w, const void *bias, const void *c,
             int64_t rows) {
    if (rows == 0)
        return GPU_OK;
    if (plan < 0 || plan >= b->plans_count || !b->plans[plan].exists || rows < 0)
        return GPU_INVALID_VALUE;
    const struct plan *p = &b->plans[plan];
    const cublasStatus_t e = run(b, p, y, x, w, bias, c, rows);
    if (e && b->trying)
        return GPU_INVALID_VALUE;
    return e ? fail("cublasLtMatmul", e, rows, p->shape.out, p->shape.in) : GPU_OK;
}

/* ---- handles ---- */

static int find_overlap(struct blas *b, struct status *st) {
    const char *forced = getenv("TIMBRE_CUDA_OVERLAP");
    if (forced && *forced) {
        b->takes_overlap = strcmp(forced, "0") != 0;
        return 0;
    }
    b->trying = true;
    const int result = blas_try_overlap(b, b->type, b->sm, b->stream, &b->takes_overlap, st);
    b->trying = false;
    return result;
}

bool blas_takes_overlap(const struct blas *b) {
    return b->takes_overlap;
}

static int64_t find_plan_rows(void) {
    const char *text = getenv("TIMBRE_CUDA_PLAN_ROWS");
    const long long rows = text ? strtoll(text, NULL, 10) : 0;
    return rows >= 1 && rows <= INT_MAX ? rows : BLAS_PLAN_ROWS;
}

static int open_libraries(struct blas *b, struct status *st) {
    const int mode = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION; /* and no TF32 */
    const char *call = "cublasLtCreate";
    cublasStatus_t e = cublasLtCreate(&b->lt);
    if (!e) {
        call = "cublasCreate";
        e = cublasCreate(&b->handle);
    }
    if (!e) {
        call = "cublasSetStream";
        e = cublasSetStream(b->handle, (cudaStream_t)(void *)b->stream);
    }
    if (!e) {
        call = "cublasSetMathMode";
        e = cublasSetMathMode(b->handle, (cublasMath_t)mode);
    }
    return e ? refuse(st, call, e) : 0;
}

int blas_new(struct blas **blas, enum cuda_type type, int sm, struct gpu_stream *stream, struct status *st) {
    struct blas *b = calloc(1, sizeof *b);
    *blas = NULL;
    if (!b)
        return status_set_no_memory(st, sizeof *b, "plans of matrix products");
    b->type = type;
    b->sm = sm;
    b->stream = stream;
    b->plan_rows = find_plan_rows();
    if (open_libraries(b, st) || find_overlap(b, st)) {
        blas_del(b);
        return -1;
    }
    *blas = b;
    return 0;
}

void blas_del(struct blas *b) {
    if (!b)
        return;
    for (int i = 0; i < b->plans_count; i++)
        plan_free(&b->plans[i]);
    if (b->handle)
        (void)cublasDestroy(b->handle);
    if (b->lt)
        (void)cublasLtDestroy(b->lt);
    free(b);
}

void blas_set_workspace(struct blas *b, void *workspace, size_t bytes) {
    const cublasStatus_t e = cublasSetWorkspace(b->handle, workspace, bytes);
    if (e)
        log_write(LOG_ERROR, "cuda", "cublasSetWorkspace: %s", cublasGetStatusName(e));
}

/* ---- attention ---- */

/* One product for each head: c [n, columns] (columns of it, heads `c_step` elements apart) = op(a) b. */
struct product {
    const char *name;
    cublasOperation_t op_a;
    int m, n, k;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc, step_a, step_b, step_c;
    int heads;
};

static int multiply(struct blas *b, const struct product *p) {
    const float one = 1.0f, zero = 0.0f;
    const cudaDataType_t type = data_type(b);
    /* Pedantic: fp32 without TF32, whatever the environment says. */
    const cublasComputeType_t compute =
        b->type == CUDA_BF16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC;
    const cublasStatus_t e = cublasGemmStridedBatchedEx_64(
        b->handle, p->op_a, CUBLAS_OP_N, p->m, p->n, p->k, &one, p->a, type, p->lda, p->step_a, p->b, type,
        p->ldb, p->step_b, &zero, p->c, type, p->ldc, p->step_c, p->heads, compute, CUBLAS_GEMM_DEFAULT);
    return e ? fail(p->name, e, p->n, p->m, p->k) : GPU_OK;
}

static const void *at(const struct blas *b, const void *p, int64_t elements) {
    return (const char *)p + elements * (int64_t)element_bytes(b);
}

int blas_scores(struct blas *b, void *scores, int64_t stride, const void *qkv, int n, int heads,
                int head_dim) {
    const int64_t hidden = (int64_t)heads * head_dim;
    const struct product p = {
        .name = "cublasGemmStridedBatchedEx (scores)",
        .op_a = CUBLAS_OP_T, /* scores^T [keys, queries] = (k^T)^T q^T */
        .m = n,
        .n = n,
        .k = head_dim,
        .a = at(b, qkv, hidden),
        .b = qkv,
        .c = scores,
        .lda = 3 * hidden,
        .ldb = 3 * hidden,
        .ldc = stride,
        .step_a = head_dim,
        .step_b = head_dim,
        .step_c = n * stride,
        .heads = heads,
    };
    return n == 0 ? GPU_OK : multiply(b, &p);
}

int blas_values(struct blas *b, void *y, const void *scores, int64_t stride, const void *qkv, int n,
                int heads, int head_dim) {
    const int64_t hidden = (int64_t)heads * head_dim;
    const struct product p = {
        .name = "cublasGemmStridedBatchedEx (values)",
        .op_a = CUBLAS_OP_N, /* y^T [head_dim, queries] = v^T scores^T */
        .m = head_dim,
        .n = n,
        .k = n,
        .a = at(b, qkv, 2 * hidden),
        .b = scores,
        .c = y,
        .lda = 3 * hidden,
        .ldb = stride,
        .ldc = hidden,
        .step_a = head_dim,
        .step_b = n * stride,
        .step_c = head_dim,
        .heads = heads,
    };
    return n == 0 ? GPU_OK : multiply(b, &p);
}
