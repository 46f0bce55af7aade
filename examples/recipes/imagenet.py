"""The three networks of the published ImageNet table, dense and pruned.

    python examples/recipes/imagenet.py --data ~/imagenet --model v1 v2 inception
    KERAS_BACKEND=tensorflow python examples/recipes/imagenet.py --seeds 5 --pattern 2:4
    python examples/recipes/imagenet.py --full-size

Data, given by --data: a directory with train/CLASS/*.jpg and val/CLASS/*.jpg; or, by --tfds, a set
that `tensorflow_datasets` has prepared, such as imagenet2012. The networks then have their usual
size and begin with the weights of `keras.applications`; the classes must be ImageNet's thousand in
the order of their names. Batch, rate and length are those of TensorFlow's Model Garden for a pruned
MobileNet V2 (official/projects/pruning: SGD with momentum, 0.04 for a batch of 1024, 50 epochs,
last update after 64 % of them), for all three; the rate falls as a cosine here.

Without either: 10,000 pictures of Fashion-MNIST, or the digits at hand, in colour at 32 pixels,
which narrow MobileNets learn in a minute; --model inception takes them at 75 pixels, the least
that InceptionV3 does. --full-size prunes the networks at once with their usual size, and shows what
becomes of the files and of the time of an inference.

The first convolution of MobileNets and the depthwise ones are left alone: they have few weights.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import images, recipe

MODELS = {
    "inception": (
        "InceptionV3",
        299,
        {"dense": 78.1, "0.5": 78.0, "0.75": 76.1, "0.875": 74.6, "2:4": 75.8},
    ),
    "v1": ("MobileNet", 224, {"dense": 71.04, "0.5": 70.84, "2:4": 67.35}),
    "v2": ("MobileNetV2", 224, {"dense": 71.77, "0.5": 69.64, "2:4": 66.75}),
}
TITLES = {"inception": "InceptionV3", "v1": "MobileNet V1", "v2": "MobileNet V2"}
IMAGENET = recipe.Budget(0, 50, batch=256, pruning_rate=0.01)
SMALL = recipe.Budget(4, 3, batch=128, dense_rate=4e-3, pruning_rate=2e-3)

OPTIONS = recipe.parser(__doc__, sparsity=(0.5, 0.8, 0.9, 0.95), pattern=("unstructured", "2:4"))
OPTIONS.add_argument("--model", nargs="+", choices=MODELS, default=["v1", "v2"])
OPTIONS.add_argument("--tfds", metavar="NAME", help="a set that tensorflow_datasets has prepared")
OPTIONS.add_argument("--images", choices=["fashion", "digits"], default="fashion")
OPTIONS.add_argument("--width", type=float, default=0.25, help="of networks on small pictures")
OPTIONS.add_argument("--size", type=int, help="of the pictures; small ones: 32 or 75")
OPTIONS.add_argument("--full-size", action="store_true", help="files and latency; no training")


def network(keras, model, data, width=1.0, weights=None):
    """A network of `keras.applications` for pixels from 0 to 255."""
    size, classes = data.facts["size"], data.facts["classes"]
    inputs = keras.Input((size, size, 3))
    make = getattr(keras.applications, MODELS[model][0])
    found = make(
        input_shape=(size, size, 3),
        input_tensor=keras.layers.Rescaling(1 / 127.5, -1)(inputs),
        weights=weights,
        classes=classes,
        **({} if model == "inception" else {"alpha": width}),
    )
    if weights is None:
        # Their statistics take thousands of steps to become those of the data; here are hundreds.
        for layer in found.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9
    # Made with `input_tensor`, it takes a list of one input, and Keras warns at each array.
    found = keras.Model(inputs, found.output, name=found.name)
    return narrowed(keras, found, width) if model == "inception" and width != 1 else found


def narrowed(keras, model, width):
    """The same network with a part of the filters of each convolution, newly initialized."""

    def fewer(layer):
        config = layer.get_config()
        if "filters" in config:
            config["filters"] = max(8, round(width * config["filters"]))
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=fewer)


def pretrained(keras, model, data):
    """The network with its published weights, under TFMOT without: those come from this side."""
    if keras.__name__ != "keras":
        return network(keras, model, data)
    try:
        return network(keras, model, data, weights="imagenet")
    except Exception as error:  # whatever the download ran into
        raise SystemExit(
            f"The weights of {TITLES[model]} cannot be fetched: {error}\nPut them into "
            "$KERAS_HOME/models once, on a machine that can; Keras' message names the file."
        ) from None


def top_1(model, data):
    """The fraction of the test pictures whose class is found."""
    rows = np.arange(len(data.test))
    found = []
    for some in np.array_split(rows, max(1, len(rows) // 250)):
        x, y = data.test.take(some)
        found.append(np.asarray(model.predict_on_batch(x)).argmax(-1) == y)
    return float(np.mean(np.concatenate(found)))


def momentum(keras, rate):
    return keras.optimizers.SGD(rate, momentum=0.9)


def recipes(options):
    """A recipe for each network."""
    for model in options.model:
        usual = options.size or MODELS[model][1]
        shared = {
            "score": top_1,
            "measure": "top-1 accuracy",
            "published": MODELS[model][2],
            "left_alone": None if model == "inception" else "(?i)^conv1$",
        }
        if options.data or options.tfds:
            source = images.directory if options.data else images.prepared
            yield recipe.Recipe(
                name=f"{TITLES[model]}, {options.tfds or 'ImageNet'}",
                data=lambda _, source=source, size=usual: source(
                    options.data or options.tfds, size
                ),
                build=lambda keras, data, model=model: pretrained(keras, model, data),
                budget=recipe.budget(options, IMAGENET),
                optimizer=momentum,
                **shared,
            )
        else:
            yield on_small_pictures(options, model, shared)


def on_small_pictures(options, model, shared):
    """A narrow network that learns in minutes."""
    name = "digits" if options.smoke else options.images
    least = 75 if model == "inception" else 32
    size, rows = options.size or least, 256 if options.smoke else 10000
    if size < least:
        raise SystemExit(f"{TITLES[model]} takes --size {least} and more. Received: {size}.")
    titled = {"fashion": "Fashion-MNIST", "digits": "digits"}[name]
    return recipe.Recipe(
        name=f"{TITLES[model]} {options.width:g}, {titled}",
        data=lambda _: images.small(name, size, options.work, rows),
        build=lambda keras, data: network(keras, model, data, options.width),
        budget=recipe.budget(options, SMALL),
        **shared,
    )


def main():
    options = OPTIONS.parse_args()
    if options.full_size:
        from lib import full_size

        full_size.show({TITLES[model]: MODELS[model][0] for model in options.model})
    else:
        recipe.run(options, list(recipes(options)))


if __name__ == "__main__":
    main()
