"""The dataloader file: the fields of its entries, and how it is parsed and checked."""

from trainer_engine.config.datasets.entry import Locate
from trainer_engine.config.datasets.fields import ImageSet, ReferenceSet, TextSet
from trainer_engine.config.datasets.object_fields import AspectChoice
from trainer_engine.config.datasets.parse import Dataloader, parse_dataloader

__all__ = ["AspectChoice", "Dataloader", "ImageSet", "Locate", "ReferenceSet", "TextSet", "parse_dataloader"]
