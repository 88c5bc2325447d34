"""Scan a parquet data set with pyarrow: some columns, some rows, a sum for each group.

    python parquet_scan.py /data/train/events           through the mount
    python parquet_scan.py s3://train/events            through the S3 endpoint, from the environment

Only the footers and the column chunks that the query needs are fetched, merged into few requests;
both forms share what is cached. Over S3 `pre_buffer` lets pyarrow ask for a row group's columns at
once; through a mount the kernel and the sidecar read ahead by themselves.
"""

import argparse

import pyarrow.dataset as ds
import pyarrow.fs as fs


def open_dataset(address: str) -> ds.Dataset:
    over_s3 = address.startswith("s3://")
    # By address, not by `S3FileSystem(...)`: only this way pyarrow reads AWS_ENDPOINT_URL_S3.
    filesystem, path = fs.FileSystem.from_uri(address)
    scan = ds.ParquetFragmentScanOptions(pre_buffer=over_s3)
    form = ds.ParquetFileFormat(default_fragment_scan_options=scan)
    return ds.dataset(path, filesystem=filesystem, format=form)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="/data/train/events")
    parser.add_argument("--at-least", type=float, default=0.5, help="rows with a smaller score are left out")
    options = parser.parse_args()

    events = open_dataset(options.data)
    wanted = events.to_table(columns=["label", "score"], filter=ds.field("score") >= options.at_least)
    groups = wanted.group_by("label").aggregate([("score", "sum"), ("score", "count")]).sort_by("label")
    print(f"{len(events.files)} files, {wanted.num_rows} of {events.count_rows()} rows")
    for row in groups.to_pylist():
        print(f"label {row['label']}: {row['score_count']} rows, sum {row['score_sum']:.3f}")


if __name__ == "__main__":
    main()
