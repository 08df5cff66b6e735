"""Figure 2 and Table 2 of the paper (claims C5, C4): other architectures, the same settings.

python tools/architectures.py [--figure-2] [--table-2] [--random N] [--iterations N]
                              [-p SEEDS 0,1,2] [-p CLUSTER tcp://HOST:8786] [-p NAME VALUE]...

Without --figure-2 and --table-2 it makes both, in hours, by the notebook's cells and with its
parameters, on the workers that sweep.py would have; PROFILE is quick unless given. What has been
trained is kept in architectures.pt and random_architectures.pt of the run's folder, which SEED
names, so that it goes on after an interruption. Verdicts go to files .json of these names beside
them, figures to the run's image folder: publish.py --architectures installs both.
"""

import argparse
import math
import os
import sys
from functools import partial
from itertools import pairwise, product

import numpy as np
import sweep
import torch
import torch.nn.functional as F
from notebook_cells import load_cells, silence
from pages import markdown_table
from run_notebook import add_parameters
from torch import nn


class Gate(nn.Module):
    """Maps [n, 2C, h, w] -> [n, C, h, w]: sigmoid of every other one times tanh of the next."""

    def forward(self, maps):
        return maps[:, ::2].sigmoid() * maps[:, 1::2].tanh()


class Softplus(nn.Module):
    """softplus(2x + 2) / 2 - 1, of any shape."""

    def forward(self, x):
        return F.softplus(2 * x + 2) / 2 - 1


LEAKY = partial(nn.LeakyReLU, 0.2)
ARCHITECTURES = {  # of Figure 2, less residual nets: what is changed in generator and critic
    "baseline": ({}, {}),
    "G: no norm, constant width": ({"norm": False, "growth": 1}, {}),
    "G: perceptron": (None, {}),
    "no norm": ({"norm": False}, {"norm": False}),
    "gated": ({"nonlinearity": Gate}, {"nonlinearity": Gate}),
    "tanh": ({"nonlinearity": nn.Tanh}, {"nonlinearity": nn.Tanh}),
}


def random_architecture(number):
    """(changes of the generator, of the critic) of random architecture `number`, after Table 1."""
    rng, nonlinearities = np.random.default_rng(number), (nn.ReLU, LEAKY, Softplus, nn.Tanh)
    parts = {"nonlinearity": nonlinearities, "extra": (0, 1, 2, 4)}
    parts |= {"width": (8, 16, 32), "norm": (False, True)}
    return [{name: some[rng.integers(len(some))] for name, some in parts.items()} for _ in "GD"]


def varied_layers(
    sides, channels, up, norm_layer, width, nonlinearity=None, norm=True, growth=2, extra=0
):
    """(layers, shape of the coarsest maps) of a generator's convolutions if `up`, or a critic's.

    A normalisation and a nonlinearity come before each of a generator's, after each of a critic's
    (none after its first). `extra` more at each size. A gate takes two maps for each that it gives.
    """
    nonlinearity = nonlinearity or (nn.ReLU if up else LEAKY)
    gate, outer, layers = 1 + (nonlinearity is Gate), channels, []
    for i, (finer, coarser) in enumerate(pairwise(sides)):  # from the image inwards
        maps, level = width * growth**i, []
        convolutions = [nn.Conv2d(maps, gate * maps, 3, padding=1) for _ in range(extra)]
        if up:
            padding = finer - (2 * coarser - 1)
            convolutions.append(nn.ConvTranspose2d(maps, outer, 5, 2, 2, padding))
        else:
            convolutions.insert(0, nn.Conv2d(outer, gate * maps, 5, 2, 2))
        for convolution in convolutions:
            normalised = norm and norm_layer and (up or layers or level)
            between = [norm_layer(gate * maps)] if normalised else []
            between.append(nonlinearity())
            level += [*between, convolution] if up else [convolution, *between]
        layers, outer = (level + layers, gate * maps) if up else (layers + level, maps)
    return layers, (outer, sides[-1], sides[-1])


def varied_networks(cells, chosen, shape, name):
    """[generator, critic] of one of ARCHITECTURES, or of the random one with that number.

    They are the notebook's with other layers. A penalised critic, which must not mix the images of
    a batch, has layer normalisation if it is a random one, as in Table 1, else none.
    """
    drawn = name not in ARCHITECTURES
    of_generator, of_critic = random_architecture(name) if drawn else ARCHITECTURES[name]
    generator, critic = networks = cells.build_networks(chosen, shape, "cpu")
    common = cells.map_sides(shape[1], chosen.smallest_map), shape[0]
    width, rng = {"width": chosen.width}, torch.Generator().manual_seed(chosen.seed)
    if of_generator is None:
        layers = cells.relu_mlp(chosen.latent_size, math.prod(shape), 512, 5, rng)
        generator.layers = nn.Sequential(*layers, nn.Unflatten(1, shape))
    else:
        layers, start = varied_layers(*common, True, nn.BatchNorm2d, **width | of_generator)
        first = nn.Linear(chosen.latent_size, math.prod(start))
        generator.layers = nn.Sequential(first, nn.Unflatten(1, start), *layers)
        cells.initialise(generator, rng)
    norm_layer = partial(nn.GroupNorm, 1) if drawn else None
    if chosen.critic_batch_norm:
        norm_layer = partial(nn.BatchNorm2d, track_running_stats=False)
    layers, end = varied_layers(*common, False, norm_layer, **width | of_critic)
    critic.layers, critic.head = nn.Sequential(*layers), nn.Linear(math.prod(end), 1)
    cells.initialise(critic, rng)
    return [net.to(cells.device, memory_format=torch.channels_last) for net in networks]


