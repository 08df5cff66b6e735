"""Time the notebook's training beside the usual loop, alternating in one run, with the notebook's own cells.

    python benchmarks/training_speed.py [--alternations 7] [--widths 32 64 128] [--batches 64 512] [--no-table]

Both train WGAN-GP with the same networks, batch and penalty. The usual loop is written as most repositories have it:
a DataLoader with per-image transforms, float32, samples whose graph reaches into the generator during the critic's
step, PyTorch's own layers, an optimiser with its defaults, critic weights that collect gradients in the generator's
step, and a loss fetched after every step.

How the columns are made. The two take turns of half a second (a fifth on a GPU), or of one critic step and one
generator step if these take longer. Times are medians of the turns' means; the ratio is the median of the turns' ratios
(with the lowest and the highest), for one generator iteration with five critic steps, drawing the data included.
"Share" is the arithmetic of that iteration per second, divided by the rate that a product of two 2048 x 2048 matrices
reaches in the same run and precision; the arithmetic is counted in the steps as they run, by PyTorch's own formulas:
convolutions and matrix products, a multiply-add as two operations. Peak memory is that of a process of its own that
does two iterations.

On a CUDA device the steps are timed one by one as elsewhere, each until the device has finished, but the notebook's
iteration is timed as it is trained: fifty of them in a row, replayed from a graph. The columns from "iterations/s" on
are about these. The product is one of 8192 x 8192, and peak memory what PyTorch allocated there in five iterations.
"""

import argparse
import gc
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import torch  # noqa: E402
from notebook_cells import load_cells  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402
from torchvision import transforms  # noqa: E402

SHAPES = {28: (1, 28, 28), 32: (3, 32, 32)}
N_CRITIC = 5
TURN = (0.5, 0.2)  # seconds that each of two loops has before it is the other's turn, on a CPU and on a GPU
PRODUCT = (2048, 8192)  # rows of the matrices whose product is what a CPU, and a GPU, can reach


class Pictures(torch.utils.data.Dataset):
    """Images as PIL pictures with torchvision transforms, one at a time, as a torchvision data set gives them."""

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __init__(self, images):
        self.pictures = [transforms.functional.to_pil_image(image) for image in images]

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return self.transform(self.pictures[i])


class Usual:
    """The usual loop."""

    def __init__(self, cells, settings, images, device):
        self.settings, self.device = settings, device
        networks = cells.build_networks(settings, images.shape[1:], device)
        self.generator, self.critic = (net.to(memory_format=torch.contiguous_format) for net in networks)
        for layers in (self.generator.layers, self.critic.layers):
            for layer in layers:
                if isinstance(layer, cells.ImageConv | cells.ConvTranspose | cells.ImageConvTranspose):
                    layer.__class__ = type(layer).__base__  # the same weights in PyTorch's own layer
        betas = (float(settings.beta1), float(settings.beta2))
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=settings.learning_rate, betas=betas)
            for net in (self.critic, self.generator)
        ]
        self.loader = DataLoader(Pictures(images), settings.batch_size, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)

    def draw(self):
        try:
            return next(self.batches).to(self.device)
        except StopIteration:
            self.batches = iter(self.loader)
            return self.draw()

    def noise(self, n):
        return torch.randn(n, self.settings.latent_size, device=self.device)

    def critic_step(self, real):
        fake = self.generator(self.noise(len(real)))
        epsilon = torch.rand(len(real), 1, 1, 1, device=self.device)
        mixed = (epsilon * real + (1 - epsilon) * fake).requires_grad_(True)
        score = self.critic(mixed)
        gradient = torch.autograd.grad(score, mixed, torch.ones_like(score), create_graph=True, retain_graph=True)[0]
        penalty = ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        loss = self.critic(fake).mean() - self.critic(real).mean() + self.settings.penalty_weight * penalty
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        return loss.item()

    def generator_step(self):
        loss = -self.critic(self.generator(self.noise(self.settings.batch_size))).mean()
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        return loss.item()


class Ours:
    """The notebook's steps, one by one."""

    def __init__(self, cells, settings, images, device, precision):
        self.cells, self.images = cells, images.to(device)
        networks = cells.build_networks(settings, images.shape[1:], device)
        self.run = cells.new_run(settings, networks, device, precision)
        cells.set_pace(self.run)

    def draw(self):
        return self.run.draw(self.images, self.run.settings.batch_size)

    def critic_step(self, real):
        return self.cells.critic_step(self.run, real)

    def generator_step(self):
        loss = self.cells.generator_step(self.run)
        self.cells.update_average(self.run)
        return loss


def make_loop(cells, kind, settings, images):
    """The loop of `kind`, "usual" or "ours"."""
    if kind == "usual":
        return Usual(cells, settings, images, cells.device)
    return Ours(cells, settings, images, cells.device, cells.precision)


def timed(device, work, *arguments):
    """(seconds on the clock until the device has finished, what work(*arguments) returned)."""
    start = time.perf_counter()
    result = work(*arguments)
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    return time.perf_counter() - start, result


