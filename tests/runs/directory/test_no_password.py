"""Passwords of a database are in no file of a run, in no export and in nothing that is printed."""

from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from convwright.cli import main
from convwright.passwords import public_command, public_url
from convwright.runs.directory import storage

SECRET, OTHER = "p@ss w/rd'\"?:geheim", "ssl&verborgen"
FORMS = (SECRET, quote(SECRET, safe=""), quote_plus(SECRET), "geheim", OTHER, quote(OTHER, safe=""), "verborgen")
URL = (
    f"postgresql://me:{quote(SECRET, safe='')}@db.example:5432/runs?sslmode=prefer&sslpassword={quote(OTHER, safe='')}"
)
PUBLIC = "postgresql://me@db.example:5432/runs?sslmode=prefer"


@pytest.fixture
def database(monkeypatch, tmp_path):
    """A file in the place of the database, whatever it is called."""
    connected = storage._connected
    monkeypatch.setattr(
        storage, "_connected", lambda url, *rest, **named: connected(f"sqlite:///{tmp_path / 'db'}", *rest, **named)
    )


def called(capsys, *words):
    with pytest.raises(SystemExit) as leave:
        main(words)
    out, err = capsys.readouterr()
    assert not any(form in out + err for form in FORMS), out + err
    return leave.value.code, out, err


def test_a_password_is_nowhere(database, tiny, pictures, tmp_path, capsys, monkeypatch):
    (tmp_path / "fp32.yaml").write_text("batch_size: 32\nprecision: fp32\nmemory_format: contiguous\n")
    search = ["optimize", tiny, "--data", pictures, "--budget", "macs<=60%", "--method", "uniform", "--epochs", "1"]
    search += ["--tune-epochs", "1", "--recipe", "fp32.yaml", "--threads", "1", "--out", "run"]

    def interrupted(*args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("convwright.runs.evaluate.train", interrupted)
        code, _, err = called(capsys, *search, f"--storage={URL}")
    assert code == 130
    assert f"'--storage={PUBLIC}' --resume" in err
    code, _, err = called(capsys, "report", "run", "--markdown")
    assert code == 0  # by the storage that the run recorded
    assert called(capsys, *search, "--storage", URL, "--resume")[0] == 0
    (tmp_path / "run" / "result.json").rename("aside.json")  # an export of a run that is not finished reads its trials
    for to in ("safetensors", "python"):
        assert called(capsys, "export", "run", "--to", to, "--storage", URL)[0] == 0
    Path("aside.json").rename(tmp_path / "run" / "result.json")
    assert called(capsys, "export", "run", "--to", "safetensors", "--out", "card")[0] == 0
    assert PUBLIC in (tmp_path / "card" / "README.md").read_text()
    assert PUBLIC in (tmp_path / "run" / "run.json").read_text()
    for file in (f for folder in ("run", "card") for f in (tmp_path / folder).rglob("*") if f.is_file()):
        content = file.read_bytes()
        assert not any(form.encode() in content for form in FORMS), file


def test_what_was_recorded_with_a_password_is_shown_without(tmp_path, capsys, monkeypatch):
    import json
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[2] / "assets" / "runs" / "finished", "run")
    for name in ("run.json", "result.json"):
        content = json.loads(Path("run", name).read_text())
        Path("run", name).write_text(json.dumps({**content, "command": f"convwright optimize --storage {URL!r}"}))
    assert called(capsys, "report", "run", "--markdown")[0] == 0
    assert called(capsys, "export", "run", "--to", "safetensors", "--out", "card")[0] == 0
    assert not any(form in Path("card", "README.md").read_text() for form in FORMS)


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:geheim@db:port/runs", "postgresql://me:geheim@x@db/runs", "postgresql://me:geheim", "geheim",
     "mysql://me:geheim@db/x", "postgresql://me/x:geheim@db/runs", "sqlite://me:geheim@db/x", "//me:geheim@db/x"],
)  # fmt: skip
def test_a_url_that_cannot_be_read_is_not_repeated(url, tiny, pictures, capsys):
    code, _, err = called(capsys, "optimize", tiny, "--data", pictures, "--budget", "macs<=60%", "--storage", url)
    assert code == 2
    assert "--storage" in err


def test_a_word_that_does_not_belong_is_told_without_a_password(capsys):
    assert called(capsys, "report", "run", "postgresql://me:geheim@db/x")[0] == 2


def test_an_unreachable_server_s_message_has_no_password(tiny, pictures, capsys):
    pytest.importorskip("psycopg")
    words = ["optimize", tiny, "--data", pictures, "--budget", "macs<=60%"]
    code, _, err = called(capsys, *words, "--storage", "postgresql://me:geheim@127.0.0.1:1/x?connect_timeout=1")
    assert code == 2
    assert "postgresql://me@127.0.0.1:1/x?connect_timeout=1: the database cannot be reached" in err


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("postgresql://host/runs?user=me&p%61ssword=geheim", "postgresql://host/runs?user=me"),
        ("postgresql://me@h/d?passfile=/home/me/.pgpass", "postgresql://me@h/d?passfile=/home/me/.pgpass"),
        ("postgresql:///runs?host=/tmp&password=a@geheim", "postgresql:///runs?host=/tmp"),
        ("postgresql://me:geheim@[::1]:5432/runs", "postgresql://me@[::1]:5432/runs"),
        ("postgresql://h/d?user=me;password=geheim&connect_timeout=1", "postgresql://h/d?connect_timeout=1"),
        ("postgresql://h/d?user=me&options=-c%20my.password%3Dgeheim", "postgresql://h/d?user=me"),
        ("postgresql://me@h/d;password=geheim", "postgresql://***"),
        ("postgresql://me@h/d#password=geheim", "postgresql://***"),
        ("postgresql://me@h/d%3Fpassword=geheim", "postgresql://***"),
        ("postgresql://me%3Ageheim@h/d", "postgresql://***"),
        ("postgresql://d%3Ae:geheim@h/d", "postgresql://d%3Ae@h/d"),
        ("postgresql://me@h/passengers?application_name=pass", "postgresql://me@h/passengers?application_name=pass"),
        ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
        ("ray://10.0.0.1:10001", "ray://10.0.0.1:10001"),
    ],
)
def test_what_is_left_of_a_url(url, public):
    assert public_url(url) == public
    assert public_command(f"cannot reach {url}, 'quoted") == f"cannot reach {public}, 'quoted"
