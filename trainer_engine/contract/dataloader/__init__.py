"""The dataloader file: what each of its entries may say, checked as a whole."""

from trainer_engine.contract.dataloader.fields import AspectChoice, ImageSet, ReferenceSet, TextSet
from trainer_engine.contract.dataloader.parse import Dataloader, parse_dataloader
from trainer_engine.contract.dataloader.reading import Locate

__all__ = ["AspectChoice", "Dataloader", "ImageSet", "Locate", "ReferenceSet", "TextSet", "parse_dataloader"]
