#include "kernels/cuda/host/fiber.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK_BYTES = 256 * 1024, GUARD_BYTES = 4096 };

struct fiber {
    void *place; /* the stack pointer while it is left */
    ucontext_t *context;
    struct fiber *next;
    const void *stack;
    size_t stack_bytes;
    void *asan_stack, *tsan;
};

static struct fiber main_fiber;
static struct fiber *current, *left; /* left: whom the last switch came from */
static struct fiber *idle, *spent;   /* spent: idle from the next block on */

/* --- switching of stacks -------------------------------------------------------------------------------- */

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
/* The registers a call keeps (System V ABI for x86-64, section 3.2.1) go to the stack that is left. */
extern "C" void shim_switch_stack(void **from, void *to);
asm(".text\n"
    ".p2align 4\n"
    ".globl shim_switch_stack\n"
    ".hidden shim_switch_stack\n"
    ".type shim_switch_stack, @function\n"
    "shim_switch_stack:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size shim_switch_stack, . - shim_switch_stack\n");

/* As if entry had been called: the stack is 8 bytes off 16, with a return address, that of nobody. */
static void prepare_stack(struct fiber *f, void (*entry)(void)) {
    void **top =
        reinterpret_cast<void **>(const_cast<char *>(static_cast<const char *>(f->stack) + f->stack_bytes));
    *--top = NULL;
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) {
        *--top = NULL;
    }
    f->place = top;
}

static void switch_stack(struct fiber *from, struct fiber *to) {
    shim_switch_stack(&from->place, to->place);
}

#else
static void prepare_stack(struct fiber *f, void (*entry)(void)) {
    f->context->uc_stack.ss_sp = const_cast<void *>(f->stack);
    f->context->uc_stack.ss_size = f->stack_bytes;
    makecontext(f->context, entry, 0);
}

static void switch_stack(struct fiber *from, struct fiber *to) {
    swapcontext(from->context, to->context);
}
#endif

/* --- fibers --------------------------------------------------------------------------------------------- */

/* On the stack that was switched to: tells AddressSanitizer, and learns from it where the main stack lies. */
static void arrive(void) {
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(current->asan_stack, &bottom, &bytes);
    if (left == &main_fiber) {
        main_fiber.stack = bottom;
        main_fiber.stack_bytes = bytes;
    }
#endif
}

void fiber_switch(struct fiber *to) {
    struct fiber *from = current;
    if (to == from) {
        return;
    }
    left = from;
    current = to;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->asan_stack, to->stack, to->stack_bytes);
#endif
#ifdef SHIM_TSAN
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
    switch_stack(from, to);
    arrive();
}

static void enter(void) {
    arrive();
    fiber_run();
}

static struct fiber *fiber_new(void) {
    struct fiber *f = static_cast<struct fiber *>(calloc(1, sizeof(*f)));
    void *p = mmap(NULL, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f == NULL || p == MAP_FAILED || mprotect(p, GUARD_BYTES, PROT_NONE) != 0) {
        perror("shim: no memory for a stack");
        abort();
    }
    f->stack = static_cast<char *>(p) + GUARD_BYTES;
    f->stack_bytes = STACK_BYTES;
    f->context = static_cast<ucontext_t *>(calloc(1, sizeof(*f->context)));
    if (f->context == NULL || getcontext(f->context) != 0) {
        abort();
    }
#ifdef SHIM_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    prepare_stack(f, enter);
    return f;
}

void fiber_begin(int count) {
    static ucontext_t context;
    main_fiber.context = &context;
#ifdef SHIM_TSAN
    main_fiber.tsan = __tsan_get_current_fiber();
#endif
    current = &main_fiber;
    /* To ThreadSanitizer what makes a fiber happens before it: that must not be one of its siblings. */
    static int made;
    for (; FIBER_IS_OF_ONE_THREAD && made < count; made++) {
        struct fiber *f = fiber_new();
        f->next = idle;
        idle = f;
    }
}

struct fiber *fiber_main(void) {
    return &main_fiber;
}

struct fiber *fiber_current(void) {
    return current;
}

struct fiber *fiber_take(void) {
    struct fiber *f = idle;
    if (f == NULL) {
        return fiber_new();
    }
    idle = f->next;
    return f;
}

void fiber_give_back(void) {
    struct fiber **list = FIBER_IS_OF_ONE_THREAD ? &spent : &idle;
    current->next = *list;
    *list = current;
}

void fiber_block_ends(void) {
    while (spent != NULL) {
        struct fiber *f = spent;
        spent = f->next;
        f->next = idle;
        idle = f;
    }
}
