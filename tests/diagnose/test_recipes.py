"""`convwright recipe`: what is shown can be edited and loaded, what is wrong is one line."""

import json

import pytest
import yaml

from convwright.cli import main
from convwright.diagnose.recipes import cards, setting_of, validate
from convwright.errors import RecipeError
from convwright.training import Recipe, presets
from convwright.training.techniques import TECHNIQUES


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as leave:
            main(("recipe", *words))
        out, err = capsys.readouterr()
        return leave.value.code, out, err

    return command


@pytest.mark.parametrize("name", presets.names())
def test_what_is_shown_is_a_file(name, run, tmp_path):
    code, out, _ = run("show", name)
    (tmp_path / "mine.yaml").write_text(out)
    assert code == 0
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe.preset(name)
    assert set(yaml.safe_load(out)) == set(Recipe.model_fields)
    assert out.startswith(f"# {presets.about(name)}")


def test_lists_and_cards(run):
    code, out, _ = run("show")
    assert code == 0
    assert all(name in out for name in presets.names())
    code, out, _ = run("show", "--techniques")
    assert all(name in out for name in TECHNIQUES)
    code, out, _ = run("show", "paper-cifar10", "--techniques", "--json")
    content = json.loads(out)
    assert Recipe(**content["recipe"]) == Recipe.preset("paper-cifar10")
    here = {card["name"]: card["setting"] for card in content["techniques"]}
    on = {"blurpool", "cutout", "label_smoothing", "mixup", "sam", "swa"}
    assert {name for name, setting in here.items() if setting != "off"} == on
    assert here["cutout"] == "cutout: 8"


@pytest.mark.parametrize("name", sorted(TECHNIQUES))
def test_a_switched_technique_is_seen_as_on(name):
    entry = TECHNIQUES[name]
    off = entry.switched(Recipe(schedule="cosine"), False)
    assert setting_of(entry, off) == "off"
    assert setting_of(entry, entry.switched(off)) != "off"
    assert {card["name"]: card["switch"] for card in cards()}[name]


def test_validate(run, tmp_path):
    (tmp_path / "r.yaml").write_text("epochs: 2\noptimizer: adagrad\n")
    code, out, err = run("validate", "r.yaml")
    assert (code, out) == (0, "r.yaml: valid\n")
    assert err.startswith("warning: momentum=0.9 has no effect")
    (tmp_path / "r.yaml").write_text("batch_size: 9001\n")
    assert run("validate", "r.yaml")[0] == 0
    code, out, err = run("validate", "r.yaml", "--data", "fashion-mini", "--model", "zoo:mnist-b")
    assert (code, out) == (0, "r.yaml: valid for zoo:mnist-b and fashion-mini\n")
    assert "batch_size=9001: there are 9000 training images; each step takes all of them" in err
    (tmp_path / "r.yaml").write_text("techniques: {swa: {}}\nmax_steps: 3\n")
    code, _, err = run("validate", "r.yaml", "--data", "fashion-mini", "--model", "zoo:mnist-b")
    assert code == 2
    assert "techniques.swa.start" in err
    code, out, _ = run("validate", "small-net", "--data", "fashion-mini", "--model", "zoo:mnist-b", "--json")
    content = json.loads(out)
    assert (code, content["valid"], content["warnings"]) == (0, True, [])
    assert content["against"] == "zoo:mnist-b and fashion-mini"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "smallnet"), "Did you mean small-net"),
        (("show", "none.yaml"), "none.yaml: no such file"),
        (("validate", "none.yaml"), "none.yaml: no such file"),
        (("validate", "default", "--data", "fashion-mini"), "--model is missing"),
        (("validate", "default", "--model", "zoo:mnist-b"), "--data is missing"),
        (("validate", "default", "--data", "mnits", "--model", "zoo:mnist-b"), "Did you mean mnist"),
        (("validate", "default", "--data", "fashion-mini", "--model", "zoo:mnist-z"), "mnist-z"),
    ],
)
def test_wrong_input_is_one_line(words, message, run):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_python_takes_a_recipe():
    assert validate(Recipe(epochs=3)).recipe.epochs == 3
    with pytest.raises(RecipeError, match=r"--data is missing"):
        validate("default", None, "zoo:mnist-b")
