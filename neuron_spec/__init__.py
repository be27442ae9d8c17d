"""Specialized neurons for multilingual machine translation on fairseq.

What a notebook needs is here, and needs no fairseq:

>>> from neuron_spec import ActivationCounts, NeuronMasks, adjusted_iou, iou_over_layers, select
>>> profile = ActivationCounts.load("data/quickstart/profile.safetensors")  # how often which neuron was active
>>> masks = select(profile, k=95)  # the fewest that cover 95 % of the activations
>>> german, dutch = masks.rows(["en-de", "en-nl"])
>>> round(adjusted_iou(masks.kept["decoder.layers.2"])[german, dutch].item(), 2)  # 0: by chance, 1: equal
0.42
>>> figure = iou_over_layers(masks)  # as figure 2 of the paper
"""

# Light on purpose: a name is imported when it is asked for. fairseq's --user-dir imports this package and then every module
# of `tasks` and `models`, which register what they define.
# To type checkers it is true, as typing's is, whose import takes longer than all the rest.
TYPE_CHECKING = False
__version__ = "0.1.0"
__all__ = [
    "ActivationCounts",
    "Direction",
    "NeuronMasks",
    "NeuronSpecError",
    "adjusted_iou",
    "always_active",
    "chance_iou",
    "cluster",
    "compared",
    "cumulative",
    "dendrograms",
    "family_contrast",
    "family_of",
    "intersection_of_all",
    "iou_heatmap",
    "iou_over_layers",
    "ks_per_direction",
    "language",
    "layer_heatmaps",
    "matched_random",
    "only_side",
    "other_direction",
    "overlap_of",
    "pairwise_iou",
    "parse_directions",
    "permutation_test",
    "select",
    "select_again",
    "select_shared_core",
    "select_top_fraction",
    "sparsity_per_layer",
    "tree_distance",
]

if TYPE_CHECKING:
    from neuron_spec.directions import Direction, parse_directions
    from neuron_spec.errors import NeuronSpecError
    from neuron_spec.languages import family_of, language, tree_distance
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.neurons.overlap import adjusted_iou, chance_iou, cluster, compared, pairwise_iou
    from neuron_spec.neurons.pairs import overlap_of
    from neuron_spec.neurons.selection import (
        always_active,
        cumulative,
        intersection_of_all,
        ks_per_direction,
        matched_random,
        only_side,
        other_direction,
        select,
        select_shared_core,
        select_top_fraction,
    )
    from neuron_spec.neurons.stability import select_again
    from neuron_spec.pages.curves import dendrograms, iou_over_layers, sparsity_per_layer
    from neuron_spec.pages.heatmap import iou_heatmap, layer_heatmaps
    from neuron_spec.statistics import family_contrast, permutation_test

_NAMES_OF = {
    "directions": "Direction parse_directions",
    "errors": "NeuronSpecError",
    "languages": "family_of language tree_distance",
    "neurons.activations": "ActivationCounts",
    "neurons.masks": "NeuronMasks",
    "neurons.overlap": "adjusted_iou chance_iou cluster compared pairwise_iou",
    "neurons.pairs": "overlap_of",
    "neurons.selection": "always_active cumulative intersection_of_all ks_per_direction matched_random only_side other_direction select select_shared_core select_top_fraction",
    "neurons.stability": "select_again",
    "pages.curves": "dendrograms iou_over_layers sparsity_per_layer",
    "pages.heatmap": "iou_heatmap layer_heatmaps",
    "statistics": "family_contrast permutation_test",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # to a type checker, any name would be there

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
