"""How fast a configuration trains and classifies here, and how that compares with PyTorch.

    pip install torch==2.13.0
    python tests/benchmarks/training_speed.py --size 96 --dtype float32

Both networks are ResNet50 with random weights, batch normalisation frozen, `--stages` trained with AdamW, everything
fed from memory. Keras' is the one of Training.ipynb; PyTorch's is run eagerly, channels last, once as it is usually
written and once with its own tool for folding batch normalisation. The contestants take turns, each in a process of its
own that is idle in between. Prints images/s, peak memory, and the ratios Keras/PyTorch.
"""

import argparse
import multiprocessing
import resource  # Linux and macOS
import sys
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
CONTESTANTS = ("Keras", "PyTorch", "PyTorch, folded")


def keras_steps(options, images, labels):
    """Return functions that train on, and classify, one batch with the model of Training.ipynb."""
    sys.path.insert(0, str(TESTS))
    from conftest import notebook_functions

    training = notebook_functions("Training.ipynb")
    keras, training["WEIGHTS"] = training["keras"], None
    keras.config.set_dtype_policy("mixed_bfloat16" if options.dtype == "bfloat16" else "float32")
    model = training["build_model"](keras.layers.Resizing(options.size, options.size, dtype="float32", name="enlarge"))
    for layer in model.layers:
        layer.trainable = layer.name.startswith((*options.stages, "classes"))
    model.compile(keras.optimizers.AdamW(1e-6), "sparse_categorical_crossentropy")
    return lambda: model.train_on_batch(images, labels), lambda: model.predict_on_batch(images)


def torch_steps(options, images, labels, fold):
    """Return functions that train on, and classify, one batch with the same network in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """A residual block; the stride is in the first convolution, as in Keras."""

        def __init__(self, channels, width, stride, shortcut):
            super().__init__()

            def unit(*arguments, **more):
                layers = nn.Conv2d(*arguments, **more).eval(), nn.BatchNorm2d(arguments[1]).eval()
                return nn.utils.fusion.fuse_conv_bn_eval(*layers) if fold else nn.Sequential(*layers)

            self.first, self.second = unit(channels, width, 1, stride), unit(width, width, 3, padding=1)
            self.third = unit(width, 4 * width, 1)
            self.shortcut = unit(channels, 4 * width, 1, stride) if shortcut else nn.Identity()

        def forward(self, x):
            y = self.third(self.second(self.first(x).relu_()).relu_())
            return (y + self.shortcut(x)).relu_()

    stages, channels = {"conv1": nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU())}, 64
    stages["pool1"] = nn.MaxPool2d(3, 2, 1)
    for number, width, depth in ((2, 64, 3), (3, 128, 4), (4, 256, 6), (5, 512, 3)):
        blocks = []
        for index in range(depth):
            blocks.append(Block(channels, width, 2 if index == 0 < number - 2 else 1, index == 0))
            channels = 4 * width
        stages[f"conv{number}"] = nn.Sequential(*blocks)
    stages["classes"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = nn.Sequential(*stages.values()).eval().to(memory_format=torch.channels_last)
    for name, stage in stages.items():
        stage.requires_grad_(name in (*options.stages, "classes"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-6)
    truth = torch.from_numpy(labels)

    def run():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # channels last in memory
        x = nn.functional.interpolate(x, size=(options.size, options.size), mode="bilinear") - 110
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            return model(x).float()

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(), truth).backward()
        optimizer.step()

    return train, torch.inference_mode()(run)


def contestant(name, options, connection):
    """Warm up, then answer each message with the images/s of training and of classifying, and the peak memory in GB."""
    images = np.random.default_rng(0).integers(0, 256, (options.batch, 64, 64, 3), np.uint8)
    labels = np.arange(options.batch) % 10
    if name == "Keras":
        functions = keras_steps(options, images, labels)
    else:
        functions = torch_steps(options, images, labels, fold="folded" in name)
    for function in functions * 2:
        function()
    connection.send("ready")
    while connection.recv():
        speeds = []
        for function in functions:
            start = time.perf_counter()
            for _ in range(options.steps):
                function()
            speeds.append(options.steps * options.batch / (time.perf_counter() - start))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        connection.send((*speeds, peak / 1e9))


def main():
    """Let the contestants take turns and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--stages", nargs="+", default=["conv2", "conv3", "conv4", "conv5"])
    parser.add_argument("--steps", type=int, default=8, help="of each kind in a turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    context, connections = multiprocessing.get_context("spawn"), {}
    for name in CONTESTANTS:
        connections[name], other = context.Pipe()
        context.Process(target=contestant, args=(name, options, other), daemon=True).start()
        connections[name].recv()  # one after the other: none is disturbed while it warms up
    results = {name: [] for name in CONTESTANTS}
    for _ in range(options.turns):
        for name, connection in connections.items():
            connection.send("go")
            results[name].append(connection.recv())
    for connection in connections.values():
        connection.send(None)
    for name, rows in results.items():
        train, classify, peak = np.median(rows, axis=0)
        print(f"{name:16} training {train:6.1f} images/s, classifying {classify:6.1f} images/s, peak {peak:.2f} GB")
    for name in CONTESTANTS[1:]:
        for column, what in enumerate(("training", "classifying")):
            ratios = np.array(results["Keras"])[:, column] / np.array(results[name])[:, column]
            print(f"Keras/{name}, {what}: median {np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f}")


if __name__ == "__main__":
    main()
