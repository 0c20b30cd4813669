"""The planner: predicted peaks are those measured, choices are those of an exhaustive search."""

import itertools
import random

import pytest
import torch

from residuum import ConfigError, ResNetConfig, create, freeze
from residuum.memory import MODES, Live, Planner, Speed, plan, recompute
from residuum.memory import planner as planning
from residuum.memory.planner import evaluate, options_of
from residuum.units import parse_size, show_budget, show_size

SPEED = Speed(flops=4e11, bytes=2e10)


def measured_peak(model, batch, size, dtype):
    """Bytes of a step's tensors at most, without parameters and buffers: counted on a CPU while it runs."""
    images = torch.randn(batch, model.config.in_channels, *size)
    labels = torch.randint(model.config.num_classes, (batch,))
    model.zero_grad()
    live = Live()
    live.leave_out([*model.parameters(), *model.buffers(), images, labels])
    with live:
        with torch.autocast("cpu", dtype, enabled=dtype is not None, cache_enabled=False):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
    return live.peak + images.nbytes + labels.nbytes


def random_config(draw):
    stages = draw.randint(1, 4)
    fields = {
        "depths": tuple(draw.randint(1, 4) for _ in range(stages)),
        "widths": tuple(draw.choice((16, 24, 40)) * 2**i for i in range(stages)),
        "block": draw.choice(("basic", "bottleneck")),
        "stem": draw.choice(("conv7", "deep", "conv3")),
        "stem_width": 32,
        "downsample": draw.choice(("conv", "avg")),
        "attention": draw.choice(("none", "none", "se", "eca")),
        "preact": draw.random() < 0.3,
        "activation": draw.choice(("relu", "relu", "silu", "gelu")),
        "norm": draw.choice(("batch", "batch", "group")),
        "weight_standardization": draw.random() < 0.2,
        "antialias": draw.choice(("none", "none", "blur")),
        "stochastic_depth": draw.choice((0.0, 0.2)),
        "num_classes": 10,
    }
    return ResNetConfig(**fields)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_predicted_peaks_are_those_of_real_steps(seed):
    check_peaks(seed)


@pytest.mark.slow
def test_predicted_peaks_are_those_of_real_steps_of_new_networks_each_time():
    for _ in range(2):
        seed = random.SystemRandom().randrange(2**31)
        print("seed", seed)
        check_peaks(seed)


