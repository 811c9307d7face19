/* timbre_core invariance: a clip's bits alone, in batches of any composition and order, on two workers at
 * once, and with and without CUDA graphs; and agree: how far they are from those of the CPU. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sha256.h"
#include "bench/gpu/core.h"

enum { LARGEST_BATCH = 64, SHUFFLES = 3 };

struct bench {
    const struct core_options *o;
    struct model *m;
    struct model_worker *w;
    struct clips c;
    struct core_results alone, now;
    struct text out;
    int checks, different; /* in all */
};

static int64_t count_samples(const struct bench *b, int longest_count) {
    const int64_t longest = model_count_slot(b->m, (int64_t)(b->o->longest_s * CLIPS_RATE_HZ));
    int64_t all = 0;
    for (int i = 0; i < b->c.count; i++)
        all += model_count_slot(b->m, b->c.counts[i]);
    return all < longest * longest_count ? all : longest * longest_count;
}

/* Opens model, worker and clips. */
static int open_bench(struct bench *b, const struct core_options *o, struct status *st) {
    *b = (struct bench){.o = o};
    text_init_growing(&b->out);
    if (model_new(&b->m, o->arguments[0], &o->model, st))
        return -1;
    const int64_t shortest = model_get_info(b->m)->min_samples;
    int64_t longest = (int64_t)(o->longest_s * CLIPS_RATE_HZ);
    if (longest < shortest)
        longest = shortest;
    if (clips_make(&b->c, o->clips, shortest, longest, o->seed, st) ||
        core_results_init(&b->alone, b->m, o->clips, st) || core_results_init(&b->now, b->m, o->clips, st))
        return -1;
    return core_worker_new(&b->w, b->m, o, count_samples(b, 16), o->clips, st);
}

static void close_bench(struct bench *b) {
    model_worker_del(b->w);
    core_results_free(&b->alone);
    core_results_free(&b->now);
    clips_free(&b->c);
    model_del(b->m);
    text_free(&b->out);
}

static int run_alone(struct bench *b, struct model_worker *w, struct core_results *r, struct status *st) {
    for (int i = 0; i < b->c.count; i++)
        if (core_run_batch(w, &b->c, &i, 1, r, st))
            return status_prefix(st, "clip %d alone", i);
    return 0;
}

/* Runs all clips of `order` in batches of 1 .. `together` clips, of as many as the worker has room for; with
 * `random` the sizes differ. */
static int run_batches(struct bench *b, struct model_worker *w, const int *order, int together,
                       uint32_t *random, struct core_results *r, struct status *st) {
    const int64_t room =
        b->o->worker_s > 0 ? (int64_t)(b->o->worker_s * CLIPS_RATE_HZ) : count_samples(b, 16);
    for (int first = 0; first < b->c.count;) {
        const int most = random ? 1 + (int)(clips_random(random) % (uint32_t)together) : together;
        int64_t samples = 0;
        int count = 0;
        while (first + count < b->c.count && count < most) {
            const int64_t slot = model_count_slot(b->m, b->c.counts[order[first + count]]);
            if (count && samples + slot > room)
                break;
            samples += slot;
            count++;
        }
        if (core_run_batch(w, &b->c, order + first, count, r, st))
            return status_prefix(st, "a batch of %d clips", count);
        first += count;
    }
    return 0;
}

/* Compares with the clips alone, adds a line to the answer, and forgets the results. */
static void check(struct bench *b, const char *name, struct core_results *r, int64_t start_ns) {
    const size_t bytes = (size_t)r->width * sizeof(float);
    int different = 0, first = -1;
    double worst = 0;
    for (int i = 0; i < b->c.count; i++) {
        const float *x = r->values + (size_t)(i * r->width), *y = b->alone.values + (size_t)(i * r->width);
        if (memcmp(x, y, bytes) == 0)
            continue;
        first = different++ ? first : i;
        for (int k = 0; k < r->width; k++)
            worst = fmax(worst, fabs((double)x[k] - y[k]));
    }
    text_printf(&b->out, "%s{\"name\":\"%s\",\"different\":%d", b->checks++ ? "," : "", name, different);
    if (different) {
        text_printf(&b->out, ",\"first\":%d,\"first_samples\":%lld,\"largest\":", first,
                    (long long)b->c.counts[first]);
        text_put_json_double(&b->out, worst);
    }
    text_printf(&b->out, ",\"ms\":%.1f}", clock_elapsed_ms(start_ns));
    b->different += different;
    memset(r->values, 0xff, (size_t)r->clips * bytes); /* a NaN: what is not written is found */
}

