/* CUDA graphs: a small batch is a hundred kernels of a few microseconds, which a GPU gets through faster than
 * a processor can launch them. So the kernels of a batch are recorded once for each of a few sizes (buckets
 * of rows) and then launched as one. A graph's arguments are fixed; what differs between batches of a bucket
 * stands in the tables (plan.c), and the grid is that of the largest batch in it. */
#include <string.h>

#include "kernels/cuda/internal.h"

/* Multiples of 16 rows up to 256, then 16 steps to every doubling: on average 3 % more rows than needed. */
static int64_t next_bucket(int64_t rows) {
    int64_t step = 16;
    while (rows >= step * 16)
        step *= 2;
    return rows + step;
}

void cuda_graphs_init(struct kernels_device *d) {
    const int64_t most = d->limits.tokens_max;
    /* Attention by cuBLAS is launched clip by clip, so it is another graph for every batch; and not every
     * kernel that cuDNN may choose has run, and so been loaded, before a graph would be recorded. */
    if (d->options.eager || d->options.attention_way == KERNELS_ATTENTION_CUBLAS ||
        d->options.conv_way == KERNELS_CONV_CUDNN)
        return;
    for (int64_t rows = 16; d->buckets_count < CUDA_BUCKETS_MAX; rows = next_bucket(rows)) {
        const int64_t r = rows < most ? rows : most;
        if (r > CUDA_GRAPH_ROWS_MAX)
            break;
        d->buckets[d->buckets_count++] = (struct cuda_bucket){.rows = r};
        if (r == most)
            break;
    }
}

void cuda_graphs_free(struct kernels_device *d) {
    for (int i = 0; i < d->buckets_count; i++)
        gpu_graph_del(d->buckets[i].graph);
    d->buckets_count = 0;
}

void cuda_graphs_begin(struct kernels_device *d, const struct batch *b) {
    const int64_t rows = b->tape_rows[b->levels];
    d->mode = CUDA_EAGER;
    d->bucket = NULL;
    d->launch_waits = false;
    d->signature = UINT64_C(14695981039346656037);
    if (!d->has_plans) /* the libraries choose their algorithms while the first batch runs */
        return;
    for (int i = 0; i < d->buckets_count && !d->bucket; i++)
        if (d->buckets[i].rows >= rows)
            d->bucket = &d->buckets[i];
    if (!d->bucket)
        return;
    d->launch.grid = cuda_plan_count_bucket(d, b, d->bucket->rows);
    d->mode = d->bucket->graph ? CUDA_REPLAY : CUDA_RECORD;
    if (d->mode == CUDA_RECORD)
        cuda_note(d, gpu_capture_begin(d->stream));
}

void cuda_graphs_end(struct kernels_device *d) {
    if (d->mode == CUDA_RECORD) {
        struct gpu_graph *graph = NULL;
        const int error = gpu_capture_end(d->stream, &graph);
        cuda_note(d, error);
        if (error || d->error || d->failure.code != STATUS_OK) { /* part of it may be missing */
            gpu_graph_del(graph);
            return;
        }
        d->bucket->graph = graph;
        d->bucket->signature = d->signature;
        d->launch_waits = true;
    } else if (d->mode == CUDA_REPLAY) {
        if (d->signature != d->bucket->signature)
            cuda_fail(d, STATUS_INTERNAL,
                      "the operations of this batch are not those its graph was recorded from");
        d->launch_waits = true;
        cuda_graphs_launch(d);
    }
}

void cuda_graphs_launch(struct kernels_device *d) {
    if (!d->launch_waits)
        return;
    d->launch_waits = false;
    if (d->error == GPU_OK && d->failure.code == STATUS_OK)
        cuda_note(d, gpu_graph_launch(d->bucket->graph, d->stream));
}

/* FNV-1a over the eight bytes. */
static uint64_t mix(uint64_t hash, uint64_t value) {
    for (int i = 0; i < 8; i++)
        hash = (hash ^ (value >> (8 * i) & 0xFF)) * UINT64_C(1099511628211);
    return hash;
}

bool cuda_graphs_enter(struct kernels_device *d, const struct cuda_call *call) {
    if (d->error || d->failure.code != STATUS_OK)
        return false;
    if (!d->in_batch)
        return gpu_use(d->options.device_index) == GPU_OK;
    if (d->mode != CUDA_EAGER) {
        uint32_t number;
        memcpy(&number, &call->number, sizeof number);
        const uint64_t facts[] = {(uint64_t)call->operation,
                                  (uint64_t)(uintptr_t)call->y,
                                  (uint64_t)(uintptr_t)call->x,
                                  (uint64_t)(uintptr_t)call->w,
                                  (uint64_t)(uintptr_t)call->more,
                                  (uint64_t)call->first,
                                  (uint64_t)call->count,
                                  (uint64_t)call->channels,
                                  (uint64_t)call->act,
                                  number};
        for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
            d->signature = mix(d->signature, facts[i]);
    }
    return d->mode != CUDA_REPLAY;
}
