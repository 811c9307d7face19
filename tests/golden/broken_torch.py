"""Damaged and hostile pytorch_model.bin files: pickles that want code to run, storages and tensors that lie.

The pickles are put together from opcodes by hand (see Python's pickletools) and are never loaded here.
"""

import io
import json
import struct
import zipfile

import numpy as np

from broken_draft import variant

FILE = "pytorch_model.bin"
LAST = "projector.weight"
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}


# ---- pickle opcodes ----


def text(s):
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def integer(n):
    if 0 <= n < 256:
        return b"K" + bytes([n])
    if -(1 << 31) <= n < 1 << 31:
        return b"J" + struct.pack("<i", n)
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def find(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def call(module, name, *args):
    return find(module, name) + tuple_of(*args) + b"R"


def storage(kind, key, elements):
    return tuple_of(text("storage"), find("torch", kind), text(key), text("cpu"), integer(elements)) + b"Q"


def tensor(stored, shape, stride=None, offset=0):
    if stride is None:
        stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    sizes = tuple_of(*map(integer, shape)), tuple_of(*map(integer, stride))
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", stored, integer(offset), *sizes, b"\x89", hooks)


# ---- the archive ----


class Archive:
    """A pytorch_model.bin in the making."""

    def __init__(self, draft):
        self.values, self.entries, self.keys = {}, {}, {}
        for i, (name, t) in enumerate(draft.tensors.items()):
            elements = int(np.prod(t.shape))
            self.values[name] = tensor(storage(STORAGES[t.dtype], str(i), elements), t.shape)
            self.entries[f"archive/data/{i}"] = t.data
            self.keys[name] = str(i)
        self.shape = draft.tensors[LAST].shape
        self.before = b""  # opcodes before the state dict
        self.pickle = None  # instead of the whole pickle
        self.method = zipfile.ZIP_STORED
        self.patches = []  # functions that change the bytes of the finished archive

    def stored(self, kind="FloatStorage", elements=None, key=None):
        """The storage of LAST, described in another way."""
        return storage(kind, key or self.keys[LAST], elements or int(np.prod(self.shape)))

    def put(self, ops):
        """Opcodes in the place of the tensor LAST."""
        self.values[LAST] = ops

    def data_pkl(self):
        if self.pickle is not None:
            return self.pickle
        items = b"".join(text(name) + value for name, value in self.values.items())
        state = call("collections", "OrderedDict")
        return b"\x80\x02" + self.before + state + b"(" + items + b"u."

    def bytes(self):
        entries = {
            "archive/data.pkl": self.data_pkl(),
            "archive/byteorder": b"little",
            "archive/version": b"3\n",
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as z:
            for name, data in (entries | self.entries).items():
                info = zipfile.ZipInfo(name)
                info.compress_type = self.method
                z.writestr(info, data)
        out = bytearray(buffer.getvalue())
        for patch in self.patches:
            patch(out)
        return bytes(out)


def torch_variant(name, about, *contains):
    """Registers a function that damages an Archive."""

    def register(function):
        def damage(draft):
            archive = Archive(draft)
            result = function(archive)
            draft.use_torch(result if isinstance(result, bytes) else archive.bytes())

        variant(name, about, *contains)(damage)
        return function

    return register


def torch_each(rows, make):
    for name, about, contains, *rest in rows:
        torch_variant(name, about, FILE, *contains)(make(*rest))


# ---- pickles that want code to run ----


def in_place_of_tensor(ops):
    return lambda a: a.put(ops)


def before_the_dict(ops):
    """Runs, and takes its result off the stack again."""

    def damage(a):
        a.before = ops + b"0"

    return damage


ECHO = text("echo unsafe")
torch_each(
    [
        ("pickle_os_system", "calls os.system", ["os.system"], call("os", "system", ECHO)),
        ("pickle_posix_system", "calls posix.system", ["posix.system"], call("posix", "system", ECHO)),
        ("pickle_eval", "calls builtins.eval", ["builtins.eval"], call("builtins", "eval", text("1+1"))),
        (
            "pickle_exec",
            "calls __builtin__.exec, its old name",
            ["__builtin__.exec"],
            call("__builtin__", "exec", text("x=1")),
        ),
        (
            "pickle_getattr",
            "calls builtins.getattr",
            ["builtins.getattr"],
            call("builtins", "getattr", text("x"), text("__class__")),
        ),
        ("pickle_popen", "calls subprocess.Popen", ["subprocess.Popen"], call("subprocess", "Popen", ECHO)),
        (
            "pickle_load_bytes",
            "has torch load a second pickle",
            ["_load_from_bytes"],
            call("torch.storage", "_load_from_bytes", ECHO),
        ),
        (
            "pickle_numpy",
            "makes a numpy array",
            ["numpy"],
            call("numpy.core.multiarray", "_reconstruct", integer(0)),
        ),
        (
            "pickle_model",
            "a whole model object",
            ["transformers"],
            call("transformers.models.wav2vec2.modeling_wav2vec2", "Wav2Vec2Model"),
        ),
        (
            "pickle_dotted",
            "a forbidden name within an allowed module",
            ["_rebuild_tensor_v2.__globals__"],
            call("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ),
        (
            "pickle_rebuild_other",
            "another function of torch",
            ["_rebuild_device_tensor_from_numpy"],
            call("torch._utils", "_rebuild_device_tensor_from_numpy", integer(0)),
        ),
        (
            "pickle_case",
            "an allowed name in other letters",
            ["orderedDict"],
            call("collections", "orderedDict"),
        ),
        ("pickle_long_global", "a name of a million letters", [], call("os" * 500000, "system", ECHO)),
        ("pickle_global_cut", "a name without its end", [], b"cos"),
        (
            "pickle_stack_global",
            "os.system from the stack",
            ["os.system"],
            text("os") + text("system") + b"\x93" + tuple_of(ECHO) + b"R",
        ),
        ("pickle_inst", "the INST opcode", [], b"(" + ECHO + b"ios\nsystem\n"),
        ("pickle_obj", "the OBJ opcode", [], b"(" + find("collections", "OrderedDict") + b"o"),
        ("pickle_newobj", "the NEWOBJ opcode", [], find("collections", "OrderedDict") + b")\x81"),
        ("pickle_newobj_ex", "the NEWOBJ_EX opcode", [], find("collections", "OrderedDict") + b")}\x92"),
        ("pickle_extension", "the EXT1 opcode", [], b"\x82\x01"),
        ("pickle_persid", "the PERSID opcode", [], b"Pstorage\n"),
        ("pickle_call_storage", "calls a storage's type", [], call("torch", "FloatStorage", integer(5))),
        (
            "pickle_call_dict",
            "makes an OrderedDict of something",
            [],
            call("collections", "OrderedDict", b"]"),
        ),
        ("pickle_call_text", "calls a text", [], text("os.system") + tuple_of(ECHO) + b"R"),
        ("pickle_build_text", "sets attributes of a text", [], text("x") + b"}b"),
    ],
    before_the_dict,
)


@torch_variant("pickle_nested", "calls os.system for an argument of a tensor", FILE, "os.system")
def _(a):
    a.put(tensor(call("os", "system", ECHO), a.shape))


@torch_variant("pickle_in_metadata", "calls os.system within the state dict's attribute", FILE, "os.system")
def _(a):
    metadata = b"}" + text("_metadata") + call("os", "system", ECHO) + b"s"
    a.pickle = a.data_pkl()[:-1] + metadata + b"b."


# ---- pickles that are damaged ----


def whole(make):
    def damage(a):
        a.pickle = make(a.data_pkl())

    return damage


torch_each(
    [
        ("pickle_empty", "no pickle", [], lambda p: b""),
        ("pickle_cut", "a pickle that ends early", [], lambda p: p[: len(p) // 2]),
        ("pickle_no_stop", "a pickle without its end", [], lambda p: p[:-1]),
        (
            "pickle_unknown_opcode",
            "an opcode that does not exist",
            ["opcode|0xff"],
            lambda p: p[:2] + b"\xff" + p[2:],
        ),
        ("pickle_text_opcode", "a pickle of protocol 0", [], lambda p: b"(dp0\nVx\np1\nI1\ns."),
        ("pickle_memo_get", "a memo entry that was never put", [], lambda p: b"\x80\x02h\xc8."),
        ("pickle_memo_get_long", "memo entry 2^32 - 1", [], lambda p: b"\x80\x02j\xff\xff\xff\xff."),
        (
            "pickle_memo_bomb",
            "a memo of 2^32 - 1 entries",
            ["memo|limit"],
            lambda p: b"\x80\x02}r\xff\xff\xff\xff.",
        ),
        ("pickle_text_bomb", "a text of 4 GiB", [], lambda p: b"\x80\x02X\xff\xff\xff\xffabc."),
        (
            "pickle_text8_bomb",
            "a text of 2^63 bytes",
            [],
            lambda p: b"\x80\x04\x8d" + b"\0" * 7 + b"\x80abc.",
        ),
        ("pickle_bytes_bomb", "bytes of 2^63 bytes", [], lambda p: b"\x80\x04\x8e" + b"\0" * 7 + b"\x80abc."),
        ("pickle_long_bomb", "a number of 2^31 - 1 bytes", [], lambda p: b"\x80\x02\x8b\xff\xff\xff\x7f."),
        (
            "pickle_frame_lies",
            "a frame longer than the pickle",
            [],
            lambda p: b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        ),
        (
            "pickle_marks",
            "a million marks",
            ["limit|nest|mark"],
            lambda p: b"\x80\x02" + b"(" * 1000000 + b".",
        ),
        (
            "pickle_stack",
            "a million values on the stack",
            ["limit|stack"],
            lambda p: b"\x80\x02" + b"N" * 1000000 + b".",
        ),
        (
            "pickle_deep_lists",
            "lists within lists, half a million deep",
            ["limit|deep|stack"],
            lambda p: b"\x80\x02" + b"]" * 500000 + b"a" * 499999 + b".",
        ),
        (
            "pickle_deep_tuples",
            "tuples within tuples, a million deep",
            ["limit|deep|objects"],
            lambda p: b"\x80\x02N" + b"\x85" * 1000000 + b".",
        ),
        (
            "pickle_dup_bomb",
            "a tuple that doubles 60 times",
            [],
            lambda p: b"\x80\x02N" + b"2\x86" * 60 + b".",
        ),
        ("pickle_self", "a list that holds itself", [], lambda p: b"\x80\x02]q\x00h\x00a."),
        ("pickle_empty_stack", "an opcode without its values", [], lambda p: b"\x80\x02R."),
        ("pickle_no_mark", "a tuple without its beginning", [], lambda p: b"\x80\x02NNt."),
        (
            "pickle_odd_items",
            "a dictionary of three items",
            [],
            lambda p: b"\x80\x02}(" + text("a") * 3 + b"u.",
        ),
        ("pickle_list", "a list of tensors", [], lambda p: b"\x80\x02]."),
        ("pickle_number", "a number", [], lambda p: b"\x80\x02K\x05."),
        ("pickle_nothing", "an empty dictionary", [], lambda p: b"\x80\x02}."),
        (
            "pickle_inner",
            "a checkpoint of a trainer: the state dict is one item",
            [],
            lambda p: b"\x80\x02}" + text("model_state_dict") + p[2:-1] + b"s.",
        ),
    ],
    whole,
)


# ---- storages and tensors that lie ----


def lie(**how):
    """LAST with another storage or layout."""

    def damage(a):
        stored = a.stored(**{k: how[k] for k in ("kind", "elements", "key") if k in how})
        shape = how.get("shape", a.shape)
        a.put(tensor(stored, shape, how.get("stride"), how.get("offset", 0)))

    return damage


torch_each(
    [
        ("storage_missing", "a storage that the archive does not hold", ["data/999|999"], lie(key="999")),
        ("storage_outside", "a storage of another folder", [], lie(key="../../etc/passwd")),
        ("storage_big", "a storage with more elements than bytes", ["storage"], lie(elements=1000)),
        (
            "storage_huge",
            "a storage of 2^62 elements: zero bytes in 64 bits",
            ["storage"],
            lie(elements=1 << 62),
        ),
        ("storage_negative", "a storage of -1 elements", ["storage"], lie(elements=-1)),
        ("storage_small", "a storage with fewer elements than the tensor", [], lie(elements=5)),
        (
            "storage_wider",
            "a type that is wider than the bytes there",
            ["storage"],
            lie(kind="DoubleStorage"),
        ),
        ("storage_complex", "complex numbers", ["ComplexFloatStorage"], lie(kind="ComplexFloatStorage")),
        ("storage_quantized", "quantized numbers", ["QInt8Storage"], lie(kind="QInt8Storage")),
        ("tensor_offset", "a tensor that begins behind its storage", [], lie(offset=160)),
        ("tensor_offset_one", "a tensor that ends an element behind its storage", [], lie(offset=1)),
        ("tensor_offset_negative", "a tensor that begins before its storage", [], lie(offset=-1)),
        ("tensor_offset_huge", "a tensor at 2^62", [], lie(offset=1 << 62)),
        ("tensor_offset_wraps", "a tensor at 2^64 - 80", [], lie(offset=(1 << 64) - 80)),
        ("tensor_transposed", "a transposed tensor", [LAST, "contiguous|stride"], lie(stride=[1, 10])),
        (
            "tensor_expanded",
            "a tensor that repeats one row",
            [LAST, "contiguous|stride"],
            lie(stride=[0, 1], elements=16),
        ),
        (
            "tensor_backwards",
            "a tensor with a negative stride",
            [LAST, "contiguous|stride"],
            lie(stride=[16, -1]),
        ),
        (
            "tensor_stride_huge",
            "a tensor with a stride of 2^61",
            [LAST, "contiguous|stride"],
            lie(stride=[1 << 61, 1]),
        ),
        ("tensor_stride_short", "a tensor with one stride for two dimensions", [], lie(stride=[1])),
        ("tensor_negative", "a tensor of negative size", [], lie(shape=[-10, -16])),
        ("tensor_overflow", "a tensor of 2^64 elements", [], lie(shape=[1 << 32, 1 << 32])),
        ("tensor_rank", "a tensor of a hundred dimensions", [], lie(shape=[1] * 100)),
        ("tensor_shape", "a tensor of another shape", [LAST, "shape"], lie(shape=[16, 10])),
    ],
    lambda damage: damage,
)
torch_each(
    [
        (
            "storage_tuple",
            "a storage that is described by four things",
            [],
            tuple_of(text("storage"), find("torch", "FloatStorage"), text("0"), text("cpu")) + b"Q",
        ),
        ("storage_word", "a persistent id that is no storage", [], text("storage") + b"Q"),
        (
            "storage_os",
            "a storage of type os.system",
            ["os.system"],
            tuple_of(text("storage"), find("os", "system"), text("0"), text("cpu"), integer(4)) + b"Q",
        ),
        ("tensor_no_storage", "a tensor of a number", [], tensor(integer(5), [10, 16])),
        (
            "tensor_few_arguments",
            "a tensor that is made of one thing",
            [],
            call("torch._utils", "_rebuild_tensor_v2", integer(1)),
        ),
    ],
    in_place_of_tensor,
)
torch_variant("tensor_text", "a text in the place of a tensor", LAST)(in_place_of_tensor(text("weights")))
torch_variant("tensor_list", "a list in the place of a tensor", LAST)(in_place_of_tensor(b"]"))


@torch_variant("tensor_missing", "the state dict lacks a tensor", LAST)
def _(a):
    del a.values[LAST]


@torch_variant("tensor_long", "whole numbers for weights", FILE, LAST, "I64|Long")
def _(a):
    a.entries[f"archive/data/{a.keys[LAST]}"] *= 2
    lie(kind="LongStorage")(a)


@variant("torch_nan", "a NaN in a tensor", LAST, "nan|inf|finite")
def _(d):
    a = d.tensors[LAST].array()
    a[3, 5] = np.nan
    d.set(LAST, a)
    d.use_torch(Archive(d).bytes())


@torch_variant("torch_no_head", "a backbone alone", "head")
def _(a):
    for name in [n for n in a.values if n.startswith(("projector", "classifier"))]:
        del a.values[name]


@variant(
    "torch_index_outside", "a shard outside of the folder", "pytorch_model.bin.index.json", "../../etc/passwd"
)
def _(d):
    weight_map = {name: "../../etc/passwd" for name in d.tensors}
    d.files = {"pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode()}
