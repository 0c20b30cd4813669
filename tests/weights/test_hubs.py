"""Weights by reference: fetched once, checked, with what libraries say beside them; and what is said where it fails."""

import hashlib
import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file
from tests.networks import scramble

from residuum import ResNetConfig, WeightsError, create, from_pretrained, load, load_weights
from residuum.data.preparing import evaluation_transform
from residuum.errors import MissingExtraError
from residuum.files import cache_folder
from residuum.preprocessing import Preprocessing
from residuum.weights import hubs
from residuum.weights.converting import convert, inspect
from residuum.weights.published import imagenet_classes

CONFIG = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)
NAMES = ["cat", "dog", "eel", "fox", "gnu"]


def network(config=CONFIG):
    torch.manual_seed(0)
    model = create(config)
    scramble(model)
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Hub:
    """A hub in this machine, as huggingface_hub knows it: `files` are those of its repositories."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.damaged = False
        self.asked: list[str] = []
        self.token = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET(body=False)

            def do_GET(self, body=True):
                parts = self.path.partition("?")[0].strip("/").split("/")
                name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
                files = hub.files.get(name)
                hub.asked.append(self.path)
                hub.token = self.headers.get("Authorization", "")
                if files is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if parts[0] == "api":
                    content, etag = json.dumps(hub.listing(name)).encode(), "api"
                else:
                    content = files[parts[-1]]
                    etag = hashlib.sha256(content).hexdigest()
                    content = content[:-1] + b"x" if hub.damaged else content
                self.send_response(200)
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def listing(self, name):
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100},
            }
            for file, content in self.files[name].items()
        ]
        return {"id": name, "modelId": name, "sha": "0" * 40, "siblings": siblings}

    def add(self, name, state, tmp_path, **notes):
        save_file(dict(state), tmp_path / "made.safetensors")
        self.files[name] = {"model.safetensors": (tmp_path / "made.safetensors").read_bytes()}
        for note, values in notes.items():
            self.files[name][f"{note}.json"] = json.dumps(values).encode()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    served = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "".join(template[1:]))
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    served.add("owner/net", network().state_dict(), tmp_path)
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_a_reference_is_fetched_once(hub):
    model = create(CONFIG)
    report = load_weights(model, "hf:owner/net")
    assert same(model, network())
    assert report.source == "hf:owner/net"
    hub.files.clear()
    load_weights(model, "hf:owner/net")


def test_a_download_that_is_damaged_is_refused_and_not_kept(hub, tmp_path):
    hub.damaged = True
    with pytest.raises(WeightsError, match="checksum differs"):
        load_weights(create(CONFIG), "hf:owner/net")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_reference_that_does_not_exist_says_so(hub):
    with pytest.raises(WeightsError, match="'hf:owner/other' does not exist"):
        load_weights(create(CONFIG), "hf:owner/other")
    with pytest.raises(WeightsError, match="'timm:resnet50.none' does not exist"):
        load_weights(create(CONFIG), "timm:resnet50.none")


def test_a_revision_is_kept_apart_and_is_what_the_hub_is_asked_for(hub, tmp_path):
    load("hf:owner/net@v1")
    assert any("/revision/v1" in path for path in hub.asked)
    assert (tmp_path / "cache" / "hub" / "owner" / "net@v1" / "model.safetensors").is_file()
    assert not (tmp_path / "cache" / "hub" / "owner" / "net").exists()
    hub.asked.clear()
    from_pretrained("owner/net", revision="v1")
    assert hub.asked == []


def test_where_it_is_kept_whose_it_is_and_whether_it_is_fetched_again_can_be_said(hub, tmp_path):
    from_pretrained("owner/net", cache_dir=tmp_path / "elsewhere", token="hf_mine")
    assert hub.token == "Bearer hf_mine"
    assert (tmp_path / "elsewhere" / "hub" / "owner" / "net" / "model.safetensors").is_file()
    with pytest.raises(WeightsError, match="nothing is to be downloaded"):
        from_pretrained("owner/net", local_files_only=True)
    first = from_pretrained("owner/net")
    torch.manual_seed(1)
    other = create(CONFIG)
    hub.add("owner/net", other.state_dict(), tmp_path)
    assert same(from_pretrained("owner/net", local_files_only=True), first)
    assert same(from_pretrained("owner/net"), first)
    assert same(from_pretrained("owner/net", force_download=True), other)


def test_fetching_anew_leaves_nothing_of_the_commit_before(hub, tmp_path):
    notes = {"config": TIMM, "preprocessor_config": {"size": 64}}
    hub.add("owner/net", network().state_dict(), tmp_path, **notes)
    folder = tmp_path / "cache" / "hub" / "owner" / "net"
    assert from_pretrained("owner/net").classes == tuple(NAMES)
    (folder / "mine.txt").touch()
    torch.manual_seed(1)
    other = create(CONFIG)
    torch.save(other.state_dict(), tmp_path / "made.bin")
    hub.files["owner/net"] = {"pytorch_model.bin": (tmp_path / "made.bin").read_bytes()}
    again = from_pretrained("owner/net", force_download=True)
    assert same(again, other)
    assert again.classes is None
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["mine.txt", "pytorch_model.bin"]


def test_offline_the_error_names_the_file_to_place_and_where(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))
    place = tmp_path / "hub" / "owner" / "net"
    with pytest.raises(WeightsError) as caught:
        load_weights(create(CONFIG), "hf:owner/net")
    assert str(place) in str(caught.value)
    place.mkdir(parents=True, exist_ok=True)
    save_file(network().state_dict(), place / "model.safetensors")
    load_weights(create(CONFIG), "hf:owner/net")


def test_without_huggingface_hub_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r'pip install "residuum-nn\[hub\]"'):
        load("hf:owner/net")


@pytest.mark.parametrize(
    "reference",
    [
        "hf:nothing",
        "hf:a/b/c",
        "timm:../x",
        "hf:../../etc",
        "hf:a/..",
        "timm:",
        "hf:" + "a/" * 999,
        "hf:a/b@",
        "hf:a/b@../c",
    ],
)
def test_what_is_no_reference_is_refused_before_anything_is_asked(reference):
    with pytest.raises(WeightsError, match="is no reference"):
        load(reference)


# -- what travels with the weights -------------------------------------------------------------------------------------

TIMM = {
    "architecture": "resnetblur18",
    "num_classes": 5,
    "pretrained_cfg": {
        "tag": "mine", "input_size": [3, 96, 64], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    },
    "label_names": NAMES,
}  # fmt: skip


def test_timms_labels_preprocessing_and_architecture_travel_with_its_weights(hub, tmp_path):
    blurred = network(CONFIG.replace(antialias="blur"))
    hub.add("timm/resnetblur18.mine", blurred.state_dict(), tmp_path, config=TIMM)
    model = load("timm:resnetblur18.mine")
    assert not model.training
    assert model.classes == tuple(NAMES)
    assert model.preprocessing == Preprocessing(3, (96, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95, "bicubic")
    assert model.config.antialias == "blur"
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), blurred.eval()(x))


@pytest.mark.parametrize(
    ("side", "share", "scaled"), [(224, 0.95, 235), (224, 0.875, 256), (160, 0.95, 168), (96, 1.0, 96)]
)
def test_images_are_scaled_to_the_side_that_timm_rounds_down_to(hub, tmp_path, side, share, scaled):
    notes = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"input_size": [3, side, side], "crop_pct": share}}
    hub.add("timm/resnet18.mine", network(CONFIG).state_dict(), tmp_path, config=notes | {"architecture": "resnet18"})
    look = load("timm:resnet18.mine").preprocessing
    assert int(side / share) == scaled == round(side / look.crop)
    image = torch.randint(0, 256, (3, scaled, 2 * scaled), dtype=torch.uint8)
    top, left = round((scaled - side) / 2), round((2 * scaled - side) / 2)
    assert torch.equal(evaluation_transform(look)(image), image[:, top : top + side, left : left + side])


def test_a_thousand_classes_of_timm_are_imagenets_where_its_tag_says_so(hub, tmp_path):
    config = CONFIG.replace(num_classes=1000)
    notes = TIMM | {"num_classes": 1000, "architecture": "resnet18"}
    del notes["label_names"]
    for tag, known in (("a1_in1k", True), ("mine", False)):
        hub.add(f"timm/resnet18.{tag}", network(config).state_dict(), tmp_path, config=notes)
        model = load(f"timm:resnet18.{tag}")
        assert (model.classes is not None) is known
    assert imagenet_classes()[0] == "tench"
    assert len(imagenet_classes()) == 1000


def test_hugging_faces_labels_and_processor_travel_there_and_back(hub, tmp_path):
    state = network().state_dict()
    preprocessing = Preprocessing(3, (224, 224), (0.4,) * 3, (0.2,) * 3, 0.875, "bicubic")
    from residuum import save

    made = network()
    save(made, tmp_path / "net.safetensors", classes=NAMES, preprocessing=preprocessing)
    convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")
    again = load(tmp_path / "hf")
    assert (again.classes, again.preprocessing) == (tuple(NAMES), preprocessing)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())


def test_several_classes_an_image_travel_to_hugging_face_and_back(tmp_path):
    from residuum import save

    made = network()
    made.several_classes = True
    save(made, tmp_path / "net.safetensors")
    convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "back.safetensors", "residuum")
    assert load(tmp_path / "hf").several_classes
    assert load(tmp_path / "back.safetensors").several_classes
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_a_crop_that_no_processor_of_hugging_face_does_is_refused_before_the_folder(tmp_path):
    from residuum import save

    wide = Preprocessing(3, (48, 96), (0.4,) * 3, (0.2,) * 3, 0.875)
    save(network(), tmp_path / "net.safetensors", preprocessing=wide)
    with pytest.raises(WeightsError, match="no image processor that crops 48x96"):
        convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf", preprocessing=replace(wide, crop=0.0))
    assert load(tmp_path / "hf").preprocessing == replace(wide, crop=0.0)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_for_hugging_face_is_whole_or_not_there(tmp_path, monkeypatch, failure):
    def fail(partial, content):
        raise failure

    torch.save(network().state_dict(), tmp_path / "net.pt")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", fail)
        with pytest.raises((WeightsError, KeyboardInterrupt)):
            convert(tmp_path / "net.pt", tmp_path / "hf", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize(
    ("processor", "size", "crop", "interpolation"),
    [
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, (224, 224), 0.875, "bicubic"),
        ({"size": 224, "crop_pct": 0.875, "resample": 2}, (224, 224), 0.875, "bilinear"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), 0.0, "bicubic"),
        ({"size": {"height": 64, "width": 96}}, (64, 96), 0.0, "bicubic"),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, 224), 0.875, "bicubic"),
    ],
)
def test_each_form_of_hugging_faces_processors_is_understood(hub, tmp_path, processor, size, crop, interpolation):
    from residuum.weights.converting import in_layout

    notes = {"model_type": "resnet", "id2label": {str(i): name for i, name in enumerate(NAMES)}}
    said = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3} | processor
    state = {k: v.contiguous() for k, v in in_layout(network().state_dict(), CONFIG, "hf").items()}
    hub.add("owner/other", state, tmp_path, config=notes, preprocessor_config=said)
    model = load("hf:owner/other")
    assert model.preprocessing == Preprocessing(3, size, (0.1,) * 3, (0.2,) * 3, crop, interpolation)
    assert model.classes == tuple(NAMES)


@pytest.mark.parametrize(
    "processor", [{"size": {"shortest_edge": 0}, "crop_size": 224}, {"size": 1, "crop_size": 10**400}, {"size": "big"}]
)
def test_a_processor_of_absurd_sizes_is_refused_in_one_sentence(tmp_path, processor):
    from residuum import save

    save(network(), tmp_path / "net.safetensors", classes=NAMES)
    convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(WeightsError, match="the preprocessor's beside it, cannot be read"):
        load(tmp_path / "hf")


@pytest.fixture
def torchvisions(tmp_path, monkeypatch):
    """torchvision's resnet18, with weights of ours in the place where they are kept, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    place = cache_folder() / "torchvision" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    return place


