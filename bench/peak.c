#include "bench/peak.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    CHAINS = 12, /* independent sums: enough to hide the latency of two units, few enough for 16 registers */
    CHAINS_BF16 = 16, /* vdpbf16ps takes longer, and has 32 registers */
    ROUNDS = 1 << 17, /* of one run: about a millisecond */
    RUNS = 15,
    THREADS_MAX = 256,
};

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 128")
#endif

typedef float (*peak_fn)(void);

static volatile float half = 0.5f; /* so that no compiler works any of it out beforehand */

/* The result is returned to be used. `step` adds the products of a and b to a sum, `total` makes one float of
 * two sums. */
#define DEFINE_PEAK(name, attributes, chains, sums, start, operands, set, step, total)                       \
    attributes static float name(void) {                                                                     \
        sums sum[chains];                                                                                    \
        operands a = set(half), b = set(half);                                                               \
        UNROLL                                                                                               \
        for (int i = 0; i < chains; i++)                                                                     \
            sum[i] = start((float)(i + 2) * half);                                                           \
        for (int r = 0; r < ROUNDS; r += 8) {                                                                \
            UNROLL                                                                                           \
            for (int i = 0; i < 8 * chains; i++)                                                             \
                sum[i % chains] = step(sum[i % chains], a, b);                                               \
        }                                                                                                    \
        float result = 0;                                                                                    \
        UNROLL                                                                                               \
        for (int i = 1; i < chains; i++)                                                                     \
            result += total(sum[0], sum[i]);                                                                 \
        return result;                                                                                       \
    }

typedef float lanes4 __attribute__((vector_size(16)));

static inline lanes4 set4(float x) {
    return (lanes4){x, x, x, x};
}

/* The sums go to a / (1 - b): no operation meets a denormal or an infinity. */
static inline lanes4 step4(lanes4 s, lanes4 a, lanes4 b) {
    return s * a + b;
}

static inline float total4(lanes4 x, lanes4 y) {
    return (x + y)[0];
}

DEFINE_PEAK(run_portable, , CHAINS, lanes4, set4, lanes4, set4, step4, total4)

#if defined(__x86_64__)
#define AVX2        __attribute__((target("avx2,fma")))
#define AVX512      __attribute__((target("avx512f")))
#define AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))
#define AVX512_VNNI __attribute__((target("avx512f,avx512vnni")))

AVX2 static inline float total_avx2(__m256 x, __m256 y) {
    return _mm256_cvtss_f32(_mm256_add_ps(x, y));
}

AVX512 static inline float total_avx512(__m512 x, __m512 y) {
    return _mm512_cvtss_f32(_mm512_add_ps(x, y));
}

AVX512_BF16 static inline __m512bh set_bf16(float x) {
    return _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(x));
}

AVX512_VNNI static inline __m512i start_int8(float x) {
    return _mm512_set1_epi32((int)x);
}

AVX512_VNNI static inline __m512i set_int8(float x) {
    return _mm512_set1_epi8((char)(2 * x));
}

/* The intrinsic makes gcc 12 copy every sum. */
AVX512_VNNI static inline __m512i step_int8(__m512i s, __m512i a, __m512i b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(a), "v"(b));
    return s;
}

AVX512_VNNI static inline float total_int8(__m512i x, __m512i y) {
    return (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(_mm512_add_epi32(x, y)));
}

DEFINE_PEAK(run_avx2, AVX2, CHAINS, __m256, _mm256_set1_ps, __m256, _mm256_set1_ps, _mm256_fmadd_ps,
            total_avx2)
DEFINE_PEAK(run_avx512, AVX512, CHAINS, __m512, _mm512_set1_ps, __m512, _mm512_set1_ps, _mm512_fmadd_ps,
            total_avx512)
/* These two grow by 0.5 and by 4 a step: far from what their sums can hold. */
DEFINE_PEAK(run_bf16, AVX512_BF16, CHAINS_BF16, __m512, _mm512_set1_ps, __m512bh, set_bf16, _mm512_dpbf16_ps,
            total_avx512)
DEFINE_PEAK(run_int8, AVX512_VNNI, CHAINS, __m512i, start_int8, __m512i, set_int8, step_int8, total_int8)
#endif

