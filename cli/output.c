/* One file's result: a line of JSON for programs, a table with bars for people. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cli/cli.h"

/* ---- JSON ---- */

void cli_put_floats_or_null(struct text *t, const char *key, const float *values, int count) {
    text_printf(t, ",\"%s\":", key);
    if (values)
        text_put_json_floats(t, values, (size_t)count);
    else
        text_put(t, "null");
}

void cli_put_number(struct text *t, const char *key, double value) {
    text_printf(t, ",\"%s\":", key);
    text_put_json_double(t, value);
}

void cli_put_labels(struct text *t, const char *const *labels, int count) {
    text_put(t, ",\"labels\":[");
    for (int i = 0; i < count; i++) {
        text_put(t, i ? "," : "");
        text_put_json_string(t, labels[i]);
    }
    text_put(t, "]");
}

void cli_put_dominant(struct text *t, const char *const *labels, const float *scores, int dominant) {
    text_put(t, ",\"dominant\":");
    if (dominant < 0) {
        text_put(t, "null");
        return;
    }
    text_put(t, "{\"label\":");
    text_put_json_string(t, labels[dominant]);
    text_put(t, ",\"score\":");
    text_put_json_float(t, scores[dominant]);
    text_put(t, "}");
}

static void put_windows(struct text *t, const struct cli_answer *a) {
    text_put(t, ",\"windows\":[");
    for (int i = 0; i < a->windows_count; i++) {
        const struct cli_window *w = &a->windows[i];
        text_put(t, i ? ",{\"start_s\":" : "{\"start_s\":");
        text_put_json_double(t, w->start_s);
        cli_put_number(t, "end_s", w->end_s);
        text_printf(t, ",\"status\":\"%s\"", w->status);
        cli_put_floats_or_null(t, "scores", w->scores, a->labels_count);
        text_put(t, "}");
    }
    text_put(t, "]");
}

static void put_scores(struct text *t, const struct cli_answer *a) {
    cli_put_labels(t, a->labels, a->labels_count);
    cli_put_floats_or_null(t, "scores", a->scores, a->labels_count);
    cli_put_floats_or_null(t, "logits", a->logits, a->labels_count);
    if (a->embedding)
        cli_put_floats_or_null(t, "embedding", a->embedding, a->embedding_count);
    cli_put_dominant(t, a->labels, a->scores, a->dominant);
    if (a->windows)
        put_windows(t, a);
}

void cli_put_receipt(struct text *t, const struct cli_receipt *r) {
    text_put(t, ",\"receipt\":{\"model\":");
    text_put_json_string(t, r->model);
    text_put(t, ",\"digest\":");
    text_put_json_string(t, r->digest);
    text_put(t, ",\"device\":");
    text_put_json_string(t, r->device);
    text_put(t, ",\"precision\":");
    text_put_json_string(t, r->precision);
    text_printf(t, ",\"batch_size\":%d", r->batch_size);
    cli_put_number(t, "queue_ms", r->queue_ms);
    cli_put_number(t, "compute_ms", r->compute_ms);
    cli_put_number(t, "audio_s", r->audio_s);
    text_put(t, "}");
}

void cli_print_json(const struct cli_answer *a) {
    struct text t;
    text_init_growing(&t);
    text_put(&t, "{\"file\":");
    text_put_json_string(&t, a->file);
    text_printf(&t, ",\"status\":\"%s\",\"message\":", a->status);
    text_put_json_string(&t, a->message);
    cli_put_number(&t, "duration_s", a->duration_s);
    put_scores(&t, a);
    cli_put_receipt(&t, &a->receipt);
    text_put(&t, "}\n");
    if (t.failed)
        fprintf(stderr, "timbre: %s: out of memory while printing\n", a->file);
    else
        fputs(t.data, stdout);
    text_free(&t);
}

/* ---- for people ---- */

enum { BAR_CELLS = 32, LABELS_SHOWN = 10 };

static const float *sort_scores;

static int by_score(const void *a, const void *b) {
    float x = sort_scores[*(const int *)a], y = sort_scores[*(const int *)b];
    return x < y ? 1 : x > y ? -1 : *(const int *)a - *(const int *)b;
}

void cli_put_bar(struct text *t, float score, int cells) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int filled = (int)(score * (float)cells * 8 + 0.5f);
    filled = filled < 0 ? 0 : filled > cells * 8 ? cells * 8 : filled;
    for (int i = 0; i < filled / 8; i++)
        text_put(t, "█");
    text_put(t, eighths[filled % 8]);
    for (int i = (filled + 7) / 8; i < cells; i++)
        text_put(t, " ");
}

void cli_put_plain(struct text *t, const char *s) {
    for (; *s; s++)
        text_printf(t, "%c", (unsigned char)*s < ' ' || *s == 0x7f ? ' ' : *s);
}

static void print_plain(const char *text) {
    struct text t;
    text_init_growing(&t);
    cli_put_plain(&t, text);
    fputs(t.failed ? "" : t.data, stdout);
    text_free(&t);
}

static void print_bar(float score) {
    char buffer[BAR_CELLS * 4 + 1];
    struct text t;
    text_init(&t, buffer, sizeof buffer);
    cli_put_bar(&t, score, BAR_CELLS);
    fputs(buffer, stdout);
}

static void print_scores(const struct cli_answer *a) {
    int *order = malloc((size_t)a->labels_count * sizeof *order), width = 0;
    if (!order)
        return;
    for (int i = 0; i < a->labels_count; i++) {
        int length = (int)strlen(a->labels[i]);
        width = length > width ? length : width;
        order[i] = i;
    }
    sort_scores = a->scores;
    if (a->dominant >= 0)
        qsort(order, (size_t)a->labels_count, sizeof *order, by_score);
    for (int i = 0; i < a->labels_count && i < LABELS_SHOWN; i++) {
        const char *label = a->labels[order[i]];
        printf("  ");
        print_plain(label);
        printf("%*s ", width - (int)strlen(label), "");
        print_bar(a->scores[order[i]]);
        printf(" %6.3f\n", (double)a->scores[order[i]]);
    }
    free(order);
}

static void print_windows(const struct cli_answer *a) {
    for (int i = 0; i < a->windows_count; i++) {
        const struct cli_window *w = &a->windows[i];
        printf("  %7.2f – %7.2f s  ", w->start_s, w->end_s);
        for (int l = 0; w->scores && l < a->labels_count; l++) {
            if (w->dominant >= 0 && l != w->dominant)
                continue;
            print_plain(a->labels[l]);
            printf(" %.3f%s", (double)w->scores[l], w->dominant < 0 && l + 1 < a->labels_count ? ", " : "");
        }
        printf("%s\n", w->scores ? "" : w->status);
    }
}

void cli_print_table(const struct cli_answer *a) {
    if (strcmp(a->status, "error") == 0) {
        printf("%s: error: ", a->file);
        print_plain(a->message);
        printf("\n");
        return;
    }
    printf("%s  %.2f s  ", a->file, a->duration_s);
    if (!a->scores) {
        printf("%s (", a->status);
        print_plain(a->message);
        printf(")\n");
    } else {
        print_plain(a->dominant >= 0 ? a->labels[a->dominant] : "");
        printf("\n");
        print_scores(a);
    }
    print_windows(a);
}
