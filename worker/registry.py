"""Which models there are, which weights serve them, and the numbers of each."""

from dataclasses import dataclass
from pathlib import Path

from download.manifest import selected_models, starter_checkpoint
from shared.errors import FatalError
from shared.settings import Settings
from worker.nets import CONFIGS, BiRefNetConfig

#: Network variant of each published model.
_VARIANTS = {"rmbg": "swin_v1_large", "birefnet": "swin_v1_large"}
_STARTER_LICENCE = "MIT"


@dataclass(frozen=True)
class ModelSpec:
    """One model as it will be loaded.

    Attributes:
        name: as in MODELS and in cell names.
        profile: "full" or "starter".
        variant: key of worker.nets.CONFIGS.
        path: its safetensors file.
        licence: short name of the weights' licence.
    """

    name: str
    profile: str
    variant: str
    path: Path
    licence: str

    @property
    def config(self) -> BiRefNetConfig:
        return CONFIGS[self.variant]


def resolve_models(settings: Settings) -> list[ModelSpec]:
    """The models of `settings.models`, each with the weights that MODEL_PROFILE asks for.

    Raises:
        FatalError: an unknown model name, or files that are needed and missing; all of them are listed.
    """
    specs, missing = [], []
    for model in selected_models(settings):
        name = model.name
        full = ModelSpec(name, "full", _VARIANTS[name], model.checkpoint(settings.models_dir), model.licence)
        starter_path = starter_checkpoint(settings.models_dir, name)
        starter = ModelSpec(name, "starter", "starter", starter_path, _STARTER_LICENCE)
        wanted = {"full": [full], "starter": [starter], "auto": [full, starter]}[settings.model_profile]
        found = next((spec for spec in wanted if spec.path.is_file()), None)
        if found is None:
            missing.append(f"  {name}: {' or '.join(str(spec.path) for spec in wanted)}")
        else:
            specs.append(found)
    if missing:
        raise FatalError(
            "FATAL ERROR: Model files not found:\n"
            + "\n".join(missing)
            + "\nRun `make download-models` to fetch them (`make check-cache` shows what is there), "
            "or set MODEL_PROFILE=starter to use the small weights that come with the project."
        )
    return specs