/* The processors this process had before any thread of it was pinned. */
static cpu_set_t processors;

__attribute__((constructor)) static void remember_processors(void) {
    CPU_ZERO(&processors);
    (void)sched_getaffinity(0, sizeof processors, &processors);
}

struct measurement {
    peak_fn run;
    pthread_barrier_t barrier;
    int64_t start_ns[RUNS][THREADS_MAX], end_ns[RUNS][THREADS_MAX];
};

struct thread {
    struct measurement *m;
    pthread_t id;
    int index;
    float result;
};

static void pin(int index) {
    int at = index % CPU_COUNT(&processors);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &processors) || at-- > 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        return;
    }
}

static void *thread_main(void *arg) {
    struct thread *t = arg;
    pin(t->index);
    for (int r = 0; r < RUNS; r++) {
        pthread_barrier_wait(&t->m->barrier);
        t->m->start_ns[r][t->index] = clock_now_ns();
        t->result += t->m->run();
        t->m->end_ns[r][t->index] = clock_now_ns();
    }
    return NULL;
}

/* The best run: each thread's own rate added up, as a late start of one is not the machine's fault. */
static double find_best(const struct measurement *m, int threads, double flop) {
    double best = 0;
    for (int r = 0; r < RUNS; r++) {
        double sum = 0;
        for (int t = 0; t < threads; t++)
            sum += flop / (double)(m->end_ns[r][t] - m->start_ns[r][t]);
        best = sum > best ? sum : best;
    }
    return best;
}

/* `terms`: multiply-adds of one step of all chains. */
static double measure(peak_fn run, int terms, int threads) {
    if (threads <= 0)
        threads = CPU_COUNT(&processors);
    if (threads < 1 || threads > THREADS_MAX)
        return 0.0;
    struct measurement *m = calloc(1, sizeof *m);
    struct thread *t = calloc((size_t)threads, sizeof *t);
    int started = 0;
    double best = 0;
    if (!m || !t || pthread_barrier_init(&m->barrier, NULL, (unsigned)threads) != 0)
        goto done;
    m->run = run;
    for (; started < threads; started++) {
        t[started] = (struct thread){.m = m, .index = started};
        if (pthread_create(&t[started].id, NULL, thread_main, &t[started]) != 0)
            abort(); /* the others wait at the barrier for ever */
    }
    for (int i = 0; i < started; i++)
        pthread_join(t[i].id, NULL);
    pthread_barrier_destroy(&m->barrier);
    best = find_best(m, threads, 2.0 * ROUNDS * terms);
done:
    free(t);
    free(m);
    return best;
}

double peak_measure_isa_gflops(const char *isa, int threads) {
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") ? measure(run_avx512, CHAINS * 16, threads) : 0.0;
    if (strcmp(isa, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                   ? measure(run_avx2, CHAINS * 8, threads)
                   : 0.0;
#endif
    return strcmp(isa, "portable") == 0 ? measure(run_portable, CHAINS * 4, threads) : 0.0;
}

double peak_measure_gflops(int threads) {
    static const char *const isas[] = {"avx512", "avx2", "portable"};
    const char *forced = getenv("TIMBRE_CPU");
    if (forced && *forced)
        return peak_measure_isa_gflops(forced, threads);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        double gflops = peak_measure_isa_gflops(isas[i], threads);
        if (gflops > 0)
            return gflops;
    }
    return 0.0;
}

double peak_measure_precision_gflops(const char *precision, int threads) {
    const char *forced = getenv("TIMBRE_CPU");
    if (strcmp(precision, "fp32") == 0)
        return peak_measure_gflops(threads);
    if (forced && *forced && strcmp(forced, "avx512") != 0)
        return 0.0;
#if defined(__x86_64__)
    if (strcmp(precision, "bf16") == 0 && __builtin_cpu_supports("avx512bf16"))
        return measure(run_bf16, CHAINS_BF16 * 32, threads);
    if (strcmp(precision, "int8") == 0 && __builtin_cpu_supports("avx512vnni"))
        return measure(run_int8, CHAINS * 64, threads);
#endif
    return 0.0;
}
