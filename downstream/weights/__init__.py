"""Weights from elsewhere: official checkpoints and timm's as backbone folders, and backbone folders as others' files.

``read`` opens a file, ``names`` and ``layouts`` turn its keys into timm's, ``architecture`` deduces the network from
the shapes, ``convert`` puts the two together and refuses what does not fit, ``export`` goes the other way.
"""
