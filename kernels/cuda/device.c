/* The cuda backend's device: a stream on a GPU, and the way of a batch through it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/internal.h"

/* ---- GPUs ---- */

static int count_devices(void) {
    int count = 0;
    return gpu_count(&count) == GPU_OK ? count < CUDA_GPUS_MAX ? count : CUDA_GPUS_MAX : 0;
}

static int get_info(int index, struct gpu_info *info, struct status *st) {
    int count = 0, error = gpu_count(&count);
    if (error)
        return status_set(st, STATUS_UNAVAILABLE, "%s", gpu_error_text(error));
    if (index < 0 || index >= count || index >= CUDA_GPUS_MAX)
        return status_set(st, STATUS_UNAVAILABLE, "GPU %d: there are %d, counted from 0", index, count);
    if ((error = gpu_use(index)) || (error = gpu_get_info(index, info)))
        return status_set(st, STATUS_UNAVAILABLE, "GPU %d: %s", index, gpu_error_text(error));
    return 0;
}

static int probe(const struct kernels_options *o, struct status *st) {
    struct gpu_info info = {0};
    if (o->precision == KERNELS_INT8)
        return status_set(st, STATUS_UNAVAILABLE, "device cuda does not offer int8");
    if (get_info(o->device_index, &info, st))
        return -1;
    if (info.sm < CUDA_SM_MIN)
        return status_set(st, STATUS_UNAVAILABLE,
                          "GPU %d (%s) has compute capability %d.%d, and 8.0 is needed", o->device_index,
                          info.name, info.sm / 10, info.sm % 10);
    return 0;
}

/* ---- errors ---- */

/* What has gone wrong since the last time, and forgets it: what is lost stays lost by itself. */
static int report(struct kernels_device *d, struct status *st) {
    int result = 0;
    if (d->error)
        result = status_set(st, STATUS_UNAVAILABLE, "GPU %d (%s): %s", d->options.device_index, d->info.name,
                            gpu_error_text(d->error));
    else if (d->failure.code != STATUS_OK)
        result = status_set(st, d->failure.code, "GPU %d (%s): %s", d->options.device_index, d->info.name,
                            d->failure.message);
    d->error = atomic_load(&d->gpu->lost);
    status_clear(&d->failure);
    return result;
}

static bool is_lost(const struct kernels_device *d) {
    return atomic_load(&d->gpu->lost) != 0;
}

/* ---- memory of the host, and copies ---- */

static int host_new(struct kernels_device *d, void **p, size_t bytes, const char *what, struct status *st) {
    *p = NULL;
    int error = gpu_use(d->options.device_index);
    if (!error)
        error = gpu_pinned_new(p, bytes);
    if (error)
        return status_set(st, error == GPU_OUT_OF_MEMORY ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE,
                          "%zu bytes of pinned memory for %s: %s", bytes, what, gpu_error_text(error));
    memset(*p, 0, bytes);
    return 0;
}

static void host_del(struct kernels_device *d, void *p) {
    (void)gpu_use(d->options.device_index);
    gpu_pinned_del(p);
}

static void upload(struct kernels_device *d, void *to, const void *from, size_t bytes) {
    cuda_note(d, gpu_use(d->options.device_index));
    if (!d->error && bytes)
        cuda_note(d, gpu_copy_in(to, from, bytes, d->stream));
}

static void download(struct kernels_device *d, void *to, const void *from, size_t bytes) {
    cuda_note(d, gpu_use(d->options.device_index));
    cuda_graphs_launch(d);
    d->was_read = true;
    if (!d->error && bytes)
        cuda_note(d, gpu_copy_out(to, from, bytes, d->stream));
}

/* ---- the device ---- */

static void device_del(struct kernels_device *d) {
    if (!d)
        return;
    (void)gpu_use(d->options.device_index);
    pthread_mutex_lock(&d->gpu->turn);
    if (d->gpu->last == d)
        d->gpu->last = NULL;
    pthread_mutex_unlock(&d->gpu->turn);
    if (d->stream)
        (void)gpu_stream_wait(d->stream);
    cuda_graphs_free(d);
    dnn_del(d->dnn);
    blas_del(d->blas);
    cuda_memory_del(d, d->workspace);
    cuda_memory_del(d, d->scratch);
    cuda_memory_del(d, d->tables_device);
    gpu_pinned_del(d->tables_host);
    gpu_event_del(d->done);
    gpu_stream_del(d->stream);
    free(d);
}

static int make_parts(struct kernels_device *d, struct status *st) {
    int error;
    if ((error = gpu_stream_new(&d->stream)) || (error = gpu_event_new(&d->done)))
        return status_set(st, STATUS_UNAVAILABLE, "GPU %d (%s): %s", d->options.device_index, d->info.name,
                          gpu_error_text(error));
    return 0;
}

