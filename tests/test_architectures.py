"""Other architectures: built as their names say, trained once each, judged by their scores."""

import itertools
import json
import math
import sys

import architectures
import numpy as np
import pytest
import sweep
import tiny_data_sets
import torch
from conftest import METHODS
from distributed import Client, Future
from scipy.stats import binomtest
from torch import nn


def modules(network, kinds):
    return [module for module in network.modules() if isinstance(module, kinds)]


def networks(cells, method, name, shape=(1, 28, 28), **changes):
    settings = cells.replace(cells.PAPER[method], **changes)
    return architectures.varied_networks(cells, settings, shape, name)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("method", METHODS)
def test_an_architecture_of_figure_2_is_built_as_its_name_says(cells, method, shape):
    norms = {}
    for name in architectures.ARCHITECTURES:
        generator, critic = networks(cells, method, name, shape, width=4)
        x_tilde = generator(torch.randn(3, 128))
        assert x_tilde.shape == (3, *shape) and critic(x_tilde).shape == (3,)
        norms[name] = [len(modules(net, nn.BatchNorm2d)) for net in (generator, critic)]
        usual = any(modules(net, nn.ReLU | nn.LeakyReLU) for net in (generator, critic))
        assert usual == (name not in ("gated", "tanh"))
        if "constant" in name:
            transposed = modules(generator, nn.ConvTranspose2d)
            assert {layer.in_channels for layer in transposed} == {4}
        if "perceptron" in name:
            assert [m.out_features for m in modules(generator, nn.Linear)][:-1] == [512] * 4
    n = 0 if method == "WGAN-GP" else 2
    assert list(norms.values()) == [[3, n], [0, n], [0, n], [0, 0], [3, n], [3, n]]


@pytest.mark.parametrize("method", ["DCGAN", "WGAN-GP"])
def test_a_random_architecture_has_the_parts_that_are_drawn_for_it(cells, method):
    """The drawn parts are there, for each number the same ones, and every part is drawn."""
    found, images = set(), torch.randn(4, 1, 28, 28)
    of_critic = nn.BatchNorm2d if method == "DCGAN" else nn.GroupNorm
    for number in range(20):
        drawn = architectures.random_architecture(number)
        assert str(drawn) == str(architectures.random_architecture(number))
        both = networks(cells, method, number)
        assert both[0](torch.randn(2, 128)).shape == (2, 1, 28, 28)
        alone = torch.allclose(both[1](images)[:2], both[1](images[:2]), atol=1e-5)
        assert alone == (method == "WGAN-GP" or not drawn[1]["norm"])  # no mixing with a penalty
        parts = zip(both, drawn, (nn.BatchNorm2d, of_critic), (0, 1), strict=True)
        for net, part, norm, spared in parts:
            found |= {(key, str(value)) for key, value in part.items()}
            n = 3 * (1 + part["extra"])
            layers = modules(net, nn.Conv2d | nn.ConvTranspose2d)
            assert len(layers) == n
            assert min(max(m.in_channels, m.out_channels) for m in layers) == part["width"]
            assert len(modules(net, nn.BatchNorm2d | nn.GroupNorm)) == part["norm"] * (n - spared)
            assert len(modules(net, norm)) == part["norm"] * (n - spared)
            assert len(modules(net, type(part["nonlinearity"]()))) == n
    assert len(found) == 4 + 4 + 3 + 2


def test_softplus_gate_and_baseline_are_what_they_are_called(cells):
    x = torch.tensor([-50.0, 0.0, 50.0])
    expected = torch.tensor([-1.0, math.log(1 + math.exp(2)) / 2 - 1, 50.0])
    torch.testing.assert_close(architectures.Softplus()(x), expected)
    maps, images = torch.randn(2, 6, 3, 3), torch.randn(4, 1, 28, 28)
    gated = architectures.Gate()(maps)
    torch.testing.assert_close(gated[:, 1], maps[:, 2].sigmoid() * maps[:, 3].tanh())
    varied = networks(cells, "WGAN-GP", "baseline")[1]
    plain = cells.build_networks(cells.PAPER["WGAN-GP"], (1, 28, 28), "cpu")[1]
    plain.load_state_dict(varied.state_dict())  # the baseline is section 3's critic
    torch.testing.assert_close(varied(images), plain(images))


