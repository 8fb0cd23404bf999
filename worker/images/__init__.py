"""Pixels: decode, network inputs, masks, cutouts, PNG. Pure functions."""

from worker.images.cutout import clean_colours, cut_out
from worker.images.picture import Picture, PictureSize, decode, read_size
from worker.images.png import encode_png
from worker.images.tensors import mask_at_size, network_input

__all__ = [
    "Picture",
    "PictureSize",
    "clean_colours",
    "cut_out",
    "decode",
    "encode_png",
    "mask_at_size",
    "network_input",
    "read_size",
]
