"""What several models say about one side: do they agree, where not, which one to take, must a person look.

Agreement is measured the way segmentation is scored: intersection over union of the masks at 0.5 (Jaccard index;
Everingham et al. 2010, "The PASCAL visual object classes challenge") and mean absolute difference of alpha (MAE;
Perazzi et al. 2012, "Saliency filters"). What is disputed beyond edges, and all thresholds, are ours.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.preflight import PreflightJson
from worker.images.preflight.planes import components

Mask = npt.NDArray[np.float32]

#: Below this IoU the models cut out different things. Ours: on the designs in tests/data/samples at 512 px, a mask
#: moved by a pixel comes to 0.96-0.98, one shrunk by a pixel all around to 0.92-0.94.
IOU_REVIEW = 0.90
#: Share of the art that may be disputed beyond edges of 1-2 px. Ours: moved and shrunk masks as above come to at most
#: 0.007; a lost line of lettering to 0.04 though its IoU is 0.955, a lost glow to 0.13 though its IoU is 0.995.
DISPUTED_REVIEW = 0.02
#: Share of the picture inside a mask at 0.5 below which it is empty, and above which it is full.
EMPTY, FULL = 0.0005, 0.995
#: IoU above which the outlines are the same, so that a dispute must be about soft alpha.
_SAME_OUTLINE = 0.98
#: A pixel is in a disputed region when alpha differs by more than this.
_DISPUTED_ALPHA = 0.25
#: Differences in decisiveness and in agreement smaller than this are noise, and leave the choice to the next criterion.
CLEARLY = 0.02
#: Alpha of a fade, and its least width in pixels of the small masks: the edge of a mask enlarged from the network's
#: output is 2 to 4 px wide there.
_FADE, _FADE_WIDTH = (0.04, 0.96), 7
#: Disagreements reported per pair, largest first, and the least share of the picture for one to be worth a look.
_REGIONS, _REGION_SHARE = 3, 0.0005
#: Disputed places closer than twice this share of the long side are one region, so that lost letters make a line.
_REGION_REACH = 0.015
#: Preflight checks that only the model can have caused; resolution, for one, is the source's own.
_MODELS_OWN = ("art_box", "coverage", "soft_pixels", "islands", "thinnest_line", "thinnest_gap", "halo", "border")


class RegionJson(TypedDict):
    """A place where two masks differ at 0.5: box [left, top, right, bottom] in 0..1 of the side, and share of it."""

    box: list[float]
    share: float


class PairJson(TypedDict):
    """Two models compared, all 0..1.

    `iou` at 0.5; `mean_difference` of alpha; `disputed`, the share of their united art (by alpha) that only one of them
    keeps, edges of 1-2 px left aside; `regions`, the largest disagreements.
    """

    models: list[str]
    iou: float
    mean_difference: float
    disputed: float
    regions: list[RegionJson]


class ModelJson(TypedDict):
    """One model: share of the side inside its mask, and decisiveness 0..1 (1: no pixel between in and out)."""

    coverage: float
    decisiveness: float


class OpinionJson(TypedDict):
    """The opinion on one side; `agreement` is the lowest IoU of any pair, null where no models were compared."""

    agreement: float | None
    pairs: list[PairJson]
    models: dict[str, ModelJson]
    recommended: str | None
    reason: str
    needs_review: bool
    review_reason: str


def second_opinion(
    masks: Mapping[str, npt.NDArray[np.uint8] | npt.NDArray[np.floating[Any]]],
    preflights: Mapping[str, PreflightJson | Mapping[str, Any]] | None = None,
    *,
    fades_wanted: bool = False,
) -> OpinionJson:
    """Compare the masks of one side and recommend one.

    Args:
        masks: model name -> (h, w) mask, uint8 0-255 or float 0..1, all of one small size (a long side of 512 px is
            plenty). Cells that failed are left out. The order breaks ties: put the preferred model first.
        preflights: model name -> `preflight` of its cutout; some or all may be missing or {}.
        fades_wanted: the print is a halftone, so the model that keeps more of the fades is better, not undecided.
    Returns:
        Always the same fields. Models are ranked by, in this order: a mask that is neither empty nor full; fewer
        failed preflight checks, then fewer warnings (checks that a model can influence); agreement with the others
        where there are three or more; decisiveness, or with `fades_wanted` the share of the art that is a fade; the
        order given. Differences up to CLEARLY do not count.
    Raises:
        ValueError: masks differ in size or are not (h, w).
    """
    levels = {name: _levels(mask) for name, mask in masks.items()}
    if len({mask.shape for mask in levels.values()}) > 1:
        raise ValueError(f"masks must be of one size, not {', '.join(str(mask.shape) for mask in levels.values())}")
    models = _measured(levels)
    pairs = [_compare(a, b, levels[a], levels[b]) for a, b in combinations(levels, 2)]
    fades = _fades(levels) if fades_wanted else None
    recommended, reason = _recommend(models, pairs, preflights or {}, fades)
    review_reason = _review_reason(models, pairs)
    return {
        "agreement": min((pair["iou"] for pair in pairs), default=None),
        "pairs": pairs,
        "models": _rounded(models),
        "recommended": recommended,
        "reason": reason,
        "needs_review": bool(review_reason),
        "review_reason": review_reason,
    }


def own_alpha_opinion(masks: Mapping[str, npt.NDArray[np.uint8]]) -> OpinionJson:
    """The opinion on art that kept its own alpha: no model was run, so there is nothing to compare.

    Args:
        masks: as for `second_opinion`, at least one; all the same.
    """
    models = _measured({name: _levels(mask) for name, mask in masks.items()})
    first = next(iter(models))
    reason = "The artwork came already cut out and kept its own alpha; no model was run"
    reason += f", so {' and '.join(models)} are the same picture." if len(models) > 1 else "."
    review_reason = "Next to nothing of the artwork is visible." if _is_empty(models[first]) else ""
    return {
        "agreement": None,
        "pairs": [],
        "models": _rounded(models),
        "recommended": first,
        "reason": reason,
        "needs_review": bool(review_reason),
        "review_reason": review_reason,
    }


def _measured(levels: Mapping[str, Mask]) -> dict[str, ModelJson]:
    return {
        name: {"coverage": float((mask >= 0.5).mean()), "decisiveness": _decisiveness(mask)}
        for name, mask in levels.items()
    }


def _rounded(models: Mapping[str, ModelJson]) -> dict[str, ModelJson]:
    return {
        name: {"coverage": round(model["coverage"], 4), "decisiveness": round(model["decisiveness"], 4)}
        for name, model in models.items()
    }


def _levels(mask: npt.NDArray[Any]) -> Mask:
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask is (h, w), not {mask.shape}")
    levels = mask.astype(np.float32)
    return levels / np.float32(255) if mask.dtype == np.uint8 else np.clip(np.nan_to_num(levels), 0, 1)


def _decisiveness(mask: Mask) -> float:
    """1 minus the mean of 4 a (1 - a) over the pixels that are in the least visible; 1 for an empty mask."""
    visible = mask[mask > 0.01]
    return 1 - float((4 * visible * (1 - visible)).mean()) if visible.size else 1.0


def _fades(levels: Mapping[str, Mask]) -> dict[str, float]:
    """Of each model the alpha in soft areas wider than edges, over the alpha of all models' united art."""
    art = float(np.maximum.reduce(list(levels.values())).sum()) if levels else 0.0
    fades = {}
    for name, mask in levels.items():
        soft = ((mask > _FADE[0]) & (mask < _FADE[1])).astype(np.uint8)
        wide = cv2.morphologyEx(soft, cv2.MORPH_OPEN, np.ones((_FADE_WIDTH, _FADE_WIDTH), np.uint8))
        fades[name] = float(mask[wide > 0].sum()) / art if art else 0.0
    return fades


