"""One YAML is one run: these models are its sections, in data-flow order, and hold every default.

A class here is plain data. Builders read it and hand plain arguments on, so that no other class depends on a config.
Paths are absolute once loaded; in the file they are relative to the file (see load.py).
A validator's message is what the user reads after "expected".
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

__all__ = [
    "Backbone", "Data", "Detector", "Eval", "Export", "LearningRates", "Method", "Peft", "Render", "Run", "Settings",
    "Train",
]  # fmt: skip

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what every generator takes
Size = tuple[PositiveInt, PositiveInt]
ASPECT_RATIOS = (0.5, 1.0, 2.0)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field("", description="folder name of the run; empty: the config file's name")
    dir: Path | None = Field(None, description="folder that holds the runs; empty: ./runs of the working folder")
    seed: Seed = Field(0, description="seed of initial weights, order and augmentation")
    needs: tuple[Path, ...] = Field((), description="configs whose run is made first if it is not there yet")

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, name: str) -> str:
        if not re.fullmatch(r"(\w[\w.-]*)?", name):
            raise ValueError("letters, digits, '_', '-' and '.', the first neither '-' nor '.'")
        return name


class Render(Section):
    """Rendered street scenes in place of photographs (cvpeft data render)."""

    city: str = Field(description="one of the renderer's cities")
    train: Count = 200
    val: Count = 50
    test: Count = 150
    seed: Seed = 0
    size: Size = (480, 640)
    parts: bool = Field(False, description="write what each pixel shows too, as parts/*.png; cvpeft pretrain learns it")


class Data(Section):
    root: Path | None = Field(
        None, description="folder that the json files are relative to; empty: the config file's folder"
    )
    train: tuple[Path, ...] = Field((), description="COCO json files to train on; one per city, say")
    val: tuple[Path, ...] = Field((), description="COCO json files that choose the best epoch")
    test: tuple[Path, ...] = Field((), description="COCO json files that are scored once, at the end")
    classes: tuple[str, ...] = Field(
        (), description="class names in order; empty: the first train json's, by category id"
    )
    size: Size = Field((416, 640), description="height and width of the network input; images are letterboxed into it")
    canvas: Size | None = Field(
        None,
        description="for small objects: images are letterboxed into this larger size and seen in overlapping tiles of "
        "data.size; empty: a whole image in one input",
    )
    augment: str | tuple[str | dict[str, dict[str, Any]], ...] = Field(
        "road", description="road, flip, none, or a list of albumentations names with their settings"
    )
    mosaic: Fraction = Field(
        0.0, description="part of the training inputs that show quarters of four images, around small objects, unscaled"
    )
    workers: Count = Field(1, description="loader processes; the batches do not depend on their number")
    render: Render | None = Field(None, description="render the json files named above where they do not exist")

    @field_validator("canvas")
    @classmethod
    def _holds_a_tile(cls, canvas: Size | None, info: ValidationInfo) -> Size | None:
        size = info.data.get("size")
        if canvas and size and (canvas[0] < size[0] or canvas[1] < size[1]):
            raise ValueError(f"at least data.size, which is {list(size)}")
        return canvas

    @field_validator("classes")
    @classmethod
    def _are_distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes) or "" in classes:
            raise ValueError("distinct names, none of them empty")
        return classes


class Backbone(Section):
    name: str = Field("deit_tiny_patch16_224", description="timm model name: plain ViT, DINOv3/EVA, ConvNeXt, Swin")
    weights: Literal["timm", "street", "none"] | Path = Field(
        "timm", description="timm (the hub or its cache), street (ships with cvpeft), none, or a .safetensors file"
    )
    window: Count = Field(
        0, description="side in tokens of ViTDet's attention windows (plain ViT only); 0: global attention"
    )
    global_blocks: tuple[int, ...] = Field(
        (), description="blocks that stay global; empty: every fourth part's last block"
    )
    neck_width: PositiveInt = Field(128, description="channels of every pyramid level")
    drop_path: Fraction = Field(0.0, description="stochastic depth; full fine-tuning only, frozen blocks never drop")

    @field_validator("global_blocks")
    @classmethod
    def _stand_among_windows(cls, blocks: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if blocks and info.data.get("window") == 0:
            raise ValueError("no blocks, as backbone.window is 0 and all of them are global")
        return blocks


class Method(Section):
    """One entry of peft.methods: `- lora` or `- lora: {rank: 8}`."""

    name: str
    targets: tuple[str, ...] = Field(
        (), description="patterns of module paths, matched from the right; empty: the method's own"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the method, checked by its signature"
    )


class Peft(Section):
    mode: Literal["adapters", "full", "frozen"] = Field("adapters", description="what of the backbone is trained")
    scope: Literal["backbone", "detector"] = Field(
        "backbone",
        description="where methods stand; detector: in neck and head too, of which the base then brings the weights",
    )
    methods: tuple[Method, ...] = Field((), description="methods to attach, in order; mode adapters only")
    from_: Path | None = Field(
        None,
        alias="from",
        description="folder of HF peft to start from; where no methods are given they follow from it",
    )

    @field_validator("methods")
    @classmethod
    def _suit_the_mode(cls, methods: tuple[Method, ...], info: ValidationInfo) -> tuple[Method, ...]:
        if methods and info.data.get("mode") in ("full", "frozen"):
            raise ValueError(f"no methods in mode {info.data['mode']}")
        return methods

    @field_validator("from_")
    @classmethod
    def _has_methods(cls, folder: Path | None, info: ValidationInfo) -> Path | None:
        if folder is not None and info.data.get("mode") != "adapters":
            raise ValueError("no folder to start from where no methods are")
        return folder


class Detector(Section):
    head: Literal["faster_rcnn", "retinanet", "fcos"] = "faster_rcnn"
    anchor_sizes: tuple[PositiveFloat, ...] = Field(
        (), description="anchor side in input pixels, one for each pyramid level, finest first; empty: 4 x the stride"
    )
    aspect_ratios: tuple[PositiveFloat, ...] = Field(ASPECT_RATIOS, description="height / width of the anchors")
    head_width: PositiveInt = Field(256, description="width of the box head (Faster R-CNN)")
    rois_per_image: PositiveInt = Field(128, description="proposals sampled per image in training (Faster R-CNN)")
    proposals: PositiveInt = Field(500, description="proposals kept after the RPN (Faster R-CNN)")
    score_threshold: Fraction = Field(0.01, description="boxes below it are dropped before NMS")
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100

    @field_validator("anchor_sizes")
    @classmethod
    def _rise(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if any(size >= larger for size, larger in pairwise(sizes)):
            raise ValueError("sizes that rise from level to level")
        return sizes

    @field_validator("aspect_ratios")
    @classmethod
    def _are_there(cls, ratios: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not ratios:
            raise ValueError("at least one ratio")
        if ratios != ASPECT_RATIOS and info.data.get("head") == "fcos":
            raise ValueError(f"{list(ASPECT_RATIOS)}, which means nothing set, as the head fcos has no anchors")
        return ratios


class LearningRates(Section):
    adapter: PositiveFloat = 2e-3
    backbone: PositiveFloat = Field(1e-4, description="mode full only")
    neck: PositiveFloat = 1e-3
    head: PositiveFloat = 1e-3


class Train(Section):
    epochs: PositiveInt = 12
    batch: PositiveInt = 4
    accumulate: PositiveInt = Field(1, description="batches per optimizer step")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: AdamW that steps along orthogonalised momentum in matrices; for mode full"
    )
    lr: LearningRates = LearningRates()
    weight_decay: NonNegative = Field(
        0.05, description="not applied to norms, biases, one-dimensional tensors, prompts, tokens and positions"
    )
    warmup: Fraction = Field(
        0.05, description="part of all steps over which the learning rate rises from 0; then cosine to 0"
    )
    clip: NonNegative = Field(1.0, description="largest gradient norm; 0: no clipping")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="compute type of both passes; auto: bf16 where the hardware has it, else fp32"
    )
    frozen_dtype: Literal["fp32", "compute"] = Field("fp32", description="type that frozen matrices are held in")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the weights' moving average per step; 0: none"
    )
    early_stop: Count = Field(0, description="stop after so many evaluations without a better AP; 0: never")
    eval_every: PositiveInt = Field(1, description="epochs between evaluations on val")
    save_every: Count = Field(0, description="steps between resume states; 0: once per epoch")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = Field(False, description="write TensorBoard events into the run folder (needs the extra `viz`)")


class Eval(Section):
    batch: PositiveInt = 4
    precision: Literal["bf16", "fp32"] = Field("fp32", description="fp32 gives the numbers that the export gives")
    alarm_threshold: Fraction | None = Field(
        None, description="score that counts as an alarm; empty: best-F1 of the class"
    )
    latency_images: Count = Field(10, description="photos timed one by one, each with all its tiles; 0: none")


class Export(Section):
    opset: Annotated[int, Field(ge=18)] = 18
    takes: Literal["float32", "uint8"] = Field(
        "float32", description="input of the file: (batch, 3, H, W), or bytes (batch, H, W, 3) as decoders give them"
    )
    weights: Literal["fp32", "fp16"] = Field(
        "fp32", description="fp16: half the size; computed in float32 all the same"
    )
    nms: bool = Field(True, description="false: all candidates, for programs that have an NMS of their own")
    free_size: bool = Field(
        False, description="inputs of any height and width, multiples of 32; ConvNeXt, DINOv3, Swin"
    )
    licence: str = Field(
        "", description="licence of your model, for the file's metadata, beside that of the base weights; empty: none"
    )
    score_tolerance: PositiveFloat = 1e-4
    iou_tolerance: Fraction = Field(0.999, description="smallest IoU of two matched boxes")
    verify_images: PositiveInt = 20
    verify_score: Fraction = Field(0.3, description="boxes above it are matched")
    ap_images: Count = Field(
        200,
        description="images of val on which the AP of an exported file is compared with the run's, and that of an INT8 "
        "file with its own; 0: the first is left out, the second takes all",
    )
    int8_max_ap_drop: Fraction = Field(0.01, description="an INT8 file that loses more AP than this is not written")
    int8_images: PositiveInt = Field(64, description="training images that tell INT8 the range of every activation")


class Settings(Section):
    run: Run = Run()
    data: Data = Data()
    backbone: Backbone = Backbone()
    peft: Peft = Peft()
    detector: Detector = Detector()
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()

    @field_validator("train")
    @classmethod
    def _can_stop_early(cls, train: Train, info: ValidationInfo) -> Train:
        if train.early_stop and "data" in info.data and not info.data["data"].val:
            raise ValueError("early_stop 0, as data.val is empty and nothing is evaluated that could stop the run")
        return train

    @field_validator("peft")
    @classmethod
    def _has_a_base(cls, peft: Peft, info: ValidationInfo) -> Peft:
        weights = info.data["backbone"].weights if "backbone" in info.data else None
        if peft.scope == "detector" and weights in ("timm", "none"):
            raise ValueError("scope backbone, as backbone.weights brings no neck and head; street or a detector does")
        return peft
