"""The inference graphs give what torchvision's own forward gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from cvpeft.export.graph import inference_graph
from cvpeft.export.graph.ops import DROPPED, nms_mask
from tests.export.stand_in import HEADS, SIZE, scenes, spread, stand_in


def same_as_torchvision(model: nn.Module, images: torch.Tensor) -> int:
    """Compares row by row and gives the number of boxes compared."""
    with torch.no_grad():
        expected, found = model(images), inference_graph(model)(images.float())
    for i, rows in enumerate(expected):
        n = int(found.num[i])
        assert n == len(rows["boxes"])
        torch.testing.assert_close(found.boxes[i, :n], rows["boxes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.scores[i, :n], rows["scores"], atol=1e-6, rtol=0)
        assert torch.equal(found.labels[i, :n], rows["labels"])
        for padding in (found.boxes[i, n:], found.scores[i, n:], found.labels[i, n:]):
            assert not padding.any()
    return sum(len(rows["boxes"]) for rows in expected)


def test_equals_torchvision_when_trained(detector):
    assert same_as_torchvision(detector, scenes(6, seed=1)[0]) > 30


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_torchvision_with_random_weights(head, seed):
    model = spread(stand_in(head, seed))
    model.detections_per_img = 60  # of one-stage heads, whose label 0 may fill the 30 where weights are random
    assert same_as_torchvision(model, scenes(2, seed)[0]) > 0


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
@pytest.mark.parametrize("suppresses", [True, False])
def test_a_row_that_is_filled_has_a_class(head, suppresses):
    """One-stage heads have a channel for label 0, which a program would look up as the last of its class names."""
    model = spread(stand_in(head, seed=1))
    with torch.no_grad():
        found = inference_graph(model, suppresses=suppresses)(scenes(2, 1)[0].float())
    for labels, scores, n in zip(found.labels, found.scores, found.num.tolist(), strict=True):
        assert 0 < n < len(labels)  # others were taken for background
        assert (labels[:n] > 0).all()
        assert (scores[:n].diff() <= 0).all()
        assert not labels[n:].any()


def test_every_pyramid_level_is_pooled_from():
    model = spread(stand_in("faster_rcnn", seed=1))
    images = scenes(6)[0]
    graph = inference_graph(model)
    with torch.no_grad():
        proposals, found = graph.proposals(list(graph.features(images.float()).values()), graph.size)
        levels = graph.pool._level(proposals[found])
    assert levels.unique().tolist() == graph.pool.k


def test_fewer_detections_than_rows_are_padded_with_zeros():
    model = stand_in("faster_rcnn")
    model.roi_heads.score_thresh = 0.9
    with torch.no_grad():
        found = inference_graph(model)(scenes(2)[0].float())
    assert found.num.tolist() == [0, 0]
    assert found.boxes.shape == (2, 30, 4)
    assert not any(x.any() for x in found)


def test_nms_mask_equals_batched_nms():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 60, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + torch.rand(2, 60, 2, generator=generator) * 40 + 1), dim=-1)
    labels = torch.randint(0, 3, (2, 60), generator=generator)
    scores = torch.rand(2, 60, generator=generator)
    of_class = torch.where(labels[:, None] == torch.arange(3).view(1, 3, 1), scores[:, None], DROPPED)  # (2, 3, 60)
    keep = nms_mask(boxes, of_class, 0.4).any(dim=1)
    for i in range(2):
        expected = batched_nms(boxes[i], scores[i], labels[i], 0.4)
        assert 0 < len(expected) < 60
        assert keep[i].nonzero().flatten().tolist() == expected.sort().values.tolist()


def test_a_dropped_box_neither_survives_nor_suppresses():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10.5], [0, 0, 10, 11]]])
    scores = torch.tensor([[[DROPPED, 0.0, DROPPED]]])
    assert nms_mask(boxes, scores, 0.5).tolist() == [[[False, True, False]]]


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        inference_graph(stand_in("fcos").train())


def test_an_unknown_detector_is_refused():
    with pytest.raises(TypeError, match="no inference graph for a Linear"):
        inference_graph(nn.Linear(1, 1))


def test_the_graph_shares_the_detectors_tensors(detector):
    graph = inference_graph(detector)
    own = {id(p) for p in detector.parameters()}
    assert {id(p) for p in graph.parameters()} == own
    assert graph.size == SIZE
