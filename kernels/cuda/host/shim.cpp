/* The scheduler of the shim: fibers, barriers, warps. With ThreadSanitizer this file is compiled without it,
 * and with SHIM_TSAN: what the scheduler does must not order the threads it runs. */
#include "kernels/cuda/host/shim.h"

#include <numeric>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/host/fiber.h"
#include "kernels/cuda/host/record.h"

enum { THREADS_MAX = 1024, LANES = 32, SHARED_BYTES_MAX = 227 * 1024 };

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* Where the linker put the __shared__ arrays of all kernels. The variable makes sure that the section exists.
 */
extern "C" {
extern unsigned char __start_cu_shared[] __attribute__((visibility("hidden")));
extern unsigned char __stop_cu_shared[] __attribute__((visibility("hidden")));
}
__attribute__((section("cu_shared"), used, aligned(64))) static uint64_t section_exists;

enum state { RUNS, WAITS_BARRIER, WAITS_WARP, HAS_RETURNED };

/* A thread of the block. */
struct thread {
    struct fiber *fiber;
    uint3 index;
    enum state state;
    shim_site site; /* where it waits */
    struct shim_copy *copies;
    int copies_count, copies_done, copies_max, groups;
};

/* Where threads meet: a block or a warp. Clocks alternate, or a thread that is still leaving one meeting
 * would be ordered after what a faster one does before the next. */
struct meeting {
    shim_site site;
    int arrived, generation, waiting[THREADS_MAX];
    char clock[2];
};

struct warp {
    struct meeting meeting;
    uint64_t values[2][LANES];
};

/* Everything about the kernel that runs: there is one at a time. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const shim_kernel *kernel;
    unsigned char *shared;
    struct thread threads[THREADS_MAX];
    int count, alive, started;
    int self;
    int order[THREADS_MAX]; /* in which threads start */
    int ready[THREADS_MAX]; /* a ring of those that can go on */
    int ready_first, ready_count;
    struct meeting barrier;
    struct warp warps[THREADS_MAX / LANES];
    char clock_begin, clock_end; /* of a block */
    uint64_t seed, random;
} world = {};

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* The kernel's name: LAUNCH's first argument. */
static int name_length(const char *text) {
    int depth = 0, n = 0;
    for (; text[n] != '\0' && (depth > 0 || text[n] != ','); n++) {
        depth += text[n] == '(' || text[n] == '<' ? 1 : text[n] == ')' || text[n] == '>' ? -1 : 0;
    }
    return n;
}

static void print_threads(void) {
    static const char *const text[] = {"run", "wait for the block at", "wait for the warp at",
                                       "have returned"};
    for (int first = 0, last; first < world.count; first = last) {
        const struct thread *a = &world.threads[first];
        for (last = first + 1; last < world.count; last++) {
            const struct thread *b = &world.threads[last];
            if (b->state != a->state || (a->state != HAS_RETURNED && b->site.id != a->site.id)) {
                break;
            }
        }
        fprintf(stderr, "    threads %d to %d %s", first, last - 1, text[a->state]);
        if (a->state == WAITS_BARRIER || a->state == WAITS_WARP) {
            fprintf(stderr, " %s:%d", a->site.file, a->site.line);
        }
        fputc('\n', stderr);
    }
}

static void fail(const char *format, ...) {
    const shim_kernel *k = world.kernel;
    va_list list;
    fputs("shim: ", stderr);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n  in kernel %.*s, launched at %s:%d, block (%u, %u, %u), thread (%u, %u, %u)\n",
            name_length(k->text), k->text, k->site.file, k->site.line, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z);
    abort();
}

/* xorshift64* (Marsaglia 2003, Vigna 2016) */
static unsigned random_below(unsigned n) {
    world.random ^= world.random >> 12;
    world.random ^= world.random << 25;
    world.random ^= world.random >> 27;
    return static_cast<unsigned>((world.random * 2685821657736338717u) >> 33) % n;
}

/* In the order of the seed: as they are, backwards, or shuffled. */
static void arrange(int *a, int n) {
    if (world.seed == 0) {
        return;
    }
    for (int i = 0; world.seed == 1 && i < n / 2; i++) {
        const int x = a[i];
        a[i] = a[n - 1 - i];
        a[n - 1 - i] = x;
    }
    for (int i = n - 1; world.seed > 1 && i > 0; i--) {
        const unsigned j = random_below(static_cast<unsigned>(i) + 1);
        const int x = a[i];
        a[i] = a[j];
        a[j] = x;
    }
}

/* --- the scheduler -------------------------------------------------------------------------------------- */

static void make_ready(int number) {
    world.ready[(world.ready_first + world.ready_count++) % THREADS_MAX] = number;
}

