/* confine: shuts a child process in before it runs a program that reads what strangers sent. Linux.
 *
 * Everything that allocates happens in confine_prepare, in the parent; confine_enter makes only system calls,
 * so that it may run between fork and exec in a program with threads. What the kernel at hand does not offer
 * is left out and not reported as an error: confine_enter says what holds. What it offers is never left out.
 */
#ifndef TIMBRE_AUDIO_CONFINE_H
#define TIMBRE_AUDIO_CONFINE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/status.h"

enum confine_part {
    CONFINE_RLIMITS = 1 << 0, /* processor time, memory, descriptors; no file may grow, no core */
    CONFINE_NO_NEW_PRIVS = 1 << 1,
    CONFINE_USER_NAMESPACE = 1 << 2, /* no privilege over anything, even when started as root */
    CONFINE_NET_NAMESPACE = 1 << 3,  /* no network interface */
    CONFINE_LANDLOCK = 1 << 4,       /* reads the system's libraries and the program itself, no other file */
    CONFINE_SECCOMP = 1 << 5,        /* a list of system calls: no socket, no writing open, no new process */
};

struct confinement {
    const char *program; /* the only pointer that execve takes afterwards; the caller's */
    pid_t parent;
    int landlock_fd, landlock_abi; /* -1 and 0 without */
    void *filter;                  /* struct sock_filter[filter_length] */
    unsigned short filter_length;  /* 0: none */
    unsigned cpu_s_max;
};

/* The descriptors a confined process may have: 0, 1, 2, the reopened input, and one that newer versions of
 * ffmpeg need for a copy of their output. With the input open there is none left for any other file. */
enum { CONFINE_DESCRIPTORS_MAX = 5 };

/* `program` is an absolute path and must stay where it is. Error: RESOURCE_EXHAUSTED (what the kernel offers
 * cannot be made use of; a kernel that offers less is no error). */
int confine_prepare(struct confinement *c, const char *program, unsigned cpu_s_max, struct status *st);
void confine_free(struct confinement *c);

/* In the child: confines the calling process for good. Descriptors are the caller's business, except that
 * c->landlock_fd must be open. Returns the confine_parts that hold. */
unsigned confine_enter(const struct confinement *c);

/* Whether all that was prepared is among `parts`; only then may the program run. */
bool confine_holds(const struct confinement *c, unsigned parts);

/* The parts as text, such as "rlimits, no-new-privs, seccomp". Returns `text`. */
const char *confine_describe(char *text, size_t bytes, unsigned parts, int landlock_abi);

#endif
