/* sources: the files that a model is read from, their SHA-256, and the model's digest over all of them. */
#ifndef TIMBRE_MODELS_SOURCES_H
#define TIMBRE_MODELS_SOURCES_H

#include <pthread.h>

#include "models/checkpoint.h"
#include "models/config.h"
#include "models/model.h"

enum { SOURCES_MAX = CHECKPOINT_FILES_MAX + 8 };

struct source {
    const char *name;        /* within the folder; the checkpoint's or the config's */
    struct file_stamp stamp; /* set by sources_stamp */
    bool is_known;           /* sha256 is set */
    char sha256[SHA256_HEX_BYTES];
};

struct sources {
    const char *dir;
    struct source files[SOURCES_MAX]; /* sorted by name */
    int count;
    pthread_t thread;
    bool is_hashing; /* the thread runs */
    int result;      /* of what it did */
    struct status status;
};

/* Lists the files that were read; nothing is to be freed, but a hash that was begun must be ended. */
void sources_init(struct sources *s, const char *dir, const struct checkpoint *checkpoint,
                  const struct config *config);

/* Takes every file's stamp. Error: that of the first file that has none. */
int sources_stamp(struct sources *s, struct status *st);

/* Whether every stamp is still what it was when it was taken. */
bool sources_are_unchanged(const struct sources *s);

/* Computes the SHA-256 of those that are not known yet, on a thread of its own where there is one to be had;
 * nothing when that was begun already. sources_hash_end waits for it. Errors: those of sha256_file. */
void sources_hash_begin(struct sources *s);
int sources_hash_end(struct sources *s, struct status *st);

/* Fills the digest and the files of the report. All are known. */
int sources_report(const struct sources *s, struct model_info *info, struct status *st);

#endif
