"""One folder that this package, timm and transformers load, with equal logits; its card; and how it is uploaded."""

import base64
import inspect
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.networks import scramble

import residuum
from residuum import PRESETS, Preprocessing, create, from_pretrained, load, save_pretrained
from residuum.data.sources import evaluation_transform, normalise, read_image
from residuum.errors import WeightsError
from residuum.weights.pretrained import push, push_to_hub, timm_arguments

CLASSES = ("cat", "dog", "eel")
SQUARE = Preprocessing(3, (64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), 0.875, "bicubic")
METRICS = {
    "data": "imagenet", "split": "test",
    "top1": {"hits": 2, "of": 3, "value": 2 / 3, "interval": [0.2, 0.94]},
    "top5": {"hits": 3, "of": 3, "value": 1.0, "interval": [0.44, 1.0]},
}  # fmt: skip
# Names, and fields that timm takes as arguments.
IN_TIMM = [
    ("resnet18", {"depths": (1, 1, 1, 1), "in_channels": 1}), ("resnet50d", {"depths": (1, 1, 1, 1)}),
    ("seresnet50", {"depths": (1, 1, 1, 1)}), ("resnetv2_50", {"depths": (1, 1, 1, 1)}),
    ("resnetv2_50", {"depths": (1, 1, 1, 1), "width": 0.5}), ("resnet18d", {"width": 0.5, "output_stride": 16}),
]  # fmt: skip
NOT_IN_TIMM = [
    ("resnet18", {"width": 0.25}),
    ("cifar_resnet20", {}),
    ("resnet18", {"depths": (1, 1, 1, 1), "first_stride": 2, "output_stride": 64}),
]


def network(name, **fields):
    torch.manual_seed(0)
    model = create(name, num_classes=3, **fields)
    scramble(model)
    model.classes = CLASSES
    if model.config.in_channels == 3:
        model.preprocessing = SQUARE
    return model.eval()


@pytest.mark.parametrize(("name", "fields"), IN_TIMM)
def test_timm_and_this_package_give_the_very_logits_from_one_folder(tmp_path, name, fields):
    timm = pytest.importorskip("timm")
    model = network(name, **fields)
    save_pretrained(model, tmp_path / "net")
    x = torch.randn(1, model.config.in_channels, 64, 64)
    again = from_pretrained(tmp_path / "net")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(again(x), expected)
        difference = (theirs(x) - expected).abs().max()
    if model.config.preact:  # which timm ends by a convolution
        assert difference <= 1e-5 * expected.abs().max()
    else:
        assert difference == 0
    assert again.config == model.config
    assert (again.classes, again.preprocessing) == (CLASSES, model.preprocessing)


@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bilinear"), (0.95, "bicubic"), (0.0, "bilinear")])
def test_transformers_classifies_as_this_package_does_with_the_same_pixels(tmp_path, crop, interpolation):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    model = network("resnet18", depths=(1, 1, 1, 1))
    preprocessing = Preprocessing(3, (64, 64), SQUARE.mean, SQUARE.std, crop, interpolation)
    save_pretrained(model, tmp_path / "net", preprocessing=preprocessing)
    photo = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    Image.fromarray(photo).resize((150, 120), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "net").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "net")
    pixels = processor(Image.open(tmp_path / "a.png"), return_tensors="pt")["pixel_values"]
    mine = evaluation_transform(preprocessing)(read_image(tmp_path / "a.png", 3))[None]
    level = 1 / 255 / torch.tensor(SQUARE.std)[:, None, None]
    assert ((pixels - normalise(mine, preprocessing)).abs() / level).max() <= 1.01
    with torch.inference_mode():
        assert torch.equal(theirs(pixels).logits, model(pixels))
    assert theirs.config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize(("name", "fields"), NOT_IN_TIMM)
