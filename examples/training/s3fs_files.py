"""The S3 endpoint through fsspec: s3fs as a file system, which pandas, dask and others use below.

    python s3fs_files.py s3://train/logs --write s3://runs/example/summary.json

s3fs takes endpoint, region and credentials from the environment, like boto3.
"""

import argparse
import json

import fsspec


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="s3://train/logs")
    parser.add_argument("--write", default="s3://runs/example/summary.json")
    options = parser.parse_args()

    files, folder = fsspec.core.url_to_fs(options.folder)
    lines, size = 0, 0
    for path in sorted(files.find(folder)):
        size += files.size(path)
        # Read in blocks; each is a range that the sidecar answers from its cache or fetches once.
        with files.open(path, "rb", block_size=1 << 20) as file:
            lines += sum(1 for _ in file)
    print(f"{lines} lines in {size} bytes")

    with fsspec.open(options.write, "w") as file:
        json.dump({"lines": lines, "bytes": size}, file)
    with fsspec.open(options.write, "r") as file:
        print(f"wrote {json.load(file)}")


if __name__ == "__main__":
    main()
