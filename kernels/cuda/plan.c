/* The tables of a batch: which rows belong to which clip. They lie in one block that is laid out alike on
 * both sides, and goes over in one copy. */
#include <string.h>

#include "base/arena.h"
#include "kernels/cuda/internal.h"

/* The block, as the host writes it. */
struct block {
    struct cuda_counts *counts;
    int32_t *offset, *samples, *rows_first, *cu_tokens, *token_row;
    struct cuda_tile *chunks_samples, *chunks_rows, *tiles_small, *tiles_large;
};

static void layout(struct block *t, const struct cuda_counts *most, struct arena *a) {
    const size_t clips = (size_t)most->clips;
    t->counts = arena_alloc(a, 1, sizeof *t->counts);
    t->offset = arena_alloc(a, clips, sizeof *t->offset);
    t->samples = arena_alloc(a, clips, sizeof *t->samples);
    t->rows_first = arena_alloc(a, clips, sizeof *t->rows_first);
    t->cu_tokens = arena_alloc(a, clips + 1, sizeof *t->cu_tokens);
    t->token_row = arena_alloc(a, (size_t)most->tokens, sizeof *t->token_row);
    t->chunks_samples = arena_alloc(a, (size_t)most->chunks_samples, sizeof *t->chunks_samples);
    t->chunks_rows = arena_alloc(a, (size_t)most->chunks_rows, sizeof *t->chunks_rows);
    t->tiles_small = arena_alloc(a, (size_t)most->tiles_small, sizeof *t->tiles_small);
    t->tiles_large = arena_alloc(a, (size_t)most->tiles_large, sizeof *t->tiles_large);
}

/* Pieces of `size` that `total` in `clips` clips can have at most: every clip's last one may be short. */
static int32_t count_pieces(int64_t total, int64_t size, int64_t clips) {
    return (int32_t)(total / size + clips);
}

/* At most: rows_first are the rows of level 1. */
static struct cuda_counts count_most(int64_t clips, int64_t samples, int64_t rows_first, int64_t rows) {
    return (struct cuda_counts){
        .clips = (int32_t)clips,
        .rows = (int32_t)rows,
        .tokens = (int32_t)rows,
        .samples = (int32_t)samples,
        .chunks_samples = count_pieces(samples, CUDA_CHUNK_SAMPLES, clips),
        .chunks_rows = count_pieces(rows_first, CUDA_CHUNK_ROWS, clips),
        .tiles_small = count_pieces(rows, CUDA_TILE_SMALL, clips),
        .tiles_large = count_pieces(rows, CUDA_TILE_LARGE, clips),
    };
}

static void layout_scratch(struct kernels_device *d, struct arena *a) {
    const struct cuda_counts *m = &d->most;
    const size_t k = (size_t)d->limits.first_kernel, moments = k * (k + 3) / 2;
    const size_t keys = (size_t)(m->tokens < CUDA_SCORES_KEYS_MAX ? m->tokens : CUDA_SCORES_KEYS_MAX);
    d->norm_partial = arena_alloc(a, (size_t)m->chunks_samples * 2, sizeof(double));
    d->norm_stats = arena_alloc(a, (size_t)m->clips * 2, sizeof(double));
    d->moments_partial = arena_alloc(a, (size_t)m->chunks_rows * moments, sizeof(double));
    d->moments = arena_alloc(a, (size_t)m->clips * moments, sizeof(double));
    d->scores = NULL;
    if (d->options.attention_way == KERNELS_ATTENTION_CUBLAS)
        d->scores = arena_alloc(a, (size_t)d->limits.heads * keys * ((keys + 7) / 8 * 8),
                                d->type == CUDA_BF16 ? 2 : sizeof(float));
}

int cuda_plan_reserve(struct kernels_device *d, struct status *st) {
    const struct kernels_limits *l = &d->limits;
    struct arena tables, scratch;
    struct block t;
    if (l->samples_max > INT32_MAX / 2)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "a batch of up to %lld samples: device cuda takes at most %d",
                          (long long)l->samples_max, INT32_MAX / 2);
    const int64_t rows_first = l->samples_max / (l->first_stride > 0 ? l->first_stride : 1);
    d->most = count_most(l->clips_max, l->samples_max, rows_first, l->tokens_max);
    arena_init_counting(&tables);
    layout(&t, &d->most, &tables);
    arena_init_counting(&scratch);
    layout_scratch(d, &scratch);
    if (tables.failed || scratch.failed)
        return status_set_no_memory(st, SIZE_MAX, "scratch of a GPU");
    d->tables_bytes = tables.used;
    if (cuda_memory_new(d, &d->tables_device, tables.used, "the tables of a batch", st) ||
        cuda_memory_new(d, &d->scratch, scratch.used, "scratch", st))
        return -1;
    const int error = gpu_pinned_new(&d->tables_host, tables.used);
    if (error)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%zu bytes of pinned memory: %s", tables.used,
                          gpu_error_text(error));
    scratch = (struct arena){.base = d->scratch, .bytes = scratch.used};
    layout_scratch(d, &scratch);
    tables = (struct arena){.base = d->tables_device, .bytes = tables.used};
    layout(&t, &d->most, &tables);
    d->launch.tables = (struct cuda_tables){
        .counts = t.counts,
        .offset = t.offset,
        .samples = t.samples,
        .rows_first = t.rows_first,
        .cu_tokens = t.cu_tokens,
        .token_row = t.token_row,
        .chunks_samples = t.chunks_samples,
        .chunks_rows = t.chunks_rows,
        .tiles_small = t.tiles_small,
        .tiles_large = t.tiles_large,
    };
    return 0;
}

