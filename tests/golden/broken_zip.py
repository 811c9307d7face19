"""Damaged and hostile zip archives around a good pickle, and files that are no zip archives."""

import io
import struct
import tarfile
import zipfile

from broken_torch import torch_each

# ---- patches ----


def record(signature, field, form, value, which=0):
    """Patches one field of the `which`th zip record with this signature."""

    def patch(out):
        at = -1
        for _ in range(which + 1):
            at = out.index(signature, at + 1)
        struct.pack_into(form, out, at + field, value)

    return patch


def patched(*patches):
    def damage(a):
        a.patches = list(patches)

    return damage


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def end_moved(a):
    """The archive with a zip64 end whose locator points far outside."""
    good = bytearray(a.bytes())
    at = good.index(END)
    struct.pack_into("<HHII", good, at + 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 1 << 62, 1)
    return bytes(good[:at] + locator + good[at:])


def zip64_extra(a):
    """data.pkl has a zip64 field that says 2^62 bytes."""
    good = bytearray(a.bytes())
    at = good.index(CENTRAL)
    name = struct.unpack_from("<H", good, at + 28)[0]
    struct.pack_into("<II", good, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    extra = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    struct.pack_into("<H", good, at + 30, len(extra))
    out = good[: at + 46 + name] + extra + good[at + 46 + name :]
    end = out.index(END)
    struct.pack_into("<I", out, end + 12, struct.unpack_from("<I", out, end + 12)[0] + len(extra))
    return bytes(out)


def entry_twice(a):
    """Two entries of the name data.pkl."""
    other = a.bytes()
    a.entries["archive/data.pkL"] = b"\x80\x02}."
    other = a.bytes()
    return other.replace(b"archive/data.pkL", b"archive/data.pkl")


def legacy(a):
    """What torch.save wrote before version 1.6: several pickles behind each other."""
    magic = 0x1950A86A20F9469CFC6C
    data = magic.to_bytes(10, "little")
    return b"\x80\x02\x8a\x0a" + data + b".\x80\x02M\xe9\x03." + a.data_pkl()


def tar(a):
    """What torch.save wrote in its first year."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as t:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            data = a.data_pkl()
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def without(name):
    def damage(a):
        return a.bytes().replace(f"archive/{name}".encode(), b"archive/" + b"x" * len(name))

    return damage


def extra_entry(name, data):
    def damage(a):
        a.entries[name] = data

    return damage


def deflated(a):
    a.method = zipfile.ZIP_DEFLATED


def big_endian(a):
    return a.bytes().replace(b"little", b"bigbig")


torch_each(
    [
        ("zip_empty", "an empty file", [], lambda a: b""),
        ("zip_text", "a text", [], lambda a: b"this is not a checkpoint\n" * 20),
        (
            "zip_lfs_pointer",
            "the pointer that git leaves where large files were not fetched",
            [],
            lambda a: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1266057224\n",
        ),
        ("zip_empty_archive", "an archive of nothing", [], lambda a: END + b"\0" * 18),
        ("zip_cut", "an archive that ends early", [], lambda a: a.bytes()[:20000]),
        ("zip_cut_end", "an archive without its last bytes", [], lambda a: a.bytes()[:-4]),
        ("zip_legacy", "the format of torch before 1.6", ["1.6|legacy"], legacy),
        ("zip_tar", "the format of torch's first year", [], tar),
        ("zip_deflated", "compressed entries", ["compressed|deflate"], deflated),
        (
            "zip_encrypted",
            "an encrypted entry",
            ["encrypted"],
            patched(record(LOCAL, 6, "<H", 1), record(CENTRAL, 8, "<H", 1)),
        ),
        (
            "zip_method",
            "an unknown way of compression",
            ["compress"],
            patched(record(LOCAL, 8, "<H", 99), record(CENTRAL, 10, "<H", 99)),
        ),
        ("zip_method_differs", "a local header that says deflate", [], patched(record(LOCAL, 8, "<H", 8))),
        (
            "zip_directory_outside",
            "a directory behind the end of the file",
            [],
            patched(record(END, 16, "<I", 0x7FFFFFFF)),
        ),
        ("zip_directory_long", "a directory of 2 GiB", [], patched(record(END, 12, "<I", 0x7FFFFFFF))),
        (
            "zip_entries_many",
            "an end that counts 60000 entries",
            [],
            patched(record(END, 8, "<H", 60000), record(END, 10, "<H", 60000)),
        ),
        (
            "zip_entries_few",
            "an end that counts one entry",
            [],
            patched(record(END, 8, "<H", 1), record(END, 10, "<H", 1)),
        ),
        ("zip_disks", "an archive of several disks", [], patched(record(END, 4, "<H", 3))),
        (
            "zip_local_outside",
            "an entry behind the end of the file",
            [],
            patched(record(CENTRAL, 42, "<I", 0x7FFFFFFF)),
        ),
        ("zip_local_wrong", "an entry in the midst of the data", [], patched(record(CENTRAL, 42, "<I", 3))),
        (
            "zip_size_long",
            "an entry of 2 GiB",
            [],
            patched(record(CENTRAL, 20, "<I", 0x7FFFFFF0), record(CENTRAL, 24, "<I", 0x7FFFFFF0)),
        ),
        ("zip_sizes_differ", "a stored entry of two sizes", [], patched(record(CENTRAL, 24, "<I", 10))),
        (
            "zip_local_size",
            "a local header of another size",
            [],
            patched(record(LOCAL, 18, "<I", 10), record(LOCAL, 22, "<I", 10)),
        ),
        (
            "zip_name_long",
            "an entry whose name is longer than the directory",
            [],
            patched(record(CENTRAL, 28, "<H", 65535)),
        ),
        (
            "zip_local_name",
            "an entry whose headers have two names",
            [],
            lambda a: a.bytes().replace(b"archive/data.pkl", b"archive/data.xyz", 1),
        ),
        (
            "zip_zip64_missing",
            "a zip64 size that is not there",
            [],
            patched(record(CENTRAL, 20, "<I", 0xFFFFFFFF), record(CENTRAL, 24, "<I", 0xFFFFFFFF)),
        ),
        ("zip_zip64_lies", "a zip64 size of 2^62", [], zip64_extra),
        ("zip_zip64_outside", "a zip64 end outside of the file", [], end_moved),
        ("zip_twice", "two entries of one name", ["twice|duplicate|two"], entry_twice),
        ("zip_no_pickle", "no data.pkl", ["data.pkl"], without("data.pkl")),
        (
            "zip_two_pickles",
            "two data.pkl in two folders",
            ["data.pkl"],
            extra_entry("other/data.pkl", b"\x80\x02}."),
        ),
        (
            "zip_torchscript",
            "a TorchScript program",
            ["TorchScript|constants.pkl"],
            extra_entry("archive/constants.pkl", b"\x80\x02)."),
        ),
        ("zip_big_endian", "numbers of the other byte order", ["byteorder"], big_endian),
    ],
    lambda damage: damage,
)
