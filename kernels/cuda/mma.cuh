/* mma: asynchronous copies and tensor cores, one function for each PTX instruction (PTX ISA, sections on
 * cp.async, ldmatrix and mma.m16n8k16). Include cuda.cuh, not this.
 *
 * Lane l of a warp, g = l / 4, t = l % 4:
 *   ldmatrix: lanes 8 i .. 8 i + 7 give the addresses of the 8 rows (16 bytes each, aligned to 16) of the
 * i-th 8 x 8 matrix; r[i] gets elements [g][2 t] (lower half) and [g][2 t + 1] of it; _trans: [2 t][g] and [2
 * t + 1][g]. mma: a [16, 16]: a[0] = [g][2t, 2t + 1], a[1] = [g + 8][2t..], a[2] = [g][2t + 8..], a[3] = [g +
 * 8][2t + 8..]; b [16, 8]: b[0] = [2t, 2t + 1][g], b[1] = [2t + 8, 2t + 9][g]; d [16, 8]: d[0], d[1] =
 * [g][2t, 2t + 1], d[2], d[3] = [g + 8][2t, 2t + 1]. */
#ifndef TIMBRE_KERNELS_CUDA_MMA_CUH
#define TIMBRE_KERNELS_CUDA_MMA_CUH

#ifndef TIMBRE_CUDA_ON_HOST

__device__ static inline uint32_t cuda_shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* 16 bytes from global to shared memory, both aligned to 16; zeros when not valid, and then nothing is read.
 * There after a cp_async_wait by this thread, and for other threads after the barrier behind that. */
__device__ static inline void cp_async_16(void *shared, const void *global, bool valid) {
    const uint32_t to = cuda_shared_address(shared);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ static inline void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/* Until at most the N last committed groups of this thread are not done. */
template <int N> __device__ static inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

__device__ static inline void ldmatrix_x4(uint32_t (&r)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cuda_shared_address(shared_row))
                 : "memory");
}
__device__ static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cuda_shared_address(shared_row))
                 : "memory");
}
/* Addresses of lanes 0 .. 15. */
__device__ static inline void ldmatrix_x2(uint32_t (&r)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(cuda_shared_address(shared_row))
                 : "memory");
}
__device__ static inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(cuda_shared_address(shared_row))
                 : "memory");
}

/* d += a b in fp32. */
__device__ static inline void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

/* On the host the memory is touched here, in code that the sanitizers see, by the lane that owns the bytes. A
 * copy's target is poisoned when the copy is issued, and written when it is waited for. */
static inline void shim_write_16(void *to, uint64_t lo, uint64_t hi) {
    static_cast<uint64_t *>(to)[0] = lo;
    static_cast<uint64_t *>(to)[1] = hi;
}
static inline void shim_cp_async_16(struct shim_site site, void *shared, const void *global, bool valid) {
    shim_copy_issue(site, shared, global, valid);
    shim_write_16(shared, UINT64_MAX, UINT64_MAX);
}
static inline void shim_cp_async_wait(int groups) {
    struct shim_copy copy;
    while (shim_copy_next(groups, &copy)) {
        const uint64_t *from = static_cast<const uint64_t *>(copy.from);
        shim_write_16(copy.to, from == NULL ? 0 : from[0], from == NULL ? 0 : from[1]);
    }
}
#define cp_async_16(...)       shim_cp_async_16(SHIM_SITE, __VA_ARGS__)
#define cp_async_commit()      shim_copy_commit()
template <int N> static inline void cp_async_wait() {
    shim_cp_async_wait(N);
}

static inline void shim_ldmatrix(struct shim_site site, uint32_t *r, int matrices, bool trans,
                                 const void *row) {
    const uint64_t *rows = shim_matrix_rows(site, row, matrices);
    const unsigned g = shim_lane() / 4, t = shim_lane() % 4;
    for (int i = 0; i < matrices; i++) {
        uint32_t pair[2];
        for (unsigned k = 0; k < 2; k++) {
            const unsigned y = trans ? 2 * t + k : g, x = trans ? g : 2 * t + k;
            pair[k] = reinterpret_cast<const uint16_t *>(rows[8 * i + y])[x];
        }
        r[i] = pair[0] | pair[1] << 16;
    }
}
template <int N>
static inline void shim_ldmatrix_n(struct shim_site site, bool trans, uint32_t (&r)[N],
                                   const void *shared_row) {
    shim_ldmatrix(site, r, N, trans, shared_row);
}
#define ldmatrix_x4(...)       shim_ldmatrix_n<4>(SHIM_SITE, false, __VA_ARGS__)
#define ldmatrix_x4_trans(...) shim_ldmatrix_n<4>(SHIM_SITE, true, __VA_ARGS__)
#define ldmatrix_x2(...)       shim_ldmatrix_n<2>(SHIM_SITE, false, __VA_ARGS__)
#define ldmatrix_x2_trans(...) shim_ldmatrix_n<2>(SHIM_SITE, true, __VA_ARGS__)

static inline void shim_mma_call(struct shim_site site, float (&d)[4], const uint32_t (&a)[4],
                                 const uint32_t (&b)[2]) {
    shim_mma(site, d, a, b);
}
#define mma_bf16_16816(...)    shim_mma_call(SHIM_SITE, __VA_ARGS__)

#endif
#endif
