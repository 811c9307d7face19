/* kernels: what the tests of the shim launch. C++ stops here, as in kernels/cuda/launch.h. */
#ifndef TIMBRE_TESTS_SHIM_KERNELS_H
#define TIMBRE_TESTS_SHIM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* planted.cu: kernels that are right, and wrong when told so. */
enum planted_build { /* where the bug is found */
                     PLANTED_ANY,
                     PLANTED_STRICT,        /* any, with TIMBRE_SHIM_STRICT */
                     PLANTED_ADDRESS,       /* AddressSanitizer */
                     PLANTED_ADDRESS_GCC,   /* only gcc's */
                     PLANTED_UNDEFINED,     /* UndefinedBehaviorSanitizer */
                     PLANTED_UNDEFINED_GCC, /* only gcc's */
                     PLANTED_THREAD,        /* ThreadSanitizer */
};
struct planted {
    const char *name;
    enum planted_build build;
    const char *report; /* what is printed then */
    /* x, y [PLANTED_N] fp32 in device memory; x is 0, 1, 2, ... */
    void (*launch)(struct gpu_stream *s, float *y, const float *x, bool wrong);
};
enum { PLANTED_N = 64 };
extern const struct planted planted[];
extern const int planted_count;

/* numbers.cu */
void numbers_round(struct gpu_stream *s, uint16_t *y, const float *x, int n); /* to bf16, as bits */
void numbers_widen(struct gpu_stream *s, float *y, const uint16_t *x, int n); /* from bf16 */
void numbers_activate(struct gpu_stream *s, float *y, const float *x, int n, enum cuda_activation act,
                      bool templated);
/* y [n] bf16 by store4 of load4, store8 of load8, and pack_bf16 of unpack_bf16 of x [n]; n a multiple of 8 */
enum numbers_width { NUMBERS_4, NUMBERS_8, NUMBERS_PACK };
void numbers_copy(struct gpu_stream *s, uint16_t *y, const uint16_t *x, int n, enum numbers_width width);

/* warps.cu; y and x [n] with one thread for each, in blocks of `block`. */
enum warps_kind {
    WARPS_SUM,        /* warp_sum */
    WARPS_SUM_DOUBLE, /* the same in double, rounded */
    WARPS_BUTTERFLY,  /* the same by __shfl_xor_sync */
    WARPS_MAX,
    WARPS_BLOCK_SUM, /* of the block, through static shared memory */
};
void warps_reduce(struct gpu_stream *s, float *y, const float *x, enum warps_kind kind, int n, int block);
enum warps_shuffle { WARPS_INDEX, WARPS_XOR, WARPS_UP, WARPS_DOWN };
/* y [32]: what each lane gets of the lanes' numbers 0 .. 31 */
void warps_shuffle(struct gpu_stream *s, int *y, enum warps_shuffle kind, int by, int width);
/* y [3]: ballot, any, all of bit l of `bits` in lane l */
void warps_vote(struct gpu_stream *s, unsigned *y, unsigned bits);
/* y [blocks, threads, 6]: the indices of every thread and block, by x, y, z; blocks and threads counted
 * likewise */
void warps_indices(struct gpu_stream *s, int *y, const int grid[3], const int block[3]);

/* tensor.cu; of one warp */
/* y [32, 4]: registers of each lane after ldmatrix of x [32, 8] 16 bits, row r by lane r; matrices 4 or 2 */
void tensor_load(struct gpu_stream *s, uint32_t *y, const uint16_t *x, int matrices, bool trans);
/* d [16, 8] fp32 += a [16, 16] b; b [8, 16] (columns), or [16, 8] when b_by_rows; bf16 */
void tensor_multiply(struct gpu_stream *s, float *d, const uint16_t *a, const uint16_t *b, bool b_by_rows);

/* copies.cu */
/* y [n, 4] fp32: x's rows by cp.async, zeros from row `valid` on, which are not read. x [valid, 4] */
void copies_fill(struct gpu_stream *s, float *y, const float *x, int valid, int n);
/* y [steps, 128]: x's rows through a pipeline of 3 stages. */
void copies_pipeline(struct gpu_stream *s, float *y, const float *x, int steps);

/* graphs.cu */
void graphs_add(struct gpu_stream *s, float *y, const float *x, float add, int n); /* y = x + add */
void graphs_launch_badly(struct gpu_stream *s, int block, int shared_bytes);
void graphs_launch_no_grid(struct gpu_stream *s);

#ifdef __cplusplus
}
#endif
#endif
