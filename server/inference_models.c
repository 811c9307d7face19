/* What the server and its models are, by the Open Inference Protocol. */
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "server/inference.h"
#include "server/inference_request.h"

#define PLATFORM "timbre"

typedef Inference__ModelMetadataResponse__TensorMetadata Metadata;
typedef Inference__ModelMetadataResponse__PropertiesEntry Property;

struct repository_entry *inference_find(struct call *c, const char *name, const char *version) {
    struct repository_entry *entry;
    struct status st;
    if (repository_find(call_get_server(c)->repository, name, version, &entry, &st)) {
        call_fail(
            c, &st,
            &(struct failure){.reason = st.code == STATUS_NOT_FOUND ? "MODEL_NOT_FOUND" : "MODEL_NOT_READY"});
        return NULL;
    }
    call_set_model(c, entry->name);
    return entry;
}

/* ---- the server ---- */

void inference_get_server_live(struct call *c, struct wire_message *in) {
    Inference__ServerLiveResponse response = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    wire_message_free(in);
    response.live = true;
    call_reply(c, &response.base);
}

void inference_get_server_ready(struct call *c, struct wire_message *in) {
    Inference__ServerReadyResponse response = INFERENCE__SERVER_READY_RESPONSE__INIT;
    wire_message_free(in);
    response.ready = server_is_ready(call_get_server(c));
    call_reply(c, &response.base);
}

void inference_get_server_metadata(struct call *c, struct wire_message *in) {
    static const char *const extensions[] = {"binary_tensor_data", "classification", "model_configuration",
                                             "statistics", "model_repository"};
    Inference__ServerMetadataResponse response = INFERENCE__SERVER_METADATA_RESPONSE__INIT;
    wire_message_free(in);
    response.name = (char *)"timbre";
    response.version = (char *)TIMBRE_VERSION;
    response.extensions = (char **)extensions;
    response.n_extensions =
        sizeof extensions / sizeof *extensions - !call_get_server(c)->options->model_control;
    call_reply(c, &response.base);
}

/* ---- a model ---- */

void inference_get_model_ready(struct call *c, struct wire_message *in) {
    Inference__ModelReadyResponse response = INFERENCE__MODEL_READY_RESPONSE__INIT;
    struct repository_entry *entry;
    Inference__ModelReadyRequest *request =
        (Inference__ModelReadyRequest *)inference_unpack(c, in, &inference__model_ready_request__descriptor);
    if (!request)
        return;
    response.ready =
        server_is_ready(call_get_server(c)) &&
        repository_find(call_get_server(c)->repository, request->name, request->version, &entry, NULL) == 0;
    call_reply(c, &response.base);
    inference__model_ready_request__free_unpacked(request, NULL);
}

enum { INPUTS = 2, PROPERTIES = 9 };

static const struct {
    const char *name, *datatype;
    Inference__DataType data_type;
    bool is_optional;
} inputs[INPUTS] = {
    {"AUDIO", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, false},
    {"SAMPLE_RATE", "INT32", INFERENCE__DATA_TYPE__TYPE_INT32, true},
};

/* What a response is built in. */
struct description {
    Metadata tensors[INPUTS + INFERENCE_OUTPUTS], *tensor_list[INPUTS + INFERENCE_OUTPUTS];
    Inference__ModelInput inputs[INPUTS], *input_list[INPUTS];
    Inference__ModelOutput outputs[INFERENCE_OUTPUTS], *output_list[INFERENCE_OUTPUTS];
    int64_t dims[INFERENCE_OUTPUTS][2], one;
    Property properties[PROPERTIES], *property_list[PROPERTIES];
    int properties_count;
    char rate[16], min_audio[32];
    char *versions[REPOSITORY_VERSIONS_MAX];
};

static void describe_dims(struct description *d, const struct model_info *info) {
    d->one = 1;
    for (int i = 0; i < INFERENCE_OUTPUTS; i++)
        for (int k = 0; k < inference_outputs[i].dims_count; k++) {
            const int dim = inference_outputs[i].dims[k];
            d->dims[i][k] = dim == INFERENCE_DIM_LABELS   ? info->labels_count
                            : dim == INFERENCE_DIM_HIDDEN ? info->hidden
                                                          : dim;
        }
}

static void fill_tensor(Metadata *to, const char *name, const char *datatype, int64_t *dims, int dims_count) {
    inference__model_metadata_response__tensor_metadata__init(to);
    to->name = (char *)name;
    to->datatype = (char *)datatype;
    to->shape = dims;
    to->n_shape = (size_t)dims_count;
}

static void fill_tensors(struct description *d, Inference__ModelMetadataResponse *to) {
    for (int i = 0; i < INPUTS + INFERENCE_OUTPUTS; i++) {
        const struct inference_tensor *out = &inference_outputs[i < INPUTS ? 0 : i - INPUTS];
        d->tensor_list[i] = &d->tensors[i];
        if (i < INPUTS)
            fill_tensor(&d->tensors[i], inputs[i].name, inputs[i].datatype, &d->one, 1);
        else
            fill_tensor(&d->tensors[i], out->name, out->datatype, d->dims[i - INPUTS], out->dims_count);
    }
    to->inputs = d->tensor_list;
    to->n_inputs = INPUTS;
    to->outputs = d->tensor_list + INPUTS;
    to->n_outputs = INFERENCE_OUTPUTS;
}

