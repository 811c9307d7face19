"""The shipped model on every clip of EMO-DB, against transformers' logits for it (tests/golden/emodb_default.json)."""

import csv
import json

import numpy as np
import pytest

import timbre_program as timbre
from timbre_program import DEFAULT_MODEL, GOLDEN, cpu_offers, predict

EMODB = timbre.DATA / "emodb"
EXPECTED = GOLDEN / "emodb_default.json"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected():
    if not EXPECTED.is_file():
        pytest.skip(f"no {EXPECTED.name}: the shipped model is not compared with transformers")
    if not EMODB.is_dir():
        pytest.skip(f"no {EMODB}: the shipped model is not compared with transformers (TIMBRE_DATA names its folder)")
    return json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
def test_every_clip(expected, path):
    if not cpu_offers(path):
        pytest.skip(f"this processor lacks {path}")
    names = sorted(expected["logits"])
    answers = predict(DEFAULT_MODEL, [EMODB / n for n in names], env={"TIMBRE_CPU": path}, timeout_s=600)
    worst = 0.0
    for answer, name in zip(answers, names):
        want = np.array(expected["logits"][name])
        got = timbre.logits(answer)
        worst = max(worst, float(np.abs(got - want).max()))
        assert int(np.argmax(got)) == int(np.argmax(want)), name
        assert answer["labels"] == expected["labels"]
        assert answer["receipt"]["device"] == f"cpu-{path}"
    assert worst <= TOLERANCE, worst


def test_table_of_expected_logits_is_whole(expected):
    with (EMODB / "labels.csv").open(newline="") as f:
        clips = {row["file"] for row in csv.DictReader(f)}
    assert set(expected["logits"]) == clips and len(clips) > 400
