#!/usr/bin/env bash
# Epilog of Slurm (as root, on each node, however the job ended): what is in flight is finished, the mount is
# taken away, and nothing of the job's stays. May run again, and where there was no prolog.
#
# Exit status 0, or 1 where a process or a mount cannot be removed: Slurm then drains the node, and
# somebody should look before the next job comes.
set -uo pipefail
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"
clean
