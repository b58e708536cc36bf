import prepare, numpy as np, sys, json
import keras
name, n = sys.argv[1], int(sys.argv[2])
settings = json.load(open(f"gpu/in/{name}.json"))["settings"]
settings["RESULTS_DIR"] = "gpu/r/ref"; settings["MODEL_PATH"]="gpu/m/ref.keras"
d = np.load(f"gpu/in/{name}.npz")
i = prepare.stop - 1
ns = prepare.run_cells(settings, upto=prepare.stop - 2)
ns["head"].set_weights([d["kernel"], d["bias"]])
net = ns["network"]
class Losses(keras.callbacks.Callback):
    seen = []
    def on_train_batch_begin(self, b, logs=None): self.model.reset_metrics()
    def on_train_batch_end(self, b, logs): self.seen.append(logs["loss"]); print(b, logs["loss"], flush=True)
net.fit(ns["training_batches"](0).take(n), epochs=1, shuffle=False, verbose=0, callbacks=[Losses()])
np.save(f"gpu/ref-{name}.npy", Losses.seen)
