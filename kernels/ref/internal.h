/* ref: every operation of kernels.h in the plainest C there is. This is the specification: it stays naive,
 * single-threaded and readable, and sums in double. Nothing here is ever optimised. */
#ifndef TIMBRE_KERNELS_REF_INTERNAL_H
#define TIMBRE_KERNELS_REF_INTERNAL_H

#include "kernels/kernels.h"

/* A packed weight of ref: fp32 copies of what the spec pointed to, parts behind each other. */
struct ref_packed {
    float *weight;                    /* layout as in the spec */
    float *bias;                      /* [out], zeros where there is none */
    float *norm_weight, *norm_bias;   /* [out], 1 and 0 where there is none */
    float *input_scale, *input_shift; /* [in], 1 and 0 where there is none */
};

float ref_activate(enum kernels_activation act, float x);

size_t ref_weight_bytes(const struct kernels_device *d, const struct kernels_weight_spec *s);
void ref_pack(struct kernels_device *d, struct kernels_weight *w, const struct kernels_weight_spec *s,
              void *memory);

void ref_input_norm(struct kernels_device *d, float *y, const float *x, const struct batch *b);
void ref_layer_norm(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                    int64_t rows);
void ref_group_stats(struct kernels_device *d, float *stats, const float *x, const struct kernels_weight *w,
                     const struct batch *b);
void ref_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
              enum kernels_activation act, const float *stats, int level, struct kernels_rows rows,
              const struct batch *b);
void ref_compact(struct kernels_device *d, void *y, const void *x, int channels, struct kernels_rows rows,
                 const struct batch *b);
void ref_linear(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                enum kernels_activation act, const void *residual, int64_t rows);
void ref_head_linear(struct kernels_device *d, float *y, const float *x, const struct kernels_weight *w,
                     enum kernels_activation act, int64_t rows);
void ref_pos_conv(struct kernels_device *d, void *y, const void *x, const struct kernels_weight *w,
                  enum kernels_activation act, const struct batch *b);
void ref_attention(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim, float scale,
                   const struct batch *b);
void ref_accumulate(struct kernels_device *d, void *y, const void *x, float weight, bool first, int64_t rows,
                    int channels);
void ref_pool(struct kernels_device *d, float *y, const void *x, enum kernels_pool kind, int channels,
              const struct batch *b);

#endif
