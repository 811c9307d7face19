/* norm: what convolutions need of layer norm. */
#ifndef TIMBRE_KERNELS_CPU_NORM_H
#define TIMBRE_KERNELS_CPU_NORM_H

#include "kernels/cpu/element.h"
#include "kernels/cpu/internal.h"

#define layer_norm_row CPU_NAME(layer_norm_row)

/* One row of layer norm over n channels, then the activation; y may be x. */
void layer_norm_row(element *y, const element *x, const struct cpu_packed *p, int n, float eps,
                    enum kernels_activation act);

#endif
