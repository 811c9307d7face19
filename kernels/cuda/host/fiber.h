/* fiber: stacks to switch between, for the shim's scheduler alone. All of it under the shim's lock. */
#ifndef TIMBRE_KERNELS_CUDA_HOST_FIBER_H
#define TIMBRE_KERNELS_CUDA_HOST_FIBER_H

#ifdef SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

struct fiber;

/* To ThreadSanitizer a fiber is a thread with a stack: two threads of a block must not use it one after the
 * other, which would look like a race for its local variables. */
#ifdef SHIM_TSAN
enum { FIBER_IS_OF_ONE_THREAD = 1 };
#else
enum { FIBER_IS_OF_ONE_THREAD = 0 };
#endif

/* The calling thread's own stack becomes the main fiber. `count`: fibers of one thread that a block needs. */
void fiber_begin(int count);
struct fiber *fiber_main(void);      /* that */
struct fiber *fiber_current(void);   /* the one that runs */
struct fiber *fiber_take(void);      /* one that nobody uses: it is in fiber_run, or about to begin it */
void fiber_give_back(void);          /* the current one may be taken as soon as it is left */
void fiber_block_ends(void);         /* no thread of the block is left */
void fiber_switch(struct fiber *to); /* returns when somebody switches back */

/* What happened before a release happens before what follows an acquire, to ThreadSanitizer. */
static inline void fiber_release(void *clock) {
#ifdef SHIM_TSAN
    __tsan_release(clock);
#else
    (void)clock;
#endif
}
static inline void fiber_acquire(void *clock) {
#ifdef SHIM_TSAN
    __tsan_acquire(clock);
#else
    (void)clock;
#endif
}

void fiber_run(void); /* what a fiber does, for ever: shim.cpp */

#endif
