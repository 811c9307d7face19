/* bench_gpu_peak: what this GPU reaches by itself, for others to be compared with in the same run: a copy
 * within its memory, and matrix products of 8192 x 8192 x 8192 random numbers by cuBLAS in bf16, and of 4096
 * in fp32.
 *
 * usage: bench_gpu_peak [--seconds S]      about S (default 1) for each; prints one JSON object
 *
 * Medians of events around single calls. Status 77 when there is no GPU. */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_BYTES = 1 << 30, BF16_SIZE = 8192, FP32_SIZE = 4096, TIMES_MAX = 2000 };

static void check(const char *call, int error, const char *text) {
    if (error) {
        fprintf(stderr, "bench_gpu_peak: %s: %s\n", call, text);
        exit(1);
    }
}

#define CUDA(call) check(#call, (int)(call), cudaGetErrorString(cudaPeekAtLastError()))

static void blas(const char *call, cublasStatus_t e) {
    check(call, (int)e, cublasGetStatusString(e));
}

/* n numbers of -0.5 .. 0.5: zeros would cost less power and run faster. */
static void *new_numbers(size_t n, bool bf16) {
    const size_t bytes = n * (bf16 ? 2 : 4);
    unsigned char *host = malloc(bytes);
    void *device = NULL;
    uint32_t state = 1;
    check("malloc", host == NULL, "out of memory");
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        state = state * 1664525u + 1013904223u;
        const float v = (float)(state >> 8) / (1 << 24) - 0.5f;
        memcpy(&bits, &v, sizeof bits);
        if (bf16) {
            const uint16_t upper = (uint16_t)(bits >> 16);
            memcpy(host + 2 * i, &upper, sizeof upper);
        } else {
            memcpy(host + 4 * i, &bits, sizeof bits);
        }
    }
    CUDA(cudaMalloc(&device, bytes));
    CUDA(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    free(host);
    return device;
}

struct job {
    cublasHandle_t handle;
    cudaStream_t stream;
    void *x, *y, *z;
    int size; /* 0: a copy */
    bool bf16;
};

static void run(const struct job *j) {
    const float one = 1, zero = 0;
    const cudaDataType_t type = j->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    if (j->size == 0)
        CUDA(cudaMemcpyAsync(j->y, j->x, COPY_BYTES, cudaMemcpyDeviceToDevice, j->stream));
    else
        blas("cublasGemmEx", cublasGemmEx(j->handle, CUBLAS_OP_T, CUBLAS_OP_N, j->size, j->size, j->size,
                                          &one, j->x, type, j->size, j->y, type, j->size, &zero, j->z, type,
                                          j->size, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

static int compare(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* Median milliseconds of a call. */
static double time_job(const struct job *j, double seconds) {
    static float ms[TIMES_MAX];
    cudaEvent_t from, to;
    double spent_ms = 0;
    int times = 0;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = 0; i < 3; i++)
        run(j);
    CUDA(cudaStreamSynchronize(j->stream));
    while (times < TIMES_MAX && (times < 10 || spent_ms < seconds * 1e3)) {
        CUDA(cudaEventRecord(from, j->stream));
        run(j);
        CUDA(cudaEventRecord(to, j->stream));
        CUDA(cudaEventSynchronize(to));
        CUDA(cudaEventElapsedTime(&ms[times], from, to));
        spent_ms += ms[times++];
    }
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(to));
    qsort(ms, (size_t)times, sizeof *ms, compare);
    return ms[times / 2];
}

int main(int argc, char **argv) {
    double seconds = 1;
    int count = 0;
    struct cudaDeviceProp info;
    if (argc == 3 && strcmp(argv[1], "--seconds") == 0)
        seconds = atof(argv[2]);
    else if (argc != 1)
        return 2;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1) {
        fprintf(stderr, "bench_gpu_peak: no GPU\n");
        return 77;
    }
    CUDA(cudaSetDevice(0));
    CUDA(cudaGetDeviceProperties(&info, 0));
    struct job copy = {0};
    CUDA(cudaStreamCreate(&copy.stream));
    copy.x = new_numbers(COPY_BYTES / 4, false);
    CUDA(cudaMalloc(&copy.y, COPY_BYTES));
    const double copy_gbs = 2.0 * COPY_BYTES / time_job(&copy, seconds) * 1e-6;
    CUDA(cudaFree(copy.x));
    CUDA(cudaFree(copy.y));

    struct job product = {.stream = copy.stream};
    double tflops[2];
    blas("cublasCreate", cublasCreate(&product.handle));
    blas("cublasSetStream", cublasSetStream(product.handle, product.stream));
    for (int i = 0; i < 2; i++) {
        product.bf16 = i == 0;
        product.size = product.bf16 ? BF16_SIZE : FP32_SIZE;
        const size_t n = (size_t)product.size * (size_t)product.size;
        product.x = new_numbers(n, product.bf16);
        product.y = new_numbers(n, product.bf16);
        CUDA(cudaMalloc(&product.z, n * (product.bf16 ? 2 : 4)));
        tflops[i] = 2.0 * (double)n * product.size / time_job(&product, seconds) * 1e-9;
        CUDA(cudaFree(product.x));
        CUDA(cudaFree(product.y));
        CUDA(cudaFree(product.z));
    }
    blas("cublasDestroy", cublasDestroy(product.handle));
    printf("{\"gpu\":\"%s\",\"multiprocessors\":%d,\"l2_bytes\":%d,\"copy_gb_s\":%.1f,\"bf16_tflops\":%.1f,"
           "\"fp32_tflops\":%.2f}\n",
           info.name, info.multiProcessorCount, info.l2CacheSize, copy_gbs, tflops[0], tflops[1]);
    return 0;
}
