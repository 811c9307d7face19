/* confine: rlimits, namespaces, Landlock and seccomp around a child process. */
#include "audio/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/filter.h>

#include "base/text.h"

/* ffmpeg with its 200 libraries needs 300 MB of address space to start. */
#define CONFINE_ADDRESS_BYTES_MAX ((rlim_t)768 << 20)

/* ---- Landlock ---- */

/* The kernel's structure with all fields up to ABI 6; older kernels take it when what they do not know is
 * zero. */
struct ruleset_attributes {
    uint64_t handled_access_fs, handled_access_net, scoped;
};

enum {
    LANDLOCK_FS_ABI1 = (1 << 13) - 1, /* every right there was at first */
    LANDLOCK_FS_REFER_ABI2 = 1 << 13,
    LANDLOCK_FS_TRUNCATE_ABI3 = 1 << 14,
    LANDLOCK_FS_IOCTL_DEV_ABI5 = 1 << 15,
    LANDLOCK_NET_TCP_ABI4 = 3,   /* bind, connect */
    LANDLOCK_SCOPE_ALL_ABI6 = 3, /* abstract UNIX sockets, signals */
};

static int landlock_open_ruleset(int *abi) {
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1)
        return -1;
    struct ruleset_attributes attributes = {.handled_access_fs = LANDLOCK_FS_ABI1};
    if (version >= 2)
        attributes.handled_access_fs |= LANDLOCK_FS_REFER_ABI2;
    if (version >= 3)
        attributes.handled_access_fs |= LANDLOCK_FS_TRUNCATE_ABI3;
    if (version >= 4)
        attributes.handled_access_net = LANDLOCK_NET_TCP_ABI4;
    if (version >= 5)
        attributes.handled_access_fs |= LANDLOCK_FS_IOCTL_DEV_ABI5;
    if (version >= 6)
        attributes.scoped = LANDLOCK_SCOPE_ALL_ABI6;
    *abi = (int)version;
    return (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
}

/* A path that is not there needs no rule. */
static void landlock_allow(int ruleset, const char *path, uint64_t access) {
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return;
    struct landlock_path_beneath_attr rule = {.allowed_access = access, .parent_fd = fd};
    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    close(fd);
}

static int landlock_prepare(const char *program, int *abi) {
    static const char *const libraries[] = {"/lib",       "/lib32",     "/lib64",
                                            "/usr/lib",   "/usr/lib64", "/usr/local/lib",
                                            "/nix/store", "/gnu/store", "/usr/local/lib64"};
    int ruleset = landlock_open_ruleset(abi);
    if (ruleset < 0)
        return -1;
    const uint64_t run = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE;
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++)
        landlock_allow(ruleset, libraries[i], run);
    landlock_allow(ruleset, "/etc/ld.so.cache", LANDLOCK_ACCESS_FS_READ_FILE);
    landlock_allow(ruleset, program, run);
    const char *slash = strrchr(program, '/');
    char beside[PATH_MAX]; /* PREFIX/lib for a program in PREFIX/bin */
    if (slash != NULL && slash - program >= 4 && memcmp(slash - 4, "/bin", 4) == 0 &&
        snprintf(beside, sizeof beside, "%.*s/lib", (int)(slash - program - 4), program) < (int)sizeof beside)
        landlock_allow(ruleset, beside, run);
    return ruleset;
}

/* ---- seccomp ---- */

/* What a decoder, the dynamic loader and the C library need. Everything that is neither here nor below fails
 * with ENOSYS, as in an older kernel, which libraries know how to live with. */
