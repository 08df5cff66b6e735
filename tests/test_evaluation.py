"""Evaluation: every figure and every table is made of the images and numbers that it names."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import compare
from torchvision.io import read_image


@pytest.fixture
def evaluation(cells, tiny, tmp_path, monkeypatch):
    """What is shown meanwhile, {name of a figure or first word of a table: figure or rows}, of
    `tiny` and an untrained judge; results go to tmp_path.
    """
    torch.manual_seed(0)
    shown, judge = {}, cells.Judge(cells.Classifier((1, 28, 28), 10), tiny)
    rng = torch.Generator().manual_seed(3)
    given = {"data": tiny, "judge": judge, "n_samples": 40, "evaluation_rng": rng, "runs": {}}
    given |= {"models": tmp_path, "samples": {"WGAN": tiny.test[:3]}, "evaluation_seed": 3}
    for name, value in given.items():
        monkeypatch.setattr(cells, name, value, raising=False)
    monkeypatch.setattr(cells, "show_figure", lambda figure, name: shown.update({name: figure}))
    monkeypatch.setattr(
        cells, "show_table", lambda header, rows, note="": shown.update({header[0]: (rows, note)})
    )
    yield shown
    cells.plt.close("all")


SHOWN_OF = ("show_scores", "show_shares", "show_samples", "show_neighbours")


def test_what_is_shown_as_real_held_out_or_noisy_is_that(
    cells, tiny, run_cell, evaluation, monkeypatch
):
    """The real row of the scores are training images, since held-out ones are what they meet."""
    seen = {}
    for name in SHOWN_OF:
        monkeypatch.setattr(cells, name, lambda of, n=0, name=name: seen.update({name: (of, n)}))
        run_cell(name)
    copies = seen["show_neighbours"][0].pop("noisy copies")
    some = {"real training images": cells.some_images(tiny, 40).train} | cells.samples
    expected = [(some, 0), (some, 0), ({"real": tiny.test} | cells.samples, 0)]
    expected.append(({"held-out images": tiny.test} | cells.samples, 6))
    compare(list(seen.values()), expected, "shown")
    noise = copies.float() - tiny.train.float()
    inside = (tiny.train > 30) & (tiny.train < 225)  # where nothing is cut off
    assert noise[inside].std().item() == pytest.approx(255 / 40, rel=0.05)


def test_samples_are_fresh_unless_they_have_a_seed(cells, run, run_cell, evaluation, monkeypatch):
    generator, drawn = run().generator.eval(), []
    monkeypatch.setattr(cells, "load_runs", lambda: {"WGAN-GP": (generator, {})})
    for seed in (None, None, 7, 7):
        monkeypatch.setattr(cells, "EVALUATION_SEED", seed)
        run_cell("draw_samples")
        drawn.append(cells.samples["WGAN-GP"])
    z = torch.randn(40, 128, generator=torch.Generator().manual_seed(7))
    assert not drawn[0].equal(drawn[1]) and drawn[2].equal(drawn[3])
    assert drawn[2].equal(cells.generate(generator, z)) and cells.evaluation_seed == 7


def test_the_table_of_results_holds_the_judges_scores_and_what_they_are_of(
    cells, tiny, evaluation, tmp_path
):
    saved = {"seconds": 150.0, "processor": "a CPU", "machine": {"precision": "float32"}}
    saved["settings"] = cells.asdict(cells.settings["WGAN"]) | {"width": 3}
    cells.runs = {"WGAN": (None, saved)}
    cells.judge.accuracy = 0.625
    cells.show_scores({"real training images": tiny.train[:40], "WGAN": tiny.test[:40]})
    kept = json.loads((tmp_path / "results.json").read_text())
    scores = {"real training images": tiny.train[:40], "WGAN": tiny.test[:40]}
    scores = {name: cells.judge.scores(some, thorough=True) for name, some in scores.items()}
    assert kept["scores"] == scores and kept["minutes"] == {"WGAN": 2.5}
    assert kept["settings"] == {"WGAN": saved["settings"]} and kept["evaluation seed"] == 3
    rows, note = evaluation["method"]
    expected = [[name, *(f"{v:.3f}" for v in row.values())] for name, row in scores.items()]
    assert rows == [expected[0] + [""], expected[1] + [2.5]]
    assert "judge: 62.5% (classes). trained on: ['a CPU, float32']. evaluation seed: 3" in note
    assert note.endswith(". Not trained with this run's settings: WGAN.")


def test_interpolation_is_along_the_great_circle_between_normal_latents(
    cells, run, evaluation, monkeypatch
):
    a, b = F.normalize(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    walk = cells.interpolate(a, b, 7)
    assert walk[0].allclose(a, atol=1e-6) and walk[-1].allclose(b, atol=1e-6)
    assert walk.norm(dim=1).allclose(torch.ones(7), atol=1e-5)
    steps = F.cosine_similarity(walk[1:], walk[:-1])
    assert steps.allclose(steps[:1].expand(6), atol=1e-5)
    ends, interpolate = [], cells.interpolate
    monkeypatch.setattr(
        cells, "interpolate", lambda a, b, n: (ends.extend((a, b)), interpolate(a, b, n))[1]
    )
    cells.runs = {"WGAN-GP": (run().generator.eval(), {"settings": {"latent_size": 128}})}
    cells.show_interpolation()
    ends = torch.stack(ends)
    assert ends.shape == (8, 128) and abs(ends.mean()) < 0.1 and abs(ends.std() - 1) < 0.1


def test_neighbours_are_searched_among_all_training_images(
    cells, tiny, run_cell, evaluation, monkeypatch
):
    """So a copy of any of them is found, by either measure, and shown below its original."""
    show = cells.show_neighbours
    monkeypatch.setattr(cells, "show_neighbours", lambda *_, **__: None)
    run_cell("nearest")
    show({"copies": tiny.train[[0, 50, 100, 150, 198, 199]], "held out": tiny.test}, 100)
    (copies, held_out), _ = evaluation["median distance to the nearest training image"]
    assert [name for name, *_ in (copies, held_out)] == ["copies", "held out"]
    assert max(map(float, copies[1:])) < 0.1 and min(map(float, held_out[1:])) > 0.3
    picture = evaluation["nearest_neighbours"].axes[0].images[0].get_array()
    image, in_pixels, in_features = (picture[1 + 29 * i :][:28] for i in range(3))
    assert (image == in_pixels).all() and (image == in_features).all() and np.ptp(image[:, 1:29])


def test_shares_are_the_mean_over_all_pictures(cells, evaluation):
    """Here the answer to a picture is the tenth of its first pixel's value."""
    pictures = torch.tensor([0, 3, 3, 9, 3], dtype=torch.uint8).view(5, 1, 1, 1)
    cells.judge = SimpleNamespace(
        describe=lambda some: (None, F.one_hot(some.view(-1).long(), 10).float())
    )
    cells.show_shares({"WGAN": pictures})
    heights = [bar.get_height() for bar in evaluation["class_shares"].axes[0].patches]
    assert heights == pytest.approx([20, 0, 0, 60, 0, 0, 0, 0, 0, 20])


