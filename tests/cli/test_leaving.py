"""How the command line leaves: a line and a code that says so, whatever the network's own code does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from convwright.cli import leaving, main

NETWORK = "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__({})\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as leave:
            main(words)
        return (leave.value.code, *capsys.readouterr())

    return command


@pytest.mark.parametrize(
    "end", ["import sys; sys.exit()", "import os; os._exit(0)", "raise SystemExit(3)", "exit('x')"]
)
def test_a_file_that_ends_the_program_is_an_error(run, tmp_path, end):
    leave = os._exit
    (tmp_path / "net.py").write_text(f"{NETWORK.format('nn.ReLU()')}\n\n{end}\n")
    code, out, err = run("analyze", "net.py:Net", "--input", "1x8x8")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "net.py:9: the network's own code ends the program here" in err
    assert os._exit is leave


def test_a_constructor_that_ends_the_program_is_an_error(run, tmp_path):
    (tmp_path / "net.py").write_text(NETWORK.format("exit()"))
    code, _, err = run("doctor", "net.py:Net", "--input", "1x8x8")
    assert code == 2
    assert "net.py:6: the network's own code ends the program" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analyze", "x" * 9000 + ".py:Net"), "there is no file x"),
        (("analyze", "zoo:resnet20", "--input", f"1x{'9' * 5000}x8"), "is not an input shape"),
        (("analyze", "zoo:resnet20", "--input", "1x\u00b2x8"), "is not an input shape"),
        (("analyze", "zoo:resnet20", "--input", "1x99999x99999"), "more than 1,000,000,000 values"),
        (("apply", "/dev/zero", "zoo:resnet20"), "has more than 10,000,000 bytes"),
        (("report", "x" * 5000), "no such folder"),
        (("optimize", "zoo:resnet20", "--data", "fashion-mini", "--budget", "macs<=50%", "--seed", "1" * 30),
        "seed=1111"),
        (("optimize", "zoo:resnet20", "--data", "fashion-mini", "--budget", "macs<=50%", "--threads", "100000"),
         "--threads 100000"),
        (("optimize", "zoo:resnet20", "--data", "fashion-mini", "--budget", "macs<=50%", "--time", "9" * 5000 + "s"),
         "not a length of time"),
        (("optimize", "zoo:resnet20", "--data", "fashion-mini", "--budget", f"macs<={'9' * 5000}"), "too large"),
        (("optimize", "zoo:resnet20", "--data", "fashion-mini", "--budget", "macs<=50%", "--option",
          "trials=" + "[" * 100_000), "trials"),
        (("recipe", "show", "no\x1b[31mred"), r"no\x1b[31mred"),
    ],
)  # fmt: skip
def test_wrong_texts_end_in_one_line(run, words, said):
    code, out, err = run(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("convwright: error: ")
    assert said in err
    assert len(err) < 3000


def test_json_stands_alone_where_a_network_prints(run, tmp_path):
    loud = "    def forward(self, x):\n        print('hello')\n        return super().forward(x)\n"
    (tmp_path / "net.py").write_text(f"{NETWORK.format('nn.Conv2d(1, 2, 1)')}\n{loud}")
    code, out, err = run("analyze", "net.py:Net", "--input", "1x8x8", "--json")
    assert (code, json.loads(out)["params"], "hello" in err) == (0, 4, True)


def test_a_reader_that_goes_away_is_no_fault_of_the_network():
    reader, file = os.pipe()
    os.close(reader)

    def unread():
        try:
            os.write(file, b"x")
        except BrokenPipeError:
            raise SystemExit(1) from None  # as rich does

    with pytest.raises(SystemExit), leaving.exits_of_others():
        unread()


SCRIPT = """
import sys, time
from convwright.cli import leaving

def app(**_):
    with leaving.resumable(None, ""):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("tidying", flush=True)
            time.sleep(60)

sys.exit(leaving.run(app, []))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_second_interrupt_leaves_at_once():
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=-1, stderr=-1, text=True) as process:
        for said in ("ready", "tidying"):
            assert process.stdout.readline().strip() == said
            process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.communicate(timeout=30) == ("", "convwright: interrupted\n")
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_message_is_one_line_that_a_terminal_only_shows():
    assert leaving.one_line("a\n\tb\x00\x1b[31m\u202e\udcff c") == r"a b\x00\x1b[31m\u202e\udcff c"
    assert len(leaving.one_line("x" * 10**6)) < 2100
