/* One file's result: a line of JSON for programs, a table with bars for people. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cli/cli.h"

/* ---- JSON ---- */

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

static void put_windows(struct text *t, const struct cli_answer *a) {
    text_put(t, ",\"windows\":[");
    for (int i = 0; i < a->windows_count; i++) {
        const struct cli_window *w = &a->windows[i];
        text_put(t, i ? ",{" : "{");
        put_number(t, "start_s", w->start_s);
        text_put(t, ",");
        put_number(t, "end_s", w->end_s);
        text_printf(t, ",\"status\":\"%s\"", w->status);
        put_floats_or_null(t, "scores", w->scores, a->labels_count);
        text_put(t, "}");
    }
    text_put(t, "]");
}

static void put_scores(struct text *t, const struct cli_answer *a) {
    text_put(t, ",\"labels\":[");
    for (int i = 0; i < a->labels_count; i++) {
        text_put(t, i ? "," : "");
        text_put_json_string(t, a->labels[i]);
    }
    text_put(t, "]");
    put_floats_or_null(t, "scores", a->scores, a->labels_count);
    put_floats_or_null(t, "logits", a->logits, a->labels_count);
    if (a->embedding)
        put_floats_or_null(t, "embedding", a->embedding, a->embedding_count);
    text_put(t, ",\"dominant\":");
    if (a->dominant >= 0) {
        text_put(t, "{\"label\":");
        text_put_json_string(t, a->labels[a->dominant]);
        text_put(t, ",\"score\":");
        text_put_json_float(t, a->scores[a->dominant]);
        text_put(t, "}");
    } else {
        text_put(t, "null");
    }
    if (a->windows)
        put_windows(t, a);
}

static void put_receipt(struct text *t, const struct cli_answer *a) {
    text_put(t, ",\"receipt\":{\"model\":");
    text_put_json_string(t, a->receipt.model);
    text_put(t, ",\"digest\":");
    text_put_json_string(t, a->receipt.digest);
    text_put(t, ",\"device\":");
    text_put_json_string(t, a->receipt.device);
    text_put(t, ",\"precision\":");
    text_put_json_string(t, a->receipt.precision);
    text_printf(t, ",\"batch_size\":%d,", a->receipt.batch_size);
    put_number(t, "queue_ms", a->receipt.queue_ms);
    text_put(t, ",");
    put_number(t, "compute_ms", a->receipt.compute_ms);
    text_put(t, ",");
    put_number(t, "audio_s", a->receipt.audio_s);
    text_put(t, "}");
}

void cli_print_json(const struct cli_answer *a) {
    struct text t;
    text_init_growing(&t);
    text_put(&t, "{\"file\":");
    text_put_json_string(&t, a->file);
    text_printf(&t, ",\"status\":\"%s\",\"message\":", a->status);
    text_put_json_string(&t, a->message);
    text_put(&t, ",");
    put_number(&t, "duration_s", a->duration_s);
    put_scores(&t, a);
    put_receipt(&t, a);
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

/* What others wrote must not drive the terminal. */
static void print_plain(const char *text) {
    for (; *text; text++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? ' ' : *text);
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