def test_what_timm_has_not_says_so_and_comes_back_all_the_same(tmp_path, name, fields):
    model = network(name, **fields)
    save_pretrained(model, tmp_path / "net")
    assert json.loads((tmp_path / "net" / "config.json").read_text())["library_name"] == "residuum"
    again = from_pretrained(str(tmp_path / "net"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    assert "timm" not in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.slow
def test_just_the_presets_that_timm_has_are_said_to_be_timms():
    timm = pytest.importorskip("timm")
    theirs = {name for module in ("resnet", "resnetv2") for name in timm.list_models(module=module)}
    built = [PRESETS[name] for name in theirs & set(PRESETS)]
    for config in PRESETS.values():
        found = timm_arguments(config)
        assert (found is not None) == (config in built)
        assert found is None or (found[0] in theirs and found[1] == {})


def test_several_classes_an_image_are_kept_and_a_folder_is_equal_byte_for_byte(tmp_path):
    model = network("resnet18", depths=(1, 1, 1, 1))
    model.several_classes = True
    save_pretrained(model, tmp_path / "a")
    save_pretrained(from_pretrained(tmp_path / "a"), tmp_path / "b")
    assert from_pretrained(tmp_path / "b").several_classes
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("count", [3, 5])
def test_other_weights_in_the_folder_are_not_measured_by_its_digest(tmp_path, count):
    model = network("resnet18", depths=(1, 1, 1, 1), antialias="blur")
    save_pretrained(model, tmp_path / "net")
    other = create(model.config, num_classes=count).eval()
    torch.save(other.state_dict(), tmp_path / "net" / "tuned.pt")
    again = load(tmp_path / "net" / "tuned.pt")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), other(x))
    assert again.classes == (CLASSES if count == 3 else None)
    assert again.preprocessing == SQUARE