def _compare(a: str, b: str, first: Mask, second: Mask) -> PairJson:
    one, two = first >= 0.5, second >= 0.5
    union = int((one | two).sum())
    iou = int((one & two).sum()) / union if union else 1.0  # two empty masks agree
    difference = np.abs(first - second)
    # An opening by 3x3 drops the thin outline that two good masks always leave.
    disputed = cv2.morphologyEx(difference, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    art = float(np.maximum(first, second).sum())
    return {
        "models": [a, b],
        "iou": round(iou, 4),
        "mean_difference": round(float(difference.mean()), 4),
        "disputed": round(float(disputed.sum()) / art, 4) if art else 0.0,
        "regions": _regions((disputed > _DISPUTED_ALPHA).astype(np.uint8)),
    }


def _regions(disputed: npt.NDArray[Any]) -> list[RegionJson]:
    """The largest groups of disputed pixels of a 0/1 picture."""
    h, w = disputed.shape
    reach = round(_REGION_REACH * max(h, w))
    near = cv2.dilate(disputed, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    labels, boxes, _ = components(np.asarray(near, np.uint8))
    areas = np.bincount(labels[disputed > 0], minlength=len(boxes) + 1)
    regions: list[RegionJson] = []
    for label in np.argsort(-areas, kind="stable")[:_REGIONS].tolist():
        if areas[label] >= max(1, _REGION_SHARE * h * w):
            x, y, width, height = cv2.boundingRect(((labels == label) & (disputed > 0)).astype(np.uint8))
            box = [x / w, y / h, (x + width) / w, (y + height) / h]
            share = round(float(areas[label]) / (h * w), 4)
            regions.append({"box": [round(value, 4) for value in box], "share": share})
    return regions


def _recommend(
    models: Mapping[str, ModelJson],
    pairs: list[PairJson],
    preflights: Mapping[str, PreflightJson | Mapping[str, Any]],
    fades: Mapping[str, float] | None,
) -> tuple[str | None, str]:
    """The model to take and why, by dropping the clearly worse ones criterion by criterion."""
    left = list(models)
    if not left:
        return None, "No model gave a cutout of this side."
    if len(left) == 1:
        return left[0], f"{left[0]} is the only model with a cutout of this side."

    unusable = [name for name in left if _is_empty(models[name]) or _is_full(models[name])]
    if unusable and len(unusable) < len(left):
        left = [name for name in left if name not in unusable]
        if len(left) == 1:
            what = " and ".join(f"{name} {_state(models[name])}" for name in unusable)
            return left[0], f"{left[0]} found the design, while {what}."

    if all(preflights.get(name) for name in left):
        for level, verb in (("fail", "fails"), ("warn", "is doubtful in")):
            checks = {name: _checks_at(preflights[name], level) for name in left}
            fewest = min(len(found) for found in checks.values())
            worse = [name for name in left if len(checks[name]) > fewest]
            left = [name for name in left if len(checks[name]) == fewest]
            if len(left) == 1:
                rest = ", ".join(f"{name} ({', '.join(checks[name])})" for name in worse)
                own = ", ".join(checks[left[0]]) or "none"
                return left[0], f"{left[0]} {verb} fewer print checks ({own}) than {rest}."

    if len(models) > 2:
        agreement = {name: _mean_iou(name, pairs) for name in left}
        best_iou = max(agreement.values())
        left = [name for name in left if agreement[name] >= best_iou - CLEARLY]
        if len(left) == 1:
            return left[0], f"{left[0]} agrees best with the other models (mean IoU {best_iou:.2f})."

    if fades is None:
        score = {name: models[name]["decisiveness"] for name in left}
        better = "decides more clearly between art and background:"
    else:
        score = {name: fades[name] for name in left}
        better = "keeps more of the art's fades for the halftone:"
    most = max(score.values())
    best = [name for name in left if score[name] >= most - CLEARLY]
    if len(best) == 1:
        rest = ", ".join(f"{score[name]:.0%} for {name}" for name in left if name != best[0])
        return best[0], f"{best[0]} {better} {most:.0%}, against {rest}."
    names = " and ".join(best)
    return best[0], f"{names} are equally good by every measure, so {best[0]}, the preferred one, stands."


def _review_reason(models: Mapping[str, ModelJson], pairs: list[PairJson]) -> str:
    """Why a person should look, as a sentence; empty when nobody must."""
    if not models:
        return "No model gave a cutout of this side."
    odd = [name for name, model in models.items() if _is_empty(model) or _is_full(model)]
    if odd:
        what = " and ".join(f"{name} {_state(models[name])}" for name in odd)
        return f"{what}{', which the other models did not' if len(odd) < len(models) else ''}."
    for pair in sorted(pairs, key=lambda pair: pair["iou"]):
        names = " and ".join(pair["models"])
        if pair["iou"] < IOU_REVIEW:
            return f"{names} overlap by only {pair['iou']:.0%} (IoU); {IOU_REVIEW:.0%} is expected of one design."
        if pair["disputed"] > DISPUTED_REVIEW:
            where = ", in soft areas such as a glow or a shadow" if pair["iou"] > _SAME_OUTLINE else ""
            return f"{names} dispute {pair['disputed']:.1%} of the art{where}, more than edges explain."
    return ""


def _is_empty(model: ModelJson) -> bool:
    return model["coverage"] < EMPTY


def _is_full(model: ModelJson) -> bool:
    return model["coverage"] > FULL


def _state(model: ModelJson) -> str:
    return "kept nothing" if _is_empty(model) else "removed nothing"


def _checks_at(report: PreflightJson | Mapping[str, Any], level: str) -> list[str]:
    """Names of the checks at a level, in words."""
    found = [check["name"] for check in report["checks"] if check["level"] == level]
    return [name.replace("_", " ") for name in found if name in _MODELS_OWN]


def _mean_iou(name: str, pairs: list[PairJson]) -> float:
    return float(np.mean([pair["iou"] for pair in pairs if name in pair["models"]]))
