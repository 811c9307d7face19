/* Tensors and parameters of the Open Inference Protocol, read. The protocol file tells what each means. */
#include "server/inference_request.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define WINDOW_S_MIN 0.05
#define HOP_S_MIN    0.01

const struct inference_tensor inference_outputs[INFERENCE_OUTPUTS] = {
    [INFERENCE_PROBABILITIES] =
        {"PROBABILITIES", "FP32", INFERENCE__DATA_TYPE__TYPE_FP32, 1, {INFERENCE_DIM_LABELS}},
    [INFERENCE_LABELS] = {"LABELS", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, 1, {INFERENCE_DIM_LABELS}},
    [INFERENCE_STATUS] = {"STATUS", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, 1, {1}},
    [INFERENCE_LOGITS] = {"LOGITS", "FP32", INFERENCE__DATA_TYPE__TYPE_FP32, 1, {INFERENCE_DIM_LABELS}},
    [INFERENCE_EMBEDDING] = {"EMBEDDING", "FP32", INFERENCE__DATA_TYPE__TYPE_FP32, 1, {INFERENCE_DIM_HIDDEN}},
    [INFERENCE_WINDOW_TIMES] =
        {"WINDOW_TIMES", "FP64", INFERENCE__DATA_TYPE__TYPE_FP64, 2, {INFERENCE_DIM_WINDOWS, 2}},
    [INFERENCE_WINDOW_PROBABILITIES] = {"WINDOW_PROBABILITIES",
                                        "FP32",
                                        INFERENCE__DATA_TYPE__TYPE_FP32,
                                        2,
                                        {INFERENCE_DIM_WINDOWS, INFERENCE_DIM_LABELS}},
    [INFERENCE_WINDOW_STATUS] =
        {"WINDOW_STATUS", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, 1, {INFERENCE_DIM_WINDOWS}},
};

/* What is gathered before it is judged together. */
struct reader {
    struct inference_request *r;
    struct status *st;
    const Inference__ModelInferRequest__InferInputTensor *audio, *rate;
    const struct wire_field *audio_raw, *rate_raw; /* NULL: typed contents */
    bool encoding_given;
    int64_t parameter_rate_hz, tensor_rate_hz; /* 0: not given */
};

