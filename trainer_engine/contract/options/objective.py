from __future__ import annotations

from trainer_engine.contract.option import OptionGroup


class ObjectiveOptions(OptionGroup):
    """What the network learns: which timesteps it sees, and how far off a prediction is."""
