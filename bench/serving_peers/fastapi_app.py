"""A FastAPI server as people write it: one upload, one forward of transformers, one answer.

Environment: MODEL_DIR, THREADS. Run by uvicorn: `uvicorn --app-dir bench/serving_peers fastapi_app:app`.
"""
import io
import os

import soundfile
import torch
from fastapi import FastAPI, UploadFile
from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification

torch.set_num_threads(int(os.environ.get("THREADS", "2")))
extractor = AutoFeatureExtractor.from_pretrained(os.environ["MODEL_DIR"])
model = Wav2Vec2ForSequenceClassification.from_pretrained(os.environ["MODEL_DIR"]).eval()
labels = model.config.id2label
app = FastAPI()


@app.get("/health")
def health():
    return {"status": "ok"}


# async: one forward at a time with all threads. A plain `def` runs up to 40 at once, which is slower on few processors.
@app.post("/predict")
async def predict(file: UploadFile):
    samples, rate = soundfile.read(io.BytesIO(await file.read()), dtype="float32")
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**inputs).logits[0].softmax(-1).tolist()
    best = max(range(len(scores)), key=scores.__getitem__)
    return {"results": [{"label": labels[i], "score": s} for i, s in enumerate(scores)], "dominant": labels[best]}
