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
# What was inherited from the job that submitted this one, or from this job's first node, is not the user's.
[ "${AWS_ENDPOINT_URL_S3:-}" != "${WARPDRIVE_S3:-}" ] || unset AWS_ENDPOINT_URL_S3
case ${AWS_SHARED_CREDENTIALS_FILE:-} in "$WARPDRIVE_RUN"/jobs/*) unset AWS_SHARED_CREDENTIALS_FILE ;; esac
# A key of the user's own is for another endpoint: at ours it would only be turned away.
own=
for name in AWS_ACCESS_KEY_ID AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SHARED_CREDENTIALS_FILE \
  AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_CREDENTIALS_RELATIVE_URI \
  AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3; do
  [ -z "${!name:-}" ] || own=$name
done
while IFS='=' read -r name value; do
  case $name in AWS_*) [ -z "$own${!name:-}" ] || continue ;; esac
  echo "export $name=$value"
done <"$directory/environment"
case $own in
  '' | AWS_ENDPOINT_URL*) ;;
  *)
    [ "${SLURM_PROCID:-0}" != 0 ] ||
      echo "print warpdrive: $own is set, so S3 is left as it is; without it S3 is served from the cache"
    ;;
esac
exit 0