def check_peaks(seed):
    """Two precisions by four modes and a mixed plan."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    config, batch, size = random_config(draw), draw.randint(2, 5), (draw.randint(33, 80), draw.randint(33, 80))
    model = create(config)
    fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    for dtype in (None, torch.bfloat16):
        planner = Planner(model, image_size=size, dtype=dtype, optimizer="none", speed=SPEED)
        between = (planner.least(batch) + planner.uniform(batch, "none").peak) // 2
        for chosen in (*(planner.uniform(batch, mode) for mode in MODES), planner.plan(batch, between)):
            measured = measured_peak(chosen.apply(model), batch, size, dtype)
            assert measured <= chosen.peak - fixed <= 1.05 * measured, (config, dtype, chosen)


def every_choice(depths):
    per_stage = [["stage", *itertools.product(MODES[:3], repeat=depth)] for depth in depths]
    return itertools.product(("none", "block"), *per_stage)


@pytest.mark.parametrize(
    "depths",
    [(1,), (2, 2), *(pytest.param(d, marks=pytest.mark.slow) for d in [(3, 2), (2, 1, 3), (4, 3), (2, 2, 2, 2)])],
)
@pytest.mark.parametrize("preact", [False, True])
def test_the_choice_is_that_of_an_exhaustive_search(depths, preact):
    widths = (16, 32, 64, 128)[: len(depths)]
    model = create(ResNetConfig(depths=depths, widths=widths, stem_width=16, num_classes=10, preact=preact))
    planner = Planner(model, image_size=(64, 64), speed=SPEED)
    steps = planner.steps(8)
    every = [(*evaluate(steps, stem, modes), cost(steps, stem, modes)) for stem, *modes in every_choice(depths)]
    assert planner.least(8) == min(peak for peak, *_ in every)
    low, high = min(every)[0], max(every)[0]
    for budget in (low, low + 1, *(low + (high - low) * i // 7 for i in range(1, 8))):
        found = planner.plan(8, budget)
        peak, seconds = evaluate(steps, found.stem, found.modes)
        assert peak == found.peak <= budget
        assert cost(steps, found.stem, found.modes) == pytest.approx(
            min(c for p, _, c in every if p <= budget), rel=1e-12
        )
        assert seconds <= min(s for p, s, _ in every if p <= budget) * (1 + 1e-8), "margins only settle ties"


def cost(steps, stem, modes):
    return sum(option.seconds + option.margin for option in options_of(steps, stem, modes))


def test_what_fits_recomputes_nothing_and_is_not_timed(monkeypatch):
    def measure_times(*args):
        raise AssertionError("timed")

    monkeypatch.setattr(planning, "measure_times", measure_times)
    model = create("cifar_resnet20", width=0.25)
    planner = Planner(model, image_size=(32, 32))
    plain = planner.uniform(4, "none")
    assert (plain.slowdown, plain.share, plain.recomputes) == (1, 1, False)
    assert planner.plan(4, plain.peak) == plan(model, 4, "1GB", image_size=(32, 32)) == plain
    lean = Planner(model, image_size=(32, 32), speed=SPEED)
    assert lean.plan(4, plain.peak) == plain
    assert lean.plan(4, plain.peak - 1).recomputes


def measured_with(monkeypatch, change):
    """A planner of two stages whose times are said to be measured; `change` gives a mode's time over that of none."""

    def measure_times(model, parts, *args):
        return [
            {mode: (0.0, line[1] * change(mode)) for mode, line in dict.fromkeys(part, part["none"]).items()}
            for part in SPEED.times(parts)
        ]

    monkeypatch.setattr(planning, "measure_times", measure_times)
    return Planner(create(ResNetConfig(depths=(2, 2), widths=(16, 32), num_classes=10)), image_size=(64, 64))


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
def test_no_plan_with_less_recomputation_that_fits_is_as_fast(noise, monkeypatch):
    draw = random.Random(0)
    planner = measured_with(monkeypatch, lambda mode: 1 + noise * draw.uniform(-1, 1))
    steps = planner.steps(8)

    def ranks(stem, modes):
        pairs = zip(modes, planner.depths, strict=True)
        names = [stem, *itertools.chain(*((m,) * depth if isinstance(m, str) else m for m, depth in pairs))]
        return [MODES.index(name) for name in names]

    every = [(ranks(stem, modes), *evaluate(steps, stem, modes)) for stem, *modes in every_choice(planner.depths)]
    least, most = planner.least(8), planner.uniform(8, "none").peak
    for budget in torch.linspace(least, most, 12, dtype=torch.float64).ceil().long().tolist():
        found = planner.plan(8, budget)
        mine, seconds = ranks(found.stem, found.modes), evaluate(steps, found.stem, found.modes)[1]
        for theirs, peak, other in every:
            if peak <= budget and theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)):
                assert other > seconds, (found, theirs)


def test_more_recomputation_is_chosen_where_it_is_faster_beyond_noise(monkeypatch):
    planner = measured_with(monkeypatch, {"none": 1, "first": 1, "selective": 2, "block": 1.3}.__getitem__)
    found = planner.plan(8, planner.uniform(8, "none").peak - 1)
    assert found.recomputes
    assert all("selective" not in modes for modes in found.modes)


@pytest.mark.slow
def test_every_budget_of_a_deep_network_is_met_and_no_uniform_mode_that_fits_is_faster():
    torch.manual_seed(0)
    model, size, batch = create("resnet152", num_classes=10, width=0.25), (64, 64), 4
    planner = Planner(model, image_size=size, optimizer="none", speed=SPEED)
    fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    least, most = planner.least(batch), planner.uniform(batch, "none").peak
    uniform = [planner.uniform(batch, mode) for mode in MODES]
    for budget in torch.linspace(least, most, 6, dtype=torch.float64).ceil().long().tolist():
        chosen = planner.plan(batch, budget)
        assert (
            chosen.slowdown
            <= min(u.slowdown for u in uniform if u.peak <= budget or u.slowdown == max(v.slowdown for v in uniform))
            + 1e-12
        )
        assert fixed + measured_peak(chosen.apply(model), batch, size, None) <= budget