static int device_new(struct kernels_device **out, const struct kernels_options *o, struct status *st) {
    *out = NULL;
    if (probe(o, st))
        return -1;
    struct kernels_device *d = calloc(1, sizeof *d);
    if (!d)
        return status_set_no_memory(st, sizeof *d, "a device");
    d->options = *o;
    d->type = o->precision == KERNELS_BF16 ? CUDA_BF16 : CUDA_F32;
    d->gpu = cuda_gpu_find(o->device_index);
    d->error = atomic_load(&d->gpu->lost);
    if (get_info(o->device_index, &d->info, st) || make_parts(d, st)) {
        device_del(d);
        return -1;
    }
    snprintf(d->name, sizeof d->name, "cuda-sm%d", d->info.sm);
    d->launch = (struct cuda_launch){
        .stream = d->stream, .type = d->type, .sm = d->info.sm, .multiprocessors = d->info.multiprocessors};
    *out = d;
    return 0;
}

static const char *device_name(const struct kernels_device *d) {
    return d->name;
}

static size_t activation_bytes(const struct kernels_device *d) {
    return d->type == CUDA_BF16 ? 2 : sizeof(float);
}

static int64_t segment_rows(const struct kernels_device *d) {
    (void)d;
    return CUDA_SEGMENT_ROWS;
}

/* cuDNN's plans are for fixed numbers of rows, so it computes up to one piece too many, from what that many
 * rows read. */
static int64_t spare_rows(const struct kernels_device *d) {
    return d->options.conv_way == KERNELS_CONV_CUDNN
               ? (int64_t)DNN_ROWS_SMALL * CUDA_DNN_STRIDE_MAX + CUDA_DNN_KERNEL_MAX
               : 0;
}

static int reserve(struct kernels_device *d, const struct kernels_limits *limits, struct status *st) {
    d->limits = *limits;
    if (cuda_plan_reserve(d, st) || blas_new(&d->blas, d->type, d->info.sm, d->stream, st) ||
        cuda_memory_new(d, &d->workspace, BLAS_WORKSPACE_BYTES, "the workspace of cuBLAS", st))
        return -1;
    blas_set_workspace(d->blas, d->workspace, BLAS_WORKSPACE_BYTES);
    if (d->options.conv_way == KERNELS_CONV_CUDNN && dnn_new(&d->dnn, d->type, d->info.sm, d->stream, st))
        return -1;
    cuda_graphs_init(d);
    return 0;
}

/* ---- a batch ---- */

/* First a small one, in which the libraries choose their algorithms, then one for every graph. */
static int64_t warm_rows(const struct kernels_device *d, int i) {
    if (i == 0)
        return 1;
    return i <= d->buckets_count ? d->buckets[i - 1].rows : 0;
}

static struct kernels_extent begin(struct kernels_device *d, const struct batch *b) {
    struct cuda_gpu *gpu = d->gpu;
    pthread_mutex_lock(&gpu->turn);
    cuda_note(d, gpu_use(d->options.device_index));
    if (gpu->last && gpu->last != d)
        cuda_note(d, gpu_stream_wait_event(d->stream, gpu->last->done));
    d->in_batch = true;
    cuda_plan_batch(d, b);
    cuda_graphs_begin(d, b);
    const int64_t rows = b->tape_rows[b->levels];
    if (d->bucket)
        return (struct kernels_extent){.rows = d->bucket->rows, .tokens = d->bucket->rows};
    return (struct kernels_extent){.rows = rows, .tokens = batch_tokens(b)};
}

static void end(struct kernels_device *d) {
    cuda_graphs_end(d);
    d->has_plans = true;
    d->in_batch = false;
    cuda_note(d, gpu_event_record(d->done, d->stream));
    d->gpu->last = d;
    pthread_mutex_unlock(&d->gpu->turn);
}

static int finish(struct kernels_device *d, struct status *st) {
    static atomic_int batches;
    const bool was_read = d->was_read;
    d->was_read = false;
    cuda_note(d, gpu_use(d->options.device_index));
    if (!d->error)
        cuda_note(d, gpu_stream_wait(d->stream));
    if (was_read && cuda_is_fault_due("batch", &batches))
        cuda_note(d, GPU_ILLEGAL_ADDRESS);
    return report(d, st);
}

const struct kernels timbre_kernels_cuda __attribute__((visibility("default"))) = {
    .abi = KERNELS_ABI,
    .name = "cuda",
    .on_host = false,
    .count_devices = count_devices,
    .probe = probe,
    .device_new = device_new,
    .device_del = device_del,
    .device_name = device_name,
    .activation_bytes = activation_bytes,
    .segment_rows = segment_rows,
    .spare_rows = spare_rows,
    .memory_new = cuda_memory_new,
    .memory_del = cuda_memory_del,
    .host_new = host_new,
    .host_del = host_del,
    .upload = upload,
    .download = download,
    .weight_bytes = cuda_weight_bytes,
    .pack = cuda_pack,
    .reserve = reserve,
    .warm_rows = warm_rows,
    .begin = begin,
    .end = end,
    .finish = finish,
    .is_lost = is_lost,
    .input_norm = cuda_op_input_norm,
    .group_stats = cuda_op_group_stats,
    .conv = cuda_op_conv,
    .compact = cuda_op_compact,
    .layer_norm = cuda_op_layer_norm,
    .linear = cuda_op_linear,
    .pos_conv = cuda_op_pos_conv,
    .attention = cuda_op_attention,
    .accumulate = cuda_op_accumulate,
    .pool = cuda_op_pool,
    .head_linear = cuda_op_head_linear,
};
