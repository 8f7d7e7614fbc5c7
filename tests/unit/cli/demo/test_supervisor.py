"""No way of ending the demo leaves a process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpalm.cli.demo.supervisor import Supervisor
from fedpalm.errors import ChildFailedError, StateError

PATIENCE_S = 30.0
STUBBORN = (
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)"
)
WITH_CHILD = (
    "import subprocess,sys,time;"
    "c=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)']);"
    "print(c.pid, flush=True); time.sleep(600)"
)


def eventually(condition: Callable[[], object]) -> object:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("did not happen")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped is dead, too.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def said(supervisor: Supervisor, name: str) -> str:
    log = supervisor.log_of(name)
    return log.read_text() if log.exists() else ""


def test_leaving_the_context_ends_children_and_their_children(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("parent", python(WITH_CHILD))
        grandchild = int(str(eventually(lambda: said(supervisor, "parent").strip())))
        assert alive(grandchild)
    assert not alive(child.process.pid)
    eventually(lambda: not alive(grandchild))


def test_an_exception_inside_the_context_ends_the_children(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), Supervisor(tmp_path) as supervisor:
        child = supervisor.start("one", python("import time; time.sleep(600)"))
        raise KeyboardInterrupt
    assert not alive(child.process.pid)


_ctrl_c_in_the_next_fork: list[bool] = []


def _press() -> None:
    if _ctrl_c_in_the_next_fork:
        _ctrl_c_in_the_next_fork.clear()
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_a_process_is_being_started_is_not_lost(tmp_path: Path):
    os.register_at_fork(before=_press)
    with pytest.raises(KeyboardInterrupt), Supervisor(tmp_path) as supervisor:
        _ctrl_c_in_the_next_fork.append(True)
        supervisor.start("one", python("import time; time.sleep(600)"))
    assert not _ctrl_c_in_the_next_fork
    assert supervisor.running() == []


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path):
    with Supervisor(tmp_path, grace_s=0.2) as supervisor:
        child = supervisor.start("stubborn", python(STUBBORN))
        eventually(lambda: "up" in said(supervisor, "stubborn"))
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tether is Linux's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_survives_a_signal_to_the_demo(tmp_path: Path, number: signal.Signals):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from fedpalm.cli.demo.supervisor import Supervisor, ends_are_interrupts
        with ends_are_interrupts(), Supervisor(Path(sys.argv[1])) as supervisor:
            argv = [sys.executable, "-c", "import time; time.sleep(600)"]
            print(*(supervisor.start(n, argv).process.pid for n in "ab"), flush=True)
            time.sleep(600)
        """
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    pids = [int(word) for word in demo.stdout.readline().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    demo.send_signal(number)
    demo.wait(timeout=PATIENCE_S)
    demo.stdout.close()
    for pid in pids:
        eventually(lambda pid=pid: not alive(pid))


def test_a_failed_child_is_shown_with_the_end_of_its_log(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("site", python("print('disk is full'); raise SystemExit(3)"))
        child.process.wait()
        with pytest.raises(ChildFailedError) as caught:
            supervisor.check()
    assert "site ended with exit code 3" in caught.value.what
    assert "disk is full" in caught.value.what
    assert str(child.log) in caught.value.next_step


def test_a_child_that_ended_well_is_no_failure(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("site", python("pass")).process.wait()
        supervisor.check()


def test_a_service_that_ends_by_itself_is_a_failure_even_with_exit_code_0(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("coordinator", python("pass"), lasting=True).process.wait()
        with pytest.raises(ChildFailedError, match="coordinator ended with exit code 0"):
            supervisor.check()


def test_a_command_that_fails_because_its_server_is_gone_reports_the_server(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("coordinator", python("raise SystemExit(9)")).process.wait()
        with pytest.raises(ChildFailedError, match="coordinator ended with exit code 9"):
            supervisor.run_json("operator", python("raise SystemExit(5)"), timeout_s=PATIENCE_S)


def test_a_command_gives_back_what_it_printed(tmp_path: Path):
    code = "import sys; assert sys.argv[-1] == '--json'; print('{\"run_id\": \"r\"}')"
    with Supervisor(tmp_path) as supervisor:
        assert supervisor.run_json("operator", python(code), timeout_s=PATIENCE_S) == {
            "run_id": "r"
        }


def test_a_command_s_own_error_comes_out_as_that_error(tmp_path: Path):
    code = (
        'print(\'{"error": {"code": "state", "what": "no run", "safe": "",'
        '"next_step": "start one"}}\'); raise SystemExit(8)'
    )
    with Supervisor(tmp_path) as supervisor, pytest.raises(StateError, match="operator: no run"):
        supervisor.run_json("operator", python(code), timeout_s=PATIENCE_S)


def test_a_result_may_come_with_an_exit_code_of_its_own_and_an_error_stays_one(tmp_path: Path):
    waiting = 'print(\'{"state": "waiting"}\'); raise SystemExit(8)'
    error = 'print(\'{"error": {"code": "state", "what": "no"}}\'); raise SystemExit(8)'
    with Supervisor(tmp_path) as supervisor:
        reply = supervisor.run_json("person", python(waiting), timeout_s=PATIENCE_S, also_fine=(8,))
        assert reply == {"state": "waiting"}
        with pytest.raises(ChildFailedError, match="exit code 8"):
            supervisor.run_json("person", python(waiting), timeout_s=PATIENCE_S)
        with pytest.raises(StateError, match="no"):
            supervisor.run_json("person", python(error), timeout_s=PATIENCE_S, also_fine=(8,))


def test_a_command_that_hangs_is_ended(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        with pytest.raises(ChildFailedError, match="did not end"):
            supervisor.run_json("slow", python("import time; time.sleep(600)"), timeout_s=0.3)
        assert supervisor.running() == []


def test_children_are_started_by_the_main_thread_only(tmp_path: Path):
    import threading

    errors: list[BaseException] = []

    def start() -> None:
        try:
            supervisor.start("one", python("pass"))
        except RuntimeError as error:
            errors.append(error)

    with Supervisor(tmp_path) as supervisor:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert len(errors) == 1
