"""How fast a configuration trains and classifies here, and how that compares with PyTorch.

    pip install torch==2.13.0
    python tests/training_speed.py --dtype float32

Both networks are ResNet50 with random weights, batch normalisation frozen, all but conv1 trained
with Adam, everything fed from memory. Keras' is the one of Training.ipynb, and once more with batch
normalisation not folded. PyTorch's is run channels last: eagerly, with batch normalisation folded
by its own tool, and that compiled (which needs a C++ compiler). The contestants take turns, each in
a process of its own that is idle in between. Prints images/s and the ratios of Keras to each, and
adds them to results/speed.csv.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
CONTESTANTS = (
    "Keras",
    "Keras, not folded",
    "PyTorch",
    "PyTorch, folded",
    "PyTorch, folded and compiled",
)


def keras_steps(options, images, labels, fold):
    """Return functions that train on, and classify, one batch with the model of Training.ipynb."""
    sys.path.insert(0, str(REPOSITORY))
    import keras

    from eurosat_utils import fold_normalisation

    keras.config.set_dtype_policy("mixed_bfloat16" if options.dtype == "bfloat16" else "float32")
    network = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg"
    )
    if fold:
        network = fold_normalisation(network)
    for layer in network.layers:
        is_normalisation = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not layer.name.startswith("conv1") and not is_normalisation
    tile = keras.Input((64, 64, 3), dtype="uint8")
    enlarge = keras.layers.Resizing(options.size, options.size, dtype="float32")
    x = keras.applications.resnet50.preprocess_input(enlarge(keras.ops.cast(tile, "float32")))
    head = keras.layers.Dense(10, activation="softmax", dtype="float32")
    model = keras.Model(tile, head(network(x)))
    model.compile(keras.optimizers.Adam(1e-6), "sparse_categorical_crossentropy")
    return lambda: model.train_on_batch(images, labels), lambda: model.predict_on_batch(images)


def torch_steps(options, images, labels, fold, compile):
    """Return functions that train on, and classify, one batch with the same network in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """A residual block; the stride is in the first convolution, as in Keras."""

        def __init__(self, channels, width, stride, shortcut):
            super().__init__()

            def unit(*arguments, **more):
                layers = nn.Conv2d(*arguments, **more).eval(), nn.BatchNorm2d(arguments[1]).eval()
                return (
                    nn.utils.fusion.fuse_conv_bn_eval(*layers) if fold else nn.Sequential(*layers)
                )

            self.first, self.second = (
                unit(channels, width, 1, stride),
                unit(width, width, 3, padding=1),
            )
            self.third = unit(width, 4 * width, 1)
            self.shortcut = unit(channels, 4 * width, 1, stride) if shortcut else nn.Identity()

        def forward(self, x):
            y = self.third(self.second(self.first(x).relu_()).relu_())
            return (y + self.shortcut(x)).relu_()

    stages, channels = (
        {"conv1": nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU())},
        64,
    )
    stages["pool1"] = nn.MaxPool2d(3, 2, 1)
    for number, width, depth in ((2, 64, 3), (3, 128, 4), (4, 256, 6), (5, 512, 3)):
        blocks = []
        for index in range(depth):
            blocks.append(Block(channels, width, 2 if index == 0 < number - 2 else 1, index == 0))
            channels = 4 * width
        stages[f"conv{number}"] = nn.Sequential(*blocks)
    stages["classes"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
    )
    model = nn.Sequential(*stages.values()).eval().to(memory_format=torch.channels_last)
    for name, stage in stages.items():
        stage.requires_grad_(name != "conv1")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    optimizer = torch.optim.Adam(
        [weight for weight in model.parameters() if weight.requires_grad], 1e-6
    )
    truth = torch.from_numpy(labels)
    network = torch.compile(model) if compile else model

    def run():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # channels last in memory
        x = nn.functional.interpolate(x, size=(options.size, options.size), mode="bilinear") - 110
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            return network(x).float()

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(), truth).backward()
        optimizer.step()

    return train, torch.inference_mode()(run)


def contestant(name, options, connection):
    """Warm up; answer each message with images/s (training, classifying)."""
    images = np.random.default_rng(0).integers(0, 256, (options.batch, 64, 64, 3), np.uint8)
    labels = np.arange(options.batch) % 10
    if name.startswith("Keras"):
        functions = keras_steps(options, images, labels, fold=name == "Keras")
    else:
        functions = torch_steps(options, images, labels, "folded" in name, "compiled" in name)
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
        connection.send(speeds)


def main():
    """Let the contestants take turns and print what they reach."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=8, help="of each kind in a turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    from eurosat_utils import processor, save_table

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
    keras_rows, lines = np.array(results["Keras"]), []
    for name, rows in results.items():
        train, classify = np.median(rows, axis=0)
        line = {"processor": processor(), "dtype": options.dtype, "size": options.size}
        line |= {"framework": name, "training images/s": train, "classifying images/s": classify}
        for column, what in enumerate(("training", "classifying")):
            ratios = keras_rows[:, column] / np.array(rows)[:, column]
            line[f"Keras/this, {what}"] = np.median(ratios)
            line[f"lowest, {what}"], line[f"highest, {what}"] = ratios.min(), ratios.max()
        lines.append(line)
    table = pd.DataFrame(lines)
    print(table.T.to_string())
    path = REPOSITORY / "results" / "speed.csv"
    if path.is_file():
        table = pd.concat([pd.read_csv(path), table])
    save_table(table, path, decimals=3)


if __name__ == "__main__":
    main()
