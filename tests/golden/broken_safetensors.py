"""Damaged and hostile safetensors files and indices."""

import json
import struct

import numpy as np

from broken_draft import Tensor, each, safetensors_bytes, safetensors_header, variant

FILE = "model.safetensors"
LAST = "projector.weight"


# ---- the file ----


def keep(count):
    """The first `count` bytes of the file; of the end when it is negative."""

    def damage(d):
        d.files = {FILE: d.safetensors()[:count]}

    return damage


def raw(data):
    def damage(d):
        d.files = {FILE: data}

    return damage


each(
    [
        ("st_empty", "an empty file", [FILE], keep(0)),
        ("st_cut_length", "ends within the header's length", [FILE, "short|truncated"], keep(5)),
        ("st_cut_header", "ends within the header", [FILE, "header"], keep(1000)),
        ("st_cut_data", "ends within the last tensor", [FILE, "truncated|beyond|end"], keep(-3)),
        ("st_cut_all_data", "ends behind the header", [FILE, "truncated|beyond|end"], keep(-20000)),
        ("st_length_max", "a header of 2^64 - 1 bytes", [FILE, "header"], raw(b"\xff" * 8 + b"{}" * 20)),
        (
            "st_length_wraps",
            "a header of 2^64 - 8 bytes",
            [FILE, "header"],
            raw(b"\xf8" + b"\xff" * 7 + b"{}" * 20),
        ),
        ("st_length_4g", "a header of 4 GiB", [FILE, "header"], raw(struct.pack("<Q", 1 << 32) + b"{}" * 20)),
        ("st_length_zero", "a header of no bytes", [FILE], raw(struct.pack("<Q", 0))),
        (
            "st_no_tensors",
            "a header without tensors",
            [FILE, "no tensors"],
            raw(struct.pack("<Q", 2) + b"{}"),
        ),
        (
            "st_lfs_pointer",
            "the pointer that git leaves where large files were not fetched",
            [FILE],
            raw(
                b"version https://git-lfs.github.com/spec/v1\n"
                b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
                b"size 1266057224\n"
            ),
        ),
        (
            "st_html",
            "a web page saved under the file's name",
            [FILE],
            raw(b"<!doctype html><html><body>404</body></html>" * 4),
        ),
    ],
    lambda damage: damage,
)


# ---- the header ----


def header_bytes(text):
    """Another header, byte for byte."""

    def damage(d):
        d.header = text(json.dumps(safetensors_header(d.tensors)).encode())

    return damage


each(
    [
        ("st_header_not_json", "not JSON", [FILE, "json"], lambda h: h.replace(b":", b"=", 3)),
        ("st_header_cut_json", "JSON that ends early", [FILE, "json"], lambda h: h[:-5]),
        (
            "st_header_more_json",
            "a second value behind the header's JSON",
            [FILE, "json"],
            lambda h: h + b"{}",
        ),
        ("st_header_array", "an array", [FILE, "object"], lambda h: b"[" + h + b"]"),
        ("st_header_number", "a number", [FILE, "object"], lambda h: b"12345678"),
        (
            "st_header_deep",
            "arrays 100000 deep",
            [FILE, "deep|nest"],
            lambda h: b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}",
        ),
        ("st_header_deep_open", "objects 100000 deep, never closed", [FILE], lambda h: b'{"a":' * 100000),
        (
            "st_header_not_utf8",
            "a name that is not UTF-8",
            ["projector.bias|utf-8"],
            lambda h: h.replace(b"projector.bias", b"projector\xff\xfe\x80as"),
        ),
        (
            "st_header_zero",
            "a zero byte within a name",
            [FILE, "zero|control"],
            lambda h: h.replace(b"projector.bias", b"projector\\u0000as"),
        ),
        (
            "st_duplicate",
            "a name twice",
            [FILE, "projector.bias", "twice|duplicate"],
            lambda h: h.replace(b"projector.weight", b"projector.bias"),
        ),
        (
            "st_field_twice",
            "a shape twice",
            [FILE, "twice|duplicate"],
            lambda h: h.replace(b'"dtype": "F32",', b'"dtype": "F32", "shape": [1],', 1),
        ),
        (
            "st_many_values",
            "a million tensors of no bytes",
            [FILE, "limit"],
            lambda h: (
                b"{"
                + b",".join(
                    b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(200000)
                )
                + b"}"
            ),
        ),
    ],
    header_bytes,
)


