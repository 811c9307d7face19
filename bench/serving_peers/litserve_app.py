"""A dynamic batcher with padding: LitServe over transformers. The feature extractor pads, and gives an attention mask when
the model's folder asks for one.

Environment: MODEL_DIR, THREADS, BATCH (clips of the largest batch), BATCH_TIMEOUT_S.
usage: litserve_app.py PORT
"""
import io
import os
import sys

import litserve
import soundfile
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification


class Emotions(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(int(os.environ.get("THREADS", "2")))
        self.extractor = AutoFeatureExtractor.from_pretrained(os.environ["MODEL_DIR"])
        self.model = Wav2Vec2ForSequenceClassification.from_pretrained(os.environ["MODEL_DIR"]).to(device).eval()
        self.labels = self.model.config.id2label

    def decode_request(self, request):
        return soundfile.read(io.BytesIO(request["file"].file.read()), dtype="float32")

    def batch(self, inputs):
        rate = inputs[0][1]
        assert all(r == rate for _, r in inputs)
        return self.extractor([x for x, _ in inputs], sampling_rate=rate, padding=True, return_tensors="pt")

    def predict(self, batch):
        with torch.inference_mode():
            return self.model(**batch).logits.softmax(-1)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        scores = output.tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        results = [{"label": self.labels[i], "score": s} for i, s in enumerate(scores)]
        return {"results": results, "dominant": self.labels[best]}


if __name__ == "__main__":
    api = Emotions(max_batch_size=int(os.environ.get("BATCH", "8")),
                   batch_timeout=float(os.environ.get("BATCH_TIMEOUT_S", "0.01")))
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