def test_the_largest_batch_fits_and_one_more_does_not():
    planner = Planner(create("resnet18", num_classes=10), image_size=(64, 64), speed=SPEED)
    batch = planner.largest_batch(10**9)
    assert planner.least(batch) <= 10**9 < planner.least(batch + 1)
    assert planner.largest_batch(1000) == 0


def test_the_frontier_trades_memory_for_time():
    plans = Planner(create("resnet26d", num_classes=10), image_size=(64, 64), speed=SPEED).frontier(8)
    assert len(plans) > 4
    assert [p.peak for p in plans] == sorted(p.peak for p in plans)
    assert [p.slowdown for p in plans] == sorted((p.slowdown for p in plans), reverse=True)
    assert plans[-1].slowdown == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"stochastic_depth": 0.5, "stochastic_depth_mode": "batch", "dropout": 0.3},
        {"preact": True, "block": "basic", "stem": "deep", "downsample": "avg"},
        {"norm": "group", "weight_standardization": True, "antialias": "blur", "attention": "se"},
    ],
)
def test_parts_are_timed_and_those_that_are_alike_once(fields):
    model = freeze(
        create(ResNetConfig(depths=(3, 1), widths=(16, 32), stem_width=16, num_classes=5, **fields)), stages=1
    )
    planner = Planner(model, image_size=(40, 40))
    stem, first, second, third, other, head = planner.times
    assert second is third
    assert set(stem) == set(first) == {"first", "none"}, "frozen: there is no backward pass"
    assert set(other) == {"first", "none", "selective", "block"}
    assert all(fixed > 0 for part in planner.times for fixed, _ in part.values())
    assert all(part["none"][0] > part["first"][0] for part in (other, head))


@pytest.mark.slow
@pytest.mark.parametrize("computes", [True, False])
def test_parts_are_timed_in_fp32_where_the_device_computes_no_bf16(computes, monkeypatch):
    from residuum import devices
    from residuum.memory import timing

    plain, used = timing._run, set()

    def run(module, forward, dtype, x):
        used.add((dtype, x.dtype))
        return plain(module, forward, dtype, x)

    monkeypatch.setattr(devices, "_computes_bf16", lambda device: (computes, ""))
    monkeypatch.setattr(timing, "_run", run)
    planner = Planner(create("cifar_resnet20", width=0.25), image_size=(32, 32), dtype=torch.bfloat16)
    assert len(planner.times) == len(planner.cost.parts)
    assert planner.timed_in_fp32 is not computes
    assert {dtype for dtype, _ in used} == {torch.bfloat16 if computes else None}
    assert ({images for _, images in used} == {torch.float32}) is not computes


@pytest.mark.slow
def test_planning_leaves_the_model_and_the_random_numbers_alone():
    model = recompute(create("resnet18", num_classes=10), "block")
    before, state, forward = [p.clone() for p in model.parameters()], torch.get_rng_state(), model.layer1[0].forward
    plan(model, 4, "1GB", image_size=(64, 64))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.layer1[0].forward is forward


@pytest.mark.slow
def test_compiled_the_partitioner_gets_the_plans_share():
    import torch._functorch.config as partitioner

    model, images = create("cifar_resnet20"), torch.randn(2, 3, 32, 32)
    planner = Planner(model, image_size=(32, 32), speed=SPEED)
    chosen = planner.plan(2, (planner.least(2) + planner.uniform(2, "none").peak) // 2)
    expected = model(images)
    with partitioner.patch(activation_memory_budget=1.0):
        with pytest.warns(UserWarning, match="activation_memory_budget set to 0.[2-9]"):
            compiled = chosen.compile(chosen.apply(model), backend="aot_eager", fullgraph=True)
        assert partitioner.activation_memory_budget == chosen.share
        out = compiled(images)
        out.sum().backward()
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("7.5GiB", 7.5 * 2**30), ("500 mb", 5e8), ("4g", 4e9), (123, 123)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == pytest.approx(size, rel=0.01)
    assert parse_size(show_budget(text).partition(" (")[0]) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
    ("text", "said"),
    [("7.5GiB", "7.5 GiB (8.05 GB)"), (" 512mi ", "512 MiB (536.87 MB)"), ("8GB", "8.00 GB"), (8 * 10**9, "8.00 GB")],
)
def test_a_budget_is_said_in_the_unit_it_was_given_in(text, said):
    assert show_budget(text) == said


