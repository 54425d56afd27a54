"""The dataloader file: the fields of its entries, and how it is parsed and checked."""

from trainer_engine.config.datasets.entry import Locate
from trainer_engine.config.datasets.fields import TextSet
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.datasets.object_fields import AspectChoice
from trainer_engine.config.datasets.parse import Dataloader, parse_dataloader
from trainer_engine.config.datasets.reference_set import ReferenceSet

__all__ = ["AspectChoice", "Dataloader", "ImageSet", "Locate", "ReferenceSet", "TextSet", "parse_dataloader"]
