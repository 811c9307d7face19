"""A clip's scores do not depend on what it was batched with: not in a bit, in any order, on any number of threads."""

import numpy as np
import pytest

from timbre_program import DEFAULT_MODEL, cpu_offers, golden_models, predict, voice, write_wav

COUNT, SHORTEST_S, LONGEST_S = 64, 0.1, 12.0


def lengths(count):
    """Seconds, from the shortest to the longest, none a round number of frames, shuffled."""
    seconds = np.geomspace(SHORTEST_S, LONGEST_S, count) * (1 + 1e-4 * np.arange(count) % 0.003)
    return np.random.default_rng(1).permutation(seconds)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    return [write_wav(folder / f"{i}.wav", voice(i, s)) for i, s in enumerate(lengths(COUNT))]


def bits(answers):
    """By file: what must not change. JSON holds every float exactly."""
    for answer in answers:
        assert answer["status"] == "ok", answer
    return {a["file"]: (a["logits"], a["scores"], a["embedding"]) for a in answers}


def ask(model, files, *options, env=None):
    return predict(model, files, "--embedding", *options, env=env, timeout_s=600)


def together(model, files, env=None):
    """The same clips in many ways; returns the bits, which are the same in all."""
    answers = ask(model, files, "--threads", "1", env=env)
    first = bits(answers)
    assert max(a["receipt"]["batch_size"] for a in answers) > 1, "nothing was batched, so nothing was tested"
    for threads in ("1", "2", "3"):
        assert bits(ask(model, files[::-1], "--threads", threads, env=env)) == first
        assert bits(ask(model, files, "--threads", threads, "--max-batch-seconds", "30", env=env)) == first
        assert bits(ask(model, files, "--threads", threads, "--max-batch-seconds", "1000", env=env)) == first
    return first


def test_alone_and_together(files):
    first = together(DEFAULT_MODEL, files)
    for path in files:
        answer = ask(DEFAULT_MODEL, [path])
        assert answer[0]["receipt"]["batch_size"] == 1
        assert bits(answer)[str(path)] == first[str(path)]


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
def test_every_code_path(files, path):
    if not cpu_offers(path):
        pytest.skip(f"this processor lacks {path}")
    some, env = files[::4], {"TIMBRE_CPU": path}
    assert ask(DEFAULT_MODEL, some[:1], env=env)[0]["receipt"]["device"] == f"cpu-{path}"
    first = together(DEFAULT_MODEL, some, env)
    for clip in some[::3]:
        assert bits(ask(DEFAULT_MODEL, [clip], env=env))[str(clip)] == first[str(clip)]


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in golden_models()])
def test_every_kind_of_model(files, model):
    some = files[::5]
    first = bits(ask(model, some, "--threads", "1"))
    assert bits(ask(model, some[::-1], "--threads", "2", "--max-batch-seconds", "1000")) == first
    for clip in some[::6]:
        assert bits(ask(model, [clip], "--threads", "2"))[str(clip)] == first[str(clip)]


@pytest.mark.tsan
def test_with_threads(files, tiny):
    some = sorted(files, key=lambda f: f.stat().st_size)[:40]
    first = bits(ask(tiny, some, "--threads", "1"))
    for threads in ("2", "4"):
        assert bits(ask(tiny, some[::-1], "--threads", threads)) == first
