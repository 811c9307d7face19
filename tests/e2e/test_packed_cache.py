"""--packed-cache: the second start reads packed weights from a file, and nothing else is different."""

import json
import stat
import subprocess

import pytest

from timbre_program import GOLDEN, PROGRAM, predict, run
from timbre_server import Server, bits_of, bits_of_answer, calling, request_of

CPU = ["--device", "cpu"]


def answers(model, clips, *options, err=""):
    result = run("predict", "--json", "--embedding", "--model", model, *CPU, *options, "--", *clips)
    assert result.status == 0 and err in result.err and bool(err) == bool(result.err), result.err
    return [(bits_of_answer(a), a["embedding"], a["receipt"]["digest"]) for a in result.answers]


def report(model, *options):
    result = run("inspect", "--json", *options, model)
    assert result.status == 0 and not result.err, result.err
    return result.out


def only_file(folder):
    files = list(folder.iterdir())
    assert len(files) == 1, files
    return files[0]


@pytest.mark.asan
@pytest.mark.parametrize("name", ["base", "hubert_batch_norm", "head_age_gender"])
def test_same_answers(name, clips, tmp_path):
    model, cache = GOLDEN / name, ["--packed-cache", tmp_path / "cache"]
    plain = answers(model, clips)
    assert answers(model, clips, *cache) == plain
    file = only_file(tmp_path / "cache")
    before = file.stat()
    assert stat.S_IMODE(before.st_mode) == 0o600 and name in file.name
    assert answers(model, clips, *cache) == plain
    assert answers(model, clips, *cache, "--packed-cache-verify") == plain
    assert only_file(tmp_path / "cache").stat().st_ino == before.st_ino  # read, or it would have been replaced


def test_same_report(tmp_path):
    model, cache = GOLDEN / "labels_short", ["--packed-cache", tmp_path]  # one that warns
    plain = report(model)
    assert json.loads(plain)["warnings"]
    for _ in range(2):
        assert report(model, *cache) == plain


@pytest.mark.asan
def test_damaged_file(tiny, clips, tmp_path):
    cache = ["--packed-cache", tmp_path]
    plain = answers(tiny, clips, *cache)
    file = only_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)
    assert answers(tiny, clips, *cache, err="damaged") == plain
    assert answers(tiny, clips, *cache) == plain


def test_where_nothing_can_be_written(tiny, clips):
    assert answers(tiny, clips, "--packed-cache", "/proc/none", err="cannot be written") == answers(tiny, clips)


def test_all_at_once(tiny, clips, tmp_path):
    command = [PROGRAM, "predict", "--json", "--model", tiny, *CPU, "--packed-cache", tmp_path, clips[0]]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    ended = [p.communicate(timeout=120) for p in started]
    assert all(p.returncode == 0 for p in started) and not any(err for _, err in ended), ended
    assert len({bits_of_answer(json.loads(out)) for out, _ in ended}) == 1
    only_file(tmp_path)
    predict(tiny, clips, *CPU, "--packed-cache", tmp_path)


def test_server(tiny, clips, tmp_path):
    env = {"TIMBRE_PACKED_CACHE": str(tmp_path), "TIMBRE_DEVICE": "cpu"}
    told = []
    for words in ("MB written", "of packed weights from"):
        with Server(model=tiny, env=env) as server, calling(server) as stub:
            answer = stub.Predict(request_of(clips[1]))
            told.append((bits_of(answer), answer.receipt.digest))
            server.wait_log(words)  # the first one writes while it serves
    assert told[0] == told[1]
