/* The operations of one instruction set. */
#include "kernels/cpu/internal.h"

const struct kernels CPU_NAME(ops) = {
    .abi = KERNELS_ABI,
    .name = "cpu-" CPU_STRING(CPU_ISA),
    .weight_bytes = CPU_NAME(weight_bytes),
    .pack = CPU_NAME(pack),
    .adopt = CPU_NAME(adopt),
    .input_norm = CPU_NAME(input_norm),
    .group_stats = CPU_NAME(group_stats),
    .conv = CPU_NAME(conv),
    .compact = CPU_NAME(compact),
    .layer_norm = CPU_NAME(layer_norm),
    .linear = CPU_NAME(linear),
    .pos_conv = CPU_NAME(pos_conv),
    .attention = CPU_NAME(attention),
    .accumulate = CPU_NAME(accumulate),
    .pool = CPU_NAME(pool),
    .head_linear = CPU_NAME(head_linear),
};
