/* The figures of a load, for people and for programs. */
#include <stdio.h>
#include <unistd.h>

#include "base/text.h"
#include "cli/bench.h"

enum { LINE_BYTES = 256 };

static bool shown;

const struct bench_quantile bench_quantiles[BENCH_QUANTILES] = {
    {"p50", "p50", 0.5}, {"p90", "p90", 0.9}, {"p99", "p99", 0.99}, {"p99.9", "p99_9", 0.999}};

static double quantile_ms(const struct histogram *ns, double share) {
    return (double)histogram_quantile(ns, share) / 1e6;
}

double bench_mean(double sum, uint64_t count) {
    return count ? sum / (double)count : 0;
}

void bench_show_line(const char *line) {
    if (!isatty(STDERR_FILENO))
        return;
    shown = true;
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
}

void bench_show_live(const struct bench_stats *s, double elapsed_s, int in_flight) {
    char line[LINE_BYTES];
    snprintf(line, sizeof line,
             "%5.1f s  %.0f calls/s  %.1f s of audio/s  p50 %.2f ms  p99 %.2f ms  %llu failed  %d under way",
             elapsed_s, (double)s->latency_ns.count / elapsed_s, s->audio_s / elapsed_s,
             quantile_ms(&s->latency_ns, 0.5), quantile_ms(&s->latency_ns, 0.99),
             (unsigned long long)s->failed, in_flight);
    bench_show_line(line);
}

void bench_clear_live(void) {
    if (shown)
        fprintf(stderr, "\r\033[K");
    shown = false;
}

void bench_print_times(const char *name, const struct histogram *ns) {
    printf("%-13s min %.3f  mean %.3f", name, (double)ns->min / 1e6, bench_mean(ns->sum, ns->count) / 1e6);
    for (int i = 0; i < BENCH_QUANTILES; i++)
        printf("  %s %.3f", bench_quantiles[i].name, quantile_ms(ns, bench_quantiles[i].share));
    printf("  max %.3f\n", (double)ns->max / 1e6);
}

void bench_print_answers(const uint64_t *answers) {
    printf("answers      ");
    for (int i = 0; i < 5; i++)
        if (answers[i])
            printf(" %s %llu ", timbre_answer_name(i), (unsigned long long)answers[i]);
    printf("\n");
}

void bench_print_errors(const struct bench_errors *e) {
    for (int i = 0; i < BENCH_CODES; i++)
        if (e->codes[i])
            printf("failed        %llu %s: %s\n", (unsigned long long)e->codes[i], timbre_code_name(i),
                   e->example[i]);
}

void bench_report_text(const struct bench_result *r, const struct bench_options *o) {
    const struct bench_stats *s = &r->stats;
    const uint64_t answered = s->latency_ns.count;
    printf("calls         %llu answered in %.2f s, %.1f /s; %llu failed\n", (unsigned long long)answered,
           r->elapsed_s, (double)answered / r->elapsed_s, (unsigned long long)s->failed);
    printf("audio         %.1f s, %.2f s/s\n", s->audio_s, s->audio_s / r->elapsed_s);
    bench_print_times("latency, ms", &s->latency_ns);
    printf("server        batches of %.2f clips, %.3f ms waiting, %.3f ms computing (means over calls)\n",
           bench_mean(s->batch_size, s->batches), bench_mean(s->queue_ms, s->batches),
           bench_mean(s->compute_ms, s->batches));
    bench_print_answers(s->answers);
    bench_print_errors(&s->errors);
    if (s->attempts > answered + s->failed)
        printf("attempts      %.3f a call\n", (double)s->attempts / (double)(answered + s->failed));
    printf("generator     %.2f processors", r->cpu_s / r->elapsed_s);
    if (o->rate > 0)
        printf(", at most %.3f ms late, %llu calls not sent", r->late_ms_max, (unsigned long long)r->unsent);
    printf("\n");
}

void bench_put_count(struct text *t, const char *key, uint64_t value) {
    text_printf(t, ",\"%s\":%llu", key, (unsigned long long)value);
}

void bench_put_times(struct text *t, const char *key, const struct histogram *ns) {
    text_printf(t, ",\"%s\":{\"min\":", key);
    text_put_json_double(t, (double)ns->min / 1e6);
    cli_put_number(t, "mean", bench_mean(ns->sum, ns->count) / 1e6);
    for (int i = 0; i < BENCH_QUANTILES; i++)
        cli_put_number(t, bench_quantiles[i].key, quantile_ms(ns, bench_quantiles[i].share));
    cli_put_number(t, "max", (double)ns->max / 1e6);
    text_put(t, "}");
}

static void put_load(struct text *t, const struct bench_options *o) {
    text_put(t, "{\"server\":");
    text_put_json_string(t, o->server.target);
    text_printf(t, ",\"loop\":\"%s\"", o->rate > 0 ? "open" : "closed");
    if (o->rate > 0)
        cli_put_number(t, "rate", o->rate);
    else
        bench_put_count(t, "concurrency", (uint64_t)o->concurrency);
    bench_put_count(t, "connections", (uint64_t)o->connections);
}

void bench_put_counts(struct text *t, const uint64_t *answers, const struct bench_errors *e) {
    const char *comma = "";
    text_put(t, ",\"answers\":{");
    for (int i = 0; i < 5; i++)
        if (answers[i]) {
            text_printf(t, "%s\"%s\":%llu", comma, timbre_answer_name(i), (unsigned long long)answers[i]);
            comma = ",";
        }
    comma = "";
    text_put(t, "},\"errors\":{");
    for (int i = 0; i < BENCH_CODES; i++)
        if (e->codes[i]) {
            text_printf(t, "%s\"%s\":{\"count\":%llu,\"message\":", comma, timbre_code_name(i),
                        (unsigned long long)e->codes[i]);
            text_put_json_string(t, e->example[i]);
            text_put(t, "}");
            comma = ",";
        }
    text_put(t, "}");
}

void bench_report_json(const struct bench_result *r, const struct bench_options *o) {
    const struct bench_stats *s = &r->stats;
    const uint64_t answered = s->latency_ns.count;
    struct text t;
    text_init_growing(&t);
    put_load(&t, o);
    cli_put_number(&t, "duration_s", r->elapsed_s);
    bench_put_count(&t, "calls", answered);
    bench_put_count(&t, "failed", s->failed);
    cli_put_number(&t, "calls_per_s", (double)answered / r->elapsed_s);
    cli_put_number(&t, "audio_s", s->audio_s);
    cli_put_number(&t, "audio_s_per_s", s->audio_s / r->elapsed_s);
    bench_put_times(&t, "latency_ms", &s->latency_ns);
    bench_put_counts(&t, s->answers, &s->errors);
    cli_put_number(&t, "batch_size_mean", bench_mean(s->batch_size, s->batches));
    cli_put_number(&t, "queue_ms_mean", bench_mean(s->queue_ms, s->batches));
    cli_put_number(&t, "compute_ms_mean", bench_mean(s->compute_ms, s->batches));
    bench_put_count(&t, "attempts", s->attempts);
    cli_put_number(&t, "generator_processors", r->cpu_s / r->elapsed_s);
    cli_put_number(&t, "late_ms_max", r->late_ms_max);
    bench_put_count(&t, "unsent", r->unsent);
    text_put(&t, "}\n");
    fputs(t.failed ? "" : t.data, stdout);
    text_free(&t);
}
