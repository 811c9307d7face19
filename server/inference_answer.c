#include "server/inference_answer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/text.h"

enum { PARAMETERS_MAX = 11, BEST_BYTES = 64 }; /* of the text of one class, beside its label */

typedef Inference__ModelInferResponse__InferOutputTensor Tensor;
typedef Inference__ModelInferResponse__ParametersEntry Parameter;

struct inference_answer {
    Inference__ModelInferResponse response;
    Parameter parameters[PARAMETERS_MAX], *parameter_list[PARAMETERS_MAX];
    Inference__InferParameter values[PARAMETERS_MAX];
    Tensor tensors[INFERENCE_OUTPUTS], *tensor_list[INFERENCE_OUTPUTS];
    Inference__InferTensorContents contents[INFERENCE_OUTPUTS];
    ProtobufCBinaryData raw[INFERENCE_OUTPUTS];
    struct arena block;
};

/* Everything that a tensor is made of. With a counting arena only sizes matter, and what it gave is NULL. */
struct build {
    struct inference_answer *a;
    struct arena *arena;
    const struct engine_result *result;
    const struct model_info *info;
    const struct inference_answer_options *o;
};

/* ---- elements of a tensor, raw or typed ---- */

static void put_raw(struct build *b, int at, const void *data, size_t bytes) {
    b->a->raw[at] = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)data};
}

static void put_floats(struct build *b, int at, const float *values, size_t count) {
    b->a->contents[at].n_fp32_contents = count;
    b->a->contents[at].fp32_contents = (float *)values;
    put_raw(b, at, values, count * sizeof *values);
}

static void put_doubles(struct build *b, int at, const double *values, size_t count) {
    b->a->contents[at].n_fp64_contents = count;
    b->a->contents[at].fp64_contents = (double *)values;
    put_raw(b, at, values, count * sizeof *values);
}

/* Each with its length in front, little-endian. */
static void put_strings_raw(struct build *b, int at, const char *const *texts, size_t count) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += sizeof(uint32_t) + strlen(texts[i]);
    uint8_t *out = arena_alloc(b->arena, bytes, 1);
    put_raw(b, at, out, bytes);
    for (size_t i = 0; i < count && out; i++) {
        const uint32_t length = (uint32_t)strlen(texts[i]);
        memcpy(out, &length, sizeof length);
        memcpy(out + sizeof length, texts[i], length);
        out += sizeof length + length;
    }
}

static void put_strings(struct build *b, int at, const char *const *texts, size_t count) {
    if (b->o->raw) {
        put_strings_raw(b, at, texts, count);
        return;
    }
    ProtobufCBinaryData *list = arena_alloc(b->arena, count, sizeof *list);
    for (size_t i = 0; i < count && list; i++)
        list[i] = (ProtobufCBinaryData){.len = strlen(texts[i]), .data = (uint8_t *)texts[i]};
    b->a->contents[at].n_bytes_contents = count;
    b->a->contents[at].bytes_contents = list;
}

/* ---- what the outputs hold ---- */

static int by_value(const void *a, const void *b, void *values) {
    const int i = *(const int *)a, j = *(const int *)b;
    const float x = ((const float *)values)[i], y = ((const float *)values)[j];
    return x < y ? 1 : x > y ? -1 : i - j;
}

/* The `count` highest as "score:index:label". */
static void put_best(struct build *b, int at, const float *values, size_t count) {
    const size_t labels = (size_t)b->info->labels_count;
    int *order = arena_alloc(b->arena, labels, sizeof *order);
    const char **texts = arena_alloc(b->arena, count, sizeof *texts);
    size_t bytes = 0; /* a label may be long: reckon with each at its full length */
    for (size_t i = 0; i < labels; i++)
        bytes += strlen(b->info->labels[i]) + BEST_BYTES;
    char *text = arena_alloc(b->arena, bytes, 1);
    if (!order || !texts || !text) {
        /* Counting: the strings have at most these bytes, raw lengths included. */
        arena_alloc(b->arena, bytes, 1);
        arena_alloc(b->arena, count, sizeof(ProtobufCBinaryData));
        return;
    }
    for (size_t i = 0; i < labels; i++)
        order[i] = (int)i;
    qsort_r(order, labels, sizeof *order, by_value, (void *)values);
    for (size_t i = 0; i < count; i++) {
        struct text t;
        const char *label = b->info->labels[order[i]];
        const size_t room = strlen(label) + BEST_BYTES;
        text_init(&t, text, room);
        text_put_json_float(&t, values[order[i]]);
        text_printf(&t, ":%d:", order[i]);
        text_put(&t, label);
        texts[i] = text;
        text += room;
    }
    put_strings(b, at, texts, count);
}

