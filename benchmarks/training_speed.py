"""Time the notebook's training beside the usual loop, alternating in one run, with its own cells.

    python benchmarks/training_speed.py [--alternations 7] [--widths 32 64 128] [--batches 64 512]
                                        [--pixels 28 32] [--precision float32] [--data-dir data]
                                        [--no-table] [--no-evaluation]

Both train WGAN-GP with the same networks, batch and penalty. The usual loop is written as most
repositories have it: a DataLoader with per-image transforms, float32, samples whose graph reaches
into the generator during the critic's step, the penalty by automatic differentiation, an optimiser
with its defaults, critic weights that collect gradients in the generator's step, and a loss fetched
after every step.

How the columns are made. The two take turns of half a second (a fifth on a GPU), or of one critic
step and one generator step if these take longer. Times are medians of the turns' means; the ratio
is the median of the turns' ratios (with the lowest and the highest), for one generator iteration
with five critic steps, drawing the data included. "Share" is the arithmetic of that iteration per
second, divided by the rate that a product of two 2048 x 2048 matrices reaches in the same run and
precision; the arithmetic is counted in the steps as they run, by PyTorch's own formulas:
convolutions and matrix products, a multiply-add as two operations. Peak memory is that of a process
of its own that does two iterations.

On a CUDA device the steps are timed one by one as elsewhere, each until the device has finished,
but the notebook's iteration is timed as it is trained: fifty of them in a row, replayed from a
graph. The columns from "iterations/s" on are about these. The product is one of 8192 x 8192, and
peak memory what PyTorch allocated there in five iterations.
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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import torch  # noqa: E402
from notebook_cells import load_cells  # noqa: E402
from pages import markdown_table, replace_block  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402
from torchvision import transforms  # noqa: E402

SHAPES = {28: (1, 28, 28), 32: (3, 32, 32)}
N_CRITIC = 5
TURN = (0.5, 0.2)  # seconds of each loop before it is the other's turn, on a CPU and on a GPU
PRODUCT = (2048, 8192)  # rows of the matrices whose product shows what a CPU, and a GPU, can do


HEADER = ["pixels", "batch", "width", "draw, ms", "critic step, ms", "generator step, ms"]
HEADER += ["iterations/s", "images/s", "times as fast", "share", "peak memory, MB"]


class Pictures(torch.utils.data.Dataset):
    """PIL pictures with transforms, one at a time, as a torchvision data set gives them."""

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
        networks = [network.to(memory_format=torch.contiguous_format) for network in networks]
        self.generator, self.critic = networks
        betas = (float(settings.beta1), float(settings.beta2))
        options = {"lr": settings.learning_rate, "betas": betas}
        self.optimizers = [torch.optim.Adam(net.parameters(), **options) for net in networks[::-1]]
        options = {"shuffle": True, "drop_last": True}
        self.loader = DataLoader(Pictures(images), settings.batch_size, **options)
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
        options = {"create_graph": True, "retain_graph": True}
        gradient = torch.autograd.grad(score, mixed, torch.ones_like(score), **options)[0]
        penalty = ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        loss = self.critic(fake).mean() - self.critic(real).mean()
        loss = loss + self.settings.penalty_weight * penalty
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
        self.run.gradient = cells.written_out_gradient
        cells.set_pace(self.run)

    def draw(self):
        return self.cells.draw_real(self.images, self.run.settings.batch_size, self.run.rng)

    def critic_step(self, real):
        return self.cells.critic_step(self.run, real)

    def generator_step(self):
        loss = self.cells.generator_step(self.run)
        pair = (self.run.average.parameters(), self.run.generator.parameters())
        with torch.no_grad():
            for mean, value in zip(*pair, strict=True):
                mean.lerp_(value, 1 - self.run.average_decay)
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
    """Mean seconds of {draw, critic, generator step} in `at_least` seconds of rounds, or one."""
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
    """Mean seconds of a generator iteration over so many of `steps`, from a graph on CUDA."""
    return timed(device, lambda: [next(steps) for _ in range(repeats)])[0] / repeats


class Flops(TorchDispatchMode):
    """Counts floating-point operations while it is active, by PyTorch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs or {}, out_val=result)
        return result


def flops(loop):
    """Floating-point operations of one iteration, a multiply-add counted as two."""
    counts = []
    with Flops() as counter:
        loop.critic_step(loop.draw())
    counts.append(N_CRITIC * counter.total)
    with Flops() as counter:
        loop.generator_step()
    return sum(counts) + counter.total


def attainable(device, precision, repeats=5):
    """Floating-point operations per second of a matrix product in `precision`, the best of some."""
    n, best = PRODUCT[device.type == "cuda"], 0
    a, b = torch.randn(2, n, n, device=device).unbind()
    products = [partial(torch.mm, a, b)]
    if device.type == "cpu" and precision == "float32" and torch.backends.mkldnn.is_available():
        # torch.mm is MKL's, not at its best on every processor; oneDNN, which has the convolutions,
        # has a product too
        products.append(partial(nn.functional.linear, a.to_mkldnn(), b.to_mkldnn()))
    lower = precision == "bfloat16"
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=lower):
        for product in products * repeats:
            best = max(best, 2 * n**3 / timed(device, product)[0])
    return best


