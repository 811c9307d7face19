/* Kernels with planted bugs: each runs in a process of its own, as it should be and with the bug, under
 * several orders of threads, and the bug has to be found by the build that is said to find it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/cuda_shim/kernels.h"

static const char *const seeds[] = {"0", "1", "12345"};
enum { SEEDS = 3, OUTPUT_MAX = 65536, STATUS_WRONG = 3 };

/* --- the process with the kernel ------------------------------------------------------------------------ */

static int run_kernel(const struct planted *p, bool wrong) {
    struct gpu_stream *s;
    void *x, *y;
    float host[PLANTED_N];
    if (gpu_stream_new(&s) != 0 || gpu_memory_new(&x, sizeof(host)) != 0 ||
        gpu_memory_new(&y, sizeof(host)) != 0) {
        return EXIT_FAILURE;
    }
    for (int i = 0; i < PLANTED_N; i++) {
        host[i] = (float)i;
    }
    gpu_copy_in(x, host, sizeof(host), s);
    p->launch(s, y, x, wrong);
    const int error = gpu_last_error();
    gpu_copy_out(host, y, sizeof(host), s);
    gpu_memory_del(x);
    gpu_memory_del(y);
    gpu_stream_del(s);
    if (error != 0) {
        printf("error %d\n", error);
        return STATUS_WRONG;
    }
    double sum = 0.0;
    for (int i = 0; i < PLANTED_N; i++) {
        sum += (double)host[i] * (i + 1);
    }
    if (sum != sum) {
        printf("NaN in the result\n");
        return STATUS_WRONG;
    }
    printf("result %.17g\n", sum);
    return EXIT_SUCCESS;
}

/* --- the tests ------------------------------------------------------------------------------------------ */

/* ThreadSanitizer sleeps for a second at the end of every process that has fibers, unless told not to. */
static void set_environment(const char *seed, bool strict) {
    char options[1024];
    const char *given = getenv("TSAN_OPTIONS");
    snprintf(options, sizeof(options), "%s:atexit_sleep_ms=0", given == NULL ? "" : given);
    setenv("TSAN_OPTIONS", options, 1);
    setenv("TIMBRE_SHIM_SEED", seed, 1);
    setenv("TIMBRE_SHIM_STRICT", strict ? "1" : "0", 1);
}

/* Runs this program again with the kernel; gives its exit status, -1 when a signal ended it. */
static int run_process(const struct planted *p, const char *wrong, const char *seed,
                       char output[OUTPUT_MAX]) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        set_environment(seed, p->build == PLANTED_STRICT);
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", "test_planted", p->name, wrong, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t used = 0;
    char spill[4096];
    for (;;) {
        const size_t room = OUTPUT_MAX - 1 - used;
        const ssize_t n = room > 0 ? read(ends[0], output + used, room) : read(ends[0], spill, sizeof(spill));
        if (n <= 0) {
            break;
        }
        used += room > 0 ? (size_t)n : 0;
    }
    close(ends[0]);
    output[used] = '\0';
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const struct planted *find(const char *name) {
    int i = 0;
    while (strcmp(planted[i].name, name) != 0) {
        i++;
    }
    return &planted[i];
}

static bool is_built_with(const char *sanitizer) {
    return strstr(TIMBRE_SANITIZE, sanitizer) != NULL;
}

/* What the build lacks to find the bug, or NULL. */
static const char *missing(enum planted_build build) {
#ifdef __clang__
    if (build == PLANTED_ADDRESS_GCC || build == PLANTED_UNDEFINED_GCC) {
        return "gcc's sanitizers";
    }
#endif
    switch (build) {
    case PLANTED_ADDRESS:
    case PLANTED_ADDRESS_GCC:
        return is_built_with("address") ? NULL : "AddressSanitizer";
    case PLANTED_UNDEFINED:
    case PLANTED_UNDEFINED_GCC:
        return is_built_with("undefined") ? NULL : "UndefinedBehaviorSanitizer";
    case PLANTED_THREAD:
        return is_built_with("thread") ? NULL : "ThreadSanitizer";
    default:
        return NULL;
    }
}

static void test_right(void **state) {
    const struct planted *p = *state;
    static char output[OUTPUT_MAX], first[OUTPUT_MAX];
    for (int i = 0; i < SEEDS; i++) {
        const int status = run_process(p, "right", seeds[i], output);
        const char *result = strstr(output, "result ");
        if (status != 0 || result == NULL) {
            fail_msg("seed %s: status %d: %s", seeds[i], status, output);
        }
        if (i == 0) {
            strcpy(first, result);
        }
        assert_string_equal(result, first);
    }
}

static void test_wrong(void **state) {
    const struct planted *p = *state;
    static char output[OUTPUT_MAX];
    if (missing(p->build) != NULL) {
        print_message("SKIPPED: the bug of %s is found with %s\n", p->name, missing(p->build));
        skip();
    }
    for (int i = 0; i < SEEDS; i++) {
        const int status = run_process(p, "wrong", seeds[i], output);
        if (status == 0 || status == 127 || strstr(output, p->report) == NULL) {
            fail_msg("seed %s: not found: status %d: %s", seeds[i], status, output);
        }
    }
}

/* Without any sanitizer a race can still show: the result is another one under another order of threads. */
static void test_orders_differ(void **state) {
    (void)state;
    static char ascending[OUTPUT_MAX], descending[OUTPUT_MAX];
    if (is_built_with("thread")) {
        print_message("SKIPPED: ThreadSanitizer finds the race first\n");
        skip();
    }
    assert_int_equal(run_process(find("one_place"), "wrong", "0", ascending), 0);
    assert_int_equal(run_process(find("one_place"), "wrong", "1", descending), 0);
    assert_string_not_equal(ascending, descending);
}

/* The messages name the kernel and the lines. */
static void test_messages(void **state) {
    (void)state;
    static char output[OUTPUT_MAX];
    assert_int_equal(run_process(find("two_barriers"), "wrong", "0", output), -1);
    assert_non_null(strstr(output, "in kernel two_barriers, launched at "));
    const char *a = strstr(output, "planted.cu:");
    assert_non_null(a);
    const char *b = strstr(a + 1, "planted.cu:");
    assert_non_null(b);
    assert_int_equal(abs(atoi(a + 11) - atoi(b + 11)), 2);
    assert_int_equal(run_process(find("early_return"), "wrong", "0", output), -1);
    assert_non_null(strstr(output, "threads 40 to 40 have returned"));
    assert_non_null(strstr(output, "threads 41 to 63 wait for the block at"));
}

int main(int argc, char **argv) {
    enum { TESTS_MAX = 128 };
    static struct CMUnitTest tests[TESTS_MAX];
    static char names[TESTS_MAX][64];
    int count = 0;
    for (int i = 0; i < planted_count; i++) {
        const struct planted *p = &planted[i];
        if (argc == 3 && strcmp(argv[1], p->name) == 0) {
            return run_kernel(p, strcmp(argv[2], "wrong") == 0);
        }
        for (int wrong = 0; wrong < 2; wrong++) {
            snprintf(names[count], sizeof(names[count]), "%s_%s", p->name, wrong ? "wrong" : "right");
            tests[count] = (struct CMUnitTest){names[count], wrong ? test_wrong : test_right, NULL, NULL,
                                               (void *)(uintptr_t)p};
            count++;
        }
    }
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(test_orders_differ);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(test_messages);
    return _cmocka_run_group_tests("cuda_shim_planted", tests, (size_t)count, NULL, NULL);
}