/* A thread that was woken goes before one that has not begun: fewer stacks are in use. */
static bool should_start(void) {
    return world.started < world.count &&
           (world.ready_count == 0 || (world.seed > 1 && random_below(4) == 0));
}

static void be(int number) {
    world.self = number;
    threadIdx = world.threads[number].index;
}

/* Leaves the fiber for whoever can go on; returns when somebody comes back to it. */
static void leave(void) {
    if (should_start()) {
        fiber_switch(fiber_take());
    } else if (world.ready_count > 0) {
        const int next = world.ready[world.ready_first];
        world.ready_first = (world.ready_first + 1) % THREADS_MAX;
        world.ready_count--;
        be(next);
        fiber_switch(world.threads[next].fiber);
    } else if (world.alive == 0) {
        fiber_switch(fiber_main());
    } else {
        fputs("shim: deadlock\n", stderr);
        print_threads();
        fail("%d threads wait for ever", world.alive);
    }
}

static void run_thread(int number) {
    struct thread *t = &world.threads[number];
    t->fiber = fiber_current();
    t->state = RUNS;
    t->copies_count = t->copies_done = t->groups = 0;
    be(number);
    fiber_acquire(&world.clock_begin);
    world.kernel->run(world.kernel);
    fiber_release(&world.clock_end);
    t->state = HAS_RETURNED;
    world.alive--;
}

/* The life of a fiber: one thread after another, as long as they return without having waited for any other.
 */
void fiber_run(void) {
    for (;;) {
        do {
            run_thread(world.order[world.started++]);
        } while (!FIBER_IS_OF_ONE_THREAD && should_start());
        fiber_give_back();
        leave(); /* comes back for the next thread to start */
    }
}

/* Not by memset, which AddressSanitizer watches: there may be red zones between the arrays. */
__attribute__((no_sanitize("address"))) static void poison_static_shared(void) {
#ifdef __x86_64__
    void *to = __start_cu_shared;
    size_t bytes = static_cast<size_t>(__stop_cu_shared - __start_cu_shared);
    asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xff) : "memory");
#else
    for (volatile unsigned char *p = __start_cu_shared; p < __stop_cu_shared; p++) {
        *p = 0xff;
    }
#endif
}

static void run_block(void) {
    poison_static_shared();
    memset(world.shared, 0xff, world.kernel->shared_bytes);
    world.alive = world.count;
    world.started = 0;
    for (int i = 0; i < world.count; i++) {
        world.order[i] = i;
    }
    arrange(world.order, world.count);
    fiber_release(&world.clock_begin);
    leave();
    fiber_acquire(&world.clock_end);
    fiber_block_ends();
}

static void prepare(const shim_kernel *k) {
    const char *seed = getenv("TIMBRE_SHIM_SEED");
    world.seed = seed == NULL ? 0 : strtoull(seed, NULL, 10);
    world.random = world.seed + 1;
    world.kernel = k;
    blockDim = k->block;
    gridDim = k->grid;
    world.count = static_cast<int>(k->block.x * k->block.y * k->block.z);
    int number = 0;
    for (unsigned z = 0; z < k->block.z; z++) {
        for (unsigned y = 0; y < k->block.y; y++) {
            for (unsigned x = 0; x < k->block.x; x++) {
                world.threads[number++].index = uint3{x, y, z};
            }
        }
    }
}

/* Block i in the order of the seed: as they are, backwards, or by steps that meet all of them. */
static uint64_t nth_block(uint64_t i, uint64_t blocks) {
    if (world.seed < 2) {
        return world.seed == 0 ? i : blocks - 1 - i;
    }
    uint64_t step = world.seed % blocks + 1;
    while (std::gcd(step, blocks) != 1) {
        step++;
    }
    return (i * step + world.seed % blocks) % blocks;
}

static void run_grid(void *p) {
    const shim_kernel *k = static_cast<const shim_kernel *>(p);
    pthread_mutex_lock(&lock);
    prepare(k);
    world.shared = static_cast<unsigned char *>(malloc(k->shared_bytes));
    if (world.shared == NULL) {
        fail("no memory");
    }
    fiber_begin(world.count);
    const uint64_t blocks = static_cast<uint64_t>(k->grid.x) * k->grid.y * k->grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t b = nth_block(i, blocks);
        blockIdx =
            uint3{static_cast<unsigned>(b % k->grid.x), static_cast<unsigned>(b / k->grid.x % k->grid.y),
                  static_cast<unsigned>(b / k->grid.x / k->grid.y)};
        run_block();
    }
    free(world.shared);
    pthread_mutex_unlock(&lock);
}

/* CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". */
static bool is_possible(const shim_kernel *k) {
    const dim3 b = k->block, g = k->grid;
    return b.x > 0 && b.y > 0 && b.z > 0 && b.x <= THREADS_MAX && b.y <= THREADS_MAX && b.z <= 64 &&
           static_cast<uint64_t>(b.x) * b.y * b.z <= THREADS_MAX && g.x <= INT32_MAX && g.y <= UINT16_MAX &&
           g.z <= UINT16_MAX && k->shared_bytes <= SHARED_BYTES_MAX;
}

void shim_launch_kernel(shim_kernel *k, size_t bytes, struct gpu_stream *stream) {
    if (k->grid.x == 0 || k->grid.y == 0 || k->grid.z == 0) {
        return;
    }
    if (!is_possible(k)) {
        gpu_host_set_error(stream, GPU_INVALID_CONFIGURATION);
    } else if (!gpu_host_is_current(stream)) {
        gpu_host_set_error(stream, 400); /* cudaErrorInvalidResourceHandle */
    } else {
        gpu_host_put(stream, run_grid, k, bytes);
    }
}

/* --- blocks and warps ----------------------------------------------------------------------------------- */

void *shim_dynamic_shared(void) {
    return world.shared;
}

void shim_fail_alignment(const void *p, size_t bytes) {
    fail("a vector of %zu bytes at %p is misaligned", bytes, p);
}

unsigned shim_lane(void) {
    return static_cast<unsigned>(world.self) % LANES;
}

/* Waits until `count` threads are here, all at the same site. True for the last one, which then calls
 * meeting_end; the others are past it when they return. */
static bool meeting_begin(struct meeting *m, int count, enum state state, shim_site site) {
    struct thread *t = &world.threads[world.self];
    t->site = site;
    if (m->arrived > 0 && (m->site.id != site.id || m->site.line != site.line)) {
        fail("some threads are at %s:%d, others at %s:%d", m->site.file, m->site.line, site.file, site.line);
    }
    m->site = site;
    m->waiting[m->arrived++] = world.self;
    if (m->arrived == count) {
        return true;
    }
    t->state = state;
    leave();
    t->state = RUNS;
    return false;
}

static void meeting_end(struct meeting *m) {
    const int others = m->arrived - 1;
    m->arrived = 0;
    m->generation++;
    arrange(m->waiting, others);
    for (int i = 0; i < others; i++) {
        make_ready(m->waiting[i]);
    }
}

static void meet_in_order(struct meeting *m, int count, enum state state, shim_site site) {
    char *clock = &m->clock[m->generation & 1];
    fiber_release(clock);
    if (meeting_begin(m, count, state, site)) {
        meeting_end(m);
    }
    fiber_acquire(clock);
}

void shim_sync_threads(shim_site site) {
    meet_in_order(&world.barrier, world.count, WAITS_BARRIER, site);
}

static struct warp *own_warp(shim_site site, unsigned mask) {
    const int lanes = world.count - world.self / LANES * LANES;
    if (mask != 0xffffffffu || lanes < LANES) {
        fail("lanes are missing at %s:%d: mask %08x, %d lanes in the warp", site.file, site.line, mask,
             lanes < LANES ? lanes : LANES);
    }
    return &world.warps[world.self / LANES];
}

void shim_sync_warp(shim_site site, unsigned mask) {
    meet_in_order(&own_warp(site, mask)->meeting, LANES, WAITS_WARP, site);
}

/* Values are exchanged without ordering memory, as on a GPU. The last lane calls `combine` for all. */
static const uint64_t *exchange(shim_site site, unsigned mask, uint64_t value, void (*combine)(uint64_t *)) {
    struct warp *w = own_warp(site, mask);
    uint64_t *values = w->values[w->meeting.generation & 1];
    values[shim_lane()] = value;
    if (meeting_begin(&w->meeting, LANES, WAITS_WARP, site)) {
        if (combine != NULL) {
            combine(values);
        }
        meeting_end(&w->meeting);
    }
    return values;
}

const uint64_t *shim_exchange(shim_site site, unsigned mask, uint64_t value) {
    return exchange(site, mask, value, NULL);
}

template <typename T> static uint64_t to_bits(T x) {
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(x));
    return bits;
}
template <typename T> static T from_bits(uint64_t bits) {
    T x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* The butterfly of all lanes at once: after a step, lane i and its partner hold the same. */
template <typename T, typename F> static void butterfly(uint64_t *values, F combine) {
    for (int step = LANES / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; i++) {
            values[i] = to_bits(combine(from_bits<T>(values[i]), from_bits<T>(values[i + step])));
        }
    }
}
template <typename T> static void combine_sum(uint64_t *values) {
    butterfly<T>(values, [](T a, T b) { return a + b; });
}
static void combine_max(uint64_t *values) {
    butterfly<float>(values, [](float a, float b) { return fmaxf(a, b); });
}

