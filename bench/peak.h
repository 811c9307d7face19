/* peak: how many operations a second this machine's multiply-add units can do, which is what a kernel's speed
 * is compared with. Measured, not looked up: clocks move with load, heat and neighbours, so measure beside
 * the kernel. */
#ifndef TIMBRE_BENCH_PEAK_H
#define TIMBRE_BENCH_PEAK_H

/* GF/s of `threads` threads together, each pinned to a processor of its own; 0 takes all the process had at
 * its start. A multiply-add counts as two. The best of a few runs, about 20 ms in all. The instruction set is
 * the best one here, or that of the environment variable TIMBRE_CPU. 0.0 when threads cannot be had. */
double peak_measure_gflops(int threads);

/* The same for one of "avx512", "avx2" (with fma), "portable" (separate multiplications and additions, four
 * lanes); 0.0 when this processor does not have it. */
double peak_measure_isa_gflops(const char *isa, int threads);

/* The same for a precision: "fp32" as peak_measure_gflops; "bf16": products of bf16 added to fp32
 * (vdpbf16ps); "int8": products of bytes added to 32-bit integers (vpdpbusd), GOP/s. Both of 512 bits, so 0.0
 * where TIMBRE_CPU forces less, and where this processor does not have them. */
double peak_measure_precision_gflops(const char *precision, int threads);

#endif
