"""Work in processes of its own. The scripts do not import torch: each process starts in a fraction of a second."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convwright.runs.executors.pool import gpus, in_turn_or_side_by_side, take_gpu

SCRIPT = """
import os, sys, time, types
from pathlib import Path

import convwright

for folder in ("runs", "runs/executors"):
    light = types.ModuleType("convwright." + folder.replace("/", "."))
    light.__path__ = [str(Path(convwright.__file__).parent / folder)]
    sys.modules[light.__name__] = light  # its own __init__ imports torch

from convwright.runs.executors.pool import in_turn_or_side_by_side


def work(seconds):
    Path(f"pid-{os.getpid()}").touch()
    if seconds < 0:
        os._exit(7)
    if seconds > 100:
        raise ValueError("too long")
    time.sleep(seconds)
    return 2 * seconds


if __name__ == "__main__":
    try:
        for item, result in in_turn_or_side_by_side(work, [float(word) for word in sys.argv[1:]], 2):
            print(item, result, flush=True)
    except BaseException as error:
        print(type(error).__name__, str(error)[:60], flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Start the script, in a process group of its own as in a terminal."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def run(*seconds):
        words = [sys.executable, "script.py", *map(str, seconds)]
        process = subprocess.Popen(
            words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def pids(folder):
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # an orphan that nobody has waited for is dead all the same
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_in_this_process_in_order():
    assert list(in_turn_or_side_by_side(abs, [-2, 3, -5], 1)) == [(-2, 2), (3, 3), (-5, 5)]


def test_side_by_side_gives_every_item_its_own_result(start, tmp_path):
    out, err = start(0.3, 0.0, 0.1).communicate(timeout=60)
    assert (sorted(out.splitlines()), err) == (["0.0 0.0", "0.1 0.2", "0.3 0.6"], "")
    assert not any(map(alive, pids(tmp_path)))


def test_work_may_start_processes_itself(start, tmp_path):
    """As loaders of streamed images do; a daemon may not."""
    script = tmp_path / "script.py"
    child = "__import__('multiprocessing').Process(target=time.sleep, args=(seconds,)).start()"
    script.write_text(script.read_text().replace("time.sleep(seconds)", child))
    out, err = start(0.1, 0.0).communicate(timeout=60)
    assert (sorted(out.splitlines()), err) == (["0.0 0.0", "0.1 0.2"], "")


@pytest.mark.parametrize(("bad", "said"), [(-1, "RunError a training's process ended"), (101, "ValueError too long")])
def test_a_failure_ends_all(start, tmp_path, bad, said):
    began = time.monotonic()
    out, _ = start(60, bad, 60).communicate(timeout=50)
    assert out.startswith(said)
    assert time.monotonic() - began < 50
    wait_until(lambda: not any(map(alive, pids(tmp_path))))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_first(start, tmp_path, how):
    process = start(60, 60, 60)
    wait_until(lambda: len(pids(tmp_path)) == 2)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C in a terminal does
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=30)
    wait_until(lambda: not any(map(alive, pids(tmp_path))))
    assert len(pids(tmp_path)) == 2  # nothing was begun after it
    if how == signal.SIGINT:
        assert (out, err) == ("KeyboardInterrupt \n", "")


def test_no_process_outlives_the_first_while_it_still_imports(start, tmp_path):
    """What a job is made of is imported when a process has begun: torch takes as long as 15 seconds."""
    (tmp_path / "slow.py").write_text(
        "import os, time\nfrom pathlib import Path\n\nif os.environ['FIRST'] != str(os.getpid()):\n"
        "    Path(f'pid-{os.getpid()}').touch()\n    time.sleep(60)\n\n\ndef work(seconds):\n    return seconds\n"
    )
    script = tmp_path / "script.py"
    text = script.read_text().replace(
        "    try:", "    os.environ['FIRST'] = str(os.getpid())\n    from slow import work\n\n    try:"
    )
    script.write_text(text)
    process = start(60, 60)
    wait_until(lambda: pids(tmp_path))
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not any(map(alive, pids(tmp_path))), seconds=10)


def test_an_interrupt_while_work_is_handed_out_ends_all(start, tmp_path):
    """It must not leave the pool waiting for what it has begun."""
    script = tmp_path / "script.py"
    text = script.read_text().replace("[float(word) for word in sys.argv[1:]]", "handed_out()")
    script.write_text(
        text.replace(
            'if __name__ == "__main__":',
            "class Items(list):\n"
            "    def __iter__(self):\n"
            "        yield self[0]\n"
            "        os.kill(os.getpid(), 2)\n"
            "        yield self[1]\n\n\n"
            "def handed_out():\n"
            "    return Items(float(word) for word in sys.argv[1:])\n\n\n"
            'if __name__ == "__main__":',
        )
    )
    began = time.monotonic()
    out, _ = start(60, 60).communicate(timeout=50)  # processes that were about to begin may complain
    assert out == "KeyboardInterrupt \n"
    assert time.monotonic() - began < 50
    wait_until(lambda: not any(map(alive, pids(tmp_path))))


@pytest.mark.parametrize(
    ("visible", "count", "found"),
    [(None, 0, ()), (None, 3, ("0", "1", "2")), ("5,2", 2, ("5", "2")), ("", 0, ()), ("5,2,nonsense", 2, ("5", "2"))],
)
def test_gpus_are_named_as_cuda_names_them(monkeypatch, visible, count, found):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


@pytest.mark.parametrize(
    ("devices", "seen"), [((), ["kept"] * 4), (("7",), ["kept"] * 4), (("5", "2", "3"), ["5", "2", "3", "5"])]
)
def test_processes_take_gpus_by_turns(monkeypatch, devices, seen):
    found = []
    for number in range(4):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "kept")
        take_gpu(number, devices)
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == seen