static void shuffle(int *order, int count, uint32_t *random) {
    for (int i = count - 1; i > 0; i--) {
        const int k = (int)(clips_random(random) % (uint32_t)(i + 1)), kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
}

static int check_batches(struct bench *b, struct status *st) {
    static const int sizes[] = {2, 7, LARGEST_BATCH, CORE_CLIPS_MAX};
    uint32_t random = b->o->seed + 77;
    char name[64];
    int *order = calloc((size_t)b->c.count, sizeof *order);
    if (!order)
        return status_set_no_memory(st, sizeof *order, "an order");
    int result = 0;
    for (int i = 0; i < b->c.count; i++)
        order[i] = i;
    for (size_t i = 0; result == 0 && i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t start = clock_now_ns();
        result = run_batches(b, b->w, order, sizes[i], NULL, &b->now, st);
        snprintf(name, sizeof name, sizes[i] == CORE_CLIPS_MAX ? "as many as fit" : "batches of %d",
                 sizes[i]);
        check(b, name, &b->now, start);
    }
    for (int i = 0; i < b->c.count; i++)
        order[i] = b->c.count - 1 - i;
    for (int i = 0; result == 0 && i <= SHUFFLES; i++) {
        const int64_t start = clock_now_ns();
        result = run_batches(b, b->w, order, 33, i ? &random : NULL, &b->now, st);
        snprintf(name, sizeof name, i ? "shuffled, of any size, %d" : "reversed, batches of 33", i);
        check(b, name, &b->now, start);
        shuffle(order, b->c.count, &random);
    }
    free(order);
    return result;
}

/* ---- two workers at once ---- */

struct pair {
    struct bench *b;
    struct model_worker *w;
    struct core_results r;
    struct status st;
    uint32_t random;
    int result;
};

static void *run_pair(void *arg) {
    struct pair *p = arg;
    int *order = calloc((size_t)p->b->c.count, sizeof *order);
    for (int i = 0; order && i < p->b->c.count; i++)
        order[i] = i;
    if (order)
        shuffle(order, p->b->c.count, &p->random);
    p->result = order ? run_batches(p->b, p->w, order, 9, &p->random, &p->r, &p->st) : -1;
    free(order);
    return NULL;
}

static int check_pair(struct bench *b, struct status *st) {
    struct pair pairs[2] = {{.b = b, .random = b->o->seed + 5}, {.b = b, .random = b->o->seed + 6}};
    pthread_t threads[2];
    const int64_t start = clock_now_ns();
    int started = 0, result = 0;
    for (int i = 0; i < 2 && result == 0; i++) {
        result = core_results_init(&pairs[i].r, b->m, b->c.count, st) ||
                 core_worker_new(&pairs[i].w, b->m, b->o, count_samples(b, 16), b->c.count, st);
        if (result == 0 && pthread_create(&threads[i], NULL, run_pair, &pairs[i]) != 0)
            result = status_set(st, STATUS_RESOURCE_EXHAUSTED, "no thread");
        started += result == 0;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        if (pairs[i].result && result == 0) {
            *st = pairs[i].st;
            result = status_prefix(st, "two workers at once");
        }
    }
    for (int i = 0; i < started; i++)
        check(b, i ? "two workers at once, the second" : "two workers at once, the first", &pairs[i].r,
              start);
    for (int i = 0; i < 2; i++) {
        core_results_free(&pairs[i].r);
        model_worker_del(pairs[i].w);
    }
    return result;
}

/* The other of with and without CUDA graphs. */
static int check_other_launches(struct bench *b, struct status *st) {
    struct model_options options = b->o->model;
    struct model *m = NULL;
    struct model_worker *w = NULL;
    const int64_t start = clock_now_ns();
    options.cuda_eager = !options.cuda_eager;
    int result = model_new(&m, b->o->arguments[0], &options, st) ||
                 core_worker_new(&w, m, b->o, count_samples(b, 16), b->c.count, st) ||
                 run_alone(b, w, &b->now, st);
    check(b, options.cuda_eager ? "alone without graphs" : "alone with graphs", &b->now, start);
    model_worker_del(w);
    model_del(m);
    return result;
}

/* What is not finite, or the same for every clip, is no result. */
static bool is_sane(const struct core_results *r) {
    bool differs = false;
    for (int i = 0; i < r->clips * r->width; i++)
        if (!isfinite(r->values[i]))
            return false;
    for (int i = 1; i < r->clips && !differs; i++)
        differs =
            memcmp(r->values, r->values + (size_t)(i * r->width), (size_t)r->width * sizeof(float)) != 0;
    return differs;
}

int core_invariance(const struct core_options *o) {
    struct bench b;
    struct status st = {0};
    char digest[SHA256_HEX_BYTES];
    int64_t start = clock_now_ns();
    if (open_bench(&b, o, &st) || run_alone(&b, b.w, &b.alone, &st)) {
        (void)core_print_error(o->arguments[0], &st, b.w);
        close_bench(&b);
        return 1;
    }
    const double alone_ms = clock_elapsed_ms(start);
    core_put_device(&b.out, b.m);
    text_put(&b.out, ",\"checks\":[");
    start = clock_now_ns();
    int result = run_alone(&b, b.w, &b.now, &st);
    check(&b, "alone again", &b.now, start);
    result = result || check_batches(&b, &st) || check_pair(&b, &st) || check_other_launches(&b, &st) ||
             sha256_memory(digest, b.alone.values,
                           (size_t)b.alone.clips * (size_t)b.alone.width * sizeof(float), &st);
    const bool sane = is_sane(&b.alone);
    text_printf(&b.out, "],\"clips\":%d,\"audio_s\":%.1f,\"alone_ms\":%.1f,\"sane\":%s,\"different\":%d",
                b.c.count, b.c.audio_s, alone_ms, sane ? "true" : "false", b.different);
    if (result) {
        (void)core_print_error(o->arguments[0], &st, b.w);
    } else {
        text_printf(&b.out, ",\"digest\":\"%s\"}", digest);
        core_print(&b.out);
    }
    close_bench(&b);
    return result || b.different || !sane;
}

/* ---- beside the CPU ---- */

struct difference {
    double logits, embedding, errors, squares; /* largest of a logit and of an embedding; sums of squares */
    int tops;                                  /* clips whose first label is the same */
    double swap; /* of the others: by how much the CPU prefers its own label, at most */
};

static int find_top(const float *x, int n) {
    int top = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[top])
            top = i;
    return top;
}

