/* memory: device memory for a test, which fails when there is none. */
#ifndef TIMBRE_TESTS_SHIM_MEMORY_H
#define TIMBRE_TESTS_SHIM_MEMORY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/gpu.h"

static inline struct gpu_stream *stream_new(void) {
    struct gpu_stream *s = NULL;
    assert_int_equal(gpu_stream_new(&s), 0);
    return s;
}
/* With a copy of `from`, unless that is NULL. */
static inline void *memory_new(size_t bytes, const void *from, struct gpu_stream *s) {
    void *p = NULL;
    assert_int_equal(gpu_memory_new(&p, bytes), 0);
    if (from != NULL) {
        assert_int_equal(gpu_copy_in(p, from, bytes, s), 0);
    }
    return p;
}
/* Into `to`, and the memory is given back. */
static inline void memory_take(void *to, void *p, size_t bytes, struct gpu_stream *s) {
    assert_int_equal(gpu_last_error(), 0);
    assert_int_equal(gpu_copy_out(to, p, bytes, s), 0);
    assert_int_equal(gpu_stream_wait(s), 0);
    gpu_memory_del(p);
}

#endif
