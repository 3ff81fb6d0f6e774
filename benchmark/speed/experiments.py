"""The experiments that are measured: systems, with some keys changed."""

from benchmark.speed.measuring import REPOSITORY
from convae.params import Params, load_params

WHOLE_MAPS = "whitened_wta_cae"  # the former default: one layer trained on whole maps


def params_of(system: str, **sections: dict[str, object]) -> Params:
    """The experiment of a file in systems/ with `sections` changed, see `changed`."""
    return changed(load_params(REPOSITORY / f"systems/{system}.yaml"), **sections)


def changed(params: Params, **sections: dict[str, object]) -> Params:
    """Return a copy of `params` with new values for some keys of some sections."""
    content = params.model_dump(mode="json")
    for name, values in sections.items():
        content[name] |= values
    return Params.model_validate(content)


def with_filters(count: int) -> Params:
    """The experiment with one layer of whole maps, with `count` filters."""
    (layer,) = params_of(WHOLE_MAPS).model.layers
    return params_of(WHOLE_MAPS, model={"layers": [layer.model_dump(mode="json") | {"filters": count}]})