static void add_property(struct description *d, const char *key, const char *value) {
    Property *p = &d->properties[d->properties_count];
    inference__model_metadata_response__properties_entry__init(p);
    p->key = (char *)key;
    p->value = (char *)value;
    d->property_list[d->properties_count++] = p;
}

static void fill_properties(struct description *d, const struct model_info *info, const char *labels,
                            Inference__ModelMetadataResponse *to) {
    struct text t;
    text_init(&t, d->rate, sizeof d->rate);
    text_printf(&t, "%d", info->sampling_rate_hz);
    text_init(&t, d->min_audio, sizeof d->min_audio);
    text_put_json_double(&t, (double)info->min_samples / info->sampling_rate_hz);
    add_property(d, "labels", labels);
    add_property(d, "digest", info->digest);
    add_property(d, "family", info->family);
    add_property(d, "output", info->output);
    add_property(d, "sample_rate_hz", d->rate);
    add_property(d, "min_audio_s", d->min_audio);
    add_property(d, "licence", info->licence);
    add_property(d, "device", info->device);
    add_property(d, "precision", info->precision);
    to->properties = d->property_list;
    to->n_properties = (size_t)d->properties_count;
}

/* Versions of a model that are ready. */
static size_t list_versions(struct repository *r, const char *name, char *versions[REPOSITORY_VERSIONS_MAX]) {
    size_t count = 0;
    for (int i = 0; i < repository_count(r) && count < REPOSITORY_VERSIONS_MAX; i++) {
        struct repository_entry *e = repository_at(r, i);
        if (e->state == REPOSITORY_READY && strcmp(e->name, name) == 0)
            versions[count++] = e->version;
    }
    return count;
}

static void reply_metadata(struct call *c, struct repository_entry *entry) {
    const struct model_info *info = model_get_info(engine_model_get(entry->model));
    struct description d = {0};
    struct text labels;
    Inference__ModelMetadataResponse response = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    text_init_growing(&labels);
    for (int i = 0; i < info->labels_count; i++) {
        text_put(&labels, i ? "," : "[");
        text_put_json_string(&labels, info->labels[i]);
    }
    text_put(&labels, info->labels_count ? "]" : "[]");
    response.name = entry->name;
    response.versions = d.versions;
    response.n_versions = list_versions(call_get_server(c)->repository, entry->name, d.versions);
    response.platform = (char *)PLATFORM;
    describe_dims(&d, info);
    fill_tensors(&d, &response);
    fill_properties(&d, info, labels.failed ? "" : labels.data, &response);
    call_reply(c, &response.base);
    text_free(&labels);
}

void inference_get_model_metadata(struct call *c, struct wire_message *in) {
    Inference__ModelMetadataRequest *request = (Inference__ModelMetadataRequest *)inference_unpack(
        c, in, &inference__model_metadata_request__descriptor);
    if (!request)
        return;
    struct repository_entry *entry = inference_find(c, request->name, request->version);
    if (entry)
        reply_metadata(c, entry);
    inference__model_metadata_request__free_unpacked(request, NULL);
}

static void fill_config(struct description *d, Inference__ModelConfig *to) {
    for (int i = 0; i < INPUTS; i++) {
        Inference__ModelInput *input = d->input_list[i] = &d->inputs[i];
        inference__model_input__init(input);
        input->name = (char *)inputs[i].name;
        input->data_type = inputs[i].data_type;
        input->dims = &d->one;
        input->n_dims = 1;
        input->optional = inputs[i].is_optional;
    }
    for (int i = 0; i < INFERENCE_OUTPUTS; i++) {
        Inference__ModelOutput *output = d->output_list[i] = &d->outputs[i];
        inference__model_output__init(output);
        output->name = (char *)inference_outputs[i].name;
        output->data_type = inference_outputs[i].data_type;
        output->dims = d->dims[i];
        output->n_dims = (size_t)inference_outputs[i].dims_count;
    }
    to->input = d->input_list;
    to->n_input = INPUTS;
    to->output = d->output_list;
    to->n_output = INFERENCE_OUTPUTS;
}

static void reply_config(struct call *c, struct repository_entry *entry) {
    struct description d = {0};
    Inference__ModelConfigResponse response = INFERENCE__MODEL_CONFIG_RESPONSE__INIT;
    Inference__ModelConfig config = INFERENCE__MODEL_CONFIG__INIT;
    Inference__ModelVersionPolicy policy = INFERENCE__MODEL_VERSION_POLICY__INIT;
    Inference__ModelVersionPolicy__All all = INFERENCE__MODEL_VERSION_POLICY__ALL__INIT;
    Inference__ModelTransactionPolicy transaction = INFERENCE__MODEL_TRANSACTION_POLICY__INIT;
    policy.policy_choice_case = INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_ALL;
    policy.all = &all;
    describe_dims(&d, model_get_info(engine_model_get(entry->model)));
    fill_config(&d, &config);
    config.name = entry->name;
    config.platform = config.backend = (char *)PLATFORM;
    config.version_policy = &policy;
    config.model_transaction_policy = &transaction;
    response.config = &config;
    call_reply(c, &response.base);
}

