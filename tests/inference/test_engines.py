"""Networks run by other engines: the network's answers, or a refusal; and which engine `auto` takes."""

import copy
import json
import shutil
import threading

import pytest
import torch
from tests.networks import relative, scramble

from residuum import ConfigError, DeviceError, ExportError, MissingExtraError, ResiduumError, create
from residuum import optimize_for_inference as optimize
from residuum.errors import DataError
from residuum.inference import choice, engines
from residuum.inference.optimize import EngineResNet

SMALL = {"depths": (1, 1), "widths": (16, 24), "stem_width": 16, "num_classes": 10}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))
    return tmp_path / "engines"


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = create("resnet50", **SMALL)
    scramble(network)
    return network.eval()


def plainly(model, images):
    with torch.no_grad():
        return model(images)


@pytest.fixture
def stand_ins(monkeypatch):
    """The two runtimes stood in for by the folded network itself, so that nothing is converted; it counts them."""
    made = []

    def stand_in(name):
        def make(program, *_):
            made.append(name)
            return program, "fp32"

        return make

    for name in engines.LIBRARIES:
        monkeypatch.setattr(choice, f"{name}_run", stand_in(name))
    monkeypatch.setattr(choice, "program_of", lambda net, *_, **__: net)
    monkeypatch.setattr(engines, "find_spec", lambda library: object())
    return made


def speeds(monkeypatch, **seconds):
    """Let a measurement find these seconds, in place of a clock."""
    monkeypatch.setattr(choice, "seconds_of", lambda runs, images, device: {name: seconds[name] for name in runs})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_runtime_answers_as_the_network_does_in_batches_of_any_size(engine, model):
    for library in engines.LIBRARIES[engine]:
        pytest.importorskip(library)
    net = optimize(model, engine=engine, precision="fp32", shapes=[(3, 3, 40, 36)])
    assert (net.engine, net.precision) == (engine, "fp32")
    for count in (3, 1, 5):
        images = torch.randn(count, 3, 40, 36)
        with torch.inference_mode():
            assert relative(net(images), plainly(model, images)) < 1e-5
    assert [f.shape for f in net.features(images)] == [f.shape for f in model.features(images)]


@pytest.mark.slow
@pytest.mark.skipif(engines.compiler() is None, reason="needs a C++ compiler")
def test_compiled_networks_answer_as_the_network_does_and_a_short_batch_compiles_nothing(tmp_path):
    package = tmp_path / "network.pt2"
    model, images = create("resnet50", **SMALL | {"depths": (1,), "widths": (16,)}).eval(), torch.randn(4, 3, 32, 32)
    for chosen in ({"engine": "inductor"}, {"engine": "aoti", "package": package}):
        net = optimize(model, precision="fp32", shapes=[(4, 3, 32, 32)], **chosen)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for batch in (images, images[:3], images[:1]):
            for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
                with mode():
                    got = net(batch)
                assert relative(got, plainly(model, batch)) < 1e-5 and not got.requires_grad
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    written = package.read_bytes()
    optimize(model, engine="aoti", package=package, precision="fp32", shapes=[(2, 3, 32, 32)])
    assert package.read_bytes() == written, "a package that is there is read"
    other = create(model.config).eval()
    with pytest.raises(ExportError, match="gives other answers than the network"):
        optimize(other, engine="aoti", package=package, precision="fp32", shapes=[(2, 3, 32, 32)])


def test_auto_takes_the_fastest_and_says_what_it_found(model, monkeypatch, stand_ins):
    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.125)
    net, images = optimize(model, engine="auto", precision="fp32"), torch.randn(4, 3, 32, 32)
    assert (net.engine, stand_ins) == ("auto", [])
    assert relative(net(images), plainly(model, images)) < 1e-5
    assert (net.engine, net.precision) == ("openvino", "fp32")
    assert net.why.endswith("; openvino gives 32 images/s at 4x3x32x32, onnxruntime 16, eager 8")
    net(images[:1])
    assert stand_ins == ["onnxruntime", "openvino"], "a shorter batch makes nothing anew"
    net(torch.randn(1, 3, 36, 32))
    assert len(stand_ins) == 4, "images of another size are measured"


def test_auto_stays_eager_where_another_engine_gains_next_to_nothing(model, monkeypatch, stand_ins):
    speeds(monkeypatch, eager=0.5, onnxruntime=0.495, openvino=0.6)
    assert optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32)]).engine == "eager"


def test_each_shape_that_is_named_has_the_engine_that_is_fastest_for_it(model, monkeypatch, stand_ins):
    def found(runs, images, device):
        return {name: 1.0 if (name == "openvino") == (len(images) == 1) else 2.0 for name in runs}

    monkeypatch.setattr(choice, "seconds_of", found)
    monkeypatch.setattr(choice, "_fastest", lambda known: max(reversed(known), key=known.get))
    net = optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32), (8, 3, 32, 32)])
    assert [net._runs.chosen[count, 3, 32, 32] for count in (1, 8)] == ["openvino", "onnxruntime"]
    net(torch.randn(6, 3, 32, 32))
    assert net._runs.chosen[6, 3, 32, 32] == "onnxruntime"