def measure(task, ready, name, method, seed, iterations, precision):
    """On a worker: scores and samples of a varied architecture trained by `method`."""
    with silence():
        cells = sweep.load_task(task)
    chosen = cells.replace(cells.settings[method], seed=seed, iterations=iterations)
    networks = varied_networks(cells, chosen, tuple(cells.data.train.shape[1:]), name)
    run = cells.new_run(chosen, networks, cells.device, precision)
    with cells.iterating(run, cells.data.train) as steps:
        for _ in range(iterations):
            next(steps)
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(cells.n_samples, chosen.latent_size, generator=rng).to(cells.device)
    pictures = cells.generate(cells.settled(run.average), z)
    row = {"architecture": name, "method": method, "samples": pictures[:16].cpu()}
    return row | cells.judge.scores(pictures) | sweep.versions()


def check_kept(cells, name, cases, size):
    """Raise ValueError if NAME.pt holds results that `experiment` would replace by others."""
    path = cells.models / f"{name}.pt"
    if path.exists() and cells.START == "resume":
        saved = cells.read_saved(path, ("cases", "made_by", "results"))
        known, now = saved["cases"][: len(saved["results"])], sweep.versions().items()
        same = known == [list(c) for c in cases[: len(known)]]
        same = same and all(now <= row.items() for row in saved["results"])
        if saved["made_by"]["size"] != size or not same:
            raise ValueError(
                f"{path} holds {len(known)} results of other architectures, seeds, iterations, "
                "precision, code or PyTorch; allowed: the same and more, another MODELS_DIR, or "
                "START=afresh"
            )


def train_all(cells, client, task, name, cases, iterations):
    """What was measured of these (architecture, method, seed) by workers, kept as NAME.pt."""
    size = {"iterations": iterations, "precision": cells.precision}
    cases, futures = list(cases), {}
    check_kept(cells, name, cases, size)

    def measured(*case, **size):
        if not futures:  # what is asked for first is the first that the file lacks
            ready = client.submit(sweep.prepare, task, pure=False)
            for one in cases[cases.index(case) :]:  # in this order, or few would be kept at first
                how = {"pure": False, "priority": -len(futures)}
                futures[one] = client.submit(measure, task, ready, *one, **size, **how)
        return futures.pop(case).result()

    return cells.experiment(name, measured, cases, cells.settings, **size)


def figure_2(cells, client, task, seeds, iterations):
    """Results of Figure 2 (section 5.2): every architecture by every method, usually two seeds."""
    smoke = cells.profile == "smoke"
    cases = product(seeds or range(1 if smoke else 2), ARCHITECTURES, cells.PAPER)
    cases = [(name, method, seed) for seed, name, method in cases]  # later seeds come after
    iterations = iterations or (5 if smoke else 3_000)
    return train_all(cells, client, task, "architectures", cases, iterations)


def show_figure_2(cells, results):
    """Draw samples of each first seed; (what was measured, checks, table of scores) of C5."""
    figure, axes = cells.new_figure(len(cells.PAPER), len(ARCHITECTURES), 13, 7)
    scores = {}
    for axis, (method, name) in zip(axes.flat, product(cells.PAPER, ARCHITECTURES), strict=True):
        found = {"architecture": name, "method": method}
        scores[method, name] = cells.values(results, "Inception score", **found)
        title = f"{name}\n" * (method == "DCGAN") + cells.spread(scores[method, name])
        cells.draw_grid(axis, cells.values(results, "samples", **found)[0], 4, title)
        axis.set_ylabel(method if name == "baseline" else "")
    figure.savefig(cells.figures / "architectures.png", bbox_inches="tight", dpi=80)
    rows = [[a, *(cells.spread(scores[m, a]) for m in cells.PAPER)] for a in ARCHITECTURES]
    table = markdown_table(["Inception score", *cells.PAPER], rows)
    trained = {m: np.array([scores[m, a] for a in ARCHITECTURES]) > 5 for m in cells.PAPER}
    checks = {"WGAN-GP: every architecture": trained["WGAN-GP"].all()}
    for method in ("DCGAN", "WGAN"):
        only = trained["WGAN-GP"] & ~trained[method]
        checks[f"{method}: not every architecture that WGAN-GP trains"] = only.any()
    counts = ", ".join(f"{method} {some.sum()}" for method, some in trained.items())
    measured = f"Inception score above 5, of {trained['DCGAN'].size} trainings: {counts}"
    return measured, checks, table