def resident_peak():
    """Largest resident memory so far, bytes (getrusage would include who started the process)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def peak_memory(cells, kind, *size):
    """Peak memory, MB, of two iterations in a process of their own, on a GPU of five in here."""
    if cells.device.type == "cuda":
        return memory_here(cells, kind, *size)
    command = [sys.executable, __file__, "--memory-of", kind, *map(str, size)]
    command += ["--precision", cells.precision]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(found.split()[-1])


def prepare(cells, width, batch, pixels):
    """(settings, random images uint8) of one row of the table."""
    settings = cells.profile_settings("paper", "WGAN-GP", width=width, batch_size=batch)
    shape = (max(2 * batch, 256), *SHAPES[pixels])
    return settings, torch.randint(256, shape, dtype=torch.uint8)


def memory_here(cells, kind, *size):
    """Peak memory, MB, of a few iterations here: resident, or allocated on a GPU by PyTorch."""
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


def medians(turns):
    """{kind: median over the turns} of a list of {kind: seconds}."""
    return {kind: statistics.median(turn[kind] for turn in turns) for kind in turns[0]}


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
            rates.append(attainable(device, cells.precision))
            for kind, loop in loops.items():
                turns[kind].append(turn(loop, device))
            seconds = iteration(turns["ours"][-1])
            whole.append(whole_turn(steps, device, 50) if device.type == "cuda" else seconds)
    usual, ours = (medians(found) for found in turns.values())
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


def evaluation(cells, data_dir):
    """What a judge's training takes, and the scores of 10,000 samples of `quick`'s networks."""
    device = cells.device
    data = cells.load_images(cells.source, data_dir, device)
    classifier = cells.Classifier(data.train.shape[1:], len(data.names)).to(device)
    seconds, _ = timed(device, cells.train_classifier, classifier, data, 240_000)
    judge = cells.Judge(classifier, data)
    settings = cells.profile_settings("quick", "WGAN-GP")
    generator = cells.build_networks(settings, data.train.shape[1:], device)[0].eval()

    def evaluate():
        z = torch.randn(10_000, settings.latent_size, device=device)
        return judge.scores(cells.generate(generator, z), thorough=True)

    return [
        f"classifier: {seconds:.0f} s, {judge.accuracy:.1%} test accuracy",
        f"10,000 samples, drawn and scored by every metric: {timed(device, evaluate)[0]:.1f} s",
    ]


def side_by_side(cells, alternations, iterations=None):
    """How much faster a profile's trainings are side by side than in turn with all threads."""
    device = cells.device
    images = torch.randint(256, (256, 1, 28, 28), dtype=torch.uint8).to(device)
    profile, usual = ("standard", 600) if device.type == "cuda" else ("quick", 20)
    iterations, runs = iterations or usual, []
    for method in cells.PAPER:
        settings = cells.profile_settings(profile, method)
        networks = cells.build_networks(settings, images.shape[1:], device)
        runs.append(cells.new_run(settings, networks, device, cells.precision))
        if settings.penalty_weight:
            runs[-1].gradient = cells.written_out_gradient

    def job(run):
        with cells.iterating(run, images) as steps:
            whole_turn(steps, device, iterations)

    def all_of_them(at_once):
        share = max(1, threads // at_once)
        with ThreadPoolExecutor(at_once, "", torch.set_num_threads, (share,)) as pool:
            list(pool.map(job, runs))

    ratios, threads = [], torch.get_num_threads()
    for _ in range(1 + alternations):  # the first warms up
        one, several = (timed(device, all_of_them, n)[0] for n in (1, len(runs)))
        ratios.append(one / several)
    torch.set_num_threads(threads)
    ratio, low, high = (f(ratios[1:]) for f in (statistics.median, min, max))
    found = f"{ratio:.2f} ({low:.2f} to {high:.2f}) times as fast as in turn"
    return f"{profile}'s three methods, {len(runs)} at a time: {found}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--pixels", type=int, nargs="+", default=[28, 32], choices=SHAPES)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--no-table", action="store_true", help="leave the README alone")
    parser.add_argument("--no-evaluation", action="store_true", help="time the steps alone")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as unused:
        folders = {"DATA_DIR": chosen.data_dir, "MODELS_DIR": unused, "IMAGES_DIR": unused}
        cells = load_cells(PROFILE="quick", PRECISION=chosen.precision, **folders)
        if chosen.memory_of:
            kind, *size = chosen.memory_of
            print(memory_here(cells, kind, *map(int, size)))
            return
        rows, lines = [], []
        for pixels, batch, width in product(chosen.pixels, chosen.batches, chosen.widths):
            rows.append(row(cells, width, batch, pixels, chosen.alternations))
            print(rows[-1], flush=True)
        if not chosen.no_evaluation:
            lines = evaluation(cells, Path(chosen.data_dir))
        if lines and cells.device.type != "mps":
            lines.append(side_by_side(cells, chosen.alternations))
    version = torch.__version__.split("+")[0]
    made = f"{cells.processor(cells.device)}, ours in {cells.precision}, torch {version}."
    note = "Usual / ours where there are two numbers. "
    note += f"{chosen.alternations} alternations; {made} {'; '.join(lines)}"
    table = f"{markdown_table(HEADER, rows)}\n\n{note}"
    print(table)
    if not chosen.no_table and cells.device.type != "mps":
        readme = HERE / "README.md"
        where = "" if cells.device.type == "cpu" else f"{cells.device.type} "
        name = f"speed {where}{cells.precision}"
        readme.write_text(replace_block(readme.read_text(), name, table))


if __name__ == "__main__":
    main()
