"""Time the notebook's training beside the usual loop, alternating in one run, with the notebook's own cells.

    python benchmarks/training_speed.py [--alternations 7] [--widths 32 64 128] [--batches 64 512] [--no-table]

Both train WGAN-GP with the same networks, batch and penalty. The usual loop is written as most repositories have it:
a DataLoader with per-image transforms, float32, samples whose graph reaches into the generator during the critic's
step, PyTorch's own layers, an optimiser with its defaults, critic weights that collect gradients in the generator's
step, and a loss fetched after every step.

How the columns are made. The two take turns of half a second, or of one critic step and one generator step if these
take longer. Times are medians of the turns' means; the ratio is the median of the turns' ratios (with the lowest and
the highest), for one generator iteration with five critic steps, drawing the data included. "Share" is the arithmetic
of that iteration per second, divided by the rate that a product of two 2048 x 2048 matrices reaches in the same run and
precision; the arithmetic is counted in the steps as they run, by PyTorch's own formulas: convolutions and matrix
products, a multiply-add as two operations. Peak memory is that of a process of its own that does two iterations.
"""

import argparse
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
            for i, layer in enumerate(layers):
                if isinstance(layer, cells.LeakyReLU):
                    layers[i] = nn.LeakyReLU(0.2)
                elif isinstance(layer, cells.ImageConv | cells.ConvTranspose | cells.ImageConvTranspose):
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


def timed(device, work, *arguments):
    """(seconds on the clock until the device has finished, what work(*arguments) returned)."""
    start = time.perf_counter()
    result = work(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def turn(loop, device, at_least=0.5):
    """Mean seconds of {draw, critic step, generator step} over as many rounds as take `at_least` seconds, or one."""
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


def graphed_iteration(cells, settings, images, device, precision, repeats=50):
    """Seconds of an iteration replayed from a CUDA graph."""
    networks = cells.build_networks(settings, images.shape[1:], device)
    run = cells.new_run(settings, networks, device, precision)
    with cells.own_stream(device):
        steps = cells.iterations(run, images.to(device), cells.captured)
        for _ in range(5):
            next(steps)
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


def attainable(cells, device, precision, n=2048, repeats=5):
    """Floating-point operations per second of a matrix product in `precision`, the best of some."""
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


def peak_memory(kind, width, batch, pixels, precision):
    """Peak resident memory, MB, of a process that does two iterations (on a GPU: what PyTorch allocated there)."""
    command = [sys.executable, __file__, "--memory-of", kind, str(width), str(batch), str(pixels), precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def prepare(cells, width, batch, pixels):
    """(settings, random images uint8) of one row of the table."""
    settings = cells.profile_settings("full", "WGAN-GP", width=width, batch_size=batch)
    return settings, torch.randint(256, (max(2 * batch, 256), *SHAPES[pixels]), dtype=torch.uint8)


def measure_memory(cells, kind, width, batch, pixels, precision):
    settings, images = prepare(cells, int(width), int(batch), int(pixels))
    usual = kind == "usual"
    loop = (Usual if usual else Ours)(cells, settings, images, cells.device, *([] if usual else [precision]))
    for _ in range(2):
        turn(loop, cells.device, 0)
    print((torch.cuda.max_memory_allocated() if cells.device.type == "cuda" else resident_peak()) / 1e6)


def row(cells, width, batch, pixels, precision, alternations):
    """One line of the table."""
    device = cells.device
    settings, images = prepare(cells, width, batch, pixels)
    loops = {"usual": Usual(cells, settings, images, device), "ours": Ours(cells, settings, images, device, precision)}
    for loop in loops.values():
        turn(loop, device)
    turns, rates = {kind: [] for kind in loops}, []
    for _ in range(alternations):
        rates.append(attainable(cells, device, precision))
        for kind, loop in loops.items():
            turns[kind].append(turn(loop, device))
    usual, ours = ({k: statistics.median(t[k] for t in ts) for k in ts[0]} for ts in turns.values())
    if device.type == "cuda":
        graphed = [graphed_iteration(cells, settings, images, device, precision) for _ in range(alternations)]
    else:
        graphed = [iteration(t) for t in turns["ours"]]
    ratios = [iteration(u) / g for u, g in zip(turns["usual"], graphed, strict=True)]
    whole = statistics.median(graphed)
    share = flops(loops["ours"]) / whole / statistics.median(rates)
    memory = [peak_memory(kind, width, batch, pixels, precision) for kind in loops]
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


def side_by_side(cells, alternations, iterations=20):
    """How much faster the three trainings of `quick` are side by side than one after the other with all threads."""
    images, device = torch.randint(256, (256, 1, 28, 28), dtype=torch.uint8), cells.device
    settings = [cells.profile_settings("quick", method) for method in cells.PAPER]
    networks = [cells.build_networks(chosen, images.shape[1:], device) for chosen in settings]
    runs = [cells.new_run(s, n, device, cells.precision) for s, n in zip(settings, networks, strict=True)]

    def work(run):
        for _ in range(iterations):
            cells.iterate(run, images)

    jobs = {run.settings.method: partial(work, run) for run in runs[::-1]}
    at_once, ratios = cells.at_once(len(runs), device), []
    for _ in range(1 + alternations):  # the first warms up
        one, several = (timed(device, cells.side_by_side, jobs, n)[0] for n in (1, at_once))
        ratios.append(one / several)
    ratio, low, high = (f(ratios[1:]) for f in (statistics.median, min, max))
    return f"quick's three methods, {at_once} at a time: {ratio:.2f} ({low:.2f} to {high:.2f}) times as fast as in turn"


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
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as unused:
        folders = {"DATA_DIR": chosen.data_dir, "MODELS_DIR": unused, "IMAGES_DIR": unused}
        cells = load_cells(PROFILE="quick", PRECISION=chosen.precision, **folders)
        if chosen.memory_of:
            measure_memory(cells, *chosen.memory_of)
            return
        rows = []
        for pixels in chosen.pixels:
            for batch in chosen.batches:
                for width in chosen.widths:
                    rows.append(row(cells, width, batch, pixels, cells.precision, chosen.alternations))
                    print(rows[-1], flush=True)
        lines = [] if chosen.no_evaluation else evaluation(cells)
        if lines and cells.device.type == "cpu":
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
        begin, end = (f"<!-- speed {cells.precision}: {place} -->" for place in ("begin", "end"))
        block = f"{begin}\n{table}\n{end}"
        readme.write_text(re.sub(f"{begin}.*{end}", lambda _: block, readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
