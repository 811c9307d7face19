/* How far a backend's result may lie from ref's, for each precision: |y - ref| <= tolerance * (1 + |ref|),
 * with inputs and weights scaled so that results are of the order of 1. */
#ifndef TIMBRE_TESTS_UNIT_KERNELS_TOLERANCE_H
#define TIMBRE_TESTS_UNIT_KERNELS_TOLERANCE_H

#define TOLERANCE_FP32            4e-6 /* sums of up to some thousands of terms in fp32 */
#define TOLERANCE_FP32_ACTIVATION 6e-7 /* an activation alone */

#endif