static void put_scores(struct build *b, int at, int best, const float *values) {
    if (best == 0)
        put_floats(b, at, values, values ? (size_t)b->info->labels_count : 0);
    else if (!values)
        put_strings(b, at, NULL, 0);
    else
        put_best(b, at, values, (size_t)(best < b->info->labels_count ? best : b->info->labels_count));
}

static void put_window_times(struct build *b, int at) {
    const size_t count = (size_t)b->result->windows_count;
    double *times = arena_alloc(b->arena, 2 * count, sizeof *times);
    for (size_t i = 0; i < count && times; i++) {
        times[2 * i] = b->result->windows[i].start_s;
        times[2 * i + 1] = b->result->windows[i].end_s;
    }
    put_doubles(b, at, times, 2 * count);
}

static void put_window_scores(struct build *b, int at) {
    const size_t count = (size_t)b->result->windows_count, labels = (size_t)b->info->labels_count;
    float *scores = arena_alloc(b->arena, count * labels, sizeof *scores);
    for (size_t i = 0; i < count && scores; i++)
        for (size_t k = 0; k < labels; k++)
            scores[i * labels + k] = b->result->windows[i].scores ? b->result->windows[i].scores[k] : NAN;
    put_floats(b, at, scores, count * labels);
}

static void put_window_states(struct build *b, int at) {
    const size_t count = (size_t)b->result->windows_count;
    const char **names = malloc((count + 1) * sizeof *names);
    if (!names) {
        b->arena->failed = true;
        return;
    }
    for (size_t i = 0; i < count; i++)
        names[i] = engine_outcome_name(b->result->windows[i].outcome);
    put_strings(b, at, names, count);
    free(names);
}

static void put_output(struct build *b, int at, const struct inference_output *out) {
    const struct engine_result *r = b->result;
    const char *status = engine_outcome_name(r->outcome);
    switch (out->id) {
    case INFERENCE_PROBABILITIES:
        put_scores(b, at, out->best, r->scores);
        break;
    case INFERENCE_LOGITS:
        put_scores(b, at, out->best, r->logits);
        break;
    case INFERENCE_LABELS:
        put_strings(b, at, b->info->labels, (size_t)b->info->labels_count);
        break;
    case INFERENCE_STATUS:
        put_strings(b, at, &status, 1);
        break;
    case INFERENCE_EMBEDDING:
        put_floats(b, at, r->embedding, r->embedding ? (size_t)b->info->hidden : 0);
        break;
    case INFERENCE_WINDOW_TIMES:
        put_window_times(b, at);
        break;
    case INFERENCE_WINDOW_PROBABILITIES:
        put_window_scores(b, at);
        break;
    case INFERENCE_WINDOW_STATUS:
        put_window_states(b, at);
        break;
    case INFERENCE_OUTPUTS:
        break;
    }
}

/* ---- shapes ---- */

static int64_t convert_dim(const struct build *b, const struct inference_output *out, int dim) {
    const struct engine_result *r = b->result;
    if (dim == INFERENCE_DIM_WINDOWS)
        return r->windows_count;
    if (dim == INFERENCE_DIM_HIDDEN)
        return r->embedding ? b->info->hidden : 0;
    if (dim != INFERENCE_DIM_LABELS)
        return dim;
    if ((out->id == INFERENCE_PROBABILITIES || out->id == INFERENCE_LOGITS) && !r->scores)
        return 0;
    return out->best > 0 && out->best < b->info->labels_count ? out->best : b->info->labels_count;
}