def test_a_folder_whose_tensors_were_changed_is_refused(tmp_path):
    save_pretrained(network("cifar_resnet20"), tmp_path / "net")
    tensors = load_file(tmp_path / "net" / "model.safetensors")
    tensors["fc.bias"][0] += 1e-3
    save_file(tensors, tmp_path / "net" / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="damaged"):
        from_pretrained(tmp_path / "net")


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "../x/y"])
def test_what_is_no_folder_and_no_name_is_refused(source):
    with pytest.raises(WeightsError, match="no folder, and no owner/name"):
        from_pretrained(source)


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_card_has_the_figures_of_the_evaluation_and_no_placeholder(tmp_path):
    yaml = pytest.importorskip("yaml")
    (tmp_path / "evaluation.json").write_text(json.dumps(METRICS))
    save_pretrained(network("resnet18"), tmp_path / "net", metrics=tmp_path / "evaluation.json")
    card = (tmp_path / "net" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    result = head["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == METRICS["top1"]["value"]
    assert result["dataset"]["name"] == "imagenet"
    assert "66.67 % (20.00 to 94.00 %) of 3 images" in card
    model = create("resnet18", num_classes=3)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in card
    for word in ("More Information", "TODO", "None", "nan"):
        assert word not in card


def test_a_card_without_an_evaluation_claims_no_accuracy(tmp_path):
    save_pretrained(network("cifar_resnet20"), tmp_path / "net")
    assert "accuracy" not in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.parametrize("metrics", [{}, {"data": "d", "split": "s"}, [1], {"data": "d", "split": "s", "top1": {}}])
def test_metrics_that_are_no_evaluation_are_refused_and_nothing_is_left(tmp_path, metrics):
    with pytest.raises(WeightsError, match=r"evaluation\.json"):
        save_pretrained(network("cifar_resnet20"), tmp_path / "net", metrics=metrics)
    assert not list(tmp_path.iterdir())


RECIPE = """epochs = 3
[model]
width = 1.0
[data]
path = "/home/somebody/birds"
[note]
text = "```"
"""


def test_the_card_of_a_run_has_its_recipe_without_paths_of_the_machine(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(RECIPE)
    save_pretrained(network("cifar_resnet20"), tmp_path / "net", run=tmp_path / "run")
    shown = (tmp_path / "net" / "README.md").read_text().partition("## Training")[2]
    assert "epochs = 3" in shown
    assert 'path = "birds"' in shown
    assert "somebody" not in shown
    assert "[model]" not in shown
    assert shown.count("```") == 2


@pytest.mark.parametrize("text", [None, "epochs = ", "epochs = 3", 'data = "x"'])
def test_a_run_without_a_recipe_is_refused_and_nothing_is_left(tmp_path, text):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run" / "recipe.toml").write_text(text)
    with pytest.raises(WeightsError, match="is no run whose recipe the card can show"):
        save_pretrained(network("cifar_resnet20"), tmp_path / "net", run=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- as huggingface_hub's mixin has it ---------------------------------------------------------------------------------


def test_the_methods_take_the_arguments_of_the_mixin():
    mixin = pytest.importorskip("huggingface_hub").ModelHubMixin
    left_out = {
        "from_pretrained": {"model_kwargs"},
        "save_pretrained": {"config", "model_card_kwargs", "push_to_hub_kwargs"},
        "push_to_hub": {"config", "model_card_kwargs", "allow_patterns", "ignore_patterns", "delete_patterns"},
    }
    for name, without in left_out.items():
        theirs = set(inspect.signature(getattr(mixin, name)).parameters) - without
        assert theirs <= set(inspect.signature(getattr(residuum.ResNet, name)).parameters)


def test_a_networks_own_methods_write_and_read_the_very_folder(tmp_path):
    model = network("cifar_resnet20", depths=(1, 1, 1))
    assert model.save_pretrained(tmp_path / "a" / "net") is None
    save_pretrained(model, tmp_path / "b" / "net")
    for path in (tmp_path / "a" / "net").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "net" / path.name).read_bytes()
    again = residuum.ResNet.from_pretrained(tmp_path / "a" / "net")
    assert (again.config, again.classes, again.training) == (model.config, CLASSES, False)


def test_a_class_of_ones_own_is_not_given_another(tmp_path):
    class Mine(residuum.ResNet):
        pass

    Mine(residuum.preset("digits_resnet")).save_pretrained(tmp_path / "net")
    with pytest.raises(WeightsError, match="nothing of 'Mine'"):
        Mine.from_pretrained(tmp_path / "net")


# -- to the hub --------------------------------------------------------------------------------------------------------


class Upload:
    """What a hub in this machine was told."""

    def __init__(self, allowed=True):
        self.private, self.files, self.message, self.token = None, {}, "", ""
        upload = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upload.token = self.headers.get("Authorization", "")
                self.answer(403 if not allowed else 200, upload.told(self.path, body, self.headers["Host"]))

            def do_GET(self):
                self.answer(200, {})

            def answer(self, code, values):
                content = json.dumps(values).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, path, body, host):
        if path.endswith("/repos/create"):
            self.private = {"private": True, "visibility": "private"}.items() & json.loads(body).items()
            return {"url": f"http://{host}/owner/net", "name": "owner/net"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    self.message = entry["value"]["summary"]
                else:
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {"commitUrl": f"http://{host}/owner/net/commit/1", "commitOid": "0" * 40}
        return {}


@pytest.fixture
def hub(monkeypatch, request):
    constants = pytest.importorskip("huggingface_hub.constants")
    upload = Upload(getattr(request, "param", True))
    monkeypatch.setattr(constants, "ENDPOINT", upload.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield upload
    upload.server.shutdown()
    upload.server.server_close()


def test_a_folder_is_uploaded_whole_and_private(hub, tmp_path, command):
    residuum.save(network("cifar_resnet20", depths=(1, 1, 1)), tmp_path / "net.safetensors")
    result = command("convert", tmp_path / "net.safetensors", tmp_path / "net", "--to", "hub", "--push", "owner/net")
    assert result.code == 0, result.err
    assert f"{hub.url}/owner/net" in result.out
    assert hub.private
    assert hub.message == "Upload net"
    assert hub.token == "Bearer hf_test"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}


def test_a_network_is_pushed_as_the_mixin_would(hub, tmp_path):
    model = network("cifar_resnet20", depths=(1, 1, 1))
    address = model.push_to_hub("owner/net", commit_message="first", private=False, token="hf_mine")
    assert address == f"{hub.url}/owner/net"
    assert not hub.private
    assert (hub.message, hub.token) == ("first", "Bearer hf_mine")
    save_pretrained(model, tmp_path / "net")
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    hub.files.clear()
    assert model.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="owner/net", metrics=METRICS) == address
    assert hub.private
    assert b"66.67 %" in hub.files["README.md"]
    with pytest.raises(WeightsError, match="add repo_id"):
        model.save_pretrained(tmp_path / "third", push_to_hub=True)
    assert not (tmp_path / "third").exists()


def test_a_branch_and_a_pull_request_are_asked_for_by_the_mixins_names(hub, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **kwargs: asked.update(kwargs))
    network("digits_resnet").push_to_hub("owner/net", branch="next", create_pr=True, classes=CLASSES)
    assert (asked["repo_id"], asked["revision"], asked["create_pr"]) == ("owner/net", "next", True)


@pytest.mark.slow
def test_a_runs_folder_is_pushed_with_its_recipe(hub, tmp_path, command):
    assert command("train", "--epochs", 1, "--model.width", 0.25, "--out", tmp_path / "run").code == 0
    assert command("convert", tmp_path / "run", tmp_path / "net", "--to", "hub", "--push", "owner/net").code == 0
    assert b'path = "digits"' in hub.files["README.md"]


@pytest.mark.parametrize("hub", [False], indirect=True)
def test_what_the_hub_refuses_is_one_sentence_and_the_folder_stays(hub, tmp_path):
    save_pretrained(network("cifar_resnet20", depths=(1, 1, 1)), tmp_path / "net")
    with pytest.raises(WeightsError, match="'owner/net' was not uploaded"):
        push(tmp_path / "net", "owner/net")
    with pytest.raises(WeightsError, match="'owner/net' was not uploaded"):
        push_to_hub(from_pretrained(tmp_path / "net"), "owner/net")


def test_without_a_token_nothing_is_done(tmp_path, refused, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    residuum.save(network("cifar_resnet20", depths=(1, 1, 1)), tmp_path / "net.safetensors")
    args = ("convert", tmp_path / "net.safetensors", tmp_path / "net")
    assert "hf auth login" in refused(*args, "--to", "hub", "--push", "owner/net")
    assert "no repository of the hub" in refused(*args, "--to", "hub", "--push", "net")
    assert "--to hub" in refused(*args, "--to", "hf", "--push", "owner/net")
    assert not (tmp_path / "net").exists()


# -- torch.hub ---------------------------------------------------------------------------------------------------------


ROOT = Path(__file__).parents[2]


def test_torch_hub_lists_the_presets_and_says_what_each_is(monkeypatch):
    # These two know no local folder: they are given the one to which they would download the repository.
    monkeypatch.setattr("torch.hub._get_cache_or_reload", lambda *args, **kwargs: str(ROOT))
    assert torch.hub.list("owner/repository", trust_repo=True) == sorted(PRESETS)
    said = torch.hub.help("owner/repository", "resnet18", trust_repo=True)
    assert said == "The network of the preset resnet18, as residuum.create makes it."


def test_torch_hub_loads_a_preset_with_fields_and_with_weights(tmp_path):
    model = torch.hub.load(str(ROOT), "resnet18", source="local", num_classes=10, width=0.25)
    assert model.config == residuum.preset("resnet18").replace(num_classes=10, width=0.25)
    residuum.save(model, tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    again = torch.hub.load(str(ROOT), "resnet18", source="local", num_classes=10, width=0.25, weights=path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(residuum.ConfigError, match="num_classes"):
        torch.hub.load(str(ROOT), "resnet18", source="local", num_classes=-1)
