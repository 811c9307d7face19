/* quantize: rows of activations as bytes, for products in int8 (CPU_HAS_INT8).
 *
 * Dynamic and by row: byte = round((x - min) / scale) with the row's own minimum and a scale that takes its
 * maximum to 255. So a row's bytes depend on that row alone, nothing has to be calibrated, and activations
 * that lie on one side of zero, as those after GELU do, lose no range. */
#ifndef TIMBRE_KERNELS_CPU_QUANTIZE_H
#define TIMBRE_KERNELS_CPU_QUANTIZE_H

#include "kernels/cpu/element.h"
#include "kernels/cpu/internal.h"

#define quantize_row        CPU_NAME(quantize_row)
#define quantize_difference CPU_NAME(quantize_difference)
#define quantize_rows       CPU_NAME(quantize_rows)

/* Bytes of a row of n: whole words. */
static inline int64_t quantize_count_bytes(int64_t n) {
    return cpu_divide_up(n, 4) * 4;
}

/* to [quantize_count_bytes(n)], zeros behind n; x[i] is about scale * to[i] + min. */
void quantize_row(uint8_t *to, float *scale, float *min, const element *x, int64_t n);

/* The same of a - b. */
void quantize_difference(uint8_t *to, float *scale, float *min, const element *a, const element *b,
                         int64_t n);

/* x [rows, n] into the device's `quantized`, row_scale and row_min, on its team. */
void quantize_rows(struct kernels_device *d, const element *x, int64_t rows, int64_t n);

#endif
