"""A small folder of every architecture that is read, made from its own description."""

import numpy as np

from fastattn.models.architectures import ARCHITECTURES, VARIANTS
from fastattn.models.configuration import read_configuration
from fastattn.models.parameters import embedding_parameters, layer_parameters, position_biases
from support import encoders

_SIZES = {
    "vocabulary": 62,
    "hidden": 24,
    "feed_forward": 40,
    "layers": 2,
    "heads": 3,
    "kv_heads": 1,
    "head_dim": 8,
    "table_rows": 42,
    "token_types": 2,
    "embedding": 16,
    "groups": 1,
}
# model_type, and the fields that make a variant of it.
KINDS = {name: {"model_type": name} for name in ARCHITECTURES}
KINDS |= {f"{name}, {value}": {"model_type": name, field: value} for name, field, value in VARIANTS}


class _Tensors:
    """Takes the place of a checkpoint, and makes what it is asked for."""

    def __init__(self):
        self.found, self._rng = {}, np.random.default_rng(0)

    def prefix(self, name):
        return ""

    def take(self, name, shape):
        self.found[name] = (self._rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        return self.found[name]

    def check_rest(self, prefix):
        pass


def save(folder, kind):
    """A model of that kind: config.json, model.safetensors and tokenizer.json."""
    fields = KINDS[kind]
    model_type = fields["model_type"]
    architecture = next(
        (x for (name, field, value), x in VARIANTS.items() if name == model_type and fields.get(field) == value),
        ARCHITECTURES[model_type],
    )
    config = {name: size for ours, size in _SIZES.items() for name in architecture.fields.get(ours, ())[-1:]}
    config |= {name: next(iter(architecture.activations)) for name in architecture.fields["activation"][-1:]}
    padding = 1 if architecture.skips_padding or model_type == "mpnet" else 0
    config |= {"pad_token_id": padding} | fields
    folder.mkdir(parents=True, exist_ok=True)
    encoders.write_json(folder, {"config.json": config})
    configuration, tensors = read_configuration(folder, {}), _Tensors()
    for parameters in (embedding_parameters, layer_parameters, position_biases):
        parameters(tensors, configuration)
    return encoders.Encoder(config, tensors.found).save(folder)
