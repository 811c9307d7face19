#!/usr/bin/env python3
"""Train models/default from scratch on EMO-DB and measure it on speakers it never heard."""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import time

import torch
from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification

from timbre_train import classifier, data, frontend, model, report

HERE = pathlib.Path(__file__).resolve().parent
SELECTION = ("The recipe was settled while watching the first fold only (speakers 03 and 08), so that fold may look a "
             "little too good. ")


def log(*words):
    """Print at once, also into a file."""
    print(*words, flush=True)


def prepare(args, clips, labels, pool):
    """Train the front end and cache its frames, or find both from an earlier run; return their paths."""
    args.work.mkdir(parents=True, exist_ok=True)
    front = args.work / f"frontend-{args.seed}-{args.frontend_steps}.pt"
    if not front.exists():
        torch.manual_seed(args.seed)
        net = model.build(labels)
        frontend.train_frontend(net, args.frontend_steps, args.seed, log)
        keep = {k: v for k, v in net.state_dict().items()
                if "feature_extractor" in k or "feature_projection.layer_norm" in k}
        torch.save(keep, front)
    features = args.work / f"features-{args.seed}-{args.frontend_steps}-{args.variants}.pt"
    if not features.exists():
        parts = [pool.submit(extract, args, front, clips, labels, range(k, len(clips), args.jobs))
                 for k in range(args.jobs)]
        torch.save({k: v for part in parts for k, v in part.result().items()}, features)
    return front, features


def extract(args, front, clips, labels, indices):
    """Front-end frames of some clips, as float16 arrays; runs in a process of its own."""
    torch.set_num_threads(1)
    net = model.build(labels)
    net.load_state_dict(torch.load(front), strict=False)
    return classifier.cache_features(net, clips, indices, args.variants, args.seed, log)


def train_and_test(name, args, paths, clips, labels, train, test):
    """Train on `train`; return the state (if nothing is tested) and {clip: predicted label index} for `test`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    data.refuse_shared_speakers(clips, train, test)
    net = model.build(labels)
    net.load_state_dict(torch.load(paths[0]), strict=False)
    cache = torch.load(paths[1], weights_only=False)
    targets = [labels.index(c.emotion) for c in clips]
    classifier.train_classifier(net, cache, targets, train, args.epochs, args.seed,
                                lambda line: log(f"[{name}] {line}"))
    extractor = model.preprocessor()
    guesses = {i: classifier.predict(net, extractor, clips[i]) for i in test}
    if test:
        right = sum(guesses[i] == targets[i] for i in test)
        log(f"[{name}] {right} of {len(test)} right")
    return None if test else net.state_dict(), guesses


def save_model(out, state, labels):
    """Write the model in the Hugging Face layout and check that it loads without a missing weight."""
    net = model.build(labels)
    net.load_state_dict(state)
    net.save_pretrained(out)
    model.preprocessor().save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
    _, info = Wav2Vec2ForSequenceClassification.from_pretrained(out, output_loading_info=True)
    AutoFeatureExtractor.from_pretrained(out)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise RuntimeError(f"the saved model does not load cleanly: {info}")
    return sum(p.numel() for p in net.parameters()), (out / "model.safetensors").stat().st_size


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=HERE.parent.parent / "shared/data/emodb",
                        help="folder of labels.csv and the clips")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "models/default", help="model folder")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / "work", help="folder for intermediate files")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results/default_cv.json")
    parser.add_argument("--cv", action="store_true", help="cross-validate")
    parser.add_argument("--final", action="store_true", help="train on every speaker and write the model")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--frontend-steps", type=int, default=700)
    parser.add_argument("--variants", type=int, default=6, help="augmented versions of each clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    args = parser.parse_args()
    if not (args.cv or args.final):
        parser.error("name --cv, --final or both")
    return args


def main():
    """Run the stages that the command line asks for."""
    args = arguments()
    start = time.time()
    torch.set_num_threads(1)
    clips = data.read_clips(args.data)
    labels = sorted({c.emotion for c in clips})
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        paths = prepare(args, clips, labels, pool)
        log(f"front end and features ready after {time.time() - start:.0f} s")
        submit = lambda name, train, test: pool.submit(train_and_test, name, args, paths, clips, labels, train, test)
        final = submit("final", list(range(len(clips))), []) if args.final else None
        groups = data.speaker_folds(clips, args.folds) if args.cv else []
        folds = [submit(f"fold {k}", *data.split(clips, group)) for k, group in enumerate(groups)]
        if final:
            parameters, size = save_model(args.out, final.result()[0], labels)
            log(f"{args.out}: {parameters} parameters, {size} bytes")
        predictions = {i: (k, guess) for k, fold in enumerate(folds) for i, guess in fold.result()[1].items()}

    if args.cv:
        settings = {k: getattr(args, k) for k in ("folds", "epochs", "frontend_steps", "variants", "seed")}
        result = report.summarise(clips, labels, predictions, settings)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        log(report.tables(result))
    if args.final and args.results.exists():
        result = json.loads(args.results.read_text(encoding="utf-8"))
        (args.out / "README.md").write_text(report.model_card(result, parameters, size, SELECTION), encoding="utf-8")
    log(f"finished after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