static void fill_tensor(struct build *b, int at, const struct inference_output *out) {
    const struct inference_tensor *d = &inference_outputs[out->id];
    Tensor *t = &b->a->tensors[at];
    inference__model_infer_response__infer_output_tensor__init(t);
    inference__infer_tensor_contents__init(&b->a->contents[at]);
    t->name = (char *)d->name;
    t->datatype = (char *)(out->best ? "BYTES" : d->datatype);
    int64_t *shape = arena_alloc(b->arena, 3, sizeof *shape);
    size_t count = 0;
    if (shape) {
        if (b->o->batched)
            shape[count++] = 1;
        for (int i = 0; i < d->dims_count; i++)
            shape[count++] = convert_dim(b, out, d->dims[i]);
    }
    t->shape = shape;
    t->n_shape = count;
    put_output(b, at, out);
    t->contents = b->o->raw ? NULL : &b->a->contents[at];
    b->a->tensor_list[at] = t;
}

static void fill_tensors(struct build *b) {
    Inference__ModelInferResponse *to = &b->a->response;
    for (int i = 0; i < b->o->outputs_count; i++)
        fill_tensor(b, i, &b->o->outputs[i]);
    to->n_outputs = (size_t)b->o->outputs_count;
    to->outputs = b->a->tensor_list;
    to->n_raw_output_contents = b->o->raw ? to->n_outputs : 0;
    to->raw_output_contents = b->a->raw;
}

/* ---- parameters ---- */

static Inference__InferParameter *add_parameter(struct inference_answer *a, const char *name) {
    const size_t at = a->response.n_parameters++;
    inference__model_infer_response__parameters_entry__init(&a->parameters[at]);
    inference__infer_parameter__init(&a->values[at]);
    a->parameters[at].key = (char *)name;
    a->parameters[at].value = &a->values[at];
    a->parameter_list[at] = &a->parameters[at];
    return &a->values[at];
}

static void add_text(struct inference_answer *a, const char *name, const char *text) {
    Inference__InferParameter *v = add_parameter(a, name);
    v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    v->string_param = (char *)text;
}

static void add_double(struct inference_answer *a, const char *name, double number) {
    Inference__InferParameter *v = add_parameter(a, name);
    v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM;
    v->double_param = number;
}

static void fill_parameters(struct inference_answer *a, const struct engine_result *r,
                            const struct model_info *info, bool is_final) {
    a->response.parameters = a->parameter_list;
    add_text(a, "status", engine_outcome_name(r->outcome));
    if (r->status.message[0])
        add_text(a, "message", r->status.message);
    add_double(a, "duration_s", r->duration_s);
    add_text(a, "digest", info->digest);
    add_text(a, "device", info->device);
    add_text(a, "precision", info->precision);
    Inference__InferParameter *size = add_parameter(a, "batch_size");
    size->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    size->int64_param = r->batch_size;
    add_double(a, "queue_ms", r->queue_ms);
    add_double(a, "compute_ms", r->compute_ms);
    add_double(a, "audio_s", r->audio_s);
    if (is_final) {
        Inference__InferParameter *final = add_parameter(a, "triton_final_response");
        final->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
        final->bool_param = true;
    }
}

struct inference_answer *inference_answer_new(const struct engine_result *result, const struct model *m,
                                              const struct inference_answer_options *o) {
    struct inference_answer *a = calloc(1, sizeof *a);
    struct arena counting;
    if (!a)
        return NULL;
    struct build b = {.a = a, .arena = &counting, .result = result, .info = model_get_info(m), .o = o};
    inference__model_infer_response__init(&a->response);
    arena_init_counting(&counting);
    fill_tensors(&b);
    b.arena = &a->block;
    if (counting.failed || arena_init(&a->block, counting.used, "an answer", NULL)) {
        free(a);
        return NULL;
    }
    fill_tensors(&b);
    if (a->block.failed) {
        inference_answer_free(a);
        return NULL;
    }
    a->response.model_name = (char *)o->model_name;
    a->response.model_version = (char *)o->model_version;
    a->response.id = (char *)o->id;
    fill_parameters(a, result, b.info, o->is_final);
    return a;
}

Inference__ModelInferResponse *inference_answer_get(struct inference_answer *a) {
    return &a->response;
}

void inference_answer_free(struct inference_answer *a) {
    if (!a)
        return;
    arena_free(&a->block);
    free(a);
}
