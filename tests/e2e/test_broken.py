"""Model folders that must not load: the program says why in one sentence, and nothing else happens."""

import json
import sys

import numpy as np
import pytest

import timbre_program as timbre
from timbre_program import GOLDEN, run

sys.path.insert(0, str(GOLDEN))
import make_broken  # noqa: E402

SECONDS_MAX, RESIDENT_BYTES_MAX = 10, 300_000_000
VARIANTS = [pytest.param(name, contains, id=name) for name, _, contains, _ in make_broken.VARIANTS]


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "broken"
    make_broken.make(make_broken.GOLDEN, out)
    return out


def test_there_are_variants():
    assert len(VARIANTS) >= 100


def check_words(message, contains):
    """Every word is in the message, whatever its case; "a|b" means a or b."""
    for word in contains:
        assert any(w.lower() in message.lower() for w in word.split("|")), f"no {word!r} in {message!r}"


@pytest.mark.asan
@pytest.mark.parametrize("name, contains", VARIANTS)
def test_does_not_load(broken, name, contains):
    slow = timbre.is_sanitized()
    result = run("inspect", broken / name, timeout_s=60 if slow else SECONDS_MAX)
    assert result.status == 3, result.out
    assert not result.out
    assert result.err.count("\n") == 1 and result.err.startswith("timbre inspect: ")
    check_words(result.err, contains)
    if not slow:
        assert result.resident_bytes < RESIDENT_BYTES_MAX


@pytest.mark.parametrize("name, contains", VARIANTS[::10])
def test_predict_says_the_same(broken, clips, name, contains):
    result = run("predict", "--model", broken / name, clips[0])
    assert result.status == 3 and not result.out
    check_words(result.err, contains)


@pytest.mark.asan
@pytest.mark.parametrize("name", ["good_safetensors", "good_torch"])
def test_the_same_folder_undamaged(broken, name):
    """What the variants damage is good before: the damage is what is refused."""
    expected = json.loads((make_broken.GOLDEN / "expected.json").read_text())["logits"]["n16000"]
    (answer,) = timbre.predict(broken / name, [GOLDEN / "clips" / "n16000.f32"], "--raw", "float32")
    np.testing.assert_allclose(answer["logits"], expected, rtol=0, atol=1e-4)
