/* Tests of the client's asynchronous calls, and of its threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <grpc/status.h>

#include "base/clock.h"
#include "helpers.h"

struct seen {
    sem_t done;
    atomic_int callbacks, ok, cancelled, other, released;
};

static void on_result(struct timbre_prediction *p, const struct timbre_status *st, void *user) {
    struct seen *seen = user;
    atomic_fetch_add(&seen->callbacks, 1);
    atomic_fetch_add(st->code == 0 ? &seen->ok : st->code == 1 ? &seen->cancelled : &seen->other, 1);
    assert((p != NULL) == (st->code == 0));
    timbre_prediction_free(p);
    sem_post(&seen->done);
}

static void on_release(void *arg) {
    atomic_fetch_add(&((struct seen *)arg)->released, 1);
}

static struct timbre_predict_request a_borrowed_request(struct seen *seen) {
    struct timbre_predict_request r = a_request();
    r.release = on_release;
    r.release_arg = seen;
    return r;
}

static void wait_released(struct seen *seen, int count) {
    for (int i = 0; i < 5000 && atomic_load(&seen->released) < count; i++)
        sleep_ms(1);
    assert_int_equal(atomic_load(&seen->released), count);
}

static void test_asynchronous(void **state) {
    (void)state;
    enum { CALLS = 500 };
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answers[] = {answer_ok(&ok), {.code = 3, .message = "no"}, answer_ok(&ok)};
    struct fake_server *s = fake_server_new(answers, 3, NULL);
    struct timbre_client *c = new_client(s, (struct timbre_client_options){0});
    struct seen seen = {0};
    sem_init(&seen.done, 0, 0);
    for (int i = 0; i < CALLS; i++) {
        struct timbre_predict_request r = a_borrowed_request(&seen);
        struct timbre_call *call = NULL;
        assert_int_equal(timbre_predict_start(c, &r, on_result, &seen, i % 2 ? &call : NULL, NULL), 0);
        assert_int_equal(call != NULL, i % 2);
        timbre_call_release(call);
    }
    for (int i = 0; i < CALLS; i++)
        sem_wait(&seen.done);
    assert_int_equal(seen.ok, CALLS - 1);
    assert_int_equal(seen.other, 1);
    wait_released(&seen, CALLS);
    /* A request that fails at once has been released. */
    struct timbre_predict_request wrong = a_borrowed_request(&seen);
    wrong.deadline_ms = -7;
    assert_int_equal(timbre_predict_start(c, &wrong, on_result, &seen, NULL, NULL), -1);
    assert_int_equal(seen.released, CALLS + 1);
    timbre_client_del(c);
    fake_server_del(s);
    sem_destroy(&seen.done);
    free(ok.data);
}

static void test_cancel(void **state) {
    (void)state;
    enum { CALLS = 300 };
    const struct fake_answer never = {.delay_ms = -1, .code = 1};
    struct fake_server *s = fake_server_new(&never, 1, NULL);
    struct timbre_client *c =
        new_client(s, (struct timbre_client_options){.deadline_ms = TIMBRE_NO_DEADLINE});
    struct timbre_call *calls[CALLS];
    struct seen seen = {0};
    sem_init(&seen.done, 0, 0);
    for (int i = 0; i < CALLS; i++) {
        struct timbre_predict_request r = a_borrowed_request(&seen);
        assert_int_equal(timbre_predict_start(c, &r, on_result, &seen, &calls[i], NULL), 0);
    }
    while (fake_server_count_calls(s) < CALLS / 2) /* some are there, some on their way */
        sleep_ms(1);
    for (int i = 0; i < CALLS; i++)
        timbre_call_cancel(calls[i]);
    for (int i = 0; i < CALLS; i++)
        sem_wait(&seen.done);
    assert_int_equal(seen.cancelled, CALLS);
    timbre_client_del(c);
    for (int i = 0; i < CALLS; i++) {
        timbre_call_cancel(calls[i]); /* harmless */
        timbre_call_release(calls[i]);
    }
    assert_int_equal(seen.callbacks, CALLS);
    wait_released(&seen, CALLS);
    fake_server_del(s);
    sem_destroy(&seen.done);
}

/* A call that waits for its next attempt ends at once when it is cancelled. */
static void test_cancel_while_waiting(void **state) {
    (void)state;
    const struct fake_answer later = {
        .code = GRPC_STATUS_RESOURCE_EXHAUSTED, .message = "full", .pushback = "60000"};
    struct fake_server *s = fake_server_new(&later, 1, NULL);
    struct timbre_client *c =
        new_client(s, (struct timbre_client_options){.deadline_ms = TIMBRE_NO_DEADLINE});
    struct timbre_predict_request r = a_request();
    struct timbre_call *call;
    struct seen seen = {0};
    sem_init(&seen.done, 0, 0);
    const int64_t start_ns = clock_now_ns();
    assert_int_equal(timbre_predict_start(c, &r, on_result, &seen, &call, NULL), 0);
    while (fake_server_count_calls(s) < 1)
        sleep_ms(1);
    sleep_ms(50); /* the refusal comes */
    timbre_call_cancel(call);
    timbre_call_cancel(call);
    sem_wait(&seen.done);
    assert_true(clock_elapsed_ms(start_ns) < 5000);
    assert_int_equal(seen.cancelled, 1);
    timbre_call_release(call);
    /* And so does one whose client is deleted. */
    assert_int_equal(timbre_predict_start(c, &r, on_result, &seen, NULL, NULL), 0);
    while (fake_server_count_calls(s) < 2)
        sleep_ms(1);
    sleep_ms(50);
    timbre_client_del(c);
    assert_int_equal(seen.cancelled, 2);
    fake_server_del(s);
    sem_destroy(&seen.done);
}

