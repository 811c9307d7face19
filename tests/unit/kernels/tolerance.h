/* How far a backend's result may lie from ref's, for each precision: |y - ref| <= tolerance * (1 + |ref|),
 * with inputs and weights scaled so that results are of the order of 1. */
#ifndef TIMBRE_TESTS_UNIT_KERNELS_TOLERANCE_H
#define TIMBRE_TESTS_UNIT_KERNELS_TOLERANCE_H

#define TOLERANCE_FP32            4e-6 /* sums of up to some thousands of terms in fp32 */
#define TOLERANCE_FP32_ACTIVATION 6e-7 /* an activation alone */

/* bf16 keeps 8 significant bits: one rounding moves a number v by at most v / 256. Inputs and weights are
 * rounded before ref sees them, and sums are fp32, so what is left are the roundings of an operation's own
 * results. An operation has at most three: a product of two matrices that is added to another (a convolution
 * as two products), the sum before the activation or the residual, and the result; in attention the scores,
 * the weights, and the result. */
#define TOLERANCE_BF16_ROUNDING (1.0 / 256)
#define TOLERANCE_BF16          (3 * TOLERANCE_BF16_ROUNDING)

/* The root of the mean square error, as a part of that of the numbers: of many results at random places
 * between two neighbours, three roundings leave 0.7 / 256 at most. Cutting off instead of rounding would
 * double it. */
#define TOLERANCE_BF16_RMS TOLERANCE_BF16_ROUNDING

/* int8: a row's numbers are rounded to 255 steps between its least and its greatest or 0, a column's weights
 * to 127 between 0 and the greatest. Of normal numbers that is an error of 0.7 % of their deviation each, so
 * 1 % of a product's; single elements have four or five times that. */
#define TOLERANCE_INT8     0.07
#define TOLERANCE_INT8_RMS 0.02

#endif
