/* Results as they come: a line of JSON each for programs, a line of text for people. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/stream.h"

enum { BAR_CELLS = 16, COLUMNS_DEFAULT = 80, LABELS_SHOWN = 10 };

void stream_name_channel(char name[STREAM_NAME_BYTES], const struct stream_arguments *a, int channel) {
    if (a->channels[channel].name[0])
        memcpy(name, a->channels[channel].name, STREAM_NAME_BYTES);
    else
        snprintf(name, STREAM_NAME_BYTES, "%d", channel + 1);
}

void stream_output_init(struct stream_output *out, const struct stream_arguments *a) {
    *out = (struct stream_output){.arguments = a, .terminal = !a->json && isatty(STDOUT_FILENO)};
    for (int c = 0; c < a->analysis.format.channels; c++) {
        char name[STREAM_NAME_BYTES];
        stream_name_channel(name, a, c);
        const int width = (int)strlen(name);
        out->name_width = width > out->name_width ? width : out->name_width;
    }
}

/* Prints and frees. */
static void print(struct stream_output *out, struct text *t) {
    if (t->failed)
        fprintf(stderr, "timbre stream: out of memory while printing\n");
    else
        fputs(t->data, stdout);
    out->failed += t->failed;
    text_free(t);
    fflush(stdout);
}

/* ---- JSON ---- */

static void put_string(struct text *t, const char *key, const char *value) {
    text_printf(t, ",\"%s\":", key);
    text_put_json_string(t, value);
}

static void put_count(struct text *t, const char *key, int64_t value) {
    text_printf(t, ",\"%s\":%lld", key, (long long)value);
}

static const char *as_bool(bool value) {
    return value ? "true" : "false";
}

static void put_channel(struct text *t, const struct stream_arguments *a, int channel) {
    char name[STREAM_NAME_BYTES];
    stream_name_channel(name, a, channel);
    text_printf(t, "\"channel\":%d", channel);
    put_string(t, "channel_name", name);
    put_string(t, "role", a->channels[channel].role);
}

static void put_result_json(struct text *t, const struct stream_arguments *a, const struct stream_result *r) {
    text_put(t, "{\"type\":\"result\",");
    put_channel(t, a, r->channel);
    cli_put_number(t, "start_s", r->start_s);
    cli_put_number(t, "end_s", r->end_s);
    cli_put_number(t, "speech_s", r->speech_s);
    put_string(t, "status", r->status);
    put_string(t, "message", r->message);
    text_printf(t, ",\"final\":%s", as_bool(r->final));
    cli_put_labels(t, r->labels, r->labels_count);
    cli_put_floats_or_null(t, "scores", r->scores, r->labels_count);
    cli_put_floats_or_null(t, "logits", r->logits, r->labels_count);
    if (a->analysis.smoothing_s > 0)
        cli_put_floats_or_null(t, "smoothed", r->smoothed, r->labels_count);
    if (a->analysis.embedding)
        cli_put_floats_or_null(t, "embedding", r->embedding, r->embedding_count);
    cli_put_dominant(t, r->labels, r->scores, r->dominant);
    put_count(t, "resume_offset_ms", r->resume_offset_ms);
    cli_put_number(t, "lag_ms", r->lag_ms);
    cli_put_receipt(t, &r->receipt);
    text_put(t, "}\n");
}

static void put_timeline_json(struct text *t, const struct summary_channel *c, int labels_count) {
    text_put(t, ",\"timeline\":[");
    for (int i = 0; i < c->timeline_count; i++) {
        const struct summary_segment *s = &c->timeline[i];
        text_put(t, i ? ",{\"start_s\":" : "{\"start_s\":");
        text_put_json_double(t, s->start_s);
        cli_put_number(t, "end_s", s->end_s);
        cli_put_number(t, "speech_s", s->speech_s);
        cli_put_floats_or_null(t, "scores", s->scores, labels_count);
        text_put(t, "}");
    }
    text_put(t, "]");
}