@pytest.mark.parametrize("text", ["16 gigs", "", "GB", "1e3GB", "8GBs", "0", "-4GB", "0.0GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="write it like 8GB|must be more than 0"):
        parse_size(text)


@pytest.mark.parametrize("batch", range(1, 6))
def test_the_least_that_a_refusal_names_is_enough(batch):
    planner = Planner(create("resnet18", num_classes=10), image_size=(64, 64), speed=SPEED)
    with pytest.raises(ConfigError, match="recomputing the most takes") as refusal:
        planner.plan(batch, 1)
    named = parse_size(str(refusal.value).partition("the most takes ")[2].partition(";")[0])
    assert planner.plan(batch, named).peak <= named < 1.001 * planner.least(batch)


def test_what_cannot_be_planned_is_refused():
    model = create("resnet18", num_classes=10)
    with pytest.raises(ConfigError, match="does not fit 1.00 MB: recomputing the most takes"):
        plan(model, 4, "1MB", image_size=(64, 64))
    with pytest.raises(ConfigError, match=r"the model is a torch\.nn\.\S*Linear; give a residuum\.ResNet"):
        plan(torch.nn.Linear(2, 2), 4, "1GB")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        plan(model, 0, "1GB", image_size=(64, 64))
    with pytest.raises(ConfigError, match="optimizer is 'lion'"):
        plan(model, 4, "1GB", optimizer="lion")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("plan resnet50 --memory=16gigs", "'16gigs' is not a size of memory"),
        ("plan resnet50 --memory=-1GB", "must be more than 0"),
        ("plan resnet50 --memory=50MB", "recomputing the most takes"),
        ("plan resnet51 --memory=50MB", "did you mean 'resnet50'"),
        ("plan resnet18 --memory=5GB --draw=x.pdf", "does not end in .svg or .png"),
        ("train --memory=lots", "'lots' is not a size of memory"),
        ("train --memory=1MB", "are taken before the first step"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(refused, tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*line.split())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def quickly(monkeypatch):
    """Times are worked out, as a machine's are not asked for."""
    monkeypatch.setattr(planning, "measure_times", lambda model, parts, *args: SPEED.times(parts))


def test_the_command_says_first_that_a_network_fits(command, quickly):
    shown = command("plan", "cifar_resnet20", "--batch-size", "8", "--memory", "1.5GiB", "--precision", "bf16").out
    first, second, *rest = shown.splitlines()
    assert first == "cifar_resnet20: batch size 8 in bf16 within 1.5 GiB (1.61 GB)"
    assert second.startswith("fits without recomputation: a peak of ")
    assert not any("layer1" in line for line in rest)
    assert any(line.startswith("largest batch size within 1.5 GiB (1.61 GB): ") for line in rest)


@pytest.mark.parametrize("computes", [True, False])
def test_the_command_plans_for_what_the_device_computes(computes, command, quickly, monkeypatch):
    from residuum import devices

    monkeypatch.setattr(devices, "_computes_bf16", lambda device: (computes, "for a reason"))
    shown = command("plan", "cifar_resnet20", "--batch-size", "8", "--memory", "8.5MB").out
    kind = "bf16" if computes else "fp32"
    assert shown.startswith(f"cifar_resnet20: batch size 8 in {kind} within 8.50 MB\n")
    assert f"Precision: {kind}, as for a reason" in " ".join(shown.split())
    assert "fits without" not in shown and "layer3" in shown


@pytest.mark.slow
def test_the_command_shows_choice_frontier_and_largest_batch(command, tmp_path):
    picture = tmp_path / "plan.svg"
    budget = ("--batch-size", "16", "--memory", "400MB", "--precision", "fp32")
    shown = command("plan", "resnet18", *budget, "--draw", str(picture)).out
    for words in ("layer4", "peak", "all stage", "chosen", "largest batch"):
        assert words in shown
    assert "<svg" in picture.read_text()


@pytest.mark.slow
def test_training_within_a_budget_gives_the_same_weights(command, tmp_path):
    weights = []
    for name, options in (("plain", ()), ("lean", ("--memory", "30GB"))):
        command("train", "--epochs", "1", "--model.width", "0.5", "--out", str(tmp_path / name), *options)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
