"""The goldens through the cuda backend over its shim, in fp32 and bf16, by every way it has of computing; and its bits in
any company."""

import itertools
import json
import sys

import numpy as np
import pytest

from gpu_shim import shim_environment
from timbre_program import GOLDEN, PROGRAM, golden_models, predict, voice, write_wav

sys.path.insert(0, str(GOLDEN))
from tolerances import BF16_EMBEDDING, BF16_LOGIT, BF16_MIDDLE  # noqa: E402

QUIET = ("quiet", "silence")  # clips that the level rule answers with "no speech"
# A worker's memory for more than the least would take the shim longer to clear than the clips to compute.
OPTIONS = ("--device", "cuda", "--max-batch-seconds", "30", "--embedding")
RAW = ("--raw", "float32", "--rate", "16000")

WAYS = [("gemm", "fused"), ("gemm", "cublas"), ("cudnn", "fused"), ("cudnn", "cublas")]
# One of every kind: norms, sizes that libraries take and that they do not, kernels, strides, heads, attention.
KINDS = ["base", "large", "sizes_real", "odd_sizes", "layer_post", "stack_stride_1", "stack_80", "hubert_batch_norm",
         "pos_long", "head_age_gender", "weighted_pre", "heads_1"]



middle = {}  # (precision, case): the error of its logits


@pytest.fixture(scope="module")
def shim():
    return shim_environment(PROGRAM)


def as_parts(answer, logits, embedding):
    """Errors as tolerances.py measures them."""
    got, right = np.array(answer["logits"]), np.array(logits)
    logit = np.abs(got - right).max() / (1 + np.abs(right).max())
    if embedding is None:
        return logit, 0.0
    difference = np.array(answer["embedding"]) - np.array(embedding)
    return logit, np.sqrt((difference**2).sum() / (np.array(embedding) ** 2).sum())


def check_fp32(answer, logits, embedding, tolerance):
    np.testing.assert_allclose(answer["logits"], logits, rtol=0, atol=tolerance, err_msg=answer["file"])
    if embedding is not None:
        np.testing.assert_allclose(answer["embedding"], embedding, rtol=0, atol=tolerance, err_msg=answer["file"])


def check_bf16(answer, logits, embedding):
    logit, of_embedding = as_parts(answer, logits, embedding)
    assert logit <= BF16_LOGIT and of_embedding <= BF16_EMBEDDING, (answer["file"], logit, of_embedding)
    best = np.argsort(logits)
    if len(logits) > 1 and logits[best[-1]] - logits[best[-2]] > 2 * BF16_LOGIT * (1 + np.abs(logits).max()):
        assert np.argmax(answer["logits"]) == best[-1], answer["file"]
    return logit


def check_case(name, precision, shim, ways=WAYS[0], head=(), clips=None):
    """All clips of a case; returns the largest error of a logit, as a part."""
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    table = expected["head_activation"][head[1]] if head else expected["logits"]
    table = {c: v for c, v in table.items() if not c.startswith(QUIET) and (clips is None or c in clips)}
    files = [GOLDEN / "clips" / f"{clip}.f32" for clip in table]
    answers = predict(GOLDEN / name, files, *OPTIONS, "--precision", precision, "--cuda-conv", ways[0],
                      "--cuda-attention", ways[1], *head, *RAW, env=shim)
    worst = 0
    for answer, (clip, logits) in zip(answers, table.items()):
        assert answer["status"] == "ok", (clip, answer["message"])
        assert answer["receipt"]["device"].startswith("cuda-") and answer["receipt"]["precision"] == precision
        embedding = None if head else expected.get("embedding", {}).get(clip)
        if precision == "fp32":
            check_fp32(answer, logits, embedding, expected["tolerance"])
        else:
            worst = max(worst, check_bf16(answer, logits, embedding))
    return worst


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [pytest.param(m.name, id=m.name) for m in golden_models()])
def test_logits(shim, name, precision):
    middle[precision, name] = check_case(name, precision, shim)


def test_roundings_are_no_more_than_pytorchs():
    errors = [error for (precision, _), error in middle.items() if precision == "bf16"]
    if len(errors) < len(golden_models()):
        pytest.skip("only with all of test_logits in the same run")
    assert np.median(errors) <= BF16_MIDDLE


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ways", WAYS[1:], ids="-".join)
def test_other_ways(shim, name, ways, precision):
    check_case(name, precision, shim, ways)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_head_activation(shim, activation):
    check_case("head_dense_output", "fp32", shim, head=("--head-activation", activation))


@pytest.mark.asan
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ways", [WAYS[0], WAYS[3]], ids="-".join)
def test_some_with_sanitizers(shim, name, ways, precision):
    check_case(name, precision, shim, ways, clips=("n400", "n163", "n719", "n1600", "n5000"))


@pytest.mark.tsan
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forward_with_threads(shim, precision):
    check_case("base", precision, shim, clips=("n400", "n1600"))


# ---- bits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """From one frame to more than the pieces that kernels cut a clip into."""
    folder = tmp_path_factory.mktemp("cuda")
    seconds = np.random.default_rng(1).permutation(np.geomspace(0.03, 2.8, 10))
    return [write_wav(folder / f"{i}.wav", voice(i, s)) for i, s in enumerate(seconds)]


def bits(answers):
    for answer in answers:
        assert answer["status"] == "ok", answer
    return {a["file"]: (a["logits"], a["scores"], a["embedding"]) for a in answers}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, ways", [*itertools.product(["base", "large"], WAYS), ("odd_sizes", WAYS[0])])
def test_invariance(shim, files, name, ways, precision):
    """The same bits in any batch and order."""
    model = GOLDEN / name

    def ask(files, *options):
        return predict(model, files, *OPTIONS, "--precision", precision, "--cuda-conv", ways[0], "--cuda-attention",
                       ways[1], *options, env=shim)

    if name == "odd_sizes":  # what no library takes is slow
        files = sorted(files, key=lambda f: f.stat().st_size)[:6]
    answers = ask(files, "--max-batch-seconds", "40")
    first = bits(answers)
    assert max(a["receipt"]["batch_size"] for a in answers) > 1, "nothing was batched, so nothing was tested"
    assert bits(ask(files[::-1])) == first
    for path in files[:: 4 if ways == WAYS[0] else 7]:
        answer = ask([path])
        assert answer[0]["receipt"]["batch_size"] == 1
        assert bits(answer)[str(path)] == first[str(path)]
