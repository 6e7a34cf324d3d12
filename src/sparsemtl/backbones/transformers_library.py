"""Models of the transformers library as encoders in configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from sparsemtl.backbones.adapters import Pooling, TransformerEncoder
from sparsemtl.errors import ParameterError, missing_extra
from sparsemtl.registry.parameters import Natural, validated


@validated
def transformers_model(
    input_shape: Annotated[
        Sequence[int], Doc("(length,) of token numbers, or (channels, height, width) of one image.")
    ],
    *,
    model: Annotated[
        str,
        Doc(
            "Kind of model with random weights, such as `bert`, `vit` or `gpt2`; or a folder or a name on the hub, "
            "with a `/`, from which `AutoModel.from_pretrained` reads one."
        ),
    ] = "bert",
    config: Annotated[
        Mapping[str, Any],
        Doc("Entries of the model's configuration, such as `{hidden_size: 32, num_hidden_layers: 2}`."),
    ] = {},  # a mapping of YAML, never changed
    pool: Annotated[
        Pooling | None,
        Doc(
            "Vector of a sequence: `pooler`, `first` token, `last` token that is no padding, or `mean`. By default "
            "`pooler`, if the model has one, else `mean`."
        ),
    ] = None,
    padding: Annotated[
        Natural | None, Doc("Token number of padding, which no other token attends to; None: there is none.")
    ] = None,
) -> TransformerEncoder:
    """Model of Hugging Face's transformers library, without a head (extra `transformers`).

    `vocab_size`, `image_size` and `num_channels` must fit the data; the latter two are the data's unless `config` sets
    them.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    except ImportError:
        raise missing_extra("transformers", "transformers", "the encoder 'transformers'") from None
    stored = "/" in model or Path(model).is_dir()
    if not stored and model not in CONFIG_MAPPING:
        near = get_close_matches(model, list(CONFIG_MAPPING.keys()), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ParameterError(
            f"`model`: the transformers library has no kind of model {model!r}.{hint} Kinds are those of its "
            "`AutoConfig.for_model`, such as 'bert' or 'vit'; a folder or a name on the hub holds a '/'."
        )
    if stored:
        found: Any = AutoModel.from_pretrained(model, **config)
    else:
        settings = AutoConfig.for_model(model)
        own = _of_images(input_shape) if hasattr(settings, "image_size") else {}
        found = AutoModel.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(model, **{**own, **config})
        )
    pool = pool or ("mean" if getattr(found, "pooler", None) is None else "pooler")
    if pool != "pooler" and hasattr(found, "pooler"):
        found.pooler = None  # weights that no task would use
    return TransformerEncoder(found, pool, padding=padding)


def _of_images(shape: Sequence[int]) -> dict[str, int]:
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ParameterError(f"this model reads square images (channels, size, size), got samples of {tuple(shape)}.")
    return {"num_channels": shape[0], "image_size": shape[1]}
