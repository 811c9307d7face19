"""bf16 and int8 on the CPU: how far from fp32 they may be (tests/golden/tolerances.py), and that they have bits of their
own in any company."""

import json
import sys

import numpy as np
import pytest

import timbre_program as timbre
from timbre_program import DEFAULT_MODEL, GOLDEN, cpu_offers, golden_models, predict, voice, write_wav

sys.path.insert(0, str(GOLDEN))
from tolerances import BF16_LOGIT, CPU_BF16_MIDDLE, INT8_LOGIT, INT8_MIDDLE, SHIPPED_LOGIT, SHIPPED_RMS  # noqa: E402

QUIET = ("quiet", "silence")  # clips that the level rule answers with "no speech"
RAW = ("--raw", "float32", "--rate", "16000")
EMODB = timbre.DATA / "emodb"
LIMITS = {"bf16": (BF16_LOGIT, CPU_BF16_MIDDLE), "int8": (INT8_LOGIT, INT8_MIDDLE)}


def ways():
    """Every instruction set that computes in a precision."""
    for precision, path in (("bf16", "avx512bf16"), ("int8", "avx512bf16"), ("int8", "avx512vnni")):
        skip = pytest.mark.skipif(not cpu_offers(path), reason=f"this processor lacks {path}")
        yield pytest.param(precision, path, id=f"{precision}-{path}", marks=[skip])


def answers_of(model, files, precision, path, *options):
    answers = predict(model, files, "--precision", precision, *options, env={"TIMBRE_CPU": path}, timeout_s=600)
    for answer in answers:
        assert answer["receipt"]["precision"] == precision and answer["receipt"]["device"] == f"cpu-{path}"
    return answers


@pytest.mark.parametrize("precision, path", list(ways()))
def test_goldens(precision, path):
    most, of_middle = LIMITS[precision]
    errors = {}
    for model in golden_models():
        expected = json.loads((model / "expected.json").read_text())
        clips = [c for c in expected["logits"] if not c.startswith(QUIET)]
        answers = answers_of(model, [GOLDEN / "clips" / f"{c}.f32" for c in clips], precision, path, *RAW)
        errors[model.name] = 0
        for clip, answer in zip(clips, answers):
            right = np.array(expected["logits"][clip])
            error = np.abs(np.array(answer["logits"]) - right).max() / (1 + np.abs(right).max())
            errors[model.name] = max(errors[model.name], error)
    worst = max(errors, key=errors.get)
    middle = float(np.median(list(errors.values())))
    print(f"{precision} {path}: middle {middle:.4f}, worst {worst} {errors[worst]:.4f}")
    assert errors[worst] <= most, (worst, errors[worst])
    assert middle <= of_middle


@pytest.mark.asan
@pytest.mark.parametrize("precision, path", list(ways()))
def test_company_changes_no_bit(tmp_path, precision, path):
    """Lengths of one frame to many, alone and together, in both orders, on 1 to 3 threads."""
    rng = np.random.default_rng(5)
    files = [write_wav(tmp_path / f"{i}.wav", voice(i, s)) for i, s in enumerate((0.1, 0.31, 1.0, 2.2, *rng.uniform(0.1, 5, 8)))]
    for name in ("sizes_real", "odd_sizes", "layer_post"):
        alone = [answers_of(GOLDEN / name, [f], precision, path)[0]["logits"] for f in files]
        for threads in ("1", "2", "3"):
            assert [a["logits"] for a in answers_of(GOLDEN / name, files, precision, path, "--threads", threads)] == alone
        assert [a["logits"] for a in answers_of(GOLDEN / name, files[::-1], precision, path)] == alone[::-1]


@pytest.mark.parametrize("precision, path", list(ways()))
def test_shipped_model_keeps_its_labels(precision, path):
    """On every clip of EMO-DB: the error of the logits, and the label wherever fp32 has it by more than that error."""
    if not EMODB.is_dir():
        pytest.skip(f"no {EMODB}: the shipped model's labels are not compared (TIMBRE_DATA names its folder)")
    expected = json.loads((GOLDEN / "emodb_default.json").read_text())["logits"]
    names = sorted(expected)
    answers = answers_of(DEFAULT_MODEL, [EMODB / n for n in names], precision, path)
    got, right = np.array([timbre.logits(a) for a in answers]), np.array([expected[n] for n in names])
    rms = np.sqrt(((got - right) ** 2).sum() / (right**2).sum())
    largest = np.abs(got - right).max()
    order = np.sort(right)
    clear = order[:, -1] - order[:, -2] > SHIPPED_LOGIT[precision]
    same = got.argmax(1) == right.argmax(1)
    print(f"{precision} {path}: relative RMS {rms:.5f}, largest difference {largest:.4f}, {(~same).sum()} of {len(names)} "
          f"labels changed, {(~same & clear).sum()} of the {clear.sum()} clear ones")
    assert rms <= SHIPPED_RMS[precision] and largest <= SHIPPED_LOGIT[precision]
    assert same[clear].all(), [n for n, s, c in zip(names, same, clear) if c and not s]
