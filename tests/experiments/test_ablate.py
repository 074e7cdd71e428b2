"""Ablations: the plan is pure, every row differs from the control in its techniques only, the test part comes last."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from convwright.architecture import create
from convwright.cli import main
from convwright.errors import ConvwrightError, RecipeError, RunError
from convwright.experiments import train_row as rows_module
from convwright.experiments.ablation import ablate
from convwright.experiments.ablation_rows import CONTROL, TOGETHER, folder_names, is_on, parse_techniques, plan_ablation
from convwright.experiments.results_table import ablated
from convwright.runs.directory.files import save_weights
from convwright.training import Recipe, load_data
from convwright.training.techniques import TECHNIQUES, technique_named

FREE = ("mixup", "label_smoothing", "cutout", "sam", "lookahead")  # any of them go together

# ------------------------------------------------------------------ the plan


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(FREE), min_size=1, unique=True), st.lists(st.sampled_from(FREE), unique=True))
def test_rows_differ_from_the_control_in_their_techniques_only(names, on):
    base = Recipe(lr=0.07, epochs=3, label_smoothing=0.0)
    given_recipe = base
    for name in on:
        given_recipe = technique_named(name).switched(given_recipe)
    plan = plan_ablation(given_recipe, names, all_pairs=True, together=True)
    by_name = {row.name: row for row in plan.rows}
    assert by_name[CONTROL].recipe == base
    assert set(plan.switched_off) == set(on)
    pairs = [" + ".join(pair) for pair in combinations(names, 2)]
    assert [row.name for row in plan.rows] == [CONTROL, *names, *pairs, TOGETHER]
    for row in plan.rows[1:]:
        if row.recipe is None:  # with one or two techniques, all together are a row already
            assert (row.name, len(names) <= 2) == (TOGETHER, True)
            continue
        expected = base
        for technique in row.techniques:
            expected = technique_named(technique.name).switched(expected)
        assert row.recipe == expected
        assert {entry.name for entry in TECHNIQUES.values() if is_on(entry, row.recipe)} - {"one_cycle"} == {
            technique.name for technique in row.techniques
        }


def test_a_technique_keeps_the_options_of_the_recipe():
    recipe = Recipe(techniques={"mixup": {"alpha": 0.7}}, cutout=3)
    plan = plan_ablation(recipe, "mixup,mixup(alpha=0.4),cutout,cutout(cutout=5)")
    assert [row.recipe.techniques["mixup"].alpha for row in plan.rows[1:3]] == [0.7, 0.4]
    assert [row.recipe.cutout for row in plan.rows] == [0, 0, 0, 3, 5]
    assert [str(row.techniques[0]) for row in plan.rows[1:3]] == ["mixup", "mixup(alpha=0.4)"]


def test_the_schedule_stays_unless_it_is_asked_for():
    recipe = Recipe(schedule="onecycle", warmup=0.4)
    kept = plan_ablation(recipe, "mixup")
    assert {(row.recipe.schedule, row.recipe.warmup) for row in kept.rows} == {("onecycle", 0.4)}
    asked = plan_ablation(recipe, "one_cycle,cyclical,mixup", all_pairs=True)
    by_name = {row.name: row for row in asked.rows}
    assert by_name[CONTROL].recipe.schedule == "cosine"
    assert (by_name["one_cycle"].recipe.schedule, by_name["one_cycle"].recipe.warmup) == ("onecycle", 0.4)
    assert by_name["cyclical"].recipe.schedule == "triangular"
    assert "undone by the others" in by_name["one_cycle + cyclical"].reason


def test_pairs_that_cannot_be_are_skipped_with_the_reason():
    plan = plan_ablation(Recipe(), "ema,swa,mixup,mixup(alpha=0.4)", all_pairs=True, together=True)
    skipped = {row.name: row.reason for row in plan.rows if row.recipe is None}
    assert set(skipped) == {"ema + swa", "mixup + mixup(alpha=0.4)", TOGETHER}
    assert "ema with swa: " in skipped["ema + swa"]
    assert skipped["mixup + mixup(alpha=0.4)"] == "mixup is in it twice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no technique is given"),
        (" , ", "no technique is given"),
        ("mixpu", "unknown technique 'mixpu'. Did you mean mixup"),
        ("mixup,mixup", "technique mixup: given twice"),
        ("mixup,mixup(alpha=0.2)", r"technique mixup\(alpha=0.2\): equals mixup"),
        ("cutout(cutout=0)", "changes nothing"),
        ("mixup(", "no technique; write a name"),
        ("mixup)x(", "no technique; write a name"),
        ("mixup(alpha)", "'alpha' is no option"),
        ("mixup(=3)", "is no option"),
        ("mixup(alpha=[)", "is no"),
        ("mixup(alfa=0.3)", "alfa"),
        ("mixup(alpha=-1)", "greater than 0"),
        ("cutout(size=3)", "has no option 'size'"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, said):
    with pytest.raises(RecipeError, match=said) as error:
        plan_ablation(Recipe(), text)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(FREE), min_size=1), st.integers(0, 3))
def test_what_is_written_is_read_again(names, spaces):
    gap = " " * spaces
    text = f",{gap}".join(f"{name}{gap}({gap}a=1,{gap}b={gap}[1,2])" if i % 2 else name for i, name in enumerate(names))
    chosen = parse_techniques(text)
    assert [each.name for each in chosen] == names
    assert all(dict(each.options) == ({"a": 1, "b": [1, 2]} if i % 2 else {}) for i, each in enumerate(chosen))


def test_folders_are_plain_and_differ():
    plan = plan_ablation(Recipe(), "mixup,mixup(alpha=0.4),sam,cutout", all_pairs=True, together=True)
    names = list(folder_names(plan.rows))
    assert len({name.lower() for name in names}) == len(names)
    assert not set("".join(names)) & set(" ()/\\:*?\"<>|'")


# ------------------------------------------------------------------ carried out


@pytest.fixture
def run(tiny, pictures, plain):
    """Ablate, silently; return the rows by name."""

    def call(techniques="label_smoothing,mixup", folder="a", **options):
        content = ablate(
            tiny, pictures, techniques, Path(folder), say=lambda text: None, **{"recipe": plain, "seeds": 2, **options}
        )
        assert content == json.loads(Path(folder, "result.json").read_text())
        return {row["name"]: row for row in content["rows"]}

    return call


@pytest.fixture
def trainings(monkeypatch):
    """Whether each training was to be judged on the test part, in order."""
    train, seen = rows_module.train, []

    def noted(*args, **options):
        seen.append(options["test"])
        return train(*args, **options)

    monkeypatch.setattr(rows_module, "train", noted)
    return seen


def test_rows_are_judged_on_validation_images_beside_the_control(run, trainings, pictures):
    images = len(load_data(pictures).val)
    rows = run(together=True)
    assert trainings == [False] * 8
    control = rows[CONTROL]
    assert control["gain"] is None
    assert control["time_ratio"] is None
    for name, row in rows.items():
        assert (row["status"], row["seeds"], row["samples"], row["test"]) == ("finished", [0, 1], images, None)
        if name != CONTROL:
            differences = [a - b for a, b in zip(row["accuracies"], control["accuracies"], strict=True)]
            assert row["gain"]["mean"] == pytest.approx(sum(differences) / 2)
            assert row["params"] == control["params"]
            assert row["time_ratio"] > 0
    text = Path("a/table.md").read_text()
    assert "| test |" not in text
    assert all(f"| {name} |" in text for name in rows)


def test_the_test_part_is_read_after_all_trainings(run, trainings):
    before = run()
    trainings.clear()
    after = run(test=True)
    assert trainings == [True] * 6  # from the checkpoints: nothing is trained again
    for name, row in after.items():
        assert {**row, "test": None} == before[name]
        assert row["test"]["samples"] == 60
    trainings.clear()
    assert run(test=True) == after
    assert trainings == []
    assert "| test |" in Path("a/table.md").read_text()


@pytest.mark.breadth
def test_more_techniques_use_the_rows_that_are_there(run, trainings):
    first = run("mixup")
    trainings.clear()
    second = run("mixup,cutout", seeds=3)
    assert len(trainings) == 3 + 1 + 1
    assert second["mixup"]["accuracies"][:2] == first["mixup"]["accuracies"]


def test_a_row_that_fails_does_not_stop_the_others(run, monkeypatch):
    train = rows_module.train

    def sometimes(model, data, recipe, **options):
        if "mixup" in recipe.techniques and recipe.seed == 1:
            raise RecipeError("it broke\ndown")
        return train(model, data, recipe, **options)

    monkeypatch.setattr(rows_module, "train", sometimes)
    rows = run()
    assert (rows["mixup"]["status"], rows["mixup"]["reason"]) == ("failed", "seed 1: it broke down")
    assert rows["mixup"]["gain"]["by"] == "images"
    assert rows["label_smoothing"]["seeds"] == [0, 1]
    assert "mixup: failed: seed 1: it broke down" in Path("a/table.md").read_text()
    monkeypatch.setattr(rows_module, "train", train)
    assert run()["mixup"]["status"] == "finished"


def test_without_a_control_there_is_nothing_to_say(run, plain):
    with pytest.raises(RecipeError, match="the control broke down"):
        run(recipe=plain.updated(lr=1e30, schedule="constant", warmup=0.0))


def test_precision_and_layout_are_chosen_once(run, plain):
    run(recipe=plain.updated(precision="auto", memory_format="auto"))
    chosen = json.loads(Path("a/ablation.json").read_text())["settings"]
    used = [json.loads(path.read_text())["settings"] for path in Path("a").glob("rows/*/result.json")]
    assert len(used) == 6
    assert all({key: each[key] for key in chosen} == chosen for each in used)
    assert "auto" not in chosen.values()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 1}, "holds an ablation with recipe field epochs=2, not 1"),
        ({"seeds": 0}, "seeds=0: give at least 1"),
        ({"jobs": 0}, "jobs=0"),
        ({"techniques": "mixpu"}, "Did you mean mixup"),
    ],
)
def test_what_does_not_fit_is_refused(run, options, said):
    run("mixup", seeds=1)
    before = Path("a/result.json").read_text()
    with pytest.raises(ConvwrightError, match=said):
        run(**options)
    assert Path("a/result.json").read_text() == before


@pytest.fixture
def trained_file(tiny):
    """Write weights of the network, drawn from a seed that no row has."""

    def write(seed, name="start.safetensors"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_weights(create(tiny, num_classes=3, in_channels=1)[0], Path(name))
        return Path(name)

    return write


def test_every_row_starts_from_the_weights(run, trained_file, monkeypatch):
    train, first = rows_module.train, []

    def noted(model, *args, **options):
        first.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return train(model, *args, **options)

    monkeypatch.setattr(rows_module, "train", noted)
    file = trained_file(7)
    run("mixup", weights=file)
    wanted = load_file(file)
    assert len(first) == 4
    assert all(torch.equal(wanted[name], state[name]) for state in first for name in wanted)
    assert "Every row starts from start.safetensors." in Path("a/table.md").read_text()
    first.clear()
    run("mixup", weights=trained_file(7, "copy.safetensors"))
    assert first == []  # the same weights under another name
    for other in (trained_file(8), None):
        with pytest.raises(RunError, match=r"holds an ablation with weights=sha256:\w{12}, not .*another --out"):
            run("mixup", weights=other)


def test_rows_are_trained_anew_from_other_weights(run, trained_file):
    run("mixup", seeds=1, weights=trained_file(7))
    Path("a/ablation.json").unlink()
    before = {path: json.loads(path.read_text())["asked"] for path in Path("a").glob("rows/*/result.json")}
    run("mixup", seeds=1, weights=trained_file(8))
    assert len(before) == 2
    assert all(json.loads(path.read_text())["asked"]["weights"] != asked["weights"] for path, asked in before.items())


@pytest.mark.parametrize(
    ("text", "said"), [(None, "x.safetensors: no such file"), (b"nonsense", "x.safetensors: damaged")]
)
def test_weights_that_cannot_be_read_stop_it_first(run, text, said):
    if text is not None:
        Path("x.safetensors").write_bytes(text)
    with pytest.raises(RunError, match=said):
        run(weights=Path("x.safetensors"))
    assert not Path("a").exists()


def test_weights_of_another_network_stop_it_first(run):
    save_weights(torch.nn.Linear(2, 3), Path("x.safetensors"))
    with pytest.raises(RunError, match=r"x.safetensors: these weights do not fit the network"):
        run(weights=Path("x.safetensors"))
    assert not Path("a").exists()


def test_no_validation_images_no_ablation(run, plain):
    with pytest.raises(ConvwrightError, match="no validation images"):
        run(recipe=plain.updated(val_fraction=0.0))


def test_a_second_process_waits_outside(run):
    import filelock

    run("mixup", seeds=1)
    with filelock.FileLock("a/.lock"), pytest.raises(RunError, match="another process is working"):
        run("mixup", seeds=1)


# ------------------------------------------------------------------ the command


@pytest.fixture
def command(capsys, tiny, pictures, plain):
    plain.save("r.yaml")
    words = ("ablate", tiny, "--data", pictures, "--recipe", "r.yaml", "--out", "a", "--seeds", "1")

    def call(*more):
        with pytest.raises(SystemExit) as leave:
            main((*words, *more))
        out, err = capsys.readouterr()
        return leave.value.code, out, err

    return call


def test_command(command):
    code, out, err = command("--techniques", "mixup,cutout(cutout=2)", "--test")
    assert code == 0
    assert all(word in out for word in ("control", "mixup"))
    assert "| cutout(cutout=2) |" in Path("a/table.md").read_text()  # wide columns are folded on a terminal
    assert "| test |" in Path("a/table.md").read_text()
    assert Path("a/picture.svg").is_file()
    assert "picture.svg" in err.splitlines()[-1]
    code, out, _ = command("--techniques", "mixup", "--json")
    assert (code, json.loads(out)["format"]) == (0, "convwright ablation")
    assert ablated(json.loads(out)).columns[0] == "row"


@pytest.mark.parametrize("techniques", ["", "mixpu", "mixup,mixup", "mixup(alpha=-1)"])
def test_command_refuses_in_one_line(command, techniques):
    code, out, err = command("--techniques", techniques)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not Path("a").exists()


def test_command_takes_weights(command):
    code, out, err = command("--techniques", "mixup", "--weights", "gone.pt")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "gone.pt: no such file; check the path of the weights" in err


def test_ctrl_c_names_the_same_command(command, monkeypatch):
    train = rows_module.train

    def stop(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "train", lambda *args, **options: train(*args, **options, on_epoch=stop))
        code, out, err = command("--techniques", "mixup")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].endswith("--out a --seeds 1 --techniques mixup")
    assert command("--techniques", "mixup")[0] == 0