def turn(loop, device, at_least=None):
    """Mean seconds of {draw, critic step, generator step} over as many rounds as take `at_least` seconds, or one."""
    at_least = TURN[device.type == "cuda"] if at_least is None else at_least
    start, rounds = time.perf_counter(), []
    while not rounds or time.perf_counter() - start < at_least:
        draw, real = timed(device, loop.draw)
        critic, _ = timed(device, loop.critic_step, real)
        generator, _ = timed(device, loop.generator_step)
        rounds.append({"draw": draw, "critic": critic, "generator": generator})
    return {kind: statistics.mean(seconds[kind] for seconds in rounds) for kind in rounds[0]}


def iteration(seconds):
    """Seconds of a generator iteration with five critic steps."""
    return N_CRITIC * (seconds["draw"] + seconds["critic"]) + seconds["generator"]


def whole_turn(steps, device, repeats):
    """Mean seconds of a generator iteration over as many of `steps`, which come from a graph on CUDA."""
    return timed(device, lambda: [next(steps) for _ in range(repeats)])[0] / repeats


class Flops(TorchDispatchMode):
    """Counts floating-point operations while it is active, by PyTorch's own formulas for each operation."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs or {}, out_val=result)
        return result


def flops(loop):
    """Floating-point operations of one iteration, a multiply-add counted as two."""
    counts = []
    for work, arguments, times in ((loop.critic_step, [loop.draw()], N_CRITIC), (loop.generator_step, [], 1)):
        with Flops() as counter:
            work(*arguments)
        counts.append(times * counter.total)
    return sum(counts)


def attainable(cells, device, precision, repeats=5):
    """Floating-point operations per second of a matrix product in `precision`, the best of some."""
    n = PRODUCT[device.type == "cuda"]
    a, b = torch.randn(2, n, n, device=device).unbind()
    products = [partial(torch.mm, a, b)]
    if device.type == "cpu" and precision == "float32" and torch.backends.mkldnn.is_available():
        # torch.mm is MKL's, not at its best on every processor; oneDNN, which has the convolutions, has a product too
        products.append(partial(nn.functional.linear, a.to_mkldnn(), b.to_mkldnn()))
    with torch.no_grad(), cells.autocast(device, precision):
        return max(2 * n**3 / timed(device, product)[0] for product in products for _ in range(repeats))


def resident_peak():
    """Largest resident memory of this process so far, bytes (getrusage would include the process that started it)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def peak_memory(cells, kind, *size):
    """Peak memory, MB, of two iterations in a process of their own, on a GPU of five in this one."""
    if cells.device.type == "cuda":
        return memory_here(cells, kind, *size)
    command = [sys.executable, __file__, "--memory-of", kind, *map(str, size), "--precision", cells.precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def prepare(cells, width, batch, pixels):
    """(settings, random images uint8) of one row of the table."""
    settings = cells.profile_settings("full", "WGAN-GP", width=width, batch_size=batch)
    return settings, torch.randint(256, (max(2 * batch, 256), *SHAPES[pixels]), dtype=torch.uint8)


def memory_here(cells, kind, *size):
    """Peak memory, MB, of a few iterations in this process: resident, or on a GPU allocated there by PyTorch."""
    settings, images = prepare(cells, *size)
    if cells.device.type != "cuda":
        loop = make_loop(cells, kind, settings, images)
        for _ in range(2):
            turn(loop, cells.device, 0)
        return resident_peak() / 1e6
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loop = make_loop(cells, kind, settings, images)
    if kind == "usual":
        for _ in range(5):
            turn(loop, cells.device, 0)
    else:
        with cells.iterating(loop.run, loop.images) as steps:
            whole_turn(steps, cells.device, 5)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def row(cells, width, batch, pixels, alternations):
    """One line of the table."""
    device = cells.device
    memory = [peak_memory(cells, kind, width, batch, pixels) for kind in ("usual", "ours")]
    settings, images = prepare(cells, width, batch, pixels)
    loops = {kind: make_loop(cells, kind, settings, images) for kind in ("usual", "ours")}
    for loop in loops.values():
        turn(loop, device)
    turns, rates, whole = {kind: [] for kind in loops}, [], []
    replica = make_loop(cells, "ours", settings, images)
    with cells.iterating(replica.run, replica.images) as steps:
        if device.type == "cuda":
            whole_turn(steps, device, 10)
        for _ in range(alternations):
            rates.append(attainable(cells, device, cells.precision))
            for kind, loop in loops.items():
                turns[kind].append(turn(loop, device))
            whole.append(whole_turn(steps, device, 50) if device.type == "cuda" else iteration(turns["ours"][-1]))
    usual, ours = ({k: statistics.median(t[k] for t in ts) for k in ts[0]} for ts in turns.values())
    ratios = [iteration(u) / w for u, w in zip(turns["usual"], whole, strict=True)]
    whole = statistics.median(whole)
    share = flops(loops["ours"]) / whole / statistics.median(rates)
    return [
        pixels, batch, width,
        *(f"{1000 * usual[k]:.1f} / {1000 * ours[k]:.1f}" for k in ("draw", "critic", "generator")),
        f"{1 / whole:.2f}", f"{N_CRITIC * batch / whole:,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{share:.0%}",
        f"{memory[0]:.0f} / {memory[1]:.0f}",
    ]  # fmt: skip


def evaluation(cells):
    """Seconds of what the evaluation does with 10,000 samples at the quick profile's size, and of the classifier."""
    data = cells.load_images(cells.source, cells.DATA_DIR, cells.device)
    train = cells.train_classifier
    seconds, classifier = timed(cells.device, train, data, cells.CLASSIFIER_IMAGES, cells.device, cells.precision)
    lines = [f"classifier: {seconds:.0f} s, {cells.accuracy_of(classifier, data):.1%} test accuracy"]
    settings = cells.profile_settings("quick", "WGAN-GP")
    generator = cells.build_networks(settings, data.train.shape[1:], cells.device)[0].eval()
    real, _ = cells.describe(classifier, data.test)

    def evaluate():
        pictures = cells.generate(generator, torch.randn(10_000, settings.latent_size, device=cells.device))
        return cells.all_scores(real, cells.describe(classifier, pictures), "classes")

    return [*lines, f"10,000 samples, drawn and scored by every metric: {timed(cells.device, evaluate)[0]:.1f} s"]


def side_by_side(cells, alternations, iterations=None):
    """How much faster the three trainings of a profile are side by side than one after the other with all threads.

    `iterations` of each are one turn.
    """
    images, device = torch.randint(256, (256, 1, 28, 28), dtype=torch.uint8).to(cells.device), cells.device
    profile, turns, usual = ("standard", 1, 600) if device.type == "cuda" else ("quick", 10, 2)
    iterations = iterations or usual
    settings = [cells.profile_settings(profile, method) for method in cells.PAPER]
    networks = [cells.build_networks(chosen, images.shape[1:], device) for chosen in settings]
    runs = [cells.new_run(s, n, device, cells.precision) for s, n in zip(settings, networks, strict=True)]

    def job(run, left, repeats):
        with cells.iterating(run, images) as steps:
            seconds = whole_turn(steps, device, repeats)
        left[run.settings.method] -= repeats
        return left[run.settings.method] * seconds

    def all_of_them(n):
        left = {run.settings.method: turns * iterations for run in runs}
        repeats = iterations * (turns if n == 1 else 1)  # in turn: each to its end
        cells.side_by_side({run.settings.method: partial(job, run, left, repeats) for run in runs}, n)

    at_once, ratios = cells.at_once(len(runs), device), []
    for _ in range(1 + alternations):  # the first warms up
        one, several = (timed(device, all_of_them, n)[0] for n in (1, at_once))
        ratios.append(one / several)
    ratio, low, high = (f(ratios[1:]) for f in (statistics.median, min, max))
    found = f"{ratio:.2f} ({low:.2f} to {high:.2f}) times as fast as in turn"
    return f"{profile}'s three methods, {at_once} at a time: {found}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--pixels", type=int, nargs="+", default=[28, 32], choices=SHAPES)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--no-table", action="store_true", help="leave benchmarks/README.md alone")
    parser.add_argument("--no-evaluation", action="store_true", help="leave out classifier, scores, side by side")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as unused:
        folders = {"DATA_DIR": chosen.data_dir, "MODELS_DIR": unused, "IMAGES_DIR": unused}
        cells = load_cells(PROFILE="quick", PRECISION=chosen.precision, **folders)
        if chosen.memory_of:
            kind, *size = chosen.memory_of
            print(memory_here(cells, kind, *map(int, size)))
            return
        rows = []
        for pixels in chosen.pixels:
            for batch in chosen.batches:
                for width in chosen.widths:
                    rows.append(row(cells, width, batch, pixels, chosen.alternations))
                    print(rows[-1], flush=True)
        lines = [] if chosen.no_evaluation else evaluation(cells)
        if lines and cells.device.type != "mps":
            lines.append(side_by_side(cells, chosen.alternations))
    header = ["pixels", "batch", "width", "draw, ms", "critic step, ms", "generator step, ms", "iterations/s",
              "images/s", "times as fast", "share", "peak memory, MB"]  # fmt: skip
    note = (
        f"Usual / ours where there are two numbers. {chosen.alternations} alternations; "
        f"{cells.processor(cells.device)}, ours in {cells.precision}, torch {torch.__version__.split('+')[0]}. "
        + "; ".join(lines)
        + "."
    )
    table = f"{cells.markdown_table(header, rows)}\n\n{note}"
    print(table)
    if not chosen.no_table:
        readme = HERE / "README.md"
        where = "" if cells.device.type == "cpu" else f"{cells.device.type} "
        begin, end = (f"<!-- speed {where}{cells.precision}: {place} -->" for place in ("begin", "end"))
        block = f"{begin}\n{table}\n{end}"
        readme.write_text(re.sub(f"{begin}.*{end}", lambda _: block, readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
