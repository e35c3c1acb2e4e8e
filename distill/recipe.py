"""Recipes: ordered phases of steps as plain data, naming terms and numbers and nothing else.

A recipe is a YAML file. Unknown keys, unknown terms and fields that cannot exist (a feature loss against a cached
picture) are refused before anything is computed. ``--set key.path=value`` changes single numbers.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, model_validator

from duskfuse.data.errors import InputError
from duskfuse.distill.augment_config import CACHED_JITTER, AugmentConfig, Plain
from duskfuse.distill.quantise_config import QuantiseConfig
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.contrastive import Masking, Norm
from duskfuse.tasks.fusion_quality import QUALITY_METRICS, WITHOUT_GRADIENT
from duskfuse.teachers.denoiser_sizes import DenoiserSize, Prediction
from duskfuse.teachers.main_network import WIDTH
from duskfuse.teachers.teacher_images import Brightness


class Owner(StrEnum):
    """Which network a step moves."""

    STUDENT = "student"
    TEACHER = "teacher"
    DENOISER = "denoiser"


class FusionField(StrEnum):
    """What a term may look at: live outputs, their stop-gradient twins, the float student that a quantised one was made
    from, the cached teacher image, a picture made of the sources by rule, and for the denoiser the picture that it is
    to find under the noise."""

    STUDENT = "student"
    STUDENT_SG = "student_sg"
    TEACHER = "teacher"
    TEACHER_SG = "teacher_sg"
    STUDENT_FLOAT = "student_float"
    TEACHER_CACHED = "teacher_cached"
    PSEUDO_LABEL = "pseudo_label"
    DENOISER = "denoiser"
    DENOISER_TARGET = "denoiser_target"


NEEDS_TAPS = frozenset({TermName.FEATURES, TermName.FEATURE_ADAPTERS})
WITHOUT_TAPS = frozenset({FusionField.STUDENT_FLOAT, FusionField.TEACHER_CACHED, FusionField.PSEUDO_LABEL})
DEFAULT_REFERENCES = {
    Owner.STUDENT: FusionField.TEACHER_SG,
    Owner.TEACHER: FusionField.STUDENT_SG,
    Owner.DENOISER: FusionField.DENOISER_TARGET,
}

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class TermConfig(Plain):
    """One weighted term of a step."""

    weight: Weight
    """Factor of the term in the loss; a bare number in the place of the term is its weight."""
    reference: FusionField | None = None
    """The image or taps the term compares with; by default the other network's stop-gradient twin, for the denoiser its
    target."""
    ramp: tuple[int, int] | None = None
    """The weight grows linearly from 0 to its value between these two steps of the owner."""


class UnrollConfig(Plain):
    """A look-ahead: the step's gradient is taken through one gradient step of another network (SAGE §7 B)."""

    through: str
    """That network's own step. It looks ahead on the batch after this step's, which is then its own to learn from."""
    xi: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Length of the look-ahead, by default that network's learning rate at the time; 0 is first order."""


class StepConfig(Plain):
    """One kind of update: an owner and the terms that move it."""

    owner: Owner
    """The network that this step moves; everything else is frozen."""
    terms: dict[TermName, TermConfig]
    """What the loss is summed of: a weight, or weight, reference and ramp."""
    unroll: UnrollConfig | None = None
    """Without it other networks count as constants: first order."""

    @property
    def live(self) -> FusionField:
        """The owner's output with its graph."""
        return FusionField(self.owner.value)

    def reference(self, term: TermName) -> FusionField | None:
        """The field that ``term`` compares with, after defaults; None for terms that compare with no fused one."""
        if not term.compares:
            return None
        return self.terms[term].reference or DEFAULT_REFERENCES[self.owner]

    @property
    def active(self) -> dict[TermName, TermConfig]:
        """Terms that ever have a weight; the others are not computed and need nothing."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    def looks_at(self, owner: Owner) -> bool:
        """Whether some term compares with that network's output."""
        references = {self.reference(term) for term in self.active}
        return not references.isdisjoint(field for field in FusionField if field.value.removesuffix("_sg") == owner)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_weights(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("terms"), dict):
            terms = {k: {"weight": v} if isinstance(v, int | float) else v for k, v in values["terms"].items()}
            return {**values, "terms": terms}
        return values

    @model_validator(mode="after")
    def _fields_exist(self) -> StepConfig:
        for name, term in self.terms.items():
            if term.reference and not name.compares:
                raise ValueError(f"term {name} compares with no fused picture: remove its reference")
            reference = self.reference(name)
            if reference is self.live:
                raise ValueError(f"term {name} compares {self.owner} with itself: name another reference")
            if name in NEEDS_TAPS and reference in WITHOUT_TAPS:
                raise ValueError(
                    f"term {name} needs feature maps, and {reference} has none: "
                    "remove the term or use reference: teacher_sg"
                )
            self._check_denoiser(name, reference)
        self._check_adapters()
        return self

    def _check_adapters(self) -> None:
        if TermName.FEATURE_ADAPTERS in self.terms and self.owner is not Owner.STUDENT:
            raise ValueError(
                f"term {TermName.FEATURE_ADAPTERS} moves the student and its adapters, not the {self.owner}: remove it"
            )

    def _check_denoiser(self, name: TermName, reference: FusionField | None) -> None:
        denoiser = self.owner is Owner.DENOISER
        if denoiser and name in NEEDS_TAPS:
            raise ValueError(f"term {name} needs feature maps, and the denoiser gives none: remove the term")
        if name is TermName.DENOISING and not (denoiser and reference is FusionField.DENOISER_TARGET):
            raise ValueError(f"term {name} is the denoiser's error at its own target: remove it, or its reference")
        if reference is FusionField.DENOISER:
            raise ValueError(
                f"term {name} compares with the denoiser, which takes several steps to a picture: "
                "run cache-teacher and use reference: teacher_cached"
            )


