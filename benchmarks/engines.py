"""Images per second of what runs a network on this CPU, by torch, by the runtimes' own tools and by this package.

    python benchmarks/engines.py
    python benchmarks/engines.py --models resnet18 --batch-sizes 1 --repetitions 1 --rounds 1 --int8

Each contender lives in a process of its own. They are timed in rounds, one after another, in an order that swaps every
round; every repetition starts new processes. The table has the median of all rounds. It needs the extras export and
openvino, with `--int8` also int8, and a C++ compiler. Weights are random: speeds do not depend on them.

The contenders: torchvision's network as it comes; the same compiled, channels-last, with frozen weights, in bf16 where
the processor computes it; the same exported and run by ONNX Runtime and OpenVINO with their own defaults, for this very
batch; `optimize_for_inference(engine="auto")`, and the same as where no extra is installed.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from residuum import create, optimize_for_inference
from residuum.bench.contenders import REFERENCES, Contender
from residuum.bench.machine import describe
from residuum.bench.measure import measure
from residuum.bench.steps import Step, prepare
from residuum.bench.workloads import Workload
from residuum.devices import DTYPES, choose_precision, set_up

CPU = torch.device("cpu")
TORCH_ALONE = ("torchvision", "torchvision compiled")
OURS = ("residuum auto", "residuum without extras")
OTHERS = (*TORCH_ALONE, "onnxruntime", "openvino")
INT8 = "openvino int8"


def step_of(contender: Contender, workload: Workload) -> Step:
    """What is timed: a batch of float32 images to logits."""
    if contender.name in REFERENCES:
        return prepare(contender, workload)
    torch.manual_seed(0)
    images = torch.randn(workload.batch_size, 3, *workload.image_size)
    run, precision = makers()[contender.name](workload.model, images)

    def infer() -> None:
        with torch.inference_mode():
            run(images)

    return Step(infer, infer, list, precision)


def makers() -> dict[str, Callable[[str, Tensor], tuple[Callable[[Tensor], object], Any]]]:
    """Contender to what makes it."""
    return {
        "torchvision": lambda model, images: (torchvisions(model), "fp32"),
        "torchvision compiled": compiled,
        "onnxruntime": onnxruntime,
        "openvino": openvino,
        INT8: int8,
        "residuum auto": ours,
        "residuum without extras": without_extras,
    }


def torchvisions(model: str) -> nn.Module:
    """The network of torchvision in evaluation."""
    import torchvision

    return torchvision.models.get_model(model, weights=None).eval()


def compiled(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The network of torchvision as torch alone runs it fastest."""
    precision, _ = choose_precision("auto", CPU)
    dtype = DTYPES[precision]
    network = torchvisions(model).to(dtype=dtype, memory_format=torch.channels_last)
    run = torch.compile(network, options={"freezing": True})
    return lambda x: run(x.to(dtype).contiguous(memory_format=torch.channels_last)), precision


def onnxruntime(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The network of torchvision exported by torch and run as ONNX Runtime's own page shows."""
    import onnxruntime as runtime

    program = torch.onnx.export(torchvisions(model), (images,), dynamo=True, external_data=False, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()}), "fp32"


def openvino(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The network of torchvision converted and compiled by OpenVINO with its defaults."""
    import openvino as ov

    return run_by_openvino(ov.convert_model(torchvisions(model), example_input=images, input=[tuple(images.shape)]))


def int8(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The same, quantized by nncf with its defaults on random images: the speed is that of any others."""
    import nncf
    import openvino as ov

    converted = ov.convert_model(torchvisions(model), example_input=images, input=[tuple(images.shape)])
    batches = [torch.randn_like(images).numpy() for _ in range(max(1, 32 // len(images)))]
    return run_by_openvino(nncf.quantize(converted, nncf.Dataset(batches)))


def run_by_openvino(model: Any) -> tuple[Callable[[Tensor], object], str]:
    """A model of OpenVINO compiled for the CPU, and the precision that it says it runs in."""
    import openvino as ov

    network = ov.compile_model(model, "CPU")
    bf16 = network.get_property("INFERENCE_PRECISION_HINT") == ov.Type.bf16
    return lambda x: network(x.numpy()), "bf16" if bf16 else "fp32"


def ours(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The fastest engine that is installed, in a process that was set up as the commands do it."""
    set_up(CPU)
    net = optimize_for_inference(create(model).eval(), engine="auto", shapes=[tuple(images.shape)])
    print(f"{model}, batch {len(images)}: {net.why}", flush=True)
    return net, net.precision


def without_extras(model: str, images: Tensor) -> tuple[Callable[[Tensor], object], str]:
    """The same where neither ONNX Runtime nor OpenVINO is installed."""
    from residuum.inference import engines

    engines.find_spec = lambda name: None  # type: ignore[assignment]
    return ours(model, images)


def main() -> None:
    """Measure, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "resnext50_32x4d"], help="networks")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32], help="images (default 1 8 32)")
    parser.add_argument("--image-size", type=int, default=224, help="height and width of images (default 224)")
    parser.add_argument("--repetitions", type=int, default=3, help="times that all processes start anew (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is timed in a process (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument("--int8", action="store_true", help="also OpenVINO in int8, by nncf's defaults")
    parser.add_argument("--contenders", nargs="+", choices=(*OTHERS, INT8, *OURS), help="some of them only")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.contenders or [*OTHERS, *([INT8] if args.int8 else []), *OURS]
    parts = [Contender(name, "benchmarks/engines.py") for name in names]
    size = (args.image_size, args.image_size)
    # Of a compiled workload no memory is looked at, for what runs here is no network of torch's.
    workloads = [
        Workload(model, "infer", "fp32", "nchw", "compiled", batch, size)
        for model in args.models
        for batch in args.batch_sizes
    ]
    print(", ".join(f"{name} {value}" for name, value in describe("cpu").items()), flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("RESIDUUM_CACHE", folder)  # so that auto measures in this run, and once
        everyone = [parts] * len(workloads)
        threads = torch.get_num_threads()
        for result in measure(workloads, everyone, args.repetitions, args.rounds, threads, print, step_of):
            results[result.name] = result
    print_table(list(results.values()), names)


def print_table(results: list[Any], names: list[str]) -> None:
    """Images/s of each, and how far ours are from the best: of all, and of what torch alone gives."""
    print(f"\n| network | batch | {' | '.join(names)} | auto of best | without extras of torch's best |")
    print(f"| --- | ---: | {' | '.join('---:' for _ in names)} | ---: | ---: |")
    for result in results:
        batch = result.settings["batch_size"]
        speeds: dict[str, float] = {}
        cells = []
        for row in result.rows:
            if row.error:
                cells.append(row.error)
                continue
            speeds[row.contender] = batch / row.step
            cells.append(f"{speeds[row.contender]:.1f} {row.precision if row.contender != INT8 else 'int8'}")
        best = max((speeds[name] for name in OTHERS if name in speeds), default=0.0)
        torchs = max((speeds[name] for name in TORCH_ALONE if name in speeds), default=0.0)
        ratios = [
            f"{speeds[name] / against:.2f}" if name in speeds and against else ""
            for name, against in zip(OURS, (best, torchs), strict=True)
        ]
        print(f"| {result.settings['model']} | {batch} | {' | '.join(cells)} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
