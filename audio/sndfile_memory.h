/* sndfile_memory: opens a file that lies in memory with libsndfile. Not for other folders. */
#ifndef TIMBRE_AUDIO_SNDFILE_MEMORY_H
#define TIMBRE_AUDIO_SNDFILE_MEMORY_H

#include <sndfile.h>

struct audio_attempt;

/* The bytes as the seekable file that libsndfile wants. */
struct memory_file {
    const unsigned char *data;
    sf_count_t bytes, position;
};

/* `memory` [data, bytes] must stay until sf_close. NULL: not a file that libsndfile reads, and `a` says so.
 */
SNDFILE *sndfile_open_memory(struct memory_file *memory, SF_INFO *info, struct audio_attempt *a);

/* Whether what was read, a->sink.frames, is all there is, and right: fills `a`. `unread` is how much of the
 * file was left when it said it was done. */
void sndfile_judge(struct audio_attempt *a, SNDFILE *file, const SF_INFO *info, sf_count_t unread);

#endif
