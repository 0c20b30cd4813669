"""ONNX Runtime and OpenVINO run a program as torch does, or say in a sentence why not."""

import subprocess
import sys
import threading

import pytest
import torch
from torch.export import Dim

from residuum import ConfigError, DeviceError, ExportError, MissingExtraError, create
from residuum.inference.optimize import folded_network
from residuum.runtimes.onnx import OnnxSession, onnx_model
from residuum.runtimes.openvino import OpenVinoSession, openvino_model

pytestmark = pytest.mark.slow  # the networks that all of them run are exported first


@pytest.fixture(scope="module")
def network():
    return folded_network(create("cifar_resnet20", width=0.25), "fp32", plain=True)


@pytest.fixture(scope="module")
def program(network):
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(network, (torch.zeros(2, 3, 32, 36),), dynamic_shapes=(free,))


@pytest.fixture(scope="module")
def onnx_bytes(program):
    pytest.importorskip("onnxscript")
    return onnx_model(program).SerializeToString()


@pytest.fixture(scope="module")
def openvino_network(program):
    pytest.importorskip("openvino")
    return openvino_model(program)


@pytest.fixture(params=["onnx", "openvino"], scope="module")
def session(request):
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
        return OnnxSession(request.getfixturevalue("onnx_bytes"), threads=1)
    return OpenVinoSession(request.getfixturevalue("openvino_network"), precision="fp32", threads=1)


def test_a_session_answers_as_the_network_does_for_any_batch_and_size(session, network):
    for shape in ((1, 3, 32, 32), (5, 3, 47, 30)):
        images = torch.randn(shape)
        torch.testing.assert_close(session(images), network(images), rtol=1e-5, atol=1e-5)
    turned = torch.randn(2, 30, 40, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(session(turned), network(turned), rtol=1e-5, atol=1e-5)
    assert session.precision == "fp32"


def test_an_answer_is_not_written_over_by_the_next_one(session):
    first = session(torch.ones(1, 3, 32, 32))
    kept = first.clone()
    session(torch.zeros(1, 3, 32, 32))
    assert torch.equal(first, kept)


def test_threads_may_call_a_session_at_once(session):
    batches = [torch.randn(2, 3, 32, 32) for _ in range(4)]
    expected = [session(images) for images in batches]
    equal = []

    def run(i):
        equal.extend(torch.equal(session(batches[i]), expected[i]) for _ in range(10))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 40 and all(equal)


def test_a_batch_that_does_not_fit_is_an_error_of_ours(session):
    with pytest.raises(ExportError, match="cannot run the network: .*2"):
        session(torch.zeros(1, 2, 32, 32))
    with pytest.raises(DeviceError, match="on meta, and this runtime computes on the CPU"):
        session(torch.zeros(1, 3, 32, 32, device="meta"))


def test_an_opset_is_had_or_refused(program):
    pytest.importorskip("onnxscript")
    assert onnx_model(program, opset=19).opset_import[0].version == 19
    for opset in (17, 99, "18", True):
        with pytest.raises(ConfigError, match="opset is .*; it must be an integer from 18 to"):
            onnx_model(program, opset=opset)


def test_the_model_says_what_its_input_and_output_are(onnx_bytes):
    model = pytest.importorskip("onnx").load_from_string(onnx_bytes)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [bool(d.dim_param) for d in images.type.tensor_type.shape.dim] == [True, False, True, True]


def test_openvino_runs_in_the_precision_that_the_compiled_model_says(openvino_network):
    ov = pytest.importorskip("openvino")
    here = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    session = OpenVinoSession(openvino_network, threads=1)
    assert session.precision == ("bf16" if "BF16" in here else "fp32")
    if "BF16" not in here:
        with pytest.raises(DeviceError, match="computes no bf16 on this processor; ask for fp32 or auto"):
            OpenVinoSession(openvino_network, precision="bf16")
    with pytest.raises(ConfigError, match="precision is 'int8'; it must be one of auto, fp32, bf16"):
        OpenVinoSession(openvino_network, precision="int8")


SIGNALLED = """
import pathlib, signal, sys
import openvino
from residuum.runtimes.openvino import OpenVinoSession
signal.signal(signal.SIGTERM, lambda number, frame: print("caught"))
path = pathlib.Path(sys.argv[1])
first = OpenVinoSession(path)
second = OpenVinoSession(path)
del first
del second
openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # as another library makes and drops one
signal.raise_signal(signal.SIGTERM)
print("alive")
"""


def test_a_signal_after_openvino_is_no_crash(openvino_network, tmp_path):
    pytest.importorskip("openvino").save_model(openvino_network, tmp_path / "network.xml")
    line = [sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(tmp_path / "network.xml")]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, ["caught", "alive"]), ended.stderr


def test_a_file_that_is_no_model_is_refused(tmp_path):
    for name, open_it in (("a.onnx", OnnxSession), ("a.xml", OpenVinoSession)):
        pytest.importorskip("onnxruntime" if open_it is OnnxSession else "openvino")
        path = tmp_path / name
        for content in (None, b"abc"):
            if content:
                path.write_bytes(content)
            with pytest.raises(ExportError, match=f"cannot open .*{name}"):
                open_it(path)


@pytest.mark.parametrize(
    ("module", "extra"), [("onnxscript", "export"), ("onnxruntime", "export"), ("openvino", "openvino")]
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch, program, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    tries = {
        "onnxscript": lambda: onnx_model(program),
        "onnxruntime": lambda: OnnxSession(b""),
        "openvino": lambda: openvino_model(program),
    }
    with pytest.raises(MissingExtraError, match=rf'install it with: pip install "residuum-nn\[{extra}\]"'):
        tries[module]()