static const int calls_allowed[] = {SCMP_SYS(access),
                                    SCMP_SYS(arch_prctl),
                                    SCMP_SYS(brk),
                                    SCMP_SYS(clock_getres),
                                    SCMP_SYS(clock_gettime),
                                    SCMP_SYS(clock_nanosleep),
                                    SCMP_SYS(close),
                                    SCMP_SYS(dup),
                                    SCMP_SYS(dup2),
                                    SCMP_SYS(dup3),
                                    SCMP_SYS(exit),
                                    SCMP_SYS(exit_group),
                                    SCMP_SYS(faccessat),
                                    SCMP_SYS(faccessat2),
                                    SCMP_SYS(fadvise64),
                                    SCMP_SYS(fstat),
                                    SCMP_SYS(fstatfs),
                                    SCMP_SYS(futex),
                                    SCMP_SYS(getcwd),
                                    SCMP_SYS(getdents64),
                                    SCMP_SYS(getegid),
                                    SCMP_SYS(geteuid),
                                    SCMP_SYS(getgid),
                                    SCMP_SYS(getpid),
                                    SCMP_SYS(getppid),
                                    SCMP_SYS(getrandom),
                                    SCMP_SYS(getrlimit),
                                    SCMP_SYS(getrusage),
                                    SCMP_SYS(gettid),
                                    SCMP_SYS(gettimeofday),
                                    SCMP_SYS(getuid),
                                    SCMP_SYS(get_robust_list),
                                    SCMP_SYS(lseek),
                                    SCMP_SYS(lstat),
                                    SCMP_SYS(madvise),
                                    SCMP_SYS(membarrier),
                                    SCMP_SYS(mremap),
                                    SCMP_SYS(munmap),
                                    SCMP_SYS(nanosleep),
                                    SCMP_SYS(newfstatat),
                                    SCMP_SYS(poll),
                                    SCMP_SYS(ppoll),
                                    SCMP_SYS(pread64),
                                    SCMP_SYS(preadv),
                                    SCMP_SYS(pselect6),
                                    SCMP_SYS(read),
                                    SCMP_SYS(readlink),
                                    SCMP_SYS(readlinkat),
                                    SCMP_SYS(readv),
                                    SCMP_SYS(restart_syscall),
                                    SCMP_SYS(rseq),
                                    SCMP_SYS(rt_sigaction),
                                    SCMP_SYS(rt_sigprocmask),
                                    SCMP_SYS(rt_sigreturn),
                                    SCMP_SYS(select),
                                    SCMP_SYS(set_robust_list),
                                    SCMP_SYS(set_tid_address),
                                    SCMP_SYS(sched_getattr),
                                    SCMP_SYS(sched_getaffinity),
                                    SCMP_SYS(sched_getparam),
                                    SCMP_SYS(sched_getscheduler),
                                    SCMP_SYS(sched_yield),
                                    SCMP_SYS(sigaltstack),
                                    SCMP_SYS(stat),
                                    SCMP_SYS(statfs),
                                    SCMP_SYS(statx),
                                    SCMP_SYS(sysinfo),
                                    SCMP_SYS(time),
                                    SCMP_SYS(times),
                                    SCMP_SYS(uname),
                                    SCMP_SYS(write),
                                    SCMP_SYS(writev)};

/* Things programs try in good faith: refused with EPERM. */
static const int calls_refused[] = {
    SCMP_SYS(accept),   SCMP_SYS(accept4),    SCMP_SYS(bind),     SCMP_SYS(connect),   SCMP_SYS(execveat),
    SCMP_SYS(fork),     SCMP_SYS(kill),       SCMP_SYS(link),     SCMP_SYS(linkat),    SCMP_SYS(listen),
    SCMP_SYS(mkdir),    SCMP_SYS(mkdirat),    SCMP_SYS(recvfrom), SCMP_SYS(recvmsg),   SCMP_SYS(rename),
    SCMP_SYS(renameat), SCMP_SYS(renameat2),  SCMP_SYS(sendmsg),  SCMP_SYS(sendto),    SCMP_SYS(setsockopt),
    SCMP_SYS(socket),   SCMP_SYS(socketpair), SCMP_SYS(symlink),  SCMP_SYS(symlinkat), SCMP_SYS(tgkill),
    SCMP_SYS(tkill),    SCMP_SYS(unlink),     SCMP_SYS(unlinkat), SCMP_SYS(vfork)};

/* Things no decoder tries unless it has been taken over: the process ends. */
static const int calls_fatal[] = {SCMP_SYS(add_key),
                                  SCMP_SYS(bpf),
                                  SCMP_SYS(chroot),
                                  SCMP_SYS(delete_module),
                                  SCMP_SYS(finit_module),
                                  SCMP_SYS(init_module),
                                  SCMP_SYS(io_uring_enter),
                                  SCMP_SYS(io_uring_register),
                                  SCMP_SYS(io_uring_setup),
                                  SCMP_SYS(kexec_load),
                                  SCMP_SYS(keyctl),
                                  SCMP_SYS(mount),
                                  SCMP_SYS(open_by_handle_at),
                                  SCMP_SYS(pivot_root),
                                  SCMP_SYS(perf_event_open),
                                  SCMP_SYS(process_vm_readv),
                                  SCMP_SYS(process_vm_writev),
                                  SCMP_SYS(ptrace),
                                  SCMP_SYS(reboot),
                                  SCMP_SYS(request_key),
                                  SCMP_SYS(setns),
                                  SCMP_SYS(swapon),
                                  SCMP_SYS(umount2),
                                  SCMP_SYS(unshare),
                                  SCMP_SYS(userfaultfd)};

