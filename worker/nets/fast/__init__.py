"""The networks for inference: exact rewrites of worker/nets, made from loaded weights."""

from worker.nets.fast.network import FastBiRefNet, prepare_for_inference

__all__ = ["FastBiRefNet", "prepare_for_inference"]
