/* Which backend, and which of its devices, the options ask for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/model_internal.h"

/* The index of `word` among `words` (separated by blanks, the first for NULL), or -1. */
static int find_word(const char *words, const char *word) {
    size_t length = word ? strlen(word) : 0;
    int index = 0;
    for (const char *at = words; *at && word; index++) {
        size_t n = strcspn(at, " ");
        if (n == length && memcmp(at, word, n) == 0)
            return index;
        at += n + (at[n] == ' ');
    }
    return word ? -1 : 0;
}

static int read_ways(struct kernels_options *k, bool *any_precision, const struct model_options *o,
                     struct status *st) {
    static const char precisions[] = "fp32 bf16 int8 auto", convs[] = "auto cudnn gemm",
                      attentions[] = "auto fused cublas";
    static const enum kernels_precision precision_of[] = {KERNELS_FP32, KERNELS_BF16, KERNELS_INT8,
                                                          KERNELS_BF16};
    const int precision = find_word(precisions, o->precision), conv = find_word(convs, o->cuda_conv),
              attention = find_word(attentions, o->cuda_attention);
    if (precision < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "precision %s: not one of auto, fp32, bf16, int8",
                          o->precision);
    if (conv < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "cuda-conv %s: not one of auto, cudnn, gemm",
                          o->cuda_conv);
    if (attention < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "cuda-attention %s: not one of auto, fused, cublas",
                          o->cuda_attention);
    *any_precision = precision == 3;
    *k = (struct kernels_options){.precision = precision_of[precision],
                                  .threads = o->threads,
                                  .pin = o->pin,
                                  .conv_way = (enum kernels_conv_way)conv,
                                  .attention_way = (enum kernels_attention_way)attention,
                                  .eager = o->cuda_eager,
                                  .memory_bytes_max = (size_t)o->gpu_memory_max_bytes};
    return 0;
}

/* "all", or indexes between commas, into `devices` [MODEL_DEVICES_MAX]. */
static int read_devices(const char *text, int there, int *devices, int *count, struct status *st) {
    *count = 0;
    if (strcmp(text, "all") == 0) {
        for (; *count < there && *count < MODEL_DEVICES_MAX; (*count)++)
            devices[*count] = *count;
        return 0;
    }
    for (const char *at = text;; at++) {
        char *end;
        const long index = strtol(at, &end, 10);
        if (end == at || *at < '0' || *at > '9' || (*end && *end != ','))
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "devices %s: not \"all\" or indexes of GPUs such as 0,1", text);
        if (index >= there)
            return status_set(st, STATUS_UNAVAILABLE, "devices %s: there are %d GPUs, counted from 0", text,
                              there);
        for (int i = 0; i < *count; i++)
            if (devices[i] == index)
                return status_set(st, STATUS_INVALID_ARGUMENT, "devices %s: GPU %ld is named twice", text,
                                  index);
        if (*count == MODEL_DEVICES_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT, "devices %s: more than %d", text,
                              MODEL_DEVICES_MAX);
        devices[(*count)++] = (int)index;
        at = end;
        if (!*at)
            return 0;
    }
}

/* "auto" is the fastest precision whose answers are those of fp32 but for roundings of 1 %: bf16 where the
 * device multiplies it faster. int8 must be asked for. */
static void settle_precision(struct model *m, int device) {
    struct kernels_options o = m->device_options;
    struct status why;
    o.device_index = device;
    m->precision_note[0] = 0;
    if (m->kernels->probe(&o, &why) == 0)
        return;
    o.precision = KERNELS_FP32;
    if (m->kernels->probe(&o, NULL))
        return; /* it is not the precision */
    m->device_options.precision = KERNELS_FP32;
    snprintf(m->precision_note, sizeof m->precision_note, "%s", why.message);
}

/* One backend, and those of its devices that are asked for, all probed. */
static int choose(struct model *m, const char *name, const char *text, struct status *st) {
    m->kernels = kernels_find(name, st);
    if (!m->kernels)
        return -1;
    int devices[MODEL_DEVICES_MAX] = {0}, count = 1;
    const int there = m->kernels->count_devices();
    if (there < 1) /* the driver saw one, but CUDA does not: the first one's probe says why */
        return m->kernels->probe(&m->device_options, st)
                   ? -1
                   : status_set(st, STATUS_UNAVAILABLE, "device %s: there is none", name);
    if (!m->kernels->on_host && read_devices(text, there, devices, &count, st))
        return -1;
    m->device_options.precision = m->any_precision ? KERNELS_BF16 : m->device_options.precision;
    if (m->any_precision)
        settle_precision(m, devices[0]);
    for (int i = 0; i < count; i++) {
        m->replicas[i].options = m->device_options;
        m->replicas[i].options.device_index = devices[i];
        if (m->kernels->probe(&m->replicas[i].options, st))
            return -1;
    }
    m->replicas_count = count;
    return 0;
}

int model_choose_devices(struct model *m, const struct model_options *o, struct status *st) {
    const char *device = o->device ? o->device : "auto", *devices = o->devices ? o->devices : "0";
    struct status why;
    if (read_ways(&m->device_options, &m->any_precision, o, st))
        return -1;
    if (strcmp(device, "auto") != 0) {
        if (choose(m, device, devices, st))
            return strcmp(device, "cuda") == 0 && st && st->code == STATUS_UNAVAILABLE
                       ? status_prefix(st, "device cuda")
                       : -1;
    } else if (choose(m, "cuda", devices, &why)) {
        if (why.code == STATUS_INVALID_ARGUMENT) {
            if (st)
                *st = why;
            return -1;
        }
        snprintf(m->device_note, sizeof m->device_note, "%s", why.message);
        if (choose(m, "cpu", "0", st))
            return -1;
    }
    for (int i = 0; i < m->replicas_count; i++) {
        struct model_replica *r = &m->replicas[i];
        /* The packing device's threads float: its owner is whichever thread opens the model. */
        struct kernels_options packing = r->options;
        packing.pin = false;
        if (m->kernels->device_new(&r->device, &packing, st))
            return -1;
    }
    return 0;
}

void model_free_devices(struct model *m) {
    for (int i = 0; i < m->replicas_count; i++) {
        struct model_replica *r = &m->replicas[i];
        if (r->weights)
            m->kernels->memory_del(r->device, r->weights);
        m->kernels->device_del(r->device);
    }
}

int model_find_device(const struct model_options *o, char *name, struct status *st) {
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return status_set_no_memory(st, sizeof *m, "a model");
    int result = model_choose_devices(m, o, st);
    if (result == 0)
        snprintf(name, MODEL_DEVICE_NAME_BYTES, "%s", m->kernels->device_name(m->replicas[0].device));
    model_free_devices(m);
    free(m);
    return result;
}
