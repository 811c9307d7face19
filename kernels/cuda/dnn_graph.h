/* dnn_graph: one convolution as a graph of cuDNN's backend API, and the choice of an engine for it. What
 * dnn_cuda.c is made of.
 *
 * A graph is for a fixed number of rows. Heuristics propose engine configurations: an engine's number and
 * values for its knobs. A choice is such a configuration without its graph, so that graphs of different sizes
 * can be given the same one. */
#ifndef TIMBRE_KERNELS_CUDA_DNN_GRAPH_H
#define TIMBRE_KERNELS_CUDA_DNN_GRAPH_H

#include <cudnn.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/cuda/dnn.h"

enum {
    DNN_DESCRIPTORS_MAX = 80, /* of a graph, or of a plan and its engine */
    DNN_KNOBS_MAX = 64,
    DNN_CHOICES_MAX = 64, /* looked at, of one graph */
    DNN_WORKSPACE_BYTES_MAX = 64 << 20,
};

/* The functions of libcudnn that are used. */
struct dnn_api {
    size_t (*get_version)(void);
    const char *(*get_error_string)(cudnnStatus_t status);
    cudnnStatus_t (*create)(cudnnHandle_t *handle);
    cudnnStatus_t (*destroy)(cudnnHandle_t handle);
    cudnnStatus_t (*set_stream)(cudnnHandle_t handle, cudaStream_t stream);
    cudnnStatus_t (*make)(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *d);
    cudnnStatus_t (*unmake)(cudnnBackendDescriptor_t d);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t count, const void *values);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t count_max, int64_t *count, void *values);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t d);
    cudnnStatus_t (*execute)(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                             cudnnBackendDescriptor_t pack);
};

/* Descriptors that are destroyed together, the last first. */
struct dnn_descriptors {
    cudnnBackendDescriptor_t all[DNN_DESCRIPTORS_MAX];
    int count;
};
void dnn_descriptors_free(const struct dnn_api *api, struct dnn_descriptors *d);
/* A descriptor of the list's; NULL and *e set when there is none. Nothing is done when *e is already set. */
cudnnBackendDescriptor_t dnn_make(const struct dnn_api *api, struct dnn_descriptors *d,
                                  cudnnBackendDescriptorType_t type, cudnnStatus_t *e);

/* What is computed: y = act(conv(x) + bias), as far as it goes. */
struct dnn_pattern {
    struct dnn_shape shape;
    enum cuda_type type;
    bool has_bias, has_act;
    cudnnPointwiseMode_t act;
};
enum dnn_tensor { DNN_X = 1, DNN_W, DNN_Y, DNN_BIAS }; /* unique ids of what lies in memory */

struct dnn_graph {
    struct dnn_descriptors descriptors;
    cudnnBackendDescriptor_t graph; /* finalised */
};
cudnnStatus_t dnn_graph_build(const struct dnn_api *api, cudnnHandle_t handle, const struct dnn_pattern *p,
                              int64_t rows, struct dnn_graph *g);

struct dnn_choice {
    int64_t engine;
    int knobs_count;
    struct {
        cudnnBackendKnobType_t type;
        int64_t value;
    } knobs[DNN_KNOBS_MAX];
};
/* What the heuristics propose, the best first, without those that a row's sum would not be safe with: see
 * dnn_graph.c. Their number; 0 when the mode knows nothing. */
int dnn_graph_propose(const struct dnn_api *api, const struct dnn_graph *g, enum cuda_type type,
                      cudnnBackendHeurMode_t mode, struct dnn_choice choices[DNN_CHOICES_MAX]);

struct dnn_executable {
    struct dnn_descriptors descriptors;
    cudnnBackendDescriptor_t plan; /* finalised */
    int64_t workspace_bytes;
};
/* Compiles, where the engine does. */
cudnnStatus_t dnn_executable_build(const struct dnn_api *api, cudnnHandle_t handle, const struct dnn_graph *g,
                                   const struct dnn_choice *c, struct dnn_executable *x);

#endif
