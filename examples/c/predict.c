/* Asks a Timbre server for the emotion in audio files, all at the same time.
 *
 *     predict localhost:9000 FILE... */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <timbre/client.h>

struct file {
    const char *path;
    struct counter *open;
};

/* Files whose answer has not come. */
struct counter {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int count, failed;
};

static void *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    const long size = ftell(f);
    rewind(f);
    void *data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    *bytes = data ? fread(data, 1, (size_t)size, f) : 0;
    fclose(f);
    return data;
}

/* Runs on the client's thread: it must not wait. */
static void on_result(struct timbre_prediction *p, const struct timbre_status *status, void *user) {
    struct file *file = user;
    if (!p)
        printf("%s: %s: %s\n", file->path, timbre_code_name(status->code), status->message);
    else if (p->dominant)
        printf("%s: %s %.3f\n", file->path, p->dominant->label, p->dominant->score);
    else
        printf("%s: %s %s\n", file->path, timbre_answer_name(p->answer), p->message);
    pthread_mutex_lock(&file->open->mutex);
    file->open->count--;
    file->open->failed += !p;
    pthread_cond_signal(&file->open->changed);
    pthread_mutex_unlock(&file->open->mutex);
    timbre_prediction_free(p);
}

int main(int argc, char **argv) {
    struct counter open = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
    struct timbre_client *client;
    struct timbre_status status;
    if (argc < 3) {
        fprintf(stderr, "usage: predict ADDRESS FILE...\n");
        return 2;
    }
    /* Fields that are not named have their defaults: plain text, 60 s, up to four attempts. For a server that
     * asks for them: .tls_ca = "ca.pem", .token_file = "token". */
    const struct timbre_client_options options = {.target = argv[1]};
    if (timbre_client_new(&client, &options, &status)) {
        fprintf(stderr, "%s\n", status.message);
        return 3;
    }

    struct file *files = calloc((size_t)argc, sizeof *files);
    for (int i = 2; i < argc; i++) {
        struct timbre_predict_request request = {.audio = NULL}; /* a file of any format */
        void *data = read_file(argv[i], &request.audio_bytes);
        request.audio = data;
        request.release =
            free; /* called with release_arg: the bytes are sent from where they are, then freed */
        request.release_arg = data;
        files[i] = (struct file){argv[i], &open};
        pthread_mutex_lock(&open.mutex);
        open.count++;
        pthread_mutex_unlock(&open.mutex);
        if (!data)
            on_result(NULL,
                      &(struct timbre_status){.code = TIMBRE_CODE_NOT_FOUND, .message = "cannot be read"},
                      &files[i]);
        else if (timbre_predict_start(client, &request, on_result, &files[i], NULL, &status))
            on_result(NULL, &status, &files[i]); /* it did not begin */
    }

    pthread_mutex_lock(&open.mutex);
    while (open.count > 0)
        pthread_cond_wait(&open.changed, &open.mutex);
    pthread_mutex_unlock(&open.mutex);
    timbre_client_del(client);
    free(files);
    return open.failed ? 1 : 0;
}
