"""A dropout that several ranks share leaves out what one alone would."""

from __future__ import annotations

import pytest
import torch

from training_app.trainer.ranks import Ranks
from training_app.trainer.shared_dropout import SharedDropout, share_dropout


@pytest.mark.parametrize("parts", [1, 2])
def test_the_rows_of_all_ranks_make_the_batch_of_one(parts: int) -> None:
    batch = torch.rand(8, 5, 3) + 1
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(batch, 0.4)
    # Own pictures first, then those of the class: a rank has some of either.
    halves = batch.view(parts, 2, -1, 5, 3)
    found = torch.empty_like(halves)
    for number in range(2):
        torch.manual_seed(3)
        layer = SharedDropout(0.4, Ranks(number, 2), parts)
        own = halves[:, number]
        found[:, number] = layer(own.reshape(-1, 5, 3)).view_as(own)
    assert torch.equal(found.view_as(batch), expected)
    layer.eval()
    assert layer(batch) is batch


def test_only_what_drops_something_is_replaced_and_nothing_for_one_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.0))
    share_dropout([network], Ranks(), 1)
    assert type(network[0]) is torch.nn.Dropout
    share_dropout([network], Ranks(1, 2), 1)
    assert [type(layer) for layer in network] == [SharedDropout, torch.nn.Dropout]