/* A call that this processor lacks is no failure: its rule cannot be needed. */
static bool filter_add(scmp_filter_ctx filter, uint32_t action, const int *calls, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (calls[i] >= 0 && seccomp_rule_add(filter, action, calls[i], 0) != 0)
            return false;
    return true;
}

/* Allows `call` when argument `index` is `value` under `mask`. */
static bool filter_allow_masked(scmp_filter_ctx filter, int call, unsigned index, uint64_t mask,
                                uint64_t value) {
    struct scmp_arg_cmp compare = SCMP_CMP(index, SCMP_CMP_MASKED_EQ, mask, value);
    return call < 0 || seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, &compare) == 0;
}

static bool filter_allow_each(scmp_filter_ctx filter, int call, unsigned index, const uint64_t *values,
                              size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!filter_allow_masked(filter, call, index, UINT64_MAX, values[i]))
            return false;
    return true;
}

/* The calls that are allowed in some forms only. */
static bool filter_add_forms(scmp_filter_ctx filter, const char *program) {
    static const uint64_t fcntls[] = {F_GETFD, F_SETFD, F_GETFL, F_DUPFD, F_DUPFD_CLOEXEC};
    static const uint64_t ioctls[] = {TCGETS, TIOCGWINSZ, FIONREAD};
    static const uint64_t prctls[] = {PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, 0x53564d41 /* PR_SET_VMA */};
    const uint64_t opening = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY);
    const uint64_t path = (uint64_t)(uintptr_t)program;
    struct scmp_arg_cmp own_limits[] = {SCMP_CMP(0, SCMP_CMP_EQ, 0, 0), SCMP_CMP(2, SCMP_CMP_EQ, 0, 0)};
    return filter_allow_masked(filter, SCMP_SYS(open), 1, opening, O_RDONLY) &&
           filter_allow_masked(filter, SCMP_SYS(openat), 2, opening, O_RDONLY) &&
           /* Memory is written or run, never both, and what was written does not become code. */
           filter_allow_masked(filter, SCMP_SYS(mmap), 2, PROT_EXEC, 0) &&
           filter_allow_masked(filter, SCMP_SYS(mmap), 2, PROT_EXEC | PROT_WRITE, PROT_EXEC) &&
           filter_allow_masked(filter, SCMP_SYS(mprotect), 2, PROT_EXEC, 0) &&
           filter_allow_masked(filter, SCMP_SYS(clone), 0, CLONE_THREAD, CLONE_THREAD) &&
           filter_allow_each(filter, SCMP_SYS(execve), 0, &path, 1) &&
           filter_allow_each(filter, SCMP_SYS(fcntl), 1, fcntls, sizeof fcntls / sizeof *fcntls) &&
           filter_allow_each(filter, SCMP_SYS(ioctl), 1, ioctls, sizeof ioctls / sizeof *ioctls) &&
           filter_allow_each(filter, SCMP_SYS(prctl), 0, prctls, sizeof prctls / sizeof *prctls) &&
           seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, own_limits) == 0;
}

/* libseccomp's own loader would allocate in the child; so the program is exported here and installed there by
 * hand. */
static bool filter_export(scmp_filter_ctx filter, struct confinement *c) {
    bool done = false;
    int fd = memfd_create("filter", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    off_t bytes = seccomp_export_bpf(filter, fd) == 0 ? lseek(fd, 0, SEEK_END) : -1;
    if (bytes > 0 && bytes % (off_t)sizeof(struct sock_filter) == 0 &&
        bytes / (off_t)sizeof(struct sock_filter) <= BPF_MAXINSNS &&
        (c->filter = malloc((size_t)bytes)) != NULL) {
        done = pread(fd, c->filter, (size_t)bytes, 0) == (ssize_t)bytes;
        c->filter_length = done ? (unsigned short)((size_t)bytes / sizeof(struct sock_filter)) : 0;
    }
    close(fd);
    return done;
}

/* False only when the kernel has seccomp and the filter cannot be made. */
static bool filter_prepare(struct confinement *c) {
    uint32_t action = SECCOMP_RET_KILL_PROCESS;
    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) != 0)
        return true;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL)
        return false;
    bool made =
        seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) == 0 &&
        filter_add(filter, SCMP_ACT_ALLOW, calls_allowed, sizeof calls_allowed / sizeof *calls_allowed) &&
        filter_add(filter, SCMP_ACT_ERRNO(EPERM), calls_refused,
                   sizeof calls_refused / sizeof *calls_refused) &&
        filter_add(filter, SCMP_ACT_KILL_PROCESS, calls_fatal, sizeof calls_fatal / sizeof *calls_fatal) &&
        filter_add_forms(filter, c->program) && filter_export(filter, c);
    seccomp_release(filter);
    return made;
}