/* INVALID_ARGUMENT about one field; `format` does not repeat its name. */
static int wrong(struct reader *rd, const char *field, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int wrong(struct reader *rd, const char *field, const char *format, ...) {
    char text[STATUS_MESSAGE_BYTES_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(rd->r->field, sizeof rd->r->field, "%s", field);
    return status_set(rd->st, STATUS_INVALID_ARGUMENT, "%s: %s", field, text);
}

/* ---- parameters ---- */

static bool get_number(const Inference__InferParameter *v, double *number) {
    char *end;
    switch (v ? v->parameter_choice_case : INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE__NOT_SET) {
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM:
        *number = (double)v->int64_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM:
        *number = (double)v->uint64_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM:
        *number = v->double_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM: /* of clients that have no doubles */
        *number = strtod(v->string_param, &end);
        return end != v->string_param && *end == '\0';
    default:
        return false;
    }
}

static int read_number(struct reader *rd, const char *field, const Inference__InferParameter *v, double min,
                       double max, double *number) {
    if (!get_number(v, number))
        return wrong(rd, field, "is a number");
    if (!(*number >= min && *number <= max))
        return wrong(rd, field, "%g is not in %g..%g", *number, min, max);
    return 0;
}

static int read_integer(struct reader *rd, const char *field, const Inference__InferParameter *v, double min,
                        double max, int64_t *integer) {
    double number = 0;
    if (read_number(rd, field, v, min, max, &number))
        return -1;
    if (number != floor(number))
        return wrong(rd, field, "%g is not an integer", number);
    *integer = (int64_t)number;
    return 0;
}

static int read_encoding(struct reader *rd, const Inference__InferParameter *v) {
    static const char *const names[] = {[AUDIO_FILE] = "file",
                                        [AUDIO_PCM16] = "pcm16",
                                        [AUDIO_FLOAT32] = "float32",
                                        [AUDIO_MULAW] = "mulaw",
                                        [AUDIO_ALAW] = "alaw"};
    const bool is_text =
        v && v->parameter_choice_case == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    for (size_t i = 0; is_text && i < sizeof names / sizeof *names; i++)
        if (strcmp(v->string_param, names[i]) == 0) {
            rd->r->format.encoding = (enum audio_encoding)i;
            rd->encoding_given = true;
            return 0;
        }
    return wrong(rd, "parameters.encoding",
                 "is one of \"file\", \"pcm16\", \"float32\", \"mulaw\", \"alaw\"");
}

/* Those of the protocol that mean nothing here. */
static bool is_ignored(const char *name) {
    static const char *const names[] = {"sequence_id", "sequence_start", "sequence_end", "binary_data_output",
                                        "headers"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return strncmp(name, "triton_", 7) == 0;
}

static int read_parameter(struct reader *rd, const char *name, const Inference__InferParameter *v) {
    struct inference_request *r = rd->r;
    int64_t integer = 0;
    if (strcmp(name, "encoding") == 0)
        return read_encoding(rd, v);
    if (strcmp(name, "sample_rate") == 0)
        return read_integer(rd, "parameters.sample_rate", v, 0, AUDIO_RATE_HZ_MAX, &rd->parameter_rate_hz);
    if (strcmp(name, "channels") == 0) {
        if (read_integer(rd, "parameters.channels", v, 1, AUDIO_CHANNELS_MAX, &integer))
            return -1;
        r->format.channels = (int)integer;
        return 0;
    }
    if (strcmp(name, "window_s") == 0)
        return read_number(rd, "parameters.window_s", v, WINDOW_S_MIN, ENGINE_WHOLE_S_MAX, &r->window_s);
    if (strcmp(name, "hop_s") == 0)
        return read_number(rd, "parameters.hop_s", v, HOP_S_MIN, ENGINE_WHOLE_S_MAX, &r->hop_s);
    if (strcmp(name, "priority") == 0) {
        if (read_integer(rd, "parameters.priority", v, 0, UINT32_MAX, &integer))
            return -1;
        r->order = integer > 1 ? ENGINE_BULK : ENGINE_UNARY;
        return 0;
    }
    if (strcmp(name, "timeout") == 0)
        return read_integer(rd, "parameters.timeout", v, 0, 1e15, &r->timeout_us);
    if (is_ignored(name))
        return 0;
    return wrong(rd, "parameters",
                 "\"%.64s\" is none that this server knows (encoding, sample_rate, channels, window_s, "
                 "hop_s, priority, "
                 "timeout)",
                 name);
}

static int read_parameters(struct reader *rd, const Inference__ModelInferRequest *m) {
    struct inference_request *r = rd->r;
    for (size_t i = 0; i < m->n_parameters; i++)
        if (read_parameter(rd, m->parameters[i]->key, m->parameters[i]->value))
            return -1;
    if (r->hop_s > 0 && r->window_s == 0)
        return wrong(rd, "parameters.hop_s", "needs window_s");
    if (r->window_s > 0 && r->hop_s == 0)
        r->hop_s = r->window_s / 2;
    if (r->hop_s > r->window_s)
        return wrong(rd, "parameters.hop_s", "%g is not in %g..%g (window_s)", r->hop_s, HOP_S_MIN,
                     r->window_s);
    return 0;
}

/* ---- inputs ---- */

static bool has_contents(const Inference__InferTensorContents *c) {
    return c && (c->n_bool_contents || c->n_int_contents || c->n_int64_contents || c->n_uint_contents ||
                 c->n_uint64_contents || c->n_fp32_contents || c->n_fp64_contents || c->n_bytes_contents);
}

static bool is_shared_memory(const char *parameter) {
    return strncmp(parameter, "shared_memory", strlen("shared_memory")) == 0;
}

static int check_input(struct reader *rd, const Inference__ModelInferRequest__InferInputTensor *t) {
    for (size_t i = 0; i < t->n_parameters; i++)
        if (is_shared_memory(t->parameters[i]->key))
            return wrong(rd, "inputs.parameters", "%.64s: this server has no shared memory", t->name);
    if (rd->r->raw && has_contents(t->contents))
        return wrong(rd, "inputs.contents", "%.64s: must be empty beside raw_input_contents", t->name);
    return 0;
}

/* Sorts the inputs by name. */
static int find_inputs(struct reader *rd, const Inference__ModelInferRequest *m,
                       const struct wire_parts *raw) {
    rd->r->raw = raw->fields_count > 0;
    if (rd->r->raw && (size_t)raw->fields_count != m->n_inputs)
        return wrong(rd, "raw_input_contents", "%d of them for %zu inputs", raw->fields_count, m->n_inputs);
    for (size_t i = 0; i < m->n_inputs; i++) {
        const Inference__ModelInferRequest__InferInputTensor *t = m->inputs[i];
        const struct wire_field *field = rd->r->raw ? &raw->fields[i] : NULL;
        if (check_input(rd, t))
            return -1;
        const bool is_audio = strcmp(t->name, "AUDIO") == 0;
        if (!is_audio && strcmp(t->name, "SAMPLE_RATE") != 0)
            return wrong(rd, "inputs", "\"%.64s\" is none that this server knows (AUDIO, SAMPLE_RATE)",
                         t->name);
        if (is_audio ? rd->audio : rd->rate)
            return wrong(rd, "inputs", "%s is there twice", t->name);
        *(is_audio ? &rd->audio : &rd->rate) = t;
        *(is_audio ? &rd->audio_raw : &rd->rate_raw) = field;
    }
    return rd->audio ? 0 : wrong(rd, "inputs", "AUDIO is missing");
}

/* The number of elements of [n] or [1, n]; 0: the shape is another. */
static int64_t count_elements(const Inference__ModelInferRequest__InferInputTensor *t) {
    const bool batched = t->n_shape == 2;
    if (t->n_shape < 1 || t->n_shape > 2 || (batched && t->shape[0] != 1) || t->shape[t->n_shape - 1] < 1)
        return 0;
    return t->shape[t->n_shape - 1];
}

static int read_rate(struct reader *rd) {
    const Inference__ModelInferRequest__InferInputTensor *t = rd->rate;
    int32_t value = 0;
    if (!t)
        return 0;
    if (strcmp(t->datatype, "INT32") != 0)
        return wrong(rd, "inputs.SAMPLE_RATE.datatype", "\"%.16s\" is not INT32", t->datatype);
    if (count_elements(t) != 1)
        return wrong(rd, "inputs.SAMPLE_RATE.shape", "is [1] or [1, 1]");
    if (rd->rate_raw) {
        if (rd->rate_raw->bytes != sizeof value || !wire_field_copy(rd->rate_raw, 0, sizeof value, &value))
            return wrong(rd, "inputs.SAMPLE_RATE", "%zu raw bytes, not 4", rd->rate_raw->bytes);
    } else if (t->contents && t->contents->n_int_contents == 1) {
        value = t->contents->int_contents[0];
    } else {
        return wrong(rd, "inputs.SAMPLE_RATE.contents", "int_contents needs 1 element");
    }
    if (value < 0)
        return wrong(rd, "inputs.SAMPLE_RATE", "%d is negative", value);
    rd->tensor_rate_hz = value;
    return 0;
}

static int read_format(struct reader *rd) {
    struct audio_format *f = &rd->r->format;
    const char *field = rd->tensor_rate_hz ? "inputs.SAMPLE_RATE" : "parameters.sample_rate";
    if (rd->tensor_rate_hz && rd->parameter_rate_hz && rd->tensor_rate_hz != rd->parameter_rate_hz)
        return wrong(rd, "parameters.sample_rate", "%lld, but SAMPLE_RATE is %lld",
                     (long long)rd->parameter_rate_hz, (long long)rd->tensor_rate_hz);
    const int64_t rate_hz = rd->tensor_rate_hz ? rd->tensor_rate_hz : rd->parameter_rate_hz;
    if (f->encoding == AUDIO_FILE && (rate_hz || f->channels))
        return wrong(
            rd, rate_hz ? field : "parameters.channels",
            "a file has its own; for raw samples set the parameter encoding, or send AUDIO as FP32 or INT16");
    if (rate_hz && (rate_hz < AUDIO_RATE_HZ_MIN || rate_hz > AUDIO_RATE_HZ_MAX))
        return wrong(rd, field, "%lld is not in %d..%d", (long long)rate_hz, AUDIO_RATE_HZ_MIN,
                     AUDIO_RATE_HZ_MAX);
    f->rate_hz = (int)rate_hz;
    if (!f->channels)
        f->channels = 1;
    return 0;
}

/* The bytes of a raw field from `skip` (at most its size) on, in the message's own memory. */
static int take_pieces(struct reader *rd, const struct wire_field *field, size_t skip) {
    struct inference_request *r = rd->r;
    const size_t bytes = (field->pieces_count + 1) * sizeof *r->pieces;
    r->owned = r->pieces = malloc(bytes);
    if (!r->pieces)
        return status_set_no_memory(rd->st, bytes, "a list of pieces");
    r->bytes = field->bytes - skip;
    for (size_t i = 0; i < field->pieces_count; i++) {
        struct engine_piece p = field->pieces[i];
        const size_t left_out = skip < p.bytes ? skip : p.bytes;
        skip -= left_out;
        if (p.bytes > left_out)
            r->pieces[r->pieces_count++] =
                (struct engine_piece){.data = (const char *)p.data + left_out, .bytes = p.bytes - left_out};
    }
    return 0;
}

/* BYTES [1]: a file, or samples as their encoding has them. */
static int read_bytes(struct reader *rd) {
    const Inference__InferTensorContents *contents = rd->audio->contents;
    uint32_t length = 0;
    if (count_elements(rd->audio) != 1)
        return wrong(rd, "inputs.AUDIO.shape", "of BYTES is [1] or [1, 1]: one recording a request");
    if (rd->audio_raw) {
        if (!wire_field_copy(rd->audio_raw, 0, sizeof length, &length))
            return wrong(rd, "inputs.AUDIO", "%zu raw bytes: too few for the length in front",
                         rd->audio_raw->bytes);
        if (length != rd->audio_raw->bytes - sizeof length)
            return wrong(rd, "inputs.AUDIO", "the length in front says %u bytes, but %zu follow", length,
                         rd->audio_raw->bytes - sizeof length);
        if (length == 0)
            return wrong(rd, "inputs.AUDIO", "no bytes");
        return take_pieces(rd, rd->audio_raw, sizeof length);
    }
    if (!contents || contents->n_bytes_contents != 1)
        return wrong(rd, "inputs.AUDIO.contents", "bytes_contents needs 1 element and has %zu",
                     contents ? contents->n_bytes_contents : 0);
    rd->r->data = contents->bytes_contents[0].data;
    rd->r->bytes = contents->bytes_contents[0].len;
    return rd->r->bytes ? 0 : wrong(rd, "inputs.AUDIO", "no bytes");
}

/* The typed form of INT16 has 32 bits an element. */
static int narrow(struct reader *rd, const int32_t *values, size_t count) {
    int16_t *samples = rd->r->owned = malloc(count * sizeof *samples);
    if (!samples)
        return status_set_no_memory(rd->st, count * sizeof *samples, "samples");
    for (size_t i = 0; i < count; i++) {
        if (values[i] < INT16_MIN || values[i] > INT16_MAX)
            return wrong(rd, "inputs.AUDIO.contents", "int_contents[%zu]: %d is no INT16", i, values[i]);
        samples[i] = (int16_t)values[i];
    }
    rd->r->data = samples;
    return 0;
}

/* FP32 or INT16 [n]. */
static int read_samples(struct reader *rd, size_t width) {
    const Inference__InferTensorContents *contents = rd->audio->contents;
    const bool is_float = rd->r->format.encoding == AUDIO_FLOAT32;
    const int64_t count = count_elements(rd->audio);
    if (count == 0)
        return wrong(rd, "inputs.AUDIO.shape", "of samples is [n] or [1, n], n > 0");
    if (count % rd->r->format.channels)
        return wrong(rd, "inputs.AUDIO.shape", "%lld samples are not %d channels of equal length",
                     (long long)count, rd->r->format.channels);
    if (!check_mul_size((size_t)count, width, &rd->r->bytes))
        return wrong(rd, "inputs.AUDIO.shape", "%lld samples are too many", (long long)count);
    if (rd->audio_raw) {
        if (rd->audio_raw->bytes != rd->r->bytes)
            return wrong(rd, "inputs.AUDIO", "%zu raw bytes, but the shape says %lld samples of %zu",
                         rd->audio_raw->bytes, (long long)count, width);
        return take_pieces(rd, rd->audio_raw, 0);
    }
    const size_t given = !contents ? 0 : is_float ? contents->n_fp32_contents : contents->n_int_contents;
    if (given != (size_t)count)
        return wrong(rd, "inputs.AUDIO.contents", "%s has %zu elements, but the shape says %lld",
                     is_float ? "fp32_contents" : "int_contents", given, (long long)count);
    if (!is_float)
        return narrow(rd, contents->int_contents, given);
    rd->r->data = contents->fp32_contents;
    return 0;
}

static int read_audio(struct reader *rd) {
    struct audio_format *f = &rd->r->format;
    const char *datatype = rd->audio->datatype;
    const bool is_bytes = strcmp(datatype, "BYTES") == 0, is_float = strcmp(datatype, "FP32") == 0;
    rd->r->batched = rd->audio->n_shape == 2;
    if (!is_bytes) {
        const enum audio_encoding encoding = is_float ? AUDIO_FLOAT32 : AUDIO_PCM16;
        if (!is_float && strcmp(datatype, "INT16") != 0)
            return wrong(rd, "inputs.AUDIO.datatype", "\"%.16s\" is not BYTES, FP32 or INT16", datatype);
        if (rd->encoding_given && f->encoding != encoding)
            return wrong(rd, "parameters.encoding", "is not that of AUDIO as %s", datatype);
        f->encoding = encoding;
    }
    if (read_format(rd))
        return -1;
    return is_bytes ? read_bytes(rd) : read_samples(rd, is_float ? sizeof(float) : sizeof(int16_t));
}

/* ---- outputs ---- */

static int read_output(struct reader *rd, const Inference__ModelInferRequest__InferRequestedOutputTensor *t) {
    struct inference_request *r = rd->r;
    struct inference_output *out = &r->outputs[r->outputs_count];
    int id = 0;
    while (id < INFERENCE_OUTPUTS && strcmp(t->name, inference_outputs[id].name) != 0)
        id++;
    if (id == INFERENCE_OUTPUTS)
        return wrong(rd, "outputs", "\"%.64s\" is none that this server knows (ModelMetadata lists them)",
                     t->name);
    for (int i = 0; i < r->outputs_count; i++)
        if ((int)r->outputs[i].id == id)
            return wrong(rd, "outputs", "%s is there twice", t->name);
    *out = (struct inference_output){.id = (enum inference_tensor_id)id};
    for (size_t i = 0; i < t->n_parameters; i++) {
        int64_t best = 0;
        if (is_shared_memory(t->parameters[i]->key))
            return wrong(rd, "outputs.parameters", "%s: this server has no shared memory", t->name);
        if (strcmp(t->parameters[i]->key, "classification") != 0)
            continue;
        if (id != INFERENCE_PROBABILITIES && id != INFERENCE_LOGITS)
            return wrong(rd, "outputs.classification", "is of PROBABILITIES and LOGITS, not of %s", t->name);
        if (read_integer(rd, "outputs.classification", t->parameters[i]->value, 1, INT32_MAX, &best))
            return -1;
        out->best = (int)best;
    }
    r->outputs_count++;
    return 0;
}

static int read_outputs(struct reader *rd, const Inference__ModelInferRequest *m) {
    struct inference_request *r = rd->r;
    for (size_t i = 0; i < m->n_outputs; i++) /* names are not twice, so the table bounds them */
        if (read_output(rd, m->outputs[i]))
            return -1;
    if (m->n_outputs == 0)
        for (int i = 0; i < INFERENCE_OUTPUTS_DEFAULT; i++)
            r->outputs[r->outputs_count++] = (struct inference_output){.id = (enum inference_tensor_id)i};
    return 0;
}

/* ---- the whole ---- */

int inference_request_init(struct inference_request *r, const Inference__ModelInferRequest *m,
                           const struct wire_parts *raw, struct status *st) {
    struct reader rd = {.r = r, .st = st};
    *r = (struct inference_request){
        .model_name = m->model_name, .model_version = m->model_version, .id = m->id, .order = ENGINE_UNARY};
    int failed = strlen(m->id) >= INFERENCE_ID_BYTES
                     ? wrong(&rd, "id", "%zu bytes, more than %d", strlen(m->id), INFERENCE_ID_BYTES - 1)
                     : 0;
    if (failed || read_parameters(&rd, m) || find_inputs(&rd, m, raw) || read_rate(&rd) || read_audio(&rd) ||
        read_outputs(&rd, m)) {
        inference_request_free(r);
        return -1;
    }
    return 0;
}

void inference_request_free(struct inference_request *r) {
    free(r->owned);
    r->owned = NULL;
    r->pieces = NULL;
    r->data = NULL;
}
