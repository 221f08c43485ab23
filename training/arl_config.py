"""The switches of ARL and its presets; the recipe itself is training/recipes/arl.py."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.models.avit import WeightMode
from training.models.deformable import Backend, BaseGrid
from training.organ_condition import Missing, UnknownName, default_classes

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "mim": {"acdt": False, "adv": False, "sd": False},
    "mim_acdt": {"acdt": True, "adv": False, "sd": False},
    "mim_acdt_adv": {"acdt": True, "adv": True, "sd": False},
    "full": {"acdt": True, "adv": True, "sd": True},
    "mim_natural": {"acdt": False, "adv": False, "sd": False, "data": "natural"},
}
"""The rows of the paper's ablation table as overrides of the config, usable with every preset."""

_MAE: Mapping[str, Any] = {  # ours: masked image modelling alone is trained as MAE was
    "base_lr": 1.5e-4,
    "betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "weight_decay_end": None,
    "warmup": 0.05,  # 40 of 800 epochs
}
NAMED_VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: {"recipe": VARIANTS[name], "run": _MAE if name.startswith("mim") and not VARIANTS[name]["acdt"] else {}}
    for name in ("full", *sorted(VARIANTS.keys() - {"full"}))
}
"""`VARIANTS` as `--variant` reaches them: the method itself first, and what each changes in the trainer."""


