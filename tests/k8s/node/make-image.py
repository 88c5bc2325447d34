#!/usr/bin/env python3
"""Writes an OCI image archive from files on this machine; no registry, no builder.

    make-image.py OUT.tar REF [--entrypoint CMD]... [--env K=V]... SRC:DEST...

SRC is a file or a folder of the host, DEST its path in the image. A file given
as `+SRC:DEST` brings the shared libraries `ldd` names for it too, at their own
paths. `DEST->TARGET` makes a symbolic link, `DEST/` an empty folder.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile


def libraries(path):
    text = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", text)))


class Layer:
    def __init__(self):
        self.buf = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buf, mode="w", format=tarfile.GNU_FORMAT)
        self.seen = set()

    def parents(self, dest):
        parts = dest.strip("/").split("/")[:-1]
        for i in range(len(parts)):
            self.folder("/".join(parts[: i + 1]))

    def folder(self, dest, mode=0o755):
        name = dest.strip("/")
        if not name or name in self.seen:
            return
        self.parents(name)
        self.seen.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.tar.addfile(info)

    def link(self, dest, target):
        name = dest.strip("/")
        if name in self.seen:
            return
        self.parents(name)
        self.seen.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self.tar.addfile(info)

    def file(self, src, dest):
        name = dest.strip("/")
        if name in self.seen:
            return
        self.parents(name)
        self.seen.add(name)
        src = os.path.realpath(src)
        info = tarfile.TarInfo(name)
        info.size, info.mode = os.path.getsize(src), os.stat(src).st_mode & 0o7777
        with open(src, "rb") as f:
            self.tar.addfile(info, f)

    def tree(self, src, dest):
        for at, dirs, files in os.walk(src):
            rel = os.path.join(dest, os.path.relpath(at, src))
            self.folder(os.path.normpath(rel))
            for f in files:
                p = os.path.join(at, f)
                if os.path.islink(p):
                    self.link(os.path.normpath(os.path.join(rel, f)), os.readlink(p))
                elif os.path.isfile(p):
                    self.file(p, os.path.normpath(os.path.join(rel, f)))

    def bytes(self):
        self.tar.close()
        return self.buf.getvalue()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("ref")
    ap.add_argument("items", nargs="*")
    ap.add_argument("--entrypoint", action="append", default=[])
    ap.add_argument("--env", action="append", default=[])
    a = ap.parse_intermixed_args()

    layer = Layer()
    for item in a.items:
        if "->" in item:
            dest, target = item.split("->", 1)
            layer.link(dest, target)
        elif item.endswith("/") and ":" not in item:
            layer.folder(item, 0o1777 if item.strip("/") == "tmp" else 0o755)
        else:
            src, dest = item.split(":", 1)
            libs = src.startswith("+")
            src = src.lstrip("+")
            (layer.tree if os.path.isdir(src) else layer.file)(src, dest)
            for lib in libraries(src) if libs else []:
                layer.file(lib, lib)
    raw = layer.bytes()
    packed = gzip.compress(raw, 1, mtime=0)

    blobs = {}

    def blob(data, kind):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    oci = "application/vnd.oci.image."
    config = {
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"] + a.env,
                   "Entrypoint": a.entrypoint or None},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest()]},
        "history": [{"created_by": "make-image.py"}],
    }
    manifest = {
        "schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
        "config": blob(json.dumps(config).encode(), oci + "config.v1+json"),
        "layers": [blob(packed, oci + "layer.v1.tar+gzip")],
    }
    entry = blob(json.dumps(manifest).encode(), oci + "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": a.ref,
                            "org.opencontainers.image.ref.name": a.ref.rsplit(":", 1)[-1]}
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    index = {"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": [entry]}

    with tarfile.open(a.out, "w") as tar:
        def put(name, data):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
        put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        put("index.json", json.dumps(index).encode())
        for digest, data in blobs.items():
            put("blobs/" + digest.replace(":", "/"), data)
    print(f"{a.ref}: {os.path.getsize(a.out)} bytes")


main()