float shim_warp_sum(shim_site site, float x) {
    return from_bits<float>(exchange(site, 0xffffffffu, to_bits(x), combine_sum<float>)[0]);
}
double shim_warp_sum(shim_site site, double x) {
    return from_bits<double>(exchange(site, 0xffffffffu, to_bits(x), combine_sum<double>)[0]);
}
float shim_warp_max(shim_site site, float x) {
    return from_bits<float>(exchange(site, 0xffffffffu, to_bits(x), combine_max)[0]);
}

/* --- tensor cores and copies ---------------------------------------------------------------------------- */

static bool is_shared(const void *p, size_t bytes) {
    const unsigned char *a = static_cast<const unsigned char *>(p), *b = a + bytes;
    return (a >= world.shared && b <= world.shared + world.kernel->shared_bytes) ||
           (a >= __start_cu_shared && b <= __stop_cu_shared);
}

static bool is_aligned(const void *p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

const uint64_t *shim_matrix_rows(shim_site site, const void *row, int matrices) {
    if (shim_lane() < 8 * static_cast<unsigned>(matrices) && !(is_aligned(row) && is_shared(row, 16))) {
        fail("ldmatrix at %s:%d: lane %u's row is not 16 aligned bytes of shared memory", site.file,
             site.line, shim_lane());
    }
    return exchange(site, 0xffffffffu, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(row)), NULL);
}

struct mma {
    float *d;
    const uint32_t *a, *b;
};

static float half_float(uint32_t pair, int i) {
    return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

/* All lanes' registers make the matrices (mma.cuh); every product is exact in fp32, and sums go by k. */
static void combine_mma(uint64_t *values) {
    const struct mma *lanes[LANES];
    float a[16][16], b[16][8];
    for (int l = 0; l < LANES; l++) {
        lanes[l] = reinterpret_cast<const struct mma *>(static_cast<uintptr_t>(values[l]));
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++) {
            a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = half_float(lanes[l]->a[i / 2], i % 2);
        }
        for (int i = 0; i < 4; i++) {
            b[2 * t + i % 2 + i / 2 * 8][g] = half_float(lanes[l]->b[i / 2], i % 2);
        }
    }
    for (int row = 0; row < 16; row++) {
        float sum[8];
        for (int n = 0; n < 8; n++) {
            sum[n] = lanes[row % 8 * 4 + n / 2]->d[row / 8 * 2 + n % 2];
        }
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < 8; n++) {
                sum[n] += a[row][k] * b[k][n];
            }
        }
        for (int n = 0; n < 8; n++) {
            lanes[row % 8 * 4 + n / 2]->d[row / 8 * 2 + n % 2] = sum[n];
        }
    }
}

void shim_mma(shim_site site, float *d, const uint32_t *a, const uint32_t *b) {
    const struct mma own = {d, a, b};
    exchange(site, 0xffffffffu, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(&own)), combine_mma);
}

void shim_copy_issue(shim_site site, void *shared, const void *global, bool valid) {
    if (!is_aligned(shared) || !is_shared(shared, 16)) {
        fail("cp.async at %s:%d: the target is not 16 aligned bytes of shared memory", site.file, site.line);
    }
    if (valid && (!is_aligned(global) || is_shared(global, 16))) {
        fail("cp.async at %s:%d: the source is not 16 aligned bytes of global memory", site.file, site.line);
    }
    struct thread *t = &world.threads[world.self];
    if (t->copies_count == t->copies_max) {
        t->copies_max = t->copies_max == 0 ? 64 : 2 * t->copies_max;
        void *p = realloc(t->copies, static_cast<size_t>(t->copies_max) * sizeof(*t->copies));
        if (p == NULL) {
            fail("no memory");
        }
        t->copies = static_cast<struct shim_copy *>(p);
    }
    t->copies[t->copies_count++] = shim_copy{shared, valid ? global : NULL, t->groups};
}

void shim_copy_commit(void) {
    world.threads[world.self].groups++;
}

bool shim_copy_next(int groups, struct shim_copy *copy) {
    struct thread *t = &world.threads[world.self];
    if (t->copies_done == t->copies_count || t->copies[t->copies_done].group >= t->groups - groups) {
        if (t->copies_done == t->copies_count) {
            t->copies_done = t->copies_count = 0;
        }
        return false;
    }
    *copy = t->copies[t->copies_done++];
    return true;
}
