# Shared by prolog.sh, epilog.sh and task-prolog.sh. Sourced.
#
# Everything of a job lies below one directory, $WARPDRIVE_RUN/jobs/JOBID:
#   mount/data    the mount; mount/ lets only the job's user through
#   holder/       the socket of `warpdrive mountd`, by which the job's processes are known
#   worker/       state_dir and admin socket of `warpdrive run`; its user's, so root neither reads nor
#                 writes there
#   credentials   the S3 key of this job, for its user
#   environment   what task-prolog.sh tells the job
#   failed        why there is nothing to tell
# Whatever is there, epilog.sh takes it away; it does not need to know how far prolog.sh came. What both
# processes say is kept beyond that, on disk: $WARPDRIVE_CACHE/logs/JOBID.log and, before it, .log.old.

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=settings
. "$here/settings"
job=${SLURM_JOB_ID:?is set by Slurm}
case $job in *[!0-9]*) echo "warpdrive: job id '$job' is no number" >&2; exit 1 ;; esac
directory=$WARPDRIVE_RUN/jobs/$job
mount_point=$directory/mount/data
socket=$directory/holder/mount.sock
admin=unix:$directory/worker/admin.sock
job_cache=$WARPDRIVE_CACHE/jobs/$job
node_cache=$WARPDRIVE_CACHE/node
log=$WARPDRIVE_CACHE/logs/$job.log

say() { echo "warpdrive: job $job: $*" >&2; }

# Process ids of this job's holder, or of its worker and its supervisor: those that were started with
# this job's socket, by the user that runs them: anybody can name a process as he likes. A restarted
# worker is found as well, and no number is believed that was written down.
processes() { # mountd|run
  local file id user=0
  [ "$1" = mountd ] || user=$(id -u "$WARPDRIVE_USER" 2>/dev/null)
  while read -r file; do
    id=${file#/proc/}
    id=${id%/cmdline}
    # It may end at any moment.
    [ "$({ tr '\0' '\n' <"$file"; } 2>/dev/null | sed -n 2p)" = "$1" ] &&
      [ "$(awk '$1 == "Uid:" { print $2 }' "/proc/$id/status" 2>/dev/null)" = "$user" ] && echo "$id"
  done < <(grep -lszxF -- "$socket" /proc/[0-9]*/cmdline)
  return 0
}

# Asks processes to stop, and ends those that have not after so many seconds.
stop() { # mountd|run SECONDS
  local ids waited
  ids=$(processes "$1")
  [ -n "$ids" ] || return 0
  # shellcheck disable=SC2086 # a list of numbers
  kill -TERM $ids 2>/dev/null
  for ((waited = 0; waited < $2 * 10; waited++)); do
    ids=$(processes "$1")
    [ -n "$ids" ] || return 0
    sleep 0.1
  done
  say "warpdrive $1 (process ${ids//$'\n'/, }) has not ended after $2 s and is killed"
  # shellcheck disable=SC2086
  kill -KILL $ids 2>/dev/null
  for ((waited = 0; waited < 50; waited++)); do
    [ -n "$(processes "$1")" ] || return 0
    sleep 0.1
  done
  say "warpdrive $1 cannot be killed: its disk or its kernel hangs"
  return 1
}

# Keeps the logs of so many jobs that have ended, the newest.
forget_logs() {
  local file
  while read -r file; do
    [ -d "$WARPDRIVE_RUN/jobs/$(basename "$file" .log)" ] || rm -f -- "$file" "$file.old"
  done < <(find "$WARPDRIVE_CACHE/logs" -name '*.log' -printf '%T@ %p\n' 2>/dev/null |
    sort -rn | tail -n "+$((WARPDRIVE_LOGS + 1))" | cut -d ' ' -f 2-)
  return 0
}

is_mounted() { grep -qF -- " $mount_point " /proc/self/mounts; }

# Takes away all that this job has here. Idempotent; within WARPDRIVE_STOP_SECONDS and a quarter of a
# minute. False where something is left: the node needs somebody.
clean() {
  local tries left=0
  # From here the job's user cannot put anything else where the mount is.
  chown root "$directory/mount" 2>/dev/null
  stop run "$WARPDRIVE_STOP_SECONDS" || left=1
  stop mountd 10 || left=1
  for ((tries = 0; tries < 5; tries++)); do
    is_mounted || break
    timeout 5 umount -l -- "$mount_point" 2>/dev/null
  done
  if is_mounted; then
    say "$mount_point cannot be unmounted"
    return 1
  fi
  # Before the directory, without which another job may take it: this one could then take it away again.
  if [ "$(cat "$node_cache.job" 2>/dev/null)" = "$job" ]; then rm -f -- "$node_cache.job"; fi
  # Never into a mount, whatever happened above. The node's cache stays.
  rm -rf --one-file-system -- "$directory" "$job_cache" 2>/dev/null || left=1
  forget_logs
  return $left
}
