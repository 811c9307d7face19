"""The contract of the command line: what other people's scripts depend on."""

import json
import math
import os
import re
import subprocess

import numpy as np
import pytest

import timbre_program as timbre
from timbre_program import predict, run, voice, write_wav

FIELDS = {"file", "status", "message", "duration_s", "labels", "scores", "logits", "dominant", "receipt"}
RECEIPT = {"model", "digest", "device", "precision", "batch_size", "queue_ms", "compute_ms", "audio_s"}


# ---- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["predict"], ["inspect"], ["version"]])
def test_help(command):
    for flag in ("--help", "-h"):
        result = run(*command, flag)
        assert result.status == 0
        assert result.out.startswith("usage: timbre")
        assert not result.err


def test_version():
    result = run("version")
    assert result.status == 0
    assert re.match(r"timbre \d+\.\d+\.\d+\n", result.out)
    assert run("--version").out == result.out


@pytest.mark.asan
@pytest.mark.parametrize("arguments", [
    [],
    ["sing"],
    ["--bogus"],
    ["predict"],
    ["predict", "--bogus", "a.wav"],
    ["predict", "--model"],
    ["predict", "--threads", "two", "a.wav"],
    ["predict", "--threads", "-1", "a.wav"],
    ["predict", "--threads", "1e9", "a.wav"],
    ["predict", "--max-batch-seconds", "nan", "a.wav"],
    ["predict", "--max-batch-seconds", "0", "a.wav"],
    ["predict", "--window", "-1", "a.wav"],
    ["predict", "--window", "2", "--hop", "3", "a.wav"],
    ["predict", "--hop", "1", "a.wav"],
    ["predict", "--raw", "mp3", "a.wav"],
    ["predict", "--rate", "0", "a.wav"],
    ["inspect", "--bogus"],
    ["inspect", "one", "two"],
    ["version", "--bogus"],
])
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.status == 2
    assert result.err and not result.out


@pytest.mark.asan
def test_model_that_is_not_there(clips):
    for result in (run("predict", "--model", "/no/such/model", clips[0]), run("inspect", "/no/such/model")):
        assert result.status == 3
        assert "/no/such/model" in result.err and not result.out


def test_device_that_is_not_there(tiny, clips):
    result = run("predict", "--model", tiny, "--device", "cuda", clips[0])
    assert result.status in (0, 3)
    if result.status == 3:
        assert "cuda" in result.err and not result.out
    assert run("predict", "--model", tiny, "--device", "abacus", clips[0]).status == 2


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.asan
def test_fields(tiny, clips):
    report = json.loads(run("inspect", "--json", tiny).out)
    for answer, path in zip(predict(tiny, clips), clips):
        assert set(answer) == FIELDS
        assert set(answer["receipt"]) == RECEIPT
        assert answer["status"] == "ok"
        receipt = answer["receipt"]
        assert receipt["model"] == "base"
        assert receipt["digest"] == report["digest"] and re.fullmatch("[0-9a-f]{64}", receipt["digest"])
        assert receipt["device"] == report["device"] and receipt["precision"] == "fp32"
        assert receipt["batch_size"] >= 1 and receipt["queue_ms"] >= 0 and receipt["compute_ms"] > 0
        seconds = (path.stat().st_size - 56) / 4 / timbre.RATE_HZ
        assert answer["duration_s"] == pytest.approx(seconds, abs=0.001)
        assert receipt["audio_s"] == pytest.approx(seconds, abs=0.001)


def test_labels_and_scores(tiny, clips):
    id2label = json.loads((tiny / "config.json").read_text())["id2label"]
    for answer in predict(tiny, clips):
        assert answer["labels"] == [id2label[str(i)] for i in range(len(id2label))]
        x = np.array(answer["logits"])
        softmax = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        np.testing.assert_allclose(answer["scores"], softmax, atol=1e-6)
        best = int(np.argmax(answer["scores"]))
        assert answer["dominant"] == {"label": answer["labels"][best], "score": answer["scores"][best]}


def test_floats_read_back(tiny, clips):
    """A number printed for a float is the nearest decimal of at most nine digits: read as float, it prints the same."""
    out = run("predict", "--json", "--embedding", "--model", tiny, *clips).out
    for key in ("scores", "logits", "embedding"):
        lists = re.findall(rf'"{key}":\[([^\]]*)\]', out)
        assert len(lists) == len(clips)
        for token in ",".join(lists).split(","):
            value = np.float32(token)
            assert np.isfinite(value)
            assert any(float(f"{value:.{digits}g}") == float(token) for digits in range(6, 10)), token


