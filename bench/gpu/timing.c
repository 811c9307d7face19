/* timbre_core time: how long batches take, with their audio in host memory at the start and their results
 * there at the end; and memory: that they allocate nothing. */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/gpu/core.h"
#include "models/model_internal.h"

enum { ROUNDS_MAX = 1000, CHECKED_CLIPS_MAX = 16, WARM_ROUNDS = 3 };

/* A batch to be timed. */
struct workload {
    const char *name; /* "8x10": 8 clips of 10 s; "mixed:32": 32 of 1 to 30 s */
    struct clips clips;
    int64_t slots;
    double flop;
};

/* Multiplications and additions of a clip, counted as two each: what the layers need, whatever a kernel does.
 */
static double count_flop(const struct config *c, int64_t samples) {
    double flop = 0;
    for (int l = 0; l < c->conv.levels; l++)
        flop += 2.0 * (double)batch_count_rows(&c->conv, l + 1, samples) * c->conv_dim[l] *
                c->conv.kernel[l] * (l ? c->conv_dim[l - 1] : 1);
    const double t = (double)batch_count_rows(&c->conv, c->conv.levels, samples), h = c->hidden;
    flop += 2 * t * c->conv_dim[c->conv.levels - 1] * h;
    flop += 2 * t * h * (h / c->pos_conv_groups) * c->pos_conv_kernel;
    return flop + c->layers * (2 * t * h * h * 4 + 2 * t * h * c->intermediate * 2 + 4 * t * t * h);
}

static int make_workload(struct workload *w, const char *name, const struct model *m, struct status *st) {
    int clips = 0;
    double seconds = 0;
    char rest;
    const bool mixed = sscanf(name, "mixed:%d%c", &clips, &rest) == 1;
    if (!mixed &&
        (sscanf(name, "%dx%lf%c", &clips, &seconds, &rest) != 2 || !(seconds > 0 && seconds <= 3600)))
        return status_set(st, STATUS_INVALID_ARGUMENT, "workload %s: neither like 8x10 nor like mixed:32",
                          name);
    if (clips < 1 || clips > CORE_CLIPS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "workload %s: 1 to %d clips", name, CORE_CLIPS_MAX);
    const int64_t n = (int64_t)(seconds * CLIPS_RATE_HZ);
    *w = (struct workload){.name = name};
    if (clips_make(&w->clips, clips, mixed ? CLIPS_RATE_HZ : n, mixed ? 30 * CLIPS_RATE_HZ : n, 3, st))
        return -1;
    for (int i = 0; i < clips; i++) {
        w->slots += model_count_slot(m, w->clips.counts[i]);
        w->flop += count_flop(&m->config, w->clips.counts[i]);
    }
    return 0;
}