static double share_of_no_speech(const struct summary_channel *c) {
    return c->results > 0 ? (double)c->no_speech_results / (double)c->results : 0;
}

static void put_channel_summary_json(struct text *t, const struct stream_arguments *a,
                                     const struct stream_summary *s, int channel) {
    const struct summary_channel *c = &s->report->channels[channel];
    text_put(t, "{");
    put_channel(t, a, channel);
    text_printf(t, ",\"excluded\":%s", as_bool(c->excluded));
    if (!c->excluded) {
        cli_put_floats_or_null(t, "scores", c->scores, s->labels_count);
        cli_put_dominant(t, s->labels, c->scores, s->dominant[channel]);
        cli_put_number(t, "speech_s", c->speech_s);
        cli_put_number(t, "silence_s", c->silence_s);
        cli_put_number(t, "no_speech_share", share_of_no_speech(c));
        cli_put_floats_or_null(t, "trend", c->trend, s->labels_count);
        put_count(t, "results", c->results);
        put_count(t, "no_speech_results", c->no_speech_results);
        put_count(t, "forwards", c->forwards);
        put_timeline_json(t, c, s->labels_count);
    }
    text_put(t, "}");
}

static void put_summary_json(struct text *t, const struct stream_arguments *a,
                             const struct stream_summary *s) {
    text_printf(t, "{\"type\":\"summary\",\"final\":%s", as_bool(s->final));
    put_string(t, "end", s->end);
    cli_put_labels(t, s->labels, s->labels_count);
    text_put(t, ",\"channels\":[");
    for (int c = 0; c < s->report->channels_count; c++) {
        text_put(t, c ? "," : "");
        put_channel_summary_json(t, a, s, c);
    }
    text_put(t, "]");
    cli_put_number(t, "talk_over_s", s->report->talk_over_s);
    cli_put_number(t, "start_s", s->report->start_s);
    cli_put_number(t, "end_s", s->report->end_s);
    put_count(t, "resume_offset_ms", s->resume_offset_ms);
    put_string(t, "request_id", s->request_id);
    text_put(t, "}\n");
}

/* ---- for people ---- */

static void put_padded(struct text *t, const char *s, int width) {
    cli_put_plain(t, s);
    text_printf(t, "%*s", width - (int)strlen(s) > 0 ? width - (int)strlen(s) : 0, "");
}

static int count_columns(void) {
    struct winsize w;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : COLUMNS_DEFAULT;
}

/* "anger 0.912" or, of a regression, all of them. */
static void put_scores(struct text *t, const char *const *labels, int count, const float *scores,
                       int dominant, int width) {
    if (dominant >= 0) {
        put_padded(t, labels[dominant], width);
        text_printf(t, " %.3f", (double)scores[dominant]);
        return;
    }
    for (int i = 0; i < count && i < LABELS_SHOWN; i++) {
        text_put(t, i ? ", " : "");
        cli_put_plain(t, labels[i]);
        text_printf(t, " %.3f", (double)scores[i]);
    }
}

static void put_result_line(struct stream_output *out, struct text *t, const struct stream_result *r) {
    char name[STREAM_NAME_BYTES];
    stream_name_channel(name, out->arguments, r->channel);
    for (int i = 0; i < r->labels_count; i++) {
        const int width = (int)strlen(r->labels[i]);
        out->label_width = width > out->label_width ? width : out->label_width;
    }
    text_printf(t, "%8.2f – %8.2f s  ", r->start_s, r->end_s);
    put_padded(t, name, out->name_width);
    text_put(t, "  ");
    if (r->scores) {
        put_scores(t, r->labels, r->labels_count, r->scores, r->dominant, out->label_width);
        if (out->terminal && r->dominant >= 0 &&
            count_columns() > 24 + out->name_width + out->label_width + 10 + BAR_CELLS + 4) {
            text_put(t, " ");
            cli_put_bar(t, r->scores[r->dominant], BAR_CELLS);
        }
    } else {
        text_put(t, r->status);
        if (strcmp(r->status, "error") == 0) {
            text_put(t, ": ");
            cli_put_plain(t, r->message);
        }
    }
    text_put(t, r->final ? "" : " …");
}

