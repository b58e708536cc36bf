"""Fine-tune EuroSAT as Training.ipynb does, written a second time, in JAX, for a GPU.

    python train_jax.py IN OUT.npz SECONDS NAME:SIZES ...   (such as random-1:96,96,96,128,160)

IN holds tiles, weights and, for each run, its parts, the head that the notebook fitted, and the order and turns
of its training tiles in each epoch. The answers of validation and test tiles are saved, before calibration, by
the network with its weights rounded to 16 bits. Everything is computed in float32.
"""

import hashlib
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

jax.config.update("jax_default_matmul_precision", "highest")
BATCH, RATE = 64, 2e-4
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


def load_tiles(folder):
    parts = [np.load(path) for path in sorted(folder.glob("tiles?.npz"))]
    files = []
    for part in parts:
        ends = np.cumsum(part["sizes"])
        data = part["data"].tobytes()
        files += [data[a:b] for a, b in zip(ends - part["sizes"], ends)]
    with ThreadPoolExecutor(16) as pool:
        tiles = np.stack(list(pool.map(lambda b: np.asarray(Image.open(io.BytesIO(b))), files)))
    digest = hashlib.sha256(tiles.tobytes()).hexdigest()
    print("pixels equal:", digest == (folder / "pixels.sha256").read_text(), flush=True)
    return tiles


def load_folded(folder):
    arrays, folded = np.load(folder / "weights.npz"), {}
    for name in {key.split("/")[0] for key in arrays}:
        k, b, g, be, m, v = (arrays[f"{name}/{a}"] for a in "kbgemv")
        scale = g / np.sqrt(v + 1.001e-5)
        folded[name] = [(k * scale).astype(np.float32), ((b - m) * scale + be).astype(np.float32)]
    return folded


def conv(x, weights, stride=1):
    kernel, bias = weights
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME" if stride == 1 else "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + bias


def network(params, tiles, size):
    """Return logits (n, 10) of uint8 tiles (n, 64, 64, 3)."""
    x = jax.image.resize(tiles.astype(jnp.float32), (len(tiles), size, size, 3), "bilinear", antialias=False)
    x = x[..., ::-1] - jnp.array([103.939, 116.779, 123.68])
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = jax.nn.relu(conv(x, params["conv1_conv"], 2))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    for stage, blocks in BLOCKS.items():
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            short = conv(x, params[f"{name}_0_conv"], stride) if block == 1 else x
            x = jax.nn.relu(conv(x, params[f"{name}_1_conv"], stride))
            x = jax.nn.relu(conv(x, params[f"{name}_2_conv"]))
            x = jax.nn.relu(short + conv(x, params[f"{name}_3_conv"]))
    kernel, bias = params["head"]
    return x.mean(axis=(1, 2)) @ kernel + bias


def turn(tiles, which):
    bit = lambda n: (which // n % 2 == 1)[:, None, None, None]
    tiles = jnp.where(bit(1), tiles[:, :, ::-1], tiles)
    tiles = jnp.where(bit(2), tiles[:, ::-1], tiles)
    return jnp.where(bit(4), tiles.transpose(0, 2, 1, 3), tiles)


@partial(jax.jit, static_argnames="size", donate_argnums=(0, 1, 2))
def train_step(params, m, v, step, steps, tiles, labels, rows, which, count, size):
    batch, truth = turn(tiles[rows], which), labels[rows]

    def loss(learning):
        logits = network({**params, **learning}, batch, size)
        each = -jnp.take_along_axis(jax.nn.log_softmax(logits), truth[:, None], axis=1)[:, 0]
        return (each * (jnp.arange(BATCH) < count)).sum() / count

    learning = {name: w for name, w in params.items() if name != "conv1_conv"}
    value, gradients = jax.value_and_grad(loss)(learning)
    share = (step + 1.0) / (steps + 1)
    rate = RATE * jnp.clip(jnp.minimum(10 * share, (1 - share) / 0.9), 0, 1)
    t = step + 1.0
    alpha = rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    m = jax.tree.map(lambda m, g: m + (g - m) * (1 - 0.9), m, gradients)
    v = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - 0.999), v, gradients)
    learning = jax.tree.map(lambda w, m, v: w - alpha * m / (jnp.sqrt(v) + 1e-7), learning, m, v)
    return {**params, **learning}, m, v, value


@partial(jax.jit, static_argnames="size")
def answer(params, tiles, size):
    return jax.nn.softmax(network(params, tiles, size))


def run(folder, name, sizes, tiles, folded, labels, limit=None):
    data = np.load(folder / f"{name}.npz")
    params = {key: [jnp.array(w) for w in value] for key, value in folded.items()}
    params["head"] = [jnp.array(data["kernel"]), jnp.array(data["bias"])]
    learning = {key: w for key, w in params.items() if key != "conv1_conv"}
    m, v = (jax.tree.map(jnp.zeros_like, learning) for _ in range(2))
    train = data["train"]
    steps, losses = -(-len(train) // BATCH), []
    start = time.time()
    for epoch, size in enumerate(sizes):
        order = np.zeros(steps * BATCH, int)
        which = np.zeros(steps * BATCH, np.int32)
        order[: len(train)], which[: len(train)] = train[data["orders"][epoch]], data["turns"][epoch]
        for i in range(steps if limit is None else limit):
            at = slice(i * BATCH, (i + 1) * BATCH)
            count = min(BATCH, len(train) - i * BATCH)
            number = jnp.float32(epoch * steps + i)
            params, m, v, value = train_step(params, m, v, number, jnp.float32(steps * len(sizes)), tiles, labels,
                order[at].astype(np.int32), which[at], jnp.float32(count), size=size)
            losses.append(value)
        if limit is not None:
            return np.array(losses), params
        print(f"  {name} epoch {epoch + 1}, {size} px: loss {np.mean(losses[-steps:]):.4f}, {time.time() - start:.1f} s", flush=True)
    seconds = time.time() - start
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), params)
    result = {"losses": np.array(losses, np.float32), "seconds": seconds, "sizes": sizes}
    for part in ("validation", "test"):
        rows = data[part]
        padded = np.resize(rows, -(-len(rows) // 256) * 256)
        out = [np.asarray(answer(params, tiles[padded[i : i + 256]], size=sizes[-1])) for i in range(0, len(padded), 256)]
        probabilities = np.concatenate(out)[: len(rows)]
        result[part] = probabilities.astype(np.float32)
        if part == "validation":
            print(f"{name} {sizes}: validation accuracy {(probabilities.argmax(1) == np.asarray(labels)[rows]).mean():.4f}, {seconds:.1f} s", flush=True)
    return result


def main():
    begin = time.time()
    folder, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    print(jax.devices(), jax.__version__, flush=True)
    pixels = load_tiles(folder)
    tiles = jax.device_put(pixels)
    labels = jax.device_put(np.load(folder / "labels.npy").astype(np.int32))
    folded, results = load_folded(folder), {}
    for argument in sys.argv[4:]:
        name, sizes = argument.split(":")
        sizes = [int(size) for size in sizes.split(",")]
        before = time.time()
        result = run(folder, name, sizes, tiles, folded, labels)
        for key, value in result.items():
            results[f"{argument}/{key}"] = value
        np.savez(out, **results)
        print(f"  {time.time() - begin:.0f} s in all", flush=True)
        if time.time() - begin + 1.3 * (time.time() - before) > seconds:
            print("stopped, no time for more", flush=True)
            break


if __name__ == "__main__":
    main()