def sign_test(a, b):
    """Two-sided p-value of successes a and b, bool [n], if each of one alone were a coin's toss."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    return min(1, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def table_2(cells, client, task, seeds, iterations, n):
    """Results of Table 2 (section 5.1): n random architectures, usually 40, by two methods."""
    smoke = cells.profile == "smoke"
    cases = product(seeds or [0], range(n or (2 if smoke else 40)), ("DCGAN", "WGAN-GP"))
    cases = [(number, method, seed) for seed, number, method in cases]
    iterations = iterations or (5 if smoke else 1_000)
    return train_all(cells, client, task, "random_architectures", cases, iterations)


def show_table_2(cells, results):
    """Draw the scores of both methods; (what was measured, checks, table of successes) of C4."""
    methods = ("DCGAN", "WGAN-GP")
    by = [np.array(cells.values(results, "Inception score", method=m)) for m in methods]
    figure, (axis,) = cells.new_figure(1, 1, 3.6, 3.4)
    axis.plot(*by, "ko", [1, 8], [1, 8], "k:", ms=4)
    axis.set(xlabel="Inception score, DCGAN", ylabel="Inception score, WGAN-GP")
    figure.savefig(cells.figures / "random_architectures.png", bbox_inches="tight", dpi=80)
    rows, checks, counts = [], {}, []
    for at in (3, 5, 7):
        a, b = (scores > at for scores in by)
        p = sign_test(a, b)
        parts = [int(some.sum()) for some in (a & ~b, b & ~a, a & b, ~a & ~b)]
        rows.append([at, *parts, f"{p:.2g}"])
        more = bool(b.sum() > a.sum() and p < 0.05)
        checks[f"WGAN-GP: more often than DCGAN above {at} (p < 0.05)"] = more
        counts.append(f"above {at}: DCGAN {a.sum()}, WGAN-GP {b.sum()} (p = {p:.2g})")
    header = ["above", "only DCGAN", "only WGAN-GP", "both", "neither", "p (sign test)"]
    measured = f"Inception score of {len(a)} random networks {'; '.join(counts)}"
    return measured, checks, markdown_table(header, rows)


def report(cells, name, claim, show, results):
    """Print the verdict on a claim, its table and checks, by `show`, and keep them as NAME.json.

    Without results, which training makes, there is none.
    """
    if not results:
        return
    measured, checks, table = show(cells, results)
    checks = {check: bool(holds) for check, holds in checks.items()}
    kept = {"name": name, "claim": claim, "measured": measured, "verdict": cells.verdict(checks)}
    kept |= {"checks": checks, "table": table, "data set": cells.source.name}
    kept["trained on"] = sorted({row["processor"] for row in results})
    kept |= {kind: results[0][kind] for kind in sweep.versions()}  # the same in all of them
    sweep.write_json(cells.models / f"{name}.json", kept)
    print(f"{table}\n\n{claim}: {kept['verdict']}. {measured}")
    for check, holds in checks.items():
        print(f"  {'holds' if holds else 'fails'}: {check}")
    print(f"Figures: {cells.figures}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure-2", action="store_true", help="six architectures (C5)")
    parser.add_argument("--table-2", action="store_true", help="random ones (C4)")
    parser.add_argument("--random", type=int, help="how many of these, if not 40")
    parser.add_argument("--iterations", type=int, help="if not 3,000 (C5) and 1,000 (C4)")
    add_parameters(parser)
    chosen = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        given = [("PROFILE", "quick"), *chosen.given]
        task, own = sweep.choose(given, SEEDS="", CLUSTER="")
        cells, seeds = load_cells(**task), sweep.listed(own["SEEDS"])
        task["PROFILE"] = cells.profile  # here, not by worker
        for seed in seeds:
            cells.replace(cells.PAPER["DCGAN"], seed=seed)  # refuses what is none
        if (source := cells.source).target != "classes":
            raise ValueError(f"DATASET is {source.name!r}; allowed: one whose images have classes")
        for name in ("random", "iterations"):
            if (n := getattr(chosen, name)) is not None and n < 1:
                raise ValueError(f"--{name} is {n}; allowed: 1 or more")
        client = sweep.connect(own["CLUSTER"], cells.models)
    except (TypeError, ValueError) as error:
        sys.exit(error.args[0])
    print(f"{cells.models}: {cells.precision} on {cells.processor(cells.device)}", flush=True)
    given = cells, client, task, seeds, chosen.iterations
    try:
        if chosen.figure_2 or not chosen.table_2:
            report(cells, "architectures", "C5", show_figure_2, figure_2(*given))
        if chosen.table_2 or not chosen.figure_2:
            found = table_2(*given, chosen.random)
            report(cells, "random_architectures", "C4", show_table_2, found)
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. What has been trained is kept; run again, and it goes on")
    except Exception as error:  # of a task, which may raise anything
        sys.exit(f"{type(error).__name__}: {error}\nWhat has been trained is kept")
    finally:
        sweep.leave(client, own["CLUSTER"])


if __name__ == "__main__":
    import architectures  # by its name, as the workers know it

    architectures.main()
