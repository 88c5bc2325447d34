#!/usr/bin/env bash
# TaskProlog of Slurm (as the job's user, before each task): where the data is. Lines that begin with
# `export` become the task's environment, `print` its output.
#
# What the user has set is left alone. Where the prolog said why the job cannot run, its task fails with that.
set -uo pipefail
# shellcheck source=common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"
if [ -r "$directory/failed" ]; then
  echo "print warpdrive: $(head -n 1 "$directory/failed")"
  exit 1
fi
[ -r "$directory/environment" ] || exit 0
while IFS='=' read -r name value; do
  [ -z "${!name:-}" ] || continue
  if [ "$name" = AWS_SHARED_CREDENTIALS_FILE ]; then
    # A key of the user's own, for another endpoint perhaps, wins.
    [ -z "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}${AWS_ENDPOINT_URL_S3:-}" ] || continue
  fi
  echo "export $name=$value"
done <"$directory/environment"
exit 0
