/* The figures of a load, for people and for programs. */
#include <stdio.h>
#include <unistd.h>

#include "base/text.h"
#include "cli/bench.h"

static bool shown;

static const struct {
    const char *name, *key;
    double share;
} quantiles[] = {{"p50", "p50", 0.5}, {"p90", "p90", 0.9}, {"p99", "p99", 0.99}, {"p99.9", "p99_9", 0.999}};
enum { QUANTILES = sizeof quantiles / sizeof *quantiles };

static double quantile_ms(const struct bench_stats *s, double share) {
    return (double)histogram_quantile(&s->latency_ns, share) / 1e6;
}

static double mean(double sum, uint64_t count) {
    return count ? sum / (double)count : 0;
}

void bench_show_live(const struct bench_stats *s, double elapsed_s, int in_flight) {
    if (!isatty(STDERR_FILENO))
        return;
    shown = true;
    fprintf(stderr,
            "\r%5.1f s  %.0f calls/s  %.1f s of audio/s  p50 %.2f ms  p99 %.2f ms  %llu failed  %d under "
            "way\033[K",
            elapsed_s, (double)s->latency_ns.count / elapsed_s, s->audio_s / elapsed_s, quantile_ms(s, 0.5),
            quantile_ms(s, 0.99), (unsigned long long)s->failed, in_flight);
    fflush(stderr);
}

void bench_clear_live(void) {
    if (shown)
        fprintf(stderr, "\r\033[K");
    shown = false;
}

void bench_report_text(const struct bench_result *r, const struct bench_options *o) {
    const struct bench_stats *s = &r->stats;
    const uint64_t answered = s->latency_ns.count;
    printf("calls         %llu answered in %.2f s, %.1f /s; %llu failed\n", (unsigned long long)answered,
           r->elapsed_s, (double)answered / r->elapsed_s, (unsigned long long)s->failed);
    printf("audio         %.1f s, %.2f s/s\n", s->audio_s, s->audio_s / r->elapsed_s);
    printf("latency, ms   min %.3f  mean %.3f", (double)s->latency_ns.min / 1e6,
           mean(s->latency_ns.sum, answered) / 1e6);
    for (int i = 0; i < QUANTILES; i++)
        printf("  %s %.3f", quantiles[i].name, quantile_ms(s, quantiles[i].share));
    printf("  max %.3f\n", (double)s->latency_ns.max / 1e6);
    printf("server        batches of %.2f clips, %.3f ms waiting, %.3f ms computing (means over calls)\n",
           mean(s->batch_size, s->batches), mean(s->queue_ms, s->batches), mean(s->compute_ms, s->batches));
    printf("answers      ");
    for (int i = 0; i < 5; i++)
        if (s->answers[i])
            printf(" %s %llu ", timbre_answer_name(i), (unsigned long long)s->answers[i]);
    printf("\n");
    for (int i = 0; i < BENCH_CODES; i++)
        if (s->codes[i])
            printf("failed        %llu %s: %s\n", (unsigned long long)s->codes[i], timbre_code_name(i),
                   s->example[i]);
    if (s->attempts > answered + s->failed)
        printf("attempts      %.3f a call\n", (double)s->attempts / (double)(answered + s->failed));
    printf("generator     %.2f processors", r->cpu_s / r->elapsed_s);
    if (o->rate > 0)
        printf(", at most %.3f ms late, %llu calls not sent", r->late_ms_max, (unsigned long long)r->unsent);
    printf("\n");
}

static void put_number(struct text *t, const char *key, double value) {
    text_printf(t, ",\"%s\":", key);
    text_put_json_double(t, value);
}

static void put_count(struct text *t, const char *key, uint64_t value) {
    text_printf(t, ",\"%s\":%llu", key, (unsigned long long)value);
}

static void put_load(struct text *t, const struct bench_options *o) {
    text_put(t, "{\"server\":");
    text_put_json_string(t, o->server.target);
    text_printf(t, ",\"loop\":\"%s\"", o->rate > 0 ? "open" : "closed");
    if (o->rate > 0)
        put_number(t, "rate", o->rate);
    else
        put_count(t, "concurrency", (uint64_t)o->concurrency);
    put_count(t, "connections", (uint64_t)o->connections);
}

static void put_counts(struct text *t, const struct bench_stats *s) {
    const char *comma = "";
    text_put(t, ",\"answers\":{");
    for (int i = 0; i < 5; i++)
        if (s->answers[i]) {
            text_printf(t, "%s\"%s\":%llu", comma, timbre_answer_name(i), (unsigned long long)s->answers[i]);
            comma = ",";
        }
    comma = "";
    text_put(t, "},\"errors\":{");
    for (int i = 0; i < BENCH_CODES; i++)
        if (s->codes[i]) {
            text_printf(t, "%s\"%s\":{\"count\":%llu,\"message\":", comma, timbre_code_name(i),
                        (unsigned long long)s->codes[i]);
            text_put_json_string(t, s->example[i]);
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
    put_number(&t, "duration_s", r->elapsed_s);
    put_count(&t, "calls", answered);
    put_count(&t, "failed", s->failed);
    put_number(&t, "calls_per_s", (double)answered / r->elapsed_s);
    put_number(&t, "audio_s", s->audio_s);
    put_number(&t, "audio_s_per_s", s->audio_s / r->elapsed_s);
    text_put(&t, ",\"latency_ms\":{\"min\":");
    text_put_json_double(&t, (double)s->latency_ns.min / 1e6);
    put_number(&t, "mean", mean(s->latency_ns.sum, answered) / 1e6);
    for (int i = 0; i < QUANTILES; i++)
        put_number(&t, quantiles[i].key, quantile_ms(s, quantiles[i].share));
    put_number(&t, "max", (double)s->latency_ns.max / 1e6);
    text_put(&t, "}");
    put_counts(&t, s);
    put_number(&t, "batch_size_mean", mean(s->batch_size, s->batches));
    put_number(&t, "queue_ms_mean", mean(s->queue_ms, s->batches));
    put_number(&t, "compute_ms_mean", mean(s->compute_ms, s->batches));
    put_count(&t, "attempts", s->attempts);
    put_number(&t, "generator_processors", r->cpu_s / r->elapsed_s);
    put_number(&t, "late_ms_max", r->late_ms_max);
    put_count(&t, "unsent", r->unsent);
    text_put(&t, "}\n");
    fputs(t.failed ? "" : t.data, stdout);
    text_free(&t);
}
