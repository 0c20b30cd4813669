"""Folders for servers: what they say is what the file takes; and the clients and servers that the page shows."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.networks import scramble

from residuum import Preprocessing, create
from residuum.errors import ConfigError, ExportError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from residuum.export import export
from residuum.export.servers import server_folder
from residuum.runtimes.exported import opened

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
CLASSES = ("cat", "a\nfox", '"dog"')


def network():
    torch.manual_seed(0)
    model = create("cifar_resnet20", depths=(1, 1, 1), width=0.5, num_classes=3).eval()
    scramble(model)
    model.classes, model.preprocessing = CLASSES, Preprocessing(3, (24, 32), (0.5,) * 3, (0.2,) * 3, 0.875)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network as it takes images of any size, and pixels of its own."""
    root = tmp_path_factory.mktemp("exported")
    export(network(), root / "image.onnx")
    export(network(), root / "pixels.onnx", input="pixels")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dims", "most"), [("image", [-1, -1, -1, 3], 0), ("pixels", [24, 32, 3], 32)])
def test_tritons_config_is_read_by_its_own_protobuf_and_says_what_the_file_takes(files, tmp_path, kind, dims, most):
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    folder = server_folder(files / f"{kind}.onnx", tmp_path / "models", "triton")
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.name == folder.name == kind
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == most
    assert config.HasField("dynamic_batching") == (most > 0)
    assert (config.input[0].name, config.output[0].name) == ("images", "logits")
    assert list(config.input[0].dims) == dims
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    import onnx

    graph = onnx.load(folder / "1" / "model.onnx").graph
    shape = [axis.dim_value or -1 for axis in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ([-1, *dims] if most else dims)
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert list(config.output[0].dims)[-1] == len(CLASSES)
    labels = (folder / config.output[0].label_filename).read_text().splitlines()
    assert labels == ["cat", "a\\nfox", '"dog"']


@pytest.mark.slow
def test_a_file_that_is_proved_in_fp32_alone_is_run_in_fp32_by_a_server_too(tmp_path):
    pytest.importorskip("openvino")
    export(network(), tmp_path / "net.xml", input="pixels", precision="fp32")
    server_folder(tmp_path / "net.xml", tmp_path / "models", "ovms")
    [entry] = json.loads((tmp_path / "models" / "config.json").read_text())["model_config_list"]
    assert entry["config"]["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    with pytest.raises(ConfigError, match="cannot ask OpenVINO for"):
        server_folder(tmp_path / "net.xml", tmp_path / "other", "triton")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_ovms_gets_a_file_that_takes_photographs_as_it_decodes_them(tmp_path):
    openvino = pytest.importorskip("openvino")
    export(network(), tmp_path / "net.xml", order="bgr")
    server_folder(tmp_path / "net.xml", tmp_path / "models", "ovms", name="animals")
    config = json.loads((tmp_path / "models" / "config.json").read_text())
    [entry] = config["model_config_list"]
    assert entry["config"]["name"] == "animals"
    version = tmp_path / "models" / entry["config"]["base_path"] / "1"
    assert sorted(path.name for path in version.iterdir()) == ["model.bin", "model.xml"]
    shape = openvino.Core().read_model(version / "model.xml").inputs[0].partial_shape
    assert [axis.is_dynamic for axis in shape] == [True, True, True, False]
    images = torch.randint(0, 256, (1, 40, 50, 3), dtype=torch.uint8)
    assert torch.equal(opened(version / "model.xml")(images), opened(tmp_path / "net.xml")(images))
    said = (tmp_path / "net.xml").read_text()
    assert "bgr" in said
    (tmp_path / "rgb.xml").write_text(said.replace("bgr", "rgb"))
    (tmp_path / "net.bin").rename(tmp_path / "rgb.bin")
    with pytest.raises(ConfigError, match="decodes photographs as BGR"):
        server_folder(tmp_path / "rgb.xml", tmp_path / "other", "ovms")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_what_does_not_go_together_is_refused_and_leaves_nothing(files, tmp_path):
    wrong = [
        (ConfigError, "server is 'torchserve'", ("pixels.onnx", "torchserve", None)),
        (ConfigError, "not what triton loads", ("net.pt2", "triton", None)),
        (ConfigError, "name is '../x'", ("pixels.onnx", "triton", "../x")),
        (ExportError, "there is no file", ("none.onnx", "triton", None)),
    ]
    for kind, says, (file, server, name) in wrong:
        with pytest.raises(kind, match=re.escape(says)):
            server_folder(files / file, tmp_path / "models", server, name=name)
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        server_folder(files / "pixels.onnx", tmp_path / "there", "triton")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# -- what the page shows -----------------------------------------------------------------------------------------------


def shown(word):
    """The code block of the page that has a word in it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return next(block for kind, block in blocks if not kind and word in block)


class Served(BaseHTTPRequestHandler):
    """KServe's protocol, version 2, with binary tensors, as far as one network needs it."""

    run = None

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        said = json.loads(body[:length])
        [given], [wanted] = said["inputs"], said["outputs"]
        assert self.path == "/v2/models/pixels/infer"
        assert (given["name"], given["datatype"], wanted["name"]) == ("images", "UINT8", "logits")
        assert given["parameters"]["binary_data_size"] == len(body) - length == np.prod(given["shape"])
        images = torch.frombuffer(bytearray(body[length:]), dtype=torch.uint8).view(given["shape"])
        logits = self.run(images).numpy()
        output = {
            "name": "logits", "datatype": "FP32", "shape": logits.shape,
            "parameters": {"binary_data_size": logits.nbytes},
        }  # fmt: skip
        head = json.dumps({"model_name": "pixels", "outputs": [output]}).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("Content-Length", str(len(head) + logits.nbytes))
        self.end_headers()
        self.wfile.write(head + logits.tobytes())


@pytest.mark.slow
def test_the_client_of_the_page_gets_the_logits_of_the_file(files, monkeypatch):
    file = opened(files / "pixels.onnx")
    monkeypatch.setattr(Served, "run", staticmethod(file))
    server = HTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    namespace = {}
    exec(shown("def classify"), namespace)
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    logits = namespace["classify"](f"http://127.0.0.1:{server.server_port}", "pixels", images)
    server.shutdown()
    server.server_close()
    assert np.array_equal(logits, file(torch.from_numpy(images)).numpy())


@pytest.mark.slow
def test_the_litserve_example_of_the_page_answers_ten_requests(files, tmp_path):
    pytest.importorskip("litserve")
    (tmp_path / "server.py").write_text(shown("class Classifier"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "png")
    body = json.dumps({"image": base64.b64encode(content.getvalue()).decode()}).encode()
    expected = opened(files / "image.onnx")(torch.from_numpy(photo)[None])[0].softmax(0).tolist()
    command = [sys.executable, str(tmp_path / "server.py"), str(files / "image.onnx"), str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, process_group=0)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
        for _ in range(10):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                said = json.load(answer)
            assert list(said) == list(CLASSES)
            assert list(said.values()) == pytest.approx(expected, abs=1e-6)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def wait_for(address, process, log):
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text())
