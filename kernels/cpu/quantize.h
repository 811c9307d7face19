/* quantize: rows of activations as bytes, for products in int8 (CPU_HAS_INT8).
 *
 * Dynamic and by row: byte = round(x / scale) + z, with a scale that takes the row's own range, from its
 * least number or 0 to its greatest or 0, to 255 steps, and z the byte that stands for 0. So a row's bytes
 * depend on that row alone, nothing has to be calibrated, and activations that lie on one side of zero, as
 * those after GELU nearly do, lose no range. A row with something that is no number has no number for a
 * scale, so that its products are none either. */
#ifndef TIMBRE_KERNELS_CPU_QUANTIZE_H
#define TIMBRE_KERNELS_CPU_QUANTIZE_H

#include "kernels/cpu/element.h"
#include "kernels/cpu/internal.h"

#define quantize_row        CPU_NAME(quantize_row)
#define quantize_difference CPU_NAME(quantize_difference)
#define quantize_together   CPU_NAME(quantize_together)
#define quantize_rows       CPU_NAME(quantize_rows)

/* Bytes of a row of n: whole words. */
static inline int64_t quantize_count_bytes(int64_t n) {
    return cpu_divide_up(n, 4) * 4;
}

/* to [quantize_count_bytes(n)], zeros behind n; x[i] is about scale * to[i] + min, min being -z * scale. */
void quantize_row(uint8_t *to, float *scale, float *min, const element *x, int64_t n);

/* The same of a - b and of `other` [n], with one scale for both. */
void quantize_difference(uint8_t *to, uint8_t *to_other, float *scale, float *min, const element *a,
                         const element *b, const element *other, int64_t n);

/* `rows` times n numbers of x, `stride` apart, with one scale for all; bytes lie as the numbers do, so n is a
 * multiple of four. */
void quantize_together(uint8_t *to, float *scale, float *min, const element *x, int64_t stride, int64_t rows,
                       int64_t n);

/* x [rows, n] into the device's `quantized`, row_scale and row_min, on its team. */
void quantize_rows(struct kernels_device *d, const element *x, int64_t rows, int64_t n);

#endif
