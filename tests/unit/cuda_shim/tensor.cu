#include "kernels/cuda/cuda.cuh"
#include "tests/unit/cuda_shim/kernels.h"

__global__ static void load(uint32_t *y, const uint16_t *x, int matrices, bool trans) {
    __shared__ __align__(16) uint16_t tile[32 * 8];
    for (unsigned i = threadIdx.x; i < 32 * 8; i += 32) {
        tile[i] = x[i];
    }
    __syncwarp();
    const uint16_t *row = tile + threadIdx.x * 8;
    uint32_t r[4] = {0, 0, 0, 0}, half[2] = {0, 0};
    if (matrices == 4 && trans) {
        ldmatrix_x4_trans(r, row);
    } else if (matrices == 4) {
        ldmatrix_x4(r, row);
    } else {
        row = threadIdx.x < 16 ? row : NULL; /* those of other lanes do not matter */
        if (trans) {
            ldmatrix_x2_trans(half, row);
        } else {
            ldmatrix_x2(half, row);
        }
        r[0] = half[0];
        r[1] = half[1];
    }
    for (int i = 0; i < 4; i++) {
        y[threadIdx.x * 4 + i] = r[i];
    }
}
void tensor_load(struct gpu_stream *s, uint32_t *y, const uint16_t *x, int matrices, bool trans) {
    LAUNCH(load, 1, 32, 0, s, y, x, matrices, trans);
}

/* As a kernel does it: a's four 8 x 8 matrices by one ldmatrix_x4, b's two by one ldmatrix_x2 of its columns,
 * or by the transposing one of its rows. */
__global__ static void multiply(float *d, const bf16 *a, const bf16 *b, bool b_by_rows) {
    DYN_SHARED(bf16, tile_a); /* [16][16], then b */
    bf16 *tile_b = tile_a + 16 * 16;
    const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (unsigned i = lane; i < 256; i += 32) {
        tile_a[i] = a[i];
    }
    for (unsigned i = lane; i < 128; i += 32) {
        tile_b[i] = b[i];
    }
    __syncwarp();
    uint32_t ra[4], rb[2];
    ldmatrix_x4(ra, tile_a + lane % 16 * 16 + lane / 16 * 8);
    if (b_by_rows) {
        ldmatrix_x2_trans(rb, tile_b + lane % 16 * 8);
    } else {
        ldmatrix_x2(rb, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
    }
    float r[4];
    for (unsigned i = 0; i < 4; i++) {
        r[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    }
    mma_bf16_16816(r, ra, rb);
    for (unsigned i = 0; i < 4; i++) {
        d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = r[i];
    }
}
void tensor_multiply(struct gpu_stream *s, float *d, const uint16_t *a, const uint16_t *b, bool b_by_rows) {
    LAUNCH(multiply, 1, 32, (256 + 128) * sizeof(bf16), s, d, reinterpret_cast<const bf16 *>(a),
           reinterpret_cast<const bf16 *>(b), b_by_rows);
}
