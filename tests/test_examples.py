"""The scripts in examples/: each runs where its libraries are installed, and docs/ecosystem.md shows it as it is."""

import re
import runpy
from pathlib import Path

import pytest

import residuum

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ecosystem.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# After its mark, the block that shows a script; a title keeps those who run the page's other blocks from this one.
SHOWN = re.compile(r"<!-- (examples/\w+\.py) -->\n(?:\n```python title=\"\1\"\n.*?^```\n)?", re.MULTILINE | re.DOTALL)


def page():
    """The page as it would be with the scripts of today."""

    def block(found):
        script = (ROOT / found[1]).read_text(encoding="utf-8")
        return f'<!-- {found[1]} -->\n\n```python title="{found[1]}"\n{script}```\n'

    return SHOWN.sub(block, PAGE.read_text(encoding="utf-8"))


def test_the_page_shows_every_script_as_it_is():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run python -m tests.test_examples"
    assert [f"examples/{path.name}" for path in EXAMPLES] == sorted(SHOWN.findall(text))


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a script in an empty folder where its libraries are installed; gives the figure that it prints last."""

    def run(name, *libraries):
        for library in libraries:
            pytest.importorskip(library)
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        said = re.findall(r"(?:val accuracy|intersection over union) (\d\.\d\d)", capfd.readouterr().out)
        return float(said[-1])

    return run


@pytest.mark.slow
def test_a_u_net_on_our_encoder_finds_squares(run):
    assert run("segmentation.py", "segmentation_models_pytorch") > 0.5
    assert residuum.load("encoder.safetensors").config.num_classes == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning's own
def test_lightning_trains_a_network(run):
    assert run("lightning_digits.py", "lightning") > 0.9
    assert residuum.load("digits.safetensors").classes == tuple("0123456789")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_trains_a_network(run):
    assert run("transformers_trainer.py", "transformers", "accelerate") > 0.9
    assert residuum.from_pretrained("digits").classes == tuple("0123456789")


if __name__ == "__main__":  # `python -m tests.test_examples` brings the page up to date
    PAGE.write_text(page(), encoding="utf-8")