def test_embedding_only_when_asked(tiny, clips):
    hidden = json.loads((tiny / "config.json").read_text())["hidden_size"]
    plain, with_it = predict(tiny, clips[:1])[0], predict(tiny, clips[:1], "--embedding")[0]
    assert "embedding" not in plain
    assert len(with_it["embedding"]) == hidden
    assert plain["logits"] == with_it["logits"]


def test_output_rules(tiny, clips):
    none = predict(tiny, clips[:1], "--output", "none")[0]
    sigmoid = predict(tiny, clips[:1], "--output", "sigmoid")[0]
    assert none["scores"] == none["logits"]
    np.testing.assert_allclose(sigmoid["scores"], [1 / (1 + math.exp(-v)) for v in sigmoid["logits"]], atol=1e-6)


def test_labels_of_ones_own(tiny, clips, tmp_path):
    names = ["eins", "zwei", "drei", "vier"]
    (tmp_path / "lines").write_text("\n".join(names) + "\n")
    (tmp_path / "list.json").write_text(json.dumps(names))
    (tmp_path / "map.json").write_text(json.dumps({str(i): n for i, n in enumerate(names)}))
    for path in tmp_path.iterdir():
        assert predict(tiny, clips[:1], "--labels", path)[0]["labels"] == names
    assert run("predict", "--model", tiny, "--labels", tmp_path / "absent", clips[0]).status == 3


@pytest.mark.tsan
@pytest.mark.asan
def test_many_files_keep_their_order(tiny, clips):
    files = [clips[i * 7 % len(clips)] for i in range(300)]
    answers = predict(tiny, files)
    expected = {str(f): a["logits"] for f, a in zip(clips, predict(tiny, clips))}
    for answer in answers:
        assert answer["logits"] == expected[answer["file"]]