def test_an_engine_with_other_answers_is_never_used(model, monkeypatch, stand_ins):
    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.1)
    right = choice.openvino_run
    wrong = lambda program, *_: (lambda images: 1.01 * right(program)[0](images), "fp32")  # noqa: E731
    monkeypatch.setattr(choice, "openvino_run", wrong)
    net = optimize(model, engine="auto", precision="fp32", shapes=[(2, 3, 32, 32)])
    assert net.engine == "onnxruntime"
    assert "engine 'openvino' gives other answers than the network: 0.01 of the largest apart" in net.why
    named = optimize(model, engine="openvino", precision="fp32")
    for _ in range(2):
        with pytest.raises(ExportError, match="gives other answers than the network"):
            named(torch.randn(2, 3, 32, 32))


def test_a_measurement_is_remembered_and_the_answers_are_compared_again(model, monkeypatch, stand_ins, cache):
    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.1)
    shapes = [(2, 3, 32, 32)]
    optimize(model, engine="auto", precision="fp32", shapes=shapes)
    stand_ins.clear()
    monkeypatch.setattr(choice, "seconds_of", lambda *_: pytest.fail("measured again"))
    net = optimize(model, engine="auto", precision="fp32", shapes=shapes)
    assert (net.engine, stand_ins) == ("openvino", ["openvino"])
    assert net.why.endswith("eager 4, as measured before")

    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "openvino_run", lambda program, *_: (lambda images: images.flatten(1)[:, :10], "fp32"))
        assert optimize(model, engine="auto", precision="fp32", shapes=shapes).engine == "onnxruntime"
    (path,) = cache.iterdir()
    for content in (
        b"",
        b"[]",
        b"\xff",
        b'{"key": 1}',
        path.read_bytes().replace(b'"openvino": 20', b'"openvino": "20"'),
    ):
        path.write_bytes(content)
        stand_ins.clear()
        assert optimize(model, engine="auto", precision="fp32", shapes=shapes).engine == "openvino"
        assert stand_ins == ["onnxruntime", "openvino"], f"{content} was believed"


def test_another_shape_thread_count_or_network_is_measured_by_itself(model, monkeypatch, stand_ins, cache):
    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.1)
    threads = torch.get_num_threads()
    optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32), (2, 3, 32, 32)])
    model.fc = torch.nn.Sequential(torch.nn.Identity(), model.fc)  # which says that it is in training, to no effect
    optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32)])
    try:
        torch.set_num_threads(threads + 1)
        optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32)])
    finally:
        torch.set_num_threads(threads)
    keys = [json.loads(path.read_text())["key"] for path in cache.iterdir()]
    assert len(keys) == 4
    assert {tuple(key["shape"]) for key in keys} == {(1, 3, 32, 32), (2, 3, 32, 32)}


def test_a_cache_folder_that_cannot_be_written_only_costs_the_next_measurement(model, monkeypatch, stand_ins, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "file"))
    speeds(monkeypatch, eager=0.5, onnxruntime=0.25, openvino=0.1)
    assert optimize(model, engine="auto", precision="fp32", shapes=[(1, 3, 32, 32)]).engine == "openvino"


def test_what_only_eager_mode_runs_stays_there_or_is_refused(model, stand_ins):
    images = torch.randn(2, 3, 32, 32)
    expected = plainly(model, images)
    hooked, training = copy.deepcopy(model), copy.deepcopy(model)
    hooked.layer1.register_forward_hook(lambda *_: None)
    training.layer1[0].bn1.train()
    for network, why in ((hooked, "'layer1' has a forward hook"), (training, "'layer1.0.bn1' is in training")):
        net = optimize(network, engine="auto", precision="fp32")
        assert net.engine == "eager" and why in net.why
        with pytest.raises(ConfigError, match=f"{why}.*; engine is 'openvino'"):
            optimize(network, engine="openvino")
    assert relative(optimize(hooked, engine="auto", precision="fp32")(images), expected) < 1e-5


