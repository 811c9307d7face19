/* module: the cuda backend, which lives in a library of its own (libtimbre_cuda.so) so that the program
 * starts on machines that have no CUDA. */
#ifndef TIMBRE_KERNELS_MODULE_H
#define TIMBRE_KERNELS_MODULE_H

#include "kernels/kernels.h"

/* Asks the driver alone first (libcuda.so.1: cuInit, cuDeviceGetCount), then loads the module:
 * TIMBRE_CUDA_MODULE when that is set, else the one installed or built beside the program. It is loaded once
 * and never unloaded, and what came of the first call is kept. NULL: UNAVAILABLE with the reason. Any thread.
 */
const struct kernels *module_load_cuda(struct status *st);

#endif
