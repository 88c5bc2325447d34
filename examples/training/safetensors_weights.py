"""Load model weights from safetensors files, some tensors or all of them.

    python safetensors_weights.py --model /data/train/models/tiny --only 'layers.0.*'

`safe_open` maps the file and touches only the tensors that are asked for: through the mount that is
a header and the ranges of those tensors. Once a file is whole in the cache the kernel serves the
mapping by itself, and all processes of the pod share its pages.
"""

import argparse
import fnmatch
import pathlib

from safetensors import safe_open


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="/data/train/models/tiny", help="a folder with *.safetensors")
    parser.add_argument("--only", default="*", help="a pattern of tensor names")
    parser.add_argument("--framework", default="pt", choices=["pt", "np"], help="torch or numpy arrays")
    options = parser.parse_args()

    tensors = numbers = 0
    total = 0.0
    for file in sorted(pathlib.Path(options.model).glob("*.safetensors")):
        with safe_open(file, framework=options.framework) as weights:
            for name in fnmatch.filter(sorted(weights.keys()), options.only):
                tensor = weights.get_tensor(name)
                tensors += 1
                numbers += tensor.size if options.framework == "np" else tensor.numel()
                total += float(tensor.sum())
    print(f"{tensors} tensors, {numbers} numbers, sum {total:.1f}")


if __name__ == "__main__":
    main()
