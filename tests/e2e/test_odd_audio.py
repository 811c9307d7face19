"""Real files of other people, valid and broken: an answer or a clear error, soon, in little memory, never a crash."""

import csv

import pytest

import timbre_program as timbre
from timbre_program import predict

ODD = timbre.DATA / "odd"
SECONDS_MAX, RESIDENT_BYTES_MAX = 10, 500_000_000
# Files that libsndfile or ffmpeg opens although their own metadata is wrong may well be answered.
STATUSES = {"ok", "no_speech", "too_short", "error"}


def table():
    index = ODD / "index.csv"
    if not index.is_file():
        return []
    with index.open(newline="") as f:
        return list(csv.DictReader(f))


FILES = [pytest.param(row, id=row["file"]) for row in table()]


def test_data_is_there():
    if not FILES:
        pytest.skip(f"no {ODD}/index.csv: the odd files are not tested (TIMBRE_DATA names their folder's parent)")


def ask(row, tiny, **kwargs):
    path = ODD / row["file"]
    result = timbre.run("predict", "--json", "--model", tiny, path, **kwargs)
    assert result.status in (0, 1)
    (answer,) = result.answers
    assert answer["status"] in STATUSES
    assert (result.status == 1) == (answer["status"] == "error")
    return result, answer


@pytest.mark.asan
@pytest.mark.parametrize("row", FILES)
def test_an_answer_or_a_clear_error(row, tiny):
    slow = timbre.is_sanitized()
    result, answer = ask(row, tiny, timeout_s=60 if slow else SECONDS_MAX)
    if not slow:
        assert result.resident_bytes < RESIDENT_BYTES_MAX
    if answer["status"] == "error":
        assert len(answer["message"]) > 10
        assert answer["scores"] is None
    if row["file"].startswith("valid/"):
        assert answer["status"] != "error", answer["message"]


def has_known_length(row):
    """Valid, and read by ffmpeg too (two are not: they are for libsndfile alone)."""
    return row["file"].startswith("valid/") and int(row["ffmpeg_16k_samples"] or 0) > 0


@pytest.mark.parametrize("row", [p for p in FILES if has_known_length(p.values[0])])
def test_length_is_that_of_ffmpeg(row, tiny):
    samples = int(row["ffmpeg_16k_samples"])
    _, answer = ask(row, tiny)
    assert answer["duration_s"] == pytest.approx(samples / timbre.RATE_HZ, rel=0.01)


@pytest.mark.tsan
def test_all_at_once(tiny):
    if not FILES:
        pytest.skip(f"no {ODD}")
    files = [ODD / p.values[0]["file"] for p in FILES]
    alone = {str(f): predict(tiny, [f], status=None)[0] for f in files}
    for answer in predict(tiny, files, status=1, timeout_s=300):
        expected = alone[answer["file"]]
        assert (answer["status"], answer["logits"]) == (expected["status"], expected["logits"])