def test_threads_that_come_at_once_make_an_engine_once(model, monkeypatch, stand_ins):
    net, images = optimize(model, engine="openvino", precision="fp32"), torch.randn(2, 3, 32, 32)
    found = []
    threads = [threading.Thread(target=lambda: found.append(net(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stand_ins == ["openvino"] and len(found) == 4
    assert all(relative(logits, plainly(model, images)) < 1e-5 for logits in found)


def test_an_engine_that_another_thread_gives_back_is_made_again(model, stand_ins):
    net, images = optimize(model, engine="openvino", precision="fp32"), torch.randn(2, 3, 32, 32)
    net(images)

    class GivesBack(dict):
        """What was chosen; as soon as it has been looked up, another thread needs the place for other sizes."""

        def get(self, shape, *default):
            found = super().get(shape, *default)
            if threading.current_thread() is threading.main_thread() and not runs.lock.locked():
                other = threading.Thread(target=forget)
                other.start()
                other.join()
            return found

    def forget():
        with runs.lock:
            runs.chosen = {}
            runs._drop()

    runs = net._runs
    runs.chosen = GivesBack(runs.chosen)
    assert relative(net(images), plainly(model, images)) < 1e-5


def test_the_contract_of_the_eager_network_holds(model, stand_ins):
    model.classes = tuple("abcdefghij")
    net = optimize(model, engine="openvino", precision="fp32")
    assert isinstance(net, EngineResNet) and net.classes == model.classes and net.preprocessing is None
    with torch.no_grad():
        model.fc.weight.zero_()
    assert net(torch.randn(1, 3, 32, 32)).std() > 0, "it was made from the network as it was"
    wrong = [
        (ConfigError, "cannot train", net.train),
        (ConfigError, "keeps its device and precision", net.half),
        (ConfigError, "not saved or copied", lambda: copy.deepcopy(net)),
        (ConfigError, "not saved or copied", net.state_dict),
        (DataError, "takes (N, 3, H, W)", lambda: net(torch.randn(3, 32, 32))),
        (DeviceError, "move the images", lambda: net(torch.randn(1, 3, 32, 32, device="meta"))),
    ]
    for kind, says, act in wrong:
        with pytest.raises(ResiduumError) as raised:
            act()
        assert type(raised.value) is kind and says in str(raised.value)
    assert net.eval() is net


def test_what_cannot_be_is_refused_in_a_sentence_before_anything_is_made(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    wrong = [
        (ConfigError, "engine is 'openvin'; it must be one of auto, eager", {"engine": "openvin"}),
        (ConfigError, "did you mean 'openvino'", {"engine": "openvin"}),
        (ConfigError, "engine is None", {"engine": None}),
        (MissingExtraError, 'pip install "residuum-nn[openvino]"', {"engine": "openvino"}),
        (MissingExtraError, 'pip install "residuum-nn[export]"', {"engine": "onnxruntime"}),
        (DeviceError, "ONNX Runtime computes no bf16", {"engine": "onnxruntime", "precision": "bf16"}),
        (DeviceError, "OpenVINO computes no bf16 on this processor", {"engine": "openvino", "precision": "bf16"}),
        (DeviceError, "needs a C++ compiler such as g++", {"engine": "inductor"}),
        (DeviceError, "needs a C++ compiler such as g++", {"engine": "aoti"}),
        (ConfigError, "package is for engine 'aoti'", {"engine": "openvino", "package": "a.pt2"}),
        (ConfigError, "does not end in .pt2", {"engine": "aoti", "package": "a.so"}),
        (ConfigError, "it must be a list of (N, 3, H, W)", {"engine": "auto", "shapes": [(8, 1, 32, 32)]}),
        (ConfigError, "it must be a list of (N, 3, H, W)", {"shapes": (8, 3, 32, 32)}),
        (ConfigError, "it must be a list of (N, 3, H, W)", {"shapes": [(0, 3, 32, 32)]}),
    ]
    for kind, says, chosen in wrong:
        with pytest.raises(ResiduumError) as raised:
            optimize(model, **chosen)
        assert type(raised.value) is kind and says in str(raised.value), raised.value


def test_an_engine_for_cpus_refuses_a_network_on_an_accelerator():
    for engine in ("aoti", "onnxruntime", "openvino"):
        with pytest.raises(DeviceError, match=f"engine '{engine}' computes on CPUs here and the network is on cuda"):
            engines.refuse_engine(engine, torch.device("cuda"), "auto")
    engines.refuse_engine("inductor", torch.device("cuda"), "auto")
    assert engines.candidates(torch.device("cuda"), "auto") == ("eager", "inductor")


def test_auto_measures_runtimes_that_are_installed_or_else_the_compiler(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(engines, "compiler", lambda: "g++")
    monkeypatch.setattr(engines, "find_spec", lambda library: library != "onnxscript" or None)
    assert engines.candidates(cpu, "auto") == ("eager", "openvino")
    monkeypatch.setattr(engines, "find_spec", lambda library: object())
    assert engines.candidates(cpu, "auto") == ("eager", "onnxruntime", "openvino")
    assert engines.candidates(cpu, "bf16") == ("eager", "openvino")
    monkeypatch.setattr(engines, "find_spec", lambda library: None)
    assert engines.candidates(cpu, "auto") == ("eager", "inductor")
    monkeypatch.setattr(engines, "compiler", lambda: None)
    assert engines.candidates(cpu, "auto") == ("eager",)


def test_the_shortest_turn_counts(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(choice, "now", lambda device: float(next(ticks)))
    found = choice.seconds_of({"a": torch.sin, "b": torch.cos}, torch.zeros(1), torch.device("cpu"))
    assert found == {"a": 1.0, "b": 1.0}
