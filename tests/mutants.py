"""Put small faults into the notebook, one at a time, and see that the tests see each of them.

    python tests/mutants.py [WORDS]...

Each of MUTANTS is put alone into a copy of the notebook, and the tests named beside it are run on
that. The Markdown table that is printed says which of them failed. With WORDS only the mutants are
tried whose description holds one of them. Exit status 1: some mutant survived. Nothing is tried if
the text of any is not in the code exactly once, or a test fails on the notebook as it is.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "wgan_gp.ipynb"
AT_ONCE, SECONDS = 2, 300  # processes, and how long one may take

# What is broken; tests that should see it, as "FILE WORDS": those of tests/test_FILE.py that have
# all these words in their names; the text that is replaced and its replacement, or several pairs.
MUTANTS = [
    # the penalty
    ("penalty: one epsilon for the whole batch", "objectives epsilon_is_uniform",
     "one_each = (len(x),) + (1,) * (x.dim() - 1)", "one_each = (1,) * x.dim()"),
    ("penalty: an epsilon for each pixel", "objectives epsilon_is_uniform",
     "one_each = (len(x),) + (1,) * (x.dim() - 1)", "one_each = x.shape"),
    ("penalty: epsilon from a normal distribution", "objectives epsilon_is_uniform",
     "epsilon = torch.rand(one_each", "epsilon = torch.randn(one_each"),
    ("penalty: epsilon is 1, so the gradient is that at real images",
     "objectives epsilon_is_uniform",
     "x_hat = epsilon * x + (1 - epsilon) * x_tilde", "x_hat = x"),
    ("penalty: the norm is taken over the whole batch", "objectives one_norm_per_sample",
     ".flatten(1).norm(dim=1)\n", ".norm()\n"),
    ("penalty: the norm is taken over channels only", "objectives one_norm_per_sample",
     ".flatten(1).norm(dim=1)\n", ".norm(dim=1)\n"),
    ("penalty: a square root at 0, whose derivative is nan", "objectives constant_critic",
     ".flatten(1).norm(dim=1)\n", ".flatten(1).square().sum(1).sqrt()\n"),
    ("penalty: one-sided", "objectives constant_critic",
     "return (norm - 1).square().mean()", "return (norm - 1).clamp(min=0).square().mean()"),
    ("penalty: the norm is not squared less 1", "objectives one_norm_per_sample",
     "return (norm - 1).square().mean()", "return norm.square().mean()"),
    ("penalty: its gradient does not reach the critic's weights", "objectives finite_differences",
     "x_hat, create_graph=True)[0]", "x_hat)[0]"),
    ("penalty: without its weight, lambda", "training each_step WGAN-GP",
     "loss = loss + run.settings.penalty_weight * penalty", "loss = loss + penalty"),
    ("penalty: a step of its own, not one of the whole loss", "training each_step WGAN-GP",
     "        loss, _, _ = critic_loss(run, x, x_tilde)\n    run",
     "        if run.settings.penalty_weight:\n"
     "            penalty = gradient_penalty(run.critic, x, x_tilde, run.rng, run.gradient)\n"
     "            run.critic_optimizer.zero_grad()\n"
     "            (run.settings.penalty_weight * penalty).backward()\n"
     "            run.critic_optimizer.step()\n"
     "        loss = LOSSES[run.settings.objective][0](run.critic(x), run.critic(x_tilde))\n"
     "    run"),
    ("penalty: in bfloat16", "objectives finite_in_bfloat16",
     "return gradient.to(critic.head.weight.dtype)", "return gradient"),
    ("penalty: written out without the slopes met", "objectives written_out_is_the_definition",
     "leaky_relu_backward(gradient, x, 0.2, False)",
     "leaky_relu_backward(gradient, x, 1.0, False)"),
    ("penalty: written out for critics with batch normalisation, too", "objectives only_penalised",
     "    if settings.penalty_weight:\n        run.gradient", "    if True:\n        run.gradient"),
    ("penalty: its random numbers are not the run's", "objectives finite_differences",
     "epsilon = torch.rand(one_each, generator=rng,", "epsilon = torch.rand(one_each,"),
    # networks
    ("networks: slope 0.1 for 0.2 everywhere", "networks nonlinearities",
     "layers.append(nn.LeakyReLU(0.2))", "layers.append(nn.LeakyReLU(0.1))",
     "F.leaky_relu(met[-1], 0.2)", "F.leaky_relu(met[-1], 0.1)",
     "leaky_relu_backward(gradient, x, 0.2, False)",
     "leaky_relu_backward(gradient, x, 0.1, False)"),
    ("networks: batch normalisation in the penalised critic",
     "networks batch_normalisation WGAN-GP",
     "Critic(*common, settings.critic_batch_norm)", "Critic(*common, True)"),
    ("networks: batch normalisation on the critic's first layer, too",
     "networks batch_normalisation DCGAN",
     "normalised = batch_norm and i > 0", "normalised = batch_norm"),
    ("networks: the critic's normalisation remembers earlier batches",
     "networks batch_normalisation DCGAN",
     "nn.BatchNorm2d(maps, track_running_stats=False)", "nn.BatchNorm2d(maps)"),
    ("networks: a sigmoid on the critic", "networks batch_normalisation WGAN-GP",
     "self.head.weight.dtype)).squeeze(1)", "self.head.weight.dtype)).squeeze(1).sigmoid()"),
    ("networks: no tanh on the generator", "networks shape_and_range",
     "return torch.tanh(self.layers(z).float())", "return self.layers(z).float()"),
    ("networks: the strided side's fan is not divided", "networks initial_spread",
     "(finer + coarser / math.prod(layer.stride))", "(finer + coarser)"),
    ("networks: uniform weights of a third of their spread", "networks initial_spread",
     "layer.weight.uniform_(-std * math.sqrt(3), std * math.sqrt(3)",
     "layer.weight.uniform_(-std / math.sqrt(3), std / math.sqrt(3)"),
    ("networks: the same for every seed", "networks seed_determines",
     "rng = torch.Generator().manual_seed(settings.seed)\n    for network",
     "rng = torch.Generator().manual_seed(0)\n    for network"),
    # losses and steps
    ("step: DCGAN's generator minimises the saturating loss", "objectives losses_equal",
     "return F.softplus(-generated).mean()", "return -F.softplus(generated).mean()"),
    ("step: the clipped and the penalised critic's loss has the wrong sign",
     "objectives losses_equal",
     "return generated.mean() - real.mean()", "return real.mean() - generated.mean()"),
    ("step: fakes are not detached, twice the work", "training each_step DCGAN",
     "        with torch.no_grad():\n            x_tilde = run.generator(z)\n        loss, _, _",
     "        x_tilde = run.generator(z)\n        loss, _, _"),
    ("step: gradients of earlier steps are added",
     "training each_step training fresh_images training side_by_side_stop float32",
     "    run.critic_optimizer.zero_grad()\n", ""),
    ("step: clipping before the step, so that the generator sees an unclipped critic",
     "training fresh_images",
     "    run.critic_optimizer.step()\n    if run.settings.clip:\n"
     "        clip_weights(run.critic, run.settings.clip)\n",
     "    if run.settings.clip:\n        clip_weights(run.critic, run.settings.clip)\n"
     "    run.critic_optimizer.step()\n"),
    ("step: biases are not clipped", "objectives clipping_limits",
     "    for weight in critic.parameters():\n        weight.clamp_(-c, c)",
     "    for weight in (w for w in critic.parameters() if w.dim() > 1):\n"
     "        weight.clamp_(-c, c)"),
    ("step: the same real batch for all critic steps", "training fresh_images WGAN",
     "    for _ in range(run.settings.n_critic):\n"
     "        x = draw_real(real, run.settings.batch_size // processes(), run.rng)\n",
     "    x = draw_real(real, run.settings.batch_size // processes(), run.rng)\n"
     "    for _ in range(run.settings.n_critic):\n"),
    ("step: critic batches of half the size", "training fresh_images",
     "draw_real(real, run.settings.batch_size // processes(), run.rng)",
     "draw_real(real, run.settings.batch_size // 2, run.rng)"),
    ("step: one critic step fewer", "training fresh_images",
     "for _ in range(run.settings.n_critic):",
     "for _ in range(max(1, run.settings.n_critic - 1)):"),
    ("step: the generator's batches of half the size", "training each_step",
     "run.noise(run.settings.batch_size // processes())",
     "run.noise(run.settings.batch_size // 2)"),
    ("step: latents at half their spread", "training noise_is_standard",
     "return torch.randn(size, generator=self.rng, device=self.rng.device)",
     "return 0.5 * torch.randn(size, generator=self.rng, device=self.rng.device)"),
    ("step: uniform latents", "training noise_is_standard",
     "return torch.randn(size, generator=self.rng, device=self.rng.device)",
     "return 2 * torch.rand(size, generator=self.rng, device=self.rng.device) - 1"),
    ("step: draws from half the images", "data every_image_is_drawn",
     "x = real[torch.randint(len(real), (n,)", "x = real[torch.randint(len(real) // 2, (n,)"),
    ("step: the last image is never drawn", "data every_image_is_drawn",
     "x = real[torch.randint(len(real), (n,)", "x = real[torch.randint(len(real) - 1, (n,)"),
    ("step: images from 0 to 1, not -1 to 1", "data every_image_is_drawn",
     "return images.float() / 127.5 - 1", "return images.float() / 255"),
    ("step: Adam's second moment as forgetful as the library's default", "training each_step",
     "betas, fused = (settings.beta1, settings.beta2), ",
     "betas, fused = (settings.beta1, 0.999), "),
    ("step: Adam for the clipped critic, too", "training each_step WGAN]",
     'if settings.optimizer == "rmsprop":\n        return torch.optim.RMSprop(weights, rate, cap',
     'if settings.optimizer == "rmsprop":\n        return torch.optim.Adam(weights, rate, cap'),
    ("step: the generator's fills the critic's gradients, too", "training each_step DCGAN",
     "    run.critic.requires_grad_(False)\n", ""),
    ("step: after the generator's the critic learns no more", "training each_step DCGAN",
     "    run.generator_optimizer.step()\n    run.critic.requires_grad_(True)\n",
     "    run.generator_optimizer.step()\n"),
    # average and pace
    ("average: none, the weights themselves are taken", "training the_average",
     "mean.lerp_(value, 1 - run.average_decay)", "mean.copy_(value)"),
    ("average: it remembers the first weights, which were random", "training the_average",
     "fill_(min(chosen.ema_decay, (2 + run.iteration) / (11 + run.iteration)))",
     "fill_(chosen.ema_decay)"),
    ("average: its statistics are those of the last batch", "training settled",
     "layer.momentum = None", "layer.momentum = 1.0"),
    ("average: its statistics are of latents at half their spread", "training settled",
     "    z = torch.randn(n, copy.layers[0].in_features,",
     "    z = 0.5 * torch.randn(n, copy.layers[0].in_features,"),
    ("average: its statistics are of 10 latents", "training settled",
     "def settled(generator, n=1000, batch=250):", "def settled(generator, n=10, batch=250):"),
    ("average: the raw generator in the weights file", "training evaluation_needs",
     '"average": settled(run.average).state_dict()}',
     '"average": settled(run.generator).state_dict()}'),
    ("average: not settled in the weights file", "training evaluation_needs",
     '"average": settled(run.average).state_dict()}', '"average": run.average.state_dict()}'),
    ("average: the raw generator in stages and film", "training recording_and_judging",
     "pictures = generate(settled(run.average), z.to(run.rng.device))",
     "pictures = generate(settled(run.generator), z.to(run.rng.device))"),
    ("average: stages and film from latents at half their spread", "training recording_and_judging",
     "    z = torch.randn(n, run.settings.latent_size, generator=rng)",
     "    z = 0.5 * torch.randn(n, run.settings.latent_size, generator=rng)"),
    ("pace: the learning rate never falls", "training learning_rate_falls 0.4",
     "share = min(1, left / chosen.linear_decay) if chosen.linear_decay else 1", "share = 1"),
    ("pace: the learning rate falls from the start", "training learning_rate_falls 0.4",
     "share = min(1, left / chosen.linear_decay) if", "share = left if"),
    ("pace: only the critic's rate falls", "training learning_rate_falls 0.4",
     "for optimizer in (run.generator_optimizer, run.critic_optimizer):\n"
     '        for group in optimizer.param_groups:\n            group["lr"].fill_',
     "for optimizer in (run.critic_optimizer,):\n        for group in optimizer.param_groups:\n"
     '            group["lr"].fill_'),
    # records and stages
    ("record: of 4 images", "training held_out_curve",
     "def record(run, n=256):", "def record(run, n=4):"),
    ("record: the held-out curve is -D(x)", "training held_out_curve",
     '"critic_loss": loss}', '"critic_loss": -real}'),
    ("record: the held-out curve is of training images", "training held_out_curve",
     '("held_out", run.data.test)):', '("held_out", run.data.train)):'),
    ("record: half as often", "training records_and_frames",
     "due = judged or run.iteration % run.settings.record_every == 0",
     "due = judged or run.iteration % (2 * run.settings.record_every) == 0"),
    ("record: the clock runs while samples are judged", "training records_and_frames",
     "                last_save = time.monotonic()\n            last_tick = time.monotonic()",
     "                last_save = time.monotonic()",
     "            run.seconds += time.monotonic() - last_tick\n",
     "            now, last_tick = last_tick, time.monotonic()\n"
     "            run.seconds += last_tick - now\n"),
    ("record: losses that are not finite are not noticed", "training what_is_not_finite critic",
     "values = [*losses, *run.critic.parameters(), *run.generator.parameters()]",
     "values = [*run.generator.parameters()]"),
    ("stage: of 25 samples", "training recording_and_judging",
     "n = run.settings.judged_samples if judged else n_kept", "n = n_kept"),
    ("stage: other noise each time", "training recording_and_judging",
     "rng = torch.Generator().manual_seed(run.settings.seed)\n    judged",
     "rng = torch.Generator().manual_seed(run.iteration)\n    judged"),
    ("stage: at equal distances", "training stages_are_24",
     "progression = np.geomspace(max(1, last / 250), last, 24)",
     "progression = np.linspace(max(1, last / 250), last, 24)"),
    ("stage: an epoch is counted without the critic's steps", "training stages_are_24 WGAN-GP",
     "epoch * n_train / (settings.n_critic * settings.batch_size)",
     "epoch * n_train / settings.batch_size"),
    # checkpoints
    ("checkpoint: the random numbers start anew", "training side_by_side_stop newest-float32",
     '        run.rng.set_state(saved["rng"])', "        pass"),
    ("checkpoint: without the average", "training side_by_side_stop newest-float32",
     'STATEFUL = ("generator", "critic", "average", "generator_optimizer", "critic_optimizer")',
     'STATEFUL = ("generator", "critic", "generator_optimizer", "critic_optimizer")'),
    ("checkpoint: without the critic's optimiser", "training side_by_side_stop newest-float32",
     "    for name in STATEFUL:\n        getattr(run, name).load_state_dict(saved[name])",
     "    for name in STATEFUL[:4]:\n        getattr(run, name).load_state_dict(saved[name])"),
    ("checkpoint: the older of two is taken", "stress damaged_newest",
     'return max(found, key=lambda one: one[1]["iteration"], default=None)',
     'return min(found, key=lambda one: one[1]["iteration"], default=None)'),
    ("checkpoint: the newest is written over", "stress damaged_newest",
     "if path != run.newest)", "if path == (run.newest or path))"),
    ("checkpoint: files are written in place", "stress full_disk_is",
     'beside = path.with_name(f"{path.name}.{os.getpid()}.part")', "beside = path"),
    ("checkpoint: before the weights file of the same state", "stress full_disk_is",
     '    write_atomically(Path(f"{run.path}.pt"), plain)\n', "",
     "    run.newest = older  # last",
     '    write_atomically(Path(f"{run.path}.pt"), plain)\n    run.newest = older  # last'),
    ("checkpoint: a changed byte goes unnoticed", "stress damaged_newest",
     "damaged = parts.testzip()", "damaged = None"),
    ("checkpoint: of other settings is resumed", "stress other_settings",
     'there, wanted = saved["settings"], asdict(run.settings)', "there, wanted = {}, {}"),
    ("checkpoint: of another machine is resumed", "stress another_machine",
     'there, wanted = there | saved["machine"], wanted | machine(run)', "pass"),
    ("checkpoint: frames of a lost state stay in the film", "training side_by_side_stop older",
     "        film.truncate(len(run.frames) * run.latest.numel())", "        pass"),
    ("checkpoint: 'afresh' deletes nothing", "training afresh_deletes",
     'if start == "afresh" else ():', "if False else ():"),
    ("checkpoint: 'afresh' deletes files of names that begin alike, too", "training afresh_deletes",
     'for old in path.parent.glob(f"{path.name}.*") if',
     'for old in path.parent.glob(f"{path.name}*") if'),
    ("checkpoint: Stop does not save", "training side_by_side_stop newest-float32",
     "saving = ending or time.monotonic()",
     "saving = run.iteration == run.settings.iterations or time.monotonic()"),
    ("checkpoint: the clock starts anew", "training side_by_side_stop newest-float32",
     '| {"newest": checkpoint})', '| {"newest": checkpoint, "seconds": 0.0})'),
    ("checkpoint: code in a file is run", "stress no_kill",
     'saved = torch.load(path, map_location="cpu", weights_only=True)',
     'saved = torch.load(path, map_location="cpu", weights_only=False)'),
    ("trainings: after them Ctrl-C does nothing", "training not_pythons",
     "            signal.signal(number, handler)", "            pass"),
    # judge
    ("judge: trained on the test images", "metrics shown_every_training_image",
     "index = torch.randint(len(data.train), (batch,)",
     "index = torch.randint(len(data.test), (batch,)",
     "questions(data.train[index], data.train_labels[index], data.target)",
     "questions(data.test[index], data.test_labels[index], data.target)"),
    ("judge: trained on half of the training images", "metrics shown_every_training_image",
     "index = torch.randint(len(data.train), (batch,)",
     "index = torch.randint(len(data.train) // 2, (batch,)"),
    ("judge: accuracy measured on the training images", "metrics judge_learns classes",
     "asked, answers = questions(data.test, data.test_labels, data.target)",
     "asked, answers = questions(data.train, data.train_labels, data.target)"),
    ("judge: accuracy a constant", "metrics judge_learns classes",
     "self.accuracy = right.float().mean().item()", "self.accuracy = 0.92"),
    ("judge: asked in training mode", "metrics judge_learns classes",
     "self.classifier, self.target = classifier.eval(), data.target",
     "self.classifier, self.target = classifier, data.target"),
    ("judge: stages and samples are compared with training images", "metrics scores_are_those",
     "self.real = self.describe(data.test)[0]", "self.real = self.describe(data.train)[0]"),
    ("judge: asked about images from 0 to 255", "metrics judge_learns classes",
     "parts = (to_float(part.to(device)) for part in pictures.split(batch))",
     "parts = (part.to(device).float() for part in pictures.split(batch))"),
    ("judge: the smoke profile's judges real runs", "metrics one_judge",
     'name = data.name + ("-smoke" if profile == "smoke" else "") + ".pt"',
     'name = data.name + ".pt"'),
    ("judge: one for all data sets", "metrics one_judge",
     'name = data.name + ("-smoke"', 'name = "judge" + ("-smoke"'),
    ("judge: quarter turns the wrong way round", "data rotations",
     "images[turns::4].rot90(turns, (2, 3))", "images[turns::4].rot90(-turns, (2, 3))"),
    # scores
    ("score: the Frechet distance without its means", "metrics frechet_distance_equals",
     "return (means + cov_r.trace()", "return (cov_r.trace()"),
    ("score: the Frechet distance with one root for two", "metrics frechet_distance_equals",
     "cov_g.trace() - 2 * root).item()", "cov_g.trace() - root).item()"),
    ("score: a biased KID", "metrics kernel_distance_equals",
     "(xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (block * (block - 1))",
     "(xx.sum() + yy.sum()) / block**2"),
    ("score: KID of the first block alone", "metrics mean_over_whole_blocks",
     "return torch.stack(values).mean().item()", "return values[0].item()"),
    ("score: the Inception score of each image beside that of all classes alike",
     "metrics inception_score_equals",
     "torch.xlogy(p, p.mean(0))", "torch.xlogy(p, torch.full_like(p, 1 / p.shape[1]))"),
    ("score: precision and recall exchanged", "metrics precision_and_recall",
     '"precision": (between <= radius[:, 3:4]).any(0)',
     '"recall": (between <= radius[:, 3:4]).any(0)',
     '"recall": (between <= generated_radius[:, 3]).any(1)',
     '"precision": (between <= generated_radius[:, 3]).any(1)'),
    ("score: precision with the second neighbour",
     "metrics precision_and_recall metrics copies_are",
     "between <= radius[:, 3:4]", "between <= radius[:, 2:3]"),
    ("score: coverage with the third neighbour", "metrics coverage_equals",
     "between.min(1).values <= radius[:, 5]", "between.min(1).values <= radius[:, 3]"),
    ("score: no two images are equally far by rounding", "metrics copies_are",
     "masked_fill_(squares < scale.mul_(1e-12), 0)", "clamp_(min=0)"),
    ("score: recall with the second neighbour", "metrics precision_and_recall metrics copies_are",
     "between <= generated_radius[:, 3]", "between <= generated_radius[:, 2]"),
    ("score: the Frechet distance of covariances divided by n", "metrics frechet_distance_equals",
     "cov_r, cov_g = real.T.cov(), generated.T.cov()",
     "cov_r, cov_g = (some.T.cov(correction=0) for some in (real, generated))"),
    ("score: KID of a kernel of second degree", "metrics kernel_distance_equals",
     "(a @ b.T / x.shape[1] + 1) ** 3", "(a @ b.T / x.shape[1] + 1) ** 2"),
    # evaluation
    ("evaluation: a loaded generator is left in training mode", "training evaluation_needs",
     "return generator.eval(), saved", "return generator.train(), saved"),
    ("evaluation: samples from latents at half their spread", "evaluation samples_are_fresh",
     "    z = torch.randn(n, generator.layers[0].in_features, generator=evaluation_rng",
     "    z = 0.5 * torch.randn(n, generator.layers[0].in_features, generator=evaluation_rng"),
    ("evaluation: EVALUATION_SEED is passed over", "evaluation samples_are_fresh",
     "evaluation_seed = torch.seed() % 2**31 if EVALUATION_SEED is None else EVALUATION_SEED",
     "evaluation_seed = torch.seed() % 2**31"),
    ("evaluation: always the same samples", "evaluation samples_are_fresh",
     "evaluation_seed = torch.seed() % 2**31 if EVALUATION_SEED is None else EVALUATION_SEED",
     "evaluation_seed = EVALUATION_SEED or 0"),
    ("evaluation: the 'real' row is made of the very test images",
     "evaluation real_held_out_or_noisy",
     'show_scores({"real training images": some_images(data, n_samples).train} | samples)',
     'show_scores({"real training images": data.test[:n_samples]} | samples)'),
    ("evaluation: the table's accuracy is a constant", "evaluation table_of_results",
     '"judge": f"{judge.accuracy:.1%} ({data.target})"', '"judge": f"92.3% ({data.target})"'),
    ("evaluation: the table's scores are those of stages", "evaluation table_of_results",
     "found = {name: judge.scores(some, thorough=True) for name, some in pictures.items()}",
     "found = {name: judge.scores(some) for name, some in pictures.items()}"),
    ("evaluation: hours for minutes", "evaluation table_of_results",
     'round(what["seconds"] / 60, 1)', 'round(what["seconds"] / 3600, 1)'),
    ("evaluation: weights of other settings pass for this run's", "evaluation table_of_results",
     'other = [m for m, what in saved.items() if what["settings"] != asdict(settings[m])]',
     "other = []"),
    ("evaluation: interpolation in a straight line", "evaluation interpolation",
     "return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)",
     "return (1 - t) * a + t * b"),
    ("evaluation: neighbours are searched among the test images",
     "evaluation neighbours_are_searched",
     "found = [nearest(embed(drawn), data.train, embed) for",
     "found = [nearest(embed(drawn), data.test, embed) for"),
    ("evaluation: neighbours are searched in the first chunk", "metrics nearest_is_found",
     "for part in pictures.split(chunk)]\n    closest",
     "for part in pictures.split(chunk)[:1]]\n    closest"),
    ("evaluation: the copies of the neighbours' control are not of training images",
     "evaluation real_held_out_or_noisy",
     '"noisy copies": noisy_copies(data.train[:1000])}',
     '"noisy copies": noisy_copies(data.test[:1000])}'),
    ("evaluation: class shares from one image", "evaluation shares_are",
     "share = 100 * judge.describe(some)[1].mean(dim=0)",
     "share = 100 * judge.describe(some[:1])[1].mean(dim=0)"),
    ("evaluation: the time lapse shows each method's first frame", "evaluation time_lapse",
     "shown = {method: max(frame for frame in film if frame <= at)",
     "shown = {method: min(frame for frame in film if frame <= at)"),
    ("evaluation: the negative critic loss is drawn with its sign", "evaluation panels",
     '("critic_loss_train", -1, "training"', '("critic_loss_train", 1, "training"'),
    ("evaluation: published weights stand beside one's own", "notebook own_weights",
     'own = any((models / f"{m}.pt").is_file() for m in PAPER)',
     'own = (models / f"{method}.pt").is_file()'),
    ("evaluation: real samples as files are training images", "evaluation samples_as_files",
     'write_samples(data.test[:n], figures / "samples" / "real")',
     'write_samples(data.train[:n], figures / "samples" / "real")'),
    ("evaluation: files of earlier samples stay", "evaluation samples_as_files",
     "        old.unlink()\n    for i, picture in", "        pass\n    for i, picture in"),
    # claims
    ("C1: without the sign", "claims falls_with_its_evidence C1",
     "upright and min(explained[1]) > max(explained[0])",
     "min(explained[1]) > max(explained[0])"),
    ("C1: means of the seeds for the worst and the best", "claims falls_with_its_evidence C1",
     "upright and min(explained[1]) > max(explained[0])",
     "upright and np.mean(explained[1]) > np.mean(explained[0])"),
    ("C1: generated points are paired with the real ones", "claims surface_is_judged",
     "draw(1000, rng) + torch.randn(1000, 2, generator=rng)",
     "0\n    generated = real + torch.randn(1000, 2, generator=rng)"),
    ("C1: the generator's noise has half its spread", "claims noisy_data",
     "return self.points[row] + self.scale * z[:, 1:]",
     "return self.points[row] + self.scale * z[:, 1:] / 2"),
    ("C1: the estimate is divided by the mean slope", "claims share_that_they_deserve",
     "(estimate / slope.max() / exact).item()", "(estimate / slope.mean() / exact).item()"),
    ("C1: 'explained' is a correlation, not its square", "claims share_that_they_deserve",
     "explained = np.corrcoef(value, potential)[0, 1] ** 2",
     "explained = np.corrcoef(value, potential)[0, 1]"),
    ("C1: the exact distance is that of any pairing", "claims scipys_assignment 8",
     "return cost[owner, np.arange(n)].mean(),", "return cost.mean(),"),
    ("C1: toy lambda 0.1", "claims toy_critics_have",
     'replace(PAPER["WGAN-GP"], penalty_weight=1.0,',
     'replace(PAPER["WGAN-GP"], penalty_weight=0.1,'),
    ("C1: a clip of 0.1", "claims clipped_critic_starts",
     'replace(PAPER["WGAN"], critic_batch_norm=False,',
     'replace(PAPER["WGAN"], clip=0.1, critic_batch_norm=False,'),
    ("C1: toy data at another scale", "claims toy_data",
     "+ 0.02 * torch.randn(n, 2, generator=rng)) / 1.414",
     "+ 0.02 * torch.randn(n, 2, generator=rng)) / 2"),
    ("C2: explodes wherever the slope is above 0", "claims falls_with_its_evidence C2",
     "min(explodes) > 0.1", "min(explodes) > 0"),
    ("C2: 'level' may fall", "claims falls_with_its_evidence C2",
     "all(abs(s) < 0.1 for s in level)", "all(s < 0.1 for s in level)"),
    ("C2: slopes from the input, not from the output back", "claims holds_of_results C2",
     "back = range(norms.shape[1], 0, -1)", "back = range(norms.shape[1])"),
    ("C2: the gradient of real points alone", "claims gradients_grow",
     "gradient = torch.cat([part.flatten() for part in gradients]).cpu()",
     "gradient = gradients[0].flatten().cpu()"),
    ("C3: half at the limit on average, not in every critic", "claims falls_with_its_evidence C3",
     'min(clipped["after"]) > 50', 'np.mean(clipped["after"]) > 50'),
    ("C3: compared with before training, not with moves at random",
     "claims falls_with_its_evidence C3",
     'clipped["after"] > clipped["moved at random"]', 'clipped["after"] > clipped["before"]'),
    ("C3: one penalised critic is enough", "claims falls_with_its_evidence C3",
     'all(penalised["after"] < penalised["before"])',
     'any(penalised["after"] < penalised["before"])'),
    ("C3: within 10% of the limit", "claims clipped_critic_starts",
     "near = [(w.abs() >= 0.99 *", "near = [(w.abs() >= 0.9 *"),
    ("C3: before and after exchanged", "claims null_of_c3",
     'weights = {"before": before, "after": after,',
     'weights = {"before": after, "after": before,'),
    ("C6: the comparison by the clock is made by iterations", "claims falls_with_its_evidence C6",
     'falls[name], "seconds") for name in pair)', 'falls[name], "iteration") for name in pair)',
     'timed = [distance(name, "seconds", clock) for name in pair]',
     'timed = [distance(name, "iteration", clock) for name in pair]'),
    ("C6: DCGAN's lead may come with its falling rate", "claims falls_with_its_evidence C6",
     'clock = min(distance(name, "iteration", falls[name], "seconds")',
     'clock = min(quality[name]["seconds"][-1]'),
    ("C6: the last distances, whatever the iteration",
     "claims falls_with_its_evidence C6 claims holds_of_results C6",
     'same = min(table["iteration"][-1] for table in quality.values())',
     'same = max(table["iteration"][-1] for table in quality.values())'),
    ("C6: RMSProp's curve for Adam's and the other way round", "claims each_curve_of_c6",
     '"penalty (RMSProp)": ("rmsprop/WGAN-GP.pt",', '"penalty (RMSProp)": ("WGAN-GP.pt",',
     '"penalty (Adam)": ("WGAN-GP.pt",', '"penalty (Adam)": ("rmsprop/WGAN-GP.pt",'),
    ("C6: its RMSProp training keeps Adam's rate", "training plan_has",
     'rate = {"optimizer": "rmsprop", "learning_rate": settings["WGAN"].learning_rate}',
     'rate = {"optimizer": "rmsprop"}'),
    ("C7: training images alone", "claims falls_with_its_evidence C7",
     'checks = {f"{m}: at least 0.7, training and held out": min(both[m]) >= 0.7',
     'checks = {f"{m}: at least 0.7, training and held out": both[m][0] >= 0.7'),
    ("C7: any positive correlation will do", "claims falls_with_its_evidence C7",
     'training and held out": min(both[m]) >= 0.7 for',
     'training and held out": min(both[m]) >= 0 for'),
    ("C7: one of DCGAN's two is below", "claims falls_with_its_evidence C7",
     'max(both["DCGAN"]) <', 'min(both["DCGAN"]) <'),
    ("C7: the later half is the whole", "claims c7_says_what",
     "half = len(distance) // 2", "half = 0"),
    ("C7: the loss in the moment of a stage", "claims curves_are_put",
     "return [loss[i:j].mean() for i, j in pairwise([0, *ends])]",
     "return [loss[j - 1] for j in ends]"),
    ("C7: a stage's own record belongs to the next", "claims curves_are_put",
     'saved["quality"]["iteration"], side="right")', 'saved["quality"]["iteration"], side="left")'),
    ("C7: correlation of values, not of ranks", "claims curves_are_put",
     "ranks = [np.argsort(np.argsort(series)) for series in (a, b)]", "ranks = [a, b]"),
    ("C8: the trend over the whole curve", "claims falls_with_its_evidence C8",
     "late = curve[len(curve) // 2 :]", "late = curve"),
    ("C8: without 'wider than it began'", "claims falls_with_its_evidence C8",
     "= gap[-1] > max(0, gap[0])", "= gap[-1] > 0"),
    ("C8: without 'ends positive'", "claims falls_with_its_evidence C8",
     "= gap[-1] > max(0, gap[0])", "= gap[-1] > gap[0]"),
    ("C8: training rises or held out falls", "claims falls_with_its_evidence C8",
     "= rises > 0 > rises_held", "= rises > 0 or rises_held < 0"),
    ("C8: one critic step for five", "training plan_has",
     'small = {"width": 16, "n_critic": 5,', 'small = {"width": 16, "n_critic": 1,'),
    ("C8: the first 1,000 images instead of random ones", "data some_images",
     "chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:n]",
     "chosen = torch.arange(len(data.train))[:n]"),
    ("claims: 'reproduced' if most checks hold", "claims holds_of_results C1",
     'word = "reproduced" if held == n else', 'word = "reproduced" if held > n / 3 else'),
    ("claims: experiments of other settings are taken", "claims experiment_is_kept",
     'same = (saved["made_by"], saved["cases"][:n]) == (made_by, cases[:n])',
     'same = saved["cases"][:n] == cases[:n]'),
    ("claims: unfinished trainings are compared", "claims only_finished",
     "if len(ends) == len(names) and all(ends) and least > 3:",
     "if len(ends) == len(names) and least > 3:"),
    ("claims: the table says of what holds that it fails", "evaluation table_of_claims",
     "for check, holds in checks.items() if not holds)",
     "for check, holds in checks.items() if holds)"),
    # data
    ("data: training and held-out images overlap", "data folder_is_its_content",
     "self.paths = paths[n_test:] if train else paths[:n_test]",
     "self.paths = paths[n_test - 1 :] if train else paths[:n_test]"),
    ("data: a folder is split by names, not by content", "data folder_is_its_content",
     "paths = [found[digest] for digest in sorted(found)]", "paths = sorted(found.values())"),
    ("data: copies count as images of their own", "data hidden_names",
     "found.setdefault(hashlib.sha256(content).hexdigest(), []).append(path)",
     "found.setdefault(hashlib.sha256(os.fsencode(path)).hexdigest(), []).append(path)"),
    ("data: hidden files are images, too", "data hidden_names",
     'for path in sorted(Path(place, name) for name in names if name[0] != "."):',
     "for path in sorted(Path(place, name) for name in names):"),
    ("data: 16 bits are cut off at 255", "data same_picture I;16",
     "(np.asarray(picture) / 257).round()", "np.asarray(picture).clip(0, 255)"),
    ("data: signed images are read as unsigned", "data other_depths",
     "or sign != 1 or", "or"),
    ("data: black behind transparent images", "data transparent",
     'Image.new("RGBA", picture.size, "white")', 'Image.new("RGBA", picture.size, "black")'),
    ("data: photographs lie on their side", "data portrait",
     "return ImageOps.exif_transpose(picture), 0", "return picture.copy(), 0"),
    ("data: images are squeezed, not cropped", "data cropped_to_its_centre",
     "picture.resize(size, how) if source.squash else", "picture.resize(size, how) if True else"),
    ("data: signs are cropped, not squeezed", "sources signs",
     '"not stated by its makers", squash=True),', '"not stated by its makers"),'),
    ("data: a folder with any grey image is grey", "data grey_only",
     "all(a.equal(b) for a, b in pairs)",
     "any((a == b).flatten(1).all(1).any() for a, b in pairs)"),
    ("data: what was decoded before is taken, whatever its files are now", "data exchanged",
     "state = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for", "state = [str(f) for"),
    ("data: an image that cannot be read stays black", "data cannot_be_read",
     "if n := len(unreadable):", "if n := 0:"),
    ("data: labels of faces", "sources faces",
     'labels[i] = label if source.target == "classes" else 0',
     "labels[i] = int(torch.as_tensor(label).sum())"),
    ("data: labels of the training images for the held-out ones", "sources read_as_written",
     "return ImageData(train, train_labels, test, test_labels, names,",
     "return ImageData(train, train_labels, test, train_labels[: len(test)], names,"),
    ("data: training and held-out images exchanged", "sources read_as_written",
     "for part in (source.train, source.test)]", "for part in (source.test, source.train)]"),
    ("data: half of a folder is held out", "data cropped_to_its_centre",
     "n_test = min(10_000, len(paths) // 5)", "n_test = min(10_000, len(paths) // 2)"),
    ("data: decoded into its file directly", "data interrupted_and_overtaken",
     '        torch.save(kept, Path(beside, "kept"))\n'
     '        os.replace(Path(beside, "kept"), path)',
     "        torch.save(kept, path)"),
    # settings
    ("setting: true passes for a number", "settings any_value",
     "if type(value) is not kind and not", "if not isinstance(value, kind) and not"),
    ("setting: limits are not looked at", "settings refuses_wrong_types",
     "if kind in (int, float) and not allowed[0] <= value <= allowed[1]:", "if False:"),
    ("setting: nan passes", "settings refuses_wrong_types",
     "if kind in (int, float) and not allowed[0] <= value <= allowed[1]:",
     "if kind in (int, float) and (value < allowed[0] or value > allowed[1]):"),
    ("setting: clipping and batch normalisation are allowed with a penalty",
     "settings cannot_be_misspelt",
     "if self.penalty_weight and (self.clip or self.critic_batch_norm):", "if False:"),
    ("setting: lambda 1 in the paper's profile", "settings profiles_are",
     "penalty_weight: float = setting(10.0, 0.0, 1e4)",
     "penalty_weight: float = setting(1.0, 0.0, 1e4)"),
    ("setting: DCGAN's momentum is the penalty's", "settings profiles_are",
     "learning_rate=2e-4, beta1=0.5, beta2=0.999, n_critic=1,", "learning_rate=2e-4, n_critic=1,"),
    ("setting: quick clips where the paper does, not where its search found best",
     "notebook settings_of_its_profile",
     '"learning_rate": 2e-3, "clip": 0.2}', '"learning_rate": 2e-3}'),
    ("setting: CHANGES of one method reach all", "settings changes_reach",
     "**common, **CHANGES.get(m, {}))",
     "**common, **{k: v for c in CHANGES.values() for k, v in c.items()})"),
    ("setting: a changed run goes on in the folder of the unchanged one", "settings changes_reach",
     'f"seed{SEED}", *changed_names])', 'f"seed{SEED}"])'),
    ("setting: bfloat16 where the hardware only emulates it", "settings bfloat16_is_chosen",
     "is_bf16_supported(including_emulation=False)", "is_bf16_supported(including_emulation=True)"),
    # several processes, and what is shown meanwhile
    ("processes: gradients are summed", "train gradients_of_two",
     "        weight.grad /= processes()", "        pass"),
    ("processes: all draw the same numbers", "train each_process_draws",
     " * processes() + torch.distributed.get_rank()", ""),
    ("processes: the same numbers in each iteration", "train each_process_draws",
     "(chosen.seed * 10**8 + run.iteration)", "(chosen.seed * 10**8)"),
    ("processes: the generator's gradients are not averaged", "train both_processes_hold",
     "    average_gradients(run.generator)\n", ""),
    ("plan: trainings on few images are judged", "training the_plan_has",
     "chosen, few, None))", "chosen, few, judge.scores))"),
    ("train: threads are not given back after an error", "training what_looks_on_may_fail",
     "    finally:\n        torch.set_num_threads(threads)", "    finally:\n        pass"),
    ("train: the device and precision of the first choice", "training a_new_choice_of_device",
     "on = on or (device, precision)", 'on = on or (device, "float32")'),
    ("shown meanwhile: the loss with its sign", "training lines_and_figure",
     'f"negative loss {-loss:.3g}"', 'f"negative loss {loss:.3g}"'),
    ("shown meanwhile: the figure at its end is an old one", "training lines_and_figure",
     "self.every * (not finished)", "self.every"),
]  # fmt: skip


def mutated(notebook, edits):
    """The JSON of `notebook` with each text, of (old, new) pairs, replaced in its cell."""
    notebook = json.loads(json.dumps(notebook))
    for old, new in edits:
        (cell,) = (c for c in code_cells(notebook) if old in "".join(c["source"]))
        cell["source"] = "".join(cell["source"]).replace(old, new)
    return json.dumps(notebook)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pytest(*arguments, notebook=NOTEBOOK, seconds=None):
    """(exit status, what was printed) of pytest on this notebook, until the first failure."""
    command = [sys.executable, "-m", "pytest", "-xq", "--tb=line", "-p", "no:cacheprovider"]
    own = {"NOTEBOOK": str(notebook), "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": os.environ | own, "capture_output": True, "text": True}
    found = subprocess.run([*command, "-o", "addopts=", *arguments], timeout=seconds, **options)
    return found.returncode, found.stdout + found.stderr


def select(ids, words):
    """Those of the tests' `ids` that a mutant's words, FILE WORDS FILE WORDS ..., ask for."""
    files, groups = {re.match(r"tests/test_(\w+)\.py", i)[1] for i in ids}, []
    for word in words.split():
        if word in files:
            groups.append([f"/test_{word}.py::"])
        else:
            groups[-1].append(word)
    return [i for i in ids if any(all(word in i for word in group) for group in groups)]


def main():
    start, notebook = time.monotonic(), json.loads(NOTEBOOK.read_text("utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
    tried = []
    for what, words, *texts in MUTANTS:
        edits = list(zip(texts[::2], texts[1::2], strict=True))
        if wrong := [old for old, _ in edits if code.count(old) != 1]:
            sys.exit(f"{what}: {code.count(wrong[0])} times in the code, not once: {wrong[0]!r}")
        if any(name in what for name in sys.argv[1:]) or len(sys.argv) == 1:
            tried.append((what, words, edits))
    ids = re.findall(r"^tests/.*::.*$", pytest("--collect-only")[1], re.MULTILINE)
    tests = {words: select(ids, words) for _, words, _ in tried}
    if empty := [words for words, found in tests.items() if not found]:
        sys.exit(f"no such tests: {', '.join(empty)}")
    union = sorted({i for found in tests.values() for i in found})
    status, said = pytest("-n", str(AT_ONCE), "--dist", "loadfile", *union)
    if status:
        sys.exit(f"{said}\nThe tests must pass on the notebook as it is")

    def attempt(mutant):
        what, words, edits = mutant
        path = Path(folder, f"{tried.index(mutant)}.ipynb")
        path.write_text(mutated(notebook, edits), "utf-8")
        status, said = pytest(*tests[words], notebook=path, seconds=SECONDS)
        killers = re.findall(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", said, re.MULTILINE)
        if status not in (0, 1) or (status == 1 and not killers):
            raise RuntimeError(f"{what}: pytest ended with {status}\n{said}")
        return what, killers[0] if killers else "**SURVIVED**"

    print(f"| {len(tried)} mutants | killed by |\n| --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        rows = []
        for what, killer in pool.map(attempt, tried):
            rows.append(killer)
            print(f"| {what} | {killer} |", flush=True)
    survived = sum("SURVIVED" in killer for killer in rows)
    print(f"\n{survived} survived. {(time.monotonic() - start) / 60:.1f} minutes")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