def test_sign_test_equals_scipys():
    """What both have, or neither, says nothing."""
    for only_a, only_b in ((0, 0), (0, 9), (9, 0), (2, 4), (3, 3), (1, 12)):
        a = np.array([True] * only_a + [False] * only_b + [True, True, False])
        b = np.array([False] * only_a + [True] * only_b + [True, True, False])
        n = only_a + only_b
        expected = binomtest(only_a, n).pvalue if n else 1
        assert architectures.sign_test(a, b) == pytest.approx(expected)


def scored(method, score, name=""):
    samples = torch.zeros(16, 1, 28, 28, dtype=torch.uint8)
    row = {"method": method, "architecture": name, "samples": samples}
    return row | {"Inception score": score}


FAILURES = [  # what scores 5 in one of two seeds, which checks fail then
    ("DCGAN tanh, WGAN gated", ""),
    ("DCGAN tanh, WGAN gated, WGAN-GP baseline", "WGAN-GP"),
    ("DCGAN tanh", "WGAN"),
    ("WGAN gated", "DCGAN"),
    ("DCGAN tanh, WGAN tanh, WGAN-GP tanh", "WGAN-GP DCGAN WGAN"),  # too hard for all
    ("", "DCGAN WGAN"),
]


@pytest.mark.parametrize(("failures", "failed"), FAILURES)
def test_c5_falls_with_its_evidence(cells, failures, failed):
    cases = itertools.product(METHODS, architectures.ARCHITECTURES, (0, 1))
    of = failures.split(", ")
    results = [scored(m, 5 if seed and f"{m} {a}" in of else 5.1, a) for m, a, seed in cases]
    measured, checks, table = architectures.show_figure_2(cells, results)
    assert " ".join(c.split(":")[0] for c, holds in checks.items() if not holds) == failed
    counts = [f"{m} {12 - sum(f.startswith(f'{m} ') for f in of)}" for m in METHODS]
    assert measured.endswith(f"of 12 trainings: {', '.join(counts)}") and len(checks) == 3
    assert "\n| no norm | 5.10 ± 0.00 | " in table


SCORES = [  # DCGAN's, WGAN-GP's, which checks hold, p above 3
    ([2] * 6, [8] * 6, [True, True, True], 2 / 64),
    ([2] * 6, [6] * 6, [True, True, False], 2 / 64),
    ([2] * 5 + [4], [4] * 6, [False, False, False], 2 / 32),  # more often, as chance has it
    ([8] * 6, [2] * 6, [False, False, False], 2 / 64),
]


@pytest.mark.parametrize(("dcgan", "wgan_gp", "holds", "p"), SCORES)
def test_c4_falls_with_its_evidence(cells, dcgan, wgan_gp, holds, p):
    both = ("DCGAN", dcgan), ("WGAN-GP", wgan_gp)
    results = [scored(method, score) for method, scores in both for score in scores]
    measured, checks, _ = architectures.show_table_2(cells, results)
    above = [f"{method} {sum(score > 3 for score in scores)}" for method, scores in both]
    assert f"above 3: {', '.join(above)} (p = {p:.2g}); above 5: " in measured
    assert list(checks.values()) == holds


REFUSED = [  # options, parameters, what is said
    ([], {"DATASET": "celeba"}, "images have classes"),
    ([], {"SEEDS": "0,x"}, "seed is 'x'"),
    ([], {"DATASETS": "mnist"}, "no such parameter: DATASETS"),
    (["--random", "0"], {}, "--random is 0; allowed: 1 or more"),
    (["--iterations", "0"], {}, "--iterations is 0; allowed: 1 or more"),
]


def kept(path):
    return torch.load(path, weights_only=True)["results"]