def entry(field, value):
    """One field of the entry of LAST; None takes the field away, a function makes it from what was there."""

    def damage(d):
        d.header = safetensors_header(d.tensors)
        old = d.header[LAST].pop(field)
        if value is not None:
            d.header[LAST][field] = value(old) if callable(value) else value

    return damage


NAMED = [FILE, LAST]
each(
    [
        ("st_no_dtype", "no dtype", [*NAMED, "dtype"], "dtype", None),
        ("st_no_shape", "no shape", [*NAMED, "shape"], "shape", None),
        ("st_no_offsets", "no data_offsets", [*NAMED, "offsets"], "data_offsets", None),
        ("st_dtype_unknown", "dtype Q4_0", [*NAMED, "Q4_0"], "dtype", "Q4_0"),
        ("st_dtype_number", "a dtype that is a number", [*NAMED, "dtype"], "dtype", 7),
        ("st_dtype_size", "a dtype of another size than the data", NAMED, "dtype", "F16"),
        ("st_shape_short", "a shape that needs fewer bytes", NAMED, "shape", lambda s: [s[0] - 1, s[1]]),
        ("st_shape_long", "a shape that needs more bytes", NAMED, "shape", lambda s: [s[0] + 1, s[1]]),
        ("st_shape_overflow", "2^32 by 2^32: zero bytes in 64 bits", NAMED, "shape", [1 << 32, 1 << 32]),
        (
            "st_shape_overflow_bytes",
            "2^62 elements of four bytes: zero bytes in 64 bits",
            NAMED,
            "shape",
            [1 << 31, 1 << 31],
        ),
        ("st_shape_negative", "a negative dimension", NAMED, "shape", [-10, -16]),
        ("st_shape_fraction", "a dimension of 1.5", NAMED, "shape", [1.5, 16]),
        ("st_shape_text", "a dimension in quotes", NAMED, "shape", ["10", 16]),
        ("st_shape_rank", "a thousand dimensions", [*NAMED, "dimension"], "shape", lambda s: s + [1] * 1000),
        ("st_shape_object", "a shape that is an object", [*NAMED, "shape"], "shape", {}),
        (
            "st_offsets_beyond",
            "data beyond the end of the file",
            NAMED,
            "data_offsets",
            lambda o: [o[0] + (1 << 30), o[1] + (1 << 30)],
        ),
        ("st_offsets_reversed", "data that ends before it begins", NAMED, "data_offsets", lambda o: o[::-1]),
        (
            "st_offsets_negative",
            "data that begins before the data",
            NAMED,
            "data_offsets",
            lambda o: [-640, 0],
        ),
        ("st_offsets_huge", "an offset of 1e300", NAMED, "data_offsets", [1e300, 1e300]),
        ("st_offsets_2_63", "an offset of 2^63", NAMED, "data_offsets", [1 << 63, (1 << 63) + 640]),
        ("st_offsets_wrap", "offsets that wrap around", NAMED, "data_offsets", [(1 << 64) - 640, 0]),
        ("st_offsets_three", "three offsets", NAMED, "data_offsets", lambda o: [*o, o[1]]),
        ("st_offsets_text", "offsets in quotes", NAMED, "data_offsets", lambda o: [str(o[0]), str(o[1])]),
        (
            "st_overlap",
            "two tensors over the same bytes",
            [FILE, "overlap"],
            "data_offsets",
            lambda o: [0, o[1] - o[0]],
        ),
    ],
    entry,
)


