"""Early stopping of training methods: has enough been forgotten, on what no step trained?"""

from collections.abc import Callable, Sequence

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.training.task import TrainingConfig
from helpers.requests import TextRequest
from helpers.training.examples import sequence_losses

Forgotten = Sequence[ConceptPair] | TextRequest
"""What a training method forgets: pairs, or text."""
DEV_TOKENS = 2048  # of development text, at each measurement


def early_stop(
    model: LanguageModel, what: Forgotten, config: TrainingConfig
) -> Callable[[int], bool] | None:
    """Return a function of the step: is enough forgotten? None if the training never ends early.

    Of pairs, the mean P(target) on development prompts comes down to `early_stop_ratio` of its
    value before. Of text, the loss on development text goes up to that of the same text with the
    words of each document in random order, less `early_stop_ratio` of the way.

    Args:
        model: The model before the training.
        what: What to forget.
        config: Gives the ratio, and how often it is measured.
    """
    if not config.early_stop_ratio:
        return None
    if isinstance(what, TextRequest):
        return _text_forgotten(model, what, config)
    prompts = [prompt for pair in what for prompt in pair.prompts("dev")]
    goal = config.early_stop_ratio * float(answer_probability(model, prompts).mean())

    def reached(step: int) -> bool:
        if step % config.early_stop_every:
            return False
        return float(answer_probability(model, prompts).mean()) <= goal

    return reached


def _text_forgotten(
    model: LanguageModel, request: TextRequest, config: TrainingConfig
) -> Callable[[int], bool]:
    """Return a function of the step: is the loss on development text near that of its floor?"""
    dev = request.dev.examples(model, n_tokens=DEV_TOKENS)
    shuffled = request.dev.shuffled().examples(model, n_tokens=DEV_TOKENS)
    before, floor = (float(sequence_losses(model, text).mean()) for text in (dev, shuffled))
    goal = floor - config.early_stop_ratio * (floor - before)

    def reached(step: int) -> bool:
        if step % config.early_stop_every:
            return False
        return float(sequence_losses(model, dev).mean()) >= goal

    return reached