/* Its clips have the bits that they have alone, and they are numbers. */
static int verify(struct workload *load, struct model_worker *w, const struct model *m, struct status *st) {
    struct core_results together, alone;
    const int n = load->clips.count;
    int result = 0;
    if (core_results_init(&together, m, n, st))
        return -1;
    if (core_results_init(&alone, m, n, st)) {
        core_results_free(&together);
        return -1;
    }
    result = core_run_batch(w, &load->clips, NULL, n, &together, st);
    for (int k = 0; result == 0 && k < CHECKED_CLIPS_MAX && k < n; k++) {
        const int i = n <= CHECKED_CLIPS_MAX ? k : k * (n - 1) / (CHECKED_CLIPS_MAX - 1);
        const size_t at = (size_t)i * (size_t)alone.width, bytes = (size_t)alone.width * sizeof(float);
        result = core_run_batch(w, &load->clips, &i, 1, &alone, st);
        if (result == 0 && memcmp(alone.values + at, together.values + at, bytes) != 0)
            result = status_set(st, STATUS_INTERNAL, "%s: clip %d has other bits than alone", load->name, i);
        if (result == 0 && !isfinite(alone.values[at]))
            result = status_set(st, STATUS_INTERNAL, "%s: clip %d has no number for a logit", load->name, i);
    }
    core_results_free(&together);
    core_results_free(&alone);
    return result;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* ---- one worker: latency ---- */

static int time_workload(struct workload *load, struct model_worker *w, const struct model *m,
                         const struct core_options *o, struct status *st) {
    static double ms[ROUNDS_MAX];
    struct core_results r;
    struct text out;
    int rounds = 0, result = core_results_init(&r, m, load->clips.count, st);
    const int most = o->rounds < ROUNDS_MAX ? o->rounds : ROUNDS_MAX;
    for (int i = 0; result == 0 && i < WARM_ROUNDS; i++)
        result = core_run_batch(w, &load->clips, NULL, load->clips.count, &r, st);
    const int64_t begin = clock_now_ns();
    while (result == 0 && rounds < most && (rounds < 3 || clock_elapsed_ms(begin) < o->budget_s * 1e3)) {
        const int64_t start = clock_now_ns();
        result = core_run_batch(w, &load->clips, NULL, load->clips.count, &r, st);
        ms[rounds++] = clock_elapsed_ms(start);
    }
    core_results_free(&r);
    if (result)
        return -1;
    qsort(ms, (size_t)rounds, sizeof *ms, compare_doubles);
    text_init_growing(&out);
    core_put_device(&out, m);
    text_printf(&out,
                ",\"workload\":\"%s\",\"clips\":%d,\"audio_s\":%.3f,\"gflop\":%.2f,\"rounds\":%d,"
                "\"best_ms\":%.5f,\"median_ms\":%.5f,\"p90_ms\":%.5f,\"samples\":[",
                load->name, load->clips.count, load->clips.audio_s, load->flop * 1e-9, rounds, ms[0],
                ms[rounds / 2], ms[rounds * 9 / 10]);
    for (int i = 0; i < load->clips.count; i++)
        text_printf(&out, "%s%lld", i ? "," : "", (long long)load->clips.counts[i]);
    text_put(&out, "]}");
    core_print(&out);
    return 0;
}

/* ---- several workers: throughput ---- */

struct turn {
    struct workload *load;
    struct model_worker *w;
    const struct model *m;
    struct status st;
    double budget_ms;
    int batches, result;
};

static void *run_turn(void *arg) {
    struct turn *t = arg;
    struct core_results r;
    const int64_t begin = clock_now_ns();
    t->result = core_results_init(&r, t->m, t->load->clips.count, &t->st);
    while (t->result == 0 && (t->batches < 3 || clock_elapsed_ms(begin) < t->budget_ms)) {
        t->result = core_run_batch(t->w, &t->load->clips, NULL, t->load->clips.count, &r, &t->st);
        t->batches++;
    }
    core_results_free(&r);
    return NULL;
}

static int time_together(struct workload *load, struct model_worker **workers, const struct model *m,
                         const struct core_options *o, struct status *st) {
    pthread_t threads[64];
    struct turn turns[64];
    struct text out;
    int started = 0, batches = 0, result = 0;
    const int64_t start = clock_now_ns();
    for (; started < o->workers; started++) {
        turns[started] =
            (struct turn){.load = load, .w = workers[started], .m = m, .budget_ms = o->budget_s * 1e3 / 2};
        if (pthread_create(&threads[started], NULL, run_turn, &turns[started]) != 0) {
            result = status_set(st, STATUS_RESOURCE_EXHAUSTED, "no thread");
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        batches += turns[i].batches;
        if (turns[i].result && result == 0) {
            *st = turns[i].st;
            result = -1;
        }
    }
    const double ms = clock_elapsed_ms(start);
    if (result)
        return -1;
    text_init_growing(&out);
    core_put_device(&out, m);
    text_printf(&out,
                ",\"workload\":\"%s\",\"workers\":%d,\"batches\":%d,\"ms_per_batch\":%.5f,\"audio_s\":%.3f}",
                load->name, o->workers, batches, ms / batches, load->clips.audio_s);
    core_print(&out);
    return 0;
}

int core_time(const struct core_options *o) {
    enum { WORKLOADS_MAX = 32 };
    static struct workload loads[WORKLOADS_MAX];
    struct model_worker *workers[64] = {NULL};
    struct model *m = NULL;
    struct status st = {0};
    int count = 0, clips = 1, result = model_new(&m, o->arguments[0], &o->model, &st);
    int64_t samples = 1;
    for (char **name = o->arguments + 1; result == 0 && *name && count < WORKLOADS_MAX; name++) {
        result = make_workload(&loads[count], *name, m, &st);
        samples = loads[count].slots > samples ? loads[count].slots : samples;
        clips = loads[count].clips.count > clips ? loads[count].clips.count : clips;
        count += result == 0;
    }
    for (int i = 0; result == 0 && i < o->workers; i++)
        result = core_worker_new(&workers[i], m, o, samples, clips, &st);
    for (int i = 0; result == 0 && i < count; i++)
        result = verify(&loads[i], workers[0], m, &st) || time_workload(&loads[i], workers[0], m, o, &st) ||
                 (o->workers > 1 && time_together(&loads[i], workers, m, o, &st));
    if (result)
        (void)core_print_error(o->arguments[0], &st, workers[0]);
    for (int i = 0; i < o->workers; i++)
        model_worker_del(workers[i]);
    for (int i = 0; i < count; i++)
        clips_free(&loads[i].clips);
    model_del(m);
    return result != 0;
}

/* ---- memory ---- */

/* Free memory of the GPU that this thread uses, from the driver; -1 when it cannot be told. */
static int64_t get_free_bytes(void) {
    static int (*get_info)(size_t * available, size_t * total);
    size_t available = 0, total = 0;
    if (!get_info) {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (driver)
            *(void **)&get_info = dlsym(driver, "cuMemGetInfo_v2");
    }
    return get_info && get_info(&available, &total) == 0 ? (int64_t)available : -1;
}

static int64_t get_resident_bytes(void) {
    long long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lld %lld", &pages, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

/* Batches of many sizes, `rounds` times, after one round that does not count. */
static int run_rounds(const struct core_options *o, struct model_worker *w, struct clips *c,
                      struct core_results *r, int64_t *device, int64_t *host, struct status *st) {
    static const int sizes[] = {1, 3, 17, 64};
    for (int round = 0; round <= o->rounds; round++) {
        if (round <= 1) {
            device[0] = get_free_bytes();
            host[0] = get_resident_bytes();
        }
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            for (int i = 0; i + sizes[k] <= c->count; i += sizes[k]) {
                int order[64];
                for (int j = 0; j < sizes[k]; j++)
                    order[j] = i + j;
                if (core_run_batch(w, c, order, sizes[k], r, st))
                    return -1;
            }
    }
    device[1] = get_free_bytes();
    host[1] = get_resident_bytes();
    return 0;
}

int core_memory(const struct core_options *o) {
    struct model *m = NULL;
    struct model_worker *workers[64] = {NULL};
    struct clips c = {0};
    struct core_results r = {0};
    struct status st = {0};
    struct text out;
    int64_t device[2] = {-1, -1}, host[2] = {0, 0}, samples = 0;
    int result = model_new(&m, o->arguments[0], &o->model, &st) ||
                 clips_make(&c, o->clips, model_get_info(m)->min_samples,
                            (int64_t)(o->longest_s * CLIPS_RATE_HZ), o->seed, &st) ||
                 core_results_init(&r, m, c.count, &st);
    for (int i = 0; result == 0 && i < c.count; i++)
        samples += model_count_slot(m, c.counts[i]);
    for (int i = 0; result == 0 && i < o->workers; i++)
        result = core_worker_new(&workers[i], m, o, samples, c.count, &st);
    if (result == 0)
        result = run_rounds(o, workers[0], &c, &r, device, host, &st);
    if (result) {
        (void)core_print_error(o->arguments[0], &st, workers[0]);
    } else {
        text_init_growing(&out);
        core_put_device(&out, m);
        text_printf(&out,
                    ",\"rounds\":%d,\"device_free_bytes\":[%lld,%lld],\"host_bytes\":[%lld,%lld],"
                    "\"weight_bytes\":%lld,\"worker_bytes\":%lld}",
                    o->rounds, (long long)device[0], (long long)device[1], (long long)host[0],
                    (long long)host[1], (long long)model_get_info(m)->weight_bytes,
                    (long long)model_worker_get_bytes(workers[0]));
        core_print(&out);
    }
    for (int i = 0; i < o->workers; i++)
        model_worker_del(workers[i]);
    core_results_free(&r);
    clips_free(&c);
    model_del(m);
    return result;
}