def test_figure_2_and_table_2_run_and_go_on_after_an_interruption(
    tmp_path, cluster, monkeypatch, capsys
):
    """At smoke size on a tiny MNIST, by two workers; bad input is refused."""
    tiny_data_sets.mnist(tmp_path / "data", np.random.default_rng(0))
    given = {f"{name.upper()}_DIR": tmp_path / name for name in ("data", "models", "images")}
    given |= {"PROFILE": "smoke", "DEVICE": "cpu", "DATASET": "mnist"}
    given["CLUSTER"] = cluster.scheduler_address
    submit, result, sent, keys, stops = Client.submit, Future.result, [], [], [7]

    def watched(client, function, *given, **options):
        future = submit(client, function, *given, **options)
        if function is architectures.measure:
            sent.append(given[2:])
            keys.append(future.key)
        return future

    def begun(dask_scheduler):
        log = dask_scheduler.transition_log
        return [key for key, _, state, *_ in log if state == "processing"]

    def interrupted(future):
        stops[0] -= 1
        if stops[0] == -1:
            raise KeyboardInterrupt
        return result(future)

    def run(*options, **changes):
        pairs = [("-p", *map(str, pair)) for pair in (given | changes).items()]
        words = ["architectures.py", *options, *itertools.chain(*pairs)]
        monkeypatch.setattr(sys, "argv", words)
        architectures.main()
        return capsys.readouterr().out

    def refused(client, function, task, *given, **options):
        raise KeyError(task["PROFILE"])

    monkeypatch.setattr(Client, "submit", refused)
    with pytest.raises(SystemExit, match="KeyError: 'quick'"):  # resolved here, not by a worker
        run(PROFILE="auto")
    monkeypatch.setattr(Client, "submit", watched)
    monkeypatch.setattr(Future, "result", interrupted)
    for options, wrong, refusal in REFUSED:
        with pytest.raises(SystemExit, match=refusal):
            run(*options, **wrong)
    assert not sent
    with pytest.raises(SystemExit, match="run again"):
        run()
    folder, n = tmp_path / "models" / "mnist-smoke-seed0", 6 * 3
    assert len(sent) == n and len(kept(folder / "architectures.pt")) == 7
    said = run()
    assert len(sent) == n + (n - 7) + 2 * 2 and len(set(sent)) == n + 2 * 2
    with Client(cluster) as client:
        order = [key for key in client.run_on_scheduler(begun) if key in keys[n:]]
    assert order == keys[n:]  # what is kept is a beginning, so later cases have to wait
    whole = kept(folder / "architectures.pt")
    assert [tuple(row["case"]) for row in whole] == sent[:n]
    assert "\nC5: not reproduced (0 of 3). Inception score above 5, of 6 trainings: DCGAN 0" in said
    assert "| gated | " in said and "\n| 7 | 0 | 0 | 0 | 2 | 1 |\n" in said
    assert said.count("  fails: WGAN-GP: more often than DCGAN above ") == 3
    for name, claim in (("architectures", "C5"), ("random_architectures", "C4")):
        left = json.loads((folder / f"{name}.json").read_text())
        assert left["table"] in said and f"{claim}: {left['verdict']}. {left['measured']}\n" in said
        assert left["claim"] == claim and left["data set"] == "mnist"
        assert len(left["trained on"]) == 1 and sweep.versions().items() <= left.items()
    names = {p.name for p in (tmp_path / "images" / "mnist-smoke-seed0").iterdir()}
    assert names == {"architectures.png", "random_architectures.png"}
    sent.clear()
    said = run("--table-2")
    assert not sent and "C4: not reproduced" in said and "C5" not in said
    assert "C4: not reproduced" in run("--table-2", TRAIN=False)
    assert "C4" not in run("--table-2", "--random", "3", TRAIN=False)  # one is missing
    for other in (["--iterations", "3"], ["--random", "1"]):
        with pytest.raises(SystemExit, match="holds 4 results of other architectures"):
            run("--table-2", *other, SEEDS="4")
    assert not sent
    saved = torch.load(path := folder / "random_architectures.pt", weights_only=True)
    saved["results"][0]["training code"] = "other"
    torch.save(saved, path)
    with pytest.raises(SystemExit, match="precision, code or PyTorch"):
        run("--table-2")
    saved["results"][0] |= sweep.versions()
    torch.save(saved, path)
    run("--table-2", SEEDS="0,4")  # more seeds
    assert sent == [(n, method, 4) for n in range(2) for method in ("DCGAN", "WGAN-GP")]
    sent.clear()
    other = {"SEEDS": "4,5,5", "START": "afresh"}
    said = run("--table-2", "--random", "1", "--iterations", "3", **other)
    assert sent == [(0, method, seed) for seed in (4, 5) for method in ("DCGAN", "WGAN-GP")]
    assert "Inception score of 2 random networks" in said
    assert torch.load(folder / "random_architectures.pt")["made_by"]["size"]["iterations"] == 3
