/* ffmpeg: files that libsndfile does not read, through the ffmpeg program in a child process.
 *
 * The child is taken to be hostile, because what it reads is. It gets three descriptors: the file as a sealed
 * block of memory, a pipe for samples and a pipe for messages. audio/confine.h is what the kernel does to
 * keep it from anything else. It may not start programs, so `ffmpeg` must be the program itself and no script
 * around it. */
#ifndef TIMBRE_AUDIO_FFMPEG_H
#define TIMBRE_AUDIO_FFMPEG_H

#include <stddef.h>

#include "audio/audio.h"

struct audio_attempt;

/* One attempt at the file, into a->sink, which must be empty. 0: it ran, and `a` says what came of it.
 * Errors: those of audio_decode that end the decoding, FAILED_PRECONDITION (no such program, or it is none),
 * UNAVAILABLE (it cannot be started now), DEADLINE_EXCEEDED. Whatever happens, the child is gone and its
 * descriptors are closed on return. Thread-safe. */
int ffmpeg_decode(struct audio_attempt *a, const void *data, size_t bytes, int rate_hz,
                  const struct audio_limits *limits, struct status *st);

/* What keeps a child of this process in on this machine, found by confining one: for example
 * "rlimits, no-new-privs, user and network namespaces, landlock v3, seccomp". Returns `text`. */
const char *ffmpeg_describe_confinement(char *text, size_t bytes);

#endif
