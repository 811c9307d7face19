"""Certificates for one test run, made with the openssl program."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass
class Pair:
    cert: Path
    key: Path


def make_authority(folder, name):
    """A certificate authority of its own."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
            f"/CN={name}", "-keyout", pair.key, "-out", pair.cert)
    return pair


def make_certificate(folder, name, authority, days=2):
    """For "localhost" and 127.0.0.1, of a client as well as of a server. With days < 1 it has ended already."""
    pair, request, extensions = Pair(folder / f"{name}.pem", folder / f"{name}.key"), folder / "csr", folder / "ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", pair.key, "-out", request)
    openssl("x509", "-req", "-in", request, "-CA", authority.cert, "-CAkey", authority.key, "-CAcreateserial", "-days", days,
            "-extfile", extensions, "-out", pair.cert)
    return pair