static struct difference compare(const struct core_results *x, const struct core_results *y) {
    struct difference d = {0};
    for (int i = 0; i < x->clips; i++) {
        const float *a = x->values + (size_t)(i * x->width), *b = y->values + (size_t)(i * x->width);
        const int top = find_top(a, x->labels), expected = find_top(b, x->labels);
        d.tops += top == expected;
        d.swap = fmax(d.swap, (double)b[expected] - b[top]);
        for (int k = 0; k < x->width; k++) {
            const double e = fabs((double)a[k] - b[k]);
            double *most = k < x->labels ? &d.logits : &d.embedding;
            if (!(e <= *most))
                *most = e;
            if (k >= x->labels) {
                d.errors += e * e;
                d.squares += (double)b[k] * b[k];
            }
        }
    }
    return d;
}

int core_agree(const struct core_options *o) {
    struct bench b;
    struct status st = {0};
    struct model_options cpu = {.device = "cpu", .threads = o->model.threads};
    struct model *m = NULL;
    struct model_worker *w = NULL;
    int result = open_bench(&b, o, &st) || run_alone(&b, b.w, &b.now, &st);
    if (result == 0)
        result = model_new(&m, o->arguments[0], &cpu, &st) ||
                 model_worker_new(&w, m, 0, count_samples(&b, 1), 1, &st) || run_alone(&b, w, &b.alone, &st);
    if (result) {
        (void)core_print_error(o->arguments[0], &st, b.w);
    } else {
        const struct difference d = compare(&b.now, &b.alone);
        core_put_device(&b.out, b.m);
        text_printf(&b.out,
                    ",\"clips\":%d,\"audio_s\":%.1f,\"sane\":%s,\"same_top\":%d,\"logits\":", b.c.count,
                    b.c.audio_s, is_sane(&b.now) && is_sane(&b.alone) ? "true" : "false", d.tops);
        text_put_json_double(&b.out, d.logits);
        text_put(&b.out, ",\"swap\":");
        text_put_json_double(&b.out, d.swap);
        text_put(&b.out, ",\"embedding\":");
        text_put_json_double(&b.out, d.embedding);
        text_put(&b.out, ",\"embedding_rms\":");
        text_put_json_double(&b.out, sqrt(d.errors / (d.squares > 0 ? d.squares : 1)));
        text_put(&b.out, "}");
        core_print(&b.out);
    }
    model_worker_del(w);
    model_del(m);
    close_bench(&b);
    return result;
}
