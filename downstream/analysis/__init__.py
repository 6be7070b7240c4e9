"""What a backbone learned: its attention and its features, layer by layer, read without changing what it computes.

Analyses of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al., CVPR 2023). Its analysis code is not
public, so every convention that the paper leaves open is a named setting (:class:`~downstream.analysis.study.Settings`)
and the name travels with the numbers.
"""