@pytest.mark.tsan
@pytest.mark.asan
def test_broken_files_among_good_ones(tiny, clips, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk" + bytes(range(200)))
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    files = [clips[0], broken, clips[1], tmp_path / "absent.wav", tmp_path, empty, clips[2]]
    answers = predict(tiny, files, status=1)
    assert [a["status"] for a in answers] == ["ok", "error", "ok", "error", "error", "error", "ok"]
    for answer in answers:
        assert set(answer) == FIELDS
        if answer["status"] == "error":
            assert answer["message"]
            assert answer["scores"] is None and answer["logits"] is None and answer["dominant"] is None
    assert "No such file" in answers[3]["message"]


@pytest.mark.asan
def test_no_answer_is_an_answer(tiny, tmp_path):
    files = {
        "silence": np.zeros(16000, np.float32),
        "offset": np.full(16000, 0.25, np.float32),
        "faint": (1e-4 * np.sin(np.arange(16000) / 9)).astype(np.float32),
        "short": voice(1, 0.02),
        "speech": voice(1, 1.0),
    }
    answers = predict(tiny, [write_wav(tmp_path / f"{name}.wav", x) for name, x in files.items()])
    assert [a["status"] for a in answers] == ["no_speech", "no_speech", "no_speech", "too_short", "ok"]
    for answer in answers[:-1]:
        assert answer["scores"] is None and answer["logits"] is None and answer["dominant"] is None
        assert answer["message"]
    assert "400" in answers[3]["message"]


def test_table_for_people(tiny, clips, tmp_path):
    result = run("predict", "--model", tiny, *clips)
    assert result.status == 0
    for label in predict(tiny, clips[:1])[0]["labels"]:
        assert result.out.count(f"  {label}") >= len(clips)
    broken = run("predict", "--model", tiny, tmp_path / "absent.wav", clips[0])
    assert broken.status == 1
    assert "absent.wav: error: " in broken.out


def test_windows(tiny, tmp_path):
    path = write_wav(tmp_path / "a.wav", voice(3, 9.0))
    answer = predict(tiny, [path], "--window", "4", "--hop", "2", "--embedding")[0]
    windows = answer["windows"]
    assert [set(w) for w in windows] == [{"start_s", "end_s", "status", "scores"}] * len(windows)
    assert [(w["start_s"], w["end_s"]) for w in windows] == [(0, 4), (2, 6), (4, 8), (6, 9)]
    for window in windows:
        cut = voice(3, 9.0)[int(window["start_s"] * 16000):int(window["end_s"] * 16000)]
        alone = predict(tiny, [write_wav(tmp_path / "cut.wav", cut)])[0]
        assert alone["scores"] == window["scores"]
    assert answer["receipt"]["audio_s"] == pytest.approx(15.0)
    assert "windows" not in predict(tiny, [path])[0]


def test_silent_window(tiny, tmp_path):
    x = np.concatenate([voice(1, 2), np.zeros(32000, np.float32), voice(2, 2)])
    answer = predict(tiny, [write_wav(tmp_path / "a.wav", x)], "--window", "2", "--hop", "2")[0]
    assert [w["status"] for w in answer["windows"]] == ["ok", "no_speech", "ok"]
    assert answer["windows"][1]["scores"] is None
    assert answer["status"] == "ok"


def test_long_files_go_by_windows(tiny, tmp_path):
    whole, longer = predict(tiny, [write_wav(tmp_path / "30.wav", voice(1, 30.0)),
                                   write_wav(tmp_path / "31.wav", voice(1, 31.0))])
    assert "windows" not in whole
    assert [w["start_s"] for w in longer["windows"]] == [0, 5, 10, 15, 20, 25]
    assert longer["windows"][-1]["end_s"] == 31


# ---- what comes in --------------------------------------------------------------------------------------------------


def test_raw_samples_are_as_good_as_a_file(tiny, tmp_path):
    x = voice(5, 1.5)
    pcm = timbre.to_pcm16(x)
    (tmp_path / "f32").write_bytes(x.tobytes())
    (tmp_path / "s16").write_bytes(pcm.tobytes())
    as_file = predict(tiny, [write_wav(tmp_path / "f32.wav", x), write_wav(tmp_path / "s16.wav", pcm)])
    for answer, raw, name in zip(as_file, ("float32", "pcm16"), ("f32", "s16")):
        assert predict(tiny, [tmp_path / name], "--raw", raw, "--rate", "16000")[0]["logits"] == answer["logits"]


def test_telephone_codes(tiny, tmp_path):
    """ffmpeg's own mu-law and A-law files, and the same bytes as raw samples."""
    wav = write_wav(tmp_path / "a.wav", timbre.to_pcm16(voice(6, 2.0, 8000)), 8000)
    for code, form in (("mulaw", "mulaw"), ("alaw", "alaw")):
        for suffix, container in (("wav", "wav"), ("raw", form)):
            convert(wav, tmp_path / f"{code}.{suffix}", "-c:a", f"pcm_{code}", "-f", container)
        in_file = predict(tiny, [tmp_path / f"{code}.wav"])[0]
        raw = predict(tiny, [tmp_path / f"{code}.raw"], "--raw", form, "--rate", "8000")[0]
        assert raw["logits"] == in_file["logits"]


def convert(source, target, *options):
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, *options, target], check=True, timeout=60)
    return target


def test_lossless_codecs_give_the_same_bits(tiny, tmp_path):
    wav = write_wav(tmp_path / "a.wav", timbre.to_pcm16(voice(7, 1.0)))
    flac = convert(wav, tmp_path / "a.flac")
    alac = convert(wav, tmp_path / "a.m4a", "-c:a", "alac")  # which libsndfile does not read
    first, *others = predict(tiny, [wav, flac, alac])
    for other in others:
        assert other["logits"] == first["logits"]


def test_without_ffmpeg(tiny, tmp_path):
    wav = write_wav(tmp_path / "a.wav", timbre.to_pcm16(voice(7, 1.0)))
    alac = convert(wav, tmp_path / "a.m4a", "-c:a", "alac")
    answers = predict(tiny, [wav, alac], env={"FFMPEG_BIN": "/no/such/ffmpeg"}, status=1)
    assert answers[0]["status"] == "ok"
    assert answers[1]["status"] == "error" and "ffmpeg" in answers[1]["message"]