class PhaseConfig(Plain):
    """A stretch of the run: ``batches`` batches, each given to the next step of the cycle."""

    name: str
    """What the log calls it."""
    batches: Positive
    """Its length."""
    cycle: Annotated[list[str], Field(min_length=1)]
    """Names of steps, which take turns."""


class OptimiserKind(StrEnum):
    """How gradients become updates."""

    ADAM = "adam"
    ADAMW = "adamw"


class OptimiserConfig(Plain):
    """An optimiser with a cosine schedule over exactly this owner's own number of steps."""

    kind: OptimiserKind = OptimiserKind.ADAM
    """How gradients become updates."""
    lr: Annotated[float, Field(gt=0)]
    """Highest learning rate."""
    final_lr: Annotated[float, Field(gt=0)] = 1e-5
    """That of the owner's last step."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises from nothing to ``lr``."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are shortened to this norm."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Not applied to biases and normalisation layers."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running average of the weights; where it is given, the average is what is shown and exported."""

    @model_validator(mode="after")
    def _rates_fall(self) -> OptimiserConfig:
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr} is above lr {self.lr}: lower it")
        return self


class DataConfig(Plain):
    """How samples are cut from the pairs."""

    crop: tuple[Positive, Positive] = (192, 256)
    """(height, width) in pixels."""
    batch: Positive = 4
    """Samples that the networks see at once, in all processes together."""
    accumulate: Positive = 1
    """Batches whose gradients are averaged for one update."""
    masks: Positive = 4
    """Mask slots per modality, N."""
    mask_pool: Positive = 20
    """Only the largest K masks of a picture are drawn from, K_cache."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a sample is mirrored, left for right."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that read and cut samples; 0: the training process itself."""
    brightness: Brightness = Brightness.MATCH
    """What is done about the brightness of cached teacher pictures that are not known to be fused luminance."""
    augment: AugmentConfig = AugmentConfig()
    """How samples are varied beyond crop and flip."""


class MainNetworkConfig(Plain):
    """The SAM-guided main network; the number of its masks is ``data.masks``."""

    width: Annotated[int, Field(gt=0, multiple_of=4)] = WIDTH
    """Channels of its streams; the published 64, or less where a CPU must train it."""
    compat: bool = False
    """The published form, for published weights."""


class StudentConfig(Plain):
    """Which student is trained, with its constructor arguments; `duskfuse.students.zoo` knows both."""

    architecture: str = "unet"
    """Name of the network."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of its constructor that differ from their defaults."""


class DenoiserTarget(StrEnum):
    """What the denoiser learns to draw."""

    CACHED = "cached"
    """The cached teacher pictures: the fusion knowledge prior of Diff-IF."""
    PSEUDO_LABEL = "pseudo_label"
    """A picture made from the sources by rule, see `duskfuse.distill.pseudo_label`."""


class DiffusionConfig(Plain):
    """The denoiser of the conditional diffusion teacher; only recipes that train it look here."""

    size: DenoiserSize = DenoiserSize.SMALL
    """One for the desk, and those of two published networks."""
    prediction: Prediction = Prediction.PICTURE
    """What its last convolution says."""
    target: DenoiserTarget = DenoiserTarget.CACHED
    """What it learns to draw."""


class EncoderName(StrEnum):
    """Frozen networks whose features the contrastive term compares."""

    SAM = "sam"
    SQUEEZENET = "squeezenet"
    FILTERS = "filters"


