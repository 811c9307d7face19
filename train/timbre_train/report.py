"""Figures of a cross-validation and the model card made from them."""

import collections

import numpy as np


def scores(truth, guess, count):
    """Accuracy, UAR, macro-F1 and confusion (rows: truth) of label indices.

    UAR averages recall over the classes that occur in `truth`.
    """
    confusion = np.zeros((count, count), dtype=int)
    np.add.at(confusion, (truth, guess), 1)
    hits, actual, claimed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present = actual > 0
    recall = hits[present] / actual[present]
    f1 = 2 * hits[present] / (actual + claimed)[present]
    return {"clips": int(actual.sum()), "accuracy": round(float(hits.sum() / actual.sum()), 4),
            "uar": round(float(recall.mean()), 4), "macro_f1": round(float(f1.mean()), 4),
            "confusion": confusion.tolist()}


def summarise(clips, labels, predictions, settings):
    """The content of default_cv.json from {clip index: (fold, predicted index)}."""
    truth = {i: labels.index(clips[i].emotion) for i in predictions}
    of = lambda members: scores([truth[i] for i in members], [predictions[i][1] for i in members], len(labels))
    by_speaker, by_fold = collections.defaultdict(list), collections.defaultdict(list)
    for i, (fold, _) in predictions.items():
        by_speaker[clips[i].speaker].append(i)
        by_fold[fold].append(i)
    speakers = []
    for name in sorted(by_speaker):
        row = of(by_speaker[name])
        del row["confusion"]
        first = by_speaker[name][0]
        speakers.append({"speaker": name, "gender": clips[first].gender, "fold": predictions[first][0], **row})
    pooled = of(list(predictions))
    pooled["recall"] = {name: round(row[k] / max(1, sum(row)), 4)
                        for k, (name, row) in enumerate(zip(labels, pooled["confusion"]))}
    folds = [{"fold": f, "speakers": sorted({clips[i].speaker for i in m}), **of(m)} for f, m in sorted(by_fold.items())]
    for row in folds:
        del row["confusion"]
    return {"labels": labels, "settings": settings, "pooled": pooled, "speakers": speakers, "folds": folds}


def tables(result):
    """The figures as Markdown tables."""
    pooled, labels = result["pooled"], result["labels"]
    lines = ["| speaker | gender | fold | clips | accuracy | UAR | macro-F1 |", "|---|---|---|---|---|---|---|"]
    for row in result["speakers"]:
        lines.append(f"| {row['speaker']} | {row['gender']} | {row['fold']} | {row['clips']} | {row['accuracy']:.2f} "
                     f"| {row['uar']:.2f} | {row['macro_f1']:.2f} |")
    lines.append(f"| **all, pooled** | | | {pooled['clips']} | **{pooled['accuracy']:.3f}** | **{pooled['uar']:.3f}** "
                 f"| **{pooled['macro_f1']:.3f}** |")
    lines += ["", "| true \\ predicted | " + " | ".join(labels) + " | recall |", "|---" * (len(labels) + 2) + "|"]
    for name, row in zip(labels, pooled["confusion"]):
        lines.append(f"| {name} | " + " | ".join(map(str, row)) + f" | {pooled['recall'][name]:.2f} |")
    return "\n".join(lines)


CARD = """---
license: cc0-1.0
language: de
library_name: transformers
pipeline_tag: audio-classification
tags:
- audio-classification
- speech-emotion-recognition
- wav2vec2
metrics:
- accuracy
- recall
- f1
---

# Timbre default model

A compact speech emotion classifier with the wav2vec 2.0 architecture, trained from random weights. It names one of
{labels}. {parameters:,} parameters, {megabytes:.1f} MB, float32; input is 16 kHz mono speech.

**It is a demonstration, not a product.** It was trained on {clips} clips, 19 minutes, of German sentences acted by
{speakers} speakers.

## Use

```python
import soundfile
from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification

extractor = AutoFeatureExtractor.from_pretrained("models/default")
model = Wav2Vec2ForSequenceClassification.from_pretrained("models/default").eval()
samples, rate = soundfile.read("speech.flac", dtype="float32")  # 16 kHz mono
logits = model(**extractor(samples, sampling_rate=rate, return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())])
```

## Data

Berlin Database of Emotional Speech (EMO-DB; Burkhardt, Paeschke, Rolfes, Sendlmeier and Weiss, Interspeech 2005),
released under CC0: {clips} of its clips, speakers {speaker_list}. No other recordings and no pretrained weights were
used.

## Training

1. The convolutional front end learns, for {frontend_steps} steps, to predict the mel spectrum, pitch and voicing of
   computer-made, speech-like signals. It hears no recording in this step and is frozen afterwards; the prediction
   head is thrown away.
2. The transformer and the classification head learn the emotions for a fixed {epochs} epochs: each clip as recorded
   and in {variants} variants (speed and pitch from -18 % to +20 %, random equaliser, noise), random excerpts,
   random tempo, time masking, dropout, label smoothing 0.1, classes drawn equally often, averaged weights.

The shipped weights come from the same recipe and the same number of epochs on all {speakers} speakers, so the figures
below belong to the recipe, not to these exact weights. `train/train_default.py` does all of it (seed {seed}).

## Cross-validated figures

{folds} folds split by speaker: every clip is judged by a model that never heard its speaker, alone, whole and without
padding. The number of epochs was fixed beforehand; no fold's test speakers chose a checkpoint. {selection}Chance UAR is
{chance:.2f}. UAR is the mean recall over classes (for one speaker, over the classes that speaker has).

{tables}

## Limits

- Acted emotions in ten scripted German sentences, recorded in a studio. Spontaneous speech, other languages, other
  sentences, noise, telephone channels and far microphones are untested, and worse results must be expected.
- The same sentences occur in training and in test folds, spoken by other people; the figures say nothing about new
  sentences.
- {speakers} adult speakers say little about voices in general: the figures differ widely between them, and a few clips
  move each of them by several percent.
- The scores are not calibrated probabilities.
- Not fit for decisions about people.

## Licence

Weights: CC0 1.0, like the data they were trained on.
"""


def model_card(result, parameters, size, selection=""):
    """The README.md of the shipped model."""
    names = [row["speaker"] for row in result["speakers"]]
    return CARD.format(
        labels=", ".join(result["labels"][:-1]) + " or " + result["labels"][-1], parameters=parameters,
        megabytes=size / 1e6, clips=result["pooled"]["clips"], speakers=len(names), speaker_list=", ".join(names),
        chance=1 / len(result["labels"]), tables=tables(result), selection=selection, **result["settings"])