static void put_channel_summary(struct stream_output *out, struct text *t, const struct stream_summary *s,
                                int channel) {
    const struct summary_channel *c = &s->report->channels[channel];
    char name[STREAM_NAME_BYTES];
    stream_name_channel(name, out->arguments, channel);
    text_put(t, "  ");
    put_padded(t, name, out->name_width);
    if (c->excluded) {
        text_put(t, "  excluded\n");
        return;
    }
    text_put(t, "  ");
    if (c->scores)
        put_scores(t, s->labels, s->labels_count, c->scores, s->dominant[channel], 0);
    else
        text_put(t, "no scores");
    text_printf(t, "; speech %.1f s, silence %.1f s; %lld result%s, %.0f %% no speech", c->speech_s,
                c->silence_s, (long long)c->results, c->results == 1 ? "" : "s", 100 * share_of_no_speech(c));
    if (c->trend) { /* what rose and what fell the most */
        int up = 0, down = 0;
        for (int i = 1; i < s->labels_count; i++) {
            up = c->trend[i] > c->trend[up] ? i : up;
            down = c->trend[i] < c->trend[down] ? i : down;
        }
        text_put(t, "; trend: ");
        cli_put_plain(t, s->labels[up]);
        text_printf(t, " %+.2f, ", (double)c->trend[up]);
        cli_put_plain(t, s->labels[down]);
        text_printf(t, " %+.2f", (double)c->trend[down]);
    }
    text_put(t, "\n");
}

static void put_summary_lines(struct stream_output *out, struct text *t, const struct stream_summary *s) {
    const struct summary_report *r = s->report;
    text_printf(t, "summary of %.2f – %.2f s", r->start_s, r->end_s);
    if (r->channels_count > 1)
        text_printf(t, ", %.1f s of talk-over", r->talk_over_s);
    text_put(t, "\n");
    for (int c = 0; c < r->channels_count; c++)
        put_channel_summary(out, t, s, c);
}

/* Wipes an interim line. */
static void clear(struct stream_output *out, struct text *t) {
    if (out->interim)
        text_put(t, "\r\033[K");
    out->interim = false;
}

/* ---- both ---- */

void stream_print_result(struct stream_output *out, const struct stream_result *r) {
    struct text t;
    text_init_growing(&t);
    if (out->arguments->json) {
        put_result_json(&t, out->arguments, r);
    } else {
        clear(out, &t);
        put_result_line(out, &t, r);
        out->interim = out->terminal && !r->final;
        text_put(&t, out->interim ? "" : "\n");
    }
    out->failed += strcmp(r->status, "error") == 0;
    print(out, &t);
}

void stream_print_summary(struct stream_output *out, const struct stream_summary *s) {
    struct text t;
    text_init_growing(&t);
    if (out->arguments->json) {
        put_summary_json(&t, out->arguments, s);
    } else {
        clear(out, &t);
        put_summary_lines(out, &t, s);
    }
    print(out, &t);
}

void stream_print_resume(struct stream_output *out, const char *code, const char *message, int64_t offset_ms,
                         int wait_ms) {
    struct text t;
    text_init_growing(&t);
    if (out->arguments->json) {
        text_put(&t, "{\"type\":\"resume\"");
        put_string(&t, "code", code);
        put_string(&t, "message", message);
        put_count(&t, "offset_ms", offset_ms);
        put_count(&t, "wait_ms", wait_ms);
        text_put(&t, "}\n");
    } else {
        clear(out, &t);
        fprintf(stderr, "timbre stream: %s: %s; goes on from %.0f s in %d ms\n", code, message,
                (double)offset_ms * 1e-3, wait_ms);
    }
    print(out, &t);
}

void stream_output_end(struct stream_output *out) {
    struct text t;
    text_init_growing(&t);
    clear(out, &t);
    print(out, &t);
}
