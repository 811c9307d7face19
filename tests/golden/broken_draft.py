"""A copy of a good model folder that can be damaged and written down."""

import copy
import json
import struct
from collections import OrderedDict

import numpy as np

VARIANTS = []


def variant(name, about, *contains):
    """Registers a function that damages a Draft. The error must contain every word of `contains`, whatever
    the case of letters; a word may list alternatives: "a|b"."""

    def register(function):
        VARIANTS.append((name, about, list(contains), function))
        return function

    return register


def each(rows, make):
    """Registers make(*row[3:]) for each (name, about, contains, ...) of a table."""
    for name, about, contains, *rest in rows:
        variant(name, about, *contains)(make(*rest))


class Tensor:
    """One tensor of a safetensors file: dtype by name, shape, little-endian bytes."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), bytes(data)

    @classmethod
    def of(cls, array):
        """From a float32 array."""
        array = np.ascontiguousarray(array, np.dtype("<f4"))
        return cls("F32", array.shape, array.tobytes())

    def array(self):
        """The values of an F32 tensor; writable."""
        return np.frombuffer(self.data, "<f4").reshape(self.shape).copy()


def read_safetensors(path):
    """{name: Tensor} in the order of the data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    out = OrderedDict()
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        out[name] = Tensor(entry["dtype"], entry["shape"], raw[8 + length + begin : 8 + length + end])
    return out


def safetensors_header(tensors):
    """The header's dictionary."""
    header, at = OrderedDict(), 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    return header


def safetensors_bytes(tensors, header=None):
    """The file; `header` may be a dictionary or the bytes to put in its place."""
    if header is None:
        header = safetensors_header(tensors)
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
        header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + b"".join(t.data for t in tensors.values())


class Draft:
    """What will be written: config.json and preprocessor_config.json (each a dictionary, bytes, or None for
    no file), the tensors of model.safetensors, and other files that replace it when there are any."""

    def __init__(self, golden):
        self.config = json.loads((golden / "config.json").read_text())
        self.preprocessor = json.loads((golden / "preprocessor_config.json").read_text())
        self.tensors = read_safetensors(golden / "model.safetensors")
        self.header = None  # of model.safetensors, where it is not what the tensors say
        self.files = None  # {name: bytes}: the weights, instead of model.safetensors
        self.folders = []  # folders with the name of a file

    def copy(self):
        return copy.deepcopy(self)

    def safetensors(self):
        return safetensors_bytes(self.tensors, self.header)

    def name(self, ending):
        """The full name of the one tensor that ends so."""
        found = [n for n in self.tensors if f".{n}".endswith(f".{ending}")]
        if len(found) != 1:
            raise ValueError(f"{len(found)} tensors end in {ending}")
        return found[0]

    def set(self, ending, array):
        self.tensors[self.name(ending)] = Tensor.of(array)

    def use_speech_head(self):
        """dense, tanh, out_proj in place of the stock head."""
        hidden, labels = self.config["hidden_size"], len(self.config["id2label"])
        for name in [n for n in self.tensors if n.startswith(("projector", "classifier"))]:
            del self.tensors[name]
        for name, rows in (("classifier.dense", hidden), ("classifier.out_proj", labels)):
            self.tensors[f"{name}.weight"] = Tensor.of(np.full((rows, hidden), 0.01))
            self.tensors[f"{name}.bias"] = Tensor.of(np.zeros(rows))

    def use_torch(self, file):
        self.files = {"pytorch_model.bin": file}

    def write(self, folder):
        folder.mkdir(parents=True)
        for file, value in (("config.json", self.config), ("preprocessor_config.json", self.preprocessor)):
            if value is not None:
                data = value if isinstance(value, bytes) else json.dumps(value, indent=2).encode()
                (folder / file).write_bytes(data)
        for name, data in (self.files if self.files is not None else {"model.safetensors": None}).items():
            (folder / name).write_bytes(self.safetensors() if data is None else data)
        for name in self.folders:
            (folder / name).mkdir()
