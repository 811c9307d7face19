/* One file's result: a line of JSON for programs, a table with bars for people. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cli/cli.h"

/* ---- JSON
 * -------------------------------------------------------------------------------------------------- */

static void put_floats_or_null(struct text *t, const char *key, const float *values, int count) {
    text_printf(t, ",\"%s\":", key);
    if (values)
        text_put_json_floats(t, values, (size_t)count);
    else
        text_put(t, "null");
}

static void put_number(struct text *t, const char *key, double value) {
    text_printf(t, "\"%s\":", key);
    text_put_json_double(t, value);
}

static void put_windows(struct text *t, const struct engine_result *r, int labels) {
    text_put(t, ",\"windows\":[");
    for (int i = 0; i < r->windows_count; i++) {
        const struct engine_window *w = &r->windows[i];
        text_put(t, i ? ",{" : "{");
        put_number(t, "start_s", w->start_s);
        text_put(t, ",");
        put_number(t, "end_s", w->end_s);
        text_printf(t, ",\"status\":\"%s\"", engine_outcome_name(w->outcome));
        put_floats_or_null(t, "scores", w->scores, labels);
        text_put(t, "}");
    }
    text_put(t, "]");
}

static void put_answer(struct text *t, const struct engine_result *r, const struct model_info *info) {
    text_put(t, ",\"labels\":[");
    for (int i = 0; i < info->labels_count; i++) {
        text_put(t, i ? "," : "");
        text_put_json_string(t, info->labels[i]);
    }
    text_put(t, "]");
    put_floats_or_null(t, "scores", r ? r->scores : NULL, info->labels_count);
    put_floats_or_null(t, "logits", r ? r->logits : NULL, info->labels_count);
    if (r && r->embedding)
        put_floats_or_null(t, "embedding", r->embedding, info->hidden);
    text_put(t, ",\"dominant\":");
    if (r && r->dominant >= 0) {
        text_put(t, "{\"label\":");
        text_put_json_string(t, info->labels[r->dominant]);
        text_put(t, ",\"score\":");
        text_put_json_float(t, r->scores[r->dominant]);
        text_put(t, "}");
    } else {
        text_put(t, "null");
    }
    if (r && r->windows)
        put_windows(t, r, info->labels_count);
}

static void put_receipt(struct text *t, const struct engine_result *r, const struct model_info *info) {
    const char *name = strrchr(info->dir, '/');
    text_put(t, ",\"receipt\":{\"model\":");
    text_put_json_string(t, name && name[1] ? name + 1 : info->dir);
    text_printf(t, ",\"digest\":\"%s\",\"device\":\"%s\",\"precision\":\"%s\",\"batch_size\":%d,",
                info->digest, info->device, info->precision, r ? r->batch_size : 0);
    put_number(t, "queue_ms", r ? r->queue_ms : 0);
    text_put(t, ",");
    put_number(t, "compute_ms", r ? r->compute_ms : 0);
    text_put(t, ",");
    put_number(t, "audio_s", r ? r->audio_s : 0);
    text_put(t, "}");
}

void cli_print_json(const struct cli_result *c, const struct model *m) {
    const struct model_info *info = model_get_info(m);
    const struct engine_result *r = c->result;
    struct text t;
    text_init_growing(&t);
    text_put(&t, "{\"file\":");
    text_put_json_string(&t, c->file);
    text_printf(&t, ",\"status\":\"%s\",\"message\":", engine_outcome_name(r ? r->outcome : ENGINE_ERROR));
    text_put_json_string(&t, r ? r->status.message : c->status->message);
    text_put(&t, ",");
    put_number(&t, "duration_s", r ? r->duration_s : 0);
    put_answer(&t, r, info);
    put_receipt(&t, r, info);
    text_put(&t, "}\n");
    if (t.failed)
        fprintf(stderr, "timbre: %s: out of memory while printing\n", c->file);
    else
        fputs(t.data, stdout);
    text_free(&t);
}

/* ---- for people
 * -------------------------------------------------------------------------------------------- */

enum { BAR_CELLS = 32, LABELS_SHOWN = 10 };

static const float *sort_scores;

static int by_score(const void *a, const void *b) {
    float x = sort_scores[*(const int *)a], y = sort_scores[*(const int *)b];
    return x < y ? 1 : x > y ? -1 : *(const int *)a - *(const int *)b;
}

/* A bar of `BAR_CELLS` cells in eighths, for a score in 0..1. */
static void print_bar(float score) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int filled = (int)(score * BAR_CELLS * 8 + 0.5f);
    filled = filled < 0 ? 0 : filled > BAR_CELLS * 8 ? BAR_CELLS * 8 : filled;
    for (int i = 0; i < filled / 8; i++)
        fputs("█", stdout);
    fputs(eighths[filled % 8], stdout);
    for (int i = (filled + 7) / 8; i < BAR_CELLS; i++)
        fputc(' ', stdout);
}

static void print_scores(const struct engine_result *r, const struct model_info *info) {
    int *order = malloc((size_t)info->labels_count * sizeof *order), width = 0;
    if (!order)
        return;
    for (int i = 0; i < info->labels_count; i++) {
        int length = (int)strlen(info->labels[i]);
        width = length > width ? length : width;
        order[i] = i;
    }
    sort_scores = r->scores;
    if (r->dominant >= 0)
        qsort(order, (size_t)info->labels_count, sizeof *order, by_score);
    for (int i = 0; i < info->labels_count && i < LABELS_SHOWN; i++) {
        printf("  %-*s ", width, info->labels[order[i]]);
        print_bar(r->scores[order[i]]);
        printf(" %6.3f\n", (double)r->scores[order[i]]);
    }
    free(order);
}

static void print_windows(const struct engine_result *r, const struct model *m) {
    const struct model_info *info = model_get_info(m);
    for (int i = 0; i < r->windows_count; i++) {
        const struct engine_window *w = &r->windows[i];
        int best = w->scores ? model_dominant(m, w->scores) : -1;
        printf("  %7.2f – %7.2f s  ", w->start_s, w->end_s);
        if (best >= 0)
            printf("%s %.3f\n", info->labels[best], (double)w->scores[best]);
        else if (w->scores)
            for (int l = 0; l < info->labels_count; l++)
                printf("%s %.3f%s", info->labels[l], (double)w->scores[l],
                       l + 1 < info->labels_count ? ", " : "\n");
        else
            printf("%s\n", engine_outcome_name(w->outcome));
    }
}

void cli_print_table(const struct cli_result *c, const struct model *m) {
    const struct model_info *info = model_get_info(m);
    const struct engine_result *r = c->result;
    if (!r || r->outcome == ENGINE_ERROR) {
        printf("%s: error: %s\n", c->file, r ? r->status.message : c->status->message);
        return;
    }
    printf("%s  %.2f s  ", c->file, r->duration_s);
    if (r->outcome != ENGINE_OK) {
        printf("%s (%s)\n", engine_outcome_name(r->outcome), r->status.message);
    } else {
        printf("%s\n", r->dominant >= 0 ? info->labels[r->dominant] : "");
        print_scores(r, info);
    }
    if (r->windows)
        print_windows(r, m);
}
