# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which neurons does each language use?
#
# A multilingual translation model is one network for many *directions*, such as English to German, `en-de`. In every
# layer of a transformer there is a feed-forward network (FFN): a wide row of *neurons*, each of which is either active on a
# token (above 0 after the ReLU) or silent. This notebook looks at which neurons are active for which direction, in the small
# model of seven languages that the quickstart starts from. It needs no GPU, no fairseq and no training:
# the counts are in a file of 150 kB, `data/quickstart/profile.safetensors`.
#
# It is a plain Python script in cells: run it as such, or open it as a notebook with Jupytext. For your own model, make the
# file with `neuron-spec profile DATA_BIN --path checkpoint.pt --output profile.safetensors`.

# %%
from pathlib import Path

from neuron_spec import ActivationCounts

HERE = Path("data/quickstart")  # of a checkout, or of what `neuron-spec init` wrote
DATA = HERE if HERE.is_dir() else ".." / HERE  # opened in examples/
profile = ActivationCounts.load(DATA / "profile.safetensors")
print("directions:", ", ".join(profile.names))
print("neurons in each layer:", profile.widths)

# %% [markdown]
# ## From counts to sets
#
# `profile.counts` holds, for each layer, a row for each direction and a column for each neuron: on how many tokens of
# validation text it was active. Some neurons fire on nearly every token, others hardly ever.

# %%
layer = "decoder.layers.2"  # the last one, nearest to the words that are written
german = profile.names.index("en-de")
active = profile.counts[layer][german] / profile.tokens["decoder"][german]
print(f"{layer}, en-de: active on {active.max():.0%} (most), {active.median():.0%} (half of the neurons: more), "
      f"{active.min():.1%} (least) of the tokens")  # fmt: skip

# %% [markdown]
# The *specialized neurons* of a direction are the fewest that together make up k = 95 % of all its activations (section 4 of
# the paper). Their number follows from the data: a layer in which all neurons are equally busy keeps nearly all.

# %%
from neuron_spec import select, sparsity_per_layer

masks = select(profile, k=95)
dropped = masks.sparsity()[layer]
for name in ("en-de", "en-ru", "de-en"):
    print(f"{name} drops {dropped[masks.names.index(name)]:.0%} of the neurons of {layer}")
sparsity_per_layer(masks)

# %% [markdown]
# ## Do related languages share neurons?
#
# Two sets overlap by their *IoU* (intersection over union): the neurons that both keep over those that at least one keeps.
# Large sets overlap even if they are drawn at random, so we also give the *adjusted IoU*: 0 for what chance gives for sets of
# these sizes, 1 for equal sets.

# %%
from neuron_spec import adjusted_iou, chance_iou, pairwise_iou

rows = dict(zip(masks.names, range(len(masks.names)), strict=True))
for other in ("en-nl", "en-ru"):
    pair = rows["en-de"], rows[other]
    iou, chance, adjusted = (of(masks.kept[layer])[pair] for of in (pairwise_iou, chance_iou, adjusted_iou))
    print(f"en-de and {other}: IoU {iou:.2f}, by chance {chance:.2f}, adjusted {adjusted:.2f}")

# %% [markdown]
# German shares far more with Dutch than with Russian. Is that so for all languages and layers? The decoder is compared over
# the directions out of English, by the language it writes; the encoder over those into English, by the language it reads.

# %%
from neuron_spec import layer_heatmaps

layer_heatmaps(masks, adjusted=True)

# %%
from neuron_spec import iou_over_layers

iou_over_layers(masks)

# %% [markdown]
# In the mean, pairs of one family (Germanic, Romance, Slavic) share more than others in every layer. The encoder's sets come
# closer to each other from layer to layer, and the decoder's share much less: as if the encoder turned all languages into
# something common, of which the decoder then makes words of one.
#
# ## Is it more than luck?
#
# There are only six languages, so we ask: of all ways to deal them out into three families of two, how many separate
# the pairs at least as well as the true families do?

# %%
from neuron_spec import compared, family_contrast, family_of, permutation_test

chosen = compared("decoder", masks.directions)
families = [family_of(code) for code in chosen.distinct]
for name, kept in masks.side("decoder").items():
    iou = chosen.between_languages(kept, adjusted_iou)
    within, between = family_contrast(iou, families)
    p = permutation_test(iou, families, seed=1).p
    print(f"{name}: {within:.2f} within families, {between:.2f} between, p = {p:.3f}")

# %% [markdown]
# There are 15 ways, so no p can be below 1/15 = 0.067: the true families separate the pairs best of all 15 in each of these
# layers, and more cannot be shown with six languages.
#
# ## Languages as a tree
#
# The same overlap in the last layer, clustered without being told of families:

# %%
from neuron_spec import cluster, dendrograms

iou = chosen.between_languages(masks.kept[layer], pairwise_iou)
dendrograms({layer: cluster(iou, chosen.distinct)})

# %% [markdown]
# Spanish comes together with Portuguese, and German with Dutch. Czech and Russian do not: Russian, alone in its script, stands
# apart from all.
#
# ## Controls, and masks of your own
#
# Training through these sets is worth something only if it beats training through others. `matched_random` draws as many
# neurons for each direction and layer: its sets overlap by chance, and an adjusted IoU of 0 is what they show.

# %%
from neuron_spec import matched_random

iou_over_layers(matched_random(masks, seed=1))

# %% [markdown]
# A mask file holds one bit a neuron. `to_dict` gives plain tensors, for each direction and layer a row of True (kept) and
# False; `from_dict` reads such a dictionary, by whatever method you made it. Here: keep every neuron that any direction
# out of English keeps, for all of these.

# %%
from tempfile import TemporaryDirectory

import torch

from neuron_spec import NeuronMasks

sets = masks.to_dict()
out_of_english = [name for name in sets if name.startswith("en-")]
shared = {
    site: torch.stack([sets[name][site] for name in out_of_english]).any(dim=0) for site in masks.layers
}
mine = NeuronMasks.from_dict({name: shared if name in out_of_english else sets[name] for name in sets})
with TemporaryDirectory() as folder:
    mine.save(Path(folder) / "masks.safetensors")
    mine = NeuronMasks.load(Path(folder) / "masks.safetensors")
print(
    f"en-de dropped {dropped[rows['en-de']]:.0%} of {layer}, and drops {mine.sparsity()[layer][rows['en-de']]:.0%}"
)

# %% [markdown]
# Such a file is what `neuron-spec specialize --masks` trains with. Masks of another model are refused, in one message that
# says what differs:

# %%
from neuron_spec import NeuronSpecError

narrow = NeuronMasks(mine.directions, {layer: mine.kept[layer][:, :128]})
try:
    narrow.require_fit({layer: profile.widths[layer]})
except NeuronSpecError as error:
    print(error)
