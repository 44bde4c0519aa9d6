"""
Arms: what each is pre-trained on, for any budget and seed, and which question it answers.

All arms of one budget b over n usable images store the same pixels, those of round(b n) images at the training
resolution, in mosaics of M tiles or whole. Those of `full` are not cut to a budget: they store all n images, or in
`full_mosaics`, which shows each of them once, four to a mosaic, a quarter of that. Of the un-tiled arms
`hard_patches_full` stores round(b n) patches at full side, and `hard_patches_small` M round(b n) at a tile's, which
pre-training enlarges. `random_equal_bytes` stores as many bytes as `optidel`, not as many pixels. All are trained for
the same steps, whatever they store, but for those of equal compute, which are trained for as much longer as curation
takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from optidel_hf.curation.selection import STRATEGIES


@dataclass(frozen=True)
class Arm:
    """
    How an arm is chosen.

    Args:
        question (`str`): what it answers, in a line.
        unit (`str`, *optional*): `"patch"`, `"image"`, or `None` where there is no pre-training.
        strategy (`str`): of [`select`].
        tiles (`int`): in an image, 1 where it is not tiled.
        budgeted (`bool`): whether it is cut to the budget; else everything is taken.
        shrink (`int`): shrink^2 times as many images are stored, of a side that is as many times shorter.
        score (`str`, *optional*): column to rank by, where that is not the strategy's own.
        hardness_weight (`float`): of `optidel`.
        rule (`str`, *optional*): of `rules.RULES`, where choosing is more than the strategy on the unit's table.
        whole (`float`): share of its images that are random whole ones; they come after the mosaics.
        whole_last (`bool`): whether these are for the last steps, as large a share of them.
        bytes_of (`str`, *optional*): the arm that it stores as many bytes as, whatever images that makes.
        tile_augmentation (`bool`): whether mosaics are cropped and mirrored tile by tile.
        pays_curation (`bool`): whether it is trained for as much longer as curation takes.
        from_scorer (`bool`): whether it starts from the weights of the seed's first reference model.
        oracle (`bool`): whether it is shown the label pool's images, and so is no product.
        core (`bool`): whether it is in the core grid.
    """

    question: str
    unit: str | None = "patch"
    strategy: str = "random"
    tiles: int = 4
    budgeted: bool = True
    shrink: int = 1
    score: str | None = None
    hardness_weight: float = 1.0
    rule: str | None = None
    whole: float = 0.0
    whole_last: bool = False
    bytes_of: str | None = None
    tile_augmentation: bool = False
    pays_curation: bool = False
    from_scorer: bool = False
    oracle: bool = False
    core: bool = False

    @property
    def needs_scores(self) -> bool:
        """Whether reference models have to be fitted for it."""
        return self.oracle or STRATEGIES[self.strategy].scored


BASELINES = {"semdedup": "SemDeDup", "meddel": "MedDEL", "ccs": "CCS", "prototypes": "prototypes", "zcore": "ZCore"}

ARMS = {
    "none": Arm("What does a network reach without pre-training?", unit=None, core=True),
    "full": Arm("Does a subset match the whole pool?", "image", tiles=1, budgeted=False, core=True),
    "full_mosaics": Arm("Is beating `full` the doing of mosaics alone?", "image", budgeted=False, core=True),
    "random_images": Arm("What does the budget give without any choice?", "image", tiles=1, core=True),
    "image_mosaics": Arm("Do mosaics help alone, by four times as many sources?", "image", core=True),
    "random_patch_mosaics": Arm("What does selection add (`optidel` minus this)?", core=True),
    "hardest": Arm("Does the published rule, the hardest patches, help?", strategy="hardest", core=True),
    "optidel": Arm("Does choosing hard and diverse patches help?", strategy="optidel", core=True),
    "oracle": Arm(
        "Is there room for any selection: do frames nearest to the label pool beat random ones?",
        "image",
        tiles=1,
        rule="nearest_to_labels",
        oracle=True,
    ),
    "oracle_coverage": Arm(
        "And is there more for frames such that each image of the label pool has one that is near?",
        "image",
        tiles=1,
        rule="covering_labels",
        oracle=True,
    ),
    "random_crop_mosaics": Arm(
        "What does SAM add (`random_patch_mosaics` minus this), and what zoom (this minus `image_mosaics`)?",
        strategy="optidel",
        rule="random_crops",
    ),
    "hard_patches_small": Arm(
        "What do mosaics add to as many hard patches, each an image of a tile's side?",
        strategy="hardest",
        tiles=1,
        shrink=2,
    ),
    "hard_patches_full": Arm(
        "What do mosaics add to as many images, each one hard patch?", strategy="hardest", tiles=1
    ),
    "easiest_per_image_mosaics": Arm(
        "Is RDED's rule, the easiest patch of each image, better?", strategy="easiest", rule="easiest_of_each"
    ),
    "easiest_mosaics": Arm("Are the easiest patches better than the hardest?", strategy="easiest"),
    "medium_mosaics": Arm("Are patches of medium difficulty better than the hardest?", strategy="medium"),
    "hardest_images": Arm(
        "Do whole images of the highest mean loss do harm, as PASS found?", "image", "hardest", tiles=1
    ),
    "cover_mosaics": Arm(
        "Is it enough to leave out what is spoilt and to cover groups and clusters, at any difficulty?",
        strategy="optidel",
        rule="cover",
    ),
    "coverage_mosaics": Arm(
        "Is coverage enough, without hardness (`--hardness_weight 0`)?", strategy="optidel", hardness_weight=0.0
    ),
    "cover_medium_mosaics": Arm(
        "And with patches of medium difficulty in their cluster?", strategy="optidel", rule="cover_medium"
    ),
    "learnable_mosaics": Arm(
        "Are patches on which longer training gains most (`--learnability true`) better than hard ones?",
        strategy="optidel",
        score="learnability",
    ),
    "lesion_like_mosaics": Arm(
        "Do hard patches help more whose mask is compact and off the image's edge?",
        strategy="optidel",
        rule="lesion_like",
    ),
    "optidel_tile_augmentation": Arm(
        "Do mosaics help more that are augmented tile by tile?", strategy="optidel", tile_augmentation=True
    ),
    "optidel_images": Arm("Does the rule of `optidel` need key patches?", "image", "optidel", tiles=1),
    "coverage_images": Arm(
        "And are whole images better that cover the pool, without hardness?",
        "image",
        "optidel",
        tiles=1,
        hardness_weight=0.0,
    ),
    "optidel_m9": Arm("Do more sources a byte help: nine tiles?", strategy="optidel", tiles=9),
    "optidel_m16": Arm("Do still more sources a byte help: sixteen tiles?", strategy="optidel", tiles=16),
    "optidel_half": Arm(
        "Is half of the budget better spent on whole images?", strategy="optidel", rule="partly_whole", whole=0.5
    ),
    "optidel_last_whole": Arm(
        "Are a fifth of the budget and the last fifth of the steps better spent on whole images?",
        strategy="optidel",
        rule="partly_whole",
        whole=0.2,
        whole_last=True,
    ),
    "random_equal_bytes": Arm(
        "Is `optidel` ahead of random images that take as many bytes?", "image", tiles=1, bytes_of="optidel"
    ),
    "random_equal_compute": Arm(
        "Is `optidel` ahead of random images on which curation's time is spent as well?",
        "image",
        tiles=1,
        pays_curation=True,
    ),
    "full_equal_compute": Arm(
        "Is it ahead of the whole pool on which that time is spent?",
        "image",
        tiles=1,
        budgeted=False,
        pays_curation=True,
    ),
    "full_equal_compute_from_scorer": Arm(
        "And where the pool's training goes on from the scorer's weights?",
        "image",
        tiles=1,
        budgeted=False,
        pays_curation=True,
        from_scorer=True,
    ),
    **{
        strategy: Arm(f"Does {name} on whole images, as published, do as well?", "image", strategy, tiles=1)
        for strategy, name in BASELINES.items()
    },
    **{
        f"{strategy}_mosaics": Arm(f"Does {name} on key patches, in mosaics, do as well?", strategy=strategy)
        for strategy, name in BASELINES.items()
    },
}