class EncoderConfig(Plain):
    """The frozen feature encoder; without a name the best one whose weights are given, else ``filters``."""

    name: EncoderName | None = None
    """Which network."""
    weights: Path | None = None
    """Its file."""


class SegmenterConfig(Plain):
    """The frozen critic of the segmentation term; without a network the term is left out of the run."""

    network: Path | None = None
    """Weights of ``train-task``, or a folder of segmentation_models_pytorch or of a transformers SegFormer."""
    classes: str | None = None
    """Class convention such as FMB-15; our own weights know theirs."""


class CriticConfig(Plain):
    """The frozen critic of the detection or the saliency term; without a network the term is left out of the run."""

    network: Path | None = None
    """Weights of ``train-task``."""


class DetectorConfig(CriticConfig):
    """The frozen critic of the detection term."""

    backbone: Path | None = None
    """The frozen transformer that an SLGNet detector was trained around; other detectors have none."""


class ContrastiveConfig(Plain):
    """The form of the contrastive term."""

    masking: Masking = Masking.IMAGE
    """Whether masks are applied to the pictures or, many times faster, to their feature maps."""
    norm: Norm = Norm.SAMPLE
    """Whether distances are those of single samples or of the whole batch."""


class PerceptualName(StrEnum):
    """Frozen networks through which the perceptual term looks."""

    VGG = "vgg"
    SQUEEZENET = "squeezenet"


class PerceptualConfig(Plain):
    """The network of the perceptual term."""

    network: PerceptualName = PerceptualName.VGG
    """VGG-16 up to relu4_3, or SqueezeNet 1.1."""
    weights: Path | None = None
    """A safetensors file or state dict of torchvision's names; without one torchvision's weights are fetched, and where
    that fails the term is left out."""


