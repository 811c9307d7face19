/* The load report, for people and for programs. */
#include "models/model_internal.h"

static void line(struct text *out, const char *key, const char *value) {
    text_printf(out, "  %-18s %s\n", key, value);
}

static void line_joined(struct text *out, const char *key, const char *const *values, int count, int most) {
    text_printf(out, "  %-18s ", key);
    for (int i = 0; i < count && i < most; i++)
        text_printf(out, "%s%s", i ? ", " : "", values[i]);
    if (count > most)
        text_printf(out, ", and %d more", count - most);
    text_put(out, count ? "\n" : "none\n");
}

void model_report_text(const struct model *m, struct text *out) {
    enum { UNUSED_SHOWN = 12, LABELS_SHOWN = 64 };
    const struct model_info *i = &m->info;
    text_printf(out, "%s\n", i->dir);
    text_printf(out, "  %-18s %s, %d layers of %d, %d heads, %s, features with %s norm%s\n", "family",
                i->family, i->layers, i->hidden, i->heads, i->layer_order, i->feature_norm,
                i->weighted_layer_sum ? ", weighted sum of layers" : "");
    line(out, "head", i->head);
    line(out, "weights", i->format);
    text_printf(out, "  %-18s %.2f M, %.1f MB packed for %s, %s\n", "parameters",
                (double)i->parameters * 1e-6, (double)i->weight_bytes * 1e-6, i->device, i->precision);
    text_printf(out, "  %-18s %d used, %d not used\n", "tensors", i->tensors_used, i->tensors_unused);
    if (i->tensors_unused)
        line_joined(out, "not used", i->unused, i->tensors_unused, UNUSED_SHOWN);
    line_joined(out, "labels", i->labels, i->labels_count, LABELS_SHOWN);
    line(out, "scores", i->output);
    text_printf(out, "  %-18s %d Hz mono, %s, at least %lld samples, a frame every %g ms\n", "audio",
                i->sampling_rate_hz, i->normalize ? "each clip to mean 0 and variance 1" : "as it comes",
                (long long)i->min_samples, i->frame_s * 1e3);
    line(out, "licence", i->licence[0] ? i->licence : "not stated");
    line(out, "digest", i->digest);
    for (int w = 0; w < i->warnings_count; w++)
        line(out, "warning", i->warnings[w]);
}

static void put_key(struct text *out, const char *key) {
    text_put(out, ",");
    text_put_json_string(out, key);
    text_put(out, ":");
}

static void put_string(struct text *out, const char *key, const char *value) {
    put_key(out, key);
    text_put_json_string(out, value);
}

static void put_int(struct text *out, const char *key, int64_t value) {
    put_key(out, key);
    text_printf(out, "%lld", (long long)value);
}

static void put_bool(struct text *out, const char *key, bool value) {
    put_key(out, key);
    text_put(out, value ? "true" : "false");
}

static void put_strings(struct text *out, const char *key, const char *const *values, int count) {
    put_key(out, key);
    text_put(out, "[");
    for (int i = 0; i < count; i++) {
        text_put(out, i ? "," : "");
        text_put_json_string(out, values[i]);
    }
    text_put(out, "]");
}

void model_report_json(const struct model *m, struct text *out) {
    const struct model_info *i = &m->info;
    text_put(out, "{\"dir\":");
    text_put_json_string(out, i->dir);
    put_string(out, "family", i->family);
    put_string(out, "head", i->head);
    put_string(out, "format", i->format);
    put_int(out, "hidden", i->hidden);
    put_int(out, "layers", i->layers);
    put_int(out, "heads", i->heads);
    put_string(out, "feature_norm", i->feature_norm);
    put_string(out, "layer_order", i->layer_order);
    put_bool(out, "weighted_layer_sum", i->weighted_layer_sum);
    put_int(out, "parameters", i->parameters);
    put_int(out, "tensors_used", i->tensors_used);
    put_strings(out, "tensors_unused", i->unused, i->tensors_unused);
    put_strings(out, "labels", i->labels, i->labels_count);
    put_int(out, "sampling_rate_hz", i->sampling_rate_hz);
    put_bool(out, "normalize", i->normalize);
    put_string(out, "output", i->output);
    put_string(out, "licence", i->licence);
    put_string(out, "device", i->device);
    put_string(out, "precision", i->precision);
    put_int(out, "weight_bytes", i->weight_bytes);
    put_int(out, "min_samples", i->min_samples);
    put_key(out, "frame_s");
    text_put_json_double(out, i->frame_s);
    put_string(out, "digest", i->digest);
    put_key(out, "files");
    text_put(out, "{");
    for (int f = 0; f < i->files_count; f++) {
        text_put(out, f ? "," : "");
        text_put_json_string(out, i->files[f].name);
        text_put(out, ":");
        text_put_json_string(out, i->files[f].sha256);
    }
    text_put(out, "}");
    put_strings(out, "warnings", i->warnings, i->warnings_count);
    text_put(out, "}");
}
