"""Decoding, masks, cutouts and PNG: every mode and size a side may have."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from shared.errors import SourceNotAnImage, SourceTooLarge
from tests.cuda import NEEDS_CUDA
from tests.picture_files import cmyk_profile, linear_grey_profile, png16
from worker.images import Picture, clean_colours, cut_out, decode, encode_png, mask_at_size, network_input
from worker.images.tensors import MEAN, STD

LIMIT = 10_000_000
CPU = torch.device("cpu")
Array = np.ndarray[Any, Any]


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 40, height: int = 30) -> Array:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 255 // width, y * 255 // height, (x + y) % 256), -1).astype(np.uint8)


class TestDecoding:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", "AVIF"])
    def test_every_format_gives_rgb_of_the_right_size(self, kind: str) -> None:
        by_kind: dict[str, dict[str, Any]] = {
            "WEBP": {"lossless": True},
            "JPEG": {"quality": 98},
            "AVIF": {"quality": 98},
        }
        options = by_kind.get(kind, {})
        picture = decode(saved(Image.fromarray(gradient()), kind, **options), pixel_limit=LIMIT)
        assert picture.rgb.shape == (30, 40, 3)
        assert picture.alpha is None
        tolerance = {"JPEG": 25, "AVIF": 25, "GIF": 60}.get(kind, 0)
        assert np.abs(picture.rgb.astype(int) - gradient()).max() <= tolerance

    @pytest.mark.parametrize(
        ("mode", "value", "expected"),
        [
            ("1", 1, (255, 255, 255)),
            ("L", 120, (120, 120, 120)),
            ("RGB", (10, 20, 30), (10, 20, 30)),
            ("I;16", 65535, (255, 255, 255)),
            ("I;16", 32768, (128, 128, 128)),
        ],
    )
    def test_colours_of_every_mode_survive(self, mode: str, value: Any, expected: tuple[int, ...]) -> None:
        picture = decode(saved(Image.new(mode, (3, 2), value)), pixel_limit=LIMIT)
        assert (picture.rgb == expected).all()

    def test_cmyk_becomes_rgb(self) -> None:
        picture = decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), pixel_limit=LIMIT)
        red, green, blue = picture.rgb[4, 4]
        assert red > 200
        assert green < 60
        assert blue < 60

    def test_16_bit_grey_with_a_gradient_keeps_its_range(self) -> None:
        values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
        picture = decode(saved(Image.fromarray(values)), pixel_limit=LIMIT)
        assert (picture.rgb[..., 0].flatten() == np.arange(256)).all()

    @pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
    def test_16_bits_of_any_kind_come_within_a_level(self, colour_type: int, channels: int) -> None:
        values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
        picture = decode(png16(values, colour_type), pixel_limit=LIMIT)
        exact = values / 257
        colours = exact[..., :3] if channels > 2 else exact[..., :1].repeat(3, axis=2)
        assert np.abs(picture.rgb - colours).max() <= 1
        if channels in (2, 4):
            assert picture.alpha is not None
            assert np.abs(picture.alpha - exact[..., -1]).max() <= 1

    @pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
    def test_a_16_bit_colour_marked_transparent_is_transparent(self, colour_type: int, channels: int) -> None:
        values = np.full((4, 6, channels), 40_000, np.uint16)
        values[1, 2] = 1_000
        mark = struct.pack(">" + "H" * channels, *[1_000] * channels)
        picture = decode(png16(values, colour_type, mark), pixel_limit=LIMIT)
        assert picture.alpha is not None
        assert np.argwhere(picture.alpha == 0).tolist() == [[1, 2]]

    def test_32_bit_grey_keeps_its_range(self) -> None:
        values = np.array([[0, 2**30, 2**31 - 1]], np.int32)
        assert decode(saved(Image.fromarray(values), "TIFF"), pixel_limit=LIMIT).rgb[0, :, 0].tolist() == [0, 128, 255]

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    def test_cmyk_goes_through_its_own_profile(self, kind: str) -> None:
        """The test's press prints magenta where files say cyan, so that numbers read as plain CMYK come out wrong."""
        inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
        data = saved(inks, kind, icc_profile=cmyk_profile(), **({"quality": 100} if kind == "JPEG" else {}))
        red, green, blue = decode(data, pixel_limit=LIMIT).rgb[8, 8].astype(int)
        assert red > green + 60
        assert blue > green + 20

    def test_16_bit_grey_goes_through_its_profile(self) -> None:
        """A grey profile of gamma 1: its middle is much lighter in sRGB."""
        values = np.full((4, 4), 32768, np.uint16)
        plain = decode(saved(Image.fromarray(values)), pixel_limit=LIMIT).rgb[0, 0, 0]
        linear = decode(saved(Image.fromarray(values), icc_profile=linear_grey_profile()), pixel_limit=LIMIT)
        assert plain == 128
        assert int(linear.rgb[0, 0, 0]) == pytest.approx(188, abs=2)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparency_is_kept_with_the_colours_under_it(self, mode: str) -> None:
        image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
        image.paste((200, 0, 0, 0), (0, 0, 2, 4))
        source = image.convert(mode) if mode != "P" else image.quantize(8)
        picture = decode(saved(source), pixel_limit=LIMIT)
        assert picture.alpha is not None
        assert (picture.alpha[:, :2] == 0).all()
        assert (picture.alpha[:, 2:] == 255).all()

    def test_a_palette_colour_marked_transparent_is_transparent(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putpixel((1, 0), 1)
        picture = decode(saved(image, transparency=1), pixel_limit=LIMIT)
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[255, 0]]

    def test_an_opaque_alpha_channel_is_no_transparency(self) -> None:
        assert decode(saved(Image.new("RGBA", (2, 2), (1, 2, 3, 255))), pixel_limit=LIMIT).alpha is None

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = decode(saved(Image.fromarray(gradient(40, 30)), exif=exif.tobytes()), pixel_limit=LIMIT)
        assert (picture.width, picture.height) == ((40, 30) if orientation < 5 else (30, 40))

    def test_broken_exif_and_profile_do_not_matter(self) -> None:
        data = saved(
            Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0broken", icc_profile=b"not a profile", quality=98
        )
        assert decode(data, pixel_limit=LIMIT).rgb.shape == (30, 40, 3)

    def test_a_colour_profile_becomes_srgb(self) -> None:
        """Lab numbers read through their profile, not as if they were RGB."""
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        image = ImageCms.profileToProfile(
            Image.new("RGB", (4, 4), (250, 20, 30)), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
        assert image is not None
        picture = decode(saved(image, "TIFF", icc_profile=lab.tobytes()), pixel_limit=LIMIT)
        assert np.abs(picture.rgb[0, 0].astype(int) - (250, 20, 30)).max() <= 6

    def test_a_quarter_turn_swaps_the_resolution(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = saved(Image.fromarray(gradient(40, 30)), "JPEG", exif=exif.tobytes(), dpi=(300, 150))
        picture = decode(data, pixel_limit=LIMIT)
        assert (picture.width, picture.dpi) == (30, (150, 300))

    def test_resolution_is_read(self) -> None:
        dpi = decode(saved(Image.new("RGB", (2, 2)), dpi=(300, 300)), pixel_limit=LIMIT).dpi
        assert dpi == pytest.approx((300, 300), abs=0.1)

    @pytest.mark.parametrize(
        "data",
        [b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a"],
    )
    def test_what_is_not_a_picture_is_named_so(self, data: bytes) -> None:
        with pytest.raises(SourceNotAnImage, match=r"not a picture in a known format \(PNG, JPEG|damaged|is empty"):
            decode(data, pixel_limit=LIMIT)

    def test_text_is_told_what_formats_there_are(self) -> None:
        with pytest.raises(
            SourceNotAnImage, match=r"not a picture in a known format \(PNG, .*begins with b'some text'"
        ):
            decode(b"some text", pixel_limit=LIMIT)

    @given(st.integers(0, 2**32 - 1), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
    @settings(deadline=None, max_examples=150)
    def test_damaged_files_give_our_errors_or_a_picture(self, seed: int, kind: str) -> None:
        rng = np.random.default_rng(seed)
        data = bytearray(saved(Image.fromarray(gradient()), kind))
        for position in rng.integers(0, len(data), rng.integers(1, 20)):
            data[position] = rng.integers(0, 256)
        if rng.random() < 0.4:
            data = data[: rng.integers(0, len(data))]
        try:
            picture = decode(bytes(data), pixel_limit=LIMIT)
        except (SourceNotAnImage, SourceTooLarge):
            return
        assert picture.rgb.ndim == 3

    def test_too_many_pixels_are_refused_from_the_header(self) -> None:
        data = saved(Image.new("1", (4000, 4000)))
        with pytest.raises(SourceTooLarge, match=r"16\.0 million pixels; the limit is 10"):
            decode(data[:200], pixel_limit=LIMIT)


class TestNetworkInput:
    @given(st.integers(1, 90), st.integers(1, 90))
    @settings(deadline=None, max_examples=30)
    def test_any_size_becomes_the_square(self, width: int, height: int) -> None:
        x = network_input(Picture(gradient(width, height), None), 32, CPU)
        assert x.shape == (1, 3, 32, 32)
        assert torch.isfinite(x).all()

    def test_values_are_imagenet_normalised_rgb(self) -> None:
        rgb = np.empty((8, 8, 3), np.uint8)
        rgb[:] = (255, 0, 51)
        x = network_input(Picture(rgb, None), 8, CPU)
        expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(x[0, :, 3, 3], expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("ink", [(255, 255, 255), (0, 0, 0), (128, 128, 128)])
    def test_transparent_art_of_any_ink_is_put_on_a_backdrop_it_stands_out_from(self, ink: tuple[int, ...]) -> None:
        rgb = np.full((32, 32, 3), ink, np.uint8)
        alpha = np.zeros((32, 32), np.uint8)
        alpha[8:24, 8:24] = 255
        x = network_input(Picture(rgb, alpha), 32, CPU)
        assert (x[0, :, 16, 16] - x[0, :, 2, 2]).abs().min() > 1


class TestCutouts:
    def test_colours_survive_where_the_mask_is_sure(self) -> None:
        mask = torch.zeros(30, 40)
        mask[5:20, 5:30] = 1
        out = cut_out(Picture(gradient(), None), mask)
        assert (out[5:20, 5:30, :3] == gradient()[5:20, 5:30]).all()
        assert (out[5:20, 5:30, 3] == 255).all()
        outside = np.ones((30, 40), bool)
        outside[5:20, 5:30] = False
        assert not out[outside].any()

    def test_a_soft_edge_loses_the_old_background(self) -> None:
        """Red art blended into white with a known soft alpha: the red comes back, within a few levels."""
        y, x = np.mgrid[0:200, 0:200]
        alpha = np.clip((70 - np.hypot(x - 100, y - 100)) / 12 + 0.5, 0, 1).astype(np.float32)
        red, white = np.array([200.0, 20, 30]), 255.0
        rgb = (alpha[..., None] * red + (1 - alpha[..., None]) * white).round().astype(np.uint8)
        out = cut_out(Picture(rgb, None), torch.from_numpy(alpha))
        edge = (alpha > 0.15) & (alpha < 0.95)
        before = np.abs(rgb[edge] - red).mean()
        after = np.abs(out[edge][:, :3] - red).mean()
        assert after < 8
        assert after < before / 10

    def test_soft_alpha_is_kept_as_it_is(self) -> None:
        mask = torch.linspace(0, 1, 256).repeat(4, 1)
        alpha = cut_out(Picture(np.zeros((4, 256, 3), np.uint8), None), mask)[0, :, 3].astype(int)
        assert (np.diff(alpha) >= 0).all()
        assert np.abs(alpha - np.arange(256)).max() <= 2

    def test_haze_that_a_sigmoid_leaves_is_cleared(self) -> None:
        out = cut_out(Picture(gradient(), None), torch.full((30, 40), 0.004))
        assert not out.any()
        assert (cut_out(Picture(gradient(), None), torch.full((30, 40), 0.996))[..., 3] == 255).all()

    @given(st.integers(0, 10_000))
    @settings(deadline=None, max_examples=30)
    def test_transparency_of_the_source_never_becomes_opaque(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        alpha = rng.integers(0, 256, (30, 40), dtype=np.uint8)
        mask = torch.from_numpy(rng.random((30, 40), dtype=np.float32))
        out = cut_out(Picture(gradient(), alpha), mask)
        assert (out[..., 3] <= alpha).all()
        assert not out[..., :3][out[..., 3] == 0].any()

    def test_a_transparent_source_through_a_full_mask_is_itself(self) -> None:
        alpha = np.zeros((30, 40), np.uint8)
        alpha[3:9] = 255
        alpha[9:12] = 77
        out = cut_out(Picture(gradient(), alpha), torch.ones(30, 40))
        assert (out[..., 3] == alpha).all()
        assert (out[3:12, :, :3] == gradient()[3:12]).all()

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
    def test_odd_sizes_work(self, size: tuple[int, int]) -> None:
        height, width = size
        mask = mask_at_size(torch.rand(16, 16), height, width)
        assert cut_out(Picture(gradient(width, height), None), mask).shape == (height, width, 4)

    def test_another_size_of_mask_is_refused(self) -> None:
        with pytest.raises(ValueError, match="mask is"):
            cut_out(Picture(gradient(), None), torch.zeros(5, 5))

    def test_colours_without_soft_edges_are_untouched(self) -> None:
        rgb = torch.from_numpy(gradient())
        assert torch.equal(clean_colours(rgb, (torch.rand(30, 40) > 0.5).float()), rgb)

    def test_masks_grow_and_shrink_within_their_range(self) -> None:
        mask = (torch.rand(16, 16) > 0.5).float()
        for size in ((100, 37), (5, 7), (16, 16)):
            out = mask_at_size(mask, *size)
            assert out.shape == size
            assert 0 <= float(out.min()) <= float(out.max()) <= 1
        assert torch.equal(mask_at_size(mask, 16, 16), mask)

    @pytest.mark.parametrize("height", [640, 400, 320, 200, 100])
    def test_an_edge_across_a_side_that_shrinks_a_little_stays_as_sharp_as_it_was(self, height: int) -> None:
        mask = torch.zeros(640, 640)
        mask[:, 320:] = 1
        for width in (320, 391, 500, 639):
            out = mask_at_size(mask, height, width)
            assert int(((out > 1e-4) & (out < 1 - 1e-4)).sum(dim=1).max()) <= 1

    def test_a_mask_that_shrinks_much_is_the_mean_of_what_lies_under_a_pixel(self) -> None:
        dots = torch.zeros(640, 640)
        dots[::4, ::4] = 1
        out = mask_at_size(dots, 80, 80)
        torch.testing.assert_close(out[5:-5, 5:-5], torch.full((70, 70), 1 / 16), atol=0.01, rtol=0)

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
    @pytest.mark.parametrize(
        ("size", "antialias"), [((48, 37), False), ((12, 9), False), ((9, 9), False), ((8, 8), True), ((1, 1), True)]
    )
    def test_masks_are_resized_as_torch_does_it(self, size: tuple[int, int], antialias: bool, device: str) -> None:
        mask = torch.rand(18, 18)
        out = mask_at_size(mask.to(device), *size).cpu()
        expected = F.interpolate(mask[None, None], size=size, mode="bilinear", antialias=antialias)[0, 0]
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


class TestPng:
    @given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([0, 3, 4]), st.integers(0, 99), st.booleans())
    @settings(deadline=None, max_examples=60)
    def test_what_is_written_is_read_back(self, height: int, width: int, channels: int, seed: int, flat: bool) -> None:
        shape = (height, width, channels) if channels else (height, width)
        rng = np.random.default_rng(seed)
        pixels = np.full(shape, seed, np.uint8) if flat else rng.integers(0, 256, shape, dtype=np.uint8)
        image = Image.open(io.BytesIO(b"".join(encode_png(pixels))))
        assert image.mode == {0: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert (np.asarray(image) == pixels).all()

    def test_pictures_of_several_bands_are_whole(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1500, 2000, 4), dtype=np.uint8)
        assert (np.asarray(Image.open(io.BytesIO(b"".join(encode_png(pixels))))) == pixels).all()

    def test_resolution_is_stored(self) -> None:
        image = Image.open(io.BytesIO(b"".join(encode_png(np.zeros((2, 2, 4), np.uint8), (300, 300)))))
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.info["srgb"] == 0

    @pytest.mark.parametrize(
        "pixels", [np.zeros((2, 2), float), np.zeros((0, 4, 4), np.uint8), np.zeros((2, 2, 2), np.uint8)]
    )
    def test_other_arrays_are_refused(self, pixels: Array) -> None:
        with pytest.raises(ValueError, match="PNG"):
            list(encode_png(pixels))
