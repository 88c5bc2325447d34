"""examples/slurm under a real Slurm: jobs through the real prolog, task prolog and epilog."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conftest
import harness
import machine
import pytest
import slurm

MIB = 1 << 20
ORIGIN = "versitygw"
NEEDED = (("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("sbatch", "slurm-wlm"), ("munged", "munge"))


@pytest.fixture(scope="module")
def cluster(origins):
    conftest.need(*NEEDED)
    for reason in (slurm.why_not(), origins.skipped.get(ORIGIN)):
        if reason:
            pytest.skip(reason)
    for number in range(4):
        origins.put(ORIGIN, f"slurm/{number}.bin", harness.content(MIB + number, number))
    wanted = {
        "cache": {"stale_ttl": "1s"},
        "backends": [harness.backend("train", ORIGIN, origins)],
    }
    running = slurm.Slurm(json.dumps(wanted), machine.environment_file(origins))
    yield running
    running.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    yield
    if "cluster" in request.fixturenames:
        running = request.getfixturevalue("cluster")
        # srun comes back before the epilog.
        left = lambda: running.left() + list((running.run / "jobs").glob("*"))
        running.wait(lambda: not left(), f"nothing left of it: {left()}", 30)
        assert running.node_state().startswith(("IDLE", "MIXED", "ALLOC")), running.node_state()


def digests():
    return {f"{number}.bin": harness.sha256(harness.content(MIB + number, number)) for number in range(4)}


def boto3_for_everybody(folder):
    """Unmodified boto3 where the job's user can read it: this environment may be root's alone."""
    pytest.importorskip("boto3")
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no /usr/bin/python3 that a job could run")
    folder.mkdir()
    for name in ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3"):
        package = Path(importlib.import_module(name).__file__).parent
        shutil.copytree(package, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(importlib.import_module("six").__file__, folder)
    return folder


def test_a_job_reads_through_mount_and_s3(cluster):
    packages = boto3_for_everybody(cluster.folder / "packages")
    read = (
        "import hashlib, os, urllib.request, boto3\n"
        "s3 = boto3.client('s3')\n"
        "for o in s3.list_objects_v2(Bucket='train', Prefix='slurm/')['Contents']:\n"
        "    print('s3', o['Key'], hashlib.sha256(s3.get_object(Bucket='train', Key=o['Key'])['Body'].read()).hexdigest())\n"
        "s3.put_object(Bucket='train', Key='out/result', Body=b'made by the job')\n"
    )
    script = (
        'cd "$WARPDRIVE_DATA/train/slurm" && sha256sum *.bin\n'
        f"PYTHONPATH={packages} /usr/bin/python3 -B - <<'END'\n{read}END\n"
        'ls -l "$AWS_SHARED_CREDENTIALS_FILE"; id -un\n'
    )
    number = cluster.submit(script)
    state, said = cluster.ended(number), cluster.said(number)
    assert state == "COMPLETED", said + cluster.logs()
    for name, digest in digests().items():
        assert f"{digest}  {name}" in said, said
        assert f"s3 slurm/{name} {digest}" in said, said
    assert "-r-------- 1 nobody" in said, "a key of its own, for nobody else"


def test_srun_gets_the_environment_as_well(cluster):
    done = cluster.command(
        "srun", f"--uid={slurm.JOB_USER}", "--chdir=/", "--partition=main",
        "sh", "-c", 'cat "$WARPDRIVE_DATA/train/slurm/0.bin" | sha256sum; echo "$AWS_ENDPOINT_URL_S3"',
    )
    assert digests()["0.bin"] in done and "http://127.0.0.1:" in done, done


def test_what_the_job_wrote_is_at_the_origin_when_it_has_ended(cluster, origins):
    assert origins.get(ORIGIN, "out/result") == b"made by the job"


def test_what_the_user_has_set_stays(cluster):
    number = cluster.submit(
        'echo "$AWS_ENDPOINT_URL_S3 $AWS_REGION ${AWS_SHARED_CREDENTIALS_FILE-none}"\n',
        "--export=ALL,AWS_ENDPOINT_URL_S3=http://elsewhere:1,AWS_REGION=eu-west-9",
    )
    assert cluster.ended(number) == "COMPLETED", cluster.logs()
    assert cluster.said(number).split() == ["http://elsewhere:1", "eu-west-9", "none"]


@pytest.mark.parametrize("own", ["AWS_ACCESS_KEY_ID=mine", "AWS_PROFILE=mine", "AWS_WEB_IDENTITY_TOKEN_FILE=/mine"])
def test_a_key_of_the_user_is_not_taken_to_our_endpoint(cluster, own):
    number = cluster.submit(
        'echo "$WARPDRIVE_DATA"; env | grep ^AWS_ | sort\n', f"--export=ALL,{own}"
    )
    assert cluster.ended(number) == "COMPLETED", cluster.logs()
    said = cluster.said(number).splitlines()
    assert f"warpdrive: {own.partition('=')[0]} is set, so S3 is left as it is" in said[0]
    assert said[1:] == [str(cluster.directory(number) / "mount/data"), own]


def test_what_another_job_or_node_was_told_is_replaced(cluster):
    elsewhere = "http://127.0.0.1:1"
    inherited = {
        "WARPDRIVE_DATA": "/old", "WARPDRIVE_S3": elsewhere, "AWS_ENDPOINT_URL_S3": elsewhere,
        "AWS_SHARED_CREDENTIALS_FILE": cluster.run / "jobs/1/credentials",
    }
    number = cluster.submit(
        'echo "$WARPDRIVE_DATA $AWS_ENDPOINT_URL_S3 $AWS_SHARED_CREDENTIALS_FILE"\n',
        "--export=ALL," + ",".join(f"{name}={value}" for name, value in inherited.items()),
    )
    assert cluster.ended(number) == "COMPLETED", cluster.logs()
    mount, endpoint, key = cluster.said(number).split()
    assert mount == str(cluster.directory(number) / "mount/data")
    assert endpoint != elsewhere and endpoint.startswith("http://127.0.0.1:")
    assert key == str(cluster.directory(number) / "credentials")


def test_other_users_see_nothing_of_a_job(cluster):
    number = cluster.submit('echo up; sleep 60\n')
    cluster.wait(lambda: "up" in cluster.said(number), "the job")
    directory = cluster.directory(number)
    paths = ("mount/data/train/slurm/0.bin", "credentials", "worker/credentials")
    for path in [cluster.log(number), *(directory / path for path in paths)]:
        assert path.exists(), path
        done = subprocess.run(
            ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "cat", str(path)],
            capture_output=True, timeout=20,
        )
        assert done.returncode != 0 and not done.stdout, path
    cluster.command("scancel", str(number))
    assert cluster.ended(number) == "CANCELLED"


def test_two_jobs_on_the_node_are_apart(cluster):
    script = 'echo "$WARPDRIVE_DATA $AWS_ENDPOINT_URL_S3"; cat "$WARPDRIVE_DATA/train/slurm/1.bin" | sha256sum; sleep 3\n'
    numbers = [cluster.submit(script, "--cpus-per-task=1") for _ in range(2)]
    for number in numbers:
        assert cluster.ended(number) == "COMPLETED", cluster.said(number) + cluster.logs()
    said = [cluster.said(number).split() for number in numbers]
    assert said[0][0] != said[1][0] and said[0][1] != said[1][1]
    assert all(digests()["1.bin"] in words for words in said)


def test_a_partition_that_is_not_named_has_no_mount(cluster):
    number = cluster.submit('echo "${WARPDRIVE_DATA-none}"\n', partition="plain")
    assert cluster.ended(number) == "COMPLETED"
    assert cluster.said(number).strip() == "none"


def test_a_cancelled_job_leaves_nothing(cluster):
    number = cluster.submit('exec 3<"$WARPDRIVE_DATA/train/slurm/2.bin"; cd "$WARPDRIVE_DATA"; echo up; sleep 600\n')
    cluster.wait(lambda: "up" in cluster.said(number), "the job")
    assert len(cluster.left(number)) >= 4, "supervisor, worker, holder and mount"
    cluster.command("scancel", str(number))
    assert cluster.ended(number) == "CANCELLED"


def test_a_worker_that_is_killed_is_not_noticed_by_the_job(cluster):
    script = (
        'echo up; for i in $(seq 60); do sha256sum < "$WARPDRIVE_DATA/train/slurm/$((i % 4)).bin" || exit 9; '
        "sleep 0.1; done | sort | uniq -c; exit ${PIPESTATUS[0]}\n"
    )
    number = cluster.submit(script)
    cluster.wait(lambda: "up" in cluster.said(number), "the job")
    for _ in range(3):
        time.sleep(1)
        runs = cluster.processes_of(number, "run")
        # The supervisor is the parent of the worker.
        worker = next(pid for pid in runs if parent(pid) in runs)
        os.kill(worker, signal.SIGKILL)
    state, said = cluster.ended(number), cluster.said(number)
    assert state == "COMPLETED", said + cluster.logs()
    assert {line.split()[1] for line in said.splitlines()[1:]} == set(digests().values()), said


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("who", ["run", "mountd", "both"])
def test_the_epilog_cleans_up_after_kill_9_of_the_sidecar(cluster, who):
    number = cluster.submit('echo up; sleep 3; exit 0\n')
    cluster.wait(lambda: "up" in cluster.said(number), "the job")
    for command in ("run", "mountd") if who == "both" else (who,):
        for pid in cluster.processes_of(number, command):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert cluster.ended(number) == "COMPLETED", cluster.logs()
    # Nothing left: `nothing_is_left` looks.


def test_an_origin_that_is_down_fails_the_job_with_the_reason_and_not_the_node(cluster, origins):
    origins.act(ORIGIN, "stop")
    try:
        number = cluster.submit("echo must not run\n", "--no-requeue")
        state = cluster.ended(number)
    finally:
        origins.act(ORIGIN, "restart")
    assert state == "FAILED", cluster.said(number) + cluster.logs()
    said = cluster.said(number)
    assert "must not run" not in said
    assert "origins do not answer after 4 s" in said and "train" in said, said
    assert "DRAIN" not in cluster.node_state()


def test_an_origin_that_comes_back_in_time_is_waited_for(cluster, origins):
    cluster.settings(WARPDRIVE_ORIGIN_SECONDS=40)
    origins.act(ORIGIN, "stop")
    try:
        number = cluster.submit('cat "$WARPDRIVE_DATA/train/slurm/3.bin" | sha256sum\n')
        cluster.wait(lambda: cluster.processes_of(number, "run"), "the prolog")
        time.sleep(4)
        assert cluster.said(number) == "", "it has not begun"
    finally:
        origins.act(ORIGIN, "restart")
        cluster.settings(WARPDRIVE_ORIGIN_SECONDS=4)
    assert cluster.ended(number) == "COMPLETED", cluster.said(number) + cluster.logs()
    assert digests()["3.bin"] in cluster.said(number)


def test_an_origin_that_is_down_puts_the_job_back_where_that_is_wanted(cluster, origins):
    cluster.settings(WARPDRIVE_WITHOUT_ORIGIN="requeue")
    origins.act(ORIGIN, "stop")
    try:
        number = cluster.submit('cat "$WARPDRIVE_DATA/train/slurm/3.bin" | sha256sum\n')
        cluster.wait(lambda: cluster.job(number).get("Priority") == "0", "a held job", 60)
        cluster.wait(lambda: cluster.state(number) == "PENDING", "a job that waits")
        shown = cluster.command("scontrol", "show", "job", str(number))
        assert "warpdrive: origins do not answer" in shown, shown
        cluster.wait(lambda: "DRAIN" not in cluster.node_state() and not cluster.left(), "the node is free")
    finally:
        origins.act(ORIGIN, "restart")
        cluster.settings(WARPDRIVE_WITHOUT_ORIGIN="fail")
    cluster.release(number)
    assert cluster.ended(number) == "COMPLETED", cluster.said(number) + cluster.logs()
    assert digests()["3.bin"] in cluster.said(number), cluster.said(number) + cluster.logs()


def test_a_wrong_configuration_fails_the_job_with_the_reason(cluster):
    good = cluster.configuration.read_text()
    cluster.configuration.write_text(json.dumps(json.loads(good) | {"mountpoint": "/x"}))
    try:
        number = cluster.submit("echo must not run\n", "--no-requeue")
        state = cluster.ended(number)
    finally:
        cluster.configuration.write_text(good)
    said = cluster.said(number)
    assert state == "FAILED" and "must not run" not in said, said
    assert "the configuration cannot be used" in said, said


def test_a_node_that_cannot_mount_is_drained_and_the_job_waits(cluster):
    cluster.settings(WARPDRIVE_PROGRAM="/nonexistent/warpdrive")
    try:
        number = cluster.submit('cat "$WARPDRIVE_DATA/train/slurm/0.bin" | sha256sum\n')
        cluster.wait(lambda: "DRAIN" in cluster.node_state(), "a drained node")
        cluster.wait(lambda: cluster.state(number) == "PENDING", "the job waits")
        assert "/nonexistent/warpdrive is not there" in (cluster.folder / "slurmd.log").read_text()
    finally:
        cluster.settings(WARPDRIVE_PROGRAM=cluster.program)
        cluster.command("scontrol", "update", f"nodename={cluster.host}", "state=resume")
    cluster.release(number)
    assert cluster.ended(number) == "COMPLETED", cluster.said(number) + cluster.logs()


def epilog(cluster, number):
    return subprocess.run(
        [str(cluster.scripts / "epilog.sh")], env={"SLURM_JOB_ID": str(number), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=60,
    )


def test_the_epilog_may_run_again_and_where_there_was_no_prolog(cluster):
    for number in (999_999, 999_999):
        done = epilog(cluster, number)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def prolog_of(cluster, number):
    environment = {
        "SLURM_JOB_ID": str(number), "SLURM_JOB_UID": "65534", "SLURM_JOB_PARTITION": "main", "PATH": os.environ["PATH"],
    }
    return subprocess.Popen(
        [str(cluster.scripts / "prolog.sh")], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_prolog_that_is_killed_half_way_is_cleaned_up_after(cluster):
    prolog = prolog_of(cluster, 888888)
    cluster.wait(lambda: cluster.processes_of(888888, "mountd"), "the holder", 20)
    prolog.kill()
    prolog.wait(10)
    assert cluster.left(888888)
    done = epilog(cluster, 888888)
    assert done.returncode == 0, done.stderr


def test_the_cache_of_a_node_stays_for_its_next_job(cluster):
    cluster.settings(WARPDRIVE_CACHE_OF="node")
    try:
        script = 'cat "$WARPDRIVE_DATA"/train/slurm/*.bin | wc -c; sleep 1\n'
        for _ in range(2):
            number = cluster.submit(script)
            assert cluster.ended(number) == "COMPLETED", cluster.said(number) + cluster.logs()
            held = sum(path.stat().st_size for path in (cluster.cache / "node").rglob("*") if path.is_file())
            assert held > 4 * MIB, "it is still there"
        assert not (cluster.cache / "node.job").exists()
    finally:
        cluster.settings(WARPDRIVE_CACHE_OF="job")


def test_a_prolog_that_fails_leaves_the_cache_of_the_node(cluster, origins):
    kept = cluster.cache / "node/kept"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("of the job before")
    cluster.settings(WARPDRIVE_CACHE_OF="node")
    origins.act(ORIGIN, "stop")
    try:
        number = cluster.submit("echo must not run\n", "--no-requeue")
        assert cluster.ended(number) == "FAILED", cluster.said(number) + cluster.logs()
    finally:
        origins.act(ORIGIN, "restart")
        cluster.settings(WARPDRIVE_CACHE_OF="job")
    assert kept.read_text() == "of the job before"
    assert not (cluster.cache / "node.job").exists()


def test_one_job_at_a_time_has_the_cache_of_the_node(cluster):
    numbers = (888801, 888802)
    cluster.settings(WARPDRIVE_CACHE_OF="node")
    try:
        # Both are between the choice and what follows at the same time.
        with cluster.with_shell('install() { sleep 0.5; command install "$@"; }\n'):
            prologs = [prolog_of(cluster, number) for number in numbers]
            said = [prolog.communicate(timeout=60)[1] for prolog in prologs]
        assert [prolog.returncode for prolog in prologs] == [0, 0], said
        with_the_nodes = [
            number for number in numbers
            if f"cache.path={cluster.cache}/node".encode() in
            Path(f"/proc/{cluster.processes_of(number, 'run')[0]}/cmdline").read_bytes().split(b"\0")
        ]
        assert len(with_the_nodes) == 1, with_the_nodes
    finally:
        cluster.settings(WARPDRIVE_CACHE_OF="job")
        for number in numbers:
            done = epilog(cluster, number)
            assert done.returncode == 0, done.stderr


def test_a_process_of_another_user_that_calls_itself_the_sidecar_is_left_alone(cluster):
    number = 888803
    folder = cluster.folder / "forged"
    folder.mkdir()
    for name in ("run", "mountd"):
        (folder / name).write_text("trap '' TERM\nwhile :; do sleep 1; done\n")
    others = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "sh"]
    mark = str(cluster.directory(number) / "holder/mount.sock")
    forged = [
        subprocess.Popen([*others, name, mark], cwd=folder, preexec_fn=harness.die_with_parent)
        for name in ("run", "mountd")
    ]
    try:
        for name in ("run", "mountd"):
            cluster.wait(lambda: cluster.processes_of(number, name), name)
        done = epilog(cluster, number)
        assert (done.returncode, done.stderr) == (0, "")
        assert [process.poll() for process in forged] == [None, None], "not ours to end"
    finally:
        for process in forged:
            process.kill()
            process.wait(5)


def test_root_follows_no_link_of_the_worker(cluster):
    secret = cluster.folder / "secret"
    secret.write_text("root's alone")
    secret.chmod(0o600)
    number = 888804
    # The worker, taken over by somebody, changes its file just before root hands it on.
    swap = f"ln -sf {secret} {cluster.directory(number)}/worker/credentials 2>/dev/null"
    programs = "".join(f'{name}() {{ {swap}; command {name} "$@"; }}\n' for name in ("install", "umask"))
    try:
        with cluster.with_shell(programs):
            prolog = prolog_of(cluster, number)
            _, said = prolog.communicate(timeout=60)
        assert prolog.returncode == 1 and "the key cannot be written" in said, said
        assert not cluster.directory(number).exists()
    finally:
        assert epilog(cluster, number).returncode == 0


def test_root_mounts_at_no_link_of_the_user(cluster):
    number = 888805
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir()
    mount = cluster.directory(number) / "mount"
    swap = f"rmdir {mount}/data && ln -s {elsewhere} {mount}/data"
    as_the_user = f"setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '{swap}' 2>/dev/null"
    try:
        # Another job of the user's is on the node, and waits for the moment before the mount.
        with cluster.with_shell(f'setsid() {{ {as_the_user}; command setsid "$@"; }}\n'):
            prolog = prolog_of(cluster, number)
            _, said = prolog.communicate(timeout=60)
        assert os.path.ismount(mount / "data") and not os.path.ismount(elsewhere), said
        assert prolog.returncode == 0, said
        assert mount.stat().st_uid == 65534, "the user reads it"
    finally:
        assert epilog(cluster, number).returncode == 0


def test_the_logs_of_the_newest_jobs_stay_and_are_bounded(cluster):
    cluster.settings(WARPDRIVE_LOGS=2)
    try:
        numbers = []
        for _ in range(3):
            numbers.append(cluster.submit("exit 3\n"))
            assert cluster.ended(numbers[-1]) == "FAILED", cluster.logs()
        assert not cluster.log(numbers[0]).exists()
        for number in numbers[1:]:
            assert "AWS_ENDPOINT_URL_S3" in cluster.log(number).read_text()
    finally:
        cluster.settings(WARPDRIVE_LOGS=32)


def test_a_log_keeps_its_newest_part(cluster, tmp_path):
    script = (slurm.SCRIPTS / "prolog.sh").read_text()
    reader = script.partition("bash -c '")[2].partition("' log ")[0]
    log = tmp_path / "1.log"
    lines = b"".join(b"%015d\n" % number for number in range(13 << 16))  # 13 MiB
    subprocess.run(["bash", "-c", reader, "log", str(log)], input=lines, check=True, timeout=60)
    assert (tmp_path / "1.log.old").read_bytes() + log.read_bytes() == lines[8 << 20:]
    # A disk that is full does not hold up who writes.
    subprocess.run(["bash", "-c", reader, "log", "/dev/full"], input=lines, check=True, timeout=60, capture_output=True)


def test_a_session_that_is_stopped_leaves_nothing(origins):
    folder = Path(tempfile.mkdtemp(prefix="warpdrive-stopped-"))
    folder.chmod(0o711)

    def left():
        """What processes there are, by id, and mounts, by mount point."""
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        found = {mount: "mount" for mount in mounts if str(folder) in mount}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(str(folder) in word for word in words):
                    found[int(process.name)] = words
        return found

    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider",
         "-k", "test_a_worker_that_is_killed_is_not_noticed_by_the_job"],
        env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=harness.die_with_parent,
    )
    try:
        deadline = time.monotonic() + 90
        while not any("--supervise" in words for words in left().values()):
            assert session.poll() is None and time.monotonic() < deadline, left()
            time.sleep(0.1)
        session.send_signal(signal.SIGTERM)
        said, _ = session.communicate(timeout=60)
        assert "KeyboardInterrupt" in said, said
        # What was told to end may take a moment.
        deadline = time.monotonic() + 10
        while left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left() == {}
    finally:
        session.kill()
        session.wait(10)
        for found in left():
            if isinstance(found, int):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found, signal.SIGKILL)
            else:
                subprocess.run(["umount", "-l", found], check=False, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("script", sorted(path.name for path in slurm.SCRIPTS.glob("*.sh")))
def test_the_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", str(slurm.SCRIPTS / script)], check=True, timeout=20)


def playbook(*arguments, timeout=180):
    """Runs ansible-playbook of tests/install on this machine."""
    tools = os.environ.get("WARPDRIVE_TOOLS") or subprocess.run(
        [str(conftest.ROOT / "tests/install"), "--where"], capture_output=True, text=True, check=True
    ).stdout.strip()
    program = Path(tools) / "py-ansible/bin/ansible-playbook"
    if not program.exists():
        if harness.REQUIRED:
            pytest.fail("required but not installed: py-ansible (tests/install)")
        pytest.skip("py-ansible is not installed (tests/install)")
    done = subprocess.run(
        [
            str(program), "-i", "localhost,", "-c", "local", str(slurm.SCRIPTS / "install.yaml"),
            "-e", f"ansible_python_interpreter={program.parent / 'python'}", *arguments,
        ],
        capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        env=harness.clean_environment(ANSIBLE_NOCOLOR="1", LC_ALL="C.UTF-8"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_playbook_is_well_formed():
    playbook("--syntax-check")


def test_the_playbook_installs_all_of_it_and_changes_nothing_the_second_time(tmp_path):
    (tmp_path / "root/etc/slurm").mkdir(parents=True)
    conf = tmp_path / "root/etc/slurm/slurm.conf"
    conf.write_text("ClusterName=mine\n")
    (tmp_path / "secrets").write_text("NAME=value\n")
    (tmp_path / "config").write_text("backends: []\n")
    wanted = {
        "warpdrive_nodes": "all", "warpdrive_become": False, "prefix": str(tmp_path / "root"),
        "warpdrive_program": str(harness.PROGRAM), "warpdrive_config": str(tmp_path / "config"),
        "warpdrive_secrets": str(tmp_path / "secrets"), "slurm_conf": str(conf),
        "owner": str(os.geteuid()), "warpdrive_settings": {"WARPDRIVE_PARTITIONS": "gpu train", "WARPDRIVE_MEMORY": "2GiB"},
    }
    said = [playbook("-e", json.dumps(wanted)) for _ in range(2)]
    assert "changed=0" in said[1] and "failed=0" in said[1], said[1]
    etc = tmp_path / "root/etc/warpdrive"
    for name in ("prolog.sh", "epilog.sh", "task-prolog.sh", "common.sh"):
        assert (etc / "slurm" / name).read_text() == (slurm.SCRIPTS / name).read_text()
    assert (etc / "secrets.env").stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        ["bash", "-c", f". {etc}/slurm/settings; echo $WARPDRIVE_PARTITIONS/$WARPDRIVE_MEMORY/$WARPDRIVE_CACHE_OF"],
        capture_output=True, text=True, check=True,
    )
    assert shown.stdout.strip() == "gpu train/2GiB/job"
    assert f"Prolog={etc}/slurm/prolog.sh" in conf.read_text() and "ClusterName=mine" in conf.read_text()
    # What was installed is what runs: the epilog of a job that never was.
    done = subprocess.run(
        [str(etc / "slurm/epilog.sh")], env={"SLURM_JOB_ID": "777777", "PATH": os.environ["PATH"]}, timeout=60
    )
    assert done.returncode == 0
