#!/usr/bin/env python3
"""The voice-activity rule beside the webrtcvad package: frame F1 on EMO-DB speech with pauses, clean, in noise of 10 dB
and over a telephone, and what a second of audio costs (tests/e2e/vad_calls.py tells how calls and truth are made).

usage: vad.py [--build DIR] [--data DIR] [--speakers tested|tuned] [--as-recorded] [--json FILE]

The package gets every advantage: each of its figures is the best of its three frame sizes and of leads of 0 to 50 ms
(its word for a slot taken from a later one), chosen by the very score that is shown. --as-recorded: clips keep their
levels among each other. Cost is processor time on one thread: ours in pieces of 20 ms, webrtcvad's by its C function,
called once a frame through Python, the cost of such a call (with the shortest frame it takes) left out as far as an
empty loop tells.
Needs numpy, webrtcvad-wheels, ffmpeg.
"""
import subprocess
import sys
import time
from pathlib import Path

import harness

FRAMES_MS = (10, 20, 30)
MODES = (0, 1, 2, 3)
LEADS = range(6)  # slots
ROUNDS = 7


def scores(calls, made, conditions, said_of):
    """{truth: Score} over all calls in these conditions together."""
    found = {t: calls.Score() for t in calls.TRUTHS}
    for name in conditions:
        for i, (truths, _) in enumerate(made):
            for t, truth in truths.items():
                found[t].add(said_of[name, i], truth)
    return found


def measure_rule(calls, program, made):
    return {(c, i): calls.run_rule(program, call[c], phone=c == "mu-law")
            for c in calls.CONDITIONS for i, (_, call) in enumerate(made)}


def measure_webrtcvad(calls, made, mode):
    """[decisions] of each frame size and lead."""
    import numpy as np
    all_said = []
    for ms in FRAMES_MS:
        said = {(c, i): calls.run_webrtcvad(call[c], ms, mode, phone=c == "mu-law")
                for c in calls.CONDITIONS for i, (_, call) in enumerate(made)}
        for lead in LEADS:
            all_said.append({k: np.concatenate([s[lead:], np.zeros(lead, bool)]) for k, s in said.items()})
    return all_said


def table(bench, calls, program, made):
    rows = {"clean": ("clean",), **{n: (n,) for n in calls.NOISES}, "noise, all four": calls.NOISES,
            "mu-law": ("mu-law",)}
    ours = measure_rule(calls, program, made)
    theirs = {mode: measure_webrtcvad(calls, made, mode) for mode in MODES}
    names = ["the rule", *(f"webrtcvad {m}" for m in MODES)]
    for truth in calls.TRUTHS:
        print(f"\ntruth: {truth}\n{'F1':16s}" + "".join(f"{n:>14s}" for n in names) + "   precision, recall of the rule")
        for row, conditions in rows.items():
            rule = scores(calls, made, conditions, ours)[truth]
            best = [max(scores(calls, made, conditions, said)[truth].f1 for said in theirs[m]) for m in MODES]
            print(f"{row:16s}{rule.f1:14.4f}" + "".join(f"{b:14.4f}" for b in best) +
                  f"   {rule.precision:.3f}, {rule.recall:.3f}", flush=True)
            bench.figures[f"{truth}: {row}"] = {"rule": rule.f1, **{f"webrtcvad_{m}": b for m, b in zip(MODES, best)}}
            if truth == next(iter(calls.TRUTHS)) and row in ("clean", "noise, all four", "mu-law") and \
                    rule.f1 < best[MODES.index(2)]:
                bench.broken.append(row)


def cost(bench, calls, program, made):
    """Milliseconds for a second of audio, the best of some rounds."""
    import webrtcvad
    call = made[0][1]["pink"]
    data = call.astype("<f4").tobytes()
    for rate_hz in (8000, calls.RATE_HZ, 48000):  # the same numbers, taken for audio of another rate
        times = [float(subprocess.run([program, "--time", str(rate_hz)], input=data, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, check=True).stderr) for _ in range(ROUNDS)]
        bench.say(f"cost_ms_per_s_{rate_hz}", min(times), "ms of processor time for a second of audio")
    pcm = calls.to_pcm16(call).tobytes()
    step = calls.RATE_HZ * 30 // 1000 * 2
    frames = [pcm[i:i + step] for i in range(0, len(pcm) - step + 1, step)]
    times = []
    for _ in range(ROUNDS):
        vad = webrtcvad.Vad(2)
        begin = time.process_time()
        for frame in frames:
            vad.is_speech(frame, calls.RATE_HZ)
        asked = time.process_time()
        for frame in frames:
            len(frame)
        times.append(asked - begin - (time.process_time() - asked))
    bench.say("webrtcvad_cost_ms_per_s", min(times) * 1e3 / (len(pcm) / 2 / calls.RATE_HZ),
              "ms, frames of 30 ms, called from Python")


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--data", type=Path, default=harness.ROOT.parent / "shared" / "data")
    parser.add_argument("--speakers", choices=("tested", "tuned"), default="tested")
    parser.add_argument("--as-recorded", action="store_true")
    args = parser.parse_args()
    program = args.build.resolve() / "tests" / "vad_frames"
    if not program.exists():
        sys.exit(f"{program} is not there: build it, or say --build DIR")
    if not (args.data / "emodb").is_dir():
        sys.exit(f"{args.data}/emodb is not there: say --data DIR")
    with harness.Bench(args) as bench:
        import vad_calls as calls
        speakers = calls.TESTED_ON if args.speakers == "tested" else calls.TUNED_ON
        made = calls.make_conditions(args.data / "emodb", speakers, levelled=not args.as_recorded)
        seconds = sum(len(call["clean"]) for _, call in made) / calls.RATE_HZ
        speech = {t: sum(truths[t].sum() for truths, _ in made) / calls.SLOTS_HZ for t in calls.TRUTHS}
        print(f"speakers {', '.join(speakers)}: {seconds:.0f} s a condition, speech by each truth: " +
              ", ".join(f"{t} {s / seconds:.3f}" for t, s in speech.items()))
        table(bench, calls, program, made)
        print()
        cost(bench, calls, program, made)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
