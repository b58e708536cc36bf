import sys; sys.path.insert(0, ".")
import eurosat_utils as eu, keras, numpy as np, io
from pathlib import Path
OUT = Path("gpu/in"); OUT.mkdir(exist_ok=True)
n = keras.applications.ResNet50(include_top=False, weights="models/resnet50_imagenet_standin_notop.weights.h5", input_shape=(None,None,3), pooling="avg")
arrays = {}
for l in n.layers:
    if isinstance(l, keras.layers.Conv2D):
        k, b = l.get_weights(); g, be, m, v = n.get_layer(l.name.replace("_conv","_bn")).get_weights()
        eps = n.get_layer(l.name.replace("_conv","_bn")).epsilon
        for a, x in zip("kbgemv", (k,b,g,be,m,v)): arrays[f"{l.name}/{a}"] = x
print(eps, len(arrays))
np.savez_compressed(OUT/"weights.npz", **arrays)
folder = eu.fetch_eurosat("data"); tiles = eu.list_tiles(folder)
data = [(folder/f).read_bytes() for f in tiles["file"]]
half = len(data)*11//20
for i, part in enumerate((data[:half], data[half:])):
    np.savez(OUT/f"tiles{i}.npz", sizes=np.array([len(x) for x in part]), data=np.frombuffer(b"".join(part), np.uint8))
import hashlib
pix = eu.load_tiles(folder, tiles["file"]); print(hashlib.sha256(pix.tobytes()).hexdigest())
(OUT/"pixels.sha256").write_text(hashlib.sha256(pix.tobytes()).hexdigest())