def test_the_table_of_claims_says_what_fails(cells, run_cell, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "claims", {"C1": ("0.5", {"a": True, "b": False}), "C2": None})
    run_cell("show_claims")
    rows, _ = evaluation[""]
    (_, said, *first), *others = rows
    assert first == ["0.5<br>fails: b", "partly (1 of 2)"]
    assert [row[2:] for row in others] == [["not measured in this run", ""]] * 7
    kept = json.loads((tmp_path / "claims.json").read_text())["C1"]
    expected = {"paper": said, "measured": "0.5", "verdict": "partly (1 of 2)"}
    assert kept == expected | {"checks": {"a": True, "b": False}}


def test_samples_as_files_are_held_out_images_and_fresh_ones(
    cells, tiny, run, evaluation, tmp_path, monkeypatch
):
    """In place of what was there."""
    monkeypatch.setattr(cells, "figures", tmp_path)
    generator = run("WGAN").generator.eval()
    cells.runs = {"WGAN": (generator, {})}
    for n in (5, 3):
        cells.write_all_samples(n)
    folders = [sorted((tmp_path / "samples" / name).iterdir()) for name in ("real", "WGAN")]
    real, samples = (torch.stack([read_image(path) for path in paths]) for paths in folders)
    rng = torch.Generator().manual_seed(3)
    _, z = (torch.randn(n, 128, generator=rng) for n in (5, 3))
    assert real.equal(tiny.test[:3]) and samples.equal(cells.generate(generator, z))


def test_panels_draw_the_columns_that_they_name(cells):
    """And negative losses with their sign turned."""
    history = {name: [float(i), i + 0.5] for i, name in enumerate(HISTORY)}
    quality, found = {"iteration": [1.0], "Frechet distance": [9.0]}, {}
    for panel in cells.PANELS:
        _, (axis,) = cells.new_figure(1, 1, 3, 3)
        cells.draw_panel(axis, panel, "WGAN", history | {"iteration": [10.0, 20.0]}, quality)
        found[panel] = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    cells.plt.close("all")
    assert found == {
        "loss": {"generator": [0, 0.5], "critic or discriminator": [1, 1.5]},
        "real - generated score": {"training": [3, 3.5], "held out": [4, 4.5]},
        "negative critic loss": {"training": [-1, -1.5], "held out": [-2, -2.5]},
        "Frechet distance": {"at each stage": [9]},
    }


HISTORY = ("generator_loss", "critic_loss_train", "critic_loss_held_out")
HISTORY += ("difference_train", "difference_held_out")


def film(*iterations):
    """Frames of which each is as bright as its iteration."""
    return {at: torch.full((25, 1, 28, 28), at, dtype=torch.uint8) for at in iterations}


def test_the_time_lapse_shows_the_last_frames_so_far(cells, evaluation):
    """And the epochs those next to them."""
    found = cells.film_frame({"WGAN": film(0, 40, 90)}, 80).convert("L")
    assert found.getpixel((10, 30)) == pytest.approx(40, abs=3)
    chosen = cells.replace(cells.settings["WGAN"], n_critic=1, batch_size=10)  # 20 an epoch
    cells.runs = {"WGAN": (None, {"settings": cells.asdict(chosen)})}
    cells.show_epochs({"WGAN": film(0, 18, 50, 190, 250)})
    axes = evaluation["epochs"].axes
    assert [axis.images[0].get_array()[5, 5, 0] for axis in axes] == [18, 190]
    assert [axis.get_title() for axis in axes] == ["WGAN\nepoch 0.9", "WGAN\nepoch 9.5"]
