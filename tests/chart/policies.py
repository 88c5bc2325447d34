"""The policies in charts/warpdrive/files: what `warpdrive inject --policy` prints for each mode, with marks in
the places that the chart fills in. `python tests/chart/policies.py` writes them anew.
"""

import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("WARPDRIVE_BIN", ROOT / "target/debug/warpdrive"))
FOLDER = ROOT / "charts/warpdrive/files/policy"
MODES = ("sidecar", "csi", "s3")
# Sizes that nobody has: where they stand in the text, the chart puts a release's own.
SETTINGS = "image: IMAGE\nimage_pull_policy: IfNotPresent\nannotations: {mode: MODE, cache-size: 7777Gi, memory: 7777Mi}\n"


def printed(settings, *arguments):
    """What the program prints for a settings file."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings)
        file.flush()
        done = subprocess.run(
            [PROGRAM, "inject", "--policy", "--defaults", file.name, *arguments], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def marked(mode):
    return printed(SETTINGS.replace("MODE", mode))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in MODES:
        (FOLDER / f"{each}.yaml").write_text(marked(each))
