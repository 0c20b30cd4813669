"""`residuum ablate`: what it plans, refuses, runs and tells."""

import pytest
from tests.ablate.trainers import FAKE, ROOT, SIX

import residuum
from residuum import preset

FLAGS = ("ablate", "--vary", "loss.label_smoothing=0.0,0.1", "--seeds", 2, "--threads", 1)


@pytest.fixture(autouse=True)
def with_the_stand_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setenv("RESIDUUM_TRAINER", FAKE)


@pytest.mark.slow
def test_flags_alone_make_a_study_that_is_run_and_found_again(command, tmp_path):
    result = command(*FLAGS)
    assert result.code == 0, result
    assert "4 of 4" in result.out
    assert len(list((tmp_path / "studies" / "label_smoothing" / "cells").iterdir())) == 4
    again = command(*FLAGS[:3], "--seeds", 3, "--threads", 1)
    assert "2 of 2" in again.out
    status = command(*FLAGS, "--status")
    assert status.out.splitlines()[0] == "4 cells: 4 done"


@pytest.mark.slow
def test_a_study_file_is_run_and_the_line_goes_over_it(command, tmp_path):
    (tmp_path / "study.toml").write_text(SIX, encoding="utf-8")
    result = command("ablate", "study.toml", "--seeds", 1, "--epochs", 3, "--only", "v2", "--out", "here")
    assert result.code == 0, result
    assert "2 of 2" in result.out
    recipe = next((tmp_path / "here" / "cells").glob("v2-s0-*")) / "recipe.toml"
    assert "epochs = 3" in recipe.read_text(encoding="utf-8")


@pytest.mark.slow
def test_failures_give_exit_code_3_and_the_line_that_repeats_them(command, tmp_path):
    (tmp_path / "study.toml").write_text(SIX, encoding="utf-8")
    (tmp_path / "here" / "cells").mkdir(parents=True)
    (tmp_path / "here" / "wrong.json").write_text('{"v2 0": "raises"}', encoding="utf-8")
    result = command("ablate", "study.toml", "--seeds", 1, "--out", "here")
    assert result.code == 3
    assert "v2, seed 0: failed: ValueError: no such thing" in result.out
    assert "residuum train --recipe here/cells/v2-s0-" in result.out
    assert "6 cells: 5 done, 1 failed" in result.out


@pytest.mark.slow
def test_a_plan_shows_what_each_variant_costs_and_runs_nothing(command, tmp_path):
    result = command(*FLAGS, "--plan")
    assert result.code == 0
    assert "loss.label_smoothing = 0.1" in result.out
    assert "4 cells: 2 variants, 2 seeds" in result.out
    assert "minutes" in result.out
    assert not (tmp_path / "studies").exists()


def wrong_in_37():
    variants = "".join(f"[variant.v{i}]\nlabel_smoothing = {i / 100}\n" for i in range(48))
    return "design = 'list'\nseeds = 1\n" + variants


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("label_smoothing = 1.5", "variant 'v37': loss.label_smoothing is 1.5"),
        ("'model.stem' = 'no'", "variant 'v37': "),
        ("'model.num_classes' = 3", "variant 'v37': model.num_classes is 3 but 'digits' has 10 classes"),
        ("'schedule.warmup' = 99", "variant 'v37': schedule.warmup is 99 epochs but the run has 30"),
        ("label_smothing = 1", "variant 'v37': 'label_smothing' is not a field of a recipe; did you mean"),
        ("'data.path' = 'nowhere'", "variant 'v37' changes data.path"),
    ],
)
def test_a_wrong_variant_among_many_is_refused_before_anything_runs(refused, tmp_path, change, said):
    text = wrong_in_37().replace("label_smoothing = 0.37", change)
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    message = refused("ablate", "study.toml")
    assert said in message
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["ablate"], "name a study file, or what is to vary"),
        (["ablate", "nowhere.toml"], "'nowhere.toml' cannot be read"),
        ([*FLAGS, "--seed", 1], "leave out --seed"),
        ([*FLAGS, "--only", "SE"], "--only is 'SE'; it must be one of"),
        ([*FLAGS, "--metric", "speed"], "'speed' is not a metric"),
        ([*FLAGS, "--data", "nowhere"], "nowhere"),
        (["ablate", "--vary", "model.attention"], "it must be FIELD=VALUE"),
        (["ablate", "--vary", "model.atention=none,se"], "did you mean"),
        ([*FLAGS, "--vary", "loss.label_smoothing=0.2,0.3"], "both set"),
        ([*FLAGS, "--storage", "sqlite:///study.db"], "SQLite file, which several machines cannot share"),
        ([*FLAGS, "--tune", "lr=0.1"], "two or more unlike values"),
        ([*FLAGS, "--tune", "lr=0.1,-1"], "with lr=-1: optimizer.lr is -1"),
        ([*FLAGS, "--processes", 3], "cannot be shared by 3 processes"),
        ([*FLAGS, "--search", "lr=log(0.1,1)"], "--search goes without"),
        (["ablate", "--search", "lr=log(0,1)"], "two numbers above 0"),
        (["ablate", "--search", "lr=log(0.1,1)", "--metric", "test_accuracy"], "goes by val_accuracy or val_loss"),
    ],
)
def test_a_wrong_line_is_refused_in_a_sentence(refused, tmp_path, line, said):
    assert said in refused(*line)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    "line",
    [["--optimizer.name", "sgd", "--vary", "model.width=0.25,0.5"],
     ["--recipe", "rsb-a3", "--schedule.name", "constant", "--schedule.warmup", 0, "--vary", "model.width=0.25,0.5"],
     ["--recipe", "bit", "--weights", "w.safetensors", "--vary", "lr=0.001,0.003", "--image-size", 32, "--epochs", 1]],
)  # fmt: skip
def test_what_the_line_names_decides_the_rest_of_its_table(command, image_folder, tmp_path, line):
    residuum.save(residuum.ResNet(preset("cifar_resnet20")), tmp_path / "w.safetensors")
    assert command("ablate", "--data", image_folder(side=16), *line, "--plan").code == 0


@pytest.mark.slow
def test_a_folder_of_another_study_or_of_something_else_is_refused(command, refused, tmp_path):
    assert command(*FLAGS[:3], "--seeds", 1, "--threads", 1, "--out", "here").code == 0
    (tmp_path / "other.toml").write_text(SIX, encoding="utf-8")
    before = sorted(path.name for path in (tmp_path / "here" / "cells").iterdir())
    said = refused("ablate", "other.toml", "--out", "here")
    assert "holds the study 'label_smoothing' of 'digits', and this one is 'six' of 'digits'" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "'full' is not empty and holds no study" in refused("ablate", "other.toml", "--out", "full")
    assert sorted(path.name for path in (tmp_path / "here" / "cells").iterdir()) == before
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_report_of_flags_shows_the_whole_line(command, tmp_path):
    assert command(*FLAGS[:3], "--seeds", 1, "--epochs", 3).code == 0
    text = (tmp_path / "studies" / "label_smoothing" / "report.html").read_text(encoding="utf-8")
    assert "residuum ablate --epochs=3 --vary=loss.label_smoothing=0.0,0.1 --seeds=1" in text


@pytest.mark.slow
def test_a_factor_that_stands_twice_on_the_line_makes_all_combinations(command):
    line = ["--vary", "loss.label_smoothing=0.0,0.1", "--vary", "flip=none,random", "--seeds", 1]
    result = command("ablate", *line)
    assert "4 of 4" in result.out
    assert "label_smoothing=0.1 flip=random" in " ".join(result.out.split())
