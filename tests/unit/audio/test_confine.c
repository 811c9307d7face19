/* Tests of audio/confine: a child confines itself, tries what it must not, and reports the errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audio/confine.h"

/* What the child found out: the error of each attempt, 0 when it succeeded. */
struct findings {
    unsigned parts;
    bool holds;
    int read_passwd, list_root, read_proc, write_tmp, make_folder, read_library, reopen_input, socket, clone,
        kill_parent, raise_limit, execute_memory, write_code, exec_other, grow_file;
    int descriptors;
};

static int error_of(long result) {
    return result < 0 ? errno : 0;
}

static int try_open(const char *path, int flags) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
    int error = error_of(fd);
    if (fd >= 0)
        close(fd);
    return error;
}

static int try_map(int protection) {
    void *p = mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? errno : 0;
}

static void explore_calls(struct findings *f, pid_t parent) {
    static char *const none[] = {NULL};
    f->write_tmp = try_open("/tmp/timbre-confine-test", O_WRONLY | O_CREAT);
    f->make_folder = error_of(syscall(SYS_mkdirat, AT_FDCWD, "/tmp/timbre-confine-test", 0700));
    f->socket = error_of(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    f->clone = error_of(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    f->kill_parent = error_of(syscall(SYS_kill, parent, 0));
    f->raise_limit = error_of(syscall(SYS_prlimit64, 0, RLIMIT_CPU, &(struct rlimit){100, 100}, NULL));
    f->execute_memory = try_map(PROT_READ | PROT_WRITE | PROT_EXEC);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    f->write_code = error_of(mprotect(page, 4096, PROT_READ | PROT_EXEC));
    f->exec_other = error_of(syscall(SYS_execve, "/bin/true", none, none));
}

static void explore(struct findings *f, const struct confinement *c, pid_t parent) {
    f->parts = confine_enter(c);
    f->holds = confine_holds(c, f->parts);
    if (f->parts & CONFINE_SECCOMP)
        explore_calls(f, parent);
    f->read_passwd = try_open("/etc/passwd", O_RDONLY);
    f->list_root = try_open("/", O_RDONLY | O_DIRECTORY);
    f->read_proc = try_open("/proc/self/environ", O_RDONLY);
    f->read_library = try_open("/etc/ld.so.cache", O_RDONLY);
    f->reopen_input = try_open("/proc/self/fd/0", O_RDONLY);
    f->grow_file = error_of(write(1, "x", 1)); /* a file here: the limit on file sizes is 0 */
    while (f->descriptors < 100 && syscall(SYS_openat, AT_FDCWD, "/etc/ld.so.cache", O_RDONLY) >= 0)
        f->descriptors++;
}

/* Runs `explore` in a child with standard descriptors as ffmpeg has them, but a file as its output. */
static struct findings find_out(void) {
    struct findings *shared =
                        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
                    found;
    assert_true(shared != MAP_FAILED);
    struct confinement c;
    assert_int_equal(confine_prepare(&c, "/usr/bin/true", 5, NULL), 0);
    int input = memfd_create("input", MFD_CLOEXEC), output = memfd_create("output", MFD_CLOEXEC);
    assert_true(input >= 0 && output >= 0);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        dup2(input, 0);
        dup2(output, 1);
        if (c.landlock_fd >= 0)
            c.landlock_fd = dup2(c.landlock_fd, 200);
        for (int fd = 3; fd < 200; fd++)
            close(fd);
        signal(SIGXFSZ, SIG_IGN);
        explore(shared, &c, parent);
        _exit(0);
    }
    int wait_status;
    assert_int_equal(waitpid(pid, &wait_status, 0), pid);
    assert_true(WIFEXITED(wait_status));
    assert_int_equal(WEXITSTATUS(wait_status), 0);
    confine_free(&c);
    close(input);
    close(output);
    found = *shared;
    munmap(shared, sizeof *shared);
    return found;
}

static void test_what_is_refused(void **state) {
    (void)state;
    struct findings f = find_out();
    assert_true(f.holds);
    assert_true(f.parts & CONFINE_RLIMITS);
    assert_true(f.parts & CONFINE_NO_NEW_PRIVS);
    assert_int_equal(f.grow_file, EFBIG);
    assert_int_equal(f.reopen_input, 0);
    assert_int_equal(f.read_library, 0);
    assert_int_equal(f.descriptors, CONFINE_DESCRIPTORS_MAX - 3);
    if (f.parts & CONFINE_LANDLOCK) {
        assert_int_equal(f.read_passwd, EACCES);
        assert_int_equal(f.list_root, EACCES);
        assert_int_equal(f.read_proc, EACCES);
    } else {
        print_message("SKIPPED: this kernel has no Landlock\n");
    }
    if (f.parts & CONFINE_SECCOMP) {
        assert_int_equal(f.write_tmp, ENOSYS);
        assert_int_equal(f.make_folder, EPERM);
        assert_int_equal(f.socket, EPERM);
        assert_int_equal(f.clone, ENOSYS);
        assert_int_equal(f.kill_parent, EPERM);
        assert_int_equal(f.raise_limit, ENOSYS);
        assert_int_equal(f.execute_memory, ENOSYS);
        assert_int_equal(f.write_code, ENOSYS);
        assert_int_equal(f.exec_other, ENOSYS);
    } else {
        print_message("SKIPPED: this kernel has no seccomp filters\n");
    }
}

/* What only a program that was taken over does ends it. */
static void test_what_is_fatal(void **state) {
    (void)state;
    const long calls[] = {SYS_ptrace, SYS_unshare, SYS_process_vm_readv, SYS_io_uring_setup, SYS_mount};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct confinement c;
        assert_int_equal(confine_prepare(&c, "/usr/bin/true", 5, NULL), 0);
        pid_t pid = fork();
        if (pid == 0) {
            unsigned parts = confine_enter(&c);
            if (!(parts & CONFINE_SECCOMP))
                _exit(77);
            syscall(calls[i], 0, 0, 0, 0, 0, 0);
            _exit(0);
        }
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 77)
            print_message("SKIPPED: this kernel has no seccomp filters\n");
        else
            assert_true(WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGSYS);
        confine_free(&c);
    }
}

static void test_describe(void **state) {
    (void)state;
    char text[128];
    assert_string_equal(confine_describe(text, sizeof text, 0, 0), "no rlimits");
    assert_string_equal(confine_describe(text, sizeof text, CONFINE_RLIMITS | CONFINE_LANDLOCK, 3),
                        "rlimits, landlock v3");
    assert_string_equal(confine_describe(text, sizeof text, 63, 6),
                        "rlimits, no-new-privs, user and network namespaces, landlock v6, seccomp");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_what_is_fatal),
        cmocka_unit_test(test_describe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