@variant("st_entry_number", "an entry that is a number", *NAMED)
def _(d):
    d.header = safetensors_header(d.tensors)
    d.header[LAST] = 5


@variant("st_gap", "bytes that belong to no tensor", FILE, "gap|belong")
def _(d):
    d.header = safetensors_header(d.tensors)
    del d.header["projector.bias"]


@variant("st_long_name", "a name of ten thousand letters", FILE, "name", "limit")
def _(d):
    d.tensors["x" * 10000] = Tensor.of(np.zeros(2))


# ---- indices ----

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"


def index(change, *more):
    """A folder with one shard and an index that `change` makes from the good one."""

    def damage(d):
        good = {"metadata": {}, "weight_map": {name: SHARD for name in d.tensors}}
        changed = change(good)
        data = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        d.files = {INDEX: data, SHARD: d.safetensors()}

    return damage


def mapped(value):
    return lambda i: i | {"weight_map": i["weight_map"] | {LAST: value}}


each(
    [
        (
            "index_outside",
            "a shard outside of the folder",
            [INDEX, "../../etc/passwd"],
            mapped("../../etc/passwd"),
        ),
        ("index_absolute", "a shard with a path of its own", [INDEX, "/etc/passwd"], mapped("/etc/passwd")),
        (
            "index_inner_dots",
            "a path that goes down and up again",
            [INDEX, "x/../"],
            mapped("x/../../secret.safetensors"),
        ),
        ("index_parent", "a shard that is the folder above", [INDEX], mapped("..")),
        ("index_empty_name", "a shard without a name", [INDEX], mapped("")),
        ("index_zero", "a zero byte in a shard's name", [INDEX], mapped(SHARD + "\0.txt")),
        (
            "index_missing_shard",
            "a shard that is not there",
            ["model-00002-of-00002.safetensors"],
            mapped("model-00002-of-00002.safetensors"),
        ),
        ("index_number", "a shard that is a number", [INDEX], mapped(5)),
        (
            "index_wrong_tensor",
            "a tensor that the shard does not hold",
            ["no.such.tensor"],
            lambda i: i | {"weight_map": i["weight_map"] | {"no.such.tensor": SHARD}},
        ),
        ("index_not_json", "not JSON", [INDEX, "json"], lambda i: b"weight_map"),
        ("index_no_map", "no weight_map", [INDEX, "weight_map"], lambda i: {"metadata": {}}),
        (
            "index_list",
            "a weight_map that is a list",
            [INDEX, "weight_map"],
            lambda i: {"weight_map": [SHARD]},
        ),
        ("index_empty_map", "an empty weight_map", [INDEX], lambda i: {"weight_map": {}}),
        (
            "index_deep",
            "objects 100000 deep",
            [INDEX, "deep|nest"],
            lambda i: b'{"weight_map":' + b"[" * 100000,
        ),
        (
            "index_many_shards",
            "a thousand shards",
            [INDEX],
            lambda i: {"weight_map": {f"t{n}": f"model-{n:05d}-of-01000.safetensors" for n in range(1000)}},
        ),
    ],
    index,
)


@variant("index_twice", "a tensor in two shards", "projector.bias", "twice|duplicate|two")
def _(d):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    one = {"projector.bias": d.tensors["projector.bias"], "other": Tensor.of(np.ones(3))}
    weight_map = {name: names[0] for name in d.tensors} | {"other": names[1]}
    d.files = {
        INDEX: json.dumps({"weight_map": weight_map}).encode(),
        names[0]: d.safetensors(),
        names[1]: safetensors_bytes(one),
    }


@variant("no_weights", "no weights in the folder", "no weights")
def _(d):
    d.files = {}


@variant("weights_folder", "a folder in the place of the weights", "model.safetensors|no weights")
def _(d):
    d.files = {}
    d.folders = [FILE]