class Precision(StrEnum):
    """Arithmetic of the networks' forward passes; losses are always float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Recipe(Plain):
    """Everything a run depends on besides the data."""

    name: str
    """What the log and the model card call it."""
    seed: int = 2
    """Of weights, crops and everything else that is drawn."""
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    main_network: MainNetworkConfig = MainNetworkConfig()
    encoder: EncoderConfig = EncoderConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    detector: DetectorConfig = DetectorConfig()
    salience: CriticConfig = CriticConfig()
    quantise: QuantiseConfig | None = None
    contrastive: ContrastiveConfig = ContrastiveConfig()
    quality: dict[str, Weight] = Field(default_factory=dict)
    """Fusion metrics of the quality term by name, with their weights: VIF: 0.5, Nabf: 2, ..."""
    perceptual: PerceptualConfig = PerceptualConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    precision: Precision = Precision.AUTO
    """Arithmetic of the forward passes; auto: bfloat16, or float16, on CUDA and float32 elsewhere."""
    compile: bool = False
    """Compile the networks with torch.compile: the first updates take minutes, the others less time."""
    optimisers: dict[Owner, OptimiserConfig]
    """One for each network that is trained."""
    steps: dict[str, StepConfig]
    """Kinds of updates by name."""
    phases: Annotated[list[PhaseConfig], Field(min_length=1)]
    """Stretches of the run, in order."""
    save_every: Positive = 200
    """Batches between checkpoints."""
    sample_every: Positive = 200
    """Batches between sample grids."""
    gradient_norms_every: Annotated[int, Field(ge=0)] = 0
    """Updates of an owner between measurements of each term's gradient norm; 0: never."""

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for phase in self.phases:
            for step in phase.cycle:
                if step not in self.steps:
                    raise ValueError(f"phase {phase.name} names step {step!r}; steps are {', '.join(self.steps)}")
                if self.steps[step].owner not in self.optimisers:
                    raise ValueError(f"step {step!r} moves the {self.steps[step].owner}, which has no optimiser")
        return self

    @model_validator(mode="after")
    def _unrolled_steps_fit(self) -> Recipe:
        for name, step in self.steps.items():
            if step.unroll is not None:
                self._check_unrolled(name, step, step.unroll)
        return self

    def _check_unrolled(self, name: str, step: StepConfig, unroll: UnrollConfig) -> None:
        through = self.steps.get(unroll.through)
        if through is None:
            raise ValueError(f"step {name!r} unrolls through {unroll.through!r}; steps are {', '.join(self.steps)}")
        both = f"step {name!r} unrolls through step {unroll.through!r}"
        if through.owner is step.owner:
            raise ValueError(f"{both}, and both move the {step.owner}: name a step of another network")
        for one, other in ((step, through), (through, step)):
            if not one.looks_at(other.owner):
                raise ValueError(
                    f"{both}, but the {one.owner}'s terms never look at the {other.owner}, so the look-ahead would "
                    "change nothing: give one of them a reference to it, or remove unroll"
                )
        for phase in self.phases:
            if name in phase.cycle and unroll.through not in phase.cycle:
                raise ValueError(f"{both}, which phase {phase.name} does not make: put it in the cycle too")
        if TermName.FEATURE_ADAPTERS in step.active:
            raise ValueError(f"{both}, and {TermName.FEATURE_ADAPTERS} moves adapters besides: remove one of the two")
        if self.precision is Precision.FLOAT16:
            raise ValueError(f"{both}, and the gradient scaling of float16 cannot follow: use bfloat16 or float32")

    @model_validator(mode="after")
    def _quantised_fits(self) -> Recipe:
        if self.quantise is None:
            if FusionField.STUDENT_FLOAT in self.fields_used():
                raise ValueError("terms look at student_float, and only a quantised student has one: add quantise: {}")
            return self
        if self.precision is not Precision.FLOAT32:
            raise ValueError("quantise rounds as INT8 does, and other rounding would hide it: set precision to float32")
        if self.unrolls:
            raise ValueError("quantise, and rounding has no second derivative: remove unroll")
        return self

    @model_validator(mode="after")
    def _quality_can_be_learned(self) -> Recipe:
        learnable = [name for name in QUALITY_METRICS if name not in WITHOUT_GRADIENT]
        for name in self.quality:
            if name not in learnable:
                raise ValueError(f"quality: {name} is no metric with a gradient; those are {', '.join(learnable)}")
        if (TermName.QUALITY in self.terms_used()) != bool(self.quality):
            raise ValueError("the term quality and the weights in quality belong together: give both or neither")
        return self

    @model_validator(mode="after")
    def _one_target(self) -> Recipe:
        fields = self.fields_used()
        by_rule = self.diffusion.target is DenoiserTarget.PSEUDO_LABEL and FusionField.DENOISER_TARGET in fields
        if by_rule and FusionField.TEACHER_CACHED in fields:
            raise ValueError("terms look at cached teacher pictures: the denoiser's target is then cached, too")
        return self

    @model_validator(mode="after")
    def _targets_follow_the_jitter(self) -> Recipe:
        jitter = self.data.augment.jitter
        if self.needs_teacher_pictures and jitter > CACHED_JITTER:
            raise ValueError(
                f"data.augment.jitter {jitter:g} beside cached teacher pictures, which do not follow it: "
                f"use at most {CACHED_JITTER:g}"
            )
        return self

    @property
    def unrolls(self) -> bool:
        """Whether some step of some phase looks ahead, and so needs the batch after its own."""
        return any(self.steps[step].unroll is not None for phase in self.phases for step in phase.cycle)

    @property
    def needs_teacher_pictures(self) -> bool:
        """Whether some term looks at cached teacher pictures."""
        fields = self.fields_used()
        cached = self.diffusion.target is DenoiserTarget.CACHED and FusionField.DENOISER_TARGET in fields
        return cached or FusionField.TEACHER_CACHED in fields

    @property
    def total_batches(self) -> int:
        """Batches of the whole run."""
        return sum(phase.batches for phase in self.phases)

    def step_at(self, batch: int) -> tuple[str, str]:
        """(phase name, step name) of a batch number."""
        start = 0
        for phase in self.phases:
            if batch < start + phase.batches:
                return phase.name, phase.cycle[(batch - start) % len(phase.cycle)]
            start += phase.batches
        raise IndexError(f"batch {batch} of {self.total_batches}")

    def owner_steps(self, owner: Owner) -> int:
        """How many optimiser steps ``owner`` makes in the whole run: the length of its schedule."""
        return sum(self.steps[self.step_at(batch)[1]].owner is owner for batch in range(self.total_batches))

    def fields_used(self) -> set[FusionField]:
        """Every field that some step of some phase looks at."""
        fields: set[FusionField] = set()
        for name in {step for phase in self.phases for step in phase.cycle}:
            step = self.steps[name]
            references = {step.reference(term) for term in step.active}
            fields |= {step.live} | {field for field in references if field is not None}
        return fields

    def terms_used(self) -> set[TermName]:
        """Every term that some step of some phase computes."""
        return {term for phase in self.phases for step in phase.cycle for term in self.steps[step].active}

    def without(self, term: TermName) -> Recipe:
        """The same recipe with one term left out of every step; InputError where a step would have none."""
        steps = {}
        for name, step in self.steps.items():
            terms = {other: config for other, config in step.terms.items() if other is not term}
            if step.terms and not terms:
                raise InputError(
                    f"step {name!r} of the recipe {self.name} has no term but {term}, which is left out",
                    rule="a step needs a term",
                    remedy="give what the term needs, or another recipe",
                )
            steps[name] = step.model_copy(update={"terms": terms})
        return self.model_copy(update={"steps": steps})
