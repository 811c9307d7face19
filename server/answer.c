#include "server/answer.h"

#include <stdlib.h>

#include "base/arena.h"

struct answer {
    Timbre__V1__PredictResponse response;
    Timbre__V1__Receipt receipt;
    Timbre__V1__Score dominant;
    struct arena block;
};

/* What a block of scores is built from. */
struct build {
    const struct model_info *info;
    int top_k; /* scores in a list */
    bool sorted;
    int *order; /* [labels] scratch */
    struct arena *arena;
};

void answer_fill_score(Timbre__V1__Score *to, const struct model_info *info, int index, float score,
                       float logit) {
    timbre__v1__score__init(to);
    to->index = index;
    to->label = (char *)info->labels[index];
    to->score = score;
    to->logit = logit;
}

static int by_score(const void *a, const void *b, void *scores) {
    const int i = *(const int *)a, j = *(const int *)b;
    const float x = ((const float *)scores)[i], y = ((const float *)scores)[j];
    return x < y ? 1 : x > y ? -1 : i - j;
}

/* A list of scores in the arena; with a counting one only its size matters. */
static Timbre__V1__Score **list_scores(const struct build *b, const float *scores, const float *logits) {
    Timbre__V1__Score **list = arena_alloc(b->arena, (size_t)b->top_k, sizeof *list);
    Timbre__V1__Score *each = arena_alloc(b->arena, (size_t)b->top_k, sizeof *each);
    if (!list || !each)
        return NULL;
    for (int i = 0; i < b->info->labels_count; i++)
        b->order[i] = i;
    if (b->sorted)
        qsort_r(b->order, (size_t)b->info->labels_count, sizeof *b->order, by_score, (void *)scores);
    for (int i = 0; i < b->top_k; i++) {
        const int index = b->order[i];
        answer_fill_score(&each[i], b->info, index, scores[index], logits[index]);
        list[i] = &each[i];
    }
    return list;
}

Timbre__V1__AnswerStatus answer_convert_outcome(enum engine_outcome o) {
    static const Timbre__V1__AnswerStatus statuses[] = {
        [ENGINE_OK] = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_OK,
        [ENGINE_NO_SPEECH] = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_NO_SPEECH,
        [ENGINE_TOO_SHORT] = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_TOO_SHORT,
        [ENGINE_ERROR] = TIMBRE__V1__ANSWER_STATUS__ANSWER_STATUS_ERROR,
    };
    return statuses[o];
}

static void list_windows(Timbre__V1__PredictResponse *to, const struct engine_result *r,
                         const struct build *b) {
    const size_t count = (size_t)r->windows_count;
    Timbre__V1__Window **list = arena_alloc(b->arena, count, sizeof *list);
    Timbre__V1__Window *each = arena_alloc(b->arena, count, sizeof *each);
    for (size_t i = 0; i < count; i++) {
        const struct engine_window *w = &r->windows[i];
        Timbre__V1__Score **scores = w->scores ? list_scores(b, w->scores, w->logits) : NULL;
        if (!list || !each)
            continue;
        timbre__v1__window__init(&each[i]);
        each[i].start_s = w->start_s;
        each[i].end_s = w->end_s;
        each[i].status = answer_convert_outcome(w->outcome);
        each[i].scores = scores;
        each[i].n_scores = w->scores ? (size_t)b->top_k : 0;
        list[i] = &each[i];
    }
    to->windows = list;
    to->n_windows = count;
}

static void fill_lists(struct answer *a, const struct engine_result *r, struct build *b) {
    Timbre__V1__PredictResponse *to = &a->response;
    b->order = arena_alloc(b->arena, (size_t)b->info->labels_count, sizeof *b->order);
    if (r->scores) {
        to->scores = list_scores(b, r->scores, r->logits);
        to->n_scores = (size_t)b->top_k;
    }
    if (r->windows)
        list_windows(to, r, b);
}

void answer_fill_receipt(Timbre__V1__Receipt *to, const struct model_info *info, const char *model_name,
                         const char *model_version) {
    timbre__v1__receipt__init(to);
    to->model = (char *)model_name;
    to->model_version = (char *)model_version;
    to->digest = (char *)info->digest;
    to->device = (char *)info->device;
    to->precision = (char *)info->precision;
}

struct answer *answer_new(const struct engine_result *r, const struct model *m,
                          const struct answer_options *o) {
    struct answer *a = calloc(1, sizeof *a);
    struct arena counting;
    if (!a)
        return NULL;
    struct build b = {.info = model_get_info(m), .sorted = o->top_k > 0, .arena = &counting};
    b.top_k = o->top_k > 0 && o->top_k < b.info->labels_count ? o->top_k : b.info->labels_count;
    Timbre__V1__PredictResponse *to = &a->response;
    timbre__v1__predict_response__init(to);
    arena_init_counting(&counting);
    fill_lists(a, r, &b);
    b.arena = &a->block;
    if (counting.failed || arena_init(&a->block, counting.used, "an answer", NULL)) {
        free(a);
        return NULL;
    }
    fill_lists(a, r, &b);
    to->status = answer_convert_outcome(r->outcome);
    to->message = (char *)r->status.message;
    to->duration_s = r->duration_s;
    to->embedding = (float *)r->embedding;
    to->n_embedding = r->embedding ? (size_t)b.info->hidden : 0;
    to->request_id = (char *)o->request_id;
    answer_fill_receipt(&a->receipt, b.info, o->model_name, o->model_version);
    a->receipt.batch_size = r->batch_size;
    a->receipt.queue_ms = r->queue_ms;
    a->receipt.compute_ms = r->compute_ms;
    a->receipt.audio_s = r->audio_s;
    to->receipt = &a->receipt;
    if (r->dominant >= 0) {
        answer_fill_score(&a->dominant, b.info, r->dominant, r->scores[r->dominant], r->logits[r->dominant]);
        to->dominant = &a->dominant;
    }
    return a;
}

const Timbre__V1__PredictResponse *answer_get(const struct answer *a) {
    return &a->response;
}

void answer_free(struct answer *a) {
    if (!a)
        return;
    arena_free(&a->block);
    free(a);
}

void answer_describe_model(Timbre__V1__Model *to, const char *name, const char *version,
                           const struct model *m) {
    const struct model_info *info = model_get_info(m);
    timbre__v1__model__init(to);
    to->name = (char *)name;
    to->version = (char *)version;
    to->digest = (char *)info->digest;
    to->family = (char *)info->family;
    to->head = (char *)info->head;
    to->n_labels = (size_t)info->labels_count;
    to->labels = (char **)info->labels;
    to->output = (char *)info->output;
    to->sample_rate_hz = info->sampling_rate_hz;
    to->min_audio_s = (double)info->min_samples / info->sampling_rate_hz;
    to->frame_s = info->frame_s;
    to->hidden = info->hidden;
    to->parameters = info->parameters;
    to->licence = (char *)info->licence;
    to->device = (char *)info->device;
    to->precision = (char *)info->precision;
}
