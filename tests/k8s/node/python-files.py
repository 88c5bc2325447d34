#!/usr/bin/env python3
"""Prints what the image of a Python with boto3 is made of, one argument of make-image.py a line.

    python-files.py FOLDER

Run by the interpreter that is copied. FOLDER receives a copy of its library without tests, and of
boto3 with what it imports; of botocore's descriptions of services only those that the tests call.
"""
import os
import shutil
import sys
import sysconfig

PACKAGES = ["boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six.py"]
SERVICES = {"s3", "sts"}
UNUSED = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages",
          "dist-packages", "__pycache__", "pydoc_data"}


def main():
    out = sys.argv[1]
    standard = sysconfig.get_path("stdlib")
    packages = sysconfig.get_path("purelib")

    def unwanted(folder, names):
        if os.path.basename(folder) == "data" and os.path.dirname(folder).endswith("botocore"):
            return [n for n in names if os.path.isdir(os.path.join(folder, n)) and n not in SERVICES]
        return [n for n in names if n in UNUSED or n.startswith("config-") or n.endswith(".a")]

    library = os.path.join(out, "lib")
    shutil.copytree(standard, library, ignore=unwanted, symlinks=True)
    site = os.path.join(out, "site")
    os.makedirs(site)
    for name in PACKAGES:
        source = os.path.join(packages, name)
        if os.path.isdir(source):
            shutil.copytree(source, os.path.join(site, name), ignore=unwanted)
        else:
            shutil.copy(source, site)
    interpreter = os.path.realpath(sys.executable)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    print(f"+{interpreter}:/usr/bin/{version}")
    print(f"/usr/bin/python3->{version}")
    print(f"{library}:/usr/lib/{version}")
    # Where an interpreter that was built elsewhere looks: beside its own place, then in its PYTHONPATH.
    print(f"{site}:/opt/site")
    print("--env")
    print("PYTHONHOME=/usr")
    print("--env")
    print("PYTHONPATH=/opt/site")
    # What the interpreter's extension modules need beyond its own libraries.
    seen = set()
    dynamic = os.path.join(library, "lib-dynload")
    for name in sorted(os.listdir(dynamic)):
        import re
        import subprocess
        text = subprocess.run(["ldd", os.path.join(dynamic, name)], capture_output=True, text=True).stdout
        for path in re.findall(r"=> (/\S+) \(0x", text):
            if path not in seen:
                seen.add(path)
                print(f"{path}:{path}")


main()
