"""The build of the embedded models: the whole chain at a tiny size, and the loop that every stage trains in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import estimate
from perfusion_ops.mini.build import __main__ as build
from perfusion_ops.mini.build import autoencoder, denoiser, text, words
from perfusion_ops.mini.build.pictures import photographed, write_photographs, write_products, write_scenes
from perfusion_ops.mini.build.recipe import TINY, Fit
from perfusion_ops.mini.build.start import start_from
from perfusion_ops.mini.build.training.loop import rate_at, steps_done, train
from perfusion_ops.mini.build.training.machine import Machine, on_machines
from perfusion_ops.mini.build.training.muon import orthogonal
from perfusion_ops.mini.world.grammar import captions
from perfusion_ops.mini.world.products import SCORER_INSTANCES, product
from perfusion_ops.mini.world.scene import photograph, render, sample_scene
from perfusion_ops.mini.world.vocabulary import CATEGORIES
from perfusion_ops.rendering import RenderRow, Sampler
from perfusion_ops.rendering import render as render_rows

FIT = Fit(samples=40, batch=2, rate=1e-2, average=0.9)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    home = tmp_path_factory.mktemp("built")
    build.main(["--work", str(home / "work"), "--out", str(home / "out"), "--size", "tiny", "--processes", "1"])
    return home


def test_the_whole_chain_ends_in_folders_that_load_and_draw(built):
    base = load_base(describe(built / "out" / "base"))
    assert base.resolution == 64
    lines = list(captions(300, seed=1))
    metric = estimate(
        base.texts, lines[:200], held_out=lines[200:], config=MetricConfig(),
        base_digest=base.folder.digest,
    )  # fmt: skip
    rows = [RenderRow(PromptRow("a photo of a mug on the beach"), PromptRow(""), 0)]
    picture = render_rows(base, metric, rows, Sampler(64, 64, 2, 3.0, "ddim"))[0]
    assert np.asarray(picture).shape == (64, 64, 3)
    assert np.asarray(picture).std() > 0
    latents = autoencoder.encode(base.vae, np.load(built / "work" / "pictures.npy"))
    assert float(latents.std() * base.vae.config.scaling_factor) == pytest.approx(1, abs=0.05)


def test_a_build_that_starts_from_a_base_trains_its_denoiser_on(built, tmp_path):
    start = ["--start", str(built / "out" / "base"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    build.main([*start, "--size", "tiny", "--processes", "1", "--only", "base"])
    before, after = (load_base(describe(home / "out" / "base")) for home in (built, tmp_path))
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    parts = ((each.vae, each.denoiser, each.texts.models[0].encoder) for each in (before, after))
    for *pair, name, kept in zip(*parts, ("vae", "denoiser", "text"), (True, False, False), strict=True):
        pairs = zip(*(part.parameters() for part in pair), strict=True)
        moved = [not torch.equal(one, other) for one, other in pairs]
        assert not any(moved) if kept else sum(moved) > len(moved) / 2, name
    # What it learns starts at the base's weights: four steps cannot move it far.
    for one, other in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True):
        assert (one - other).abs().max() < 0.05
    lines = [json.loads(line) for line in (tmp_path / "out" / "base" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"begin", "denoiser"}


def test_starting_again_keeps_the_checkpoint_that_is_there(built, tmp_path):
    start_from(built / "out" / "base", TINY, tmp_path)
    first = (tmp_path / "denoiser.safetensors").read_bytes()
    assert steps_done(tmp_path, "denoiser") == 0
    assert steps_done(tmp_path, "text") == TINY.text.fit.steps
    (tmp_path / "denoiser.safetensors").write_bytes(first + b" ")
    start_from(built / "out" / "base", TINY, tmp_path)
    assert (tmp_path / "denoiser.safetensors").read_bytes() == first + b" "


def test_the_log_records_recipe_machine_loss_and_throughput(built):
    lines = [json.loads(line) for line in (built / "out" / "base" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["recipe"] == TINY.model_dump(mode="json")
    assert {"device", "processes", "machine", "torch"} <= set(lines[0])
    assert {"text", "autoencoder", "denoiser"} <= {line["stage"] for line in lines}
    for line in lines[1:]:
        assert line["loss"] > 0
        assert line["samples_per_s"] > 0


def test_a_second_call_trains_nothing_and_exports_the_same(built):
    before = {path: path.read_bytes() for path in (built / "out").rglob("*.safetensors")}
    assert len(before) == 7
    build.main(["--work", str(built / "work"), "--out", str(built / "out"), "--size", "tiny", "--processes", "1"])
    assert {path: path.read_bytes() for path in (built / "out").rglob("*.safetensors")} == before


def test_a_build_that_runs_out_of_time_leaves_a_checkpoint_and_no_folder(built, tmp_path, capsys):
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--size", "tiny", "--only", "base"]
    build.main([*arguments, "--processes", "1", "--minutes", "0"])
    assert "run the same command again to resume" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    build.main([*arguments, "--processes", "1"])
    for stage in ("unet", "vae", "text_encoder"):
        (one,), (other,) = ((home / "out" / "base" / stage).glob("*.safetensors") for home in (built, tmp_path))
        ours, theirs = load_file(one), load_file(other)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.slope = nn.Parameter(torch.randn(4))
        self.mix = nn.Parameter(torch.randn(3, 4))
        self.norm = nn.BatchNorm1d(4)


def fit_line(folder, until=None, rates=None, inner=None):
    line = Line()
    steps = []

    def loss(step, generator):
        steps.append(step)
        seen = torch.randn(8, 4, generator=generator)
        normed = line.norm(seen)
        return (normed @ line.slope - seen.sum(1)).square().mean() + (normed @ line.mix.T - seen[:, :3]).square().mean()

    done = train(
        "line", line, loss, FIT, machine=Machine("cpu"), folder=folder, seed=5, until=until, rates=rates, inner=inner
    )
    return line, done, steps


@pytest.mark.parametrize("inner", [None, lambda name: name == "mix"], ids=["AdamW", "Muon for matrices"])
def test_a_stopped_and_resumed_stage_equals_an_undisturbed_one(tmp_path, inner):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, done, steps = fit_line(tmp_path / "whole", inner=inner)
    assert done
    assert steps == list(range(FIT.steps))
    for step in range(7):
        _, done, steps = fit_line(tmp_path / "parts", until=time.time() - 1, inner=inner)
        assert not done
        assert steps == [step]
    parts, done, steps = fit_line(tmp_path / "parts", inner=inner)
    assert done
    assert steps == list(range(7, FIT.steps))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_a_trained_model_has_the_running_mean_of_its_weights(tmp_path):
    line, _, _ = fit_line(tmp_path)
    stored = load_file(tmp_path / "line.safetensors")
    assert torch.equal(line.slope.data, stored["mean.slope"])
    assert not torch.equal(stored["mean.slope"], stored["state.slope"])
    assert int(stored["mean.norm.num_batches_tracked"]) == FIT.steps


def test_a_rate_of_zero_holds_its_parameters_still(tmp_path):
    line, _, _ = fit_line(tmp_path, rates={"norm.": 0.0})
    assert torch.equal(line.norm.weight, Line().norm.weight)
    assert not torch.equal(line.slope, Line().slope)


def test_the_rate_rises_stays_and_falls():
    fit = Fit(samples=10_000, batch=10, rate=2.0, decay=0.25)
    assert fit.steps == 1000
    rates = [rate_at(step, fit) for step in range(1000)]
    assert rates[0] == pytest.approx(2 / 200)
    assert rates[200:750] == [2.0] * 550
    assert rates[875] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.01


def _averaged(machine: Machine, folder: Path) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(5))]
    parameters[0].grad = torch.full((2, 3), float(machine.rank))
    machine.average_gradients(parameters)
    agreed = machine.agree(machine.rank == 0)
    np.save(folder / f"{machine.rank}.npy", [*parameters[0].grad.flatten().tolist(), float(agreed)])


def test_processes_share_the_mean_of_their_gradients(tmp_path):
    on_machines(_averaged, (tmp_path,), device="cpu", processes=2)
    for rank in range(2):
        assert np.load(tmp_path / f"{rank}.npy").tolist() == [0.5] * 6 + [1.0]


def _sleep(machine: Machine, folder: Path) -> None:
    (folder / f"{machine.rank}.part").write_text(str(os.getpid()))
    (folder / f"{machine.rank}.part").rename(folder / f"{machine.rank}.pid")
    time.sleep(3600)


def _alive(process: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_a_killed_build_leaves_no_process_behind(tmp_path):
    code = (
        "from pathlib import Path; from perfusion_ops.mini.build.training.machine import on_machines; "
        "from tests.perfusion_ops.mini.test_build import _sleep; "
        f"on_machines(_sleep, (Path({str(tmp_path)!r}),), device='cpu', processes=2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        children = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        assert all(map(_alive, children))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(_alive, children)))


def wait_until(true, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _fit_shared(machine: Machine, folder: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    share = 8 // machine.processes

    def loss(step: int, _: torch.Generator) -> torch.Tensor:
        seen = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        mine = seen[machine.rank * share :][:share]
        return (model(mine) - mine[:, :2, 3:6, 3:6]).square().mean()

    fit = Fit(samples=48, batch=8, rate=1e-2)
    place = folder / str(machine.processes)
    place.mkdir(exist_ok=True)
    train("one", model, loss, fit, machine=machine, folder=place, seed=0, inner=lambda name: name.startswith("2."))


def test_two_processes_train_what_one_trains_whatever_the_memory_layout(tmp_path):
    for processes in (1, 2):
        on_machines(_fit_shared, (tmp_path,), device="cpu", processes=processes)
    one, two = (load_file(tmp_path / str(processes) / "one.safetensors") for processes in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_an_orthogonal_step_keeps_directions_and_evens_out_their_sizes():
    for shape in ((6, 20), (20, 6), (7, 7)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        seen = left.T @ orthogonal(matrix).double() @ right.T
        assert seen.diagonal().min() > 0.6
        assert seen.diagonal().max() < 1.3
        assert (seen - seen.diagonal().diag()).abs().max() < 1e-4


def test_pictures_are_those_of_their_numbers_whatever_the_processes(tmp_path):
    one = write_scenes(tmp_path / "one.npy", 12, SCORER_INSTANCES, 1)
    two = write_scenes(tmp_path / "two.npy", 12, SCORER_INSTANCES, 2)
    assert np.array_equal(one, two)
    assert np.array_equal(one[7], render(sample_scene(7, SCORER_INSTANCES)).pixels)
    photographs = write_photographs(tmp_path / "photographs.npy", 8, SCORER_INSTANCES, 4, 1)
    instance, view = photographed(6, SCORER_INSTANCES, 4)
    item = product(CATEGORIES[instance % len(CATEGORIES)], instance)
    assert np.array_equal(photographs[6], render(photograph(item, view)).pixels)


def test_products_are_where_their_scenes_show_them(tmp_path):
    shown = write_products(tmp_path / "products.npy", 6, SCORER_INSTANCES, 1)
    for number in range(6):
        seen = render(sample_scene(number, SCORER_INSTANCES)).masks.sum(0)
        for row, column in ((0, 0), (7, 9), (8, 8), (12, 3)):
            share = seen[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()
            assert shown[number, row, column] == pytest.approx(255 * share, abs=0.51)
    assert 10 < shown.mean() < 200


def test_a_focused_loss_counts_products_more():
    errors = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    nowhere, everywhere, corner = torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.tensor([[[0.0, 0.0], [0.0, 0.5]]])
    assert denoiser.focused(errors, nowhere, 2.0) == denoiser.focused(errors, everywhere, 2.0) == errors.mean()
    assert denoiser.focused(errors, corner, 2.0) == pytest.approx((1 + 2 + 3 + 2 * 6) / 5)


def test_the_denoiser_starts_from_the_encoder_that_has_learnt_to_read(built):
    model = denoiser.untrained(TINY, built / "work")
    stored = load_file(built / "work" / f"{text.NAME}.safetensors")
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, stored[f"mean.encoder.{name}"])


def test_every_word_is_one_token_and_any_other_is_spelled(tmp_path):
    tokenizer = words.write_tokenizer(tmp_path)
    lines = list(captions(3000, seed=9))
    for line in lines:
        assert len(tokenizer(line)["input_ids"]) == len(line.replace(",", " ,").split()) + 2
    assert len(tokenizer("a photo of a zyzzyva")["input_ids"]) > 7
    assert tokenizer.decode(tokenizer("a zyzzyva")["input_ids"], skip_special_tokens=True).strip() == "a zyzzyva"


def test_the_noise_schedule_ends_in_pure_noise():
    kept = denoiser.scheduler().alphas_cumprod
    assert float(kept[-1]) < 1e-6
    assert float(kept[0]) > 0.999
    assert bool((kept.diff() < 0).all())


def test_psnr_is_that_of_all_values_together():
    vae = autoencoder.build(TINY).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        seen = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 127.5 - 1
        made = vae.decode(vae.encode(seen.float()).latent_dist.mode()).sample.clamp(-1, 1).double()
    expected = 10 * np.log10(4 / float((made - seen).square().mean()))
    assert autoencoder.fidelity(vae, pictures) == pytest.approx(expected, rel=1e-4)