def test_channels_are_averaged(tiny, tmp_path):
    left, right = voice(8, 1.0), voice(9, 1.0)
    mean = (left + right) / np.float32(2)
    stereo = write_wav(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    a, b = predict(tiny, [stereo, write_wav(tmp_path / "mono.wav", mean)])
    np.testing.assert_allclose(a["logits"], b["logits"], atol=1e-5)


def test_rates_are_resampled(tiny, tmp_path):
    files = [write_wav(tmp_path / f"{hz}.wav", voice(10, 1.0, hz), hz) for hz in (8000, 16000, 22050, 44100, 48000)]
    for answer in predict(tiny, files):
        assert answer["duration_s"] == pytest.approx(1.0, abs=1e-3)
        assert answer["receipt"]["audio_s"] == pytest.approx(1.0, abs=1e-2)


def test_standard_input(tiny, clips):
    with clips[1].open("rb") as f:
        answer = predict(tiny, ["-"], stdin=f)[0]
    assert answer["logits"] == predict(tiny, [clips[1]])[0]["logits"]


def test_limits_are_named(tiny, clips):
    answer = predict(tiny, [clips[3]], "--max-duration", "2.5", status=1)[0]
    assert "max-duration" in answer["message"] and "2.5" in answer["message"]
    answer = predict(tiny, [clips[3]], "--max-file-bytes", "1000", status=1)[0]
    assert "max-file-bytes" in answer["message"] and "1000" in answer["message"]


def test_names_of_any_kind(tiny, tmp_path):
    x = timbre.wav_bytes(voice(1, 0.5))
    names = ['quote".wav', "line\nbreak.wav", "Glück.wav", "-dash.wav", "percent%s%n.wav"]
    for name in names:
        (tmp_path / name).write_bytes(x)
    answers = predict(tiny, [tmp_path / n for n in names])
    assert {json.dumps(a["logits"]) for a in answers} == {json.dumps(answers[0]["logits"])}
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.wav"
    with open(odd, "wb") as f:
        f.write(x)
    result = run("predict", "--json", "--model", tiny, os.fsdecode(odd))
    assert result.status == 0 and result.answers[0]["file"].endswith("/\ufffd\ufffd.wav")


def test_output_that_cannot_be_written(tiny, clips):
    with open("/dev/full", "wb") as full:
        result = subprocess.run([timbre.PROGRAM, "predict", "--json", "--model", tiny, clips[0]], stdout=full,
                                stderr=subprocess.DEVNULL, timeout=60)
    assert result.returncode == 1


# ---- inspect, and the installed program -----------------------------------------------------------------------------


@pytest.mark.asan
def test_inspect(tiny):
    result = run("inspect", "--json", tiny)
    assert result.status == 0
    report = json.loads(result.out)
    config = json.loads((tiny / "config.json").read_text())
    assert report["family"] == config["model_type"] == "wav2vec2"
    assert report["hidden"] == config["hidden_size"] and report["layers"] == config["num_hidden_layers"]
    assert report["head"] == "projector + classifier"
    assert report["labels"] == list(config["id2label"].values())
    assert report["sampling_rate_hz"] == 16000 and report["normalize"] is True and report["output"] == "softmax"
    assert report["min_samples"] == 400 and report["frame_s"] == pytest.approx(0.02)
    assert report["tensors_used"] > 0 and isinstance(report["tensors_unused"], list)
    assert "model.safetensors" in report["files"] and "config.json" in report["files"]
    text = run("inspect", tiny)
    assert text.status == 0
    assert report["digest"] in text.out and "projector + classifier" in text.out


def test_shipped_model():
    report = json.loads(run("inspect", "--json").out)
    assert sorted(report["labels"]) == ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    assert report["licence"] and not report["warnings"]
    assert set(report["tensors_unused"]) <= {"wav2vec2.masked_spec_embed"}  # transformers writes it, for training


def test_installed_program(tmp_path, clips):
    build = timbre.PROGRAM.parents[1]
    if not (build / "CMakeCache.txt").is_file():
        pytest.skip(f"{build} is not a build folder, so nothing can be installed from it")
    subprocess.run(["cmake", "--install", build, "--prefix", tmp_path / "first"], check=True, capture_output=True)
    (tmp_path / "first").rename(tmp_path / "moved")  # it finds its model from where it is
    result = subprocess.run([tmp_path / "moved/bin/timbre", "predict", "--json", clips[1]], capture_output=True,
                            check=True, timeout=60)
    assert json.loads(result.stdout)["logits"] == predict(None, [clips[1]])[0]["logits"]
    report = subprocess.run([tmp_path / "moved/bin/timbre", "inspect", "--json"], capture_output=True, check=True)
    assert json.loads(report.stdout)["dir"].startswith(str(tmp_path / "moved"))