/* Appends the pieces of a clip of n units. */
static void cut(struct cuda_tile *pieces, int32_t *count, int clip, int64_t n, int32_t size) {
    for (int64_t first = 0; first < n; first += size)
        pieces[(*count)++] = (struct cuda_tile){.clip = clip, .first = (int32_t)first};
}

static void fill(struct block *t, const struct batch *b) {
    struct cuda_counts *c = t->counts;
    *c = (struct cuda_counts){.clips = b->clips,
                              .rows = (int32_t)b->tape_rows[b->levels],
                              .tokens = (int32_t)batch_tokens(b),
                              .samples = (int32_t)b->tape_rows[0]};
    for (int i = 0; i < b->clips; i++) {
        const int64_t tokens = batch_rows(b, b->levels, i), first = b->offset[i] / b->step[b->levels];
        t->offset[i] = (int32_t)b->offset[i];
        t->samples[i] = (int32_t)batch_rows(b, 0, i);
        t->rows_first[i] = (int32_t)batch_rows(b, 1, i);
        t->cu_tokens[i] = (int32_t)b->cu_tokens[i];
        for (int64_t k = 0; k < tokens; k++)
            t->token_row[b->cu_tokens[i] + k] = (int32_t)(first + k);
        cut(t->chunks_samples, &c->chunks_samples, i, batch_rows(b, 0, i), CUDA_CHUNK_SAMPLES);
        cut(t->chunks_rows, &c->chunks_rows, i, batch_rows(b, 1, i), CUDA_CHUNK_ROWS);
        cut(t->tiles_small, &c->tiles_small, i, tokens, CUDA_TILE_SMALL);
        cut(t->tiles_large, &c->tiles_large, i, tokens, CUDA_TILE_LARGE);
    }
    t->cu_tokens[b->clips] = (int32_t)b->cu_tokens[b->clips];
}

void cuda_plan_batch(struct kernels_device *d, const struct batch *b) {
    struct arena a = {.base = d->tables_host, .bytes = d->tables_bytes};
    struct block t;
    if (b->clips > d->most.clips || b->tape_rows[0] > d->most.samples ||
        b->tape_rows[b->levels] > d->most.rows || batch_tokens(b) > d->most.tokens) {
        cuda_fail(d, STATUS_INTERNAL,
                  "a batch of %d clips and %lld samples is over what the device was reserved for", b->clips,
                  (long long)b->tape_rows[0]);
        return;
    }
    layout(&t, &d->most, &a);
    fill(&t, b);
    d->launch.grid = *t.counts;
    cuda_note(d, gpu_copy_in(d->tables_device, d->tables_host, d->tables_bytes, d->stream));
}

void cuda_plan_clips(struct kernels_device *d, int64_t clips) {
    struct cuda_counts *counts = d->tables_host; /* the first thing in it */
    *counts = (struct cuda_counts){.clips = (int32_t)clips};
    d->launch.grid = *counts;
    cuda_note(d, gpu_copy_in(d->tables_device, d->tables_host, sizeof *counts, d->stream));
    cuda_note(d, gpu_stream_wait(d->stream)); /* the next batch is laid out in the same place */
}

struct cuda_counts cuda_plan_count_bucket(const struct kernels_device *d, const struct batch *b,
                                          int64_t rows) {
    /* Samples and rows of the last level differ by the same whole number of steps on every tape. */
    const int64_t step = b->step[b->levels], more = b->tape_rows[0] - b->tape_rows[b->levels] * step;
    int64_t samples = rows * step + more;
    if (samples > d->limits.samples_max)
        samples = d->limits.samples_max;
    const int64_t clips = rows < d->limits.clips_max ? rows : d->limits.clips_max;
    return count_most(clips, samples, samples / b->step[1], rows);
}
