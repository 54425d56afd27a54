"""The dataloader file: what each of its entries may say, checked as a whole."""

from trainer_engine.config.datasets.entry import Locate
from trainer_engine.config.datasets.fields import AspectChoice, ImageSet, ReferenceSet, TextSet
from trainer_engine.config.datasets.parse import Dataloader, parse_dataloader

__all__ = ["AspectChoice", "Dataloader", "ImageSet", "Locate", "ReferenceSet", "TextSet", "parse_dataloader"]
