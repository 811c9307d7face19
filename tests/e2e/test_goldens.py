"""Tiny checkpoints over every switch of the configuration: the program's logits against transformers'."""

import json

import numpy as np
import pytest

from timbre_program import GOLDEN, cpu_offers, golden_models, predict, run

QUIET = ("quiet", "silence")  # clips that the level rule answers with "no speech"; the unit tests run them


def code_paths():
    for path in ("portable", "avx2", "avx512"):
        skip = pytest.mark.skipif(not cpu_offers(path), reason=f"this processor lacks {path}")
        yield pytest.param((), {"TIMBRE_CPU": path}, f"cpu-{path}", id=path, marks=[skip, pytest.mark.asan])
    yield pytest.param(("--device", "ref"), {}, "ref", id="ref")


def check(answers, expected, logits, with_embedding):
    for answer, clip in zip(answers, logits):
        if clip.startswith(QUIET):
            assert answer["status"] == "no_speech", clip
            continue
        assert answer["status"] == "ok", (clip, answer["message"])
        np.testing.assert_allclose(answer["logits"], logits[clip], rtol=0, atol=expected["tolerance"], err_msg=clip)
        if with_embedding:
            np.testing.assert_allclose(answer["embedding"], expected["embedding"][clip], rtol=0,
                                       atol=expected["tolerance"], err_msg=clip)


def test_there_are_goldens():
    assert len(golden_models()) >= 30


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in golden_models()])
@pytest.mark.parametrize("options, env, device", list(code_paths()))
def test_logits(model, options, env, device):
    expected = json.loads((model / "expected.json").read_text())
    raw = ("--raw", "float32", "--rate", "16000", *options)
    files = [GOLDEN / "clips" / f"{clip}.f32" for clip in expected["logits"]]
    answers = predict(model, files, "--embedding", *raw, env=env)
    check(answers, expected, expected["logits"], "embedding" in expected)
    for answer in answers:
        assert answer["labels"] == expected["labels"]
        assert answer["receipt"]["device"] == device
    for name, logits in expected.get("head_activation", {}).items():
        check(predict(model, files, "--head-activation", name, *raw, env=env), expected, logits, False)


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in golden_models()])
def test_report(model):
    expected = json.loads((model / "expected.json").read_text())
    report = json.loads(run("inspect", "--json", model).out)
    for ours, theirs in (("family", "family"), ("head", "head"), ("labels", "labels"), ("output", "output"),
                         ("normalize", "do_normalize"), ("min_samples", "min_samples")):
        assert report[ours] == expected[theirs], ours
