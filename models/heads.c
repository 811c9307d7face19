#include "models/heads.h"

#include <string.h>

/* The tensors that tell the heads apart. */
static const struct {
    enum head_kind kind;
    const char *first, *last, *name;
} kinds[] = {
    {HEAD_PROJECTOR, "/projector", "/classifier", "projector + classifier"},
    {HEAD_DENSE_TANH, "/classifier.dense", "/classifier.out_proj", "dense + tanh + out_proj"},
    {HEAD_AGE_GENDER, "/age.dense", "/gender.out_proj", "age and gender, each dense + tanh + out_proj"},
    {HEAD_DENSE, "/classifier.dense", "/classifier.output", "dense + output"},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static bool has_linear(const struct weights *w, const char *name) {
    char full[64];
    strcpy(full, name);
    strcat(full, ".weight");
    return weights_has(w, full);
}

/* Rows of a matrix that must be there; 0 after an error. */
static int count_rows(struct weights *w, const char *name) {
    const struct tensor *t = weights_find(w, name);
    if (!t)
        return 0;
    if (t->rank != 2 || t->shape[0] < 1 || t->shape[0] > CONFIG_HIDDEN_MAX) {
        weights_fail(w, STATUS_FAILED_PRECONDITION, "%s: not a matrix of 1 to %d rows", t->name,
                     CONFIG_HIDDEN_MAX);
        return 0;
    }
    return (int)t->shape[0];
}

static void detect_kind(struct head *h, struct weights *w) {
    const char *found = NULL;
    for (int i = 0; i < KINDS; i++) {
        if (!has_linear(w, kinds[i].first) || !has_linear(w, kinds[i].last))
            continue;
        if (found)
            weights_fail(w, STATUS_FAILED_PRECONDITION, "two heads in one checkpoint: %s, and %s", found,
                         kinds[i].name);
        found = kinds[i].name;
        h->kind = kinds[i].kind;
    }
    if (!found)
        weights_fail(
            w, STATUS_FAILED_PRECONDITION,
            "no head that this program knows: neither projector.weight with classifier.weight, nor "
            "classifier.dense.weight with classifier.out_proj.weight or classifier.output.weight, nor "
            "age.dense.weight with gender.out_proj.weight");
}

void head_detect(struct head *h, const struct config *c, struct weights *w, const char *head_activation) {
    static const struct {
        const char *name;
        enum kernels_activation act;
    } activations[] = {{"none", KERNELS_IDENTITY}, {"tanh", KERNELS_TANH}, {"relu", KERNELS_RELU}};
    *h = (struct head){.pooling = c->pooling, .middle = KERNELS_IDENTITY};
    detect_kind(h, w);
    if (w->failed)
        return;
    switch (h->kind) {
    case HEAD_PROJECTOR:
        h->pooling = KERNELS_POOL_MEAN;
        h->middle_size = count_rows(w, "/projector.weight");
        h->labels = count_rows(w, "/classifier.weight");
        break;
    case HEAD_DENSE_TANH:
        h->middle = KERNELS_TANH;
        h->middle_size = c->hidden;
        h->labels = count_rows(w, "/classifier.out_proj.weight");
        break;
    case HEAD_AGE_GENDER:
        h->middle = KERNELS_TANH;
        h->middle_size = c->hidden;
        h->labels = 1 + count_rows(w, "/gender.out_proj.weight");
        break;
    case HEAD_DENSE:
        h->middle_size = count_rows(w, "/classifier.dense.weight");
        h->labels = count_rows(w, "/classifier.output.weight");
        break;
    }
    if (h->labels > CONFIG_LABELS_MAX)
        weights_fail(w, STATUS_FAILED_PRECONDITION, "%d labels are more than the limit of %d", h->labels,
                     CONFIG_LABELS_MAX);
    for (size_t i = 0; head_activation && i < sizeof activations / sizeof *activations; i++) {
        if (strcmp(head_activation, activations[i].name) != 0)
            continue;
        if (h->kind != HEAD_DENSE)
            weights_fail(
                w, STATUS_INVALID_ARGUMENT,
                "head activation %s: only a head of classifier.dense and classifier.output leaves a choice",
                head_activation);
        h->middle = activations[i].act;
        return;
    }
    if (head_activation)
        weights_fail(w, STATUS_INVALID_ARGUMENT, "head activation %s: not one of none, tanh, relu",
                     head_activation);
}

const char *head_name(const struct head *h) {
    for (int i = 0; i < KINDS; i++)
        if (kinds[i].kind == h->kind)
            return kinds[i].name;
    return "";
}

void head_load(struct head *h, const struct config *c, struct loader *l) {
    switch (h->kind) {
    case HEAD_PROJECTOR:
        loader_head_linear(l, &h->first, "/projector", c->hidden, h->middle_size);
        loader_head_linear(l, &h->last, "/classifier", h->middle_size, h->labels);
        break;
    case HEAD_DENSE_TANH:
        loader_head_linear(l, &h->first, "/classifier.dense", c->hidden, h->middle_size);
        loader_head_linear(l, &h->last, "/classifier.out_proj", h->middle_size, h->labels);
        break;
    case HEAD_AGE_GENDER:
        loader_head_linear(l, &h->first, "/age.dense", c->hidden, h->middle_size);
        loader_head_linear(l, &h->last, "/age.out_proj", h->middle_size, 1);
        loader_head_linear(l, &h->second_first, "/gender.dense", c->hidden, h->middle_size);
        loader_head_linear(l, &h->second_last, "/gender.out_proj", h->middle_size, h->labels - 1);
        break;
    case HEAD_DENSE:
        loader_head_linear(l, &h->first, "/classifier.dense", c->hidden, h->middle_size);
        loader_head_linear(l, &h->last, "/classifier.output", h->middle_size, h->labels);
        break;
    }
}

void head_state_init(struct head_state *s, const struct head *h, const struct config *c, int clips_max,
                     struct arena *a) {
    const size_t clips = (size_t)clips_max;
    s->pooled = arena_alloc(a, clips * (size_t)c->hidden, sizeof(float));
    s->middle = arena_alloc(a, clips * (size_t)h->middle_size, sizeof(float));
    s->logits = arena_alloc(a, clips * (size_t)h->labels, sizeof(float));
    s->part = h->kind == HEAD_AGE_GENDER ? arena_alloc(a, clips * (size_t)h->labels, sizeof(float)) : NULL;
}

void head_forward(const struct head *h, const struct config *c, struct head_state *s, const void *hidden,
                  const struct kernels *k, struct kernels_device *d, const struct batch *b) {
    k->pool(d, s->pooled, hidden, h->pooling, c->hidden, b);                       /* [clips, H] */
    k->head_linear(d, s->middle, s->pooled, &h->first, h->middle, b->clips);       /* [clips, middle] */
    k->head_linear(d, s->logits, s->middle, &h->last, KERNELS_IDENTITY, b->clips); /* [clips, labels] */
    if (h->kind == HEAD_AGE_GENDER) { /* logits holds age [clips, 1] */
        k->head_linear(d, s->middle, s->pooled, &h->second_first, h->middle, b->clips);
        k->head_linear(d, s->part, s->middle, &h->second_last, KERNELS_IDENTITY, b->clips);
    }
}
