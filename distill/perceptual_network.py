"""The frozen network of the perceptual term, or the recipe without that term where its weights cannot be had."""

from __future__ import annotations

from duskfuse.data.errors import InputError
from duskfuse.data.progress import say
from duskfuse.distill.recipe import PerceptualName, Recipe
from duskfuse.distill.terms import TermName
from duskfuse.tasks.encoders import FeatureEncoder, squeezenet_encoder
from duskfuse.tasks.vgg import vgg_encoder

_TERM = TermName.PERCEPTUAL


def with_perceptual(recipe: Recipe) -> tuple[Recipe, FeatureEncoder | None]:
    """The recipe that can be run, and the network of its perceptual term, if it has one.

    Without a file torchvision's weights are fetched. Where that fails, the term is left out of the run, of its log and
    of its resolved recipe, and the user is told so once. Raises InputError for a file that is given and wrong.
    """
    if _TERM not in recipe.terms_used():
        return recipe, None
    config = recipe.perceptual
    open_encoder = {PerceptualName.VGG: vgg_encoder, PerceptualName.SQUEEZENET: squeezenet_encoder}[config.network]
    try:
        return recipe, open_encoder(config.weights)
    except InputError as error:
        if config.weights is not None:
            raise
        say(
            f"term {_TERM} is left out of this run: {error.seen}; "
            f"give weights with --set perceptual.weights=FILE, or another network with --set perceptual.network=NAME"
        )
        return recipe.without(_TERM), None
