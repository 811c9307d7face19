/* peak: how many fp32 operations a second this machine's multiply-add units can do, which is what a kernel's
 * speed is compared with. Measured, not looked up: clocks move with load, heat and neighbours, so measure
 * beside the kernel. */
#ifndef TIMBRE_BENCH_PEAK_H
#define TIMBRE_BENCH_PEAK_H

/* GF/s of `threads` threads together, each pinned to a processor of its own; 0 takes all the process had at
 * its start. A multiply-add counts as two. The best of a few runs, about 20 ms in all. The instruction set is
 * the best one here, or that of the environment variable TIMBRE_CPU. 0.0 when threads cannot be had. */
double peak_measure_gflops(int threads);

/* The same for one of "avx512", "avx2" (with fma), "portable" (separate multiplications and additions, four
 * lanes); 0.0 when this processor does not have it. */
double peak_measure_isa_gflops(const char *isa, int threads);

#endif