struct chain {
    struct timbre_client *client;
    struct seen seen;
    int left, refused_code, sync_code;
};

static void on_chain(struct timbre_prediction *p, const struct timbre_status *st, void *user) {
    struct chain *chain = user;
    struct timbre_predict_request r = a_request();
    struct timbre_status status;
    (void)st;
    timbre_prediction_free(p);
    timbre_predict(chain->client, &r, &p, &status); /* waits for itself: refused */
    chain->sync_code = status.code;
    if (--chain->left == 0 || timbre_predict_start(chain->client, &r, on_chain, chain, NULL, &status)) {
        chain->refused_code = status.code;
        sem_post(&chain->seen.done);
    }
}

static void test_callbacks_may_start_calls(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answer = answer_ok(&ok);
    struct fake_server *s = fake_server_new(&answer, 1, NULL);
    struct chain chain = {.client = new_client(s, (struct timbre_client_options){0}), .left = 100};
    struct timbre_predict_request r = a_request();
    sem_init(&chain.seen.done, 0, 0);
    assert_int_equal(timbre_predict_start(chain.client, &r, on_chain, &chain, NULL, NULL), 0);
    sem_wait(&chain.seen.done);
    assert_int_equal(chain.left, 0);
    assert_int_equal(chain.sync_code, TIMBRE_CODE_FAILED_PRECONDITION);
    /* Not while the client is deleted. */
    for (int round = 0; round < 20; round++) {
        if (round)
            chain.client = new_client(s, (struct timbre_client_options){0});
        chain.left = 1000000000;
        for (int i = 0; i < 5; i++)
            assert_int_equal(timbre_predict_start(chain.client, &r, on_chain, &chain, NULL, NULL), 0);
        sleep_ms(round);
        timbre_client_del(chain.client);
        for (int i = 0; i < 5; i++)
            sem_wait(&chain.seen.done);
        assert_int_equal(chain.refused_code, TIMBRE_CODE_CANCELLED);
    }
    fake_server_del(s);
    sem_destroy(&chain.seen.done);
    free(ok.data);
}

/* ---- threads ---- */

struct crowd {
    struct timbre_client *client;
    atomic_int ok, failed;
};

static void *ask_often(void *arg) {
    struct crowd *crowd = arg;
    for (int i = 0; i < 60; i++) {
        struct timbre_predict_request r = a_request();
        struct timbre_prediction *p;
        struct timbre_status st;
        struct timbre_call *call;
        struct seen seen = {0};
        if (i % 3 == 0) { /* cancel at any time */
            sem_init(&seen.done, 0, 0);
            if (timbre_predict_start(crowd->client, &r, on_result, &seen, &call, NULL) == 0) {
                if (i % 2)
                    sched_yield();
                timbre_call_cancel(call);
                timbre_call_release(call);
                sem_wait(&seen.done);
            }
            sem_destroy(&seen.done);
            continue;
        }
        if (i % 7 == 0)
            timbre_client_set_token(crowd->client, "another", NULL);
        atomic_fetch_add(timbre_predict(crowd->client, &r, &p, &st) == 0 ? &crowd->ok : &crowd->failed, 1);
        timbre_prediction_free(p);
    }
    return NULL;
}

static void test_many_threads(void **state) {
    (void)state;
    enum { THREADS = 8 };
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer busy = {.code = GRPC_STATUS_UNAVAILABLE, .message = "busy"};
    struct fake_answer answers[400];
    for (int i = 0; i < 400; i++)
        answers[i] = i % 4 == 1 ? busy : answer_ok(&ok);
    struct fake_server *s = fake_server_new(answers, 400, NULL);
    struct crowd crowd = {.client = new_client(s, (struct timbre_client_options){.token = "one",
                                                                                 .attempts_max = 50,
                                                                                 .backoff_initial_ms = 1,
                                                                                 .backoff_max_ms = 5})};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, ask_often, &crowd);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(crowd.failed, 0);
    assert_int_equal(crowd.ok, THREADS * 40);
    timbre_client_del(crowd.client);
    fake_server_del(s);
    free(ok.data);
}

/* Deleted with calls in every state. */
static void test_delete_under_load(void **state) {
    (void)state;
    struct bytes ok = messages_make_prediction("", 0, 0);
    const struct fake_answer answers[] = {
        answer_ok(&ok),
        {.code = GRPC_STATUS_UNAVAILABLE, .message = "down"},
        {.code = 0, .reply = ok.data, .reply_bytes = ok.count, .delay_ms = 5},
        {.delay_ms = -1, .code = 1}};
    for (int round = 0; round < 10; round++) {
        struct fake_server *s = fake_server_new(answers, 4, NULL);
        struct timbre_client *c =
            new_client(s, (struct timbre_client_options){.deadline_ms = TIMBRE_NO_DEADLINE});
        struct seen seen = {0};
        sem_init(&seen.done, 0, 0);
        for (int i = 0; i < 50; i++) {
            struct timbre_predict_request r = a_borrowed_request(&seen);
            assert_int_equal(timbre_predict_start(c, &r, on_result, &seen, NULL, NULL), 0);
        }
        sleep_ms(round);
        timbre_client_del(c);
        assert_int_equal(seen.callbacks, 50); /* all before del returned */
        assert_in_range(seen.other, 0, 1);    /* "down", if that was faster than the end */
        wait_released(&seen, 50);
        fake_server_del(s);
        sem_destroy(&seen.done);
    }
    free(ok.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_asynchronous),         cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_while_waiting), cmocka_unit_test(test_callbacks_may_start_calls),
        cmocka_unit_test(test_many_threads),         cmocka_unit_test(test_delete_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