class ARLConfig(BaseModel):
    """Every switch of the paper's ablations. The summary names the losses and the block; all numbers are `ours`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the image
    image_size: int = Field(default=224, gt=0)  # ours
    source_size: int = Field(default=256, gt=0)  # pixels per side of the stored images; the lake's
    crop_area: tuple[float, float] = (0.32, 1.0)  # ours (iBOT): share of the image a global view keeps
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # ours (torchvision)
    flip: float = Field(default=0.5, ge=0, le=1)  # ours; never upside down
    photometric: float = Field(default=0.8, ge=0, le=1)  # ours: probability of other brightness, contrast; teacher only
    photometric_range: float = Field(default=0.4, ge=0, lt=1)  # ours: factors in 1 -+ this
    blur: float = Field(default=0.1, ge=0, le=1)  # ours: probability; teacher only, never the pixels to rebuild
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # ours: pixels
    eval_view: Literal["centre", "whole"] = "centre"  # ours
    data: Literal["ultrasound", "natural"] = "ultrasound"  # natural images have no organ: every condition is null

    # A-ViT: ViT-B/16
    patch_size: int = Field(default=16, gt=0)
    width: int = Field(default=768, gt=0, multiple_of=4)
    depth: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    drop_path: float = Field(default=0.1, ge=0, lt=1)  # ours
    positions: Literal["learned", "sincos"] = "learned"  # ours; sincos: learned, but starting there
    init: str = "scratch"  # or the path of a plain ViT's safetensors
    acdt: bool = True  # False: timm's plain blocks, same code path
    anatomy: Literal["per_block", "shared"] = "per_block"  # ours: one AC per block
    w_mode: WeightMode = "depthwise"  # ours
    base_grid: BaseGrid = "3x3"  # ours (DCN)
    taps: Literal[1, 9] = 9  # ours: K
    offset_groups: int = Field(default=1, gt=0)  # ours
    offset_range: float | None = Field(default=None, gt=0)  # ours: patches
    w_std: float = Field(default=0.0, ge=0)  # ours
    offset_lr: float = Field(default=0.1, gt=0)  # ours: the offset network's share of the learning rate
    backend: Backend = "auto"  # of the deformable sampling; same results

    # the organ
    classes: tuple[str, ...] = Field(default_factory=default_classes)  # ours: usdata/taxonomy.yaml, scheme arl16
    condition: Literal["label", "null", "shuffled"] = "label"  # shuffled: a random class, to see what labels are worth
    cond_dropout: float = Field(default=0.1, ge=0, lt=1)  # ours: share of images whose student does not see the label
    missing: Missing = "null"  # ours: phantoms, animals, "unknown": no class, or the taxonomy's slot `other`
    unknown_name: UnknownName = "error"  # ours: a name outside the vocabulary
    organ_head: bool = True  # ours: a Linear that predicts the organ from the label-free class token; for `predict`

    # masked image modelling
    mask_ratio: float = Field(default=0.6, ge=0, lt=1)  # ours (SimMIM)
    mask_block: int = Field(default=1, gt=0)  # ours: side of the squares that are masked together, in patches
    mim_reduction: Literal["sum", "mean"] = "sum"  # the equation's sum over a patch's pixels
    decoder_depth: int = Field(default=0, ge=0)  # ours: plain blocks before the Linear to pixels
    decoder_width: int = Field(default=512, gt=0)  # ours
    decoder_heads: int = Field(default=8, gt=0)  # ours

    # adversarial
    adv: bool = True
    adv_start: float = Field(default=0.02, ge=0, le=1)  # ours: share of the steps before the discriminator begins
    # the ratio of two gradient norms, or a number. ours: of the gradients of the whole batch, over ranks and pieces, so
    # that it does not depend on how the batch is cut; averaging the ranks' norms would
    adv_lambda: Literal["adaptive"] | float = "adaptive"
    lambda_max: float = Field(default=1e4, gt=0)  # ours (VQGAN)
    lambda_eps: float = Field(default=1e-6, gt=0)  # ours
    disc_input: Literal["patch", "composite"] = "patch"  # ours; composite: the image with its rebuilt patches in place
    disc_width: int = Field(default=64, gt=0)  # ours
    disc_lr: float = Field(default=1e-4, gt=0)  # ours
    spectral_norm: bool = False  # ours; advances with each pass: a batch in pieces is the whole one up to that alone

    # self-distillation
    sd: bool = True
    sd_patch: bool = False  # ours: iBOT's loss on masked patch tokens as well
    local_crops: int = Field(default=0, ge=0)  # ours
    local_size: int = Field(default=96, gt=0)  # ours: pixels per side
    local_area: tuple[float, float] = (0.05, 0.32)  # ours (iBOT)
    prototypes: int = Field(default=8192, gt=1)  # ours (iBOT)
    head_hidden: int = Field(default=2048, gt=0)  # ours (DINO)
    head_bottleneck: int = Field(default=256, gt=0)  # ours (DINO)
    freeze_last: float = Field(default=0.01, ge=0, le=1)  # ours (DINO: one epoch): share of steps with fixed prototypes
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)  # ours (DINO); rises to 1 by half a cosine
    student_temp: float = Field(default=0.1, gt=0)  # ours (DINO)
    teacher_temp: tuple[float, float] = (0.04, 0.07)  # ours (DINO): first and last
    temp_warmup: float = Field(default=0.3, ge=0, le=1)  # ours (DINO: 30 epochs): share of steps to get there
    centre_momentum: float = Field(default=0.9, ge=0, le=1)  # ours (DINO)

    # features
    pool: Literal["cls+mean", "cls", "mean"] = "cls+mean"  # ours (iBOT's linear probe)
    inference: Literal["label", "null", "predict"] = "null"  # ours: when `encode` is given no organ

    @property
    def views(self) -> int:
        """Global views of each image: two where there is a teacher to compare them with."""
        return 2 if self.sd else 1

    @property
    def labelled(self) -> bool:
        """Whether the network looks at organs at all."""
        return self.acdt and self.condition != "null" and self.data == "ultrasound"

    @property
    def predicts(self) -> bool:
        """Whether the organ classifier is trained."""
        return self.organ_head and self.labelled and self.cond_dropout > 0

    @model_validator(mode="after")
    def _sane(self) -> "ARLConfig":
        for name in ("image_size", "local_size") if self.sd and self.local_crops else ("image_size",):
            if getattr(self, name) % self.patch_size:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.decoder_depth and self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is not a multiple of decoder_heads")
        if self.width % self.offset_groups:
            raise ValueError(f"width {self.width} is not a multiple of offset_groups {self.offset_groups}")
        if self.adv and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"the discriminator needs a patch_size of 4, 8, 16 ..., not {self.patch_size}")
        for name in ("crop_area", "local_area", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (high > 1 and name.endswith("area")):
                raise ValueError(f"{name} must be (smallest, largest) above 0, areas at most 1, not {(low, high)}")
        if min(self.teacher_temp) <= 0:
            raise ValueError(f"teacher_temp must be above 0, not {self.teacher_temp}")
        return self


_MICRO: Mapping[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "positions": "sincos",
    "drop_path": 0.0,
    "disc_width": 16,
    "disc_lr": 1e-3,
    "prototypes": 64,
    "head_hidden": 64,
    "head_bottleneck": 32,
    "teacher_temp": (0.04, 0.04),
    "teacher_momentum": 0.98,  # over 300 steps 0.996 would leave a third of the teacher at its random beginning
    "adv_start": 0.5,  # a discriminator that pulls from the start keeps hidden patches at their mean grey
    "local_size": 32,
}
_SMALL: Mapping[str, Any] = {
    "image_size": 128,
    "width": 192,
    "depth": 6,
    "heads": 3,
    "positions": "sincos",
    "disc_width": 32,
    "prototypes": 1024,
    "head_hidden": 512,
    "head_bottleneck": 128,
    "teacher_temp": (0.04, 0.04),
    "local_size": 64,
}
_RUN: Mapping[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 0.04, "weight_decay_end": 0.4, "clip_grad": 3.0}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "micro": {"recipe": _MICRO, "run": {**_RUN, "weight_decay_end": None, "steps": 300, "batch_size": 32, "lr": 2e-3}},
    "small": {"recipe": _SMALL, "run": {**_RUN, "steps": 5000, "batch_size": 64, "lr": 5e-4}},
    # ours (iBOT, DINO): 100 epochs of 1 M drawn images, 10 of them warm-up
    "paper": {
        "recipe": {},
        "run": {
            **_RUN,
            "steps": 97_656,
            "batch_size": 1024,
            "base_lr": 5e-4,
            "min_lr": 1e-6,
            "warmup": 0.1,
            "epoch_size": 1_000_000,
        },
    },
}
