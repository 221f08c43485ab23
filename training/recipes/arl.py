"""ARL: a ViT that is told the organ, and looks where that organ's anatomy is (A-ViT).

Read `ARL.step` first: L = L_SD + (L_MIM + lambda * L_adv). The paper's ablations are the same code with other settings:
`VARIANTS` in training/arl_config.py, beside the config. The conditional block is in training/models/avit.py, the losses
are in training/losses_adversarial.py.

Source: "Anatomy-aware Representation Learning for Medical Ultrasound", ICLR 2026, from a summary with its equations;
no code is public. What the summary leaves open follows DINO, iBOT, SimMIM and VQGAN, and is `ours`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from training.accumulate import mean_of_all
from training.arl_config import NAMED_VARIANTS, PRESETS, VARIANTS, ARLConfig
from training.arl_parts import acdt_options, decoder_of, export_facts, groups_of, optimisers_of, vit_args
from training.arl_start import start_weights
from training.arl_views import by_view, crops, draw_all, hidden_patches, pasted, relit
from training.losses_adversarial import (
    adaptive_lambda,
    discriminator_loss,
    distillation_loss,
    layer_gradient,
    mim_loss,
    pixel_gradients,
    with_gradient,
)
from training.masking import gather_patches, visible_patches
from training.models.avit import AViT, drop_path_scales, load_plain
from training.models.distillation import Centre, DistillationHead, Teacher
from training.models.patch_discriminator import PatchDiscriminator, accuracy
from training.models.vit import patchify
from training.organ_condition import (
    Organ,
    one_hot,
    organ_error,
    organ_slots,
    pack_names,
    refuse_other_classes,
    told,
    unpack_names,
)
from training.recipes.registry import recipe
from training.transforms import centre_box, crop, shown_share, stored
from usdata.errors import ConfigError

__all__ = ["ARL", "VARIANTS", "ARLConfig"]

Mode = Literal["label", "null", "predict"]


@recipe("arl", ARLConfig)
class ARL(nn.Module):
    """Student A-ViT with mask token, pixel Linear and head; EMA teacher; patch discriminator.

    Modules: `encoder`, `mask_token`, `decoder` (with decoder_depth), `pred`; with sd `head`, `teacher` (encoder, head),
    `centres`; with adv `discriminator`; `organ_head`. What is switched off is None: no parameters, no forward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = PRESETS
    variants: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = NAMED_VARIANTS
    progress: Tensor
    temperature: Tensor
    class_names: Tensor

    def __init__(self, cfg: ARLConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = AViT(
            acdt=acdt_options(cfg) if cfg.acdt else None,
            shared_anatomy=cfg.anatomy == "shared",
            sincos=cfg.positions == "sincos",
            **vit_args(cfg),
        )
        self.patches: int = self.encoder.patch_embed.num_patches
        visible_patches(self.patches, cfg.mask_ratio)  # fails early
        if cfg.init != "scratch":
            load_plain(self.encoder, start_weights(cfg.init, cfg.classes))
        self.mask_token = nn.Parameter(torch.empty(cfg.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = decoder_of(cfg) if cfg.decoder_depth else None
        self.pred = nn.Linear(cfg.decoder_width if cfg.decoder_depth else cfg.width, cfg.patch_size**2)
        self.organ_head = nn.Linear(cfg.width, len(cfg.classes)) if cfg.predicts else None
        self.discriminator = (
            PatchDiscriminator(cfg.patch_size, 1, cfg.disc_width, cfg.spectral_norm) if cfg.adv else None
        )
        self.head: DistillationHead | None = None
        self.teacher: Teacher | None = None
        if cfg.sd:
            self.head = DistillationHead(cfg.width, cfg.head_hidden, cfg.head_bottleneck, cfg.prototypes)
            self.teacher = Teacher(self.encoder, self.head)
        terms = [name for name in ("sd", "sd_patch") if cfg.sd and getattr(cfg, name)]
        self.centres = nn.ModuleDict({name: Centre(cfg.prototypes) for name in terms})
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))
        self.register_buffer("temperature", torch.zeros(()), persistent=False)  # the teacher's, of this step
        self._go_to(0.0)
        self.register_buffer("class_names", pack_names(cfg.classes))
        self.register_load_state_dict_pre_hook(_check_classes)
        self.register_load_state_dict_post_hook(_read_progress)

    # ---- what the trainer asks

    @property
    def columns(self) -> tuple[str, ...]:
        """Catalog columns that `conditions` needs."""
        return ("organ",) if self.cfg.labelled else ()

    @property
    def optimisers(self) -> dict[str, dict[str, Any]]:
        """Beside the main AdamW: the discriminator's Adam, and one for the organ classifier on detached tokens."""
        return optimisers_of(self.cfg)

    def facts(self) -> dict[str, str]:
        """What weights of this recipe say of themselves: the class list. Others are refused on loading."""
        return {"classes": json.dumps(self.cfg.classes)}

    def conditions(self, columns: Mapping[str, Sequence[str | None]]) -> dict[str, Tensor]:
        """The organs of a batch as the draw "organ" of `step`: (n,) int64 slots, -1 for no class.

        Raises:
            ConfigError: a name outside the vocabulary, unless `unknown_name` is "null".
        """
        return {"organ": self._slots(columns["organ"])}

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a step on `n` images, on the generator's device. V global views, then L local ones.

        Returns:
            "box" (n, V, 4) and "flip" (n, V) of the global views; "noise" (n, V, N), whose smallest stay visible;
            "drop" (n,) bool, whose student does not see the label; "wrong" (n,) int64 a random class; "paths"
            (n, V + L, depth, 2) for drop path; with sd also "light" (n, V, 2) factors of brightness and contrast,
            "sigma" (n, V) pixels, and "local_box" (n, L, 4), "local_flip" (n, L).
        """
        return draw_all(n, self.cfg, self.patches, generator)

    # ---- pretraining

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pretraining step: L = L_SD + (L_MIM + lambda * L_adv).

        Args:
            images: (B, 1, 256, 256) uint8.
            draws: what `draw(B, ...)` and `conditions` give, on the images' device; without "organ", none is known.

        Returns:
            Scalars: "loss" and its terms; "loss/discriminator" and "loss/organ", of the two other optimisers; and
            "organ_learned", the share of images that "loss/organ" is of: of a batch without one, both are 0.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        sharp = self.views(images, draws)  # (V * B, 1, S, S) in [-1, 1], view by view
        places, hidden = self.masks(draws["noise"])  # (V * B, M) of hidden patches, (V * B, N)
        label, seen = self.labels(len(images), draws)  # (B, classes) the teacher's, the student's
        tokens = self._masked(sharp, seen, hidden, draws)  # (V * B, 1 + N, D)
        terms = self.rebuild(tokens, sharp, places, draws)  # "pixels" = L_MIM + lambda * L_adv, and its parts
        loss = terms.pop("pixels")
        if self.teacher is not None:
            distilled = self.distil(tokens, sharp, images, places, label, seen, draws)
            loss = loss + sum(distilled.values())
            terms |= distilled
        if self.organ_head is not None:
            terms |= self._learn_organs(tokens[:, 0], draws)
        if "organ" in draws:
            terms["unknown_organ"] = (draws["organ"] < 0).float().mean()
        return {"loss": loss, **terms}

    def survey(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What an adaptive lambda needs of a micro-batch: of the means "layer", (2, P, W), both terms' gradients of the
        last layer's weight. {} while no lambda is taken. Arguments as of `step`.
        """
        if self.discriminator is None or not self.judging or self.cfg.adv_lambda != "adaptive":
            return {}, {}
        sharp = self.views(images, draws)
        places, hidden = self.masks(draws["noise"])
        tokens = self._masked(sharp, self.labels(len(images), draws)[1], hidden, draws)
        pred = self.pred(h := self._before_pixels(tokens, places))
        target = gather_patches(patchify(sharp, self.cfg.patch_size), places)
        _, *both = pixel_gradients(lambda x: self._judge(x, sharp, places), pred, target, self.cfg.mim_reduction)
        return {}, {"layer": torch.stack([layer_gradient(d, h) for d in both])}

    def rebuild(
        self, tokens: Tensor, sharp: Tensor, places: Tensor, draws: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """L_MIM on the hidden patches and, once it has begun, lambda * L_adv; "pixels" is their sum.

        The gradients of both at the predicted pixels are known before any backward pass, so lambda costs two small
        matrix products, and the encoder is traversed once.
        """
        h = self._before_pixels(tokens, places)  # (V * B, M, W)
        pred = self.pred(h)  # (V * B, M, p * p)
        target = gather_patches(patchify(sharp, self.cfg.patch_size), places)
        mim = mim_loss(pred, target, self.cfg.mim_reduction)
        if self.discriminator is None or not self.judging:
            return {"pixels": mim, "mim": mim.detach()}
        return {"mim": mim.detach(), **self._adversarial(h, pred, target, mim, sharp, places, draws or {})}

    @torch.compiler.disable  # it differentiates by itself
    def _adversarial(
        self,
        h: Tensor,
        pred: Tensor,
        target: Tensor,
        mim: Tensor,
        sharp: Tensor,
        places: Tensor,
        draws: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        cfg = self.cfg
        adv, d_mim, d_adv = pixel_gradients(lambda x: self._judge(x, sharp, places), pred, target, cfg.mim_reduction)
        if cfg.adv_lambda == "adaptive":  # of the whole batch's gradients: the same however it is cut
            own = torch.stack([layer_gradient(d, h.detach()) for d in (d_mim, d_adv)])
            whole = mean_of_all(own, draws, "layer")
            weight = adaptive_lambda(whole[0], whole[1], cfg.lambda_eps, cfg.lambda_max)
        else:
            weight = torch.full_like(adv, float(cfg.adv_lambda))
        pixels = with_gradient(mim.detach() + weight * adv, pred, d_mim + weight * d_adv)
        both = [self._judged(patches, sharp, places) for patches in (target, pred.detach().float())]
        assert self.discriminator is not None
        real, fake = self.discriminator(torch.cat(both)).chunk(2)
        return {
            "pixels": pixels,
            "adv": adv,
            "lambda": weight,
            "loss/discriminator": discriminator_loss(real, fake),
            "disc_accuracy": accuracy(real, fake),
        }

    def distil(
        self,
        tokens: Tensor,
        sharp: Tensor,
        images: Tensor,
        places: Tensor,
        label: Tensor,
        seen: Tensor,
        draws: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """L_SD: the student's masked views against the teacher's whole ones, each with the other view."""
        assert self.teacher is not None and self.head is not None
        cfg, frozen = self.cfg, self.fixed
        with torch.no_grad():  # the teacher sees whole, re-lit views and always the label
            lit = relit(sharp, draws["light"], draws["sigma"], cfg.blur_sigma[1])
            guide = self.teacher.encoder.tokens(lit, label.repeat(cfg.views, 1))
            wanted = self.teacher.head(guide[:, 0]).unflatten(0, (cfg.views, -1))  # (V, B, prototypes)
        ours = self.head(tokens[:, 0], frozen).unflatten(0, (cfg.views, -1))
        if cfg.local_crops:
            ours = torch.cat([ours, self._local(images, seen, draws, frozen)])
        pairs = {"sd": (ours, wanted)}
        if cfg.sd_patch:
            with torch.no_grad():
                wanted_patches = self.teacher.head(gather_patches(guide[:, 1:], places)).flatten(0, 1)[None]
            our_patches = self.head(gather_patches(tokens[:, 1:], places), frozen).flatten(0, 1)[None]
            pairs["sd_patch"] = (our_patches, wanted_patches)
        losses = {}
        for name, (student, teacher) in pairs.items():
            losses[name] = distillation_loss(
                student,
                teacher,
                cast(Centre, self.centres[name]).value,
                student_temp=cfg.student_temp,
                teacher_temp=self.temperature,
                same=name == "sd_patch",
            )
        if self.training:
            self._note({name: teacher for name, (_, teacher) in pairs.items()})
        return losses

    @torch.compiler.disable  # one gap in the compiled step; inside the loop above it would leave all of it uncompiled
    def _note(self, logits: Mapping[str, Tensor]) -> None:
        """The teacher's raw logits, which move the centres after the update, not before their use."""
        for name, values in logits.items():
            cast(Centre, self.centres[name]).note(values)

    @torch.no_grad()
    def after_step(self, progress: float = 0.0) -> None:
        """After the optimiser's step: the teacher follows, then the centres move.

        Args:
            progress: share of the run's steps that are done, in [0, 1]; the schedules of the next step follow it.
        """
        if self.teacher is not None and self.head is not None:
            self.teacher.follow(self.encoder, self.head, self.momentum())  # of the step that was just done
        for centre in self.centres.values():
            cast(Centre, centre).update(self.cfg.centre_momentum)
        self._go_to(progress)
        self.progress.fill_(progress)

    @torch.no_grad()
    def _go_to(self, progress: float) -> None:
        """What a step reads of its place in the run: two switches, and a tensor, because torch.compile would take a
        number that is another one in every step for a constant, and compile anew each time.
        """
        cfg = self.cfg
        self.done = progress  # `self.progress`, where reading it does not wait for the device
        self.judging = cfg.adv and progress >= cfg.adv_start
        self.fixed = progress < cfg.freeze_last  # the prototypes
        self.temperature.fill_(self.teacher_temp())

    def momentum(self) -> float:
        """The teacher's momentum now: from `teacher_momentum` up to 1 by half a cosine."""
        return 1.0 - (1.0 - self.cfg.teacher_momentum) * 0.5 * (1.0 + math.cos(math.pi * self.done))

    def teacher_temp(self) -> float:
        """The teacher's temperature now: linear from the first to the last during `temp_warmup`."""
        first, last = self.cfg.teacher_temp
        share = min(1.0, self.done / self.cfg.temp_warmup) if self.cfg.temp_warmup else 1.0
        return first + (last - first) * share

    # ---- parts of a step

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The global views, (V * B, 1, S, S) float32 in [-1, 1], all first views before all second ones."""
        source = stored(images, self.cfg.source_size)
        return crops(source, draws["box"], draws["flip"], self.cfg.image_size)

    def masks(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden patches of noise (B, V, N): places (V * B, M) int64 and mask (V * B, N) bool."""
        cfg = self.cfg
        return hidden_patches(noise, self.encoder.patch_embed.grid_size, cfg.mask_ratio, cfg.mask_block)

    def labels(self, n: int, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The organ's vector (n, classes) for the teacher, and for the student, zeros where it is dropped."""
        cfg, given = self.cfg, draws.get("organ")
        slots = torch.full_like(draws["wrong"], -1) if given is None or not cfg.labelled else given
        if cfg.labelled and cfg.condition == "shuffled":
            slots = draws["wrong"]
        label = one_hot(slots, len(cfg.classes))
        return label, label * ~draws["drop"][:, None]

    def _masked(self, sharp: Tensor, seen: Tensor, hidden: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """The student's tokens of the masked views, (V * B, 1 + N, D)."""
        return self.encoder.tokens(
            sharp,
            seen.repeat(self.cfg.views, 1),
            hidden=hidden,
            mask_token=self.mask_token,
            scales=self._scales(draws["paths"][:, : self.cfg.views]),
        )

    def _scales(self, noise: Tensor) -> Tensor | None:
        """(B, V, depth, 2) -> (V * B, depth, 2) factors, or None where every branch is kept."""
        if not (self.training and self.cfg.drop_path):
            return None
        return drop_path_scales(by_view(noise), self.cfg.drop_path)

    def _local(self, images: Tensor, seen: Tensor, draws: dict[str, Tensor], frozen: bool) -> Tensor:
        """Student logits of the small crops, (L, B, prototypes)."""
        assert self.head is not None
        source = stored(images, self.cfg.source_size)
        small = crops(source, draws["local_box"], draws["local_flip"], self.cfg.local_size)
        scales = self._scales(draws["paths"][:, self.cfg.views :])
        tokens = self.encoder.tokens(small, seen.repeat(self.cfg.local_crops, 1), scales=scales)
        logits: Tensor = self.head(tokens[:, 0], frozen)
        return logits.unflatten(0, (self.cfg.local_crops, -1))

    def _before_pixels(self, tokens: Tensor, places: Tensor) -> Tensor:
        tokens = tokens if self.decoder is None else self.decoder(tokens)
        return gather_patches(tokens[:, 1:], places)

    def _judged(self, pixels: Tensor, sharp: Tensor, places: Tensor) -> Tensor:
        """What the discriminator looks at: each hidden patch (n, 1, p, p), or the image they are pasted into."""
        p = self.cfg.patch_size
        whole = self.cfg.disc_input == "composite"
        return pasted(pixels, sharp, places, p) if whole else pixels.reshape(-1, 1, p, p)

    def _judge(self, pixels: Tensor, sharp: Tensor, places: Tensor) -> Tensor:
        assert self.discriminator is not None
        logits: Tensor = self.discriminator(self._judged(pixels, sharp, places))
        return logits

    def _learn_organs(self, cls: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the organ classifier on class tokens that have not seen the label; none to the encoder."""
        assert self.organ_head is not None
        organ = draws.get("organ", torch.full_like(draws["wrong"], -1)).repeat(self.cfg.views)
        usable = draws["drop"].repeat(self.cfg.views) & (organ >= 0)
        error = organ_error(self.organ_head(cls.detach()), organ, usable, self.cfg.cond_dropout)
        return {"loss/organ": error, "organ_learned": usable.float().mean()}

    # ---- what is looked at

    @torch.no_grad()
    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step on the first view, each (B, 1, S, S) float32 in [0, 1]; hidden patches are mid-grey in "masked".

        "offsets" shows how far the last block's taps were moved: black 0, 0.63 one patch, towards white beyond.
        """
        first = {name: draws[name][:, :1] for name in ("box", "flip", "noise")}
        sharp = self.views(images, first)
        places, hidden = self.masks(first["noise"])
        label = self.labels(len(images), draws)[0]
        moved: list[Tensor] = []
        tokens = self.encoder.tokens(sharp, label, hidden=hidden, mask_token=self.mask_token, record=moved)
        pixels = self.pred(self._before_pixels(tokens, places)).float()
        shown = {
            "view": sharp,
            "masked": pasted(torch.zeros_like(pixels), sharp, places, self.cfg.patch_size),
            "reconstruction": pasted(pixels, sharp, places, self.cfg.patch_size),
        }
        drawn = {name: (value / 2 + 0.5).clamp(0, 1) for name, value in shown.items()}
        if moved:
            far = moved[-1].norm(dim=-1).mean((-2, -1))[:, None]  # (B, 1, rows, columns) patches
            side = self.cfg.patch_size
            drawn["offsets"] = (1 - torch.exp(-far)).repeat_interleave(side, 2).repeat_interleave(side, 3)
        return drawn

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Decayed or not (biases, norms, positions, AC, w_k, prototypes), slower for offsets; two more optimisers."""
        return groups_of(self, weight_decay, self.cfg.offset_lr)

    # ---- after pretraining

    @property
    def trained(self) -> AViT:
        """The encoder to use afterwards: the teacher's, if there is one."""
        return self.encoder if self.teacher is None else cast(AViT, self.teacher.encoder)

    def view(self, images: Tensor) -> Tensor:
        """The deterministic view of stored uint8 images: (B, 1, S, S) float32 in [-1, 1]."""
        box = centre_box(self.cfg.source_size, shown_share(self.cfg.eval_view))
        return 2.0 * crop(stored(images, self.cfg.source_size), box, self.cfg.image_size, inside=False) - 1.0

    def encode(self, images: Tensor, organ: Organ = None, mode: Mode | None = None) -> Tensor:
        """Features of stored images: class token and mean patch token of the teacher, as `pool` says.

        Args:
            images: (B, 1, 256, 256) uint8.
            organ: a name for all; names, None where unknown; (B,) int64 slots, -1 unknown; or (B, classes)
                probabilities with sums of at most 1.
            mode: "label" (needs `organ`); "null": no organ is told; "predict": a first pass without, the organ
                classifier's probabilities in a second. None: "label" with an organ, else `cfg.inference`.

        Returns:
            (B, 2 D) float32 (D for pool "cls" or "mean").

        Raises:
            ConfigError: an unknown organ (with the nearest), "label" without an organ, "predict" without a classifier.
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        mode = mode or ("label" if organ is not None else self.cfg.inference)
        view = self.view(images)
        condition = torch.zeros(len(view), len(self.cfg.classes), device=view.device)
        if mode == "label":
            condition = told(organ, self._slots, condition)
        elif mode == "predict":
            if self.organ_head is None:
                raise ConfigError(
                    "These weights have no organ classifier.", hint="Encode with an organ, or with mode='null'."
                )
            logits = self.organ_head(self.trained.tokens(view, condition)[:, 0])
            condition = logits.float().softmax(dim=-1)
        tokens = self.trained.tokens(view, condition)
        pooled = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1)}
        return torch.cat([pooled[name] for name in self.cfg.pool.split("+")], dim=1).float()

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trained encoder for others: timm's keys, plus `acdt` in each block; without acdt timm loads it."""
        state = {name: value.detach().cpu().clone() for name, value in self.trained.state_dict().items()}
        return state, export_facts(self.cfg)

    # ---- small parts

    def _slots(self, organs: Sequence[str | None]) -> Tensor:
        return organ_slots(organs, self.cfg.classes, self.cfg.missing, self.cfg.unknown_name)


def _check_classes(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    stored = state.get(f"{prefix}class_names")
    if stored is not None and isinstance(module, ARL):
        refuse_other_classes(unpack_names(stored), module.cfg.classes)


def _read_progress(module: nn.Module, _: Any) -> None:
    if isinstance(module, ARL):
        module._go_to(float(module.progress))