void inference_get_model_config(struct call *c, struct wire_message *in) {
    Inference__ModelConfigRequest *request = (Inference__ModelConfigRequest *)inference_unpack(
        c, in, &inference__model_config_request__descriptor);
    if (!request)
        return;
    struct repository_entry *entry = inference_find(c, request->name, request->version);
    if (entry)
        reply_config(c, entry);
    inference__model_config_request__free_unpacked(request, NULL);
}

/* ---- statistics ---- */

struct model_statistics {
    Inference__ModelStatistics model;
    Inference__InferStatistics times;
    Inference__StatisticDuration durations[8];
    Inference__MemoryUsage memory, *memory_list;
};

static Inference__StatisticDuration *set_duration(Inference__StatisticDuration *d, uint64_t count,
                                                  uint64_t ns) {
    inference__statistic_duration__init(d);
    d->count = count;
    d->ns = ns;
    return d;
}

static void fill_statistics(struct model_statistics *to, struct repository_entry *e) {
    const struct repository_statistics *n = &e->statistics;
    const uint64_t spent_ns = n->queue_ns + n->compute_ns;
    inference__infer_statistics__init(&to->times);
    to->times.success = set_duration(&to->durations[0], n->success_count, n->success_ns);
    to->times.fail =
        set_duration(&to->durations[1], n->fail_count + n->cancel_count, n->fail_ns + n->cancel_ns);
    to->times.queue = set_duration(&to->durations[2], n->success_count, n->queue_ns);
    to->times.compute_input = set_duration(&to->durations[3], n->success_count,
                                           n->success_ns > spent_ns ? n->success_ns - spent_ns : 0);
    to->times.compute_infer = set_duration(&to->durations[4], n->success_count, n->compute_ns);
    to->times.compute_output = set_duration(&to->durations[5], n->success_count, 0);
    to->times.cache_hit = set_duration(&to->durations[6], 0, 0);
    to->times.cache_miss = set_duration(&to->durations[7], 0, 0);
    inference__model_statistics__init(&to->model);
    to->model.name = e->name;
    to->model.version = e->version;
    to->model.last_inference = n->last_inference_ms;
    to->model.inference_count = n->inference_count;
    to->model.execution_count = n->execution_count;
    to->model.inference_stats = &to->times;
    if (!e->model)
        return;
    const struct model_info *info = model_get_info(engine_model_get(e->model));
    inference__memory_usage__init(&to->memory);
    to->memory.type = (char *)(strncmp(info->device, "cuda", 4) == 0 ? "GPU" : "CPU");
    to->memory.byte_size = (uint64_t)info->weight_bytes;
    to->memory_list = &to->memory;
    to->model.memory_usage = &to->memory_list;
    to->model.n_memory_usage = 1;
}

static void reply_statistics(struct call *c, const char *name, const char *version) {
    struct repository *r = call_get_server(c)->repository;
    const size_t count = (size_t)repository_count(r);
    struct model_statistics *all = calloc(count + 1, sizeof *all);
    Inference__ModelStatistics **list = calloc(count + 1, sizeof *list);
    Inference__ModelStatisticsResponse response = INFERENCE__MODEL_STATISTICS_RESPONSE__INIT;
    struct status st;
    for (size_t i = 0; i < count && all && list; i++) {
        struct repository_entry *e = repository_at(r, (int)i);
        if ((name[0] && strcmp(e->name, name) != 0) || (version[0] && strcmp(e->version, version) != 0))
            continue;
        fill_statistics(&all[i], e);
        list[response.n_model_stats++] = &all[i].model;
    }
    response.model_stats = list;
    if (!all || !list) {
        status_set_no_memory(&st, count * sizeof *all, "statistics");
        call_fail(c, &st, NULL);
    } else if (response.n_model_stats == 0 && (name[0] || version[0])) {
        status_set(&st, STATUS_NOT_FOUND, "model \"%.64s\" version \"%.32s\": there is none", name, version);
        call_fail(c, &st, &(struct failure){.reason = "MODEL_NOT_FOUND"});
    } else {
        call_reply(c, &response.base);
    }
    free(list);
    free(all);
}

void inference_get_model_statistics(struct call *c, struct wire_message *in) {
    Inference__ModelStatisticsRequest *request = (Inference__ModelStatisticsRequest *)inference_unpack(
        c, in, &inference__model_statistics_request__descriptor);
    if (!request)
        return;
    reply_statistics(c, request->name, request->version);
    inference__model_statistics_request__free_unpacked(request, NULL);
}
