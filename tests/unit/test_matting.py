"""What colours say about a mask: the estimates that the refining stage of the starter networks sees."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.nets.matting import CUES, colour_cues, filled

INK, GROUND = torch.tensor((1.5, -0.5, 0.2)), torch.tensor((-1.0, 0.8, 0.1))


def printed(alpha: Tensor) -> Tensor:
    """One ink on one ground: (H, W) -> (1, 3, H, W)."""
    return (GROUND.view(3, 1, 1) + alpha * (INK - GROUND).view(3, 1, 1))[None]


def shape() -> Tensor:
    """A block with a soft lower half and thin lines beside it, (64, 96)."""
    alpha = torch.zeros(64, 96)
    alpha[8:32, 10:50] = 1
    alpha[32:56, 10:50] = torch.linspace(1, 0, 24).view(-1, 1)
    alpha[8:56, 60:90:5] = 1
    return alpha


def blurred_logits(alpha: Tensor, window: int) -> Tensor:
    mask = F.avg_pool2d(alpha[None, None], window, stride=1, padding=window // 2)
    return mask.clamp(0.002, 0.998).logit()


#: Numbers of the cues: place, distance of the colours, distance from the place; by which ink.
GENEROUS, STRICT, ALL = (0, 1, 2), (3, 4, 5), (6, 7, 8)


class TestAlphaFromColours:
    def test_is_sharp_where_the_mask_is_not(self) -> None:
        alpha = shape()
        logits = blurred_logits(alpha, 5)
        place = colour_cues(printed(alpha), logits)[0, STRICT[0]]
        error, before = (place - alpha).abs(), (logits.sigmoid()[0, 0] - alpha).abs()
        assert float(before.mean()) > 0.05
        assert float(error.mean()) < 0.01
        # The lines themselves, which the mask has at a fifth.
        assert float(place[8:56, 60:90:5].min()) > 0.95

    def test_by_generous_ink_reaches_art_that_the_mask_is_nowhere_sure_of(self) -> None:
        alpha = torch.zeros(64, 96)
        alpha[16:48, 24:72] = 1
        logits = torch.where(alpha > 0, 1.4, -6.0)[None, None]  # 0.8
        cues = colour_cues(printed(alpha), logits)[0]
        assert float((cues[GENEROUS[0], 16:48, 24:72] - 1).abs().max()) < 0.03
        assert float((cues[STRICT[0], 16:48, 24:72] - 1).abs().min()) > 0.3  # made of nothing, which cue 11 tells

    def test_by_all_ink_keeps_the_masks_mean_and_takes_the_pictures_detail(self) -> None:
        # All of it is half covered: nothing but the mask says how much.
        blocks = 0.5 + 0.2 * torch.rand(16, 16, generator=torch.Generator().manual_seed(1))
        alpha = blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
        alpha[:8] = alpha[-8:] = 0
        cues = colour_cues(printed(alpha), blurred_logits(alpha, 13))[0]
        error = (cues[ALL[0]] - alpha)[16:-16, 16:-16]
        assert float(error.abs().mean()) < 0.05
        assert float(error.std()) < 0.3 * float(alpha[16:-16, 16:-16].std())
        assert float((cues[GENEROUS[0]] - alpha)[12:-12].abs().mean()) > 0.1
        assert float(cues[ALL[1], 12:-12].mean()) == pytest.approx(float((INK - GROUND).norm()), rel=0.1)

    @pytest.mark.parametrize(("level", "reads"), [(0.3, True), (0.1, False)])
    def test_by_all_ink_reads_faint_ink_but_not_haze(self, level: float, reads: bool) -> None:
        # The mask says that much of a half where the picture has as much ink and no other, or only a block elsewhere.
        alpha = torch.zeros(64, 128)
        alpha[16:48, 16:48] = 0 if reads else 1
        alpha[:, 64:] = level if reads else 0
        mask = alpha.clone()
        mask[:, 64:] = level
        contrast = colour_cues(printed(alpha), blurred_logits(mask, 1))[0, ALL[1], :, 72:]
        assert float(contrast.mean()) == pytest.approx(float((INK - GROUND).norm()), rel=0.1)

    @pytest.mark.parametrize("cues", [GENEROUS, STRICT])
    def test_says_how_far_it_can_be_trusted(self, cues: tuple[int, int, int]) -> None:
        alpha = shape()
        picture = printed(alpha)
        picture[:, :, 40:44, 70:80] = torch.tensor((0.0, 0.0, 3.0)).view(1, 3, 1, 1)  # a colour between no two
        found = colour_cues(picture, blurred_logits(alpha, 5))[0]
        assert float(found[cues[1]].mean()) == pytest.approx(float((INK - GROUND).norm()), rel=0.1)
        assert float(found[cues[2], 40:44, 70:80].min()) > 2
        assert float(found[cues[2], 8:32, 10:50].max()) < 0.3

    def test_of_colours_that_hardly_differ_is_none(self) -> None:
        picture = 1e-3 * torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
        place = colour_cues(picture, blurred_logits(shape(), 5))[0, GENEROUS[0]]
        assert float(place.abs().max()) < 0.01


class TestTheCues:
    @pytest.mark.parametrize("logit", [-20.0, 20.0])
    def test_of_a_mask_that_is_sure_of_everything_are_finite_and_tell_that_there_is_one_colour(
        self, logit: float
    ) -> None:
        cues = colour_cues(torch.randn(1, 3, 32, 64), torch.full((1, 1, 32, 64), logit))
        assert cues.shape == (1, CUES, 32, 64)
        assert bool(torch.isfinite(cues).all())
        assert float(cues[:, 11].max()) < 0.01

    def test_tell_where_both_colours_are_near(self) -> None:
        alpha = torch.zeros(64, 128)
        alpha[:, 16:48] = 1
        near = colour_cues(printed(alpha), blurred_logits(alpha, 3))[0, 11]
        assert float(near[:, 16].min()) > 0.4
        assert float(near[:, 100:].max()) < 0.01

    def test_end_with_the_mask_itself(self) -> None:
        logits = 3 * torch.randn(1, 1, 32, 64)
        cues = colour_cues(torch.randn(1, 3, 32, 64), logits)
        torch.testing.assert_close(cues[:, 9:10], logits.clamp(-8, 8) / 4)
        torch.testing.assert_close(cues[:, 10:11], logits.sigmoid())

    def test_of_an_item_do_not_depend_on_its_neighbours(self) -> None:
        picture, logits = torch.randn(3, 3, 32, 64), 3 * torch.randn(3, 1, 32, 64)
        torch.testing.assert_close(colour_cues(picture, logits)[1:2], colour_cues(picture[1:2], logits[1:2]))

    def test_in_half_precision_are_those_of_single(self) -> None:
        alpha = shape()
        picture, logits = printed(alpha).half(), blurred_logits(alpha, 5).half()
        found = colour_cues(picture, logits)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, colour_cues(picture.float(), logits.float()))

    def test_let_no_gradient_through(self) -> None:
        picture, logits = torch.randn(1, 3, 32, 32), torch.randn(1, 1, 32, 32, requires_grad=True)
        assert not colour_cues(picture, logits).requires_grad


class TestFilling:
    def test_keeps_a_colour_and_carries_it_on(self) -> None:
        weight = torch.zeros(1, 1, 40, 64)
        weight[:, :, 3:5, 7:9] = 1
        seeds = torch.cat((INK.view(1, 3, 1, 1) * weight, weight), dim=1)
        torch.testing.assert_close(filled(seeds), INK.view(1, 3, 1, 1).expand(1, 3, 40, 64), atol=0.03, rtol=0)

    @pytest.mark.parametrize("side", [2, 8])
    def test_carries_the_colour_of_little_as_far_as_that_of_much(self, side: int) -> None:
        weight = torch.zeros(1, 1, 320, 320)
        weight[:, :, :side, :side] = 1
        seeds = torch.cat((INK.view(1, 3, 1, 1) * weight, weight), dim=1)
        torch.testing.assert_close(filled(seeds)[0, :, -1, -1], INK, atol=0.01, rtol=0)

    def test_takes_the_nearest(self) -> None:
        weight = torch.zeros(1, 1, 64, 64)
        weight[:, :, :, :4] = weight[:, :, :, -4:] = 1
        colour = torch.where(torch.arange(64) < 32, 1.0, -1.0).view(1, 1, 1, 64).expand(1, 3, 64, 64)
        found = filled(torch.cat((colour * weight, weight), dim=1))
        assert float(found[..., :12].min()) > 0.8
        assert float(found[..., -12:].max()) < -0.8
