"""`residuum recipes`, and training by a named one."""

from residuum.cli.line import build, read
from residuum.cli.main import COMMANDS
from residuum.train.recipes import RECIPES


def parsed(*args):
    command, prog = COMMANDS["train"], "residuum train"
    line = read(command.kind, [str(arg) for arg in args], prog)
    return build(command.kind, command.defaults(line), line, prog).recipe


def test_all_are_listed_with_what_was_published(command):
    out = command("recipes").out
    assert all(name in out for name in RECIPES)
    assert "91.25 %" in out


def test_one_that_is_shown_is_a_recipe_file(command, tmp_path):
    out = command("recipes", "he2015-cifar").out
    assert "# source: 1512.03385" in out
    assert "# reproduced: no" in out
    path = tmp_path / "r.toml"
    path.write_text(out)
    assert parsed("--recipe", path, "--data", "digits") == parsed("--recipe", "he2015-cifar", "--data", "digits")


def test_the_line_goes_over_a_named_recipe_and_it_over_the_data(tmp_path):
    found = parsed("--recipe", "he2015-cifar", "--lr", 0.2, "--data", "digits", "--model", "cifar_resnet32")
    assert (found.optimizer.lr, found.optimizer.decay, found.epochs) == (0.2, "all", 182)
    assert (found.model.depths, found.model.in_channels) == ((5, 5, 5), 1)
    assert found.model.zero_init_residual is False


def test_a_recipe_that_there_is_not_is_refused_with_the_nearest(refused):
    says = "neither a named recipe nor a recipe file; did you mean 'he2015'"
    assert says in refused("recipes", "he2016")
    assert says in refused("train", "--recipe", "he2016", "--data", "digits")