def test_torchvisions_files_are_checked_and_can_be_placed(torchvisions, monkeypatch):
    model = create("resnet18", num_classes=3)
    with pytest.raises(WeightsError, match="place the file at") as caught:
        load_weights(model, "torchvision:IMAGENET1K_V1")
    assert str(torchvisions) in str(caught.value)
    torch.save(create("resnet18").state_dict(), torchvisions)
    with pytest.raises(WeightsError, match="checksum differs"):
        load_weights(model, "torchvision:IMAGENET1K_V1")
    monkeypatch.setattr(hubs, "_sha256", lambda path: "f37072fd" + 56 * "0")
    assert "head of 1000 classes was left out" in str(load_weights(model, "torchvision:IMAGENET1K_V1"))
    assert model.classes is None
    assert model.preprocessing.crop == 224 / 256


@pytest.mark.slow
def test_torchvisions_categories_and_transforms_travel_through_convert(torchvisions, monkeypatch, tmp_path):
    torch.save(create("resnet18").state_dict(), torchvisions)
    monkeypatch.setattr(hubs, "_sha256", lambda path: "f37072fd" + 56 * "0")
    convert("torchvision:resnet18.IMAGENET1K_V1", tmp_path / "r18.safetensors", "residuum")
    model = load(tmp_path / "r18.safetensors")
    assert model.classes[:2] == ("tench", "goldfish")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert model.preprocessing == Preprocessing(3, (224, 224), mean, std, 224 / 256, "bilinear")
    found = inspect("torchvision:resnet18.IMAGENET1K_V1")
    assert found.presets == ("resnet18", "resnetblur18")
    by_name = create("resnet18", weights="torchvision:IMAGENET1K_V1")
    assert by_name.classes == model.classes


def test_one_variable_says_where_everything_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RESIDUUM_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "residuum")
