"""An adapter on the network of each family trains as its definition says: the same loss, and the same gradient of each of its matrices.

Those with references are beside the losses with references, among the tests of their family.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.bench import published
from tests.bench.network_loops import Setting, bare_loss, make_batch, make_family
from tests.bench.networks import Network, make_network
from tests.helpers.adapter_gradients import RANK, SCALE, assert_adapter_is_its_definition
from tests.helpers.models import fixed
from tests.helpers.params import often
from trainer_engine.adapters.build import make_trainable
from trainer_engine.objectives.build import make_objective

CPU = torch.device("cpu")


def fill_zeros(theirs: nn.Module, ours: nn.Module) -> None:
    """A new network has weights of zero that hide others: give these, in both, numbers."""
    frozen = [parameter for parameter in ours.parameters() if not parameter.requires_grad]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(theirs.parameters(), frozen, strict=True)):
            assert torch.equal(one, other)
            if not one.any():
                one.copy_(fixed(*one.shape, seed=number) * 0.1)
                other.copy_(one)


@pytest.mark.parametrize("network", often(published.NETWORKS.values(), lambda network: network.family), ids=lambda network: network.family)
def test_an_adapter_has_the_loss_and_gradients_of_its_definition(network: Network) -> None:
    """The network alone is diffusers', called as its pipeline calls it (``Network.call``)."""
    setting = Setting(device=CPU, model_type="lora", latent_edge=16, batch_size=2, lora_rank=RANK, lora_alpha=SCALE * RANK)
    architecture = {**network.architecture, **network.narrow, **network.shallow}
    family, batch = make_family(network, architecture, setting), make_batch(network, architecture, setting, 0)
    trainable, theirs = make_trainable(family, None), make_network(network, architecture, CPU, torch.float32)
    fill_zeros(theirs, trainable.network)

    def losses(ours: nn.Module, bare: nn.Module) -> tuple[Tensor, Tensor]:
        objective = make_objective(family.prediction_type, network.schedule, family.options.objective)
        noisy = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = objective.target(batch.latents, batch.noise, batch.timesteps)
        loss = objective.loss(family.predict(ours.eval(), batch.inputs(noisy)), target, batch.timesteps).mean()
        return loss, bare_loss(network, batch, bare.eval(), torch.float32)()

    assert_adapter_is_its_definition(trainable, theirs, losses)