/* ---- in and out ---- */

int confine_prepare(struct confinement *c, const char *program, unsigned cpu_s_max, struct status *st) {
    *c = (struct confinement){
        .program = program, .parent = getpid(), .landlock_fd = -1, .cpu_s_max = cpu_s_max};
    if (!filter_prepare(c)) {
        confine_free(c);
        return status_set(st, STATUS_RESOURCE_EXHAUSTED,
                          "ffmpeg cannot be confined: no memory for its filter");
    }
    c->landlock_fd = landlock_prepare(program, &c->landlock_abi);
    return 0;
}

void confine_free(struct confinement *c) {
    if (c->landlock_fd >= 0)
        close(c->landlock_fd);
    free(c->filter);
    c->landlock_fd = -1;
    c->filter = NULL;
    c->filter_length = 0;
}

/* Never raises a limit that is already lower. */
static bool enter_rlimit(int resource, rlim_t most) {
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0)
        return false;
    if (limit.rlim_max > most)
        limit.rlim_max = most;
    if (limit.rlim_cur > limit.rlim_max)
        limit.rlim_cur = limit.rlim_max;
    return setrlimit((__rlimit_resource_t)resource, &limit) == 0;
}

/* The number of processes is not limited here, as it is counted for all of the caller's; seccomp allows none.
 */
static bool enter_rlimits(const struct confinement *c) {
    bool held = enter_rlimit(RLIMIT_CPU, c->cpu_s_max);
    held &= enter_rlimit(RLIMIT_AS, CONFINE_ADDRESS_BYTES_MAX);
    held &= enter_rlimit(RLIMIT_FSIZE, 0);
    held &= enter_rlimit(RLIMIT_CORE, 0);
    held &= enter_rlimit(RLIMIT_MEMLOCK, 0);
    held &= enter_rlimit(RLIMIT_NOFILE, CONFINE_DESCRIPTORS_MAX);
    return held;
}

static unsigned enter_namespaces(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) == 0)
        return CONFINE_USER_NAMESPACE | CONFINE_NET_NAMESPACE;
    if (unshare(CLONE_NEWNET) == 0) /* some systems refuse user namespaces but not root */
        return CONFINE_NET_NAMESPACE;
    return 0;
}

unsigned confine_enter(const struct confinement *c) {
    unsigned held = 0;
    held |= enter_namespaces();
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* after the namespaces, which would clear it */
    if (getppid() != c->parent)
        _exit(127); /* the parent died before it could be asked for */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
        held |= CONFINE_NO_NEW_PRIVS;
    if (c->landlock_fd >= 0 && syscall(SYS_landlock_restrict_self, c->landlock_fd, 0) == 0)
        held |= CONFINE_LANDLOCK;
    if (enter_rlimits(c))
        held |= CONFINE_RLIMITS;
    struct sock_fprog filter = {.len = c->filter_length, .filter = c->filter};
    if (c->filter_length > 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0)
        held |= CONFINE_SECCOMP;
    return held;
}

bool confine_holds(const struct confinement *c, unsigned parts) {
    unsigned wanted = CONFINE_RLIMITS | CONFINE_NO_NEW_PRIVS;
    if (c->landlock_fd >= 0)
        wanted |= CONFINE_LANDLOCK;
    if (c->filter_length > 0)
        wanted |= CONFINE_SECCOMP;
    return (parts & wanted) == wanted;
}

const char *confine_describe(char *text, size_t bytes, unsigned parts, int landlock_abi) {
    struct text t;
    text_init(&t, text, bytes);
    text_put(&t, parts & CONFINE_RLIMITS ? "rlimits" : "no rlimits");
    if (parts & CONFINE_NO_NEW_PRIVS)
        text_put(&t, ", no-new-privs");
    if (parts & CONFINE_USER_NAMESPACE)
        text_put(&t, ", user and network namespaces");
    else if (parts & CONFINE_NET_NAMESPACE)
        text_put(&t, ", network namespace");
    if (parts & CONFINE_LANDLOCK)
        text_printf(&t, ", landlock v%d", landlock_abi);
    if (parts & CONFINE_SECCOMP)
        text_put(&t, ", seccomp");
    return text;
}
